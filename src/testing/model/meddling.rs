//! What others do to the server behind the back of the service.

use crate::domain::{Oid, Timestamp};
use crate::engine::Input;
use crate::events::SnapshotFailure;

use crate::testing::model::postgres::{TABLES, definition};
use crate::testing::model::world::{Connection, World};

impl World {
    /// Somebody drops the slot or the publication, moves the slot on, or lets its data be discarded.
    pub fn meddle(&mut self) {
        let how = self.choices.below(4);
        let insert = self.postgres.insert;
        self.postgres.reveal_before(Timestamp(i64::MAX));
        match &mut self.postgres.slot {
            Some(slot) if how == 1 => slot.lost = true,
            Some(slot) if how == 2 => slot.confirmed = insert,
            _ if how == 3 => {
                self.fail_snapshots();
                self.postgres.drop_publication();
            }
            slot => *slot = None,
        }
        self.slot_meddled = true;
    }

    /// The connections of all snapshots break.
    pub fn fail_snapshots(&mut self) {
        for sid in self.snapshot_tasks() {
            self.snapshot_fails(sid, SnapshotFailure::Connection);
        }
    }

    /// The stream says what a table looks like, which may end shapes on it.
    pub fn relation_announced(&mut self) {
        let oid = Oid(100 + self.choices.below(TABLES as usize) as u32);
        let schema = 1 + self.choices.below(3) as u64;
        let changed = self.choices.chance(30);
        let Some(process) = &self.process else { return };
        if !matches!(process.connection, Connection::Streaming { .. }) {
            return;
        }
        let on_table = process.router.iter().filter(|(_, hash)| changed && definition(**hash).0 == oid);
        let affected = on_table.map(|(sid, _)| *sid).collect();
        self.send(Input::RelationAnnounced { oid, schema, affected });
    }
}

//! What may happen next.

use std::time::Duration;

use crate::domain::{DefinitionHash, Incarnation, Sid};
use crate::engine::Input;
use crate::events::{
    DrainCause, ExitCause, FaultClass, FileKind, InvalidationCause, LossEvidence, SnapshotFailure, Stage,
    StopCause,
};

use crate::testing::model::postgres::{DEFINITIONS, definition};
use crate::testing::model::world::{Connection, Mutation, World};

#[derive(Clone, Copy, Debug)]
enum Action {
    Settle,
    /// Whatever can be done is.
    Progress,
    Begin,
    Commit,
    AbortTxn,
    Reveal,
    StreamNext,
    TakeMessage,
    Sync,
    Perform,
    WriterWorks,
    Flush,
    CreateShape,
    SnapshotWorks,
    SnapshotFails,
    WriterEnds,
    WriterObeys,
    WriterIdle,
    TrashWorks,
    Tick,
    Keepalive,
    Audit,
    Disconnect,
    Connect,
    StorageFault,
    Delete,
    RelationAnnounced,
    Checkpoint,
    PostgresCrash,
    Meddle,
    ReplaceServer,
    Drain,
    LoseOwnership,
    Crash,
}

const ACTIONS: [(Action, usize); 34] = [
    (Action::Settle, 40),
    (Action::Progress, 25),
    (Action::Begin, 60),
    (Action::Commit, 60),
    (Action::AbortTxn, 5),
    (Action::Reveal, 45),
    (Action::StreamNext, 110),
    (Action::TakeMessage, 130),
    (Action::Sync, 70),
    (Action::Perform, 110),
    (Action::WriterWorks, 70),
    (Action::Flush, 60),
    (Action::CreateShape, 25),
    (Action::SnapshotWorks, 40),
    (Action::SnapshotFails, 2),
    (Action::WriterEnds, 14),
    (Action::WriterObeys, 30),
    (Action::WriterIdle, 14),
    (Action::TrashWorks, 14),
    (Action::Tick, 30),
    (Action::Keepalive, 20),
    (Action::Audit, 10),
    (Action::Disconnect, 8),
    (Action::Connect, 30),
    (Action::StorageFault, 3),
    (Action::Delete, 4),
    (Action::RelationAnnounced, 3),
    (Action::Checkpoint, 10),
    (Action::PostgresCrash, 2),
    (Action::Meddle, 3),
    (Action::ReplaceServer, 2),
    (Action::Drain, 4),
    (Action::LoseOwnership, 1),
    (Action::Crash, 10),
];

/// What makes a process, a connection or a shape end.
fn is_fault(action: Action) -> bool {
    matches!(
        action,
        Action::SnapshotFails
            | Action::Disconnect
            | Action::StorageFault
            | Action::Delete
            | Action::RelationAnnounced
            | Action::PostgresCrash
            | Action::Meddle
            | Action::ReplaceServer
            | Action::Drain
            | Action::LoseOwnership
            | Action::Crash
    )
}

impl World {
    pub fn act(&mut self) {
        if self.process.is_none() {
            return self.boot();
        }
        // Some histories are stormy, most have long stretches in which things get done.
        let calm = self.calm > 0 && self.choices.below(self.calm) > 0;
        let total: usize = ACTIONS.iter().map(|(_, weight)| weight).sum();
        let mut number = self.choices.below(total);
        for (action, weight) in ACTIONS {
            if number < weight {
                let action = if calm && is_fault(action) { Action::Progress } else { action };
                return self.take(action);
            }
            number -= weight;
        }
    }

    fn take(&mut self, action: Action) {
        if self.trace {
            eprintln!("{}: {action:?}", self.disk.history.len());
        }
        match action {
            Action::Begin
            | Action::Commit
            | Action::AbortTxn
            | Action::Reveal
            | Action::Checkpoint
            | Action::PostgresCrash
            | Action::Meddle
            | Action::ReplaceServer => self.act_postgres(action),
            Action::WriterWorks
            | Action::Flush
            | Action::WriterEnds
            | Action::WriterObeys
            | Action::WriterIdle
            | Action::Audit => self.act_writer(action),
            Action::CreateShape
            | Action::SnapshotWorks
            | Action::SnapshotFails
            | Action::TrashWorks
            | Action::StorageFault
            | Action::Delete
            | Action::RelationAnnounced => self.act_shape(action),
            Action::Settle
            | Action::Progress
            | Action::StreamNext
            | Action::TakeMessage
            | Action::Sync
            | Action::Perform
            | Action::Tick
            | Action::Keepalive
            | Action::Disconnect
            | Action::Connect
            | Action::Drain
            | Action::LoseOwnership
            | Action::Crash => self.act_process(action),
        }
    }

    fn act_postgres(&mut self, action: Action) {
        let running = self.postgres.running.len();
        match action {
            Action::Begin => {
                for _ in 0..=self.choices.below(3) {
                    self.postgres.begin(&mut self.choices);
                }
            }
            Action::Commit if running > 0 => {
                for left in (1..=running).rev().take(2) {
                    let (index, gap) = (self.choices.below(left), self.choices.below(5) as u64);
                    self.postgres.commit(index, self.now, gap);
                    if self.choices.chance(50) {
                        self.postgres.reveal(self.postgres.wal.len() - 1);
                    }
                }
            }
            Action::AbortTxn if running > 0 => self.postgres.abort(self.choices.below(running)),
            Action::Reveal => {
                if let Some(index) = self.choices.one(&self.postgres.invisible()) {
                    self.postgres.reveal(index);
                }
            }
            Action::Checkpoint => {
                if let Some(slot) = &mut self.postgres.slot {
                    slot.persisted = slot.confirmed;
                }
            }
            Action::PostgresCrash => {
                self.postgres.crash();
                self.disconnect(StopCause::Connection);
            }
            Action::Meddle => {
                let streaming = self.process.as_ref().map(|process| process.connection);
                if !matches!(streaming, Some(Connection::Streaming { .. } | Connection::Ready { .. })) {
                    self.meddle();
                }
            }
            Action::ReplaceServer => {
                self.disconnect(StopCause::Connection);
                let timeline_only = self.choices.chance(50);
                self.postgres.replace(timeline_only);
                self.fail_snapshots();
            }
            _ => {}
        }
    }

    pub fn writers(&self) -> Vec<(Sid, Incarnation)> {
        self.process.iter().flat_map(|process| process.writers.keys().copied()).collect()
    }

    pub fn snapshot_tasks(&self) -> Vec<Sid> {
        self.process.iter().flat_map(|process| process.snapshots.keys().copied()).collect()
    }

    fn act_writer(&mut self, action: Action) {
        let writers = self.writers();
        let chosen = self.choices.one(&writers);
        match (action, chosen) {
            (Action::WriterWorks, Some(_)) => {
                for (sid, incarnation) in writers {
                    if self.choices.chance(60) {
                        let upto = 1 + self.choices.below(4);
                        self.writer_works(sid, incarnation, upto);
                    }
                }
            }
            (Action::Flush, Some(_)) => {
                let some: Vec<_> = writers.into_iter().filter(|_| self.choices.chance(60)).collect();
                self.flush(&some);
            }
            (Action::WriterEnds, Some((sid, incarnation))) => {
                let causes = [
                    ExitCause::Panicked,
                    ExitCause::StorageFault,
                    ExitCause::Ended,
                    ExitCause::Vanished,
                    ExitCause::Suspended,
                    ExitCause::Drained,
                    ExitCause::Removed,
                ];
                let cause = causes[self.choices.below(causes.len())];
                self.writer_ends(sid, incarnation, cause);
            }
            (Action::WriterObeys, Some((sid, incarnation))) => self.writer_obeys(sid, incarnation),
            (Action::WriterIdle, Some((sid, incarnation))) => {
                self.send(Input::WriterIdle { sid, incarnation });
            }
            (Action::Audit, _) => self.audit(),
            _ => {}
        }
    }

    /// Asked for when everything recorded has been performed.
    pub fn audit(&mut self) {
        self.perform_all();
        let live = self.writers();
        if self.mutation == Mutation::SwallowExitsAndAudits {
            return;
        }
        if let Some(process) = &self.process {
            let asked = process.engine.state().last;
            self.send(Input::LiveWriters { asked, live });
        }
    }

    fn act_shape(&mut self, action: Action) {
        let known: Vec<Sid> =
            self.process.iter().flat_map(|process| process.engine.state().shapes.keys().copied()).collect();
        match action {
            Action::CreateShape => {
                let hash = DefinitionHash(self.choices.below(DEFINITIONS as usize) as u64);
                self.create_shape(hash, definition(hash).0);
            }
            Action::SnapshotWorks => {
                for sid in self.snapshot_tasks() {
                    if self.choices.chance(60) {
                        self.snapshot_works(sid);
                    }
                }
            }
            Action::SnapshotFails => {
                if let Some(sid) = self.choices.one(&self.snapshot_tasks()) {
                    self.snapshot_fails(sid, SnapshotFailure::Connection);
                }
            }
            Action::TrashWorks => {
                let count = self.process.as_ref().map_or(0, |process| process.trashing.len());
                if count > 0 {
                    let index = self.choices.below(count);
                    self.trash_works(index);
                }
            }
            Action::StorageFault => {
                let classes = [
                    FaultClass::Corrupt,
                    FaultClass::Vanished,
                    FaultClass::NoSpace,
                    FaultClass::Denied,
                    FaultClass::Transient { errno: 5 },
                ];
                let class = classes[self.choices.below(classes.len())];
                let sid = self.choices.one(&known);
                self.send(Input::StorageFault { class, stage: Stage::Read, file: FileKind::ShapeLog, sid });
            }
            Action::Delete => {
                // Also one that does not exist.
                let sid = self.choices.one(&known).unwrap_or(Sid(4_000));
                self.send(Input::Invalidate { sid, cause: InvalidationCause::Deleted });
            }
            Action::RelationAnnounced => self.relation_announced(),
            _ => {}
        }
    }

    fn act_process(&mut self, action: Action) {
        match action {
            Action::Settle => self.settle(),
            Action::Progress => self.quiet_round(),
            Action::StreamNext => {
                for _ in 0..=self.choices.below(3) {
                    self.stream_next();
                }
            }
            Action::TakeMessage => {
                for _ in 0..=self.choices.below(4) {
                    self.take_message();
                }
            }
            Action::Sync => {
                let survivable = self.disk.survivable();
                let count = survivable[self.choices.below(survivable.len())];
                self.disk.sync_to(count);
            }
            Action::Perform => {
                for _ in 0..=self.choices.below(5) {
                    if self.choices.chance(30) {
                        self.perform_status();
                    }
                    self.perform_next();
                }
            }
            Action::Tick => self.tick(),
            Action::Keepalive => self.send_keepalive(),
            Action::Disconnect => self.disconnect(StopCause::Connection),
            Action::Connect => self.connect(),
            Action::Drain => self.send(Input::Drain { cause: DrainCause::Signal }),
            Action::LoseOwnership => self.send(Input::OwnershipLost { evidence: LossEvidence::EpochHigher }),
            Action::Crash => self.crash(),
            _ => {}
        }
    }

    fn tick(&mut self) {
        let step = match self.choices.below(20) {
            0..10 => Duration::from_millis(self.choices.below(100) as u64),
            10..18 => Duration::from_millis(self.choices.below(1_000) as u64),
            18 => Duration::from_secs(self.choices.below(25) as u64),
            _ => Duration::ZERO,
        };
        let before = self.now;
        self.now = self.now.plus(step);
        // No commit stays invisible for as long as the ring of recent commits remembers it.
        if step > Duration::from_secs(1) {
            self.postgres.reveal_before(before);
        }
        if step.is_zero() {
            self.now.0 -= 500_000;
        }
        self.send(Input::Tick);
    }
}

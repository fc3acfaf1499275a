//! Transactions that have come by the stream, and that a snapshot need not see yet.
//!
//! Postgres hands a commit to the stream as soon as it is flushed, and makes it visible afterwards; with
//! synchronous replication that may take as long as a standby takes. Rows that are to move in come from a
//! snapshot. What a shape has decided on already has to be in it: otherwise its rows would be those from
//! before, and rows that the shape has got meanwhile would be missing.

use std::collections::VecDeque;

use crate::domain::{Lsn, Oid, PgSnapshot, Xid};

/// Transactions that are remembered. One that is invisible for longer than it takes so many others to commit
/// is no longer waited for.
pub const RECENT_MAX: usize = 16_384;

/// See the module; oldest first.
#[derive(Debug, Default)]
pub struct Recent {
    transactions: VecDeque<(Lsn, Xid, Box<[Oid]>)>,
}

impl Recent {
    /// Takes note of a transaction, and of the tables that it changed as far as they matter.
    pub fn note(&mut self, lsn: Lsn, xid: Xid, tables: impl Iterator<Item = Oid>) {
        let tables: Box<[Oid]> = tables.collect();
        if tables.is_empty() {
            return;
        }
        if self.transactions.len() >= RECENT_MAX {
            self.transactions.pop_front();
        }
        self.transactions.push_back((lsn, xid, tables));
    }

    /// What one snapshot sees, every later one sees. To be called while no earlier one is still in use.
    pub fn forget(&mut self, seen: &PgSnapshot) {
        self.transactions.retain(|(_, xid, _)| !seen.sees(*xid));
    }

    /// Whether a snapshot does not see a transaction before `before` that changed a table.
    #[must_use]
    pub fn lacks(&self, snapshot: &PgSnapshot, table: Oid, before: Lsn) -> bool {
        let mut earlier = self.transactions.iter().take_while(|(lsn, ..)| *lsn < before);
        earlier.any(|(_, xid, tables)| tables.contains(&table) && !snapshot.sees(*xid))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_lacks_what_it_does_not_see_of_a_table() {
        let mut recent = Recent::default();
        recent.note(Lsn(10), Xid(5), [Oid(1)].into_iter());
        recent.note(Lsn(20), Xid(7), [Oid(2)].into_iter());
        recent.note(Lsn(30), Xid(6), std::iter::empty());
        let early = PgSnapshot { xmin: 5, xmax: 8, xip: vec![5, 6] };
        assert!(recent.lacks(&early, Oid(1), Lsn(100)));
        assert!(!recent.lacks(&early, Oid(1), Lsn(10)), "it is yet to be decided on");
        assert!(!recent.lacks(&early, Oid(2), Lsn(100)));
        recent.forget(&early);
        assert!(recent.lacks(&PgSnapshot { xmin: 5, xmax: 6, xip: vec![5] }, Oid(1), Lsn(100)));
        recent.forget(&PgSnapshot { xmin: 8, xmax: 8, xip: Vec::new() });
        assert!(recent.transactions.is_empty());
    }

    #[test]
    fn the_number_of_those_remembered_is_bounded() {
        let mut recent = Recent::default();
        for number in 0..=RECENT_MAX as u32 {
            recent.note(Lsn(u64::from(number)), Xid(number), [Oid(1)].into_iter());
        }
        assert_eq!(recent.transactions.len(), RECENT_MAX);
        assert_eq!(recent.transactions.front().map(|(lsn, ..)| *lsn), Some(Lsn(1)));
    }
}

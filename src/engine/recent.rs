//! Recent commits, to notice a snapshot that was taken before one of them became visible (N4).
//!
//! With synchronous replication Postgres decodes a commit before it is visible. A shape that is
//! created in between is routed from the next commit on and may take a snapshot without this one:
//! its rows would be in neither.

use std::collections::VecDeque;
use std::time::Duration;

use crate::domain::{Lsn, Oid, PgSnapshot, Timestamp, Xid};

/// Longer than a commit stays invisible in any healthy cluster.
const RECENT_FOR: Duration = Duration::from_secs(60);
/// Above this rate older ones are let go earlier; a commit is then some tenths of a second old.
const RECENT_MAX: usize = 65_536;

#[derive(Clone, Debug, Default, Hash)]
pub(super) struct RecentCommits(VecDeque<RecentCommit>);

#[derive(Clone, Debug, Hash)]
struct RecentCommit {
    seen_at: Timestamp,
    lsn: Lsn,
    xid: Xid,
    tables: Box<[Oid]>,
}

impl RecentCommits {
    pub(super) fn push(&mut self, now: Timestamp, lsn: Lsn, xid: Xid, tables: &[Oid]) {
        while let Some(oldest) = self.0.front()
            && (self.0.len() >= RECENT_MAX || now.since(oldest.seen_at) > RECENT_FOR)
        {
            self.0.pop_front();
        }
        self.0.push_back(RecentCommit { seen_at: now, lsn, xid, tables: tables.into() });
    }

    /// What touched one of the members touched the table above them: known now, and it was not when
    /// the commits came.
    pub(super) fn adopt(&mut self, table: Oid, members: &[Oid]) {
        for commit in &mut self.0 {
            let below = commit.tables.iter().any(|oid| members.binary_search(oid).is_ok());
            if below && !commit.tables.contains(&table) {
                commit.tables = commit.tables.iter().copied().chain([table]).collect();
            }
        }
    }

    /// Whether the snapshot lacks a commit to this table at or before `upto`.
    pub(super) fn lacking(&self, snapshot: &PgSnapshot, table: Oid, upto: Lsn) -> bool {
        self.0
            .iter()
            .any(|commit| commit.lsn <= upto && commit.tables.contains(&table) && !snapshot.sees(commit.xid))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_commit_to_a_partition_is_one_to_the_table_above() {
        let mut recent = RecentCommits::default();
        recent.push(Timestamp(1), Lsn(10), Xid(5), &[Oid(20)]);
        let snapshot = PgSnapshot { xmin: 5, xmax: 5, xip: Vec::new() };
        assert!(!recent.lacking(&snapshot, Oid(1), Lsn(10)));
        recent.adopt(Oid(1), &[Oid(1), Oid(20)]);
        recent.adopt(Oid(2), &[Oid(2), Oid(30)]);
        assert!(recent.lacking(&snapshot, Oid(1), Lsn(10)));
        assert!(!recent.lacking(&snapshot, Oid(1), Lsn(9)));
        assert!(!recent.lacking(&snapshot, Oid(2), Lsn(10)));
    }
}

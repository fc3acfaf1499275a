//! The numbers behind decisions.

use std::time::Duration;

/// Settings of the engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// At most one acknowledgement in this time: each costs a sync of the journal.
    pub ack_interval: Duration,
    /// Attempts to bring a writer past one transaction before its shape is invalidated.
    pub writer_attempts_max: u32,
    /// Before the first of them; doubles with each.
    pub writer_backoff: Duration,
    /// Snapshots taken of one shape because a transaction was not visible yet.
    pub snapshot_attempts_max: u32,
    /// A shape that owes and makes no progress for this long is suspected, and after as much again
    /// invalidated (`ELECTRIC_FLUSH_STALL_GRACE_PERIOD`).
    pub stall_grace: Duration,
    /// At most this many shapes are invalidated for stalling in one tick: a cause that hits all of
    /// them (a full disk) must not purge them.
    pub stall_invalidations_max: usize,
    /// Transactions that may be held for a shape whose snapshot is not open yet.
    pub snapshot_backlog_max: usize,
}

impl Default for Policy {
    fn default() -> Policy {
        Policy {
            ack_interval: Duration::from_millis(250),
            writer_attempts_max: 3,
            writer_backoff: Duration::from_millis(50),
            snapshot_attempts_max: 10,
            stall_grace: Duration::from_secs(60),
            stall_invalidations_max: 1,
            snapshot_backlog_max: 100_000,
        }
    }
}

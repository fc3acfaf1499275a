//! The numbers behind decisions.

use std::time::Duration;

use crate::state::Allowance;

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
    /// At most this many shapes are invalidated for stalling at a time.
    pub stall_invalidations_max: usize,
    /// How many may be given up on suspicion: a cause that hits all of them (a disk that hangs) must not
    /// purge them. Where more would have to be, none is, and the acknowledgement waits.
    pub give_up: Allowance,
    /// How often in a row the shapes that would be given up wait another `stall_grace` because a part of the
    /// pipeline stands still.
    pub deferrals_max: u32,
    /// Longest pause before another attempt to restart a writer, where its shape may not be given up.
    pub writer_backoff_max: Duration,
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
            give_up: Allowance { shapes_max: 1_000, percent_max: 10, window: Duration::from_secs(600) },
            deferrals_max: 10,
            writer_backoff_max: Duration::from_secs(10),
            snapshot_backlog_max: 100_000,
        }
    }
}

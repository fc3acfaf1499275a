//! The fold of what was given up: how much of it lately, and whether more may be.

use std::collections::VecDeque;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::domain::{EventId, Timestamp};
use crate::events::InvalidationCause;

/// How long it is remembered when a shape was given up: the longest window that a policy can have.
pub const REMEMBERED: Duration = Duration::from_secs(3_600);
/// Shapes given up within [`REMEMBERED`] that are remembered one by one; the newest are.
pub const REMEMBERED_MAX: usize = 16_384;

/// The shapes that were given up on suspicion, and whether that has come to a halt.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Budget {
    /// When shapes were given up, oldest first.
    spent: VecDeque<Timestamp>,
    /// The event that said that no more may be, and when that was.
    pub exhausted: Option<(EventId, Timestamp)>,
}

/// How many shapes may be given up on suspicion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allowance {
    /// At most so many, however many there are.
    pub shapes_max: usize,
    /// At most this part of them, in percent; but always one.
    pub percent_max: u32,
    /// Within a time of this length, which is at most [`REMEMBERED`].
    pub window: Duration,
}

impl Allowance {
    /// How many of `shapes` that is.
    #[must_use]
    pub fn of(&self, shapes: usize) -> usize {
        let share = shapes.saturating_mul(self.percent_max as usize) / 100;
        self.shapes_max.min(share.max(1))
    }
}

impl Budget {
    #[must_use]
    pub fn is_default(&self) -> bool {
        self.spent.is_empty() && self.exhausted.is_none()
    }

    /// Shapes that were given up in the time of this length before `now`.
    #[must_use]
    pub fn spent(&self, now: Timestamp, window: Duration) -> usize {
        self.spent.iter().rev().take_while(|at| now.since(**at) < window).count()
    }

    pub(super) fn spend(&mut self, at: Timestamp) {
        while self.spent.len() >= REMEMBERED_MAX
            || self.spent.front().is_some_and(|before| at.since(*before) >= REMEMBERED)
        {
            self.spent.pop_front();
        }
        self.spent.push_back(at);
    }
}

/// Whether a shape is ended because it *seems* to be beyond help. All other causes are facts: something was
/// asked for, or is no longer there, or was read and found damaged.
#[must_use]
pub fn is_suspicion(cause: InvalidationCause) -> bool {
    match cause {
        InvalidationCause::Stalled | InvalidationCause::WriterFailed { .. } => true,
        InvalidationCause::Deleted
        | InvalidationCause::SchemaChanged
        | InvalidationCause::Truncated
        | InvalidationCause::SnapshotFailed
        | InvalidationCause::SnapshotInterrupted
        | InvalidationCause::HistoryBroken
        | InvalidationCause::DataMissed
        | InvalidationCause::Backlog
        | InvalidationCause::OldRowMissing
        | InvalidationCause::PartitionsChanged
        | InvalidationCause::Unpublished
        | InvalidationCause::JournalLost
        | InvalidationCause::StorageDamaged
        | InvalidationCause::Expired
        | InvalidationCause::DependencyGone
        | InvalidationCause::NotNeeded
        | InvalidationCause::MoveBacklog
        | InvalidationCause::MoveFailed => false,
    }
}

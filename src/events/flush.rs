//! Flush progress: written and synced, byte counts checked; and what is done where there is none.

use serde::{Deserialize, Serialize};

use crate::domain::{Seq, Sid, Timestamp};
use crate::events::Durability;

/// Facts about what is durable in the shape logs. One event covers one group flush, never one shape
/// of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum FlushEvent {
    /// Every shape holds all it was sent up to `upto`, but for the exceptions, which hold theirs up
    /// to the number beside them.
    #[serde(rename = "w")]
    Watermark {
        #[serde(rename = "u")]
        upto: Seq,
        #[serde(rename = "x")]
        except: Vec<(Sid, Seq)>,
    },
    /// The shapes named hold all they were sent up to the number beside them.
    #[serde(rename = "f")]
    Flushed {
        #[serde(rename = "s")]
        shapes: Vec<(Sid, Seq)>,
    },
    /// More shapes would have to be given up than may be: none is, what they owe holds the
    /// acknowledgement, and an alarm is raised.
    #[serde(rename = "b")]
    BudgetExhausted {
        /// Shapes that would have to be given up now.
        #[serde(rename = "d")]
        due: u64,
        /// Shapes that were given up within the window.
        #[serde(rename = "s")]
        spent: u64,
        #[serde(rename = "a")]
        allowed: u64,
    },
    /// A shape was given up because it seemed to be beyond help. Beside the event that ended it.
    #[serde(rename = "s")]
    BudgetSpent {
        #[serde(rename = "s")]
        sid: Sid,
    },
    /// Shapes may be given up again.
    #[serde(rename = "r")]
    BudgetRestored {
        #[serde(rename = "m")]
        frozen_ms: u64,
    },
    /// Shapes that would have to be given up wait: a part of the pipeline stands still, and none of them is
    /// to blame.
    #[serde(rename = "d")]
    StallsDeferred {
        #[serde(rename = "s")]
        shapes: u64,
        /// The how many-th time in a row; bounded by the policy.
        #[serde(rename = "n")]
        deferral: u32,
        #[serde(rename = "u")]
        until: Timestamp,
    },
    /// The watchdog, which runs beside the pipeline, saw no sign of life of this part for so long.
    #[serde(rename = "p")]
    ProgressStopped {
        #[serde(rename = "p")]
        part: Part,
        #[serde(rename = "m")]
        still_ms: u64,
    },
    /// It goes on.
    #[serde(rename = "g")]
    ProgressResumed {
        #[serde(rename = "p")]
        part: Part,
        #[serde(rename = "m")]
        still_ms: u64,
    },
}

/// A thread that everything goes through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Part {
    #[serde(rename = "d")]
    Driver,
    #[serde(rename = "j")]
    Journal,
    /// One of the threads of writers.
    #[serde(rename = "w")]
    Writers(u32),
}

impl std::fmt::Display for Part {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Part::Driver => out.write_str("driver"),
            Part::Journal => out.write_str("journal"),
            Part::Writers(number) => write!(out, "writers-{number}"),
        }
    }
}

impl FlushEvent {
    /// Progress is lazy: the truth is in the shape logs; what is lost here comes again from Postgres and
    /// is skipped there. That nothing may be given up is known before anything more is acknowledged.
    #[must_use]
    pub fn durability(&self) -> Durability {
        match self {
            FlushEvent::BudgetExhausted { .. }
            | FlushEvent::BudgetSpent { .. }
            | FlushEvent::BudgetRestored { .. } => Durability::BeforeAck,
            FlushEvent::Watermark { .. }
            | FlushEvent::Flushed { .. }
            | FlushEvent::StallsDeferred { .. }
            | FlushEvent::ProgressStopped { .. }
            | FlushEvent::ProgressResumed { .. } => Durability::Lazy,
        }
    }

    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            FlushEvent::Watermark { .. } => "FlushWatermark",
            FlushEvent::Flushed { .. } => "ShapesFlushed",
            FlushEvent::BudgetExhausted { .. } => "BudgetExhausted",
            FlushEvent::BudgetSpent { .. } => "BudgetSpent",
            FlushEvent::BudgetRestored { .. } => "BudgetRestored",
            FlushEvent::StallsDeferred { .. } => "StallsDeferred",
            FlushEvent::ProgressStopped { .. } => "ProgressStopped",
            FlushEvent::ProgressResumed { .. } => "ProgressResumed",
        }
    }
}

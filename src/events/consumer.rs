//! Writers: one incarnation per active shape.

use serde::{Deserialize, Serialize};

use crate::domain::{Incarnation, Lsn, Seq, Sid, Timestamp};
use crate::events::Durability;

/// Facts about the writer of one shape.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum ConsumerEvent {
    #[serde(rename = "s")]
    Started { sid: Sid, incarnation: Incarnation },
    /// It has recovered its log: `recovered` is the last transaction in it.
    #[serde(rename = "r")]
    Ready { sid: Sid, incarnation: Incarnation, recovered: Lsn, trimmed_bytes: u64 },
    /// It was asked to end and gets nothing more; what is routed meanwhile waits for its successor.
    #[serde(rename = "z")]
    Stopping { sid: Sid, incarnation: Incarnation, cause: ExitCause },
    /// It ended. Always told by its supervisor, never by itself, and whatever the way it ended.
    #[serde(rename = "x")]
    Exited {
        sid: Sid,
        incarnation: Incarnation,
        cause: ExitCause,
        /// The oldest transaction that it still owed, and how many.
        pending_oldest: Option<Seq>,
        pending: u64,
    },
    /// It will be started again, not before `due`, with everything that is owed.
    #[serde(rename = "b")]
    RestartScheduled { sid: Sid, attempt: u32, due: Timestamp },
    /// No flush progress for `age_ms`.
    #[serde(rename = "u")]
    StallSuspected { sid: Sid, oldest: Seq, age_ms: u64 },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExitCause {
    /// Idle; legal only with nothing pending.
    #[serde(rename = "s")]
    Suspended,
    #[serde(rename = "d")]
    Drained,
    #[serde(rename = "r")]
    Removed,
    #[serde(rename = "p")]
    Panicked,
    /// Its files failed.
    #[serde(rename = "f")]
    StorageFault,
    /// It returned although nobody asked it to.
    #[serde(rename = "e")]
    Ended,
    /// The audit did not find it.
    #[serde(rename = "v")]
    Vanished,
}

impl ConsumerEvent {
    #[must_use]
    pub fn sid(&self) -> Sid {
        match self {
            ConsumerEvent::Started { sid, .. }
            | ConsumerEvent::Ready { sid, .. }
            | ConsumerEvent::Stopping { sid, .. }
            | ConsumerEvent::Exited { sid, .. }
            | ConsumerEvent::RestartScheduled { sid, .. }
            | ConsumerEvent::StallSuspected { sid, .. } => *sid,
        }
    }

    #[must_use]
    pub fn durability(&self) -> Durability {
        match self {
            ConsumerEvent::Exited { .. } => Durability::BeforeAck,
            ConsumerEvent::Started { .. }
            | ConsumerEvent::Ready { .. }
            | ConsumerEvent::Stopping { .. }
            | ConsumerEvent::RestartScheduled { .. }
            | ConsumerEvent::StallSuspected { .. } => Durability::Lazy,
        }
    }

    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            ConsumerEvent::Started { .. } => "ConsumerStarted",
            ConsumerEvent::Ready { .. } => "ConsumerReady",
            ConsumerEvent::Stopping { .. } => "ConsumerStopping",
            ConsumerEvent::Exited { .. } => "ConsumerExited",
            ConsumerEvent::RestartScheduled { .. } => "RestartScheduled",
            ConsumerEvent::StallSuspected { .. } => "StallSuspected",
        }
    }
}

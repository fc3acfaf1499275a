//! The fold of writer events.

use serde::{Deserialize, Serialize};

use crate::domain::{Incarnation, Seq, Timestamp};
use crate::events::{ConsumerEvent, Recorded};
use crate::state::{Shape, State};

/// The writer of a shape. Absent is the normal state of an idle shape.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Writer {
    #[default]
    Absent,
    /// Started; transactions are delivered to it.
    Live { incarnation: Incarnation, ready: bool },
    /// Asked to end; gets nothing more.
    Stopping { incarnation: Incarnation },
}

/// Attempts to bring a writer past one transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Retry {
    /// The oldest pending transaction when it failed.
    pub seq: Seq,
    pub attempts: u32,
    /// When it is started again; `None` once it was.
    pub due: Option<Timestamp>,
}

impl Writer {
    /// The incarnation that exists, if any.
    #[must_use]
    pub fn incarnation(self) -> Option<Incarnation> {
        match self {
            Writer::Absent => None,
            Writer::Live { incarnation, .. } | Writer::Stopping { incarnation } => Some(incarnation),
        }
    }
}

impl Shape {
    pub(super) fn writer_gone(&mut self) {
        self.writer = Writer::Absent;
    }
}

impl State {
    pub(super) fn apply_consumer(&mut self, recorded: &Recorded, event: &ConsumerEvent) {
        let Some(shape) = self.shapes.get_mut(&event.sid()) else { return };
        match event {
            ConsumerEvent::Started { incarnation, .. } => {
                shape.last_incarnation = *incarnation;
                shape.writer = Writer::Live { incarnation: *incarnation, ready: false };
                shape.progressed_at = recorded.at;
                if let Some(retry) = &mut shape.retry {
                    retry.due = None;
                }
            }
            ConsumerEvent::Ready { incarnation, .. } => {
                if shape.writer == (Writer::Live { incarnation: *incarnation, ready: false }) {
                    shape.writer = Writer::Live { incarnation: *incarnation, ready: true };
                }
            }
            ConsumerEvent::Stopping { incarnation, .. } => {
                if shape.writer.incarnation() == Some(*incarnation) {
                    shape.writer = Writer::Stopping { incarnation: *incarnation };
                }
            }
            ConsumerEvent::Exited { incarnation, .. } => {
                if shape.writer.incarnation() == Some(*incarnation) {
                    shape.writer_gone();
                }
            }
            ConsumerEvent::RestartScheduled { attempt, due, .. } => {
                let seq = shape.pending.front().copied().unwrap_or(shape.flushed);
                shape.retry = Some(Retry { seq, attempts: *attempt, due: Some(*due) });
            }
            ConsumerEvent::StallSuspected { .. } => shape.suspected = true,
        }
    }
}

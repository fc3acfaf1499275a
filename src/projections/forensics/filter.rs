//! Which events somebody wants to see.

use crate::domain::{Epoch, Oid, Seq, Sid, SidSet};
use crate::events::{
    ConsumerEvent, DestructionTarget, Event, FlushEvent, OwnershipEvent, Recorded, ShapeEvent, StreamEvent,
};
use crate::projections::forensics::{Names, Position};
use crate::state::State;

/// Everything that is given must hold; of kinds and causes any.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    pub from: Option<Position>,
    pub to: Position,
    pub shape: Option<Sid>,
    pub table: Option<Oid>,
    pub epoch: Option<Epoch>,
    /// Names of events, such as `ShapeInvalidated`.
    pub kinds: Vec<String>,
    /// Words of a cause, such as `Panicked` or `WriterFailed`.
    pub causes: Vec<String>,
    /// Invariant: set once an event reached `from`; moved by `choose`.
    begun: bool,
    /// What the shape still owes: a flush that covers some of it is about the shape.
    owed: Vec<Seq>,
}

/// What is to be done with an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    Show,
    Pass,
    /// This event and all later ones lie beyond the range.
    Stop,
}

impl Filter {
    /// Begins at a state instead of at the first event.
    pub fn start(&mut self, state: &State) {
        let shape = self.shape.and_then(|sid| state.shape(sid));
        self.owed = shape.map(|shape| shape.pending.iter().copied().collect()).unwrap_or_default();
    }

    /// Looks at the next event; all of them, in order. Stateful: a range may begin at an LSN, which most
    /// events do not name, and a watermark does not name the shapes that it moves.
    pub fn choose(&mut self, recorded: &Recorded, names: &Names) -> Choice {
        if self.to.is_passed_by(recorded) {
            return Choice::Stop;
        }
        let flushes = self.shape.is_some_and(|sid| self.flushes(&recorded.event, sid));
        self.begun = self.begun || self.from.is_none_or(|from| from.is_reached_by(recorded));
        if self.begun && self.accepts(recorded, names, flushes) { Choice::Show } else { Choice::Pass }
    }

    fn accepts(&self, recorded: &Recorded, names: &Names, flushes: bool) -> bool {
        let event = &recorded.event;
        self.epoch.is_none_or(|epoch| recorded.epoch == epoch)
            && (self.kinds.is_empty() || self.kinds.iter().any(|kind| kind == event.name()))
            && self.shape.is_none_or(|sid| flushes || concerns(event, sid))
            && self.table.is_none_or(|oid| concerns_table(event, oid, names))
            && (self.causes.is_empty() || cause_of(event).is_some_and(|cause| self.causes.contains(&cause)))
    }
}

impl Filter {
    /// Whether an event makes something durable that the shape owes.
    fn flushes(&mut self, event: &Event, wanted: Sid) -> bool {
        let durable = match event {
            Event::Stream(StreamEvent::TxnRouted { seq, set, .. }) => {
                if set.contains(wanted) {
                    self.owed.push(*seq);
                }
                return false;
            }
            Event::Flush(FlushEvent::Watermark { upto, except }) => {
                except.iter().find(|(sid, _)| *sid == wanted).map_or(*upto, |(_, own)| *own)
            }
            Event::Flush(FlushEvent::Flushed { shapes }) => {
                let Some((_, own)) = shapes.iter().find(|(sid, _)| *sid == wanted) else { return false };
                *own
            }
            Event::Ownership(_)
            | Event::Stream(_)
            | Event::Flush(_)
            | Event::Shape(_)
            | Event::Consumer(_)
            | Event::Journal(_) => return false,
        };
        let before = self.owed.len();
        self.owed.retain(|seq| *seq > durable);
        self.owed.len() < before
    }
}

/// Whether the event is about this shape.
#[must_use]
pub fn concerns(event: &Event, wanted: Sid) -> bool {
    match event {
        Event::Shape(event) => event.sid() == wanted,
        Event::Consumer(event) => event.sid() == wanted,
        Event::Stream(StreamEvent::TxnRouted { set, .. } | StreamEvent::TxnRedelivered { set, .. }) => {
            set.contains(wanted)
        }
        Event::Flush(FlushEvent::Flushed { shapes } | FlushEvent::Watermark { except: shapes, .. }) => {
            shapes.iter().any(|(sid, _)| *sid == wanted)
        }
        Event::Ownership(OwnershipEvent::StorageFault { sid, .. }) => *sid == Some(wanted),
        Event::Ownership(OwnershipEvent::DestructiveIntent { target, .. }) => {
            matches!(target, DestructionTarget::ShapeFiles(sid) | DestructionTarget::ShapeLog(sid) if *sid == wanted)
        }
        Event::Ownership(_) | Event::Stream(_) | Event::Flush(_) | Event::Journal(_) => false,
    }
}

/// The one shape that an event is about, if it is about one.
#[must_use]
pub fn subject(event: &Event) -> Option<Sid> {
    match event {
        Event::Shape(event) => Some(event.sid()),
        Event::Consumer(event) => Some(event.sid()),
        Event::Ownership(OwnershipEvent::StorageFault { sid, .. }) => *sid,
        Event::Ownership(OwnershipEvent::DestructiveIntent { target, .. }) => match target {
            DestructionTarget::ShapeFiles(sid) | DestructionTarget::ShapeLog(sid) => Some(*sid),
            DestructionTarget::Stranger(_) => None,
        },
        Event::Ownership(_) | Event::Stream(_) | Event::Flush(_) | Event::Journal(_) => None,
    }
}

fn concerns_table(event: &Event, wanted: Oid, names: &Names) -> bool {
    let of_table = |sid: Sid| names.table(sid) == Some(wanted);
    let any = |set: &SidSet| set.iter().any(of_table);
    match event {
        Event::Shape(ShapeEvent::Created { oid, .. } | ShapeEvent::PublicationReady { oid, .. })
        | Event::Stream(StreamEvent::RelationChanged { oid, .. }) => *oid == wanted,
        Event::Stream(StreamEvent::TxnRouted { set, .. } | StreamEvent::TxnRedelivered { set, .. }) => {
            any(set)
        }
        Event::Flush(FlushEvent::Flushed { shapes } | FlushEvent::Watermark { except: shapes, .. }) => {
            shapes.iter().any(|(sid, _)| of_table(*sid))
        }
        Event::Shape(_)
        | Event::Consumer(_)
        | Event::Flush(_)
        | Event::Ownership(_)
        | Event::Stream(_)
        | Event::Journal(_) => subject(event).is_some_and(of_table),
    }
}

/// The cause that an event names, as one word: `Panicked`, `WriterFailed`, `NoSpace`.
#[must_use]
pub fn cause_of(event: &Event) -> Option<String> {
    let text = match event {
        Event::Ownership(OwnershipEvent::DrainStarted { cause }) => format!("{cause:?}"),
        Event::Ownership(OwnershipEvent::Lost { evidence, .. }) => format!("{evidence:?}"),
        Event::Ownership(OwnershipEvent::DestructiveIntent { cause, .. }) => format!("{cause:?}"),
        Event::Ownership(OwnershipEvent::StorageFault { class, .. }) => format!("{class:?}"),
        Event::Ownership(OwnershipEvent::Acquired { previous_end, .. }) => format!("{previous_end:?}"),
        Event::Stream(StreamEvent::HistoryBroken { cause }) => format!("{cause:?}"),
        Event::Stream(StreamEvent::Stopped { cause, .. }) => format!("{cause:?}"),
        Event::Stream(StreamEvent::AckSent { cause, .. }) => format!("{cause:?}"),
        Event::Shape(ShapeEvent::Invalidated { cause, .. }) => format!("{cause:?}"),
        Event::Shape(ShapeEvent::SnapshotFailed { failure, .. }) => format!("{failure:?}"),
        Event::Consumer(ConsumerEvent::Exited { cause, .. } | ConsumerEvent::Stopping { cause, .. }) => {
            format!("{cause:?}")
        }
        Event::Ownership(_)
        | Event::Stream(_)
        | Event::Shape(_)
        | Event::Consumer(_)
        | Event::Flush(_)
        | Event::Journal(_) => return None,
    };
    // `WriterFailed { attempts: 3 }` is the cause WriterFailed.
    text.split([' ', '(']).next().map(str::to_owned)
}

/// Every word that [`cause_of`] may give: what filters accept.
#[must_use]
pub fn causes() -> &'static [&'static str] {
    &[
        "Signal",
        "Operator",
        "Fatal",
        "InodeChanged",
        "EpochHigher",
        "DirectoryVanished",
        "ShapeInvalidated",
        "Corrupt",
        "Vanished",
        "Transient",
        "NoSpace",
        "Denied",
        "None",
        "Released",
        "Crashed",
        "NewSlot",
        "NewPublication",
        "Timeline",
        "SystemId",
        "SlotLost",
        "Connection",
        "Server",
        "Protocol",
        "Spill",
        "Drain",
        "Commit",
        "Keepalive",
        "Deleted",
        "SchemaChanged",
        "Truncated",
        "SnapshotFailed",
        "SnapshotInterrupted",
        "WriterFailed",
        "Stalled",
        "HistoryBroken",
        "DataMissed",
        "Backlog",
        "OldRowMissing",
        "JournalLost",
        "StorageDamaged",
        "DependencyGone",
        "NotNeeded",
        "MoveBacklog",
        "MoveFailed",
        "Permission",
        "Publication",
        "Timeout",
        "Query",
        "Storage",
        "NotYetVisible",
        "Suspended",
        "Drained",
        "Removed",
        "Panicked",
        "StorageFault",
        "Ended",
    ]
}

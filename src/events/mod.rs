//! Facts: what happened, in the past tense. Journaled, never refused, never edited. Pure.
//!
//! Grouped by topic; `state` and `engine::decide` have a file of the same name for each. The
//! vocabulary leaves out what the design does not need: a transaction is routed whole, so there is
//! no event for its fragments; a writer that vanished and a writer that panicked both end in
//! [`ConsumerEvent::Exited`].
//!
//! Nothing here may carry row values, keys, SQL text, parameters or secrets: a journal is to be
//! shareable as it is.

mod codec;
mod consumer;
mod flush;
mod journal;
mod ownership;
mod shape;
mod stream;
mod usual;

use serde::{Deserialize, Serialize};

pub use codec::{CodecError, KindSearch, RECORD_VERSION, decode, encode};
pub use consumer::{ConsumerEvent, ExitCause};
pub use flush::{FlushEvent, Part};
pub use journal::{JournalEvent, ProjectionName};
pub use ownership::{
    DestructionCause, DestructionResult, DestructionTarget, DrainCause, FaultClass, FileKind, IntentId,
    LossEvidence, OwnershipEvent, PreviousEnd, ProcessInfo, Stage,
};
pub use shape::{InvalidationCause, RemovalStep, ShapeEvent, SnapshotFailure};
pub use stream::{AckCause, HistoryCause, StopCause, StreamEvent};

use crate::domain::{Epoch, EventId, Timestamp};

/// One line of the journal.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Recorded {
    #[serde(rename = "i")]
    pub id: EventId,
    /// Wall clock when it was decided: data for people; the fold compares it but never reads a clock.
    #[serde(rename = "t")]
    pub at: Timestamp,
    /// The ownership under which it was written. Invariant O2: the epoch held at this point.
    #[serde(rename = "e")]
    pub epoch: Epoch,
    /// The event that this one was decided upon; absent where the world told us.
    #[serde(rename = "b", default, skip_serializing_if = "Option::is_none")]
    pub because: Option<EventId>,
    #[serde(rename = "v")]
    pub event: Event,
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Event {
    #[serde(rename = "o")]
    Ownership(OwnershipEvent),
    #[serde(rename = "t")]
    Stream(StreamEvent),
    #[serde(rename = "s")]
    Shape(ShapeEvent),
    #[serde(rename = "c")]
    Consumer(ConsumerEvent),
    #[serde(rename = "f")]
    Flush(FlushEvent),
    #[serde(rename = "j")]
    Journal(JournalEvent),
}

/// When an event must be on stable storage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Durability {
    /// Some time soon; a crash may lose it, and recovery reaches a correct state without it.
    Lazy,
    /// Before the next acknowledgement to Postgres.
    BeforeAck,
    /// Before any effect that was decided with it or after it.
    Durable,
}

impl Event {
    #[must_use]
    pub fn durability(&self) -> Durability {
        match self {
            Event::Ownership(event) => event.durability(),
            Event::Stream(event) => event.durability(),
            Event::Shape(event) => event.durability(),
            Event::Consumer(event) => event.durability(),
            Event::Flush(event) => event.durability(),
            Event::Journal(event) => event.durability(),
        }
    }

    /// The name that people and filters use: `TxnRouted`, `ConsumerExited`.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Event::Ownership(event) => event.name(),
            Event::Stream(event) => event.name(),
            Event::Shape(event) => event.name(),
            Event::Consumer(event) => event.name(),
            Event::Flush(event) => event.name(),
            Event::Journal(event) => event.name(),
        }
    }
}

macro_rules! into_event {
    ($($variant:ident($inner:ty)),* $(,)?) => {
        $(impl From<$inner> for Event {
            fn from(event: $inner) -> Event {
                Event::$variant(event)
            }
        })*
    };
}

into_event! {
    Ownership(OwnershipEvent),
    Stream(StreamEvent),
    Shape(ShapeEvent),
    Consumer(ConsumerEvent),
    Flush(FlushEvent),
    Journal(JournalEvent),
}

/// The names of all events: what filters accept.
#[must_use]
pub fn names() -> &'static [&'static str] {
    &[
        "ProcessStarted",
        "OwnershipAcquired",
        "DrainStarted",
        "OwnershipReleased",
        "OwnershipLost",
        "DestructiveIntent",
        "DestructiveDone",
        "StorageFault",
        "PgIdentified",
        "PgLockAcquired",
        "PgLockLost",
        "SlotObserved",
        "HistoryBroken",
        "TimelineFollowed",
        "Queried",
        "StreamStarted",
        "StreamStopped",
        "RelationChanged",
        "TxnRouted",
        "RoutedNothing",
        "TxnRedelivered",
        "AckSent",
        "ShapeCreated",
        "ShapeDepends",
        "ShapeRouted",
        "ShapeUnrouted",
        "PublicationReady",
        "SnapshotStarted",
        "SnapshotVisible",
        "SnapshotCompleted",
        "SnapshotFailed",
        "ShapeCompacted",
        "ShapeInvalidated",
        "ShapeStepDone",
        "ShapeGone",
        "ConsumerStarted",
        "ConsumerReady",
        "ConsumerStopping",
        "ConsumerExited",
        "RestartScheduled",
        "StallSuspected",
        "FlushWatermark",
        "ShapesFlushed",
        "BudgetExhausted",
        "BudgetRestored",
        "BudgetSpent",
        "StallsDeferred",
        "ProgressStopped",
        "ProgressResumed",
        "StateSnapshot",
        "SegmentSealed",
        "SegmentRetired",
        "ProjectionMismatch",
        "JournalTornTail",
    ]
}

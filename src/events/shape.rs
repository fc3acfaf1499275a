//! The life of a shape.

use serde::{Deserialize, Serialize};

use crate::domain::{DefinitionHash, Handle, Lsn, Oid, PgSnapshot, Seq, Sid};
use crate::events::Durability;

/// Facts about one shape.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum ShapeEvent {
    /// Durable before the handle is told to any client.
    #[serde(rename = "c")]
    Created { sid: Sid, handle: Handle, definition: DefinitionHash, oid: Oid },
    /// The shapes of the inner queries of its where clause. Follows its creation; where it is missing there
    /// are none.
    #[serde(rename = "d")]
    Depends { sid: Sid, on: Vec<Sid> },
    /// From the transaction after `after` on, the filter sends the shape what it wants. `after_lsn`
    /// is the last commit that was processed without it.
    #[serde(rename = "r")]
    Routed { sid: Sid, after: Seq, after_lsn: Lsn },
    #[serde(rename = "u")]
    Unrouted { sid: Sid },
    /// The table is published, with full replica identity, and every transaction that had written
    /// to it before has ended.
    #[serde(rename = "p")]
    PublicationReady { sid: Sid, oid: Oid, waited_ms: u64 },
    #[serde(rename = "ss")]
    SnapshotStarted { sid: Sid, attempt: u32 },
    /// Which transactions the initial rows contain. `lsn` is the insert position read after the
    /// snapshot was taken: a commit at or above it is not contained.
    #[serde(rename = "sv")]
    SnapshotVisible { sid: Sid, snapshot: PgSnapshot, lsn: Lsn },
    /// The snapshot's files and their directory are synced.
    #[serde(rename = "sc")]
    SnapshotCompleted { sid: Sid, rows: u64, bytes: u64 },
    #[serde(rename = "sf")]
    SnapshotFailed { sid: Sid, attempt: u32, failure: SnapshotFailure },
    /// The log up to `through` is one that says the same with fewer messages; its bytes before and after.
    #[serde(rename = "k")]
    Compacted { sid: Sid, through: Lsn, before: u64, after: u64 },
    /// Durable before a client is told, and before any acknowledgement that it releases.
    #[serde(rename = "i")]
    Invalidated { sid: Sid, cause: InvalidationCause },
    #[serde(rename = "sd")]
    StepDone { sid: Sid, step: RemovalStep },
    /// Nothing of the shape is left.
    #[serde(rename = "g")]
    Gone { sid: Sid },
}

/// Why initial rows could not be had. The text of Postgres' error is not journaled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SnapshotFailure {
    #[serde(rename = "c")]
    Connection,
    #[serde(rename = "p")]
    Permission,
    /// The table could not be published or have its replica identity set.
    #[serde(rename = "u")]
    Publication,
    /// Table, column or function is gone.
    #[serde(rename = "g")]
    Vanished,
    #[serde(rename = "t")]
    Timeout,
    #[serde(rename = "q")]
    Query,
    #[serde(rename = "s")]
    Storage,
    /// A transaction that was decoded before the shape existed was not visible yet.
    #[serde(rename = "v")]
    NotYetVisible,
}

/// Why a shape ended: a closed list, so that every 409 can be explained.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum InvalidationCause {
    /// `DELETE /v1/shape`.
    #[serde(rename = "d")]
    Deleted,
    #[serde(rename = "s")]
    SchemaChanged,
    #[serde(rename = "t")]
    Truncated,
    #[serde(rename = "f")]
    SnapshotFailed,
    /// The process ended before the snapshot was complete.
    #[serde(rename = "i")]
    SnapshotInterrupted,
    /// A replay could not bring the writer past the same transaction.
    #[serde(rename = "w")]
    WriterFailed { attempts: u32 },
    /// No flush progress within the grace period.
    #[serde(rename = "l")]
    Stalled,
    #[serde(rename = "h")]
    HistoryBroken,
    /// Postgres will not send again what the shape still lacks.
    #[serde(rename = "m")]
    DataMissed,
    /// Too much arrived before the snapshot was taken.
    #[serde(rename = "b")]
    Backlog,
    /// An update came without the old row: the table lost REPLICA IDENTITY FULL.
    #[serde(rename = "o")]
    OldRowMissing,
    /// A partition with rows came or went: they are in no change of the stream.
    #[serde(rename = "p")]
    PartitionsChanged,
    /// Somebody took its table out of the publication.
    #[serde(rename = "u")]
    Unpublished,
    /// The journal lost its end: what was told to clients since is not known.
    #[serde(rename = "j")]
    JournalLost,
    /// Its files could not be read.
    #[serde(rename = "c")]
    StorageDamaged,
    /// There were more shapes than may be, and this one had not been asked for the longest.
    #[serde(rename = "e")]
    Expired,
    /// The shape of one of its inner queries has ended.
    #[serde(rename = "dg")]
    DependencyGone,
    /// Of an inner query: no shape depends on it any more.
    #[serde(rename = "n")]
    NotNeeded,
    /// More transactions came than may wait while rows moved in.
    #[serde(rename = "mb")]
    MoveBacklog,
    /// The rows that were to move in could not be had.
    #[serde(rename = "mf")]
    MoveFailed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum RemovalStep {
    #[serde(rename = "w")]
    WriterStopped,
    #[serde(rename = "s")]
    SnapshotStopped,
    #[serde(rename = "f")]
    FilesTrashed,
}

impl ShapeEvent {
    #[must_use]
    pub fn sid(&self) -> Sid {
        match self {
            ShapeEvent::Created { sid, .. }
            | ShapeEvent::Depends { sid, .. }
            | ShapeEvent::Routed { sid, .. }
            | ShapeEvent::Unrouted { sid }
            | ShapeEvent::PublicationReady { sid, .. }
            | ShapeEvent::SnapshotStarted { sid, .. }
            | ShapeEvent::SnapshotVisible { sid, .. }
            | ShapeEvent::SnapshotCompleted { sid, .. }
            | ShapeEvent::SnapshotFailed { sid, .. }
            | ShapeEvent::Compacted { sid, .. }
            | ShapeEvent::Invalidated { sid, .. }
            | ShapeEvent::StepDone { sid, .. }
            | ShapeEvent::Gone { sid } => *sid,
        }
    }

    #[must_use]
    pub fn durability(&self) -> Durability {
        match self {
            ShapeEvent::Created { .. }
            | ShapeEvent::Depends { .. }
            | ShapeEvent::SnapshotVisible { .. }
            | ShapeEvent::SnapshotCompleted { .. }
            | ShapeEvent::Invalidated { .. } => Durability::Durable,
            ShapeEvent::Routed { .. } | ShapeEvent::Unrouted { .. } | ShapeEvent::SnapshotFailed { .. } => {
                Durability::BeforeAck
            }
            ShapeEvent::PublicationReady { .. }
            | ShapeEvent::SnapshotStarted { .. }
            | ShapeEvent::Compacted { .. }
            | ShapeEvent::StepDone { .. }
            | ShapeEvent::Gone { .. } => Durability::Lazy,
        }
    }

    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            ShapeEvent::Created { .. } => "ShapeCreated",
            ShapeEvent::Depends { .. } => "ShapeDepends",
            ShapeEvent::Routed { .. } => "ShapeRouted",
            ShapeEvent::Unrouted { .. } => "ShapeUnrouted",
            ShapeEvent::PublicationReady { .. } => "PublicationReady",
            ShapeEvent::SnapshotStarted { .. } => "SnapshotStarted",
            ShapeEvent::SnapshotVisible { .. } => "SnapshotVisible",
            ShapeEvent::SnapshotCompleted { .. } => "SnapshotCompleted",
            ShapeEvent::SnapshotFailed { .. } => "SnapshotFailed",
            ShapeEvent::Compacted { .. } => "ShapeCompacted",
            ShapeEvent::Invalidated { .. } => "ShapeInvalidated",
            ShapeEvent::StepDone { .. } => "ShapeStepDone",
            ShapeEvent::Gone { .. } => "ShapeGone",
        }
    }
}

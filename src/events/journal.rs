//! The journal about itself.

use serde::{Deserialize, Serialize};

use crate::domain::EventId;
use crate::events::Durability;

/// Facts about the journal and the views folded from it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum JournalEvent {
    /// A checkpoint holds the state after `upto`; `checksum` is CRC-32C over its bytes.
    #[serde(rename = "s")]
    StateSnapshot { upto: EventId, checksum: u32, bytes: u64 },
    #[serde(rename = "z")]
    SegmentSealed { first: EventId, last: EventId, bytes: u64 },
    /// A sealed segment is past its retention and about to be removed.
    #[serde(rename = "r")]
    SegmentRetired { first: EventId, last: EventId },
    /// A live view differs from the fold. Acknowledgements stop until a restart.
    #[serde(rename = "m")]
    ProjectionMismatch { projection: ProjectionName },
    /// Opening found the end of the journal torn after `last`. `missing_upto`: events up to there had
    /// been durable, and are gone.
    #[serde(rename = "t")]
    TornTail { last: EventId, values: u64, missing_upto: Option<EventId> },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ProjectionName {
    #[serde(rename = "r")]
    Registry,
    #[serde(rename = "f")]
    FlushTracker,
    #[serde(rename = "s")]
    ShapeIndex,
}

impl JournalEvent {
    #[must_use]
    pub fn durability(&self) -> Durability {
        match self {
            JournalEvent::StateSnapshot { .. }
            | JournalEvent::SegmentSealed { .. }
            | JournalEvent::SegmentRetired { .. }
            | JournalEvent::ProjectionMismatch { .. }
            | JournalEvent::TornTail { .. } => Durability::Durable,
        }
    }

    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            JournalEvent::StateSnapshot { .. } => "StateSnapshot",
            JournalEvent::SegmentSealed { .. } => "SegmentSealed",
            JournalEvent::SegmentRetired { .. } => "SegmentRetired",
            JournalEvent::ProjectionMismatch { .. } => "ProjectionMismatch",
            JournalEvent::TornTail { .. } => "JournalTornTail",
        }
    }
}

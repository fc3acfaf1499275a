//! Flush progress: written and synced, byte counts checked.

use serde::{Deserialize, Serialize};

use crate::domain::{Seq, Sid};
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
}

impl FlushEvent {
    /// Lazy: the truth is in the shape logs; what is lost here comes again from Postgres and is
    /// skipped there.
    #[must_use]
    pub fn durability(&self) -> Durability {
        match self {
            FlushEvent::Watermark { .. } | FlushEvent::Flushed { .. } => Durability::Lazy,
        }
    }

    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            FlushEvent::Watermark { .. } => "FlushWatermark",
            FlushEvent::Flushed { .. } => "ShapesFlushed",
        }
    }
}

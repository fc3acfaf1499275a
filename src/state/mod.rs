//! The fold: what is, given all that happened. One file per topic, named as in `events`.
//!
//! `apply` is total and without judgement: it never refuses, never reads a clock, and any journal,
//! however damaged, folds to some state. Whether an event was *legal* is asked by
//! [`crate::projections::forensics`]; whether it *may happen* by `engine::decide`.

mod budget;
mod consumer;
mod flush;
mod intents;
mod ownership;
mod shape;
mod stream;
mod window;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use budget::{Allowance, Budget, REMEMBERED, REMEMBERED_MAX, is_suspicion};
pub use consumer::{Retry, Writer};
pub use intents::Intents;
pub use ownership::{Owner, OwnerPhase};
pub use shape::{Invalidation, Life, Shape, Steps, Tombstone, Tombstones};
pub use stream::{Queried, Stream, StreamPhase};
pub use window::{Txn, Window};

use crate::domain::{EventId, Oid, Sid, Timestamp};
use crate::events::{Event, Recorded};

/// Version of the bytes of a [`State`] in a checkpoint. A checkpoint of another version is not read:
/// the journal is folded from the start, or from an older checkpoint, instead.
pub const STATE_VERSION: u8 = 1;
/// Levels of values in values: a state has a few. Unknown fields are skipped by recursion, which damage
/// must not drive to the end of the stack.
const DEPTH_MAX: usize = 64;

/// Everything that is known of the process, its stream and its shapes.
///
/// Each fact stands here once. Views for looking things up (registry, shape index, flush tracker)
/// are projections, which can be thrown away and recomputed from this.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// The last event folded in.
    pub last: EventId,
    /// When that was.
    pub at: Timestamp,
    pub owner: Owner,
    pub stream: Stream,
    /// Routed transactions that some shape still owes.
    pub window: Window,
    pub shapes: BTreeMap<Sid, Shape>,
    /// The number of the newest shape ever.
    pub last_sid: Sid,
    /// The microseconds in the newest handle ever: each new handle has more, so none comes twice
    /// even where the clock goes backwards.
    pub last_handle_micros: u64,
    /// Schema hash of each relation as last announced by the stream.
    pub relations: BTreeMap<Oid, u64>,
    pub tombstones: Tombstones,
}

impl State {
    /// Folds in one event.
    pub fn apply(&mut self, recorded: &Recorded) {
        self.last = recorded.id;
        self.at = self.at.max(recorded.at);
        match &recorded.event {
            Event::Ownership(event) => self.apply_ownership(event),
            Event::Stream(event) => self.apply_stream(recorded, event),
            Event::Shape(event) => self.apply_shape(recorded, event),
            Event::Consumer(event) => self.apply_consumer(recorded, event),
            Event::Flush(event) => self.apply_flush(recorded, event),
            // The journal's facts about itself change nothing that is decided upon.
            Event::Journal(_) => {}
        }
    }

    /// The shape of this name, unless it has been invalidated.
    #[must_use]
    pub fn shape(&self, sid: Sid) -> Option<&Shape> {
        self.shapes.get(&sid)
    }

    /// Bytes of a checkpoint: a version byte and MessagePack.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = vec![STATE_VERSION];
        rmp_serde::encode::write(&mut bytes, self).expect("a state always encodes into memory");
        bytes
    }

    /// Reads [`State::to_bytes`]; `None` for another version or damaged bytes.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<State> {
        let (version, payload) = bytes.split_first()?;
        if *version != STATE_VERSION {
            return None;
        }
        let mut decoder = rmp_serde::Deserializer::from_read_ref(payload);
        decoder.set_max_depth(DEPTH_MAX);
        State::deserialize(&mut decoder).ok()
    }
}

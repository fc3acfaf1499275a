//! What one event changed, field by field.

use std::collections::BTreeMap;
use std::fmt::Debug;

use crate::domain::Sid;
use crate::events::{Event, FlushEvent, OwnershipEvent, ShapeEvent, StreamEvent};
use crate::projections::forensics::{gap, subject};
use crate::state::{Shape, State};

/// Shapes looked at for one event; a broadcast changes them all alike.
const SHAPES_MAX: usize = 64;

/// One field before and after; absent where there was no such field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    pub field: String,
    pub before: Option<String>,
    pub after: Option<String>,
}

/// The fields of a state that an event can change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fields(BTreeMap<String, String>);

/// The shapes that an event can change, as far as they are looked at.
#[must_use]
pub fn touched(before: &State, event: &Event) -> Vec<Sid> {
    let owing = |upto| {
        let txns = before.window.iter().take_while(move |(seq, _)| *seq <= upto);
        txns.flat_map(|(_, txn)| txn.set.iter().collect::<Vec<_>>())
    };
    let mut sids: Vec<Sid> = match event {
        Event::Stream(StreamEvent::TxnRouted { set, .. } | StreamEvent::TxnRedelivered { set, .. }) => {
            set.iter().take(SHAPES_MAX).collect()
        }
        Event::Flush(FlushEvent::Flushed { shapes }) => {
            shapes.iter().take(SHAPES_MAX).map(|(sid, _)| *sid).collect()
        }
        Event::Flush(FlushEvent::Watermark { upto, .. }) => owing(*upto).take(SHAPES_MAX * 4).collect(),
        Event::Ownership(OwnershipEvent::Acquired { .. }) => {
            before.shapes.keys().take(SHAPES_MAX).copied().collect()
        }
        Event::Ownership(_)
        | Event::Stream(_)
        | Event::Shape(_)
        | Event::Consumer(_)
        | Event::Flush(_)
        | Event::Journal(_) => subject(event).into_iter().collect(),
    };
    if let Event::Shape(ShapeEvent::Created { sid, .. }) = event {
        sids.push(*sid);
    }
    sids.sort_unstable();
    sids.dedup();
    sids.truncate(SHAPES_MAX);
    sids
}

/// How many shapes an event can change, all of them counted.
#[must_use]
pub fn touched_count(before: &State, event: &Event) -> usize {
    match event {
        Event::Stream(StreamEvent::TxnRouted { set, .. } | StreamEvent::TxnRedelivered { set, .. }) => {
            set.len()
        }
        Event::Flush(FlushEvent::Flushed { shapes }) => shapes.len(),
        Event::Flush(FlushEvent::Watermark { upto, .. }) => {
            let owes = |shape: &&Shape| shape.pending.front().is_some_and(|oldest| oldest <= upto);
            before.shapes.values().filter(owes).count()
        }
        Event::Ownership(OwnershipEvent::Acquired { .. }) => before.shapes.len(),
        Event::Flush(_)
        | Event::Ownership(_)
        | Event::Stream(_)
        | Event::Shape(_)
        | Event::Consumer(_)
        | Event::Journal(_) => touched(before, event).len(),
    }
}

/// Whether an event can change this shape, however many others it changes.
#[must_use]
pub fn touches(before: &State, event: &Event, sid: Sid) -> bool {
    match event {
        Event::Stream(StreamEvent::TxnRouted { set, .. } | StreamEvent::TxnRedelivered { set, .. }) => {
            set.contains(sid)
        }
        Event::Flush(FlushEvent::Flushed { shapes }) => shapes.iter().any(|(flushed, _)| *flushed == sid),
        Event::Flush(FlushEvent::Watermark { upto, .. }) => {
            let shape = before.shapes.get(&sid);
            shape.and_then(|shape| shape.pending.front()).is_some_and(|oldest| oldest <= upto)
        }
        Event::Ownership(OwnershipEvent::Acquired { .. }) => before.shapes.contains_key(&sid),
        Event::Flush(_)
        | Event::Ownership(_)
        | Event::Stream(_)
        | Event::Shape(_)
        | Event::Consumer(_)
        | Event::Journal(_) => touched(before, event).contains(&sid),
    }
}

impl Fields {
    /// The state as a whole, and these shapes.
    #[must_use]
    pub fn of(state: &State, sids: &[Sid]) -> Fields {
        let mut fields = Fields::default();
        let (received, boundary, bytes) = gap(state);
        let (owner, stream) = (&state.owner, &state.stream);
        fields.set("owner.phase", &owner.phase);
        fields.set("owner.epoch", &owner.epoch);
        fields.set("owner.host", &owner.process.host);
        fields.set("owner.pid", &owner.process.pid);
        fields.set("owner.version", &owner.process.version);
        fields.set("owner.open_intents", &owner.open_intents.len());
        fields.set("stream.phase", &stream.phase);
        fields.set("stream.generation", &stream.generation);
        fields.set("stream.lock_held", &stream.lock_held);
        fields.set("stream.timeline", &stream.timeline);
        fields.set("stream.confirmed", &stream.confirmed);
        fields.set("stream.received", &received);
        fields.set("stream.routed", &stream.routed);
        fields.set("stream.last_seq", &stream.last_seq);
        fields.set("stream.acked", &stream.acked);
        fields.set("window.transactions", &state.window.len());
        fields.set("window.oldest", &state.window.oldest().map(|(seq, _)| seq));
        fields.set("flushed_by_all", &boundary);
        fields.set("gap_bytes", &bytes);
        fields.set("shapes", &state.shapes.len());
        for sid in sids {
            if let Some(shape) = state.shape(*sid) {
                fields.shape(*sid, shape);
            }
        }
        fields
    }

    fn shape(&mut self, sid: Sid, shape: &Shape) {
        let mut set = |field: &str, value: &dyn Debug| {
            self.0.insert(format!("shape[{sid}].{field}"), format!("{value:?}"));
        };
        set("handle", &shape.handle);
        set("life", &shape.life);
        set("routed_after", &shape.routed_after.map(|(seq, _)| seq));
        set("snapshot_attempt", &shape.snapshot_attempt);
        set("visible", &shape.visible.as_ref().map(|(_, lsn)| *lsn));
        set("writer", &shape.writer);
        set("retry", &shape.retry);
        set("pending", &shape.pending.len());
        set("oldest", &shape.pending.front());
        set("flushed", &shape.flushed);
        set("progressed_at", &shape.progressed_at);
        set("suspected", &shape.suspected);
        set("invalidated", &shape.invalidated.map(|invalidation| invalidation.cause));
        set("steps", &shape.steps);
    }

    fn set(&mut self, field: &str, value: &impl Debug) {
        self.0.insert(field.to_owned(), format!("{value:?}"));
    }

    /// The fields in which `after` differs, by name.
    #[must_use]
    pub fn changes(&self, after: &Fields) -> Vec<Change> {
        let names: std::collections::BTreeSet<&String> = self.0.keys().chain(after.0.keys()).collect();
        let changes = names.into_iter().map(|name| Change {
            field: name.clone(),
            before: self.0.get(name).cloned(),
            after: after.0.get(name).cloned(),
        });
        changes.filter(|change| change.before != change.after).collect()
    }
}

//! What shapes are called, and of which table they are.

use std::collections::BTreeMap;

use crate::domain::{Handle, Oid, Seq, Sid};
use crate::events::{Event, FlushEvent, Recorded, ShapeEvent};
use crate::projections::forensics::subject;
use crate::state::State;

/// Shapes that a sentence about a flush names, at most.
const NAMED_MAX: usize = 16;

/// Handles and tables of the shapes seen so far, those that are gone included.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Names {
    shapes: BTreeMap<Sid, (Handle, Option<Oid>)>,
}

impl Names {
    /// The shapes that a state knows: the living and the newest tombstones.
    #[must_use]
    pub fn of(state: &State) -> Names {
        let mut names = Names::default();
        names.learn_all(state);
        names
    }

    /// Those of a state, beside what is known already.
    pub fn learn_all(&mut self, state: &State) {
        for tombstone in state.tombstones.iter() {
            self.shapes.entry(tombstone.sid).or_insert((tombstone.handle, None));
        }
        for (sid, shape) in &state.shapes {
            self.shapes.insert(*sid, (shape.handle, Some(shape.oid)));
        }
    }

    /// The shapes that one event speaks of by name, as a state before or after it knows them.
    #[must_use]
    pub fn around(state: &State, event: &Event) -> Names {
        let mut names = Names::default();
        let flushed: &[(Sid, Seq)] = match event {
            Event::Flush(FlushEvent::Flushed { shapes }) => shapes,
            Event::Flush(FlushEvent::Watermark { except, .. }) => except,
            Event::Ownership(_)
            | Event::Stream(_)
            | Event::Shape(_)
            | Event::Consumer(_)
            | Event::Flush(_)
            | Event::Journal(_) => &[],
        };
        for sid in subject(event).into_iter().chain(flushed.iter().take(NAMED_MAX).map(|(sid, _)| *sid)) {
            if let Some(shape) = state.shape(sid) {
                names.shapes.insert(sid, (shape.handle, Some(shape.oid)));
            } else if let Some(tombstone) = state.tombstones.iter().find(|tombstone| tombstone.sid == sid) {
                names.shapes.insert(sid, (tombstone.handle, None));
            }
        }
        names
    }

    pub fn learn(&mut self, recorded: &Recorded) {
        if let Event::Shape(ShapeEvent::Created { sid, handle, oid, .. }) = &recorded.event {
            self.shapes.insert(*sid, (*handle, Some(*oid)));
        }
    }

    #[must_use]
    pub fn handle(&self, sid: Sid) -> Option<Handle> {
        self.shapes.get(&sid).map(|(handle, _)| *handle)
    }

    #[must_use]
    pub fn table(&self, sid: Sid) -> Option<Oid> {
        self.shapes.get(&sid).and_then(|(_, oid)| *oid)
    }

    #[must_use]
    pub fn find(&self, handle: Handle) -> Option<Sid> {
        self.shapes.iter().find(|(_, (own, _))| *own == handle).map(|(sid, _)| *sid)
    }

    /// The handle or, where it is not known, the number.
    #[must_use]
    pub fn call(&self, sid: Sid) -> String {
        self.handle(sid).map_or_else(|| format!("#{sid}"), |handle| handle.to_string())
    }
}

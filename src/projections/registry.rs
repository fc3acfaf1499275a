//! Which writers exist: the unique incarnation of each shape that has started and not exited (R1).

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use crate::domain::{Incarnation, Sid, Timestamp};
use crate::events::{Event, OwnershipEvent, ProjectionName, Recorded};
use crate::projections::Projection;
use crate::state::{Shape, State, Writer};

/// Writers by shape, and the restarts that are due.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Registry {
    writers: BTreeMap<Sid, Incarnation>,
    restarts: BTreeMap<Sid, Timestamp>,
}

impl Registry {
    /// The incarnation of a shape, if it has one.
    #[must_use]
    pub fn get(&self, sid: Sid) -> Option<Incarnation> {
        self.writers.get(&sid).copied()
    }

    /// Ascending by shape.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (Sid, Incarnation)> + '_ {
        self.writers.iter().map(|(sid, incarnation)| (*sid, *incarnation))
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.writers.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.writers.is_empty()
    }

    /// Shapes whose writer is to be started again, and when.
    pub fn restarts(&self) -> impl Iterator<Item = (Sid, Timestamp)> + '_ {
        self.restarts.iter().map(|(sid, due)| (*sid, *due))
    }

    /// Whether a part of it is what the state says.
    pub(super) fn agrees(&self, state: &State, part: RangeInclusive<Sid>) -> bool {
        let shapes = super::part_of(state, part.clone());
        let writers = shapes.clone().filter_map(|(sid, shape)| Some((sid, shape.writer.incarnation()?)));
        let restarts = shapes.filter_map(|(sid, shape)| Some((sid, restart_due(shape)?)));
        let own = |(sid, incarnation): (&Sid, &Incarnation)| (*sid, *incarnation);
        writers.eq(self.writers.range(part.clone()).map(own))
            && restarts.eq(self.restarts.range(part).map(|(sid, due)| (*sid, *due)))
    }

    #[cfg(any(test, feature = "test-hooks"))]
    pub(super) fn meddle(&mut self) {
        if self.writers.pop_last().is_none() {
            self.writers.insert(Sid(u32::MAX - 1), Incarnation(1));
        }
    }

    fn follow(&mut self, sid: Sid, shape: Option<&Shape>) {
        match shape.and_then(|shape| shape.writer.incarnation()) {
            Some(incarnation) => self.writers.insert(sid, incarnation),
            None => self.writers.remove(&sid),
        };
        match shape.and_then(restart_due) {
            Some(due) => self.restarts.insert(sid, due),
            None => self.restarts.remove(&sid),
        };
    }
}

fn restart_due(shape: &Shape) -> Option<Timestamp> {
    if shape.writer != Writer::Absent {
        return None;
    }
    shape.retry.and_then(|retry| retry.due)
}

impl Projection for Registry {
    const NAME: ProjectionName = ProjectionName::Registry;

    fn apply(&mut self, state: &State, recorded: &Recorded) {
        match &recorded.event {
            // One event ends all writers of the process before.
            Event::Ownership(OwnershipEvent::Acquired { .. }) => {
                self.writers.clear();
                self.restarts.clear();
            }
            Event::Consumer(event) => self.follow(event.sid(), state.shape(event.sid())),
            Event::Shape(event) => self.follow(event.sid(), state.shape(event.sid())),
            // Progress ends a series of attempts; a restart is only ever due with something pending,
            // and what is pending without a writer cannot be flushed.
            Event::Ownership(_) | Event::Stream(_) | Event::Flush(_) | Event::Journal(_) => {}
        }
    }

    fn recompute(state: &State) -> Registry {
        let mut registry = Registry::default();
        for (sid, shape) in &state.shapes {
            registry.follow(*sid, Some(shape));
        }
        registry
    }
}

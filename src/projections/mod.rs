//! Views folded from events, for looking things up. Each can be dropped and rebuilt from the state,
//! and a rebuilt one equals the living one: tests compare at every event, the service now and then.

pub mod forensics;

mod flush_tracker;
mod registry;
mod shape_index;

pub use flush_tracker::FlushTracker;
pub use registry::Registry;
pub use shape_index::ShapeIndex;

use std::ops::RangeInclusive;

use crate::domain::Sid;
use crate::events::{ProjectionName, Recorded};
use crate::state::State;

/// A view that follows the history.
pub trait Projection: Default + PartialEq {
    const NAME: ProjectionName;

    /// Follows one event; `state` is the state after it.
    fn apply(&mut self, state: &State, recorded: &Recorded);

    /// The view from scratch. Invariant: equal to the one that followed every event.
    fn recompute(state: &State) -> Self;
}

/// All views together.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Projections {
    pub registry: Registry,
    pub flush_tracker: FlushTracker,
    pub shape_index: ShapeIndex,
}

impl Projections {
    pub fn apply(&mut self, state: &State, recorded: &Recorded) {
        self.registry.apply(state, recorded);
        self.flush_tracker.apply(state, recorded);
        self.shape_index.apply(state, recorded);
    }

    #[must_use]
    pub fn recompute(state: &State) -> Projections {
        Projections {
            registry: Registry::recompute(state),
            flush_tracker: FlushTracker::recompute(state),
            shape_index: ShapeIndex::recompute(state),
        }
    }

    /// The views that differ from what the state says: none, unless there is a bug.
    #[must_use]
    pub fn drifted(&self, state: &State) -> Vec<ProjectionName> {
        let fresh = Projections::recompute(state);
        let mut drifted = Vec::new();
        if self.registry != fresh.registry {
            drifted.push(Registry::NAME);
        }
        if self.flush_tracker != fresh.flush_tracker {
            drifted.push(FlushTracker::NAME);
        }
        if self.shape_index != fresh.shape_index {
            drifted.push(ShapeIndex::NAME);
        }
        drifted
    }

    /// As [`Projections::drifted`], of a few shapes at a time: `count` of them behind `after`, which is
    /// `None` at the beginning. Also says behind which shape the next part begins, `None` after the last.
    /// Shapes may come and go between two parts: each is a comparison of its own.
    #[must_use]
    pub fn drifted_among(
        &self,
        state: &State,
        after: Option<Sid>,
        count: usize,
    ) -> (Vec<ProjectionName>, Option<Sid>) {
        let first = after.map_or(Sid(0), Sid::next);
        let end = state.shapes.range(first..).nth(count.max(1) - 1).map(|(sid, _)| *sid);
        let last = end.filter(|sid| state.shapes.range(sid.next()..).next().is_some());
        let part = first..=last.unwrap_or(Sid(u32::MAX - 1));
        let mut drifted = Vec::new();
        if !self.registry.agrees(state, part.clone()) {
            drifted.push(Registry::NAME);
        }
        if !self.flush_tracker.agrees(state, part.clone()) {
            drifted.push(FlushTracker::NAME);
        }
        if !self.shape_index.agrees(state, part) {
            drifted.push(ShapeIndex::NAME);
        }
        (drifted, last)
    }
}

/// The shapes of a part, in order.
fn part_of(
    state: &State,
    part: RangeInclusive<Sid>,
) -> impl Iterator<Item = (Sid, &crate::state::Shape)> + Clone + '_ {
    state.shapes.range(part).map(|(sid, shape)| (*sid, shape))
}

/// For tests of those who compare.
#[cfg(any(test, feature = "test-hooks"))]
impl Projections {
    /// Makes a view wrong, as a bug would.
    pub fn meddle(&mut self, projection: ProjectionName) {
        match projection {
            ProjectionName::Registry => self.registry.meddle(),
            ProjectionName::FlushTracker => self.flush_tracker.meddle(),
            ProjectionName::ShapeIndex => self.shape_index.meddle(),
        }
    }
}

#[cfg(test)]
mod tests;

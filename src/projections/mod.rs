//! Views folded from events, for looking things up. Each can be dropped and rebuilt from the state,
//! and a rebuilt one equals the living one: tests compare at every event, the service now and then.

pub mod forensics;

mod flush_tracker;
mod registry;
mod shape_index;

pub use flush_tracker::FlushTracker;
pub use registry::Registry;
pub use shape_index::ShapeIndex;

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
}

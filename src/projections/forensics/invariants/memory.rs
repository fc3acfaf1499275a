//! What has to be remembered of a history to judge it, beyond the state that it folds to. One part for each
//! topic; each looks at an event before it is folded in, after it, or both.

use std::time::Duration;

use super::Finding;
use super::duties::Duties;
use super::owners::Starts;
use super::snapshots::Snapshots;
use super::stalls::Stalls;
use super::writers::Writers;
use crate::events::Recorded;
use crate::projections::Projections;
use crate::state::State;

#[derive(Clone, Debug, Default)]
pub(super) struct Memory {
    duties: Duties,
    starts: Starts,
    snapshots: Snapshots,
    stalls: Stalls,
    writers: Writers,
}

impl Memory {
    pub(super) fn with_grace(grace: Duration) -> Memory {
        Memory { stalls: Stalls::with_grace(grace), ..Memory::default() }
    }

    pub(super) fn before(
        &mut self,
        state: &State,
        projections: &Projections,
        recorded: &Recorded,
        findings: &mut Vec<Finding>,
    ) {
        self.duties.before(state, projections, recorded, findings);
        self.starts.before(state, recorded, findings);
        self.snapshots.before(state, recorded, findings);
        self.stalls.before(state, recorded, findings);
        self.writers.before(state, projections, recorded, findings);
    }

    pub(super) fn after(
        &mut self,
        state: &State,
        projections: &Projections,
        recorded: &Recorded,
        findings: &mut Vec<Finding>,
    ) {
        self.duties.after(state, recorded);
        self.stalls.after(state, projections, recorded, findings);
        self.writers.after(state, recorded);
    }
}

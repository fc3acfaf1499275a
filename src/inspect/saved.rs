//! The states that were saved along a journal: where events are missing, what comes behind the next of them can
//! be judged again.

use crate::domain::EventId;
use crate::events::Recorded;
use crate::journal::ArchivedState;
use crate::projections::forensics::Incidents;
use crate::state::State;

use super::Source;
use super::source::archived_state;

/// Checkpoints, in memory, and the states of the archive, which are read when they are wanted.
pub struct Saved {
    checkpoints: Vec<State>,
    archived: Vec<ArchivedState>,
}

impl Saved {
    #[must_use]
    pub fn of(source: &Source) -> Saved {
        let (checkpoints, _) = source.journal().checkpoints();
        let checkpoints = checkpoints.iter().filter_map(|saved| State::from_bytes(&saved.state)).collect();
        Saved { checkpoints, archived: source.journal().states().to_vec() }
    }

    /// The state that this event follows, if it was saved.
    #[must_use]
    pub fn before(&self, event: EventId) -> Option<State> {
        let known = self.checkpoints.iter().find(|state| state.last.next() == event);
        let archived = || self.archived.iter().find(|state| state.mark.upto.next() == event);
        known.cloned().or_else(|| archived_state(archived()?))
    }
}

/// Looks for what is unusual, and finds the way again behind events that are missing. `saved` is read from the
/// source once it is needed.
pub fn observe(incidents: &mut Incidents, recorded: &Recorded, source: &Source, saved: &mut Option<Saved>) {
    if incidents.is_lost_before(recorded)
        && let Some(state) = saved.get_or_insert_with(|| Saved::of(source)).before(recorded.id)
    {
        incidents.find_way(state, recorded);
    }
    incidents.observe(recorded);
}

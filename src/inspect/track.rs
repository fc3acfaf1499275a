//! What one pass over a whole history leaves behind, so that any later question about a moment of it is
//! answered from nearby: the lines over time, what was unusual, who owned it, and states along the way.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::domain::{EventId, Sid, Timestamp};
use crate::events::{ConsumerEvent, Event, Recorded};
use crate::projections::forensics::{Incidents, LastExit, LastExits, Names, Owners, Position, Series, Story};
use crate::state::State;

use super::{Saved, Source, observe};

/// States kept along the way, at most …
const KEYFRAMES_MAX: usize = 64;
/// … and the shapes in all of them together: some 300 bytes each.
const KEYFRAME_SHAPES_MAX: usize = 600_000;
/// Events between two of them at first; twice as many whenever there are too many.
const SPACING_FIRST: u64 = 256;
/// Shapes that are copied in the time in which an event is folded, roughly: copying states must not take longer than
/// the pass itself.
const COPIED_AN_EVENT: u64 = 4;
/// Exits of writers that are remembered by shape; beyond, they are looked for in the journal.
const EXITS_MAX: usize = 1_000_000;

/// Events between two words of how far the pass is.
const TOLD_EVERY: u64 = 4_096;

/// The pass so far. Can be carried on when there are more events.
pub struct Track {
    incidents: Incidents,
    /// Read where events are missing.
    saved: Option<Saved>,
    series: Series,
    owners: Owners,
    first: Option<(EventId, Timestamp)>,
    /// Invariant: ascending by event, at least `spacing` apart.
    keyframes: Vec<Arc<State>>,
    spacing: u64,
    exits: BTreeMap<Sid, Vec<LastExit>>,
    exits_count: usize,
}

impl Track {
    /// A track of nothing yet, which begins where the journal does.
    #[must_use]
    pub fn begin(source: &Source) -> Track {
        let state = source.beginning();
        Track {
            series: Series::new(&state),
            incidents: Incidents::new(state.clone()),
            saved: None,
            owners: Owners::default(),
            first: None,
            keyframes: vec![Arc::new(state)],
            spacing: SPACING_FIRST,
            exits: BTreeMap::new(),
            exits_count: 0,
        }
    }

    /// Takes in what the journal has by now, and says now and then how far it is.
    pub fn carry_on(&mut self, source: &Source, mut told: impl FnMut(EventId)) {
        for recorded in source.events(self.state().last.next()) {
            self.observe(source, &recorded);
            if recorded.id.0.is_multiple_of(TOLD_EVERY) {
                told(recorded.id);
            }
        }
        told(self.state().last);
    }

    fn observe(&mut self, source: &Source, recorded: &Recorded) {
        self.first.get_or_insert((recorded.id, recorded.at));
        observe(&mut self.incidents, recorded, source, &mut self.saved);
        self.owners.observe(recorded);
        let state = self.incidents.state();
        self.series.observe(state, recorded, true);
        if let Event::Consumer(ConsumerEvent::Exited { sid, incarnation, cause, pending, .. }) =
            &recorded.event
            && self.exits_count < EXITS_MAX
        {
            let (event, at) = (recorded.id, recorded.at);
            let exit = LastExit { event, at, incarnation: *incarnation, cause: *cause, pending: *pending };
            self.exits.entry(*sid).or_default().push(exit);
            self.exits_count += 1;
        }
        let newest = self.keyframes.last().map_or(EventId(0), |state| state.last);
        let state = self.incidents.state();
        let spacing = self.spacing.max(state.shapes.len() as u64 / COPIED_AN_EVENT);
        if recorded.id.0 >= newest.0.saturating_add(spacing) {
            self.keyframes.push(Arc::new(state.clone()));
            self.thin();
        }
    }

    /// Where there are too many states, every second one goes.
    fn thin(&mut self) {
        let shapes = |states: &[Arc<State>]| states.iter().map(|state| state.shapes.len()).sum::<usize>();
        while self.keyframes.len() > 2
            && (self.keyframes.len() > KEYFRAMES_MAX || shapes(&self.keyframes) > KEYFRAME_SHAPES_MAX)
        {
            let mut index = 0;
            self.keyframes.retain(|_| {
                index += 1;
                index % 2 == 1
            });
            self.spacing = self.spacing.saturating_mul(2);
        }
    }

    /// The state after everything taken in.
    #[must_use]
    pub fn state(&self) -> &State {
        self.incidents.state()
    }

    /// What every shape of the history is called.
    #[must_use]
    pub fn names(&self) -> &Names {
        self.incidents.names()
    }

    /// The first event there is, and its time.
    #[must_use]
    pub fn first(&self) -> Option<(EventId, Timestamp)> {
        self.first
    }

    #[must_use]
    pub fn series(&self) -> &Series {
        &self.series
    }

    #[must_use]
    pub fn owners(&self) -> &Owners {
        &self.owners
    }

    /// What was unusual, clustered; and how many anomalies were only counted.
    #[must_use]
    pub fn stories(&self, apart: Duration) -> (Vec<Story>, u64) {
        let (stories, dropped, ..) = self.incidents.clone().finish(apart);
        (stories, dropped)
    }

    /// The nearest state from which the fold can be carried on to a place.
    #[must_use]
    pub fn nearest(&self, position: Position) -> Arc<State> {
        let usable = self.keyframes.iter().rev().find(|state| position.is_ahead_of(state));
        usable.cloned().unwrap_or_default()
    }

    /// A state from which a pass over everything from a place on may begin.
    #[must_use]
    pub fn before(&self, position: Position) -> State {
        let position = match position {
            Position::Event(id) => Position::Event(EventId(id.0.saturating_sub(1))),
            Position::Time(at) => Position::Time(Timestamp(at.0.saturating_sub(1))),
            Position::End | Position::TimeOfDay(_) | Position::Lsn(_) => position,
        };
        State::clone(&self.nearest(position))
    }

    /// The state at a place, folded from nearby.
    #[must_use]
    pub fn fold(&self, source: &Source, position: Position) -> State {
        let position = self.resolve(position);
        source.carry_on(State::clone(&self.nearest(position)), position)
    }

    /// A time of day made a moment.
    #[must_use]
    pub fn resolve(&self, position: Position) -> Position {
        position.resolve(self.state().at)
    }

    /// How the writers of the shapes that owe something had ended by then: as [`Source::exits`].
    #[must_use]
    pub fn exits(&self, source: &Source, state: &State) -> LastExits {
        if self.exits_count >= EXITS_MAX {
            return source.exits(state);
        }
        let mut found = LastExits::default();
        for (sid, shape) in &state.shapes {
            if shape.pending.is_empty() || shape.writer.incarnation().is_some() {
                continue;
            }
            let exits = self.exits.get(sid).map_or(&[][..], Vec::as_slice);
            if let Some(exit) = exits.iter().rev().find(|exit| exit.event <= state.last) {
                found.insert(*sid, *exit);
            }
        }
        found
    }
}

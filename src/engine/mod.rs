//! Decisions. Pure: time comes in as an argument, the world answers through [`Input`], and what is
//! asked of it goes out as [`Effect`].
//!
//! A step checks its input against the state (a refusal changes nothing), records what follows, and
//! folds each event in as it is recorded, so that the next decision of the same step sees it. The
//! caller then persists the events and performs the effects, in that order.

mod decide;
mod effect;
mod input;
mod policy;
mod recent;
mod resume;
mod settle;

pub use effect::Effect;
pub use input::{Boot, Commit, Compaction, FlushReport, Input, PostgresReady, Refusal};
pub use policy::Policy;

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{Hash, Hasher};

use recent::RecentCommits;

use crate::domain::{EventId, Lsn, Oid, PgSnapshot, Seq, Sid, Timestamp};
use crate::events::{Durability, Event, Part, ProjectionName, Recorded};
use crate::projections::Projections;
use crate::state::State;

/// The whole core: the state, its views, and the rules.
#[derive(Clone, Debug)]
pub struct Engine {
    state: State,
    projections: Projections,
    policy: Policy,
    scratch: Scratch,
}

/// What is known in this process only and need not survive it.
#[derive(Clone, Debug, Default)]
struct Scratch {
    /// Transactions that no shape wanted and that no event covers yet: the newest, and how many.
    nothing: Option<(Lsn, u64)>,
    recent: RecentCommits,
    acked_at: Timestamp,
    /// What the server of this connection knows to be acknowledged.
    told: Lsn,
    /// Postgres had sent everything up to here, and all of it was processed.
    idle_at: Lsn,
    /// Nobody owed anything below this number when it was last told.
    forgotten: Seq,
    /// Writers that were started since the last audit, by shape, and the event that did.
    started: BTreeMap<Sid, EventId>,
    watch: Watch,
    /// A view was found to differ from the fold: acknowledge nothing until a restart.
    ack_frozen: bool,
    /// The views that did.
    drifted: Vec<ProjectionName>,
}

/// What the watch over progress remembers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Watch {
    /// When it last looked.
    looked_at: Timestamp,
    /// Since when shapes are suspected.
    suspected: BTreeMap<Sid, Timestamp>,
    /// Shapes whose writers have failed as often as they may and which were not given up.
    worn_out: BTreeSet<Sid>,
    /// What the threads of the writers have taken in; `None` where nobody tells.
    handed: Option<Lsn>,
    /// Parts of the pipeline that stand still.
    still: BTreeSet<Part>,
    /// Deferrals in a row, and until when the newest lasts.
    deferrals: u32,
    deferred_until: Timestamp,
}

/// What one input led to.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Step {
    pub events: Vec<Recorded>,
    pub effects: Vec<Effect>,
    /// The effects, and all that are decided later, wait until this event is durable; a
    /// [`Effect::SendStatus`] waits for the last event of its step, and holds up nothing else.
    pub barrier: Option<EventId>,
}

impl Engine {
    #[must_use]
    pub fn new(policy: Policy) -> Engine {
        Engine::from_state(State::default(), policy)
    }

    /// An engine that carries on from a state, as a checkpoint holds it.
    #[must_use]
    pub fn from_state(state: State, policy: Policy) -> Engine {
        let projections = Projections::recompute(&state);
        Engine { state, projections, policy, scratch: Scratch::default() }
    }

    /// An engine that carries on from a history.
    #[must_use]
    pub fn replay(history: impl IntoIterator<Item = Recorded>, policy: Policy) -> Engine {
        let mut engine = Engine::new(policy);
        for recorded in history {
            engine.follow(&recorded);
        }
        engine
    }

    /// Folds in an event that is already in the journal.
    pub fn follow(&mut self, recorded: &Recorded) {
        self.state.apply(recorded);
        self.projections.apply(&self.state, recorded);
    }

    #[must_use]
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Whether the snapshot lacks a commit to this table at or before `upto` that was taken in already.
    #[must_use]
    pub fn lacks_commit(&self, snapshot: &PgSnapshot, table: Oid, upto: Lsn) -> bool {
        self.scratch.recent.lacking(snapshot, table, upto)
    }

    #[must_use]
    pub fn projections(&self) -> &Projections {
        &self.projections
    }

    /// The newest commit of this connection that was processed, wanted by a shape or not.
    #[must_use]
    pub fn received(&self) -> Lsn {
        let nothing = self.scratch.nothing.map_or(Lsn(0), |(upto, _)| upto);
        self.state.stream.received.max(nothing)
    }

    /// Feeds in what the next step depends on beside the state, for an exhaustive search that must
    /// know a world again. Numbers of events are left out: they tell when, not what.
    pub fn digest_scratch(&self, into: &mut impl Hasher) {
        let Scratch {
            nothing,
            recent,
            acked_at,
            told,
            idle_at,
            forgotten,
            started: _,
            watch,
            ack_frozen,
            drifted: _,
        } = &self.scratch;
        (nothing, recent, acked_at, told, idle_at, forgotten, watch, ack_frozen).hash(into);
    }

    /// Takes one input.
    ///
    /// # Errors
    /// A [`Refusal`] where the input may not happen in this state; nothing has changed then.
    pub fn step(&mut self, now: Timestamp, input: Input) -> Result<Step, Refusal> {
        // A clock that goes backwards must not make time in the journal do so.
        let now = now.max(self.state.at);
        let mut decision = Decision { engine: self, now, step: Step::default() };
        decision.decide(input)?;
        decision.settle();
        Ok(decision.step)
    }

    /// Compares the views with a fresh fold, a few shapes at a time; on a difference records it and stops
    /// acknowledging. Also says behind which shape the next part begins, `None` after the last. A view that
    /// is known to differ is not told of again.
    pub fn audit_part(&mut self, now: Timestamp, after: Option<Sid>, count: usize) -> (Step, Option<Sid>) {
        let (drifted, last) = self.projections.drifted_among(&self.state, after, count);
        let now = now.max(self.state.at);
        let mut decision = Decision { engine: self, now, step: Step::default() };
        for projection in drifted {
            decision.engine.scratch.ack_frozen = true;
            if decision.engine.scratch.drifted.contains(&projection) {
                continue;
            }
            decision.engine.scratch.drifted.push(projection);
            decision.record(None, crate::events::JournalEvent::ProjectionMismatch { projection });
        }
        (decision.step, last)
    }

    /// The views that were found to differ from the fold, since this process began.
    #[must_use]
    pub fn drifted(&self) -> &[ProjectionName] {
        &self.scratch.drifted
    }

    /// For tests of the comparison: makes a view wrong.
    #[cfg(any(test, feature = "test-hooks"))]
    pub fn meddle(&mut self, projection: ProjectionName) {
        self.projections.meddle(projection);
    }

    /// Records a fact of the journal about itself.
    pub fn note(&mut self, now: Timestamp, event: crate::events::JournalEvent) -> Step {
        let now = now.max(self.state.at);
        let mut decision = Decision { engine: self, now, step: Step::default() };
        decision.record(None, event);
        decision.step
    }
}

/// A step in the making.
struct Decision<'a> {
    engine: &'a mut Engine,
    now: Timestamp,
    step: Step,
}

impl Decision<'_> {
    fn state(&self) -> &State {
        &self.engine.state
    }

    /// Records an event and folds it in. Its number is the `because` of what follows from it.
    fn record(&mut self, because: Option<EventId>, event: impl Into<Event>) -> EventId {
        let event = event.into();
        let recorded = Recorded {
            id: self.engine.state.last.next(),
            at: self.now,
            epoch: self.epoch_of(&event),
            because,
            event,
        };
        self.engine.follow(&recorded);
        let id = recorded.id;
        if recorded.event.durability() == Durability::Durable {
            self.step.barrier = Some(id);
        }
        self.step.events.push(recorded);
        id
    }

    /// The epoch changes with the event that acquires it, and the process that starts it belongs to
    /// it already.
    fn epoch_of(&self, event: &Event) -> crate::domain::Epoch {
        match event {
            Event::Ownership(crate::events::OwnershipEvent::Acquired { epoch, .. }) => *epoch,
            Event::Ownership(_)
            | Event::Stream(_)
            | Event::Shape(_)
            | Event::Consumer(_)
            | Event::Flush(_)
            | Event::Journal(_) => self.engine.state.owner.epoch,
        }
    }

    fn ask(&mut self, effect: Effect) {
        self.step.effects.push(effect);
    }
}

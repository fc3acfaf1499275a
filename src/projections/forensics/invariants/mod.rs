//! What must hold in every journal. The same checks run in the tests, in the simulator and in
//! `shapefold journal verify`.
//!
//! A check of an *event* asks, against the state before it, whether it was legal (`legal`). What takes
//! more than that state is remembered along the way (`memory`): what a decision still has to lead to, and
//! what the fold has no use for. A *standing* check asks of a state whether it may last: it runs where a
//! decision is complete, at acknowledgements and at the end.

mod duties;
mod legal;
mod memory;
mod orphans;
mod owners;
mod rules;
mod snapshots;
mod stalls;
mod writers;

pub use rules::{Invariant, Violation};

use std::collections::BTreeMap;
use std::time::Duration;

use memory::Memory;
use orphans::Orphans;

use crate::domain::{EventId, Seq, Sid, Timestamp};
use crate::events::{Event, Recorded, StreamEvent};
use crate::projections::Projections;
use crate::projections::forensics::subject;
use crate::state::State;

/// Folds a history and checks it as it goes.
#[derive(Clone, Debug, Default)]
pub struct Checker {
    state: State,
    projections: Projections,
    violations: Vec<Violation>,
    started: bool,
    memory: Memory,
    orphans: Orphans,
}

/// A rule, the shape that it is about, the event that broke it where that is not the present one, and how.
type Finding = (Invariant, Option<Sid>, Option<(EventId, Timestamp)>, String);

/// More than anyone reads; a journal that is wrong everywhere must not fill the memory.
const VIOLATIONS_MAX: usize = 1_000;

impl Checker {
    /// A checker of a whole history, from its first event.
    #[must_use]
    pub fn new() -> Checker {
        Checker::default()
    }

    /// A checker of the part of a history after a checkpoint.
    #[must_use]
    pub fn from_state(state: State) -> Checker {
        let projections = Projections::recompute(&state);
        Checker { state, projections, started: true, ..Checker::default() }
    }

    /// The same, of a service whose writers may be silent for so long before they are suspected: the events
    /// do not say it.
    #[must_use]
    pub fn with_grace(self, grace: Duration) -> Checker {
        Checker { memory: Memory::with_grace(grace), ..self }
    }

    /// Checks the next event and folds it in.
    pub fn observe(&mut self, recorded: &Recorded) {
        // A history may begin in the middle where its beginning has been retired.
        if self.started && recorded.id != self.state.last.next() {
            let detail = format!("follows event {}", self.state.last);
            self.violated(Invariant::J1, recorded.id, None, detail);
        }
        self.started = true;
        if recorded.because.is_some_and(|because| because >= recorded.id) {
            let detail = "gives a later event as its reason".to_owned();
            self.violated(Invariant::J1, recorded.id, None, detail);
        }
        let mut findings: Vec<Finding> = legal::illegal(&self.state, recorded)
            .into_iter()
            .map(|(invariant, detail)| (invariant, subject(&recorded.event), None, detail))
            .collect();
        self.memory.before(&self.state, &self.projections, recorded, &mut findings);
        self.state.apply(recorded);
        self.projections.apply(&self.state, recorded);
        self.memory.after(&self.state, &self.projections, recorded, &mut findings);
        self.orphans.follow(&self.state, recorded, &mut findings);
        if matches!(recorded.event, Event::Stream(StreamEvent::AckSent { .. })) {
            self.orphans.check(&self.state, &self.projections, recorded.id, &mut findings);
        }
        self.take(findings, recorded.id, recorded.at);
    }

    /// The checks of the state that the history ends in; then everything that was found.
    #[must_use]
    pub fn finish(mut self) -> (State, Vec<Violation>) {
        let (last, at) = (self.state.last, self.state.at);
        let mut findings = Vec::new();
        self.orphans.check(&self.state, &self.projections, last, &mut findings);
        recount(&self.state, &mut findings);
        self.take(findings, last, at);
        for projection in self.projections.drifted(&self.state) {
            self.violated(Invariant::J2, last, None, format!("{projection:?} differs from the fold"));
        }
        (self.state, self.violations)
    }

    #[must_use]
    pub fn state(&self) -> &State {
        &self.state
    }

    #[must_use]
    pub fn violations(&self) -> &[Violation] {
        &self.violations
    }

    fn take(&mut self, findings: Vec<Finding>, event: EventId, at: Timestamp) {
        for (invariant, sid, other, detail) in findings {
            let (event, at) = other.unwrap_or((event, at));
            self.push(Violation { invariant, event, at, sid, detail });
        }
    }

    fn violated(&mut self, invariant: Invariant, event: EventId, sid: Option<Sid>, detail: String) {
        let at = self.state.at;
        self.push(Violation { invariant, event, at, sid, detail });
    }

    fn push(&mut self, violation: Violation) {
        if self.violations.len() < VIOLATIONS_MAX {
            self.violations.push(violation);
        }
    }
}

/// F5: how many shapes owe each transaction, counted anew, is what was counted along the way.
fn recount(state: &State, findings: &mut Vec<Finding>) {
    let mut owing = BTreeMap::<Seq, u32>::new();
    for seq in state.shapes.values().flat_map(|shape| &shape.pending) {
        *owing.entry(*seq).or_default() += 1;
    }
    for (seq, txn) in state.window.iter() {
        let counted = owing.remove(&seq).unwrap_or_default();
        if counted != txn.owed {
            let detail = format!("{} are held to owe transaction {seq}, and {counted} do", txn.owed);
            findings.push((Invariant::F5, None, None, detail));
        }
    }
    if let Some((seq, count)) = owing.into_iter().next() {
        let detail = format!("{count} owe transaction {seq}, which is not in the window");
        findings.push((Invariant::F5, None, None, detail));
    }
}

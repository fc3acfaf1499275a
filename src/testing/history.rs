//! A history in memory, and what a test does with one.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use crate::domain::{EventId, Handle, Sid, SidSet};
use crate::events::{self, Event, FlushEvent, Recorded, StreamEvent};
use crate::journal::{JournalError, OfflineJournal, Reading};
use crate::projections::forensics::{Checker, Names, Violation, sentence, subject};
use crate::state::State;

use super::model::{self, Choices, Mutation};

/// Events shown where a test fails with a history.
const SHOWN_MAX: usize = 40;

/// Events in order, on top of the state before them (nothing at all, or the oldest checkpoint of a journal whose
/// beginning is gone).
#[derive(Clone, PartialEq)]
pub struct History {
    start: State,
    events: Vec<Recorded>,
}

/// A journal that cannot be a test.
#[derive(Debug, thiserror::Error)]
pub enum HistoryError {
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// Events are missing or damaged: whatever a test said of it might be said of the damage.
    #[error("the journal is not whole: {0}")]
    Damaged(String),
}

impl History {
    /// Reads a journal: a data directory, its archive, a segment, or an exported file.
    ///
    /// # Errors
    /// There is none, or it is damaged.
    pub fn open(path: impl AsRef<Path>) -> Result<History, HistoryError> {
        let journal = OfflineJournal::open(path.as_ref())?;
        if let Some(finding) = journal.findings().first() {
            return Err(HistoryError::Damaged(finding.to_string()));
        }
        let mut events = Vec::new();
        for reading in journal.read(EventId(1)) {
            match reading {
                Reading::Entry(entry) => {
                    let decoded = events::decode(&entry.bytes);
                    let broken = |error| HistoryError::Damaged(format!("event {}: {error}", entry.id));
                    events.push(decoded.map_err(broken)?);
                }
                Reading::Finding(finding) => return Err(HistoryError::Damaged(finding.to_string())),
            }
        }
        let first = events.first().map_or(EventId(1), |recorded: &Recorded| recorded.id);
        if first <= EventId(1) {
            return Ok(History { start: State::default(), events });
        }
        let archived = journal.states().iter().filter_map(|state| state.load().ok());
        let start = archived
            .chain(journal.checkpoints().0)
            .filter(|saved| saved.upto.next() >= first)
            .min_by_key(|saved| saved.upto)
            .and_then(|saved| State::from_bytes(&saved.state));
        let missing = || HistoryError::Damaged(format!("nothing is known of what came before event {first}"));
        let start = start.ok_or_else(missing)?;
        events.retain(|recorded| recorded.id > start.last);
        Ok(History { start, events })
    }

    /// A history of your own.
    #[must_use]
    pub fn of(events: Vec<Recorded>) -> History {
        History { start: State::default(), events }
    }

    /// What the engine makes of a seed, always the same: see [`super::histories`].
    ///
    /// # Panics
    /// If the engine breaks a promise of its own.
    #[must_use]
    pub fn seeded(seed: u64) -> History {
        History::chosen(Choices::seeded(seed))
    }

    pub(super) fn chosen(choices: Choices) -> History {
        let world = model::run(choices, Mutation::None, false);
        assert_eq!(world.failure, None, "the engine keeps its promises");
        History::of(world.disk.history)
    }

    #[must_use]
    pub fn events(&self) -> &[Recorded] {
        &self.events
    }

    /// The state after the last event.
    #[must_use]
    pub fn fold(&self) -> State {
        self.fold_upto(EventId(u64::MAX))
    }

    /// The state after an event.
    #[must_use]
    pub fn fold_upto(&self, upto: EventId) -> State {
        let mut state = self.start.clone();
        self.events
            .iter()
            .take_while(|recorded| recorded.id <= upto)
            .for_each(|recorded| state.apply(recorded));
        state
    }

    /// Every invariant that is broken, as `shapefold journal verify` finds it.
    #[must_use]
    pub fn violations(&self) -> Vec<Violation> {
        let fresh = self.start.last == EventId(0);
        let mut checker = if fresh { Checker::new() } else { Checker::from_state(self.start.clone()) };
        self.events.iter().for_each(|recorded| checker.observe(recorded));
        checker.finish().1
    }

    /// The first of them.
    #[must_use]
    pub fn first_violation(&self) -> Option<Violation> {
        self.violations().into_iter().min_by_key(|violation| violation.event)
    }

    /// The shapes that events are about, with their handles where those are known.
    #[must_use]
    pub fn shapes(&self) -> BTreeMap<Sid, Option<Handle>> {
        let mut names = Names::of(&self.start);
        let mut sids: Vec<Sid> = self.start.shapes.keys().copied().collect();
        for recorded in &self.events {
            names.learn(recorded);
            sids.extend(subject(&recorded.event));
        }
        sids.into_iter().map(|sid| (sid, names.handle(sid))).collect()
    }

    /// The first so many events.
    #[must_use]
    pub fn prefix(&self, events: usize) -> History {
        let events = self.events[..events.min(self.events.len())].to_vec();
        History { start: self.start.clone(), events }
    }

    /// The same without one shape: as if it had never been. Events are numbered anew.
    #[must_use]
    pub fn without(&self, sid: Sid) -> History {
        let mut start = self.start.clone();
        start.shapes.remove(&sid);
        let mut numbers = BTreeMap::new();
        let mut events: Vec<Recorded> = Vec::new();
        for recorded in self.events.iter().filter(|recorded| subject(&recorded.event) != Some(sid)) {
            let id = EventId(start.last.0 + events.len() as u64 + 1);
            numbers.insert(recorded.id, id);
            let because = recorded.because.and_then(|because| match because <= start.last {
                true => Some(because),
                false => numbers.get(&because).copied(),
            });
            events.push(Recorded { id, because, event: leave_out(&recorded.event, sid), ..recorded.clone() });
        }
        History { start, events }
    }

    /// The smallest history found for which `fails` still holds: the shortest beginning, without every shape that
    /// it can do without. Asks `fails` about as often as there are shapes, and the logarithm of the events.
    /// If it does not hold of the whole, that is what comes back.
    #[must_use]
    pub fn shrink(&self, fails: impl Fn(&History) -> bool) -> History {
        if !fails(self) {
            return self.clone();
        }
        let mut small = self.shortest(&fails);
        for sid in small.shapes().into_keys() {
            let without = small.without(sid);
            if fails(&without) {
                small = without;
            }
        }
        small.shortest(&fails)
    }

    /// Halves, as if what fails once went on to fail; then event by event, since it need not.
    fn shortest(&self, fails: &impl Fn(&History) -> bool) -> History {
        let (mut passes, mut holds) = (0, self.events.len());
        while passes + 1 < holds {
            let middle = passes + (holds - passes) / 2;
            if fails(&self.prefix(middle)) { holds = middle } else { passes = middle }
        }
        self.prefix(holds)
    }
}

/// The event as it would have been without that shape among others.
fn leave_out(event: &Event, sid: Sid) -> Event {
    let without = |set: &SidSet| set.iter().filter(|own| *own != sid).collect::<SidSet>();
    let mut event = event.clone();
    match &mut event {
        Event::Stream(StreamEvent::TxnRouted { set, .. } | StreamEvent::TxnRedelivered { set, .. }) => {
            *set = without(set);
        }
        Event::Flush(FlushEvent::Flushed { shapes } | FlushEvent::Watermark { except: shapes, .. }) => {
            shapes.retain(|(own, _)| *own != sid);
        }
        Event::Ownership(_)
        | Event::Stream(_)
        | Event::Shape(_)
        | Event::Consumer(_)
        | Event::Flush(_)
        | Event::Journal(_) => {}
    }
    event
}

/// In sentences: this is what a failing test prints.
impl fmt::Debug for History {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut names = Names::of(&self.start);
        self.events.iter().for_each(|recorded| names.learn(recorded));
        writeln!(f, "{} events after event {}", self.events.len(), self.start.last)?;
        let left_out = self.events.len().saturating_sub(SHOWN_MAX);
        if left_out > 0 {
            writeln!(f, "  ... {left_out} events")?;
        }
        for recorded in &self.events[left_out..] {
            let because = recorded.because.map(|id| format!(" (because of event {id})")).unwrap_or_default();
            let (id, at, what) = (recorded.id, recorded.at, sentence(&recorded.event, &names));
            writeln!(f, "  {id:>6} {at} {what}{because}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::histories;
    use super::*;

    #[test]
    fn a_seed_is_a_history_and_a_history_is_sound() {
        let (one, again) = (History::seeded(7), History::seeded(7));
        assert!(one == again && one.events().len() > 50, "{} events", one.events().len());
        assert_ne!(one, History::seeded(8));
        for seed in 0..20 {
            assert_eq!(History::seeded(seed).violations(), []);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]
        /// A fold carried on is the fold of the whole; so is one that was saved and read back.
        #[test]
        fn histories_fold_in_parts(history in histories(), at in any::<prop::sample::Index>()) {
            prop_assert_eq!(history.violations(), []);
            let cut = at.index(history.events().len() + 1);
            let mut state = State::from_bytes(&history.prefix(cut).fold().to_bytes()).expect("reads back");
            history.events()[cut..].iter().for_each(|recorded| state.apply(recorded));
            prop_assert_eq!(state, history.fold());
        }

        /// What a shape does is its own business: without it the others are as they were.
        #[test]
        fn the_others_are_as_they_were(history in histories(), which in any::<prop::sample::Index>()) {
            let shapes: Vec<Sid> = history.shapes().into_keys().collect();
            prop_assume!(!shapes.is_empty());
            let sid = shapes[which.index(shapes.len())];
            let without = history.without(sid);
            prop_assert!(without.events().len() < history.events().len());
            prop_assert!(!without.shapes().contains_key(&sid));
            let (fold, other) = (history.fold(), without.fold());
            for (own, shape) in &other.shapes {
                prop_assert_eq!(&shape.pending, &fold.shapes[own].pending);
                prop_assert_eq!(shape.life, fold.shapes[own].life);
            }
        }
    }

    /// What proptest finds by shrinking choices is small.
    #[test]
    fn a_failing_property_shrinks() {
        use proptest::test_runner::RngAlgorithm;
        // The same histories in every run: how far shrinking comes in so many steps depends on where it begins.
        let config = ProptestConfig {
            cases: 200,
            failure_persistence: None,
            max_shrink_iters: 20_000,
            ..ProptestConfig::default()
        };
        let rng = proptest::test_runner::TestRng::deterministic_rng(RngAlgorithm::ChaCha);
        let mut runner = proptest::test_runner::TestRunner::new_with_rng(config, rng);
        let lives = |history: History| {
            let created = history.events().iter().filter(|recorded| recorded.event.name() == "ShapeCreated");
            prop_assert!(created.count() < 2, "two shapes");
            Ok(())
        };
        let failed = runner.run(&histories(), lives).expect_err("some history has two shapes");
        let proptest::test_runner::TestError::Fail(_, smallest) = failed else { panic!("{failed:?}") };
        let created = smallest.events().iter().filter(|recorded| recorded.event.name() == "ShapeCreated");
        assert_eq!(created.count(), 2, "no more than it takes: {smallest:?}");
    }
}

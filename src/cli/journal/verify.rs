//! Checking every invariant, and asking what other settings would have decided.

use std::collections::VecDeque;
use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use crate::domain::EventId;
use crate::engine::Policy;
use crate::events::Event;
use crate::journal::ArchivedState;
use crate::projections::forensics::{
    Alternative, Checker, Difference, Invariant, Names, Observed, Violation, WhatIf as Other, commas,
    concerns, parse_span, sentence, subject,
};
use crate::state::State;

use super::source::{Source, archived_state};
use super::{DAMAGED, Failure, VIOLATED, Where};

/// Violations and damages listed one by one.
const LISTED_MAX: usize = 12;
/// Events shown as the context of a violation.
const CONTEXT_MAX: usize = 6;

#[derive(Debug, clap::Args)]
pub struct Verify {
    #[command(flatten)]
    journal: Where,
}

/// What one pass over the journal found.
#[derive(Default)]
struct Findings {
    damage: Vec<String>,
    damages: u64,
    violations: Vec<Violation>,
    events: u64,
    first: EventId,
    /// Events whose beginning is retired or damaged, up to the next checkpoint.
    unchecked: u64,
}

impl Verify {
    pub fn run(&self, out: &mut impl Write) -> Result<ExitCode, Failure> {
        let source = self.journal.open()?;
        let found = check(&source);
        for damage in found.damage.iter().take(LISTED_MAX) {
            writeln!(out, "damage: {damage}")?;
        }
        if found.damages > LISTED_MAX as u64 {
            writeln!(out, "and {} more damaged places", found.damages - LISTED_MAX as u64)?;
        }
        for violation in found.violations.iter().take(LISTED_MAX) {
            writeln!(out, "violated: {violation}")?;
        }
        if found.violations.len() > LISTED_MAX {
            writeln!(out, "and {} more violations", found.violations.len() - LISTED_MAX)?;
        }
        let first = found.violations.iter().min_by_key(|violation| violation.event);
        if let Some(first) = first {
            context(&source, first, out)?;
        }
        writeln!(
            out,
            "{} events from event {}, {} damaged places, {} broken invariants",
            found.events,
            found.first,
            found.damages,
            found.violations.len()
        )?;
        if found.unchecked > 0 {
            writeln!(
                out,
                "{} events were not checked: what comes before them is retired or damaged, and no checkpoint stands in for it",
                found.unchecked
            )?;
        }
        Ok(match (found.damages, found.violations.len()) {
            (0, 0) => ExitCode::SUCCESS,
            (0, _) => ExitCode::from(VIOLATED),
            _ => ExitCode::from(DAMAGED),
        })
    }
}

fn check(source: &Source) -> Findings {
    let mut found = Findings::default();
    let (checkpoints, damaged) = source.journal().checkpoints();
    let states: Vec<State> = checkpoints.iter().filter_map(|saved| State::from_bytes(&saved.state)).collect();
    for finding in source.journal().findings().iter().chain(&damaged) {
        found.damage(finding.to_string());
    }
    let archived = source.journal().states();
    let mut checker: Option<Checker> = None;
    // Once events are missing, the fold is not what it was, until a checkpoint says so anew: what lies
    // between is not checked.
    for reading in source.readings(EventId(1)) {
        let recorded = match reading {
            Ok(recorded) => recorded,
            Err(damage) => {
                found.damage(damage);
                found.close(checker.take(), false);
                continue;
            }
        };
        found.events += 1;
        if found.events == 1 {
            found.first = recorded.id;
        }
        if checker.is_none() {
            let known = states.iter().find(|state| state.last.next() == recorded.id);
            let archived = archived.iter().find(|state| state.mark.upto.next() == recorded.id);
            checker = match (known, archived.and_then(archived_state)) {
                (Some(state), _) => Some(Checker::from_state(state.clone())),
                (None, Some(state)) => Some(Checker::from_state(state)),
                (None, None) if recorded.id <= EventId(1) => Some(Checker::new()),
                (None, None) => None,
            };
        }
        match &mut checker {
            Some(checker) => {
                checker.observe(&recorded);
                if let Some(saved) = archived.iter().find(|state| state.mark.upto == recorded.id) {
                    found.compare(saved, checker.state());
                }
            }
            None => found.unchecked += 1,
        }
    }
    found.close(checker, true);
    found
}

/// The first violation, with what the same shape (or the same topic) saw right before it.
fn context(source: &Source, violation: &Violation, out: &mut impl Write) -> Result<(), Failure> {
    writeln!(out, "the first: {violation}")?;
    let mut state = source.beginning();
    let mut names = Names::of(&state);
    let wanted = violation.sid;
    let ownership = matches!(violation.invariant, Invariant::O1 | Invariant::O2 | Invariant::O4);
    let mut before = VecDeque::new();
    for recorded in source.events(state.last.next()) {
        names.learn(&recorded);
        state.apply(&recorded);
        let last = recorded.id >= violation.event;
        let related = match wanted {
            _ if ownership => matches!(recorded.event, Event::Ownership(_)),
            Some(sid) => concerns(&recorded.event, sid),
            None => subject(&recorded.event).is_none(),
        };
        if related || last {
            before.push_back(recorded);
            if before.len() > CONTEXT_MAX {
                before.pop_front();
            }
        }
        if last {
            break;
        }
    }
    for recorded in before {
        let mark = if recorded.id == violation.event { ">" } else { " " };
        let epoch = recorded.epoch;
        writeln!(
            out,
            "{mark} {:>8} {} epoch {epoch} {}",
            recorded.id,
            recorded.at,
            sentence(&recorded.event, &names)
        )?;
    }
    Ok(())
}

/// Which decisions would have been others under other settings.
///
/// The history is followed as it was. Not known, and not guessed: what would have come of another decision
/// (whether one more restart would have succeeded, what a shape that had been kept would have owed), when
/// exactly the watch over progress looked, and anything that depends on inputs which left no event.
#[derive(Debug, clap::Args)]
pub struct WhatIf {
    #[command(flatten)]
    journal: Where,
    /// Attempts to restart a writer before its shape is given up.
    #[arg(long, default_value_t = Policy::default().writer_attempts_max)]
    writer_attempts: u32,
    /// What is done about a writer that ends while it owes something.
    #[arg(long, value_enum, default_value = "restart")]
    exit_policy: ExitPolicy,
    /// How long a shape may make no progress before it is suspected; after as long again it is given up.
    #[arg(long, default_value = "60s", value_parser = grace)]
    stall_grace: Duration,
    /// Shapes that may be given up for stalling at a time.
    #[arg(long, default_value_t = Policy::default().stall_invalidations_max)]
    stall_invalidations: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum ExitPolicy {
    /// It is started again, up to --writer-attempts times, and sent what it owes.
    Restart,
    /// Its shape is given up at once.
    GiveUp,
}

fn grace(text: &str) -> Result<Duration, String> {
    parse_span(text).ok_or_else(|| "a span such as 30s or 5 min".to_owned())
}

impl WhatIf {
    pub fn run(&self, out: &mut impl Write) -> Result<(), Failure> {
        let source = self.journal.open()?;
        let mut state = source.beginning();
        let mut names = Names::of(&state);
        let alternative = Alternative {
            writer_attempts_max: match self.exit_policy {
                ExitPolicy::Restart => self.writer_attempts,
                ExitPolicy::GiveUp => 0,
            },
            stall_grace: self.stall_grace,
            stall_invalidations_max: self.stall_invalidations,
        };
        let mut other = Other::new(alternative, &state);
        let mut count = 0_usize;
        let mut tell = |difference: Difference, names: &Names| {
            count += 1;
            if count > LISTED_MAX {
                return Ok(());
            }
            let (event, at, shape) = (difference.event, difference.at, names.call(difference.sid));
            writeln!(out, "{event:>8} {at} shape {shape} {}", difference.text)
        };
        for recorded in source.events(state.last.next()) {
            names.learn(&recorded);
            let before = Observed::before(&state, &recorded);
            state.apply(&recorded);
            for difference in other.observe(&before, &state, &recorded) {
                tell(difference, &names)?;
            }
        }
        if let Some(difference) = other.decided_nothing(None) {
            tell(difference, &names)?;
        }
        if count > LISTED_MAX {
            writeln!(out, "and {} more", commas((count - LISTED_MAX) as u64))?;
        }
        writeln!(
            out,
            "{} decisions would have been others, {} the same",
            commas(count as u64),
            commas(other.same)
        )?;
        writeln!(
            out,
            "not known: what would have come of them. The journal holds what happened, not what would have."
        )?;
        Ok(())
    }
}

impl Findings {
    fn damage(&mut self, damage: String) {
        self.damages += 1;
        if self.damage.len() < LISTED_MAX {
            self.damage.push(damage);
        }
    }

    /// A state in the archive is what the events before it fold to.
    fn compare(&mut self, saved: &ArchivedState, folded: &State) {
        let name = saved.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        match saved.load() {
            Ok(checkpoint) => {
                // Of another version it may well be: then it is not used, either.
                let differs = State::from_bytes(&checkpoint.state).is_some_and(|state| state != *folded);
                if differs {
                    self.damage(format!("{name} is not what the events up to {} fold to", saved.mark.upto));
                }
            }
            Err(error) => self.damage(error.to_string()),
        }
    }

    /// What a checker found. Where the history breaks off, its end is no end: only what was legal when
    /// it happened can be judged.
    fn close(&mut self, checker: Option<Checker>, at_the_end: bool) {
        let Some(checker) = checker else { return };
        self.violations.extend(if at_the_end { checker.finish().1 } else { checker.violations().to_vec() });
    }
}

//! Checking every invariant, and asking what other settings would have decided.

use std::collections::VecDeque;
use std::io::Write;
use std::time::Duration;

use crate::engine::Policy;
use crate::events::Event;
use crate::projections::forensics::{
    Alternative, Difference, Names, Observed, Violation, WhatIf as Other, commas, concerns, parse_span,
    sentence, subject,
};

use super::{DAMAGED, Failure, VIOLATED, Where};
use crate::inspect::{DAMAGES_KEPT_MAX, Source, answers, check};
use crate::state::Allowance;

/// Violations and damages listed one by one.
const LISTED_MAX: usize = DAMAGES_KEPT_MAX;
/// Events shown as the context of a violation.
const CONTEXT_MAX: usize = 6;

#[derive(Debug, clap::Args)]
pub struct Verify {
    #[command(flatten)]
    pub journal: Where,
    /// As JSON; the exit code is the same.
    #[arg(long)]
    json: bool,
}

impl Verify {
    pub fn run(&self, out: &mut impl Write) -> Result<u8, Failure> {
        let source = self.journal.open()?;
        let found = check(&source);
        let code = match (found.damages, found.violations.len()) {
            (0, 0) => 0,
            (0, _) => VIOLATED,
            _ => DAMAGED,
        };
        if self.json {
            writeln!(out, "{}", answers::findings(&found, usize::MAX))?;
            return Ok(code);
        }
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
        Ok(code)
    }
}

/// The first violation, with what the same shape (or the same topic) saw right before it.
fn context(source: &Source, violation: &Violation, out: &mut impl Write) -> Result<(), Failure> {
    writeln!(out, "the first: {violation}")?;
    let mut state = source.beginning();
    let mut names = Names::of(&state);
    let wanted = violation.sid;
    let ownership = violation.invariant.is_of_ownership();
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
    pub journal: Where,
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
    /// Every difference as one JSON object a line, and last one with the counts.
    #[arg(long)]
    json: bool,
    /// Shapes that may be given up on suspicion within ten minutes, and not more than the service's own share of
    /// all. Without it, as many as were.
    #[arg(long)]
    give_up_shapes: Option<usize>,
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
            give_up: self
                .give_up_shapes
                .map(|shapes_max| Allowance { shapes_max, ..Policy::default().give_up }),
        };
        let mut other = Other::new(alternative, &state);
        let mut count = 0_usize;
        let mut tell = |difference: Difference, names: &Names| {
            count += 1;
            let (event, at, shape) = (difference.event, difference.at, names.call(difference.sid));
            if self.json {
                let line = serde_json::json!({
                    "event": event, "at": at.to_string(), "shape": shape, "text": difference.text,
                });
                return writeln!(out, "{line}");
            }
            if count > LISTED_MAX {
                return Ok(());
            }
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
        if self.json {
            let counts = serde_json::json!({"others": count, "same": other.same});
            return Ok(writeln!(out, "{counts}")?);
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

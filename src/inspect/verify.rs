//! One pass over a journal that checks every invariant and locates every damage.

use std::time::Duration;

use crate::domain::EventId;
use crate::journal::ArchivedState;
use crate::projections::forensics::{Checker, Violation};
use crate::state::State;

use super::{Saved, Source};

/// Damaged places that are kept word by word; the others are counted.
pub const DAMAGES_KEPT_MAX: usize = 12;

/// What one pass over the journal found.
#[derive(Clone, Debug, Default)]
pub struct Findings {
    pub damage: Vec<String>,
    pub damages: u64,
    pub violations: Vec<Violation>,
    pub events: u64,
    pub first: EventId,
    /// Events whose beginning is retired or damaged, up to the next checkpoint.
    pub unchecked: u64,
}

/// Checks everything that is there.
#[must_use]
pub fn check(source: &Source) -> Findings {
    let mut found = Findings::default();
    let (_, damaged) = source.journal().checkpoints();
    for finding in source.journal().findings().iter().chain(&damaged) {
        found.damage(finding.to_string());
    }
    let (archived, saved) = (source.journal().states(), Saved::of(source));
    let grace = source.journal().configuration().and_then(grace).unwrap_or_default();
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
            checker = match saved.before(recorded.id) {
                Some(state) => Some(Checker::from_state(state)),
                None if recorded.id <= EventId(1) => Some(Checker::new()),
                None => None,
            }
            .map(|checker| checker.with_grace(grace));
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

/// The grace period among the settings of the newest owner.
fn grace(configuration: &str) -> Option<Duration> {
    let settings: serde_json::Value = serde_json::from_str(configuration).ok()?;
    settings.get("stall_grace_ms")?.as_u64().map(Duration::from_millis)
}

impl Findings {
    fn damage(&mut self, damage: String) {
        self.damages += 1;
        if self.damage.len() < DAMAGES_KEPT_MAX {
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

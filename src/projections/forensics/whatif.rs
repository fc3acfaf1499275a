//! Which decisions would have been others under other settings.
//!
//! A journal holds events, not inputs: the whole run cannot be repeated. What can be derived is each
//! decision whose grounds are in the journal: whether an exit led to a restart, and when a shape without
//! progress was suspected and given up. The history is followed as it was; what would have come *of*
//! another decision is not known and not guessed.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::domain::{EventId, Sid, Timestamp};
use crate::events::{ConsumerEvent, Event, InvalidationCause, Recorded, ShapeEvent};
use crate::projections::forensics::{Payer, payer};
use crate::projections::{FlushTracker, Projection};
use crate::state::{Allowance, OwnerPhase, State, StreamPhase, is_suspicion};

/// The engine looks at progress this often; the journal does not say when it did.
const TICK: Duration = Duration::from_secs(1);

/// The other settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Alternative {
    pub writer_attempts_max: u32,
    pub stall_grace: Duration,
    pub stall_invalidations_max: usize,
    /// `None`: as many as were.
    pub give_up: Option<Allowance>,
}

/// One decision that would have been another.
#[derive(Clone, Debug, PartialEq)]
pub struct Difference {
    pub event: EventId,
    pub at: Timestamp,
    pub sid: Sid,
    pub text: String,
}

/// Follows a history under other settings.
#[derive(Debug)]
pub struct WhatIf {
    other: Alternative,
    tracker: FlushTracker,
    ticked: Timestamp,
    /// Suspected, or given up, under the other settings; until it makes progress.
    suspected: BTreeMap<Sid, Timestamp>,
    given_up: BTreeSet<Sid>,
    /// Given up for exits under the other settings, of which the journal knows nothing more.
    ended: BTreeSet<Sid>,
    /// An exit that owed something, until the next event shows what was decided upon it.
    exited: Option<(EventId, Timestamp, Sid)>,
    /// When shapes were given up, of late and long ago.
    spent: Vec<Timestamp>,
    /// Decisions that were the same.
    pub same: u64,
}

impl WhatIf {
    #[must_use]
    pub fn new(other: Alternative, state: &State) -> WhatIf {
        WhatIf {
            other,
            tracker: FlushTracker::recompute(state),
            ticked: state.at,
            suspected: BTreeMap::new(),
            given_up: BTreeSet::new(),
            ended: BTreeSet::new(),
            exited: None,
            spent: Vec::new(),
            same: 0,
        }
    }

    /// Follows one event; `before` is the state before it and `after` the state after it.
    pub fn observe(&mut self, before: &Observed, after: &State, recorded: &Recorded) -> Vec<Difference> {
        let mut differences = Vec::new();
        differences.extend(self.decided_nothing(Some(recorded)));
        self.tick(after, recorded, &mut differences);
        match &recorded.event {
            Event::Consumer(ConsumerEvent::RestartScheduled { sid, attempt, .. }) => {
                if *attempt > self.other.writer_attempts_max {
                    if self.ended.insert(*sid) {
                        let text = format!(
                            "would have been given up (WriterFailed) instead of attempt {attempt} to restart its writer"
                        );
                        differences.push(difference(recorded, *sid, text));
                    }
                } else {
                    self.same += 1;
                }
            }
            Event::Consumer(ConsumerEvent::StallSuspected { sid, age_ms, .. }) => {
                if Duration::from_millis(*age_ms) <= self.other.stall_grace
                    && !self.suspected.contains_key(sid)
                {
                    let text = format!("would not have been suspected yet, after {age_ms} ms");
                    differences.push(difference(recorded, *sid, text));
                } else {
                    self.same += 1;
                }
            }
            Event::Shape(ShapeEvent::Invalidated { sid, cause }) => {
                self.invalidated(before, recorded, *sid, *cause, &mut differences);
                if is_suspicion(*cause) {
                    self.spent.push(recorded.at);
                    differences.extend(self.over_budget(after, recorded, *sid));
                }
            }
            Event::Consumer(ConsumerEvent::Exited { sid, pending, .. })
                if *pending > 0 && after.owner.phase == OwnerPhase::Active =>
            {
                self.exited = Some((recorded.id, recorded.at, *sid));
            }
            Event::Consumer(_)
            | Event::Shape(_)
            | Event::Ownership(_)
            | Event::Stream(_)
            | Event::Flush(_)
            | Event::Journal(_) => {}
        }
        self.tracker.apply(after, recorded);
        differences
    }

    /// An exit is decided upon at once: if what comes next is something else, nothing was decided.
    /// `None` where the history ends.
    pub fn decided_nothing(&mut self, next: Option<&Recorded>) -> Option<Difference> {
        let (event, at, sid) = self.exited.take()?;
        let decided = match next.map(|next| &next.event) {
            Some(Event::Consumer(
                ConsumerEvent::RestartScheduled { sid: own, .. } | ConsumerEvent::Started { sid: own, .. },
            ))
            | Some(Event::Shape(ShapeEvent::Invalidated { sid: own, .. })) => *own == sid,
            Some(
                Event::Consumer(_)
                | Event::Shape(_)
                | Event::Ownership(_)
                | Event::Stream(_)
                | Event::Flush(_)
                | Event::Journal(_),
            )
            | None => false,
        };
        if decided {
            return None;
        }
        let text = if self.other.writer_attempts_max == 0 {
            "would have been given up (WriterFailed): nothing was decided upon the end of its writer"
        } else {
            "would have had its writer started again (attempt 1): nothing was decided upon the end of it"
        };
        Some(Difference { event, at, sid, text: text.to_owned() })
    }

    fn invalidated(
        &mut self,
        before: &Observed,
        recorded: &Recorded,
        sid: Sid,
        cause: InvalidationCause,
        differences: &mut Vec<Difference>,
    ) {
        match cause {
            InvalidationCause::WriterFailed { attempts } if attempts < self.other.writer_attempts_max => {
                let text =
                    format!("would have been restarted again: it was given up after {attempts} attempts");
                differences.push(difference(recorded, sid, text));
            }
            InvalidationCause::Stalled => {
                let age = before.progressed_at.map_or(Duration::ZERO, |at| recorded.at.since(at));
                if age <= self.other.stall_grace.saturating_mul(2) {
                    let text =
                        format!("would not have been given up yet, {} s without progress", age.as_secs());
                    differences.push(difference(recorded, sid, text));
                } else {
                    self.same += 1;
                }
            }
            InvalidationCause::WriterFailed { .. } => self.same += 1,
            InvalidationCause::Deleted
            | InvalidationCause::SchemaChanged
            | InvalidationCause::Truncated
            | InvalidationCause::SnapshotFailed
            | InvalidationCause::SnapshotInterrupted
            | InvalidationCause::HistoryBroken
            | InvalidationCause::DataMissed
            | InvalidationCause::Backlog
            | InvalidationCause::OldRowMissing
            | InvalidationCause::PartitionsChanged
            | InvalidationCause::Unpublished
            | InvalidationCause::JournalLost
            | InvalidationCause::StorageDamaged
            | InvalidationCause::Expired
            | InvalidationCause::DependencyGone
            | InvalidationCause::NotNeeded
            | InvalidationCause::MoveBacklog
            | InvalidationCause::MoveFailed => {}
        }
        self.suspected.remove(&sid);
        self.given_up.remove(&sid);
    }

    /// Whether a shape that was given up would have been kept, because too many were lately.
    fn over_budget(&self, after: &State, recorded: &Recorded, sid: Sid) -> Option<Difference> {
        let give_up = self.other.give_up?;
        let recent = |at: &&Timestamp| recorded.at.since(**at) < give_up.window;
        let spent = self.spent.iter().rev().take_while(recent).count();
        let allowed = give_up.of(after.shapes.len());
        (spent > allowed).then(|| {
            let text = format!(
                "would have been kept (BudgetExhausted): {spent} shapes were given up in {} s, {allowed} allowed",
                give_up.window.as_secs()
            );
            difference(recorded, sid, text)
        })
    }

    /// What the watch over progress would have done by now.
    fn tick(&mut self, state: &State, recorded: &Recorded, differences: &mut Vec<Difference>) {
        if recorded.at.since(self.ticked) < TICK {
            return;
        }
        let ticks = recorded.at.since(self.ticked).as_secs().max(1);
        self.ticked = recorded.at;
        if state.stream.phase != StreamPhase::Streaming {
            return;
        }
        let mut budget =
            self.other.stall_invalidations_max.saturating_mul(usize::try_from(ticks).unwrap_or(usize::MAX));
        let blockers: Vec<_> = self.tracker.blockers().collect();
        let owing: BTreeSet<Sid> = blockers.iter().map(|(_, sid)| *sid).collect();
        self.suspected.retain(|sid, _| owing.contains(sid));
        self.given_up.retain(|sid| owing.contains(sid));
        for (seq, sid) in blockers {
            let Some(shape) = state.shape(sid) else { continue };
            let age = recorded.at.since(shape.progressed_at);
            let waits =
                matches!(payer(state, shape, seq), Payer::Snapshot | Payer::Redelivery | Payer::Owner);
            if waits || age <= self.other.stall_grace || self.given_up.contains(&sid) {
                continue;
            }
            if let std::collections::btree_map::Entry::Vacant(slot) = self.suspected.entry(sid) {
                slot.insert(recorded.at);
                if !shape.suspected {
                    let text =
                        format!("would have been suspected by now, {} s without progress", age.as_secs());
                    differences.push(difference(recorded, sid, text));
                }
            } else if age > self.other.stall_grace.saturating_mul(2) && budget > 0 {
                budget -= 1;
                self.given_up.insert(sid);
                let text = format!(
                    "would have been given up (Stalled) by now, {} s without progress",
                    age.as_secs()
                );
                differences.push(difference(recorded, sid, text));
            }
        }
    }
}

/// What of the state before an event is needed once the event is folded in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    pub progressed_at: Option<Timestamp>,
}

impl Observed {
    #[must_use]
    pub fn before(state: &State, recorded: &Recorded) -> Observed {
        let sid = crate::projections::forensics::subject(&recorded.event);
        let shape = sid.and_then(|sid| state.shape(sid));
        Observed { progressed_at: shape.map(|shape| shape.progressed_at) }
    }
}

fn difference(recorded: &Recorded, sid: Sid, text: String) -> Difference {
    Difference { event: recorded.id, at: recorded.at, sid, text }
}

//! Everything unusual in a history, clustered into stories.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::domain::{EventId, Sid, Timestamp};
use crate::events::{
    ConsumerEvent, Event, ExitCause, FlushEvent, InvalidationCause, JournalEvent, OwnershipEvent,
    PreviousEnd, Recorded, ShapeEvent, StopCause, StreamEvent,
};
use crate::projections::forensics::{Checker, Invariant, Names, Violation, gap, sentence, subject};
use crate::state::{OwnerPhase, State};

/// The boundary stands still while the stream moves on, for longer than this: a stall.
const STANDSTILL: Duration = Duration::from_secs(60);
/// Anomalies kept; those beyond are only counted.
const ANOMALIES_MAX: usize = 100_000;

/// Anomalies of one kind that are told one by one.
const EXAMPLES_MAX: usize = 5;

/// What kind of anomaly. The order is how telling it is as a cause where two happen at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    OwnershipOverlap,
    OwnershipLost,
    OwnerCrashed,
    JournalTorn,
    HistoryBroken,
    StorageFault,
    StreamLost,
    WriterDied,
    SnapshotFailed,
    Orphaned,
    Violation,
    Stall,
    Standstill,
    ViewsDiffer,
    ShapeLost,
}

/// One thing out of order.
#[derive(Clone, Debug, PartialEq)]
pub struct Anomaly {
    pub kind: Kind,
    pub event: EventId,
    pub at: Timestamp,
    pub because: Option<EventId>,
    pub sid: Option<Sid>,
    pub text: String,
}

/// Anomalies that belong together in time.
#[derive(Clone, Debug, PartialEq)]
pub struct Story {
    pub first: Anomaly,
    pub from: Timestamp,
    pub until: Timestamp,
    /// It has not ended where the journal ends.
    pub open: bool,
    pub kinds: BTreeMap<Kind, usize>,
    pub shapes: BTreeSet<Sid>,
    pub invalidated: usize,
    /// The first few of each kind.
    pub examples: Vec<Anomaly>,
    /// The widest gap while it lasted.
    pub gap_bytes: u64,
}

/// The boundary that does not move.
#[derive(Clone, Debug)]
struct Still {
    since: Timestamp,
    event: EventId,
    boundary: u64,
    told: bool,
}

/// Follows a history and collects what is unusual.
#[derive(Clone, Debug)]
pub struct Incidents {
    checker: Checker,
    names: Names,
    anomalies: Vec<Anomaly>,
    dropped: u64,
    still: Option<Still>,
    /// Stretches of standstill: from, until, widest gap, open at the end.
    stalls: Vec<(Timestamp, Timestamp, u64, bool)>,
    violations_seen: usize,
    /// Events are missing since the last state that is known to be right: the fold proves nothing.
    lost: bool,
}

impl Incidents {
    #[must_use]
    pub fn new(state: State) -> Incidents {
        let names = Names::of(&state);
        let fresh = state.last == EventId(0);
        Incidents {
            checker: if fresh { Checker::new() } else { Checker::from_state(state) },
            names,
            anomalies: Vec::new(),
            dropped: 0,
            still: None,
            stalls: Vec::new(),
            violations_seen: 0,
            lost: false,
        }
    }

    /// Whether events are missing before this one, or before an earlier one and the fold has not been set right
    /// since: then no invariant is judged.
    #[must_use]
    pub fn is_lost_before(&self, recorded: &Recorded) -> bool {
        self.lost || self.misses(recorded)
    }

    /// Events were missing before: no invariant is judged until [`Incidents::find_way`].
    pub fn lose_way(&mut self) {
        self.lost = true;
    }

    /// Sets the fold right before the event that follows `state`.
    pub fn find_way(&mut self, state: State, next: &Recorded) {
        self.note_missing(next);
        self.names.learn_all(&state);
        self.checker = Checker::from_state(state);
        (self.violations_seen, self.lost) = (0, false);
    }

    fn misses(&self, recorded: &Recorded) -> bool {
        let last = self.checker.state().last;
        last != EventId(0) && recorded.id > last.next()
    }

    fn note_missing(&mut self, recorded: &Recorded) {
        if !self.misses(recorded) {
            return;
        }
        let (first, last) = (self.checker.state().last.next(), recorded.id.0 - 1);
        let text = if first.0 == last {
            format!("event {first} is missing")
        } else {
            format!("events {first} to {last} are missing: no rule is checked until the next saved state")
        };
        let (event, at) = (recorded.id, recorded.at);
        self.push(Anomaly { kind: Kind::JournalTorn, event, at, because: None, sid: None, text });
        (self.lost, self.still) = (true, None);
    }

    #[must_use]
    pub fn names(&self) -> &Names {
        &self.names
    }

    /// What was unusual so far, in the order in which it was noticed.
    #[must_use]
    pub fn anomalies(&self) -> &[Anomaly] {
        &self.anomalies
    }

    /// The state after what was observed.
    #[must_use]
    pub fn state(&self) -> &State {
        self.checker.state()
    }

    pub fn observe(&mut self, recorded: &Recorded) {
        self.note_missing(recorded);
        self.names.learn(recorded);
        let active = self.checker.state().owner.phase == OwnerPhase::Active;
        let overlap = recorded.epoch < self.checker.state().owner.epoch;
        if let Event::Ownership(OwnershipEvent::Acquired {
            epoch, previous_end: PreviousEnd::Released, ..
        }) = &recorded.event
            && active
        {
            let holder = self.checker.state().owner.epoch;
            let text = format!("epoch {epoch} took the directory while epoch {holder} had not ended");
            self.note(Kind::OwnershipOverlap, recorded, text);
        } else if overlap {
            let holder = self.checker.state().owner.epoch;
            let what = sentence(&recorded.event, &self.names);
            let text =
                format!("epoch {} still wrote after epoch {holder} had taken over: {what}", recorded.epoch);
            let kind = unusual(&recorded.event, active).unwrap_or(Kind::OwnershipOverlap);
            self.note(kind, recorded, text);
        } else if let Some(kind) = unusual(&recorded.event, active) {
            let text = sentence(&recorded.event, &self.names);
            self.note(kind, recorded, text);
        }
        self.checker.observe(recorded);
        if self.lost {
            self.violations_seen = self.checker.violations().len();
        } else {
            self.note_violations();
            self.watch_boundary(recorded);
        }
    }

    fn note(&mut self, kind: Kind, recorded: &Recorded, text: String) {
        self.push(Anomaly {
            kind,
            event: recorded.id,
            at: recorded.at,
            because: recorded.because,
            sid: subject(&recorded.event),
            text,
        });
    }

    fn push(&mut self, anomaly: Anomaly) {
        if self.anomalies.len() < ANOMALIES_MAX {
            self.anomalies.push(anomaly);
        } else {
            self.dropped += 1;
        }
    }

    fn note_violations(&mut self) {
        let fresh: Vec<_> = self.checker.violations()[self.violations_seen..].to_vec();
        self.violations_seen += fresh.len();
        for violation in fresh {
            if is_overlap(&violation) {
                continue;
            }
            let kind = if violation.invariant == Invariant::F2 { Kind::Orphaned } else { Kind::Violation };
            let (event, at, sid) = (violation.event, violation.at, violation.sid);
            self.push(Anomaly { kind, event, at, because: None, sid, text: violation.to_string() });
        }
    }

    fn watch_boundary(&mut self, recorded: &Recorded) {
        let (_, boundary, bytes) = gap(self.checker.state());
        let still = self.still.get_or_insert(Still {
            since: recorded.at,
            event: recorded.id,
            boundary: boundary.0,
            told: false,
        });
        if still.boundary != boundary.0 || bytes == 0 {
            if still.told
                && let Some(stall) = self.stalls.last_mut()
            {
                stall.1 = recorded.at;
                stall.3 = false;
            }
            self.still = None;
            return;
        }
        let lasted = recorded.at.since(still.since);
        if lasted < STANDSTILL {
            return;
        }
        if still.told {
            if let Some(stall) = self.stalls.last_mut() {
                stall.1 = recorded.at;
                stall.2 = stall.2.max(bytes);
            }
            return;
        }
        still.told = true;
        let (since, event) = (still.since, still.event);
        self.stalls.push((since, recorded.at, bytes, true));
        let text = format!("the flushed position stands still at {boundary} while the stream moves on");
        self.push(Anomaly { kind: Kind::Standstill, event, at: since, because: None, sid: None, text });
    }

    /// The stories, and how many anomalies were not kept. Anomalies with less than `apart` between them
    /// belong together.
    #[must_use]
    pub fn finish(mut self, apart: Duration) -> (Vec<Story>, u64, State, Names) {
        let (state, violations) = self.checker.finish();
        let judged = if self.lost { &[][..] } else { &violations[self.violations_seen..] };
        for violation in judged {
            if is_overlap(violation) {
                continue;
            }
            let kind = if violation.invariant == Invariant::F2 { Kind::Orphaned } else { Kind::Violation };
            let (event, at, sid) = (violation.event, violation.at, violation.sid);
            self.anomalies.push(Anomaly { kind, event, at, because: None, sid, text: violation.to_string() });
        }
        self.anomalies.sort_by_key(|anomaly| (anomaly.at, anomaly.event, anomaly.kind));
        let mut stories: Vec<Story> = Vec::new();
        for anomaly in self.anomalies {
            let standstill = (anomaly.kind == Kind::Standstill)
                .then(|| self.stalls.iter().find(|stall| stall.0 == anomaly.at).copied())
                .flatten();
            let until = standstill.map_or(anomaly.at, |stall| stall.1);
            match stories.last_mut().filter(|story| anomaly.at.since(story.until) <= apart) {
                Some(story) => story.add(anomaly, until),
                None => stories.push(Story::begin(anomaly, until)),
            }
            if let (Some((_, _, bytes, open)), Some(story)) = (standstill, stories.last_mut()) {
                story.gap_bytes = story.gap_bytes.max(bytes);
                story.open = story.open || open;
            }
        }
        (stories, self.dropped, state, self.names)
    }
}

/// An overlap of owners is told as such.
fn is_overlap(violation: &Violation) -> bool {
    matches!(violation.invariant, Invariant::O1 | Invariant::O2)
}

impl Story {
    fn begin(anomaly: Anomaly, until: Timestamp) -> Story {
        let mut story = Story {
            first: anomaly.clone(),
            from: anomaly.at,
            until,
            open: false,
            kinds: BTreeMap::new(),
            shapes: BTreeSet::new(),
            invalidated: 0,
            examples: Vec::new(),
            gap_bytes: 0,
        };
        story.add(anomaly, until);
        story
    }

    fn add(&mut self, anomaly: Anomaly, until: Timestamp) {
        self.until = self.until.max(until);
        if anomaly.kind == Kind::ShapeLost {
            self.invalidated += 1;
        }
        self.shapes.extend(anomaly.sid);
        // A standstill is what comes of something else, also where it is dated to the same moment.
        if self.first.kind == Kind::Standstill && anomaly.at.since(self.first.at) <= STANDSTILL {
            self.first = anomaly.clone();
        }
        let count = self.kinds.entry(anomaly.kind).or_default();
        *count += 1;
        if *count <= EXAMPLES_MAX {
            self.examples.push(anomaly);
        }
    }
}

/// What is unusual by itself. `active`: the owner is at work and not draining.
fn unusual(event: &Event, active: bool) -> Option<Kind> {
    match event {
        Event::Ownership(OwnershipEvent::Acquired { previous_end: PreviousEnd::Crashed, .. }) => {
            Some(Kind::OwnerCrashed)
        }
        Event::Ownership(OwnershipEvent::Lost { .. }) => Some(Kind::OwnershipLost),
        Event::Ownership(OwnershipEvent::StorageFault { .. }) => Some(Kind::StorageFault),
        Event::Stream(StreamEvent::HistoryBroken { .. }) => Some(Kind::HistoryBroken),
        Event::Stream(StreamEvent::LockLost { .. }) => Some(Kind::StreamLost),
        Event::Stream(StreamEvent::Stopped { cause, .. }) => match cause {
            StopCause::Drain | StopCause::Idle => None,
            StopCause::Connection | StopCause::Server | StopCause::Protocol | StopCause::Spill => {
                Some(Kind::StreamLost)
            }
        },
        Event::Consumer(ConsumerEvent::Exited { cause, pending, .. }) => match cause {
            ExitCause::Panicked | ExitCause::StorageFault | ExitCause::Ended | ExitCause::Vanished => {
                Some(Kind::WriterDied)
            }
            ExitCause::Suspended | ExitCause::Drained | ExitCause::Removed => {
                (*pending > 0 && active).then_some(Kind::WriterDied)
            }
        },
        Event::Consumer(ConsumerEvent::StallSuspected { .. })
        | Event::Flush(FlushEvent::BudgetExhausted { .. } | FlushEvent::ProgressStopped { .. }) => {
            Some(Kind::Stall)
        }
        Event::Shape(ShapeEvent::SnapshotFailed { .. }) => Some(Kind::SnapshotFailed),
        Event::Shape(ShapeEvent::Invalidated { cause, .. }) => match cause {
            InvalidationCause::Deleted
            | InvalidationCause::SchemaChanged
            | InvalidationCause::Truncated
            | InvalidationCause::PartitionsChanged
            | InvalidationCause::Expired
            | InvalidationCause::DependencyGone
            | InvalidationCause::NotNeeded => None,
            InvalidationCause::SnapshotFailed
            | InvalidationCause::SnapshotInterrupted
            | InvalidationCause::WriterFailed { .. }
            | InvalidationCause::Stalled
            | InvalidationCause::HistoryBroken
            | InvalidationCause::DataMissed
            | InvalidationCause::Backlog
            | InvalidationCause::OldRowMissing
            | InvalidationCause::Unpublished
            | InvalidationCause::JournalLost
            | InvalidationCause::StorageDamaged
            | InvalidationCause::MoveBacklog
            | InvalidationCause::MoveFailed => Some(Kind::ShapeLost),
        },
        Event::Journal(JournalEvent::ProjectionMismatch { .. }) => Some(Kind::ViewsDiffer),
        Event::Journal(JournalEvent::TornTail { .. }) => Some(Kind::JournalTorn),
        Event::Ownership(_)
        | Event::Stream(_)
        | Event::Consumer(_)
        | Event::Shape(_)
        | Event::Flush(_)
        | Event::Journal(_) => None,
    }
}

//! What must hold in every journal. The same checks run in the tests, in the simulator and in
//! `shapefold journal verify`.
//!
//! A check of an *event* asks, against the state before it, whether it was legal. A *standing* check
//! asks of a state whether it may last: it runs where a decision is complete, at acknowledgements
//! and at the end.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;

use crate::domain::{EventId, Lsn, Seq, Sid, SidSet, Timestamp};
use crate::events::{
    AckCause, ConsumerEvent, DestructionCause, DestructionTarget, Event, ExitCause, OwnershipEvent,
    PreviousEnd, Recorded, RemovalStep, ShapeEvent, StreamEvent,
};
use crate::projections::Projections;
use crate::projections::forensics::subject;
use crate::state::{Life, OwnerPhase, Shape, State, StreamPhase, Writer};

/// The rules, by their names in the design: O ownership, S stream, L shape, R writer, N snapshot,
/// F flush, J the journal itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Invariant {
    /// Events are numbered without gaps, and name only earlier ones as their reason.
    J1,
    /// A projection equals the fold.
    J2,
    /// Epochs strictly increase, and do not overlap.
    O1,
    /// An event carries the epoch that is held.
    O2,
    /// Destruction is announced, with an allowed cause, before it is done.
    O3,
    /// Ownership is released with no writer left and no destruction under way, and nothing follows.
    O4,
    /// Nothing is streamed or acknowledged without the advisory lock.
    O8,
    /// Routed transactions are numbered without gaps and ascend by LSN.
    S1,
    /// A keepalive is acknowledged only while nothing is owed.
    S5,
    /// A shape goes through its life in order.
    L1,
    /// A handle is newer than every handle before it.
    L2,
    /// Nothing is routed to a shape that is not routed.
    L4,
    /// A writer starts where none is, with the next number, and only it exits.
    R1,
    /// A writer that owes something is not put to sleep.
    R4,
    /// Nothing that the snapshot contains is routed to the shape.
    N1,
    /// The snapshot is taken after routing began.
    N2,
    /// An acknowledgement covers nothing that is owed.
    F1,
    /// Who owes something has a writer, or a restart or a redelivery to come.
    F2,
    /// Acknowledgements ascend.
    F6,
    /// An acknowledgement is a transaction boundary that the fold arrives at, too.
    F9,
}

/// A rule that does not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    pub invariant: Invariant,
    /// The event that broke it, and when that was.
    pub event: EventId,
    pub at: Timestamp,
    /// The shape that it is about, where it is about one.
    pub sid: Option<Sid>,
    pub detail: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} broken by event {}: {}", self.invariant, self.event, self.detail)
    }
}

/// Folds a history and checks it as it goes.
#[derive(Clone, Debug, Default)]
pub struct Checker {
    state: State,
    projections: Projections,
    violations: Vec<Violation>,
    started: bool,
    /// The last exit of each shape that left something owed: what an orphan is told to begin with.
    exits: BTreeMap<Sid, (EventId, Timestamp)>,
    /// With which event each transaction in the window was handed out, ascending: an orphan whose writer
    /// was gone before begins there.
    routed: VecDeque<(Seq, EventId, Timestamp)>,
    /// The exit that the event before told of; what follows from it comes right behind it.
    after_exit: Option<Sid>,
    /// Orphans that have been told of.
    orphans: BTreeSet<Sid>,
}

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
        for (invariant, detail) in illegal(&self.state, recorded) {
            let (event, at, sid) = (recorded.id, recorded.at, subject(&recorded.event));
            self.push(Violation { invariant, event, at, sid, detail });
        }
        self.state.apply(recorded);
        self.projections.apply(&self.state, recorded);
        if let Some(sid) = self.after_exit.take() {
            self.check_orphan(sid, recorded.id);
        }
        self.follow_exits(recorded);
        self.follow_routing(recorded);
        if matches!(recorded.event, Event::Stream(StreamEvent::AckSent { .. })) {
            self.check_orphans(recorded.id);
        }
    }

    /// The checks of the state that the history ends in; then everything that was found.
    #[must_use]
    pub fn finish(mut self) -> (State, Vec<Violation>) {
        let last = self.state.last;
        self.check_orphans(last);
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

    fn follow_exits(&mut self, recorded: &Recorded) {
        match &recorded.event {
            Event::Consumer(ConsumerEvent::Exited { sid, pending, .. }) if *pending > 0 => {
                self.exits.insert(*sid, (recorded.id, recorded.at));
                self.after_exit = Some(*sid);
            }
            Event::Consumer(ConsumerEvent::Started { sid, .. }) | Event::Shape(ShapeEvent::Gone { sid }) => {
                self.exits.remove(sid);
                self.orphans.remove(sid);
            }
            Event::Consumer(_)
            | Event::Shape(_)
            | Event::Ownership(_)
            | Event::Stream(_)
            | Event::Flush(_)
            | Event::Journal(_) => {}
        }
    }

    fn follow_routing(&mut self, recorded: &Recorded) {
        if let Event::Stream(StreamEvent::TxnRouted { seq, .. }) = &recorded.event {
            self.routed.push_back((*seq, recorded.id, recorded.at));
        }
        let oldest = self.state.window.oldest().map(|(oldest, _)| oldest);
        while self.routed.front().is_some_and(|(seq, ..)| oldest.is_none_or(|oldest| *seq < oldest)) {
            self.routed.pop_front();
        }
    }

    fn check_orphans(&mut self, event: EventId) {
        let owing: Vec<Sid> = self.projections.flush_tracker.blockers().map(|(_, sid)| sid).collect();
        for sid in owing {
            self.check_orphan(sid, event);
        }
    }

    /// Tells of an orphan once, and by the exit that made it one, or by the delivery that nobody took.
    fn check_orphan(&mut self, sid: Sid, event: EventId) {
        let oldest = self.state.shape(sid).and_then(|shape| shape.pending.front().copied());
        let Some(oldest) = oldest.filter(|oldest| is_orphan(&self.state, *oldest, sid)) else { return };
        if self.orphans.insert(sid) {
            let delivered = self.routed.binary_search_by_key(&oldest, |(seq, ..)| *seq).ok();
            let delivered = delivered.and_then(|at| self.routed.get(at)).map(|(_, event, at)| (*event, *at));
            let exited = self.exits.get(&sid).copied();
            let (event, at) = exited.or(delivered).unwrap_or((event, self.state.at));
            let detail = format!("shape {sid} owes transaction {oldest} and nobody is there to pay");
            self.push(Violation { invariant: Invariant::F2, event, at, sid: Some(sid), detail });
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

fn is_orphan(state: &State, oldest: Seq, sid: Sid) -> bool {
    let Some(shape) = state.shape(sid) else { return true };
    let arrived = state.stream.phase == StreamPhase::Streaming
        && state.window.get(oldest).is_some_and(|txn| txn.lsn <= state.stream.received);
    let active = state.owner.phase == OwnerPhase::Active;
    let restarting = shape.retry.is_some_and(|retry| retry.due.is_some());
    active && arrived && shape.visible.is_some() && shape.writer == Writer::Absent && !restarting
}

type Findings = Vec<(Invariant, String)>;

fn illegal(state: &State, recorded: &Recorded) -> Findings {
    let mut findings = Vec::new();
    check_epoch(state, recorded, &mut findings);
    match &recorded.event {
        Event::Ownership(event) => check_ownership(state, event, &mut findings),
        Event::Stream(event) => check_stream(state, event, &mut findings),
        Event::Shape(event) => check_shape(state, event, &mut findings),
        Event::Consumer(event) => check_consumer(state, event, &mut findings),
        // A flush of what was never sent changes nothing; the journal's own facts decide nothing.
        Event::Flush(_) | Event::Journal(_) => {}
    }
    findings
}

fn check_epoch(state: &State, recorded: &Recorded, findings: &mut Findings) {
    let acquires = matches!(recorded.event, Event::Ownership(OwnershipEvent::Acquired { .. }));
    if !acquires && recorded.epoch != state.owner.epoch {
        findings
            .push((Invariant::O2, format!("epoch {} while {} is held", recorded.epoch, state.owner.epoch)));
    }
    let over = matches!(state.owner.phase, OwnerPhase::Released | OwnerPhase::Lost | OwnerPhase::Unowned);
    let journal = matches!(recorded.event, Event::Journal(_));
    if !acquires && over && !journal {
        findings.push((Invariant::O4, format!("{} without ownership", recorded.event.name())));
    }
}

fn check_ownership(state: &State, event: &OwnershipEvent, findings: &mut Findings) {
    match event {
        OwnershipEvent::Acquired { epoch, previous_end, .. } => {
            if *epoch <= state.owner.epoch {
                findings.push((Invariant::O1, format!("epoch {epoch} after {}", state.owner.epoch)));
            }
            let at_work = matches!(state.owner.phase, OwnerPhase::Active | OwnerPhase::Draining);
            if at_work && *previous_end == PreviousEnd::Released {
                let detail = format!("epoch {epoch} begins while {} has not ended", state.owner.epoch);
                findings.push((Invariant::O1, detail));
            }
        }
        OwnershipEvent::Released { .. } => {
            let writers = state.shapes.values().filter(|shape| shape.writer != Writer::Absent).count();
            if writers > 0 || !state.owner.open_intents.is_empty() {
                findings.push((Invariant::O4, format!("released with {writers} writers left")));
            }
        }
        OwnershipEvent::DestructiveIntent { target: DestructionTarget::ShapeFiles(sid), cause, .. } => {
            if state.shape(*sid).is_none_or(|shape| shape.life != Life::Invalidated) {
                findings.push((Invariant::O3, format!("files of shape {sid}, which is not invalidated")));
            }
            if *cause != DestructionCause::ShapeInvalidated {
                findings.push((Invariant::O3, format!("files of shape {sid} for another reason")));
            }
        }
        OwnershipEvent::DestructiveIntent { target: DestructionTarget::Stranger(handle), cause, .. } => {
            if state.shapes.values().any(|shape| shape.handle == *handle) {
                findings.push((Invariant::O3, format!("files under {handle}, which a shape has")));
            }
            if *cause == DestructionCause::ShapeInvalidated {
                findings.push((Invariant::O3, format!("files under {handle} as if they were a shape's")));
            }
        }
        OwnershipEvent::DestructiveDone { intent, .. } => {
            if !state.owner.open_intents.iter().any(|(open, _)| open == intent) {
                findings.push((Invariant::O3, format!("intent {} was not announced", intent.0)));
            }
        }
        OwnershipEvent::ProcessStarted(_)
        | OwnershipEvent::DrainStarted { .. }
        | OwnershipEvent::Lost { .. }
        | OwnershipEvent::StorageFault { .. } => {}
    }
}

fn check_stream(state: &State, event: &StreamEvent, findings: &mut Findings) {
    match event {
        StreamEvent::Started { .. } => {
            if !state.stream.lock_held {
                findings.push((Invariant::O8, "streaming without the advisory lock".to_owned()));
            }
        }
        StreamEvent::TxnRouted { seq, lsn, set, xid, .. } => {
            if *seq != state.stream.last_seq.next() || *lsn <= state.stream.routed {
                let (last, routed) = (state.stream.last_seq, state.stream.routed);
                findings.push((Invariant::S1, format!("{seq} at {lsn} after {last} at {routed}")));
            }
            check_set(state, set, findings);
            for sid in set.iter() {
                if state.shape(sid).is_some_and(|shape| shape.snapshot_contains(*lsn, *xid)) {
                    findings.push((Invariant::N1, format!("shape {sid} has it in its snapshot")));
                }
            }
        }
        StreamEvent::TxnRedelivered { seq, .. } => {
            if state.window.get(*seq).is_none() {
                findings.push((Invariant::S1, format!("{seq} is owed by nobody")));
            }
        }
        StreamEvent::TimelineFollowed { fork, .. } => {
            if state.stream.routed >= *fork {
                let routed = state.stream.routed;
                findings.push((Invariant::S1, format!("followed from {fork}, behind {routed}")));
            }
        }
        StreamEvent::AckSent { lsn, cause } => check_ack(state, *lsn, *cause, findings),
        StreamEvent::Identified { .. }
        | StreamEvent::LockAcquired { .. }
        | StreamEvent::LockLost { .. }
        | StreamEvent::SlotObserved { .. }
        | StreamEvent::HistoryBroken { .. }
        | StreamEvent::Queried { .. }
        | StreamEvent::Stopped { .. }
        | StreamEvent::RelationChanged { .. }
        | StreamEvent::RoutedNothing { .. } => {}
    }
}

fn check_set(state: &State, set: &SidSet, findings: &mut Findings) {
    for sid in set.iter() {
        if !state.shape(sid).is_some_and(Shape::is_routed) {
            findings.push((Invariant::L4, format!("shape {sid} is not routed")));
        }
    }
}

fn check_ack(state: &State, lsn: Lsn, cause: AckCause, findings: &mut Findings) {
    if !state.stream.lock_held {
        findings.push((Invariant::O8, "acknowledged without the advisory lock".to_owned()));
    }
    if lsn <= state.stream.acked {
        findings.push((Invariant::F6, format!("{lsn} after {}", state.stream.acked)));
    }
    if let Some((seq, txn)) = state.window.oldest()
        && lsn > txn.lsn
    {
        findings.push((Invariant::F1, format!("{lsn} although transaction {seq} at {} is owed", txn.lsn)));
    }
    match cause {
        AckCause::Keepalive => {
            if !state.window.is_empty() {
                findings.push((Invariant::S5, "a keepalive acknowledged while something is owed".to_owned()));
            }
        }
        AckCause::Commit => {
            let boundary = if state.window.is_empty() {
                Lsn(state.stream.routed.0.saturating_add(1))
            } else {
                state.window.boundary()
            };
            if lsn != boundary {
                findings.push((Invariant::F9, format!("{lsn}, the fold says {boundary}")));
            }
        }
    }
}

fn check_shape(state: &State, event: &ShapeEvent, findings: &mut Findings) {
    if let ShapeEvent::Created { sid, handle, .. } = event {
        if *sid <= state.last_sid {
            findings.push((Invariant::L1, format!("shape {sid} is not new")));
        }
        if handle.micros <= state.last_handle_micros {
            findings.push((Invariant::L2, format!("handle {handle} is not newer than all before")));
        }
        return;
    }
    let Some(shape) = state.shape(event.sid()) else {
        findings.push((Invariant::L1, format!("{} of an unknown shape", event.name())));
        return;
    };
    let legal = match event {
        ShapeEvent::Created { .. } => true,
        ShapeEvent::Depends { on, .. } => {
            shape.life == Life::Registered
                && shape.routed_after.is_none()
                && on.iter().all(|sid| state.shape(*sid).is_some_and(|inner| inner.life < Life::Invalidated))
        }
        ShapeEvent::Routed { .. } => shape.life == Life::Registered && shape.routed_after.is_none(),
        ShapeEvent::Unrouted { .. } => shape.life == Life::Invalidated,
        ShapeEvent::PublicationReady { .. } => shape.life < Life::Invalidated,
        ShapeEvent::SnapshotStarted { attempt, .. } => {
            shape.life == Life::Registered && *attempt == shape.snapshot_attempt + 1
        }
        ShapeEvent::SnapshotVisible { .. } => shape.life == Life::Registered,
        ShapeEvent::SnapshotCompleted { .. } => shape.life == Life::Snapshotting,
        ShapeEvent::SnapshotFailed { .. } => shape.life < Life::Live,
        ShapeEvent::Invalidated { .. } => shape.life < Life::Invalidated,
        ShapeEvent::StepDone { step, .. } => {
            shape.life == Life::Invalidated
                && match step {
                    RemovalStep::WriterStopped => shape.writer == Writer::Absent,
                    RemovalStep::SnapshotStopped => true,
                    RemovalStep::FilesTrashed => shape.steps.writer_stopped && shape.steps.snapshot_stopped,
                }
        }
        ShapeEvent::Gone { .. } => shape.steps.files_trashed,
    };
    if !legal {
        findings.push((Invariant::L1, format!("{} of a shape that is {:?}", event.name(), shape.life)));
    }
    if matches!(event, ShapeEvent::SnapshotVisible { .. }) && shape.routed_after.is_none() {
        findings.push((Invariant::N2, format!("shape {} is not routed yet", event.sid())));
    }
}

fn check_consumer(state: &State, event: &ConsumerEvent, findings: &mut Findings) {
    let Some(shape) = state.shape(event.sid()) else {
        findings.push((Invariant::R1, format!("{} of an unknown shape", event.name())));
        return;
    };
    match event {
        ConsumerEvent::Started { incarnation, .. } => {
            if shape.writer != Writer::Absent || *incarnation != shape.last_incarnation.next() {
                let detail = format!("incarnation {incarnation} starts beside {:?}", shape.writer);
                findings.push((Invariant::R1, detail));
            }
        }
        ConsumerEvent::Stopping { incarnation, cause, .. } => {
            if shape.writer.incarnation() != Some(*incarnation) {
                findings.push((Invariant::R1, format!("incarnation {incarnation} is not the living one")));
            }
            if *cause == ExitCause::Suspended && !shape.pending.is_empty() {
                findings.push((Invariant::R4, format!("suspended with {} pending", shape.pending.len())));
            }
        }
        ConsumerEvent::Ready { incarnation, .. } | ConsumerEvent::Exited { incarnation, .. } => {
            if shape.writer.incarnation() != Some(*incarnation) {
                findings.push((Invariant::R1, format!("incarnation {incarnation} is not the living one")));
            }
        }
        ConsumerEvent::RestartScheduled { .. } => {
            if shape.pending.is_empty() {
                findings.push((Invariant::R1, "a restart with nothing to replay".to_owned()));
            }
        }
        ConsumerEvent::StallSuspected { .. } => {}
    }
}

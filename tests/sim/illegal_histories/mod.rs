//! Negative controls: for each rule a history that breaks it, and nothing else that matters.

mod controls;
mod duties;
mod flushing;
mod owning;
mod snapshots;

use std::time::Duration;

use shapefold::domain::{
    DefinitionHash, Epoch, EventId, Generation, Handle, Incarnation, Lsn, Oid, PgSnapshot, Seq, Sid,
    Timestamp, Xid,
};
use shapefold::events::{
    AckCause, ConsumerEvent, DestructionCause, DestructionTarget, Event, ExitCause, FaultClass, FileKind,
    FlushEvent, IntentId, InvalidationCause, OwnershipEvent, PreviousEnd, Recorded, ShapeEvent, Stage,
    StopCause, StreamEvent,
};
use shapefold::projections::forensics::{Checker, Invariant};

/// A history in the making: numbers and epochs are right unless a test makes them wrong.
#[derive(Default)]
struct History {
    recorded: Vec<Recorded>,
    epoch: Epoch,
    /// Microseconds beside the one that every event takes.
    late: i64,
}

const SHAPE: Sid = Sid(1);
const TABLE: Oid = Oid(100);

impl History {
    /// Owned, streaming, with one shape whose initial rows contain what committed before 100 with
    /// an id below 10.
    fn streaming() -> History {
        let mut history = History::default();
        history.acquire(1).connect(1).create(SHAPE, 1).snapshot(SHAPE);
        history
    }

    fn then(&mut self, event: impl Into<Event>) -> &mut History {
        let id = EventId(self.recorded.len() as u64 + 1);
        let at = Timestamp(1_000_000 + self.late + i64::try_from(id.0).expect("a short history"));
        self.recorded.push(Recorded { id, at, epoch: self.epoch, because: None, event: event.into() });
        self
    }

    fn acquire(&mut self, epoch: u64) -> &mut History {
        let previous = std::mem::replace(&mut self.epoch, Epoch(epoch));
        self.then(OwnershipEvent::Acquired {
            epoch: Epoch(epoch),
            previous,
            previous_end: PreviousEnd::None,
            device: 1,
            inode: 1,
            waited_ms: 0,
        })
    }

    fn connect(&mut self, generation: u32) -> &mut History {
        let generation = Generation(generation);
        self.then(StreamEvent::LockAcquired { backend_pid: 1, generation })
            .then(StreamEvent::Started { generation, from: Lsn(0) })
    }

    fn disconnect(&mut self, generation: u32) -> &mut History {
        let (generation, received, cause) = (Generation(generation), Lsn(0), StopCause::Connection);
        self.then(StreamEvent::Stopped { generation, cause, received })
            .then(StreamEvent::LockLost { generation })
    }

    /// So much time passes before the next event.
    fn later(&mut self, minutes: i64) -> &mut History {
        self.late += minutes * 60_000_000;
        self
    }

    /// The event before is what this one follows from.
    fn because(&mut self, event: impl Into<Event>) -> &mut History {
        self.then(event);
        let last = self.recorded.last_mut().expect("an event");
        last.because = Some(EventId(last.id.0 - 1));
        self
    }

    fn create(&mut self, sid: Sid, micros: u64) -> &mut History {
        let handle = Handle { hash: 1, micros };
        self.then(ShapeEvent::Created { sid, handle, definition: DefinitionHash(1), oid: TABLE })
            .then(ShapeEvent::Routed { sid, after: Seq(0), after_lsn: Lsn(0) })
            .then(ShapeEvent::SnapshotStarted { sid, attempt: 1 })
    }

    fn snapshot(&mut self, sid: Sid) -> &mut History {
        let snapshot = PgSnapshot { xmin: 10, xmax: 10, xip: Vec::new() };
        self.publish(sid)
            .then(ShapeEvent::SnapshotVisible { sid, snapshot, lsn: Lsn(100) })
            .then(ShapeEvent::SnapshotCompleted { sid, rows: 0, bytes: 0 })
    }

    fn publish(&mut self, sid: Sid) -> &mut History {
        self.then(ShapeEvent::PublicationReady { sid, oid: TABLE, waited_ms: 0 })
    }

    fn route(&mut self, seq: u64, lsn: u64, xid: u32, to: &[Sid]) -> &mut History {
        self.then(StreamEvent::TxnRouted {
            seq: Seq(seq),
            generation: Generation(1),
            lsn: Lsn(lsn),
            xid: Xid(xid),
            committed_at: Timestamp(0),
            changes: 1,
            bytes: 1,
            set: to.iter().copied().collect(),
        })
    }

    fn redeliver(&mut self, generation: u32, seq: u64, to: &[Sid]) -> &mut History {
        let set = to.iter().copied().collect();
        self.then(StreamEvent::TxnRedelivered { seq: Seq(seq), generation: Generation(generation), set })
    }

    fn start(&mut self, incarnation: u32) -> &mut History {
        let (sid, incarnation) = (SHAPE, Incarnation(incarnation));
        self.then(ConsumerEvent::Started { sid, incarnation }).then(ConsumerEvent::Ready {
            sid,
            incarnation,
            recovered: Lsn(0),
            trimmed_bytes: 0,
        })
    }

    /// It ends and owes the transaction, or nothing.
    fn exit(&mut self, incarnation: u32, owes: Option<u64>) -> &mut History {
        self.then(ConsumerEvent::Exited {
            sid: SHAPE,
            incarnation: Incarnation(incarnation),
            cause: ExitCause::Ended,
            pending_oldest: owes.map(Seq),
            pending: owes.into_iter().count() as u64,
        })
    }

    fn fault(&mut self, class: FaultClass, stage: Stage, file: FileKind, sid: Option<Sid>) -> &mut History {
        self.then(OwnershipEvent::StorageFault { class, stage, file, sid, count: 1 })
    }

    fn flush(&mut self, upto: u64) -> &mut History {
        self.then(FlushEvent::Flushed { shapes: vec![(SHAPE, Seq(upto))] })
    }

    fn ack(&mut self, lsn: u64, cause: AckCause) -> &mut History {
        self.then(StreamEvent::AckSent { lsn: Lsn(lsn), cause })
    }

    fn invalidate(&mut self) -> &mut History {
        self.then(ShapeEvent::Invalidated { sid: SHAPE, cause: InvalidationCause::Deleted })
    }

    fn intend(&mut self, intent: u64) -> &mut History {
        let (target, cause) = (DestructionTarget::ShapeFiles(SHAPE), DestructionCause::ShapeInvalidated);
        self.then(OwnershipEvent::DestructiveIntent { intent: IntentId(intent), target, cause })
    }

    fn broken(&self) -> Vec<Invariant> {
        self.broken_with_grace(Duration::ZERO)
    }

    fn broken_with_grace(&self, grace: Duration) -> Vec<Invariant> {
        let mut checker = Checker::new().with_grace(grace);
        self.recorded.iter().for_each(|recorded| checker.observe(recorded));
        let (_, violations) = checker.finish();
        violations.into_iter().map(|violation| violation.invariant).collect()
    }

    #[track_caller]
    fn breaks(&self, expected: &[Invariant]) {
        assert_eq!(self.broken(), expected);
    }
}

#[test]
fn a_legal_history_breaks_nothing() {
    let mut history = History::streaming();
    history
        .route(1, 200, 20, &[SHAPE])
        .start(1)
        .flush(1)
        .ack(201, AckCause::Commit)
        .exit(1, None)
        .invalidate();
    history.breaks(&[]);
}

#[test]
fn j1_a_gap_in_the_numbers_and_a_reason_from_the_future() {
    let mut gap = History::streaming();
    gap.recorded.remove(3);
    assert!(gap.broken().contains(&Invariant::J1));
    let mut future = History::streaming();
    future.recorded[1].because = Some(EventId(2));
    future.breaks(&[Invariant::J1]);
}

/// A view can only drift by a bug in it; an event for which the state and the views go apart is made
/// by creating a shape again over one that owes.
#[test]
fn j2_a_view_that_differs_from_the_fold() {
    let mut history = History::streaming();
    history.route(1, 200, 20, &[SHAPE]).start(1).create(SHAPE, 2);
    assert!(history.broken().contains(&Invariant::J2));
}

#[test]
fn o1_an_epoch_that_does_not_increase() {
    let mut history = History::streaming();
    history.acquire(1);
    history.breaks(&[Invariant::O1]);
}

#[test]
fn o2_an_event_of_another_epoch() {
    let mut history = History::streaming();
    history.acquire(2).connect(2);
    // Of the one before, which woke up.
    history.epoch = Epoch(1);
    history.then(StreamEvent::RoutedNothing { generation: Generation(2), upto: Lsn(200), txns: 1 });
    history.breaks(&[Invariant::O2]);
}

#[test]
fn o3_files_of_a_living_shape_and_destruction_unannounced() {
    let mut living = History::streaming();
    living.intend(1);
    living.breaks(&[Invariant::O3]);
    let of_a_shape = DestructionTarget::Stranger(Handle { hash: 1, micros: 1 });
    let of_nobody = DestructionTarget::Stranger(Handle { hash: 1, micros: 2 });
    for (target, cause, legal) in [
        (of_nobody, DestructionCause::Unknown, true),
        (of_nobody, DestructionCause::QuarantineExpired, true),
        (of_nobody, DestructionCause::ShapeInvalidated, false),
        (of_a_shape, DestructionCause::Unknown, false),
        (of_nobody, DestructionCause::Compacted, false),
        (DestructionTarget::ShapeLog(SHAPE), DestructionCause::Compacted, true),
        (DestructionTarget::ShapeLog(SHAPE), DestructionCause::ShapeInvalidated, false),
    ] {
        let mut strange = History::streaming();
        strange.then(OwnershipEvent::DestructiveIntent { intent: IntentId(1), target, cause });
        strange.breaks(if legal { &[] } else { &[Invariant::O3] });
    }
    let mut unannounced = History::streaming();
    let result = shapefold::events::DestructionResult::Done;
    unannounced.then(OwnershipEvent::DestructiveDone { intent: IntentId(5), result });
    unannounced.breaks(&[Invariant::O3]);
    let mut replaced = History::streaming();
    let compacted = ShapeEvent::Compacted { sid: SHAPE, through: Lsn(150), before: 9, after: 5 };
    replaced.then(compacted.clone());
    replaced.breaks(&[Invariant::O3]);
    let mut announced = History::streaming();
    let (target, cause) = (DestructionTarget::ShapeLog(SHAPE), DestructionCause::Compacted);
    announced.then(OwnershipEvent::DestructiveIntent { intent: IntentId(1), target, cause });
    announced.then(compacted).then(OwnershipEvent::DestructiveDone { intent: IntentId(1), result });
    announced.breaks(&[]);
}

#[test]
fn o4_released_with_a_writer_left_and_events_after_the_end() {
    let released = OwnershipEvent::Released { epoch: Epoch(1), pending: 0, acked: Lsn(0) };
    let mut writing = History::streaming();
    writing.start(1).then(released.clone());
    writing.breaks(&[Invariant::O4]);
    let mut destroying = History::streaming();
    destroying.invalidate().intend(1).then(released.clone());
    destroying.breaks(&[Invariant::O4]);
    let mut after = History::streaming();
    after.then(released).invalidate();
    after.breaks(&[Invariant::O4]);
}

#[test]
fn o8_streaming_and_acknowledging_without_the_lock() {
    let generation = Generation(1);
    let mut streaming = History::default();
    streaming.acquire(1).then(StreamEvent::Started { generation, from: Lsn(0) });
    streaming.breaks(&[Invariant::O8]);
    let mut acknowledging = History::streaming();
    acknowledging
        .then(StreamEvent::RoutedNothing { generation, upto: Lsn(200), txns: 1 })
        .then(StreamEvent::LockLost { generation })
        .ack(201, AckCause::Commit);
    acknowledging.breaks(&[Invariant::O8]);
}

#[test]
fn s1_a_number_left_out_a_position_that_falls_and_a_redelivery_of_nothing() {
    let mut gap = History::streaming();
    gap.route(2, 200, 20, &[]);
    gap.breaks(&[Invariant::S1]);
    let mut falls = History::streaming();
    falls.route(1, 200, 20, &[]).route(2, 200, 21, &[]);
    falls.breaks(&[Invariant::S1]);
    let mut nothing = History::streaming();
    nothing.redeliver(1, 9, &[]);
    nothing.breaks(&[Invariant::S1]);
}

#[test]
fn s5_a_keepalive_acknowledged_while_something_is_owed() {
    let mut history = History::streaming();
    history.route(1, 200, 20, &[SHAPE]).start(1).ack(150, AckCause::Keepalive);
    history.breaks(&[Invariant::S5]);
}

#[test]
fn l1_a_life_out_of_order() {
    let mut completed_twice = History::streaming();
    completed_twice.then(ShapeEvent::SnapshotCompleted { sid: SHAPE, rows: 0, bytes: 0 });
    completed_twice.breaks(&[Invariant::L1]);
    let mut invalidated_twice = History::streaming();
    invalidated_twice.invalidate().invalidate();
    invalidated_twice.breaks(&[Invariant::L1]);
    let mut gone_with_files = History::streaming();
    gone_with_files.invalidate().then(ShapeEvent::Gone { sid: SHAPE });
    gone_with_files.breaks(&[Invariant::L1]);
    let mut unknown = History::streaming();
    unknown.then(ShapeEvent::Unrouted { sid: Sid(9) });
    unknown.breaks(&[Invariant::L1]);
    let mut reused = History::streaming();
    reused.create(SHAPE, 2);
    // The view by handle still has the first, the fold has not.
    reused.breaks(&[Invariant::L1, Invariant::J2]);
}

#[test]
fn l2_a_handle_that_is_not_new() {
    let mut history = History::streaming();
    history.create(Sid(2), 1);
    history.breaks(&[Invariant::L2]);
}

#[test]
fn l4_routed_to_a_shape_that_is_not_routed() {
    let mut history = History::streaming();
    history.invalidate().then(ShapeEvent::Unrouted { sid: SHAPE }).route(1, 200, 20, &[SHAPE]);
    history.breaks(&[Invariant::L4]);
}

#[test]
fn r1_a_second_writer_a_number_left_out_and_the_exit_of_another() {
    let mut second = History::streaming();
    second.start(1).start(2);
    second.breaks(&[Invariant::R2]);
    let mut used = History::streaming();
    used.start(1).exit(1, None).start(1);
    used.breaks(&[Invariant::R2]);
    let mut gap = History::streaming();
    gap.start(2);
    gap.breaks(&[Invariant::R1]);
    let mut another = History::streaming();
    another.start(1).exit(2, None);
    another.breaks(&[Invariant::R1]);
    let mut for_nothing = History::streaming();
    let due = Timestamp(5);
    for_nothing.then(ConsumerEvent::RestartScheduled { sid: SHAPE, attempt: 1, due });
    for_nothing.breaks(&[Invariant::R1]);
}

#[test]
fn r4_put_to_sleep_while_it_owes() {
    let mut history = History::streaming();
    let (incarnation, cause) = (Incarnation(1), ExitCause::Suspended);
    history.route(1, 200, 20, &[SHAPE]).start(1).then(ConsumerEvent::Stopping {
        sid: SHAPE,
        incarnation,
        cause,
    });
    history.breaks(&[Invariant::R4]);
}

#[test]
fn n1_routed_although_the_snapshot_contains_it() {
    let mut history = History::streaming();
    history.route(1, 50, 5, &[SHAPE]).start(1);
    history.breaks(&[Invariant::N1]);
}

#[test]
fn n2_a_snapshot_before_routing() {
    let mut history = History::default();
    let handle = Handle { hash: 1, micros: 1 };
    history.acquire(1).connect(1);
    history.then(ShapeEvent::Created { sid: SHAPE, handle, definition: DefinitionHash(1), oid: TABLE });
    history.snapshot(SHAPE);
    history.breaks(&[Invariant::N2]);
}

#[test]
fn f1_acknowledged_although_it_is_owed() {
    let mut history = History::streaming();
    history.route(1, 200, 20, &[SHAPE]).start(1).ack(201, AckCause::Commit);
    let broken = history.broken();
    // Such a position is not the fold's, either.
    assert_eq!(broken, [Invariant::F1, Invariant::F9]);
}

#[test]
fn f2_nobody_there_to_pay() {
    let mut never_started = History::streaming();
    never_started.route(1, 200, 20, &[SHAPE]);
    never_started.breaks(&[Invariant::F2]);
    let mut not_restarted = History::streaming();
    not_restarted.route(1, 200, 20, &[SHAPE]).start(1).exit(1, Some(1));
    not_restarted.breaks(&[Invariant::F2]);
    let mut comes_again = History::streaming();
    let (generation, received, cause) = (Generation(1), Lsn(200), StopCause::Connection);
    comes_again.route(1, 200, 20, &[SHAPE]).start(1);
    comes_again.then(StreamEvent::Stopped { generation, cause, received }).exit(1, Some(1));
    comes_again.breaks(&[]);
}

#[test]
fn f6_an_acknowledgement_that_does_not_ascend() {
    let mut history = History::streaming();
    history.ack(150, AckCause::Keepalive).ack(150, AckCause::Keepalive);
    history.breaks(&[Invariant::F6]);
}

#[test]
fn f9_a_position_that_is_no_boundary() {
    let mut history = History::streaming();
    history.route(1, 200, 20, &[SHAPE]).start(1).flush(1).ack(199, AckCause::Commit);
    history.breaks(&[Invariant::F9]);
}

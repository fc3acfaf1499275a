//! What a snapshot rests on.

use shapefold::domain::{Lsn, Oid, PgSnapshot, Sid};
use shapefold::events::{FaultClass, FileKind, ShapeEvent, Stage};
use shapefold::projections::forensics::Invariant;

use super::{History, SHAPE};

const SECOND: Sid = Sid(2);

fn visible(sid: Sid, xmax: u64) -> ShapeEvent {
    let snapshot = PgSnapshot { xmin: xmax, xmax, xip: Vec::new() };
    ShapeEvent::SnapshotVisible { sid, snapshot, lsn: Lsn(1_000) }
}

/// Waits for its snapshot.
fn waiting() -> History {
    let mut history = History::default();
    history.acquire(1).connect(1).create(SHAPE, 1);
    history
}

pub fn before_it_is_published() -> History {
    let mut history = waiting();
    history.then(visible(SHAPE, 10));
    history
}

#[test]
fn n3_a_snapshot_of_a_table_that_is_not_published() {
    before_it_is_published().breaks(&[Invariant::N3]);
    let mut another = waiting();
    another
        .then(ShapeEvent::PublicationReady { sid: SHAPE, oid: Oid(7), waited_ms: 0 })
        .then(visible(SHAPE, 10));
    another.breaks(&[Invariant::N3]);
    let mut published = waiting();
    published.publish(SHAPE).then(visible(SHAPE, 10));
    published.breaks(&[]);
}

/// A second shape on the table, which is routed to after transaction 20 was decoded.
fn second(xmax: u64, minutes: i64) -> History {
    let mut history = History::streaming();
    history.route(1, 200, 20, &[SHAPE]).start(1).flush(1).create(SECOND, 2);
    let routed = history.recorded.iter_mut().rev().find_map(|recorded| match &mut recorded.event {
        shapefold::events::Event::Shape(ShapeEvent::Routed { after, after_lsn, .. }) => {
            Some((after, after_lsn))
        }
        _ => None,
    });
    let (after, after_lsn) = routed.expect("it is routed");
    (*after, *after_lsn) = (shapefold::domain::Seq(1), Lsn(200));
    history.later(minutes).publish(SECOND).then(visible(SECOND, xmax));
    history
}

pub fn lacks_what_was_decoded_before() -> History {
    second(20, 0)
}

#[test]
fn n4_a_commit_that_is_in_neither() {
    lacks_what_was_decoded_before().breaks(&[Invariant::N4]);
    second(21, 0).breaks(&[]);
    // Beyond what is promised.
    second(20, 2).breaks(&[]);
}

pub fn written_before_it_is_known() -> History {
    let mut history = waiting();
    history.route(1, 200, 20, &[SHAPE]).start(1).flush(1);
    history
}

#[test]
fn n1_written_before_it_is_known_what_the_snapshot_contains() {
    written_before_it_is_known().breaks(&[Invariant::N1]);
}

/// One more than may wait.
pub fn waits_without_bound(count: u64) -> History {
    let mut history = waiting();
    for seq in 1..=count {
        history.route(seq, 100 + seq, 20, &[SHAPE]);
    }
    history
}

#[test]
fn n5_more_waits_for_a_snapshot_than_may() {
    const MAX: u64 = 100_000;
    waits_without_bound(MAX + 2).breaks(&[Invariant::N5]);
    waits_without_bound(MAX + 1).breaks(&[]);
}

pub fn completed_in_spite_of_a_fault() -> History {
    let mut history = waiting();
    history.publish(SHAPE).then(visible(SHAPE, 10));
    history
        .fault(FaultClass::NoSpace, Stage::Write, FileKind::Snapshot, Some(SHAPE))
        .then(ShapeEvent::SnapshotCompleted { sid: SHAPE, rows: 1, bytes: 1 });
    history
}

#[test]
fn n6_completed_in_spite_of_a_fault() {
    completed_in_spite_of_a_fault().breaks(&[Invariant::N6]);
    let mut read_only = waiting();
    read_only.publish(SHAPE).then(visible(SHAPE, 10));
    read_only
        .fault(FaultClass::Transient { errno: 5 }, Stage::Read, FileKind::Snapshot, Some(SHAPE))
        .then(ShapeEvent::SnapshotCompleted { sid: SHAPE, rows: 1, bytes: 1 });
    read_only.breaks(&[]);
}

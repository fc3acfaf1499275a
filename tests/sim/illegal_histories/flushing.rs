//! For whom a flush counts, and who holds the log of Postgres.

use std::time::Duration;

use shapefold::domain::{Generation, Incarnation, Seq, Sid};
use shapefold::events::{
    ConsumerEvent, DrainCause, Event, ExitCause, FaultClass, FileKind, FlushEvent, OwnershipEvent,
    ShapeEvent, Stage, StreamEvent,
};
use shapefold::projections::forensics::Invariant;

use super::{History, SHAPE};

fn suspect(oldest: u64) -> ConsumerEvent {
    ConsumerEvent::StallSuspected { sid: SHAPE, oldest: Seq(oldest), age_ms: 60_000 }
}

pub fn handed_out_twice() -> History {
    let mut history = History::streaming();
    history.route(1, 200, 20, &[SHAPE]).start(1).redeliver(1, 1, &[SHAPE, Sid(9)]);
    history
}

#[test]
fn s2_handed_out_again_to_one_that_does_not_owe_it_or_gone_and_owing() {
    handed_out_twice().breaks(&[Invariant::S2]);
    let mut owes = History::streaming();
    owes.route(1, 200, 20, &[SHAPE]).start(1).then(ShapeEvent::Gone { sid: SHAPE });
    assert!(owes.broken().contains(&Invariant::S2));
}

pub fn flushed_by_nobody() -> History {
    let mut history = History::streaming();
    history.route(1, 200, 20, &[SHAPE]).start(1);
    history.then(OwnershipEvent::DrainStarted { cause: DrainCause::Signal }).exit(1, Some(1));
    history.flush(1);
    history
}

#[test]
fn s3_flushed_by_nobody_and_from_a_stream_that_is_over() {
    flushed_by_nobody().breaks(&[Invariant::S3]);
    let mut not_begun = History::streaming();
    let (sid, incarnation) = (SHAPE, Incarnation(1));
    not_begun.route(1, 200, 20, &[SHAPE]).then(ConsumerEvent::Started { sid, incarnation }).flush(1);
    not_begun.breaks(&[Invariant::S3]);
    let mut marked = History::streaming();
    let (sid, incarnation) = (SHAPE, Incarnation(1));
    marked.route(1, 200, 20, &[SHAPE]).then(ConsumerEvent::Started { sid, incarnation }).flush(1);
    marked.recorded.last_mut().expect("an event").event =
        Event::Flush(FlushEvent::Watermark { upto: Seq(1), except: Vec::new() });
    marked.breaks(&[Invariant::S3]);
    marked.recorded.last_mut().expect("an event").event =
        Event::Flush(FlushEvent::Watermark { upto: Seq(1), except: vec![(SHAPE, Seq(0))] });
    marked.breaks(&[]);
    let mut over = History::streaming();
    over.disconnect(1).connect(2).route(1, 200, 20, &[]);
    over.breaks(&[Invariant::S3]);
}

/// The writer begins on a stream that has yet to bring the transaction again.
pub fn flushed_and_never_handed_over() -> History {
    let mut history = History::streaming();
    history.route(1, 200, 20, &[SHAPE]).start(1).disconnect(1).exit(1, Some(1)).connect(2).start(2).flush(1);
    history
}

#[test]
fn s4_flushed_and_never_handed_over() {
    flushed_and_never_handed_over().breaks(&[Invariant::S4]);
    let mut comes_again = History::streaming();
    comes_again.route(1, 200, 20, &[SHAPE]).start(1).disconnect(1).exit(1, Some(1)).connect(2).start(2);
    comes_again.redeliver(2, 1, &[SHAPE]).flush(1);
    comes_again.breaks(&[]);
    // What comes while a writer is to end waits for its successor.
    let mut ending = History::streaming();
    let (sid, incarnation, cause) = (SHAPE, Incarnation(1), ExitCause::Suspended);
    ending.start(1).then(ConsumerEvent::Stopping { sid, incarnation, cause }).route(1, 200, 20, &[SHAPE]);
    ending.flush(1);
    ending.breaks(&[Invariant::S4]);
}

pub fn suspected_for_ever() -> History {
    let mut history = History::streaming();
    history.route(1, 200, 20, &[SHAPE]).start(1).later(1).then(suspect(1));
    history.later(16).route(2, 300, 21, &[]);
    history
}

#[test]
fn f3_suspected_for_ever_and_for_nothing() {
    suspected_for_ever().breaks(&[Invariant::F3]);
    let mut resolved = History::streaming();
    resolved.route(1, 200, 20, &[SHAPE]).start(1).later(1).then(suspect(1)).flush(1);
    resolved.later(16).route(2, 300, 21, &[]);
    resolved.breaks(&[]);
    let mut for_nothing = History::streaming();
    for_nothing.start(1).then(suspect(7));
    for_nothing.breaks(&[Invariant::F3]);
}

/// A clean end, said to owe nothing.
pub fn ends_and_conceals() -> History {
    let mut history = History::streaming();
    let (sid, incarnation, cause) = (SHAPE, Incarnation(1), ExitCause::Suspended);
    let (pending_oldest, pending) = (None, 0);
    history.route(1, 200, 20, &[SHAPE]).start(1);
    history.then(ConsumerEvent::Exited { sid, incarnation, cause, pending_oldest, pending });
    history
}

#[test]
fn f4_a_clean_end_that_conceals_what_is_owed() {
    ends_and_conceals().breaks(&[Invariant::F4, Invariant::F2]);
}

pub fn counted_wrong() -> History {
    let mut history = History::streaming();
    history.route(1, 200, 20, &[SHAPE]).start(1).create(SHAPE, 2);
    history
}

/// Counts go wrong where a shape is made again over one that owes.
#[test]
fn f5_counted_otherwise_than_along_the_way() {
    let broken = counted_wrong().broken();
    assert!(broken.contains(&Invariant::F5), "{broken:?}");
}

pub fn held_against_it() -> History {
    let mut history = History::streaming();
    history.route(1, 200, 20, &[SHAPE]).start(1).flush(2).then(suspect(1));
    history
}

/// X2: it flushed beyond what it was sent.
#[test]
fn f7_what_it_has_flushed_is_held_against_it() {
    held_against_it().breaks(&[Invariant::F7, Invariant::F3]);
    let mut exits = History::streaming();
    exits.route(1, 200, 20, &[SHAPE]).start(1).flush(2).exit(1, Some(1));
    exits.breaks(&[Invariant::F4, Invariant::F7]);
}

pub fn flushed_in_spite_of_a_fault() -> History {
    let mut history = History::streaming();
    history.route(1, 200, 20, &[SHAPE]).start(1);
    history.fault(FaultClass::NoSpace, Stage::Sync, FileKind::ShapeLog, Some(SHAPE)).flush(1);
    history
}

#[test]
fn f8_flushed_in_spite_of_a_fault() {
    flushed_in_spite_of_a_fault().breaks(&[Invariant::F8]);
    let mut by_the_next = History::streaming();
    by_the_next.route(1, 200, 20, &[SHAPE]).start(1);
    by_the_next.fault(FaultClass::NoSpace, Stage::Sync, FileKind::ShapeLog, Some(SHAPE));
    by_the_next.exit(1, Some(1)).start(2).flush(1);
    by_the_next.breaks(&[]);
}

pub fn held_in_silence() -> History {
    let mut history = History::streaming();
    history.route(1, 200, 20, &[SHAPE]).start(1).later(61).route(2, 300, 21, &[]);
    history
}

#[test]
fn f10_the_log_is_held_and_nobody_says_so() {
    held_in_silence().breaks(&[Invariant::F10]);
    // Where writers may be silent for longer, as the settings say, that is no silence.
    let broken = |minutes: u64| held_in_silence().broken_with_grace(Duration::from_secs(60 * minutes));
    assert_eq!((broken(29), broken(31)), (vec![Invariant::F10], Vec::new()));
    let mut named = History::streaming();
    named.route(1, 200, 20, &[SHAPE]).start(1).later(1).then(suspect(1));
    named.later(10).route(2, 300, 21, &[]);
    named.breaks(&[]);
    let mut gets_on = History::streaming();
    gets_on.route(1, 200, 20, &[SHAPE]).start(1).later(40).route(2, 300, 21, &[SHAPE]).flush(1);
    gets_on.later(40).route(3, 400, 22, &[]);
    gets_on.breaks(&[]);
}

#[test]
fn o8_routed_without_the_lock() {
    let generation = Generation(1);
    let mut history = History::streaming();
    history.then(StreamEvent::LockLost { generation }).route(1, 200, 20, &[]);
    history.breaks(&[Invariant::O8]);
}

//! What a decision has to lead to.

use shapefold::domain::{DefinitionHash, Generation, Handle, Lsn, Sid};
use shapefold::events::{
    DrainCause, HistoryCause, InvalidationCause, JournalEvent, OwnershipEvent, ShapeEvent, StreamEvent,
};
use shapefold::projections::forensics::Invariant;

use super::{History, SHAPE, TABLE};

const OUTER: Sid = Sid(2);

/// A shape, and one that depends on it.
fn dependent() -> History {
    let mut history = History::streaming();
    let handle = Handle { hash: 2, micros: 2 };
    history
        .then(ShapeEvent::Created { sid: OUTER, handle, definition: DefinitionHash(2), oid: TABLE })
        .then(ShapeEvent::Depends { sid: OUTER, on: vec![SHAPE] });
    history
}

fn any_commit(history: &mut History) -> &mut History {
    history.then(StreamEvent::RoutedNothing { generation: Generation(1), upto: Lsn(300), txns: 1 })
}

fn gone_with(sid: Sid) -> ShapeEvent {
    ShapeEvent::Invalidated { sid, cause: InvalidationCause::DependencyGone }
}

pub fn outlives_its_inner_query() -> History {
    let mut history = dependent();
    any_commit(history.invalidate());
    history
}

#[test]
fn l5_outlives_its_inner_query_or_is_made_with_one_that_has_ended() {
    outlives_its_inner_query().breaks(&[Invariant::L5]);
    let mut goes_with_it = dependent();
    any_commit(goes_with_it.invalidate().then(gone_with(OUTER)));
    goes_with_it.breaks(&[]);
    let mut made_too_late = History::streaming();
    let handle = Handle { hash: 2, micros: 2 };
    made_too_late
        .invalidate()
        .then(ShapeEvent::Created { sid: OUTER, handle, definition: DefinitionHash(2), oid: TABLE })
        .then(ShapeEvent::Depends { sid: OUTER, on: vec![SHAPE] });
    made_too_late.breaks(&[Invariant::L5]);
}

pub fn lives_on_in_a_shortened_journal() -> History {
    let mut history = History::streaming();
    let missing_upto = Some(shapefold::domain::EventId(99));
    let last = history.recorded.last().expect("an event").id;
    history.acquire(2).then(JournalEvent::TornTail { last, values: 1, missing_upto }).connect(2);
    history
}

#[test]
fn l3_lives_on_in_a_journal_that_lost_what_clients_know() {
    lives_on_in_a_shortened_journal().breaks(&[Invariant::L3]);
    let mut torn_only = History::streaming();
    let last = torn_only.recorded.last().expect("an event").id;
    torn_only.acquire(2).then(JournalEvent::TornTail { last, values: 1, missing_upto: None }).connect(2);
    torn_only.breaks(&[]);
}

pub fn half_a_snapshot_survives_a_start() -> History {
    let mut history = History::default();
    history.acquire(1).connect(1).create(SHAPE, 1).acquire(2).connect(2);
    history
}

#[test]
fn l7_half_a_snapshot_survives_a_start() {
    half_a_snapshot_survives_a_start().breaks(&[Invariant::L7]);
    let mut ended = History::default();
    ended.acquire(1).connect(1).create(SHAPE, 1).acquire(2).invalidate().connect(2);
    ended.breaks(&[]);
}

/// While the process ends; at any other time it is an orphan (F2).
pub fn nobody_takes_it() -> History {
    let mut history = History::streaming();
    history.then(OwnershipEvent::DrainStarted { cause: DrainCause::Signal }).route(1, 200, 20, &[SHAPE]);
    any_commit(&mut history);
    history
}

#[test]
fn r3_routed_to_and_nobody_takes_it() {
    nobody_takes_it().breaks(&[Invariant::R3]);
    let mut orphan = History::streaming();
    any_commit(orphan.route(1, 200, 20, &[SHAPE]));
    orphan.breaks(&[Invariant::F2]);
    let mut ended = History::streaming();
    any_commit(ended.route(1, 200, 20, &[SHAPE]).invalidate());
    ended.breaks(&[]);
}

#[test]
fn s4_a_history_that_breaks_ends_every_shape() {
    let mut lives_on = History::streaming();
    any_commit(lives_on.then(StreamEvent::HistoryBroken { cause: HistoryCause::SlotLost }));
    lives_on.breaks(&[Invariant::S4]);
    let mut ended = History::streaming();
    any_commit(ended.then(StreamEvent::HistoryBroken { cause: HistoryCause::SlotLost }).invalidate());
    ended.breaks(&[]);
}

/// Postgres begins behind a transaction that is owed.
#[test]
fn s4_what_will_not_come_again_ends_who_owes_it() {
    let generation = Generation(2);
    let mut lives_on = History::streaming();
    lives_on.route(1, 200, 20, &[SHAPE]).start(1).disconnect(1);
    lives_on
        .then(StreamEvent::LockAcquired { backend_pid: 1, generation })
        .then(StreamEvent::Started { generation, from: Lsn(250) })
        .then(StreamEvent::RoutedNothing { generation, upto: Lsn(300), txns: 1 });
    lives_on.breaks(&[Invariant::S4]);
}

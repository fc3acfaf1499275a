//! A week of ordinary trouble in a service that keeps its rules: snapshots that fail, connections that break, a
//! table that changes, a disk that fills, a crash, a writer that panics, a slot that is lost. `docs/runbook.md`
//! asks it its questions.

use shapefold::domain::{EventId, Generation, Incarnation, Lsn, Oid, Sid};
use shapefold::events::{
    ConsumerEvent, DestructionCause, DestructionResult, DestructionTarget, DrainCause, ExitCause, FaultClass,
    FileKind, HistoryCause, IntentId, InvalidationCause, OwnershipEvent, PreviousEnd, RemovalStep,
    ShapeEvent, SnapshotFailure, Stage, StopCause, StreamEvent,
};

use crate::figures::{says, text, verify};
use crate::golden::Story;

const ORDERS: u32 = 17_001;
const PEOPLE: u32 = 17_002;

/// The service as far as the story has to know it.
struct Week {
    story: Story,
    generation: u32,
    lsn: u64,
    shapes: u64,
    intents: u64,
}

impl Week {
    fn micros(&mut self) -> u64 {
        self.shapes += 1;
        1_779_700_000_000_000 + self.shapes
    }

    /// A shape that comes to life, and its writer.
    fn shape(&mut self, oid: u32) -> Sid {
        let (hash, micros) = (830_000_000 + self.shapes * 17, self.micros());
        let sid = self.story.shape(hash, micros, oid, self.lsn);
        self.story.start_writer(sid, 1);
        sid
    }

    /// A transaction of so many changes that comes so late, is flushed and acknowledged.
    fn commit(&mut self, sids: &[Sid], changes: u64, late_micros: i64) {
        self.lsn += 1_000 + changes * 96;
        self.story.later(late_micros);
        let seq = self.story.route_committed(self.generation, self.lsn, changes, sids, late_micros);
        self.story.later(80_000);
        self.story.flushed(sids, seq);
        self.story.later(20_000);
        self.story.ack(self.lsn + 1);
    }

    /// What follows from an end, to the last file.
    fn end(&mut self, sid: Sid, cause: InvalidationCause, because: Option<EventId>, writer: Option<u32>) {
        let ended = Some(self.story.put(because, ShapeEvent::Invalidated { sid, cause }));
        self.story.put(ended, ShapeEvent::Unrouted { sid });
        if let Some(incarnation) = writer {
            let (incarnation, cause) = (Incarnation(incarnation), ExitCause::Removed);
            let asked = Some(self.story.put(ended, ConsumerEvent::Stopping { sid, incarnation, cause }));
            let (pending_oldest, pending) = (None, 0);
            self.story.put(asked, ConsumerEvent::Exited { sid, incarnation, cause, pending_oldest, pending });
        }
        self.story.put(None, ShapeEvent::StepDone { sid, step: RemovalStep::WriterStopped });
        self.story.put(None, ShapeEvent::StepDone { sid, step: RemovalStep::SnapshotStopped });
        self.intents += 1;
        let intent = IntentId(self.intents);
        let (target, cause) = (DestructionTarget::ShapeFiles(sid), DestructionCause::ShapeInvalidated);
        let announced = self.story.put(ended, OwnershipEvent::DestructiveIntent { intent, target, cause });
        self.story.later(1_000);
        let result = DestructionResult::Done;
        self.story.put(Some(announced), OwnershipEvent::DestructiveDone { intent, result });
        self.story.put(None, ShapeEvent::StepDone { sid, step: RemovalStep::FilesTrashed });
        self.story.put(None, ShapeEvent::Gone { sid });
    }

    /// The connection breaks and comes back.
    fn reconnect(&mut self, cause: StopCause, after_micros: i64) {
        let (generation, received) = (Generation(self.generation), Lsn(self.lsn));
        self.story.put(None, StreamEvent::Stopped { generation, cause, received });
        self.story.put(None, StreamEvent::LockLost { generation });
        self.story.later(after_micros);
        self.generation += 1;
        self.story.stream(self.generation, self.lsn + 1);
    }
}

pub fn week() -> Story {
    let mut week = Week {
        story: Story::new("2026-05-25T08:00:00Z"),
        generation: 1,
        lsn: 40_000_000,
        shapes: 0,
        intents: 0,
    };
    week.story.own(1, PreviousEnd::None, "joule-1", 21, "0.1.0");
    week.story.later(900_000);
    week.story.stream(1, 40_000_000);
    let mut orders: Vec<Sid> = (0..5).map(|_| week.shape(ORDERS)).collect();
    let mut people: Vec<Sid> = (0..3).map(|_| week.shape(PEOPLE)).collect();
    week.story.at("2026-05-25T09:00:00Z");
    for _ in 0..6 {
        week.commit(&orders, 4, 5_000);
        week.commit(&people[..2], 1, 4_000);
    }
    snapshots_fail(&mut week);
    the_stream_lags(&mut week, &orders);
    a_table_changes(&mut week, &mut people, &mut orders);
    the_disk_fills(&mut week, &orders);
    a_crash(&mut week, &orders);
    a_writer_panics(&mut week, &mut orders);
    the_slot_is_lost(&mut week, orders);
    week.story
}

/// Monday noon: the pool is exhausted, and twelve shapes come at once.
fn snapshots_fail(week: &mut Week) {
    week.story.at("2026-05-25T12:00:00Z");
    let created: Vec<Sid> = (0..12)
        .map(|_| {
            week.story.later(10_000);
            let (hash, micros) = (860_000_000 + week.shapes, week.micros());
            week.story.registered(hash, micros, ORDERS, week.lsn)
        })
        .collect();
    for attempt in 1..=3 {
        week.story.later(20_000_000);
        for sid in &created {
            let (sid, failure) = (*sid, SnapshotFailure::Timeout);
            week.story.later(1_000);
            week.story.put(None, ShapeEvent::SnapshotStarted { sid, attempt });
            let failed = week.story.put(None, ShapeEvent::SnapshotFailed { sid, attempt, failure });
            if attempt == 3 {
                week.end(sid, InvalidationCause::SnapshotFailed, Some(failed), None);
            }
        }
    }
}

/// Tuesday night: a transaction of two million changes, the connection breaks three times, and commits arrive
/// late.
fn the_stream_lags(week: &mut Week, orders: &[Sid]) {
    week.story.at("2026-05-26T03:00:00Z");
    week.commit(&orders[..1], 2_000_000, 41_000_000);
    for pause in [2_000_000, 5_000_000, 11_000_000] {
        week.reconnect(StopCause::Connection, pause);
        week.commit(orders, 30, pause + 4_000_000);
    }
    week.commit(orders, 4, 6_000);
}

/// Wednesday: a migration of one table, and a truncation of rows that one shape has.
fn a_table_changes(week: &mut Week, people: &mut Vec<Sid>, orders: &mut Vec<Sid>) {
    week.story.at("2026-05-27T10:15:00Z");
    let changed =
        week.story.put(None, StreamEvent::RelationChanged { oid: Oid(PEOPLE), old: 0xa11ce, new: 0xb0b });
    for sid in people.drain(..) {
        week.end(sid, InvalidationCause::SchemaChanged, Some(changed), Some(1));
    }
    week.story.at("2026-05-27T11:00:00Z");
    let truncated = orders.remove(0);
    week.end(truncated, InvalidationCause::Truncated, None, Some(1));
}

/// Thursday: the disk is full; the service drains while it can, and comes back when there is room.
fn the_disk_fills(week: &mut Week, orders: &[Sid]) {
    week.story.at("2026-05-28T16:40:00Z");
    let (class, stage, file) = (FaultClass::NoSpace, Stage::Write, FileKind::Directory);
    let fault =
        week.story.put(None, OwnershipEvent::StorageFault { class, stage, file, sid: None, count: 1 });
    let drain = week.story.put(Some(fault), OwnershipEvent::DrainStarted { cause: DrainCause::Fatal });
    for sid in orders {
        let (sid, incarnation, cause) = (*sid, Incarnation(1), ExitCause::Drained);
        week.story.put(Some(drain), ConsumerEvent::Stopping { sid, incarnation, cause });
        week.story.exit(sid, 1, cause, None);
    }
    let (generation, received) = (Generation(week.generation), Lsn(week.lsn));
    week.story.put(None, StreamEvent::Stopped { generation, cause: StopCause::Drain, received });
    week.story.put(
        None,
        OwnershipEvent::Released { epoch: week.story.epoch(), pending: 0, acked: Lsn(week.lsn + 1) },
    );
    week.story.at("2026-05-28T16:58:00Z");
    week.story.own(2, PreviousEnd::Released, "joule-1", 340, "0.1.0");
    week.story.later(2_400_000);
    week.generation += 1;
    let (generation, from) = (week.generation, week.lsn + 1);
    week.story.stream(generation, from);
    for sid in orders {
        week.story.start_writer(*sid, 2);
    }
    week.commit(orders, 9, 7_000);
}

/// Friday: the process is killed with a transaction on its way. It comes again.
fn a_crash(week: &mut Week, orders: &[Sid]) {
    week.story.at("2026-05-29T07:30:00Z");
    week.lsn += 5_000;
    let owed = week.story.route(week.generation, week.lsn, 12, orders);
    week.story.at("2026-05-29T07:30:09Z");
    week.story.own(3, PreviousEnd::Crashed, "joule-1", 977, "0.1.0");
    week.story.later(1_700_000);
    week.generation += 1;
    let (generation, from) = (week.generation, week.lsn - 4_000);
    week.story.stream(generation, from);
    let (generation, set) = (Generation(generation), orders.iter().copied().collect());
    week.story.put(None, StreamEvent::TxnRedelivered { seq: owed, generation, set });
    for sid in orders {
        week.story.start_writer(*sid, 3);
    }
    week.story.later(90_000);
    week.story.flushed(orders, owed);
    week.story.ack(week.lsn + 1);
}

/// Saturday: one writer panics at a transaction as often as it tries; another makes no progress.
fn a_writer_panics(week: &mut Week, orders: &mut Vec<Sid>) {
    week.story.at("2026-05-30T20:00:00Z");
    week.lsn += 2_000;
    let sid = orders[0];
    let owed = week.story.route(week.generation, week.lsn, 2, &orders[..1]);
    for attempt in 1..=3 {
        let exited = week.story.exit(sid, 2 + attempt, ExitCause::Panicked, Some(owed));
        let due = week.story.in_micros(i64::from(attempt) * 1_000_000);
        week.story.put(Some(exited), ConsumerEvent::RestartScheduled { sid, attempt, due });
        week.story.later(i64::from(attempt) * 1_000_000);
        week.story.start_writer(sid, 3 + attempt);
    }
    let exited = week.story.exit(sid, 6, ExitCause::Panicked, Some(owed));
    week.end(sid, InvalidationCause::WriterFailed { attempts: 3 }, Some(exited), None);
    orders.remove(0);
    week.story.later(100_000);
    week.story.ack(week.lsn + 1);
    week.story.at("2026-05-30T21:00:00Z");
    week.lsn += 2_000;
    let owed = week.story.route(week.generation, week.lsn, 2, &orders[..1]);
    week.story.later(61_000_000);
    week.story.put(None, ConsumerEvent::StallSuspected { sid: orders[0], oldest: owed, age_ms: 61_000 });
    week.story.later(20_000_000);
    week.story.flushed(&orders[..1], owed);
    week.story.ack(week.lsn + 1);
}

/// Sunday: the slot is gone, and with it what every shape would have needed.
fn the_slot_is_lost(week: &mut Week, orders: Vec<Sid>) {
    week.story.at("2026-05-31T04:20:00Z");
    let (generation, received) = (Generation(week.generation), Lsn(week.lsn));
    let cause = StopCause::Server;
    week.story.put(None, StreamEvent::Stopped { generation, cause, received });
    week.story.put(None, StreamEvent::LockLost { generation });
    week.story.later(3_000_000);
    week.generation += 1;
    week.story.locked(week.generation);
    week.lsn += 900_000_000;
    let (name, at) = ("electric_slot_default".to_owned(), Lsn(week.lsn));
    week.story.put(None, StreamEvent::SlotObserved { name, confirmed: at, restart: at, created: true });
    let broken = week.story.put(None, StreamEvent::HistoryBroken { cause: HistoryCause::SlotLost });
    for sid in orders {
        week.end(sid, InvalidationCause::HistoryBroken, Some(broken), Some(3));
    }
    let (generation, from) = (Generation(week.generation), at);
    week.story.put(None, StreamEvent::Started { generation, from });
    let again: Vec<Sid> = (0..3).map(|_| week.shape(ORDERS)).collect();
    week.commit(&again, 6, 5_000);
}

/// A service that keeps its rules has no broken ones, whatever befalls it.
#[test]
fn a_week_of_trouble_breaks_no_rule() {
    says(&verify("week.sfx", 0), &["0 damaged places, 0 broken invariants"]);
    says(&text(&["acks", "week.sfx", "--broken"]), &[" 0 unsafe"]);
    says(&text(&["holding", "week.sfx"]), &["owing         0 of 3 shapes"]);
}

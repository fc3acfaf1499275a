//! Slow is not dead, one is not all, and what happens to all is the fault of none.

use std::time::Duration;

use shapefold::domain::{
    DefinitionHash, Epoch, Generation, Handle, Incarnation, Lsn, Oid, PgSnapshot, Seq, Sid, Timestamp, Xid,
};
use shapefold::engine::{Boot, Commit, Effect, Engine, FlushReport, Input, Policy, PostgresReady, Step};
use shapefold::events::{
    ConsumerEvent, Event, ExitCause, FlushEvent, InvalidationCause, Part, PreviousEnd, ProcessInfo, Recorded,
    ShapeEvent, StreamEvent,
};
use shapefold::state::{Allowance, State};

const TABLE: Oid = Oid(100);
const GRACE: Duration = Duration::from_secs(60);
const WINDOW: Duration = Duration::from_secs(600);

struct Fleet {
    engine: Engine,
    now: Timestamp,
    lsn: u64,
    shapes: u32,
    history: Vec<Recorded>,
    effects: Vec<Effect>,
}

fn policy() -> Policy {
    Policy {
        stall_grace: GRACE,
        stall_invalidations_max: 100,
        give_up: Allowance { shapes_max: 1_000, percent_max: 10, window: WINDOW },
        ..Policy::default()
    }
}

impl Fleet {
    /// Shapes 1 to `shapes`, live, each with a writer, on a stream that runs.
    fn of(shapes: u32) -> Fleet {
        let mut fleet = Fleet::without_snapshots(shapes);
        for sid in (1..=shapes).map(Sid) {
            let snapshot = PgSnapshot { xmin: 10, xmax: 10, xip: Vec::new() };
            fleet.take(Input::SnapshotOpened { sid, attempt: 1, snapshot, lsn: Lsn(100) });
            fleet.take(Input::SnapshotCompleted { sid, attempt: 1, rows: 0, bytes: 0 });
        }
        fleet.commit();
        fleet.flush(1..=shapes);
        fleet
    }

    fn without_snapshots(shapes: u32) -> Fleet {
        let now = Timestamp(1_000_000_000);
        let engine = Engine::new(policy());
        let mut fleet = Fleet { engine, now, lsn: 1_000, shapes, history: Vec::new(), effects: Vec::new() };
        fleet.boot();
        for number in 1..=u64::from(shapes) {
            let handle = Handle { hash: 1, micros: number };
            fleet.take(Input::CreateShape { handle, definition: DefinitionHash(number), oid: TABLE });
        }
        fleet
    }

    fn boot(&mut self) {
        let epoch = Epoch(self.engine.state().owner.epoch.0 + 1);
        self.take(Input::Boot(Boot {
            process: ProcessInfo::default(),
            epoch,
            previous_end: PreviousEnd::None,
            device: 1,
            inode: 1,
            waited_ms: 0,
            torn_values: 0,
            missing_upto: None,
        }));
        let confirmed = self.engine.state().stream.acked.max(Lsn(50));
        self.take(Input::PostgresReady(PostgresReady {
            system_id: 1,
            timeline: 1,
            server_version: 170_000,
            database: Oid(5),
            backend_pid: 9,
            slot: "slot".to_owned(),
            confirmed,
            restart: confirmed,
            slot_created: epoch == Epoch(1),
            slot_lost: false,
            published: vec![TABLE],
            publication_created: false,
            lineage: shapefold::domain::Lineage::default(),
        }));
    }

    fn take(&mut self, input: Input) -> Step {
        let step = self.engine.step(self.now, input).expect("the input is acted upon");
        self.history.extend(step.events.iter().cloned());
        self.effects.extend(step.effects.iter().cloned());
        step
    }

    /// A transaction for every shape.
    fn commit(&mut self) -> Lsn {
        self.lsn += 10;
        let generation = self.engine.state().stream.generation;
        self.take(Input::Commit(Commit {
            generation,
            lsn: Lsn(self.lsn),
            xid: Xid(20),
            committed_at: self.now,
            changes: 1,
            bytes: 1,
            set: (1..=self.shapes).map(Sid).collect(),
            tables: vec![TABLE],
            truncated: Vec::new(),
            old_row_missing: Vec::new(),
        }));
        Lsn(self.lsn)
    }

    /// The writers of these shapes have synced everything.
    fn flush(&mut self, sids: impl IntoIterator<Item = u32>) {
        let upto = self.engine.state().stream.last_seq;
        let registry = &self.engine.projections().registry;
        let report = |sid| Some(FlushReport { sid, incarnation: registry.get(sid)?, upto });
        let reports: Vec<FlushReport> = sids.into_iter().map(Sid).filter_map(report).collect();
        self.take(Input::Flushed { reports });
    }

    /// Time passes, with ticks a second apart.
    fn wait(&mut self, seconds: u64) {
        for _ in 0..seconds {
            self.now = self.now.plus(Duration::from_secs(1));
            self.take(Input::Tick);
        }
    }

    fn given_up(&self) -> Vec<(Sid, InvalidationCause)> {
        let ended = |recorded: &Recorded| match recorded.event {
            Event::Shape(ShapeEvent::Invalidated { sid, cause }) => Some((sid, cause)),
            _ => None,
        };
        self.history.iter().filter_map(ended).collect()
    }

    fn acked(&self) -> Lsn {
        let acked = |recorded: &Recorded| match recorded.event {
            Event::Stream(StreamEvent::AckSent { lsn, .. }) => Some(lsn),
            _ => None,
        };
        self.history.iter().filter_map(acked).next_back().unwrap_or_default()
    }

    fn flow(&self) -> Vec<&FlushEvent> {
        fn of_note(recorded: &Recorded) -> Option<&FlushEvent> {
            match &recorded.event {
                Event::Flush(
                    FlushEvent::Watermark { .. }
                    | FlushEvent::Flushed { .. }
                    | FlushEvent::BudgetSpent { .. },
                ) => None,
                Event::Flush(event) => Some(event),
                _ => None,
            }
        }
        self.history.iter().filter_map(of_note).collect()
    }

    fn suspected(&self) -> usize {
        let suspected = |recorded: &&Recorded| {
            matches!(recorded.event, Event::Consumer(ConsumerEvent::StallSuspected { .. }))
        };
        self.history.iter().filter(suspected).count()
    }
}

/// Incident class 6: what stops all of them ends none of them, however long it lasts.
#[test]
fn a_stall_of_all_freezes_the_ack_and_gives_nobody_up() {
    let mut fleet = Fleet::of(100);
    fleet.wait(1);
    let committed = fleet.commit();
    fleet.wait(3_600);
    assert_eq!(fleet.given_up(), []);
    assert!(fleet.acked() < committed, "{} is owed", committed);
    assert_eq!(fleet.flow(), [&FlushEvent::BudgetExhausted { due: 100, spent: 0, allowed: 10 }], "told once");
    assert_eq!(fleet.suspected(), 100, "each is named once");
    fleet.flush(1..=100);
    fleet.wait(2);
    assert!(fleet.acked() > committed);
    assert_eq!(fleet.given_up(), []);
    let [_, FlushEvent::BudgetRestored { frozen_ms }] = fleet.flow()[..] else {
        panic!("{:?}", fleet.flow())
    };
    assert!((3_400_000..3_600_000).contains(frozen_ms), "{frozen_ms}");
}

/// So many shapes are not named one by one; their number is.
#[test]
fn a_stall_of_very_many_names_some() {
    let mut fleet = Fleet::of(3_000);
    fleet.wait(1);
    fleet.commit();
    fleet.wait(200);
    assert_eq!(fleet.suspected(), 1_000);
    assert_eq!(fleet.flow(), [&FlushEvent::BudgetExhausted { due: 3_000, spent: 0, allowed: 300 }]);
    assert_eq!(fleet.given_up(), []);
}

#[test]
fn a_few_that_stand_still_are_given_up_and_the_others_go_on() {
    let mut fleet = Fleet::of(100);
    fleet.wait(1);
    fleet.commit();
    fleet.flush(11..=100);
    fleet.wait(59);
    assert_eq!((fleet.suspected(), fleet.given_up().len()), (0, 0), "within the grace");
    fleet.wait(2);
    assert_eq!((fleet.suspected(), fleet.given_up().len()), (10, 0));
    fleet.wait(62);
    let expected: Vec<_> = (1..=10).map(|sid| (Sid(sid), InvalidationCause::Stalled)).collect();
    assert_eq!(fleet.given_up(), expected);
    // The budget is used up: others wait until the window has passed.
    let committed = fleet.commit();
    fleet.flush(12..=100);
    fleet.wait(400);
    assert_eq!(fleet.given_up().len(), 10);
    assert!(matches!(fleet.flow()[..], [FlushEvent::BudgetExhausted { due: 1, spent: 10, .. }]));
    assert!(fleet.acked() < committed);
    fleet.wait(WINDOW.as_secs());
    assert_eq!(fleet.given_up().len(), 11, "each that is alone gets its turn");
    assert!(fleet.acked() > committed);
}

/// What was spent is in the fold: a crash loop has no new budget each time.
#[test]
fn the_budget_outlives_the_process() {
    let mut fleet = Fleet::of(100);
    fleet.wait(1);
    fleet.commit();
    fleet.flush(11..=100);
    fleet.wait(130);
    assert_eq!(fleet.given_up().len(), 10);
    let folded = State::from_bytes(&fleet.engine.state().to_bytes()).expect("a state reads back");
    assert_eq!(&folded, fleet.engine.state());
    fleet.engine = Engine::from_state(folded, policy());
    fleet.boot();
    let committed = fleet.commit();
    fleet.wait(200);
    assert_eq!(fleet.given_up().len(), 10, "ninety are due, ten were spent");
    assert!(fleet.acked() < committed);
}

/// A part that stands still is nobody's fault, but not for ever.
#[test]
fn a_standstill_defers_and_deferrals_are_bounded() {
    let mut fleet = Fleet::of(100);
    fleet.wait(1);
    fleet.commit();
    fleet.flush(2..=100);
    fleet.take(Input::StoodStill { part: Part::Writers(0), still: Duration::from_secs(10) });
    fleet.wait(121 + 10 * 60 - 2);
    assert_eq!(fleet.given_up(), []);
    let deferrals: Vec<u32> = fleet
        .flow()
        .into_iter()
        .filter_map(|event| match event {
            FlushEvent::StallsDeferred { shapes: 1, deferral, .. } => Some(*deferral),
            _ => None,
        })
        .collect();
    assert_eq!(deferrals, (1..=10).collect::<Vec<u32>>());
    fleet.wait(62);
    assert_eq!(fleet.given_up(), [(Sid(1), InvalidationCause::Stalled)]);
    fleet.take(Input::WentOn { part: Part::Writers(0), still: Duration::from_secs(800) });
    assert!(
        fleet
            .flow()
            .iter()
            .any(|event| matches!(event, FlushEvent::ProgressResumed { still_ms: 800_000, .. }))
    );
}

/// 4.14: a fan-out that takes minutes. What has not been handed to a writer is not owed by it yet.
#[test]
fn a_fan_out_of_minutes_is_no_stall() {
    let mut fleet = Fleet::of(20);
    fleet.take(Input::HandedOut { upto: Lsn(fleet.lsn) });
    fleet.wait(1);
    let committed = fleet.commit();
    fleet.wait(300);
    assert_eq!((fleet.suspected(), fleet.flow().len()), (0, 0));
    fleet.take(Input::HandedOut { upto: committed });
    fleet.wait(30);
    fleet.flush(1..=20);
    fleet.wait(300);
    assert_eq!(fleet.given_up(), []);
    assert_eq!(fleet.flow().len(), 0);
    assert!(fleet.acked() > committed);
}

/// 4.16: no connection for a snapshot, for five minutes. It owes, the acknowledgement waits, and it lives.
#[test]
fn a_starved_pool_is_no_stall() {
    let mut fleet = Fleet::without_snapshots(20);
    let committed = fleet.commit();
    fleet.wait(300);
    assert_eq!((fleet.given_up(), fleet.suspected(), fleet.flow().len()), (Vec::new(), 0, 0));
    assert!(fleet.acked() < committed);
    for sid in (1..=20).map(Sid) {
        let snapshot = PgSnapshot { xmin: 10, xmax: 10, xip: Vec::new() };
        fleet.take(Input::SnapshotOpened { sid, attempt: 1, snapshot, lsn: Lsn(100) });
    }
    fleet.flush(1..=20);
    fleet.wait(1);
    assert!(fleet.acked() > committed);
}

/// A process that was stopped and goes on: everything is late at once, and nobody had a chance.
#[test]
fn time_that_passed_while_nobody_looked_gives_nobody_up() {
    let mut fleet = Fleet::of(5);
    fleet.wait(1);
    fleet.commit();
    fleet.now = fleet.now.plus(Duration::from_secs(7_200));
    fleet.take(Input::Tick);
    fleet.wait(10);
    assert_eq!(fleet.given_up(), []);
    fleet.flush(1..=5);
    fleet.wait(100);
    assert_eq!(fleet.given_up(), []);
}

/// Writers that panic as often as they try: a few shapes are given up, a fleet is not, and is tried on.
#[test]
fn a_fleet_whose_writers_fail_is_kept_and_tried_further() {
    let mut fleet = Fleet::of(50);
    fleet.wait(1);
    let committed = fleet.commit();
    let mut longest = Duration::ZERO;
    for _ in 0..60 {
        let writers: Vec<(Sid, Incarnation)> = fleet.engine.projections().registry.iter().collect();
        for (sid, incarnation) in writers {
            let step = fleet.take(Input::WriterExited { sid, incarnation, cause: ExitCause::Panicked });
            for recorded in step.events {
                if let Event::Consumer(ConsumerEvent::RestartScheduled { due, .. }) = recorded.event {
                    longest = longest.max(due.since(fleet.now));
                }
            }
        }
        fleet.wait(11);
    }
    let given_up = fleet.given_up();
    assert!(given_up.len() <= 10, "at most five in ten minutes: {given_up:?}");
    assert!(given_up.iter().all(|(_, cause)| matches!(cause, InvalidationCause::WriterFailed { .. })));
    assert!(fleet.flow().iter().any(|event| matches!(event, FlushEvent::BudgetExhausted { .. })));
    assert_eq!(longest, policy().writer_backoff_max);
    assert!(fleet.acked() < committed);
    fleet.flush(1..=50);
    fleet.wait(2);
    assert!(fleet.acked() > committed);
    assert!(fleet.engine.state().owner.budget.exhausted.is_none());
}

/// The audit among restarts: an answer says nothing about writers that were started after the question, and
/// everything about the others.
#[test]
fn the_audit_flags_those_that_are_gone_and_no_others() {
    let mut fleet = Fleet::of(10);
    let asked = fleet.engine.state().last;
    let incarnation =
        |fleet: &Fleet, sid| fleet.engine.projections().registry.get(Sid(sid)).expect("it runs");
    // One is replaced between question and answer.
    let old = incarnation(&fleet, 4);
    fleet.take(Input::WriterExited { sid: Sid(4), incarnation: old, cause: ExitCause::Panicked });
    fleet.commit();
    assert_ne!(incarnation(&fleet, 4), old);
    let live = (1..=10)
        .filter(|sid| ![2, 4, 7].contains(sid))
        .map(|sid| (Sid(sid), incarnation(&fleet, sid)))
        .collect();
    let step = fleet.take(Input::LiveWriters { asked, live });
    let vanished: Vec<Sid> = step
        .events
        .iter()
        .filter_map(|recorded| match recorded.event {
            Event::Consumer(ConsumerEvent::Exited { sid, cause: ExitCause::Vanished, .. }) => Some(sid),
            _ => None,
        })
        .collect();
    assert_eq!(vanished, [Sid(2), Sid(7)]);
    // The next answer is about number four as well.
    let asked = fleet.engine.state().last;
    let step = fleet.take(Input::LiveWriters { asked, live: Vec::new() });
    let gone = |recorded: &&Recorded| {
        matches!(recorded.event, Event::Consumer(ConsumerEvent::Exited { cause: ExitCause::Vanished, .. }))
    };
    assert_eq!(step.events.iter().filter(gone).count(), 8);
    assert_eq!(fleet.engine.state().stream.generation, Generation(1));
    assert_eq!(fleet.engine.state().stream.last_seq, Seq(2));
}

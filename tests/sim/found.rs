//! What the simulator has found, each as the shortest history that shows it.

use std::time::Duration;

use shapefold::domain::{
    DefinitionHash, Epoch, Generation, Handle, Incarnation, Lsn, Oid, PgSnapshot, Sid, Timestamp, Xid,
};
use shapefold::engine::{Boot, Commit, Effect, Engine, Input, Policy, PostgresReady, Step};
use shapefold::events::{
    DrainCause, Event, ExitCause, HistoryCause, InvalidationCause, PreviousEnd, ProcessInfo, ShapeEvent,
    StopCause, StreamEvent,
};
use shapefold::state::OwnerPhase;

const SHAPE: Sid = Sid(1);
const TABLE: Oid = Oid(100);

struct Service {
    engine: Engine,
    now: Timestamp,
}

impl Service {
    fn booted() -> Service {
        let policy = Policy { stall_grace: Duration::from_secs(60), ..Policy::default() };
        let mut service = Service { engine: Engine::new(policy), now: Timestamp(1_000_000_000) };
        service.take(Input::Boot(Boot {
            process: ProcessInfo::default(),
            epoch: Epoch(1),
            previous_end: PreviousEnd::None,
            device: 1,
            inode: 1,
            waited_ms: 0,
            torn_values: 0,
            missing_upto: None,
        }));
        service
    }

    fn take(&mut self, input: Input) -> Step {
        self.engine.step(self.now, input).expect("the input is acted upon")
    }

    fn connect(&mut self, confirmed: u64, slot_created: bool) -> Step {
        self.connect_to(confirmed, slot_created, &[TABLE])
    }

    fn connect_to(&mut self, confirmed: u64, slot_created: bool, published: &[Oid]) -> Step {
        self.take(Input::PostgresReady(PostgresReady {
            system_id: 1,
            timeline: 1,
            server_version: 170_000,
            database: Oid(5),
            backend_pid: 9,
            slot: "slot".to_owned(),
            confirmed: Lsn(confirmed),
            restart: Lsn(confirmed),
            slot_created,
            slot_lost: false,
            published: published.to_vec(),
            publication_created: false,
            lineage: shapefold::domain::Lineage::default(),
        }))
    }

    fn create(&mut self) -> Step {
        let handle = Handle { hash: 1, micros: 1 };
        self.take(Input::CreateShape { handle, definition: DefinitionHash(1), oid: TABLE })
    }

    fn open_snapshot(&mut self, lsn: u64) -> Step {
        let snapshot = PgSnapshot { xmin: 10, xmax: 10, xip: Vec::new() };
        self.take(Input::SnapshotOpened { sid: SHAPE, attempt: 1, snapshot, lsn: Lsn(lsn) })
    }

    fn complete_snapshot(&mut self) -> Step {
        self.take(Input::SnapshotCompleted { sid: SHAPE, attempt: 1, rows: 0, bytes: 0 })
    }

    fn commit(&mut self, lsn: u64, to: &[Sid]) -> Step {
        self.take(Input::Commit(Commit {
            generation: Generation(1),
            lsn: Lsn(lsn),
            xid: Xid(20),
            committed_at: self.now,
            changes: 1,
            bytes: 1,
            set: to.iter().copied().collect(),
            tables: vec![TABLE],
            truncated: Vec::new(),
            old_row_missing: Vec::new(),
        }))
    }

    fn stop_stream(&mut self) -> Step {
        self.take(Input::StreamStopped { generation: Generation(1), cause: StopCause::Connection })
    }

    fn later(&mut self, seconds: u64) -> Step {
        self.now = self.now.plus(Duration::from_secs(seconds));
        self.take(Input::Tick)
    }
}

fn broken(step: &Step) -> Option<HistoryCause> {
    step.events.iter().find_map(|recorded| match recorded.event {
        Event::Stream(StreamEvent::HistoryBroken { cause }) => Some(cause),
        _ => None,
    })
}

fn invalidated(step: &Step) -> Option<InvalidationCause> {
    step.events.iter().find_map(|recorded| match recorded.event {
        Event::Shape(ShapeEvent::Invalidated { cause, .. }) => Some(cause),
        _ => None,
    })
}

/// What is committed between the snapshot of an early shape and the making of the slot never comes.
#[test]
fn a_shape_that_is_older_than_the_slot_is_given_up() {
    let mut service = Service::booted();
    service.create();
    service.open_snapshot(500);
    let step = service.connect(1_000, true);
    assert_eq!(
        (broken(&step), invalidated(&step)),
        (Some(HistoryCause::NewSlot), Some(InvalidationCause::HistoryBroken))
    );
    assert_eq!(broken(&Service::booted().connect(1_000, true)), None);
}

/// A process that made a new publication and died before it said so leaves an empty one behind, which
/// its successor finds in the best of order.
#[test]
fn a_shape_whose_table_is_not_published_any_more_is_given_up() {
    for (published, expected) in [(vec![TABLE], None), (vec![], Some(InvalidationCause::DataMissed))] {
        let mut service = Service::booted();
        service.connect(1_000, true);
        service.create();
        service.open_snapshot(1_000);
        service.complete_snapshot();
        service.stop_stream();
        let step = service.connect_to(1_000, false, &published);
        assert_eq!(invalidated(&step), expected, "{published:?}");
    }
}

/// Transactions that were not even received have no entry in the window.
#[test]
fn a_slot_that_somebody_moved_breaks_the_history() {
    for (confirmed, expected) in
        [(900, None), (1_000, None), (1_201, None), (1_202, Some(HistoryCause::SlotLost))]
    {
        let mut service = Service::booted();
        service.connect(1_000, true);
        service.create();
        service.open_snapshot(1_000);
        service.complete_snapshot();
        let acked = service.commit(1_200, &[]);
        let sent = Effect::SendStatus { generation: Generation(1), lsn: Lsn(1_201) };
        assert!(acked.effects.contains(&sent), "{acked:?}");
        service.stop_stream();
        assert_eq!(broken(&service.connect(confirmed, false)), expected, "{confirmed}");
    }
}

/// "Nothing routed yet" is not a commit at 0.
#[test]
fn nothing_is_acknowledged_before_anything_is_processed() {
    let mut service = Service::booted();
    service.connect(1_000, true);
    service.create();
    service.open_snapshot(1_000);
    let step = service.commit(1_200, &[SHAPE]);
    assert!(!step.effects.iter().any(|effect| matches!(effect, Effect::SendStatus { .. })), "{step:?}");
}

/// A writer that vanished without a word must not hold up the end.
#[test]
fn a_drain_ends_although_a_writer_vanished() {
    let mut service = Service::booted();
    service.connect(1_000, true);
    service.create();
    service.open_snapshot(1_000);
    service.complete_snapshot();
    service.commit(1_200, &[SHAPE]);
    service.take(Input::Drain { cause: DrainCause::Signal });
    assert_eq!(service.engine.state().owner.phase, OwnerPhase::Draining);
    let asked = service.engine.state().last;
    let step = service.take(Input::LiveWriters { asked, live: Vec::new() });
    assert_eq!(step.effects.last(), Some(&Effect::Exit));
}

/// The initial rows may still be copied when a writer is given up: the files stay until that ends.
#[test]
fn files_stay_while_the_snapshot_of_a_stalled_shape_is_copied() {
    let mut service = Service::booted();
    service.connect(1_000, true);
    service.create();
    service.open_snapshot(1_000);
    service.commit(1_200, &[SHAPE]);
    service.later(61);
    let stalled = service.later(61);
    assert_eq!(invalidated(&stalled), Some(InvalidationCause::Stalled));
    assert!(stalled.effects.contains(&Effect::AbortSnapshot { sid: SHAPE }));
    let (sid, incarnation, cause) = (SHAPE, Incarnation(1), ExitCause::Removed);
    let trashes = |step: &Step| step.effects.iter().any(|effect| matches!(effect, Effect::TrashFiles { .. }));
    assert!(!trashes(&service.take(Input::WriterExited { sid, incarnation, cause })));
    assert!(trashes(&service.take(Input::SnapshotStopped { sid })));
}

/// Partitions of a table that has two shapes: one has read its rows, the other has not yet.
#[test]
fn a_partition_with_rows_ends_the_shapes_that_have_read_theirs() {
    let mut service = Service::booted();
    service.connect(10, true);
    let seen =
        |tree, grown| Input::PartitionsSeen { oid: TABLE, members: vec![TABLE, Oid(101)], tree, grown };
    let ended = |step: &Step| -> Vec<(Sid, InvalidationCause)> {
        let ended = step.events.iter().filter_map(|recorded| match &recorded.event {
            Event::Shape(ShapeEvent::Invalidated { sid, cause }) => Some((*sid, *cause)),
            _ => None,
        });
        ended.collect()
    };
    let create = |hash: u64| Input::CreateShape {
        handle: Handle { hash, micros: hash },
        definition: DefinitionHash(hash),
        oid: TABLE,
    };
    service.take(create(1));
    assert_eq!(ended(&service.take(seen(7, false))), [], "nothing has been read yet");
    let snapshot = PgSnapshot { xmin: 5, xmax: 5, xip: Vec::new() };
    service.take(Input::SnapshotOpened { sid: SHAPE, attempt: 1, snapshot, lsn: Lsn(11) });
    service.take(create(2));
    assert_eq!(ended(&service.take(seen(7, false))), [], "as it was");
    assert_eq!(ended(&service.take(seen(8, true))), [], "nothing came that is not in the stream");
    let step = service.take(seen(9, false));
    assert_eq!(ended(&step), [(SHAPE, InvalidationCause::PartitionsChanged)]);
}

//! A journal with as many shapes as a large service has, and one with as many events as well.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use serde_json::Value;
use shapefold::domain::{
    DefinitionHash, Epoch, EventId, Generation, Handle, Incarnation, Lsn, Oid, Seq, Sid, SidSet, Timestamp,
    Xid,
};
use shapefold::events::{AckCause, Event, FlushEvent, Recorded, ShapeEvent, StreamEvent, encode};
use shapefold::journal::{Checkpoint, Entry, ExportWriter};
use shapefold::state::{Life, State, Writer};

use super::{Opened, ask};

pub const SHAPES: u32 = 300_000;
/// Events behind the shapes of the long file.
pub const EVENTS: u64 = 1_000_000;
/// Of each ten events these are about what no shape wants, as in a database of which little is synced.
const UNWANTED: u64 = 7;
const BEGIN: i64 = 1_770_000_000_000_000;

fn recorded(id: u64, event: impl Into<Event>) -> Recorded {
    let at = Timestamp(BEGIN + i64::try_from(id).expect("small"));
    Recorded { id: EventId(id), at, epoch: Epoch(1), because: None, event: event.into() }
}

fn state() -> &'static State {
    static STATE: OnceLock<State> = OnceLock::new();
    STATE.get_or_init(|| {
        let mut state = State::default();
        for number in 1..=SHAPES {
            let (sid, id) = (Sid(number), u64::from(number) * 2);
            let handle = Handle { hash: u64::from(number), micros: u64::from(number) };
            let (definition, oid) = (DefinitionHash(u64::from(number)), Oid(16_000 + number % 100));
            state.apply(&recorded(id - 1, ShapeEvent::Created { sid, handle, definition, oid }));
            state.apply(&recorded(id, ShapeEvent::Routed { sid, after: Seq(0), after_lsn: Lsn(0) }));
        }
        state
    })
}

fn routed(number: u64, set: SidSet) -> Event {
    let event = StreamEvent::TxnRouted {
        seq: Seq(number),
        generation: Generation(1),
        lsn: Lsn(number * 1_000_000),
        xid: Xid(700),
        committed_at: Timestamp(BEGIN),
        changes: 1,
        bytes: 100,
        set,
    };
    event.into()
}

/// The same shapes, each with a writer.
fn live_state() -> State {
    let mut state = state().clone();
    for shape in state.shapes.values_mut() {
        shape.life = Life::Live;
        shape.last_incarnation = Incarnation(1);
        shape.writer = Writer::Live { incarnation: Incarnation(1), ready: true };
    }
    state
}

fn write(path: &Path, state: &State, events: impl Iterator<Item = Event>) {
    let mut writer = ExportWriter::create(path, "{}").expect("writes");
    writer.checkpoint(&Checkpoint { upto: state.last, state: state.to_bytes() }).expect("writes");
    for (id, event) in (state.last.0 + 1..).zip(events) {
        let event = recorded(id, event);
        writer.push(&Entry { id: event.id, bytes: encode(&event) }).expect("writes");
    }
    writer.finish().expect("writes");
}

fn everyone() -> SidSet {
    SidSet::from_iter((1..=SHAPES).map(Sid))
}

/// A file whose checkpoint has 300,000 shapes, and two transactions behind it that all of them want.
pub fn file(folder: &tempfile::TempDir) -> PathBuf {
    let path = folder.path().join("many.sfx");
    write(&path, state(), (1..=2).map(|number| routed(number, everyone())));
    path
}

/// A file with 300,000 shapes and a million events behind them: transactions that three shapes want each, what
/// they flushed, what was acknowledged, and stretches of the log that nobody wants; and at the end a transaction
/// that all of them owe.
pub fn long_file(folder: &tempfile::TempDir) -> PathBuf {
    let path = folder.path().join("long.sfx");
    let usual = (1..).flat_map(|number: u64| {
        let shape =
            |part: u64| Sid(u32::try_from((number * 7 + part * 99_991) % u64::from(SHAPES)).unwrap_or(0) + 1);
        let flushed = FlushEvent::Watermark { upto: Seq(number), except: Vec::new() };
        let commit = number * 1_000_000;
        let acked = StreamEvent::AckSent { lsn: Lsn(commit + 1), cause: AckCause::Commit };
        let unwanted = (1..=UNWANTED).map(move |n| {
            let (generation, upto) = (Generation(1), Lsn(commit + n * 10));
            StreamEvent::RoutedNothing { generation, upto, txns: 1 }.into()
        });
        [routed(number, (0..3).map(shape).collect()), flushed.into(), acked.into()]
            .into_iter()
            .chain(unwanted)
    });
    let last = routed(EVENTS / (3 + UNWANTED) + 1, everyone());
    write(&path, &live_state(), usual.take(usize::try_from(EVENTS - 1).expect("fits")).chain([last]));
    path
}

#[tokio::test]
async fn answers_about_very_many_shapes_are_paged() {
    const ANSWER_BYTES_MAX: usize = 1_000_000;
    let folder = tempfile::tempdir().expect("a folder");
    let opened = Opened::over(&file(&folder));
    let shapes = u64::from(SHAPES);
    for path in [
        "/v1/moment",
        "/v1/state",
        "/v1/holding?limit=1000",
        "/v1/shapes?limit=1000",
        "/v1/consumers?limit=1000",
        "/v1/timeline",
        "/v1/diff?before=600001",
        "/v1/events?after=600000",
        "/v1/incident",
        "/v1/verify",
        "/v1/why/ack",
    ] {
        let answer = ask(opened.address, path).await;
        let bytes = answer.to_string().len();
        assert!(bytes < ANSWER_BYTES_MAX, "{path}: {bytes} bytes");
    }
    let holding = ask(opened.address, "/v1/holding?offset=299999&limit=1000").await;
    assert_eq!((&holding["owing"], &holding["shapes"]), (&shapes.into(), &shapes.into()));
    assert_eq!(holding["holders"].as_array().map(Vec::len), Some(1), "the last page");
    // All pages together are all shapes, once.
    let (mut after, mut seen) = (0, 0);
    loop {
        let page = ask(opened.address, &format!("/v1/shapes?after={after}&limit=1000")).await;
        let found = page["shapes"].as_array().expect("a list");
        assert_eq!(found[0]["sid"], after + 1);
        seen += found.len() as u64;
        let Some(next) = page["next"].as_u64() else { break };
        after = next;
        if seen == 5_000 {
            // Enough of the beginning; now the end.
            after = shapes - 2_500;
            seen = after;
        }
    }
    assert_eq!(seen, shapes);
    // A filter that lets little through looks at so many and says where to go on.
    let rare = ask(opened.address, "/v1/shapes?shape=299999-").await;
    assert_eq!((rare["shapes"].as_array().map(Vec::len), rare["next"].as_u64()), (Some(0), Some(50_000)));
    let event = ask(opened.address, "/v1/events?after=600000&limit=1").await;
    assert_eq!(event["events"][0]["event"]["set_count"], Value::from(shapes));
    assert!(event["events"][0]["event"]["set"].as_array().is_some_and(|set| set.len() <= 100));
}

//! A journal with as many shapes as a large service has.

use std::path::PathBuf;
use std::sync::OnceLock;

use serde_json::Value;
use shapefold::domain::{
    DefinitionHash, Epoch, EventId, Generation, Handle, Lsn, Oid, Seq, Sid, SidSet, Timestamp, Xid,
};
use shapefold::events::{Event, Recorded, ShapeEvent, StreamEvent, encode};
use shapefold::journal::{Checkpoint, Entry, ExportWriter};
use shapefold::state::State;

use super::{Opened, ask};

pub const SHAPES: u32 = 300_000;
const BEGIN: i64 = 1_770_000_000_000_000;

fn recorded(id: u64, event: impl Into<Event>) -> Recorded {
    let at = Timestamp(BEGIN + i64::try_from(id).expect("small"));
    Recorded { id: EventId(id), at, epoch: Epoch(1), because: None, event: event.into() }
}

/// A file whose checkpoint has 300,000 shapes, and two transactions behind it that all of them want.
pub fn file(folder: &tempfile::TempDir) -> PathBuf {
    static STATE: OnceLock<State> = OnceLock::new();
    let state = STATE.get_or_init(|| {
        let mut state = State::default();
        for number in 1..=SHAPES {
            let (sid, id) = (Sid(number), u64::from(number) * 2);
            let handle = Handle { hash: u64::from(number), micros: u64::from(number) };
            let (definition, oid) = (DefinitionHash(u64::from(number)), Oid(16_000 + number % 100));
            state.apply(&recorded(id - 1, ShapeEvent::Created { sid, handle, definition, oid }));
            state.apply(&recorded(id, ShapeEvent::Routed { sid, after: Seq(0), after_lsn: Lsn(0) }));
        }
        state
    });
    let path = folder.path().join("many.sfx");
    let mut writer = ExportWriter::create(&path, "{}").expect("writes");
    writer.checkpoint(&Checkpoint { upto: state.last, state: state.to_bytes() }).expect("writes");
    for number in 1..=2_u64 {
        let routed = recorded(
            state.last.0 + number,
            StreamEvent::TxnRouted {
                seq: Seq(number),
                generation: Generation(1),
                lsn: Lsn(number * 1_000_000),
                xid: Xid(700),
                committed_at: Timestamp(BEGIN),
                changes: 1,
                bytes: 100,
                set: SidSet::from_iter((1..=SHAPES).map(Sid)),
            },
        );
        writer.push(&Entry { id: routed.id, bytes: encode(&routed) }).expect("writes");
    }
    writer.finish().expect("writes");
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

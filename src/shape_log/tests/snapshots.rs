//! Initial rows: chunks, their end, and reading them while they are written.

use super::*;
use crate::domain::PgSnapshot;
use crate::shape_log::{
    SETTLE_EACH_MAX, SimFault, SnapshotDone, SnapshotFollow, SnapshotState, SnapshotWriter, settle_all,
};

const END: &str = r#"{"headers":{"control":"snapshot-end","xmin":"10","xmax":"20","xip_list":["12","14"]}}"#;
/// One row of these tests, without comma.
const ROW: u64 = 144;

fn visible() -> PgSnapshot {
    PgSnapshot { xmin: 10, xmax: 20, xip: vec![12, 14] }
}

fn begin(shape: &Shape, chunk: u64) -> SnapshotWriter {
    SnapshotWriter::create(&shape.files, &definition(), Arc::clone(&shape.reader), chunk).expect("begins")
}

fn push(writer: &mut SnapshotWriter, rows: u64) {
    for row in 0..rows {
        let id = format!("{row:04}");
        writer.push_row(&[Value::Text(b"text"), Value::Null, Value::Text(id.as_bytes())]).expect("a row");
    }
}

/// Messages per chunk.
fn chunks(view: &ShapeView) -> Vec<usize> {
    let mut lens = Vec::new();
    let mut from = Offset::BeforeAll;
    while range(view, from).end < Offset::SNAPSHOT_END {
        let (end, body) = body(view, from);
        assert_eq!(end, Offset::snapshot_chunk(lens.len() as u64));
        lens.push(messages(body.as_bytes()).count());
        from = end;
    }
    lens
}

#[test]
fn chunks_end_where_the_contract_says() {
    for (rows, threshold, expected) in [
        (0, 1, vec![1]),
        (3, 10_000, vec![4]),
        (3, ROW + 1, vec![1, 1, 1, 1]),
        (3, ROW + 2, vec![2, 2]),
        (4, 2 * ROW + 2, vec![2, 2, 1]),
        (4, 2 * ROW + 3, vec![3, 2]),
    ] {
        let shape = Shape::new(CHUNK);
        let mut writer = begin(&shape, threshold);
        push(&mut writer, rows);
        let done = writer.finish(&visible()).expect("done");
        assert_eq!(done, SnapshotDone { rows, bytes: rows * (ROW + 1) + END.len() as u64 + 1 });
        assert_eq!(chunks(&shape.reader.view()), expected, "{rows} rows, {threshold}");
        let (_, last) = body(
            &shape.reader.view(),
            match expected.len() {
                1 => Offset::BeforeAll,
                len => Offset::snapshot_chunk(len as u64 - 2),
            },
        );
        assert!(last.ends_with(END), "{last}");
        shape.disk.crash(7);
        let again = shape.reopen();
        assert_eq!(again.reader.view().snapshot_state(), SnapshotState::Complete);
        assert_eq!(chunks(&again.reader.view()), expected, "after a crash");
    }
}

#[test]
fn a_row_is_an_insert_without_position() {
    let shape = Shape::new(CHUNK);
    let mut writer = begin(&shape, CHUNK);
    push(&mut writer, 1);
    writer.finish(&visible()).expect("done");
    let row = r#"{"key":"\"public\".\"items\"/\"0000\"","value":{"a":"text","b":null,"id":"0000"},"headers":{"operation":"insert","relation":["public","items"]}}"#;
    let (end, body) = body(&shape.reader.view(), Offset::BeforeAll);
    assert_eq!((end, body), (Offset::snapshot_chunk(0), format!("{row},{END}")));
    assert!(
        !range(&shape.reader.view(), Offset::BeforeAll).up_to_date,
        "contract 1.11: it is to be cached for long"
    );
}

#[test]
fn after_the_snapshot_comes_the_log() {
    let mut shape = Shape::new(CHUNK);
    let writer = begin(&shape, CHUNK);
    assert!(matches!(shape.reader.view().read(Offset::BeforeAll), Ok(Read::Pending { chunk: 0 })));
    shape.transaction(50, &[text(1)]);
    let written_meanwhile = shape.reader.view();
    writer.finish(&visible()).expect("done");
    let view = shape.reader.view();
    assert_eq!(view.last(), Offset::new(Lsn(50), 0), "the log's part of the view is kept");
    for from in ["0_0", "0_7", "0_inf"] {
        assert_eq!(body(&view, from.parse().expect("an offset")).0, view.last(), "{from}");
    }
    assert!(matches!(written_meanwhile.read(Offset::BeforeAll), Ok(Read::Pending { chunk: 0 })));
}

#[test]
fn a_follower_reads_the_same_bytes() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().expect("a runtime");
    let shape = Shape::new(CHUNK);
    let mut writer = begin(&shape, 1 << 20);
    let followers: Vec<_> = (0..3)
        .map(|chunk| {
            let mut follow = SnapshotFollow::new(Arc::clone(&shape.reader), chunk);
            runtime.spawn(async move {
                let mut body = Vec::new();
                while let Some(piece) = follow.next().await? {
                    body.extend_from_slice(&piece);
                }
                Ok::<_, ShapeLogError>(body)
            })
        })
        .collect();
    for _ in 0..10 {
        push(&mut writer, 1000);
        writer.show().expect("shown");
    }
    writer.finish(&visible()).expect("done");
    let view = shape.reader.view();
    let offsets = [Offset::BeforeAll, Offset::snapshot_chunk(0)];
    for (follower, from) in followers.into_iter().zip(offsets.map(Some).into_iter().chain([None])) {
        let followed = runtime.block_on(follower).expect("no panic");
        match from {
            Some(from) => assert_eq!(followed.expect("a chunk"), body(&view, from).1.into_bytes()),
            None => assert!(followed.is_err(), "no such chunk"),
        }
    }
    assert_eq!(chunks(&view).len(), 2);
}

#[test]
fn a_snapshot_that_is_given_up_fails_its_readers() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let shape = Shape::new(CHUNK);
    let mut writer = begin(&shape, CHUNK);
    push(&mut writer, 5);
    writer.show().expect("shown");
    let mut follow = SnapshotFollow::new(Arc::clone(&shape.reader), 0);
    assert!(runtime.block_on(follow.next()).expect("rows").is_some());
    drop(writer);
    assert_eq!(runtime.block_on(follow.next()), Err(ShapeLogError::SnapshotFailed));
    assert!(matches!(shape.reader.view().read(Offset::BeforeAll), Err(ShapeLogError::SnapshotFailed)));
    shape.disk.crash(3);
    assert_eq!(shape.reopen().reader.view().snapshot_state(), SnapshotState::Absent);
    let again = shape.reopen();
    begin(&again, CHUNK).finish(&visible()).expect("a second try");
    assert_eq!(chunks(&again.reader.view()), [1]);
}

#[test]
fn changes_only_has_the_end_and_nothing_else() {
    let shape = Shape::new(CHUNK);
    let definition = ShapeDefinition { log: LogMode::ChangesOnly, ..definition() };
    let writer =
        SnapshotWriter::create(&shape.files, &definition, Arc::clone(&shape.reader), 1).expect("begins");
    writer.finish(&visible()).expect("done");
    assert_eq!(body(&shape.reader.view(), Offset::BeforeAll).1, END);
}

/// New shapes, one or many: what every crash leaves of them once they are settled, and before.
#[test]
fn new_shapes_are_durable_as_a_whole_once_they_are_settled() {
    for count in [1, SETTLE_EACH_MAX, SETTLE_EACH_MAX + 1] {
        let disk = SimDisk::new();
        let shared: Arc<dyn Disk> = Arc::new(disk.clone());
        let handles: Vec<Handle> = (1..=count as u64).map(|hash| Handle { hash, micros: 7 }).collect();
        let seal = |handle: &Handle| {
            let made = ShapeFiles::lay_out(Arc::clone(&shared), Path::new(DATA), *handle, &definition());
            let (files, unsynced) = made.expect("a directory");
            let reader = ShapeReader::new(&files);
            let mut writer =
                SnapshotWriter::create(&files, &definition(), Arc::clone(&reader), CHUNK).expect("begins");
            push(&mut writer, 3);
            (reader, writer.seal(&visible(), Some(unsynced)).expect("it is written"))
        };
        let (readers, sealed): (Vec<_>, Vec<_>) = handles.iter().map(seal).unzip();
        let left = |handle: &Handle| {
            let files = ShapeFiles::open(Arc::new(disk.certain()), Path::new(DATA), *handle);
            let snapshot = ShapeReader::open(&files).expect("readable").view().snapshot_state();
            files.read_definition().is_ok_and(|read| read == definition())
                && snapshot == SnapshotState::Complete
        };
        assert!(!handles.iter().any(left), "{count}: nothing is durable yet");
        let writing = |reader: &Arc<ShapeReader>| reader.view().snapshot_state() == SnapshotState::Writing;
        assert!(readers.iter().all(writing), "{count}: and nobody is told that it is");
        for done in settle_all(&disk, sealed) {
            assert_eq!(done.expect("the disk works").rows, 3);
        }
        assert!(handles.iter().all(left), "{count}");
        assert!(readers.iter().all(|reader| reader.view().snapshot_state() == SnapshotState::Complete));
    }
}

/// A failed sync fails each of those that it was for, and readers see it.
#[test]
fn what_could_not_be_settled_has_failed() {
    for count in [1, SETTLE_EACH_MAX + 1] {
        let disk = SimDisk::new();
        let shared: Arc<dyn Disk> = Arc::new(disk.clone());
        let (readers, sealed): (Vec<_>, Vec<_>) = (1..=count as u64)
            .map(|hash| {
                let handle = Handle { hash, micros: 7 };
                let made = ShapeFiles::lay_out(Arc::clone(&shared), Path::new(DATA), handle, &definition());
                let (files, unsynced) = made.expect("a directory");
                let reader = ShapeReader::new(&files);
                let writer = SnapshotWriter::create(&files, &definition(), Arc::clone(&reader), CHUNK);
                let sealed = writer.expect("begins").seal(&visible(), Some(unsynced));
                (reader, sealed.expect("it is written"))
            })
            .unzip();
        disk.fail_call(disk.calls() + 1, SimFault::Errno(5));
        let settled = settle_all(&disk, sealed);
        assert!(settled.iter().all(Result::is_err), "{settled:?}");
        assert!(readers.iter().all(|reader| reader.view().snapshot_state() == SnapshotState::Failed));
    }
}

/// No reader is handed the note, and it is there after a restart; damage to it is found.
#[test]
fn a_note_is_found_again_and_is_no_part_of_the_snapshot() {
    let shape = Shape::new(CHUNK);
    let mut writer = begin(&shape, ROW + 2);
    push(&mut writer, 3);
    writer.note(b"only for us".to_vec());
    let done = writer.finish(&visible()).expect("done");
    assert_eq!(done.bytes, 3 * (ROW + 1) + END.len() as u64 + 1);
    let written = shape.reader.view();
    let read = ShapeReader::open(&shape.files).expect("opens").view();
    assert_eq!(chunks(&read), chunks(&written));
    assert_eq!(read.snapshot_note().expect("reads"), b"only for us");
    assert_eq!(read.snapshot_state(), SnapshotState::Complete);
    let path = shape.files.path("snapshot");
    let file = shape.disk.open(&path).expect("opens");
    file.write_at(b"X", done.bytes).expect("writes");
    let damaged = ShapeReader::open(&shape.files).expect("opens").view();
    assert!(damaged.snapshot_note().is_err());
    assert_eq!(chunks(&damaged), chunks(&written));
}

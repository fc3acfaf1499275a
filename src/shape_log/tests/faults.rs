//! Calls that fail: the fault has its class, and nothing counts as durable that is not (X3).

use super::*;
use crate::domain::PgSnapshot;
use crate::shape_log::{
    FaultClass, FileKind, SimFault, SnapshotState, SnapshotWriter, Stage, StorageFault, flush_all,
    list_shapes, list_trash, purge,
};

const ENOSPC: i32 = 28;
const EIO: i32 = 5;

/// Runs a history until its first error; gives the last offset that was reported as durable.
fn history(shape: &mut Shape) -> (Offset, Option<ShapeLogError>) {
    let mut durable = Offset::SNAPSHOT_END;
    for tx in 1..=6 {
        let rows = if tx == 4 { vec![text(200_000); 8] } else { vec![text(50), text(60)] };
        if let Err(error) = shape.try_transaction(tx, &rows) {
            return (durable, Some(error));
        }
        let disk = Arc::clone(&shape.files.disk);
        match flush_all(disk.as_ref(), [&mut shape.writer]).remove(0) {
            Ok(offset) => durable = offset,
            Err(fault) => {
                assert_eq!(shape.writer.durable(), durable, "no progress");
                let again = flush_all(disk.as_ref(), [&mut shape.writer]).remove(0);
                assert_eq!(again, Err(fault), "the file is left alone");
                return (durable, Some(fault.into()));
            }
        }
    }
    (durable, None)
}

#[test]
fn every_call_may_fail() {
    every_call_fails(None);
}

#[test]
fn every_call_may_fail_where_shapes_share_files() {
    every_call_fails(Some(1 << 20));
    every_call_fails(Some(600));
}

fn every_call_fails(packed: Packed) {
    let mut undisturbed = Shape::new_in(500, packed);
    let (first, _) = (undisturbed.disk.calls(), history(&mut undisturbed));
    let calls = undisturbed.disk.calls() - first;
    let expected = walk(&undisturbed.reader.view(), Offset::SNAPSHOT_END).0;
    let mut failed = 0;
    for call in 1..=calls {
        for fault in [SimFault::Errno(ENOSPC), SimFault::Errno(EIO), SimFault::Short(7)] {
            let mut shape = Shape::new_in(500, packed);
            shape.disk.fail_call(shape.disk.calls() + call, fault);
            let (durable, error) = history(&mut shape);
            failed += u32::from(error.is_some());
            if let Some(ShapeLogError::Storage(found)) = error {
                let class = match fault {
                    SimFault::Errno(ENOSPC) => FaultClass::NoSpace,
                    _ => FaultClass::Transient { errno: EIO },
                };
                assert_eq!(found.class, class, "call {call}");
            }
            // Readers go on with what they have.
            let seen = walk(&shape.reader.view(), Offset::SNAPSHOT_END).0;
            assert!(expected.starts_with(&seen));
            shape.disk.crash(call);
            let left = shape.reopen();
            assert!(
                left.recovered.last >= durable,
                "call {call}: {durable} was durable, {:?} left",
                left.recovered
            );
        }
    }
    assert!(failed > 10, "{failed}");
}

#[test]
fn a_failed_barrier_fails_all() {
    let shapes = 40;
    let disk = SimDisk::new();
    let shared: Arc<dyn Disk> = Arc::new(disk.clone());
    let mut writers: Vec<LogWriter> = (0..shapes)
        .map(|micros| {
            let files = ShapeFiles::create(
                Arc::clone(&shared),
                Path::new(DATA),
                Handle { hash: 1, micros },
                &definition(),
            )
            .expect("made");
            let reader = ShapeReader::new(&files);
            let (mut writer, _) =
                LogWriter::recover(&files, &definition(), reader, Incarnation(1), CHUNK, Verify::Tail)
                    .expect("opens");
            writer.begin(Lsn(5), Xid(1)).expect("begins");
            writer.push(&insert(0, &wire(&definition()), &["1", "a", "t"]), Op::Insert).expect("a row");
            writer.commit().expect("commits");
            writer.write_out().expect("written");
            writer
        })
        .collect();
    disk.fail_call(disk.calls() + 1, SimFault::Errno(EIO));
    let fault =
        StorageFault { class: FaultClass::Transient { errno: EIO }, stage: Stage::Sync, file: FileKind::Log };
    assert_eq!(flush_all(&disk, &mut writers), vec![Err(fault); shapes as usize]);
    assert!(writers.iter().all(|writer| writer.durable() == Offset::SNAPSHOT_END));
    assert_eq!(writers[0].begin(Lsn(6), Xid(1)), Err(fault.into()));
}

#[test]
fn a_shape_that_is_gone_is_said_to_be_gone() {
    let mut shape = Shape::new(CHUNK);
    shape.transaction(1, &[text(1)]);
    shape.flush();
    let data = Path::new(DATA);
    assert_eq!(list_shapes(&shape.disk, data), Ok(vec![HANDLE]));
    assert_eq!(list_trash(&shape.disk, data), Ok(vec![]));
    shape.files.trash(data).expect("moved");
    assert_eq!(list_shapes(&shape.disk, data), Ok(vec![]));
    let vanished = |error: ShapeLogError| {
        matches!(error, ShapeLogError::Storage(StorageFault { class: FaultClass::Vanished, .. }))
    };
    assert!(shape.files.trash(data).is_err_and(vanished));
    assert!(shape.files.read_definition().is_err_and(vanished));
    shape.reader.release_files();
    assert!(shape.reader.view().read(Offset::SNAPSHOT_END).is_err_and(vanished));
    assert_eq!(list_trash(&shape.disk, data), Ok(vec![HANDLE.to_string()]));
    purge(&shape.disk, data, &HANDLE.to_string()).expect("purged");
    assert!(purge(&shape.disk, data, &HANDLE.to_string()).is_err_and(vanished));
    assert_eq!(list_trash(&shape.disk, data), Ok(vec![]));
}

/// A snapshot is complete after a crash exactly if `finish` said so.
#[test]
fn a_snapshot_is_complete_or_it_is_not() {
    let visible = PgSnapshot { xmin: 1, xmax: 1, xip: vec![] };
    let take = |shape: &Shape| -> Result<(), ShapeLogError> {
        let mut writer = SnapshotWriter::create(&shape.files, &definition(), Arc::clone(&shape.reader), 300)?;
        for id in ["1", "2", "3"] {
            writer.push_row(&[Value::Text(b"a"), Value::Null, Value::Text(id.as_bytes())])?;
        }
        writer.finish(&visible).map(|_| ())
    };
    let undisturbed = Shape::new(CHUNK);
    let before = undisturbed.disk.calls();
    take(&undisturbed).expect("the disk works");
    let calls = undisturbed.disk.calls() - before;
    let expected = body(&undisturbed.reader.view(), Offset::BeforeAll);
    let mut failed = 0;
    for call in 1..=calls {
        for fault in [SimFault::Errno(ENOSPC), SimFault::Short(5)] {
            let shape = Shape::new(CHUNK);
            shape.disk.fail_call(shape.disk.calls() + call, fault);
            let taken = take(&shape);
            failed += u32::from(taken.is_err());
            assert_eq!(shape.reader.view().snapshot_state() == SnapshotState::Complete, taken.is_ok());
            shape.disk.crash(call);
            let left = shape.reopen().reader.view();
            match (taken.is_ok(), left.snapshot_state()) {
                (true, state) => assert_eq!(state, SnapshotState::Complete, "call {call}"),
                // Only the sync failed: all the bytes may have arrived.
                (false, SnapshotState::Complete) => assert_eq!(body(&left, Offset::BeforeAll), expected),
                (false, state) => assert_eq!(state, SnapshotState::Absent),
            }
        }
    }
    assert!(failed >= 5, "{failed}");
}

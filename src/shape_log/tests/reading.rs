//! Following offsets through file and memory.

use super::*;
use crate::shape_log::{OPEN_BYTES_MAX, TAIL_BYTES_MAX, flush_all};

pub(super) fn offset(text: &str) -> Offset {
    text.parse().expect("an offset")
}

/// Every position of a log, one before and one after: the answer is the rest of the log, whatever
/// part of it is in the file.
fn check_every_offset(shape: &Shape) {
    let view = shape.reader.view();
    let (all, _) = walk(&view, Offset::SNAPSHOT_END);
    for index in 0..all.len() {
        let Offset::At { tx, op: crate::domain::Op::At(op) } = offset(&all[index]) else {
            panic!("a real offset")
        };
        for from in [
            Some(Offset::new(tx, op)),
            Some(Offset::new(tx, op + 1)),
            op.checked_sub(1).map(|op| Offset::new(tx, op)),
        ] {
            let Some(from) = from.filter(|from| *from <= view.last()) else { continue };
            let rest: Vec<String> = all.iter().filter(|position| offset(position) > from).cloned().collect();
            assert_eq!(walk(&view, from).0, rest, "after {from}");
        }
    }
}

#[test]
fn follows_offsets_across_the_seam_of_file_and_memory() {
    for flushed_after in 0..5 {
        for chunk in [300, 700, CHUNK] {
            let mut shape = Shape::new(chunk);
            for tx in 1..=4 {
                shape.transaction(tx * 10, &vec![text(40); tx as usize]);
                if tx == flushed_after {
                    shape.flush();
                }
            }
            check_every_offset(&shape);
            let before = walk(&shape.reader.view(), Offset::SNAPSHOT_END);
            shape.flush();
            check_every_offset(&shape);
            assert_eq!(
                walk(&shape.reader.view(), Offset::SNAPSHOT_END),
                before,
                "the same bodies from the file"
            );
            let again = shape.reopen();
            assert_eq!(again.recovered, Recovered { last: offset("40_6"), trimmed_bytes: 0 });
            assert_eq!(walk(&again.reader.view(), Offset::SNAPSHOT_END), before, "the same after a restart");
        }
    }
}

#[test]
fn a_transaction_is_seen_whole_or_not_at_all() {
    let mut shape = Shape::new(CHUNK);
    shape.transaction(10, &[text(10)]);
    shape.writer.begin(Lsn(20), Xid(1)).expect("begins");
    let rows = OPEN_BYTES_MAX / 1000 * 3;
    for row in 0..rows as u64 {
        let change = insert(row * 2, &shape.relation, &[&row.to_string(), &text(1000), "f"]);
        shape.writer.push(&change, Op::Insert).expect("a row");
    }
    assert_eq!(shape.reader.view().last(), offset("10_0"));
    assert_eq!(shape.flush(), offset("10_0"), "an open transaction is not durable");
    assert!(body(&shape.reader.view(), offset("10_0")).1.is_empty());
    let done = shape.writer.commit().expect("commits");
    assert_eq!((done.messages, done.last), (rows as u64, Offset::new(Lsn(20), rows as u64 * 2 - 2)));
    let (seen, bodies) = walk(&shape.reader.view(), offset("10_0"));
    assert_eq!(seen.len(), rows);
    assert!(bodies.len() >= 3, "chunks end inside a transaction");
    let lasts: usize = bodies.iter().map(|(_, body)| body.matches("\"last\":true").count()).sum();
    assert_eq!(lasts, 1);
    assert_eq!(walk(&shape.reopen().reader.view(), offset("10_0")), (seen, bodies));
}

#[test]
fn an_aborted_transaction_leaves_nothing() {
    let mut shape = Shape::new(CHUNK);
    shape.transaction(10, &[text(10)]);
    let before = walk(&shape.reader.view(), Offset::SNAPSHOT_END);
    for rows in [1, 3000] {
        shape.writer.begin(Lsn(20), Xid(1)).expect("begins");
        for row in 0..rows {
            let change = insert(row * 2, &shape.relation, &["1", &text(1000), "f"]);
            shape.writer.push(&change, Op::Insert).expect("a row");
        }
        shape.writer.abort().expect("aborts");
        assert_eq!(walk(&shape.reader.view(), Offset::SNAPSHOT_END), before);
    }
    shape.transaction(30, &[text(10)]);
    shape.flush();
    assert_eq!(shape.reopen().recovered, Recovered { last: offset("30_0"), trimmed_bytes: 0 });
}

#[test]
fn what_the_log_has_is_dropped_when_it_is_sent_again() {
    let mut shape = Shape::new(CHUNK);
    shape.transaction(10, &[text(1), text(2)]);
    shape.flush();
    let mut shape = shape.reopen();
    let before = walk(&shape.reader.view(), Offset::SNAPSHOT_END);
    shape.writer.begin(Lsn(10), Xid(10)).expect("begins");
    let change = insert(0, &shape.relation, &["1", "a", "f"]);
    shape.writer.push(&change, Op::Insert).expect("a row");
    let done = shape.writer.commit().expect("commits");
    assert_eq!((done.messages, done.skipped, done.last), (0, 1, offset("10_2")));
    assert_eq!(walk(&shape.reader.view(), Offset::SNAPSHOT_END), before);
}

#[test]
fn answers_beyond_and_up_to_date() {
    let mut shape = Shape::new(CHUNK);
    let view = shape.reader.view();
    let at_end = range(&view, Offset::SNAPSHOT_END);
    assert!(at_end.up_to_date && at_end.body.is_empty() && at_end.end == Offset::SNAPSHOT_END);
    assert!(matches!(view.read(offset("1_0")), Ok(Read::Beyond)));
    shape.transaction(10, &[text(1)]);
    assert!(matches!(view.read(offset("1_0")), Ok(Read::Beyond)), "an old view stays as it was");
    let view = shape.reader.view();
    assert!(matches!(view.read(offset("10_1")), Ok(Read::Beyond)));
    assert!(matches!(view.read(offset("10_inf")), Ok(Read::Beyond)));
    assert!(range(&view, offset("10_0")).up_to_date);
}

#[test]
fn a_view_outlives_flushes_and_writers() {
    let mut shape = Shape::new(CHUNK);
    for tx in 1..=3 {
        shape.transaction(tx, &[text(100)]);
    }
    let view = shape.reader.view();
    let before = walk(&view, Offset::SNAPSHOT_END);
    shape.flush();
    shape.transaction(4, &vec![text(1000); TAIL_BYTES_MAX / 500]);
    shape.flush();
    let Shape { writer, reader, files, .. } = shape;
    drop((writer, reader));
    assert_eq!(walk(&view, Offset::SNAPSHOT_END), before);
    let reading = range(&view, Offset::SNAPSHOT_END);
    files.trash(Path::new(DATA)).expect("moved");
    assert_eq!(reading.body.flatten().map(|piece| piece.len()).sum::<usize>(), before.1[0].1.len());
}

#[test]
fn chunks_end_where_the_contract_says() {
    // One message is 208 bytes: a chunk ends with the entry that takes the sum to the threshold.
    for (threshold, per_chunk) in [(1, 1), (208, 1), (209, 2), (416, 2), (417, 3)] {
        let mut shape = Shape::new(threshold);
        for tx in 10..22 {
            shape.transaction(tx, &[text(20)]);
        }
        let (_, bodies) = walk(&shape.reader.view(), Offset::SNAPSHOT_END);
        let lens: Vec<usize> = bodies.iter().map(|(_, body)| messages(body.as_bytes()).count()).collect();
        assert_eq!(messages(bodies[0].1.as_bytes()).next().map(<[u8]>::len), Some(208));
        assert_eq!(lens, vec![per_chunk; 12 / per_chunk], "threshold {threshold}");
        assert!(range(&shape.reader.view(), offset("20_0")).up_to_date, "the end of the log is up to date");
    }
}

#[test]
fn many_writers_are_flushed_by_one_barrier() {
    let disk = SimDisk::new();
    let shared: Arc<dyn Disk> = Arc::new(disk.clone());
    let mut shapes: Vec<(ShapeFiles, LogWriter)> = (0..100)
        .map(|micros| {
            let handle = Handle { hash: 1, micros };
            let files = ShapeFiles::create(Arc::clone(&shared), Path::new(DATA), handle, &definition())
                .expect("made");
            let reader = ShapeReader::new(&files);
            let writer =
                LogWriter::recover(&files, &definition(), reader, Incarnation(1), CHUNK, Verify::Tail)
                    .expect("opens")
                    .0;
            (files, writer)
        })
        .collect();
    let relation = wire(&definition());
    for (_, writer) in &mut shapes {
        writer.begin(Lsn(5), Xid(1)).expect("begins");
        writer.push(&insert(0, &relation, &["1", "a", "t"]), Op::Insert).expect("a row");
        writer.commit().expect("commits");
    }
    let before = disk.calls();
    let results = flush_all(&disk, shapes.iter_mut().map(|(_, writer)| writer));
    assert_eq!(results, vec![Ok(offset("5_0")); 100]);
    assert_eq!(disk.calls() - before, 301, "open, create and write each, and one barrier");
    disk.crash(1);
    for (files, _) in &shapes {
        let reader = ShapeReader::open(files).expect("opens");
        let recovered = LogWriter::recover(files, &definition(), reader, Incarnation(2), CHUNK, Verify::Tail)
            .expect("opens")
            .1;
        assert_eq!(recovered.last, offset("5_0"));
    }
}

/// A reader that registers and then checks does not miss the commit between the two.
#[test]
fn wakes_who_waits() {
    let mut shape = Shape::new(CHUNK);
    let reader = Arc::clone(&shape.reader);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().expect("a runtime");
    for tx in 1..=200 {
        let reader = Arc::clone(&reader);
        let waiting = runtime.spawn(async move {
            reader.wait_for(|view| view.last() >= Offset::new(Lsn(tx), 0)).await.last()
        });
        shape.transaction(tx, &[text(1)]);
        assert_eq!(runtime.block_on(waiting).expect("no panic"), Offset::new(Lsn(tx), 0));
    }
}

/// Recovery starts at a mark in the middle of a chunk: the chunk ends where it would have ended.
#[test]
fn a_restart_does_not_move_the_end_of_a_chunk() {
    let expected = {
        let mut shape = Shape::new(100_000);
        (1..200).for_each(|tx| shape.transaction(tx, &[text(1000)]));
        walk(&shape.reader.view(), Offset::SNAPSHOT_END)
    };
    assert!(expected.1.len() > 2);
    for before in [1, 60, 70, 85, 100, 150] {
        let mut shape = Shape::new(100_000);
        (1..before).for_each(|tx| shape.transaction(tx, &[text(1000)]));
        shape.flush();
        let mut shape = shape.reopen();
        (before..200).for_each(|tx| shape.transaction(tx, &[text(1000)]));
        assert_eq!(walk(&shape.reader.view(), Offset::SNAPSHOT_END), expected, "restarted after {before}");
    }
}

/// Readers that follow the offsets of a busy shape get each message once, in order.
#[test]
fn readers_follow_a_busy_writer() {
    const TRANSACTIONS: u64 = 1500;
    let mut shape = Shape::new(20_000);
    std::thread::scope(|scope| {
        let reading: Vec<_> = (0..2)
            .map(|_| {
                let reader = Arc::clone(&shape.reader);
                scope.spawn(move || {
                    let (mut from, mut seen) = (Offset::SNAPSHOT_END, Vec::new());
                    while from.tx() < Lsn(TRANSACTIONS) {
                        let (end, text) = body(&reader.view(), from);
                        seen.extend(messages(text.as_bytes()).map(position));
                        from = end;
                    }
                    seen
                })
            })
            .collect();
        for tx in 1..=TRANSACTIONS {
            shape.transaction(tx, &[text(100), text(10)]);
            if tx % 7 == 0 {
                shape.flush();
            }
        }
        let all: Vec<String> =
            (1..=TRANSACTIONS).flat_map(|tx| [format!("{tx}_0"), format!("{tx}_2")]).collect();
        for reader in reading {
            assert_eq!(reader.join().expect("no panic"), all);
        }
    });
}

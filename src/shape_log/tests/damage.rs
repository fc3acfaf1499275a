//! A byte that is not what was written is a typed error, wherever it is: never a panic, never other
//! rows.

use super::*;
use crate::shape_log::{FaultClass, SnapshotWriter};

fn shape() -> Shape {
    let mut shape = Shape::new(600);
    for tx in 1..=5 {
        shape.transaction(tx * 10, &[text(30), text(30)]);
        if tx != 4 {
            shape.flush();
        }
    }
    shape
}

/// All of a log; `None` after an error, which must be one of damage.
fn read_all(view: &ShapeView, mut from: Offset) -> Option<String> {
    let mut all = String::new();
    loop {
        let range = match view.read(from) {
            Ok(Read::Range(range)) => range,
            Ok(other) => panic!("{other:?}"),
            Err(error) => return is_damage(error),
        };
        (from, all) = (range.end, all + "|");
        for piece in range.body {
            match piece {
                Ok(piece) => {
                    all.push_str(std::str::from_utf8(&piece).expect("only what was written is handed out"))
                }
                Err(error) => return is_damage(error),
            }
        }
        if range.up_to_date {
            return Some(all);
        }
    }
}

fn is_damage<T>(error: ShapeLogError) -> Option<T> {
    let ShapeLogError::Storage(fault) = error else { panic!("{error}") };
    assert!(matches!(fault.class, FaultClass::Corrupt { .. }), "{fault}");
    None
}

#[test]
fn in_the_log_while_reading() {
    let shape = shape();
    let log = shape.files.path("log");
    let view = shape.reader.view();
    let sound = read_all(&view, Offset::SNAPSHOT_END).expect("sound");
    for at in 0..shape.disk.content(&log).expect("a log").len() {
        shape.disk.damage(&log, at, 0x04).expect("damaged");
        assert_eq!(read_all(&view, Offset::SNAPSHOT_END), None, "byte {at}");
        let from_inside = read_all(&view, Offset::new(Lsn(30), 0));
        assert!(from_inside.is_none_or(|rest| sound.ends_with(rest.trim_start_matches('|'))), "byte {at}");
        shape.disk.damage(&log, at, 0x04).expect("repaired");
    }
    assert_eq!(read_all(&view, Offset::SNAPSHOT_END), Some(sound));
}

#[test]
fn in_the_log_at_recovery() {
    let shape = shape();
    let log = shape.files.path("log");
    let sound = read_all(&shape.reader.view(), Offset::SNAPSHOT_END).expect("sound");
    let (mut refused, mut trimmed) = (0, 0);
    for with_index in [true, false] {
        if !with_index {
            Disk::remove_file(&shape.disk, &shape.files.path("log.idx")).expect("removed");
        }
        for at in 0..shape.disk.content(&log).expect("a log").len() {
            // A copy: a recovery that trims must not touch the next one.
            let copy = Shape::new(600).disk;
            copy_file(&shape.disk, &copy, &shape.files, "log");
            if with_index {
                copy_file(&shape.disk, &copy, &shape.files, "log.idx");
            }
            copy.damage(&log, at, 0x04).expect("damaged");
            match Shape::open(copy, 600, Verify::Everything) {
                Err(error) => {
                    refused += 1;
                    is_damage::<()>(error);
                }
                Ok(left) => {
                    // What nothing proves to have been durable may be a torn tail.
                    trimmed += 1;
                    assert!(
                        left.recovered.last >= Offset::new(Lsn(30), 2),
                        "byte {at}: {:?}",
                        left.recovered
                    );
                    let rest = read_all(&left.reader.view(), Offset::SNAPSHOT_END).expect("sound");
                    assert!(sound.starts_with(&rest), "byte {at}");
                }
            }
        }
    }
    assert!(refused > trimmed && trimmed > 0, "{refused} refused, {trimmed} trimmed");
}

fn copy_file(from: &SimDisk, to: &SimDisk, files: &ShapeFiles, name: &str) {
    let path = files.path(name);
    let content = from.content(&path).expect("a file");
    Disk::create(to, &path).expect("made").write_at(&content, 0).expect("written");
}

#[test]
fn in_the_index() {
    let mut shape = shape();
    shape.flush();
    let index = shape.files.path("log.idx");
    let sound = read_all(&shape.reader.view(), Offset::SNAPSHOT_END).expect("sound");
    let len = shape.disk.content(&index).expect("an index").len();
    assert_eq!(len % 64, 0);
    assert!(len >= 128, "chunk ends are marked: {len}");
    for at in 0..len {
        let copy = Shape::new(600).disk;
        copy_file(&shape.disk, &copy, &shape.files, "log");
        copy_file(&shape.disk, &copy, &shape.files, "log.idx");
        copy.damage(&index, at, 0x40).expect("damaged");
        let mut again = Shape::open(copy, 600, Verify::Tail).expect("the index is derived");
        assert_eq!(read_all(&again.reader.view(), Offset::SNAPSHOT_END).as_ref(), Some(&sound), "byte {at}");
        again.flush();
        assert_eq!(
            again.disk.content(&index).expect("an index"),
            shape.disk.content(&index).expect("an index")
        );
    }
}

#[test]
fn in_the_snapshot_and_the_definition() {
    let shape = Shape::new(CHUNK);
    let mut writer =
        SnapshotWriter::create(&shape.files, &definition(), Arc::clone(&shape.reader), 300).expect("begins");
    for id in ["1", "2", "3"] {
        writer.push_row(&[Value::Text(b"a"), Value::Null, Value::Text(id.as_bytes())]).expect("a row");
    }
    let visible = crate::domain::PgSnapshot { xmin: 1, xmax: 1, xip: vec![] };
    writer.finish(&visible).expect("done");
    let path = shape.files.path("snapshot");
    let sound = read_all(&shape.reader.view(), Offset::BeforeAll);
    for at in 0..shape.disk.content(&path).expect("a file").len() {
        shape.disk.damage(&path, at, 0x04).expect("damaged");
        match ShapeReader::open(&shape.files) {
            Err(error) => _ = is_damage::<()>(error),
            Ok(reader) if reader.view().snapshot_state() == crate::shape_log::SnapshotState::Complete => {
                let all = read_all(&reader.view(), Offset::BeforeAll);
                assert!(all.is_none() || all == sound, "byte {at}: {all:?}");
            }
            Ok(reader) => {
                assert!(matches!(reader.view().read(Offset::BeforeAll), Ok(Read::Pending { chunk: 0 })))
            }
        }
        shape.disk.damage(&path, at, 0x04).expect("repaired");
    }
    assert_eq!(shape.files.read_definition(), Ok(definition()));
    let path = shape.files.path("definition");
    for at in 0..shape.disk.content(&path).expect("a file").len() {
        shape.disk.damage(&path, at, 0x04).expect("damaged");
        assert!(is_damage::<()>(shape.files.read_definition().expect_err("damage is seen")).is_none());
        shape.disk.damage(&path, at, 0x04).expect("repaired");
    }
}

/// A log that ends anywhere has its transactions up to there; where the index proves that more was
/// durable, that is an error.
#[test]
fn at_the_end_of_the_log() {
    let shape = shape();
    let log = shape.files.path("log");
    let sound = read_all(&shape.reader.view(), Offset::SNAPSHOT_END).expect("sound");
    let len = shape.disk.content(&log).expect("a log").len();
    let mut lasts = Vec::new();
    for keep in 0..=len {
        for with_index in [false, true] {
            let copy = Shape::new(600).disk;
            copy_file(&shape.disk, &copy, &shape.files, "log");
            if with_index {
                copy_file(&shape.disk, &copy, &shape.files, "log.idx");
            }
            Disk::open(&copy, &log).expect("a log").set_len(keep as u64).expect("cut");
            match Shape::open(copy, 600, Verify::Tail) {
                Err(error) => assert!(with_index && is_damage::<()>(error).is_none(), "{keep} bytes"),
                Ok(left) => {
                    let rest = read_all(&left.reader.view(), Offset::SNAPSHOT_END).expect("sound");
                    assert!(sound.starts_with(rest.trim_end_matches('|')), "{keep} bytes");
                    lasts.push((with_index, left.recovered.last));
                }
            }
        }
    }
    lasts.dedup_by_key(|(_, last)| *last);
    assert!(lasts.is_sorted_by_key(|(_, last)| *last));
    let commits = |index: bool| lasts.iter().filter(|(with_index, _)| *with_index == index).count();
    assert!(commits(false) >= 5, "{lasts:?}");
}

proptest::proptest! {
    /// Files that were never ours: an error or nothing, never a panic.
    #[test]
    fn foreign_bytes(
        log in proptest::collection::vec(proptest::num::u8::ANY, 0..400),
        index in proptest::collection::vec(proptest::num::u8::ANY, 0..200),
        snapshot in proptest::collection::vec(proptest::num::u8::ANY, 0..200),
    ) {
        let disk = Shape::new(600).disk;
        let files = ShapeFiles::open(Arc::new(disk.clone()), Path::new(DATA), HANDLE);
        for (name, content) in [("log", &log), ("log.idx", &index), ("snapshot", &snapshot)] {
            Disk::create(&disk, &files.path(name)).expect("made").write_at(content, 0).expect("written");
        }
        let shape = Shape::open(disk, 600, Verify::Everything).expect("an empty log");
        proptest::prop_assert_eq!(shape.recovered, Recovered { last: Offset::SNAPSHOT_END, trimmed_bytes: log.len() as u64 });
    }
}

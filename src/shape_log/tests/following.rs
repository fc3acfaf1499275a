//! Files that another process writes: at every byte that its log may have reached, what is read is what
//! had been committed by then.

use std::fs;
use std::path::PathBuf;

use super::*;
use crate::domain::PgSnapshot;
use crate::shape_log::{Followed, Follower, SnapshotWriter, followed_disk};

/// A shape of the simulated disk with three transactions, the second of them over several frames.
fn written() -> Shape {
    let mut shape = Shape::new(CHUNK);
    let mut writer =
        SnapshotWriter::create(&shape.files, &definition(), Arc::clone(&shape.reader), 200).expect("begins");
    writer.push_row(&[Value::Text(b"a"), Value::Text(b"f"), Value::Text(b"1")]).expect("a row");
    writer.finish(&PgSnapshot { xmin: 7, xmax: 9, xip: vec![8] }).expect("done");
    for (tx, rows) in [(100, 2), (200, 90), (300, 1)] {
        shape.transaction(tx, &vec![text(1_000); rows]);
        shape.flush();
    }
    shape
}

/// Its files in a real directory, but for the log.
fn copied(shape: &Shape, data: &Path) -> PathBuf {
    let files = ShapeFiles::open(Arc::new(shape.disk.clone()), data, HANDLE);
    fs::create_dir_all(&files.dir).expect("made");
    for name in ["definition", "snapshot"] {
        let content = shape.disk.content(&shape.files.path(name)).expect("a file");
        fs::write(files.path(name), content).expect("written");
    }
    files.dir.to_path_buf()
}

fn read(follower: &Follower) -> (Offset, Vec<String>) {
    let view = follower.reader().view();
    (view.last(), walk(&view, Offset::BeforeAll).0)
}

#[test]
fn every_length_of_a_growing_log_is_a_committed_state() {
    let shape = written();
    let data = tempfile::tempdir().expect("a directory");
    let log = copied(&shape, data.path()).join("log");
    let content = shape.disk.content(&shape.files.path("log")).expect("a log");
    let whole = walk(&shape.reader.view(), Offset::BeforeAll).0;
    let (definition_read, mut follower) = Follower::open(&followed_disk(data.path()), data.path(), HANDLE)
        .expect("it opens")
        .expect("it is complete");
    assert_eq!(definition_read, definition());
    assert_eq!(read(&follower).0, Offset::SNAPSHOT_END, "nothing has changed yet");
    let mut ends = Vec::new();
    // Every length near the seams of frames would do; these are some hundred, in steps that no frame has.
    for len in (0..content.len()).step_by(131).chain([content.len()]) {
        fs::write(&log, &content[..len]).expect("written");
        let before = read(&follower).0;
        let followed = follower.follow().unwrap_or_else(|error| panic!("{len}: {error}"));
        let (last, seen) = read(&follower);
        assert!(last >= before, "{len}: {last} after {before}");
        assert_eq!(followed == Followed::Changed, last != before || len == 0, "{len}");
        assert_eq!(seen, whole[..seen.len()], "{len}: a beginning of what was written");
        if ends.last() != Some(&last) {
            // Who comes new sees the same.
            let (_, fresh) = Follower::open(&followed_disk(data.path()), data.path(), HANDLE)
                .expect("it opens")
                .expect("it is complete");
            assert_eq!(read(&fresh), (last, seen));
            ends.push(last);
        }
    }
    let commits = [(100, 2), (200, 178), (300, 0)].map(|(tx, op)| Offset::new(Lsn(tx), op));
    assert_eq!(ends.first(), Some(&Offset::SNAPSHOT_END));
    assert_eq!(
        (ends.len(), ends[2..].to_vec()),
        (4, commits[1..].to_vec()),
        "one state for each commit: {ends:?}"
    );
}

#[test]
fn a_shape_that_is_renamed_away_is_gone_and_can_be_read_to_its_end() {
    let shape = written();
    let data = tempfile::tempdir().expect("a directory");
    let directory = copied(&shape, data.path());
    let content = shape.disk.content(&shape.files.path("log")).expect("a log");
    fs::write(directory.join("log"), &content).expect("written");
    let (_, mut follower) = Follower::open(&followed_disk(data.path()), data.path(), HANDLE)
        .expect("it opens")
        .expect("it is complete");
    let begun = range(&follower.reader().view(), Offset::SNAPSHOT_END);
    assert_eq!(follower.follow(), Ok(Followed::Unchanged));
    fs::rename(&directory, data.path().join("trash")).expect("it is ours");
    assert_eq!(follower.follow(), Ok(Followed::Gone));
    assert!(Follower::open(&followed_disk(data.path()), data.path(), HANDLE).expect("no fault").is_none());
    assert_eq!(Follower::exists(&followed_disk(data.path()), data.path(), HANDLE).ok(), Some(false));
    let bytes: usize = begun.body.map(|piece| piece.expect("the descriptor is open").len()).sum();
    assert!(bytes > 90_000, "a body that was begun is sent to its end: {bytes}");
}

/// Nothing that has not come to its end is served, and damage to what was durable is no end.
#[test]
fn what_is_not_complete_is_not_opened_and_damage_is_told() {
    let shape = written();
    let data = tempfile::tempdir().expect("a directory");
    let directory = copied(&shape, data.path());
    let snapshot = fs::read(directory.join("snapshot")).expect("a snapshot");
    fs::write(directory.join("snapshot"), &snapshot[..snapshot.len() - 1]).expect("written");
    assert!(
        Follower::open(&followed_disk(data.path()), data.path(), HANDLE).expect("no fault").is_none(),
        "its footer is missing"
    );
    fs::write(directory.join("snapshot"), &snapshot).expect("written");
    let content = shape.disk.content(&shape.files.path("log")).expect("a log");
    let mut damaged = content.clone();
    damaged[70] ^= 1;
    fs::write(directory.join("log"), &damaged).expect("written");
    assert!(
        Follower::open(&followed_disk(data.path()), data.path(), HANDLE).is_err(),
        "later frames say that this was durable"
    );
}

//! The journal on sled: what is written is read, and what is wrong is told.

use std::fs;

use super::*;
use crate::journal::error::{Finding, JournalError};
use crate::journal::sled_journal::open_sled;
use crate::journal::value::{entry_key, pack};
use crate::journal::{Checkpoint, OpenReport, SledJournal};

fn open(dir: &std::path::Path) -> (SledJournal, OpenReport) {
    SledJournal::open(dir, EventId(0)).expect("opens")
}

/// Changes the store behind the journal's back.
fn tamper(dir: &std::path::Path, change: impl FnOnce(&sled::Tree)) {
    let db = open_sled(&dir.join("journal/sled")).unwrap();
    change(&db.open_tree("entries").unwrap());
    db.flush().unwrap();
}

#[test]
fn what_was_appended_is_there_after_reopening() {
    let dir = tempfile::tempdir().unwrap();
    let (mut journal, report) = open(dir.path());
    assert_eq!(report, OpenReport { created: true, ..OpenReport::default() });
    assert_eq!(journal.last(), EventId(0));
    let mut all = Vec::new();
    for (count, size) in [(1, 10), (100, 80), (3, 9000), (1, 100_000), (50, 0)] {
        let batch = entries(all.len() as u64 + 1, count, size);
        journal.append(&batch).unwrap();
        all.extend(batch);
    }
    assert_eq!(journal.sync().unwrap(), EventId(155));
    assert_eq!(read_all(&journal), all);
    drop(journal);
    let (journal, report) = open(dir.path());
    assert_eq!((report.created, report.first, report.last), (false, EventId(1), EventId(155)));
    assert_eq!((report.torn, report.missing_upto, report.findings), (None, None, Vec::new()));
    assert_eq!(read_all(&journal), all);
    for from in [1, 2, 60, 101, 102, 104, 105, 106, 155] {
        let read: Vec<Entry> = journal.read(EventId(from)).map(Result::unwrap).collect();
        assert_eq!(read, all[from as usize - 1..], "from {from}");
    }
    assert_eq!(journal.read(EventId(156)).count(), 0);
    assert!(fs::read_dir(dir.path().join("journal/sled/blobs")).unwrap().next().is_none(), "no blobs");
}

#[test]
fn a_batch_that_does_not_continue_is_refused_and_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (mut journal, _) = open(dir.path());
    journal.append(&entries(1, 2, 8)).unwrap();
    for first in [0, 1, 2, 4] {
        let error = journal.append(&entries(first, 1, 8)).unwrap_err();
        assert!(matches!(error, JournalError::NotDense { expected: EventId(3), .. }), "{error}");
    }
    let broken = [entry(3, 1), entry(5, 1)];
    assert!(matches!(journal.append(&broken), Err(JournalError::NotDense { expected: EventId(4), .. })));
    let large = Entry { id: EventId(3), bytes: vec![0; crate::journal::RECORD_BYTES_MAX + 1] };
    assert!(matches!(journal.append(&[large]), Err(JournalError::TooLarge { .. })));
    assert_eq!(journal.last(), EventId(2));
    journal.append(&entries(3, 1, 8)).unwrap();
    assert_eq!(read_all(&journal), entries(1, 3, 8));
}

#[test]
fn an_append_may_be_larger_than_a_write() {
    let dir = tempfile::tempdir().unwrap();
    let (mut journal, _) = open(dir.path());
    let all = entries(1, 200_000, 90);
    assert!(all.iter().map(|entry| entry.bytes.len()).sum::<usize>() > crate::journal::WRITE_BYTES_MAX);
    journal.append(&all).unwrap();
    assert_eq!(journal.sync().unwrap(), EventId(200_000));
    drop(journal);
    let (journal, report) = open(dir.path());
    assert_eq!((report.first, report.last), (EventId(1), EventId(200_000)));
    assert!(read_all(&journal) == all);
}

#[test]
fn a_lost_store_goes_on_behind_the_archive() {
    let dir = tempfile::tempdir().unwrap();
    let (mut journal, _) = SledJournal::open(dir.path(), EventId(41)).unwrap();
    journal.append(&entries(42, 1, 8)).unwrap();
    journal.sync().unwrap();
    drop(journal);
    assert_eq!(open(dir.path()).1.first, EventId(42));
}

#[test]
fn the_last_two_checkpoints_are_kept_and_what_they_need() {
    let dir = tempfile::tempdir().unwrap();
    let (mut journal, _) = open(dir.path());
    journal.append(&entries(1, 400, 100)).unwrap();
    let error = journal.checkpoint(EventId(401), b"").unwrap_err();
    assert!(matches!(error, JournalError::CheckpointOutOfRange { last: EventId(400), .. }), "{error}");
    let state = |upto: u64| Checkpoint { upto: EventId(upto), state: vec![upto as u8; 3_000_000] };
    journal.checkpoint(EventId(100), &state(100).state).unwrap();
    assert_eq!(journal.trim(EventId(50)).unwrap(), EventId(0), "one checkpoint is not enough to trim");
    for upto in [200, 300] {
        journal.checkpoint(EventId(upto), &state(upto).state).unwrap();
    }
    assert_eq!(journal.checkpoints().unwrap(), [state(300), state(200)]);
    let first = journal.trim(EventId(1000)).unwrap();
    assert!(first <= EventId(201) && first > EventId(150), "{first}");
    drop(journal);
    let (mut journal, report) = open(dir.path());
    assert_eq!((report.first, report.last, report.findings), (first, EventId(400), Vec::new()));
    assert_eq!(journal.checkpoints().unwrap(), [state(300), state(200)]);
    assert_eq!(journal.read(EventId(0)).next().unwrap().unwrap().id, first);
    journal.checkpoint(EventId(400), b"").unwrap();
    assert_eq!(journal.checkpoints().unwrap()[0], Checkpoint { upto: EventId(400), state: Vec::new() });
    assert_eq!(journal.checkpoints().unwrap()[1], state(300));
}

#[test]
fn trimming_everything_keeps_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let (mut journal, _) = open(dir.path());
    journal.append(&entries(1, 100, 100)).unwrap();
    for _ in 0..2 {
        journal.checkpoint(EventId(100), b"state").unwrap();
    }
    journal.trim(EventId(u64::MAX)).unwrap();
    drop(journal);
    let (mut journal, report) = open(dir.path());
    assert_eq!(report.last, EventId(100));
    journal.append(&entries(101, 1, 100)).unwrap();
}

#[test]
fn a_damaged_tail_is_a_fact_and_kept_as_evidence() {
    for fragment in 0..5 {
        check_missing_fragment(fragment);
    }
}

fn check_missing_fragment(fragment: u16) {
    let dir = tempfile::tempdir().unwrap();
    let (mut journal, _) = open(dir.path());
    journal.append(&entries(1, 10, 10)).unwrap();
    journal.append(&[entry(11, 20_000)]).unwrap();
    journal.sync().unwrap();
    drop(journal);
    tamper(dir.path(), |tree| {
        tree.remove(entry_key(11, fragment)).unwrap().expect("a fragment");
    });
    let (mut journal, report) = open(dir.path());
    let torn = report.torn.expect("torn");
    assert_eq!((torn.at, torn.values, report.last), (EventId(11), 4, EventId(10)));
    journal.append(&[entry(11, 5)]).unwrap();
    journal.sync().unwrap();
    drop(journal);
    let (journal, report) = open(dir.path());
    assert_eq!((report.torn, report.last), (None, EventId(11)));
    assert_eq!(journal.read(EventId(11)).next().unwrap().unwrap(), entry(11, 5));
    drop(journal);
    let db = open_sled(&dir.path().join("journal/sled")).unwrap();
    assert_eq!(db.open_tree("damaged").unwrap().len(), 4);
}

#[test]
fn a_hole_is_refused_unless_a_checkpoint_covers_it() {
    let dir = tempfile::tempdir().unwrap();
    let (mut journal, _) = open(dir.path());
    for first in [1, 11, 21] {
        journal.append(&entries(first, 10, 10)).unwrap();
    }
    journal.sync().unwrap();
    drop(journal);
    tamper(dir.path(), |tree| {
        tree.remove(entry_key(11, 0)).unwrap().expect("second batch");
    });
    let error = SledJournal::open(dir.path(), EventId(0)).err().expect("a hole is an error");
    assert!(matches!(error, JournalError::Hole { expected: EventId(11), found: EventId(21) }), "{error}");

    let dir = tempfile::tempdir().unwrap();
    let (mut journal, _) = open(dir.path());
    for first in [1, 11, 21] {
        journal.append(&entries(first, 10, 10)).unwrap();
    }
    journal.checkpoint(EventId(20), b"state").unwrap();
    drop(journal);
    tamper(dir.path(), |tree| {
        let key = entry_key(11, 0);
        let mut value = tree.get(key).unwrap().unwrap().to_vec();
        value[30] ^= 1;
        tree.insert(key, value).unwrap();
    });
    let (journal, report) = open(dir.path());
    assert!(matches!(report.findings[..], [Finding::Damaged { .. }]), "{:?}", report.findings);
    assert_eq!(journal.verify().unwrap(), report.findings);
    assert_eq!(journal.read(EventId(21)).filter(Result::is_ok).count(), 10);
    let (intact, damaged): (Vec<_>, Vec<_>) = journal.read(EventId(1)).partition(Result::is_ok);
    assert_eq!((intact.len(), damaged.len()), (20, 1));
}

#[test]
fn a_checkpoint_beyond_the_end_tells_that_events_are_missing() {
    let dir = tempfile::tempdir().unwrap();
    let (mut journal, _) = open(dir.path());
    journal.append(&entries(1, 10, 10)).unwrap();
    journal.checkpoint(EventId(10), b"ten").unwrap();
    journal.append(&entries(11, 10, 10)).unwrap();
    journal.checkpoint(EventId(20), b"twenty").unwrap();
    drop(journal);
    tamper(dir.path(), |tree| {
        tree.remove(entry_key(11, 0)).unwrap().expect("second batch");
    });
    let (mut journal, report) = open(dir.path());
    assert_eq!((report.last, report.missing_upto), (EventId(10), Some(EventId(20))));
    assert_eq!(journal.checkpoints().unwrap().len(), 1);
    // The lost checkpoint does not come back to life when the numbers pass it.
    journal.append(&entries(11, 20, 10)).unwrap();
    journal.sync().unwrap();
    drop(journal);
    let (journal, report) = open(dir.path());
    assert_eq!(report.missing_upto, None);
    let uptos: Vec<_> = journal.checkpoints().unwrap().into_iter().map(|saved| saved.upto).collect();
    assert_eq!(uptos, [EventId(10)]);
}

#[test]
fn a_store_that_is_gone_or_came_back_shorter_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let (mut journal, _) = open(dir.path());
    journal.append(&entries(1, 10, 10)).unwrap();
    journal.sync().unwrap();
    drop(journal);
    tamper(dir.path(), |tree| {
        tree.remove(entry_key(1, 0)).unwrap().expect("the only batch");
    });
    for _ in 0..2 {
        let (_, report) = open(dir.path());
        assert_eq!((report.last, report.missing_upto), (EventId(0), Some(EventId(10))));
    }
    fs::remove_dir_all(dir.path().join("journal/sled")).unwrap();
    let (mut journal, report) = SledJournal::open(dir.path(), EventId(3)).unwrap();
    assert_eq!((report.created, report.last, report.missing_upto), (true, EventId(3), Some(EventId(10))));
    journal.append(&entries(4, 1, 10)).unwrap();
    journal.sync().unwrap();
    drop(journal);
    assert_eq!(open(dir.path()).1.missing_upto, None);
}

#[test]
fn a_newer_value_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let (mut journal, _) = open(dir.path());
    journal.append(&entries(1, 1, 10)).unwrap();
    journal.sync().unwrap();
    drop(journal);
    let (key, mut value) = pack(&entries(2, 1, 10)).remove(0);
    value[0] = 2;
    let crc = crc32c::crc32c_append(crc32c::crc32c_append(crc32c::crc32c(&key), &[2]), &value[5..]);
    value[1..5].copy_from_slice(&crc.to_le_bytes());
    tamper(dir.path(), |tree| {
        tree.insert(key, value.as_slice()).unwrap();
    });
    let error = SledJournal::open(dir.path(), EventId(0)).err().expect("refused");
    assert!(matches!(error, JournalError::NewerFormat { found: 2, supported: 1, .. }), "{error}");
    tamper(dir.path(), |tree| assert_eq!(tree.get(key).unwrap().unwrap(), value));
}

#[test]
fn a_second_opening_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (_journal, _) = open(dir.path());
    let error = SledJournal::open(dir.path(), EventId(0)).err().expect("refused");
    assert!(matches!(error, JournalError::InUse), "{error}");
}

//! Reading a directory that somebody else owns, or a copy of one.

use std::fs;
use std::path::{Path, PathBuf};

use proptest::prelude::*;

use super::*;
use crate::domain::{Epoch, Timestamp};
use crate::journal::error::{Finding, JournalError};
use crate::journal::sled_journal::open_sled;
use crate::journal::value::entry_key;
use crate::journal::{Archive, ArchiveSegment, JournalPaths, OfflineJournal, Reading, SealSpan, SledJournal};

fn read(dir: &Path, from: u64) -> (Vec<Entry>, Vec<Finding>) {
    let journal = OfflineJournal::open(dir).expect("opens");
    let (mut entries, mut findings) = (Vec::new(), journal.findings().to_vec());
    for reading in journal.read(EventId(from)) {
        match reading {
            Reading::Entry(entry) => entries.push(entry),
            Reading::Finding(finding) => findings.push(finding),
        }
    }
    (entries, findings)
}

fn seal(dir: &Path, journal: &SledJournal, first: u64, last: u64) -> ArchiveSegment {
    let span = SealSpan {
        epoch: Epoch(1),
        first: EventId(first),
        last: EventId(last),
        oldest_at: Timestamp(0),
        newest_at: Timestamp(0),
    };
    let archive = Archive::open(&JournalPaths::new(dir)).unwrap();
    archive.seal(&span, journal.read(span.first)).unwrap()
}

/// Every file below `dir` with its content.
fn snapshot(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut files = Vec::new();
    for found in fs::read_dir(dir).unwrap() {
        let path = found.unwrap().path();
        if path.is_dir() {
            files.extend(snapshot(&path));
        } else {
            files.push((path.clone(), fs::read(path).unwrap()));
        }
    }
    files.sort();
    files
}

#[test]
fn a_live_journal_is_read_without_being_touched() {
    let dir = tempfile::tempdir().unwrap();
    let (mut journal, _) = SledJournal::open(dir.path(), EventId(0)).unwrap();
    let all = entries(1, 300, 100);
    journal.append(&all[..200]).unwrap();
    journal.checkpoint(EventId(150), b"one").unwrap();
    journal.checkpoint(EventId(180), b"two").unwrap();
    seal(dir.path(), &journal, 1, 100);
    seal(dir.path(), &journal, 101, 180);
    assert!(journal.trim(EventId(150)).unwrap() > EventId(1));
    journal.append(&all[200..]).unwrap();
    journal.sync().unwrap();
    for from in [0, 1, 50, 150, 181, 250, 301] {
        let expected = &all[(from as usize).saturating_sub(1)..];
        assert_eq!(read(dir.path(), from), (expected.to_vec(), Vec::new()), "from {from}");
    }
    let (checkpoints, findings) = OfflineJournal::open(dir.path()).unwrap().checkpoints();
    assert_eq!(checkpoints.iter().map(|saved| saved.upto.0).collect::<Vec<_>>(), [180, 150]);
    assert_eq!(findings, []);
    // The owner goes on undisturbed.
    journal.append(&entries(301, 1, 10)).unwrap();
    drop(journal);
    let before = snapshot(dir.path());
    assert_eq!(read(dir.path(), 1).0.len(), 301);
    assert_eq!(snapshot(dir.path()), before);
}

#[test]
fn what_is_missing_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let (mut journal, _) = SledJournal::open(dir.path(), EventId(0)).unwrap();
    for first in [1, 101, 201, 301] {
        journal.append(&entries(first, 100, 100)).unwrap();
    }
    for _ in 0..2 {
        journal.checkpoint(EventId(400), b"state").unwrap();
    }
    let middle =
        [(1, 100), (101, 200), (201, 300)].map(|(first, last)| seal(dir.path(), &journal, first, last));
    let kept = journal.trim(EventId(301)).unwrap();
    drop(journal);
    fs::remove_file(&middle[1].path).unwrap();
    let (found, findings) = read(dir.path(), 1);
    assert_eq!(findings, [Finding::NotKept { from: EventId(101), to: EventId(200) }]);
    assert_eq!(found.len(), 300);
    // A damaged block in the last segment leaves a hole up to what the store still has.
    let mut bytes = fs::read(&middle[2].path).unwrap();
    let at = bytes.len() - 200;
    bytes[at] ^= 1;
    fs::write(&middle[2].path, &bytes).unwrap();
    let (found, findings) = read(dir.path(), 201);
    assert_eq!(found.first().map(|entry| entry.id), Some(kept));
    assert!(matches!(findings[..], [Finding::Damaged { .. }]), "{findings:?}");
    let (_, findings) = read(dir.path(), 1);
    let hole = Finding::Hole { from: EventId(101), to: EventId(kept.0 - 1) };
    assert!(findings.contains(&hole), "{findings:?}");
}

#[test]
fn a_damaged_end_and_a_hole_of_the_store_are_findings() {
    let dir = tempfile::tempdir().unwrap();
    let (mut journal, _) = SledJournal::open(dir.path(), EventId(0)).unwrap();
    for first in [1, 11, 21, 31] {
        journal.append(&entries(first, 10, 10)).unwrap();
    }
    drop(journal);
    let db = open_sled(&dir.path().join("journal/sled")).unwrap();
    let tree = db.open_tree("entries").unwrap();
    tree.remove(entry_key(11, 0)).unwrap().expect("second batch");
    tree.insert(entry_key(31, 0), b"nothing like a value").unwrap();
    drop((tree, db));
    let (found, findings) = read(dir.path(), 0);
    assert_eq!(found.len(), 20);
    assert!(
        matches!(
            findings[..],
            [
                Finding::Hole { from: EventId(11), to: EventId(20) },
                Finding::Damaged { .. },
                Finding::TornTail { .. }
            ]
        ),
        "{findings:?}"
    );
}

#[test]
fn a_lost_end_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let (mut journal, _) = SledJournal::open(dir.path(), EventId(0)).unwrap();
    journal.append(&entries(1, 10, 10)).unwrap();
    journal.sync().unwrap();
    seal(dir.path(), &journal, 1, 6);
    drop(journal);
    fs::remove_dir_all(dir.path().join("journal/sled")).unwrap();
    let (found, findings) = read(dir.path(), 0);
    assert_eq!(found, entries(1, 6, 10));
    assert_eq!(findings, [Finding::EndMissing { last: EventId(6), durable_upto: EventId(10) }]);
}

#[test]
fn no_journal_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    assert!(matches!(OfflineJournal::open(dir.path()), Err(JournalError::Io { .. })));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    /// sled's own files, hit anywhere: an error, a finding or a shorter history, never a wrong record.
    #[test]
    fn damaged_files_of_the_store_never_yield_a_wrong_record(
        at in any::<prop::sample::Index>(),
        length in 1usize..2000,
        cut in any::<bool>(),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let (mut journal, _) = SledJournal::open(dir.path(), EventId(0)).unwrap();
        let all = entries(1, 300, 300);
        for batch in all.chunks(30) {
            journal.append(batch).unwrap();
            journal.sync().unwrap();
        }
        drop(journal);
        let db = dir.path().join("journal/sled/db");
        let mut bytes = fs::read(&db).unwrap();
        // Where the data is: the rest of the segment is zeros.
        let end = bytes.iter().rposition(|byte| *byte != 0).unwrap_or(0) + 1;
        let at = at.index(end);
        if cut {
            bytes.truncate(at);
        } else {
            let to = (at + length).min(bytes.len());
            for byte in &mut bytes[at..to] {
                *byte ^= 0x5a;
            }
        }
        fs::write(&db, &bytes).unwrap();
        let (kept, _) = read(dir.path(), 0);
        for entry in &kept {
            prop_assert_eq!(entry, &all[entry.id.0 as usize - 1]);
        }
        // The owner's way in: a shorter history or a refusal.
        if let Ok((journal, report)) = SledJournal::open(dir.path(), EventId(0)) {
            let found = read_all(&journal);
            prop_assert_eq!(found.len() as u64, report.last.0);
            prop_assert_eq!(&found[..], &all[..found.len()]);
        }
    }
}

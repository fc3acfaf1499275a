//! Files of every on-disk version, as they were written by the version that introduced it. To write those of
//! a new version, run these tests once with SHAPEFOLD_WRITE_FIXTURES set; never rewrite an old one.

use std::fs;
use std::path::PathBuf;

use super::*;
use crate::domain::{Epoch, Lsn, Timestamp};
use crate::journal::{
    Archive, ArchiveReader, Checkpoint, JournalPaths, OfflineJournal, Reading, SealSpan, SledJournal,
    StateMark,
};

const WRITE_VARIABLE: &str = "SHAPEFOLD_WRITE_FIXTURES";
const SEGMENT: &str = "0000000003-00000000000000000005-00000000000000000024.sfj";
const STATE: &str = "0000000003-00000000000000000024.sfs";
const STORE_FILE_BYTES_MAX: usize = 64 * 1024 * 1024;

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/journal/v1").join(name)
}

fn records() -> Vec<Entry> {
    let mut records = entries(1, 24, 60);
    records[9] = entry(10, 9000);
    records
}

fn span() -> SealSpan {
    SealSpan {
        epoch: Epoch(3),
        first: EventId(5),
        last: EventId(24),
        oldest_at: Timestamp(1_781_703_598_000_000),
        newest_at: Timestamp(1_781_705_313_000_000),
    }
}

/// The store has sparse files of megabytes: they are kept compressed.
fn write_store() {
    let dir = tempfile::tempdir().unwrap();
    let (mut journal, _) = SledJournal::open(dir.path(), EventId(0)).unwrap();
    journal.append(&records()).unwrap();
    journal.checkpoint(EventId(12), b"state after twelve").unwrap();
    journal.checkpoint(EventId(20), &[7; 10_000]).unwrap();
    journal.sync().unwrap();
    Archive::open(&JournalPaths::new(dir.path())).unwrap().seal(&span(), journal.read(EventId(1))).unwrap();
    drop(journal);
    let journal = dir.path().join("journal");
    fs::create_dir_all(fixture("sled")).unwrap();
    fs::copy(journal.join("FORMAT"), fixture("FORMAT")).unwrap();
    fs::copy(journal.join("MARK"), fixture("MARK")).unwrap();
    fs::copy(journal.join("archive").join(SEGMENT), fixture(SEGMENT)).unwrap();
    for found in fs::read_dir(journal.join("sled")).unwrap() {
        let found = found.unwrap();
        if found.file_type().unwrap().is_file() {
            let name = format!("sled/{}.zst", found.file_name().to_str().unwrap());
            let packed = zstd::bulk::compress(&fs::read(found.path()).unwrap(), 19).unwrap();
            fs::write(fixture(&name), packed).unwrap();
        }
    }
}

#[test]
fn version_1_of_the_store_is_read() {
    if std::env::var_os(WRITE_VARIABLE).is_some() && !fixture("FORMAT").exists() {
        write_store();
    }
    let dir = tempfile::tempdir().unwrap();
    let journal = dir.path().join("journal");
    fs::create_dir_all(journal.join("sled")).unwrap();
    fs::copy(fixture("FORMAT"), journal.join("FORMAT")).unwrap();
    for found in fs::read_dir(fixture("sled")).unwrap() {
        let path = found.unwrap().path();
        let bytes = zstd::bulk::decompress(&fs::read(&path).unwrap(), STORE_FILE_BYTES_MAX).unwrap();
        fs::write(journal.join("sled").join(path.file_stem().unwrap()), bytes).unwrap();
    }
    let checkpoints = [
        Checkpoint { upto: EventId(20), state: vec![7; 10_000] },
        Checkpoint { upto: EventId(12), state: b"state after twelve".to_vec() },
    ];
    let offline = OfflineJournal::open(dir.path()).unwrap();
    assert_eq!(offline.findings(), []);
    let expected: Vec<Reading> = records().into_iter().map(Reading::Entry).collect();
    assert_eq!(offline.read(EventId(0)).collect::<Vec<_>>(), expected);
    assert_eq!(offline.checkpoints().0, checkpoints);
    let (journal, report) = SledJournal::open(dir.path(), EventId(0)).unwrap();
    assert_eq!((report.created, report.last, report.torn), (false, EventId(24), None));
    assert_eq!(read_all(&journal), records());
    assert_eq!(journal.checkpoints().unwrap(), checkpoints);
}

#[test]
fn version_1_of_an_archived_state_is_read() {
    let mark = StateMark {
        epoch: Epoch(3),
        upto: EventId(24),
        at: Timestamp(1_781_705_313_000_000),
        routed: Lsn(0x16_B374_D848),
    };
    let state = [b"state after twenty-four ".as_slice(), &[9; 5_000]].concat();
    if std::env::var_os(WRITE_VARIABLE).is_some() && !fixture(STATE).exists() {
        let dir = tempfile::tempdir().unwrap();
        let saved = Archive::open(&JournalPaths::new(dir.path())).unwrap().save_state(&mark, &state).unwrap();
        fs::copy(saved.path, fixture(STATE)).unwrap();
    }
    let dir = tempfile::tempdir().unwrap();
    fs::copy(fixture(STATE), dir.path().join(STATE)).unwrap();
    fs::copy(fixture(SEGMENT), dir.path().join(SEGMENT)).unwrap();
    let offline = OfflineJournal::open(dir.path()).unwrap();
    assert_eq!(offline.findings(), []);
    let [saved] = offline.states() else { panic!("{:?}", offline.states()) };
    assert_eq!(saved.mark, mark);
    assert_eq!(saved.load().unwrap(), Checkpoint { upto: EventId(24), state });
}

#[test]
fn version_1_of_the_archive_is_read() {
    let reader = ArchiveReader::open(&fixture(SEGMENT)).unwrap();
    assert_eq!(reader.header(), Some(&span()));
    let expected: Vec<Reading> = records()[4..].iter().cloned().map(Reading::Entry).collect();
    assert_eq!(reader.collect::<Vec<_>>(), expected);
}

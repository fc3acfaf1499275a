//! Sealed segments: written, read, damaged, and of earlier versions.

use proptest::prelude::*;

use super::*;
use crate::journal::offline::Reading;
use crate::journal::{Finding, Position};

fn span(first: u64, last: u64) -> SealSpan {
    SealSpan {
        epoch: Epoch(3),
        first: EventId(first),
        last: EventId(last),
        oldest_at: Timestamp(1_000_000),
        newest_at: Timestamp(2_000_000),
    }
}

fn entry(id: u64, size: usize) -> Entry {
    // Poorly compressible, so that blocks have some size.
    let bytes = (0..size as u64).map(|at| ((id * 2_654_435_761 + at * at * 40_503) >> 7) as u8).collect();
    Entry { id: EventId(id), bytes }
}

fn entries(ids: std::ops::RangeInclusive<u64>, size: usize) -> Vec<Entry> {
    ids.map(|id| entry(id, size)).collect()
}

fn seal(dir: &Path, entries: &[Entry], span: &SealSpan) -> Result<ArchiveSegment, JournalError> {
    let archive = Archive::open(&JournalPaths::new(dir))?;
    archive.seal(span, entries.iter().cloned().map(Ok))
}

fn read(path: &Path) -> (Vec<Entry>, Vec<Finding>) {
    let (mut entries, mut findings) = (Vec::new(), Vec::new());
    for reading in ArchiveReader::open(path).expect("opens") {
        match reading {
            Reading::Entry(entry) => entries.push(entry),
            Reading::Finding(finding) => findings.push(finding),
        }
    }
    (entries, findings)
}

#[test]
fn what_was_sealed_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let mut all = entries(1..=3000, 300);
    all.push(entry(3001, 1_000_000));
    all.push(entry(3002, 0));
    let segment = seal(dir.path(), &all, &span(11, 3002)).unwrap();
    assert!(segment.path.ends_with("0000000003-00000000000000000011-00000000000000003002.sfj"));
    assert_eq!(segment.bytes, fs::metadata(&segment.path).unwrap().len());
    assert_eq!(read(&segment.path), (all[10..].to_vec(), Vec::new()));
    assert_eq!(ArchiveReader::open(&segment.path).unwrap().header(), Some(&span(11, 3002)));
    let archive = Archive::open(&JournalPaths::new(dir.path())).unwrap();
    assert_eq!(archive.segments().unwrap(), std::slice::from_ref(&segment));
    assert!(archive.remove(&segment).unwrap());
    assert!(!archive.remove(&segment).unwrap(), "a removal may be run again");
    assert_eq!(archive.segments().unwrap(), []);
}

/// The state right before the oldest segment is where its fold begins: older ones lead to nothing.
#[test]
fn states_go_when_what_follows_them_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let all = entries(1..=30, 10);
    let archive = Archive::open(&JournalPaths::new(dir.path())).unwrap();
    for first in [1, 11, 21] {
        archive.seal(&span(first, first + 9), all.iter().cloned().map(Ok)).unwrap();
        let mark = StateMark { epoch: Epoch(3), upto: EventId(first + 9), ..StateMark::default() };
        archive.save_state(&mark, &[7; 100]).unwrap();
    }
    let kept = || archive.states().unwrap().iter().map(|state| state.mark.upto.0).collect::<Vec<_>>();
    let segments = archive.segments().unwrap();
    assert!(segments.iter().all(|segment| segment.state_bytes > 0), "{segments:?}");
    assert!(archive.remove(&segments[0]).unwrap());
    assert_eq!(kept(), [10, 20, 30]);
    assert!(archive.remove(&segments[1]).unwrap());
    assert_eq!(kept(), [20, 30]);
    assert!(archive.remove(&segments[2]).unwrap());
    assert_eq!(kept(), [30]);
}

#[test]
fn a_reader_passes_over_what_lies_before() {
    let dir = tempfile::tempdir().unwrap();
    let all = entries(1..=4000, 300);
    let segment = seal(dir.path(), &all, &span(1, 4000)).unwrap();
    let mut bytes = fs::read(&segment.path).unwrap();
    let second = (0..bytes.len()).filter(|at| bytes[*at..].starts_with(block::BLOCK_MARKER)).nth(1).unwrap();
    bytes[second + 1000] ^= 1;
    fs::write(&segment.path, &bytes).unwrap();
    let reader = ArchiveReader::open(&segment.path).unwrap().starting_at(EventId(3990));
    let readings: Vec<Reading> = reader.collect();
    assert!(readings.len() < 1500, "{} records of the last block", readings.len());
    assert_eq!(
        readings.last(),
        Some(&Reading::Entry(all[3999].clone())),
        "damage before it is passed over, too"
    );
}

#[test]
fn a_seal_of_what_is_not_there_publishes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let some = entries(5..=9, 10);
    for (first, last) in [(4, 9), (5, 10), (10, 12), (9, 8), (0, 9)] {
        let error = seal(dir.path(), &some, &span(first, last)).unwrap_err();
        assert!(matches!(error, JournalError::NotInJournal { .. }), "{first}..={last}: {error}");
    }
    let mut holed = entries(5..=9, 10);
    holed.remove(2);
    assert!(seal(dir.path(), &holed, &span(5, 9)).is_err());
    let archive = Archive::open(&JournalPaths::new(dir.path())).unwrap();
    assert_eq!(archive.segments().unwrap(), []);
    assert_eq!(fs::read_dir(dir.path().join("journal/archive")).unwrap().count(), 0, "no rests");
}

#[test]
fn a_damaged_block_costs_that_block_only() {
    let dir = tempfile::tempdir().unwrap();
    let all = entries(1..=4000, 300);
    let segment = seal(dir.path(), &all, &span(1, 4000)).unwrap();
    let mut bytes = fs::read(&segment.path).unwrap();
    let blocks: Vec<usize> =
        (0..bytes.len()).filter(|at| bytes[*at..].starts_with(block::BLOCK_MARKER)).collect();
    assert!(blocks.len() >= 4, "{} blocks", blocks.len());
    bytes[blocks[1] + 1000] ^= 1;
    fs::write(&segment.path, &bytes).unwrap();
    let (kept, findings) = read(&segment.path);
    let [Finding::Damaged { at: Position::File { offset, .. }, what }] = &findings[..] else {
        panic!("{findings:?}")
    };
    assert_eq!((*offset, what.as_str()), (blocks[1] as u64, "checksum of a block"));
    assert_eq!((kept.first(), kept.last()), (all.first(), all.last()));
    assert!(kept.len() < all.len() && kept.len() > all.len() / 2);
    assert!(kept.iter().all(|entry| all.contains(entry)));
}

#[test]
fn a_block_cut_out_cleanly_is_noticed_too() {
    let dir = tempfile::tempdir().unwrap();
    let segment = seal(dir.path(), &entries(1..=4000, 300), &span(1, 4000)).unwrap();
    let mut bytes = fs::read(&segment.path).unwrap();
    let mut blocks = (0..bytes.len()).filter(|at| bytes[*at..].starts_with(block::BLOCK_MARKER));
    let (second, third) = (blocks.nth(1).unwrap(), blocks.next().unwrap());
    bytes.drain(second..third);
    fs::write(&segment.path, &bytes).unwrap();
    let (_, findings) = read(&segment.path);
    let [Finding::Damaged { what, .. }] = &findings[..] else { panic!("{findings:?}") };
    assert_eq!(what, "footer disagrees with the blocks");
}

#[test]
fn a_damaged_header_costs_nothing_but_itself() {
    let dir = tempfile::tempdir().unwrap();
    let all = entries(1..=10, 30);
    let segment = seal(dir.path(), &all, &span(1, 10)).unwrap();
    let mut bytes = fs::read(&segment.path).unwrap();
    bytes[20] ^= 1;
    fs::write(&segment.path, &bytes).unwrap();
    let (kept, findings) = read(&segment.path);
    assert_eq!(kept, all);
    assert_eq!(findings.len(), 1, "{findings:?}");
    assert_eq!(list(segment.path.parent().unwrap()).unwrap()[0].newest_at, None);
}

#[test]
fn a_newer_version_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let segment = seal(dir.path(), &entries(1..=10, 30), &span(1, 10)).unwrap();
    let mut bytes = fs::read(&segment.path).unwrap();
    bytes[8] = 2;
    let body = &bytes[block::HEADER_PREFIX_BYTES..block::HEADER_BYTES];
    let checksum = crc32c::crc32c_append(crc32c::crc32c(&bytes[..12]), body);
    bytes[12..16].copy_from_slice(&checksum.to_le_bytes());
    fs::write(&segment.path, &bytes).unwrap();
    let error = ArchiveReader::open(&segment.path).err().expect("refused");
    assert!(matches!(error, JournalError::NewerFormat { found: 2, supported: 1, .. }), "{error}");
}

#[test]
fn a_seal_that_never_finished_is_cleared_away() {
    let dir = tempfile::tempdir().unwrap();
    let segment = seal(dir.path(), &entries(1..=10, 30), &span(1, 10)).unwrap();
    let rest = segment.path.with_extension(TEMPORARY_EXTENSION);
    fs::write(&rest, b"half").unwrap();
    let archive = Archive::open(&JournalPaths::new(dir.path())).unwrap();
    assert!(!rest.exists());
    assert_eq!(archive.segments().unwrap(), [segment]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn damage_anywhere_is_noticed_and_never_invents(
        at in any::<prop::sample::Index>(),
        bit in 0u8..8,
        cut in any::<bool>(),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let all = entries(1..=1500, 600);
        let segment = seal(dir.path(), &all, &span(1, 1500)).unwrap();
        let mut bytes = fs::read(&segment.path).unwrap();
        let at = at.index(bytes.len());
        if cut { bytes.truncate(at) } else { bytes[at] ^= 1 << bit }
        fs::write(&segment.path, &bytes).unwrap();
        let (kept, findings) = read(&segment.path);
        prop_assert!(!findings.is_empty(), "damage at {at} of {}", bytes.len());
        for entry in &kept {
            prop_assert_eq!(entry, &all[entry.id.0 as usize - 1]);
        }
        prop_assert!(kept.is_sorted_by(|one, two| one.id < two.id));
        if !cut {
            prop_assert!(kept.len() >= 600, "one flipped bit cost {} records", 1500 - kept.len());
        }
    }

    #[test]
    fn garbage_is_read_to_its_end(bytes in prop::collection::vec(any::<u8>(), 0..3000)) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(file_name(&span(1, 10)));
        fs::write(&path, &bytes).unwrap();
        let (kept, findings) = read(&path);
        prop_assert!(kept.is_empty() && !findings.is_empty());
    }
}

//! Two processes and one directory.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::*;
use crate::domain::{Epoch, Timestamp};

const DIR_VARIABLE: &str = "SHAPEFOLD_TEST_LOCK_DIR";

fn identity() -> Identity {
    Identity::of_this_process("0.0.0-test", 1, Timestamp(7))
}

fn try_lock(dir: &Path) -> Option<LockedDirectory> {
    match FsLock::try_acquire(dir).unwrap() {
        Attempt::Locked(locked) => Some(locked),
        Attempt::HeldBy(_) => None,
    }
}

/// Polls: a child of another test may hold a copy of a handle until its `exec`.
fn lock(dir: &Path) -> LockedDirectory {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        match try_lock(dir) {
            Some(locked) => return locked,
            None => assert!(Instant::now() < deadline, "the lock never became free"),
        }
        std::thread::yield_now();
    }
}

fn own(dir: &Path) -> FsLock {
    lock(dir).claim(Epoch(0), identity()).unwrap()
}

#[test]
fn epochs_rise_and_the_end_of_each_is_known() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("deep/data");
    let first = own(&data);
    assert_eq!((first.epoch(), first.previous().end), (Epoch(1), PrevEnd::None));
    first.release().unwrap();
    let second = own(&data);
    assert_eq!((second.epoch(), second.previous().end), (Epoch(2), PrevEnd::Released));
    drop(second);
    let third = own(&data);
    assert_eq!((third.epoch(), third.previous().end), (Epoch(3), PrevEnd::Crashed));
    assert_eq!(third.previous().record.as_ref().map(|record| record.epoch), Some(Epoch(2)));
    third.release().unwrap();
    let fourth = lock(&data).claim(Epoch(41), identity()).unwrap();
    assert_eq!(fourth.epoch(), Epoch(42), "the journal knows of a later epoch than the lock file");
}

#[test]
fn a_second_taker_learns_who_holds_it_and_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let held = own(dir.path());
    let before = fs::read(dir.path().join("LOCK")).unwrap();
    let Attempt::HeldBy(Contents::Record(holder)) = FsLock::try_acquire(dir.path()).unwrap() else {
        panic!("a second lock in one process")
    };
    assert_eq!((holder.epoch, holder.state), (Epoch(1), LockState::Held));
    assert_eq!(holder.owner, identity());
    assert_eq!(fs::read(dir.path().join("LOCK")).unwrap(), before);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    held.still_held().unwrap();
}

#[test]
fn a_lock_without_a_claim_leaves_no_trace() {
    let dir = tempfile::tempdir().unwrap();
    drop(lock(dir.path()));
    assert_eq!(read_record(dir.path()).unwrap(), Some(Contents::Empty));
    assert_eq!(own(dir.path()).epoch(), Epoch(1));
}

#[test]
fn reading_creates_nothing() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(read_record(dir.path()).unwrap(), None);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn a_replaced_or_removed_lock_file_is_noticed_and_not_written_to() {
    let dir = tempfile::tempdir().unwrap();
    let held = own(dir.path());
    fs::remove_file(dir.path().join("LOCK")).unwrap();
    assert!(matches!(held.still_held(), Err(NotHeld::InodeChanged)));
    let other = own(dir.path());
    assert!(matches!(held.still_held(), Err(NotHeld::InodeChanged)));
    held.release().unwrap();
    other.still_held().unwrap();
    let Some(Contents::Record(record)) = read_record(dir.path()).unwrap() else { panic!("no record") };
    assert_eq!(record.state, LockState::Held);
}

#[test]
fn a_moved_directory_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let held = own(&data);
    fs::rename(&data, dir.path().join("elsewhere")).unwrap();
    assert!(matches!(held.still_held(), Err(NotHeld::DirectoryVanished)));
    fs::create_dir(&data).unwrap();
    assert!(matches!(held.still_held(), Err(NotHeld::DirectoryVanished)));
}

#[test]
fn a_higher_epoch_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let held = own(dir.path());
    let record = record::LockRecord::new(Epoch(2), LockState::Held, identity());
    fs::write(dir.path().join("LOCK"), record.encode()).unwrap();
    assert!(matches!(held.still_held(), Err(NotHeld::EpochHigher { found: Epoch(2) })));
}

#[test]
fn the_same_directory_under_another_path_is_locked_too() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let held = own(&data);
    std::os::unix::fs::symlink(&data, dir.path().join("alias")).unwrap();
    assert!(try_lock(&dir.path().join("alias")).is_none());
    held.still_held().unwrap();
}

#[test]
fn a_lock_that_excludes_nobody_is_found_out() {
    let dir = tempfile::tempdir().unwrap();
    let locked = lock(dir.path());
    locked.files_for_test().verify().unwrap();
    // What is found is what a file system shows that grants every lock.
    locked.files_for_test().unlock_for_test();
    let error = locked.files_for_test().verify().unwrap_err();
    assert!(matches!(error, OwnershipError::LocksIneffective { .. }), "{error}");
    assert!(error.remedy().contains("SHAPEFOLD_UNSAFE_FILE_LOCKS"), "{}", error.remedy());
}

#[test]
fn damaged_content_counts_as_a_crash_and_the_journal_gives_the_epoch() {
    let dir = tempfile::tempdir().unwrap();
    own(dir.path()).release().unwrap();
    let path = dir.path().join("LOCK");
    let mut bytes = fs::read(&path).unwrap();
    bytes.truncate(bytes.len() / 2);
    fs::write(&path, bytes).unwrap();
    let locked = lock(dir.path());
    assert_eq!(*locked.previous(), Previous { end: PrevEnd::Crashed, record: None });
    assert_eq!(locked.claim(Epoch(8), identity()).unwrap().epoch(), Epoch(9));
}

#[test]
fn a_newer_format_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let json = r#"{"format":2,"epoch":5,"whatever":true}"#;
    let text = format!("{json}\ncrc32c={:08x}\n", crc32c::crc32c(json.as_bytes()));
    fs::write(dir.path().join("LOCK"), &text).unwrap();
    let error = FsLock::try_acquire(dir.path()).unwrap_err();
    assert!(matches!(error, OwnershipError::NewerFormat { found: 2, supported: 1, .. }), "{error}");
    assert_eq!(fs::read_to_string(dir.path().join("LOCK")).unwrap(), text);
}

#[test]
fn version_1_is_read() {
    let fixture = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/journal/v1/LOCK");
    let Contents::Record(record) = Contents::decode(&fs::read(fixture).unwrap()) else {
        panic!("the fixture is a record")
    };
    let owner = Identity {
        pid: 4242,
        host: "ampere".to_owned(),
        boot_id: "6f0c9a52-0000-4000-8000-4f3a3a3a3a3a".to_owned(),
        started_at: Timestamp(1_781_703_598_000_000),
        version: "0.1.0".to_owned(),
        layout: 0,
    };
    assert_eq!(record, record::LockRecord::new(Epoch(17), LockState::Released, owner));
}

#[test]
fn a_file_in_place_of_the_directory_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "data").unwrap();
    for path in [file.clone(), file.join("below")] {
        let error = FsLock::try_acquire(&path).unwrap_err();
        assert!(matches!(error, OwnershipError::NotADirectory { .. }), "{error}");
    }
}

/// Does nothing in an ordinary run: it is the body of the child process.
#[test]
fn child_holds_the_lock_until_killed() {
    let Some(dir) = std::env::var_os(DIR_VARIABLE) else { return };
    let held = own(Path::new(&dir));
    println!("\nheld {}", held.epoch());
    let mut line = String::new();
    // Its input is never written to: this waits until the kill.
    std::io::stdin().read_line(&mut line).unwrap();
}

#[test]
fn a_killed_owner_frees_the_lock() {
    let dir = tempfile::tempdir().unwrap();
    for epoch in [1, 3, 5] {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["ownership::tests::child_holds_the_lock_until_killed", "--exact", "--nocapture"])
            .env(DIR_VARIABLE, dir.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let held = lines.map_while(Result::ok).find(|line| line.starts_with("held "));
        assert_eq!(held, Some(format!("held {epoch}")));
        let Attempt::HeldBy(Contents::Record(holder)) = FsLock::try_acquire(dir.path()).unwrap() else {
            panic!("the child does not hold the lock")
        };
        assert_eq!((holder.owner.pid, holder.epoch), (child.id(), Epoch(epoch)));
        child.kill().unwrap();
        child.wait().unwrap();
        let taken = own(dir.path());
        assert_eq!((taken.epoch(), taken.previous().end), (Epoch(epoch + 1), PrevEnd::Crashed));
        taken.release().unwrap();
    }
}

proptest! {
    #[test]
    fn no_damage_goes_unnoticed(at in any::<prop::sample::Index>(), bit in 0u8..8) {
        let mut bytes = record::LockRecord::new(Epoch(3), LockState::Held, identity()).encode();
        let intact = Contents::decode(&bytes);
        let end = bytes.len() - 1;
        let at = at.index(end);
        bytes[at] ^= 1 << bit;
        let found = Contents::decode(&bytes);
        // A hex digit may change its case and mean the same.
        prop_assert!(found == Contents::Damaged || found == intact, "{found:?}");
    }

    #[test]
    fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 1..200)) {
        prop_assert_eq!(Contents::decode(&bytes), Contents::Damaged);
    }
}

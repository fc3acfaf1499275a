//! 600 pieces of damage from fixed seeds, to a store, an archive and an exported file: nothing panics, nothing
//! is invented, what is lost is located, and what is intact is shown. In this process, so that it is fast;
//! some of them also through every command.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use shapefold::domain::EventId;
use shapefold::events::{Recorded, decode};
use shapefold::journal::{Finding, OfflineJournal, Reading};
use shapefold::projections::forensics::{Checker, Holding, Incidents, LastExits};
use shapefold::state::State;

use crate::golden;
use crate::storage::{COMMANDS, ask, copy, data_dir, files, seal};

const ROUNDS: usize = 200;
/// One in so many is looked at through the commands, too.
const THROUGH_COMMANDS: usize = 20;

/// A fixed sequence: <https://en.wikipedia.org/wiki/Linear_congruential_generator>, Knuth's numbers.
struct Random(u64);

impl Random {
    fn below(&mut self, below: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap_or(0) % below.max(1)
    }
}

/// What reading a journal to its end brought.
#[derive(Default)]
struct Read {
    ids: BTreeSet<u64>,
    findings: Vec<Finding>,
    /// It could not be opened, with a reason.
    refused: Option<String>,
}

/// Reads everything there is, as the commands do: entries, states, checkpoints; folds and judges it. Every event
/// that comes back is one of the originals.
fn read(place: &Path, story: &[Recorded]) -> Read {
    let mut read = Read::default();
    let journal = match OfflineJournal::open(place) {
        Ok(journal) => journal,
        Err(error) => return Read { refused: Some(error.to_string()), ..read },
    };
    read.findings.extend_from_slice(journal.findings());
    let (checkpoints, damaged) = journal.checkpoints();
    read.findings.extend(damaged);
    for state in journal.states() {
        match state.load() {
            Ok(saved) => check_state(&saved.state, story),
            Err(error) => read.findings.push(Finding::from(&error)),
        }
    }
    checkpoints.iter().for_each(|saved| check_state(&saved.state, story));
    let (mut checker, mut incidents) = (Checker::new(), Incidents::new(State::default()));
    let mut before = 0;
    for reading in journal.read(EventId(1)) {
        match reading {
            Reading::Entry(entry) => {
                assert!(entry.id.0 > before, "event {} after {before}", entry.id);
                before = entry.id.0;
                let recorded = decode(&entry.bytes).expect("an entry whose checksum is right is an event");
                assert_eq!(&recorded, &story[before as usize - 1], "an event that never was");
                read.ids.insert(before);
                checker.observe(&recorded);
                incidents.observe(&recorded);
            }
            Reading::Finding(finding) => read.findings.push(finding),
        }
    }
    let (state, _) = checker.finish();
    drop(Holding::of(&state, &LastExits::default()));
    drop(incidents.finish(std::time::Duration::from_secs(300)));
    read
}

fn check_state(bytes: &[u8], story: &[Recorded]) {
    let state = State::from_bytes(bytes).expect("a state whose checksum is right is a state");
    let mut fold = State::default();
    story.iter().take(state.last.0 as usize).for_each(|recorded| fold.apply(recorded));
    assert_eq!(state, fold, "a state that never was");
}

/// Damages one file; what was done to it.
fn damage(round: usize, target: &Path, bytes: &[u8], random: &mut Random) -> String {
    let used = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    match round % 5 {
        // Where there is something: sled's file is mostly empty.
        0..=2 if used > 0 => {
            let mut bytes = bytes.to_vec();
            let at = random.below(used);
            bytes[at] ^= 1 << random.below(8);
            fs::write(target, bytes).expect("writes");
            format!("byte {at} flipped")
        }
        3 => {
            let length = random.below(bytes.len());
            fs::write(target, &bytes[..length]).expect("writes");
            format!("cut to {length} bytes")
        }
        _ => {
            fs::remove_file(target).expect("removes");
            "removed".to_owned()
        }
    }
}

/// Damages a copy of `whole` in every round; returns how often something was told of.
fn rounds(seed: u64, whole: &Path, of: &str, story: &[Recorded]) -> usize {
    let originals =
        if whole.is_dir() { files(whole) } else { vec![(whole.to_owned(), fs::read(whole).expect("reads"))] };
    let base = if whole.is_dir() { whole.to_owned() } else { whole.parent().expect("has one").to_owned() };
    let sound = read(whole, story);
    assert_eq!((sound.ids.len(), &sound.findings), (story.len(), &Vec::new()), "{of} is whole at first");
    let (mut random, mut told) = (Random(seed), 0);
    for round in 0..ROUNDS {
        let place = tempfile::tempdir().expect("a directory");
        for (path, bytes) in &originals {
            let target = place.path().join(path.strip_prefix(&base).expect("below"));
            fs::create_dir_all(target.parent().expect("has one")).expect("makes");
            fs::write(target, bytes).expect("writes");
        }
        let (path, bytes) = &originals[random.below(originals.len())];
        let target = place.path().join(path.strip_prefix(&base).expect("below"));
        let done = damage(round, &target, bytes, &mut random);
        let journal: PathBuf = if whole.is_dir() { place.path().to_owned() } else { target.clone() };
        let found = read(&journal, story);
        let name = target.strip_prefix(place.path()).expect("below").display().to_string();
        let said = format!("{of}, round {round}: {name} {done}: {:?} {:?}", found.refused, found.findings);
        told += usize::from(found.refused.is_some() || !found.findings.is_empty());
        // What is missing in between was told; what is missing at an end may look retired, or never written.
        let holes = found.ids.first().zip(found.ids.last()).map_or(0, |(first, last)| last - first + 1)
            - found.ids.len() as u64;
        assert!(holes == 0 || !found.findings.is_empty(), "{holes} events are missing in silence: {said}");
        // One place of damage leaves most of what there is.
        let one_place = done.contains("flipped") && !name.contains("sled");
        assert!(
            !one_place || found.refused.is_some() || found.ids.len() * 3 >= story.len(),
            "{} of {} events: {said}",
            found.ids.len(),
            story.len()
        );
        if round % THROUGH_COMMANDS == 0 {
            through_commands(&journal, &found, &said);
        }
    }
    told
}

/// The commands say the same, each with an exit code of its own.
fn through_commands(journal: &Path, found: &Read, said: &str) {
    for command in COMMANDS {
        let output = ask(command, journal);
        assert!(output.status.code().is_some_and(|code| code <= 3), "{command:?}: {said}");
    }
    let verify = ask(&["verify"], journal);
    let answer = String::from_utf8_lossy(&verify.stdout).into_owned();
    match (&found.refused, found.findings.is_empty()) {
        (Some(_), _) => assert_eq!(verify.status.code(), Some(1), "{said}: {answer}"),
        (None, false) => assert_eq!(verify.status.code(), Some(3), "{said}: {answer}"),
        (None, true) => assert!(matches!(verify.status.code(), Some(2 | 3)), "{said}: {answer}"),
    }
}

#[test]
fn a_damaged_store() {
    let story = golden::edison();
    let (dir, owner) = data_dir(&story);
    drop(owner);
    let told = rounds(1, dir.path(), "store", &story.events);
    assert!(told > ROUNDS / 2, "only {told} of {ROUNDS} were noticed");
}

#[test]
fn a_damaged_archive() {
    let story = golden::edison();
    let dir = tempfile::tempdir().expect("a directory");
    for first in (1..=story.events.len()).step_by(60) {
        seal(dir.path(), &story, first, (first + 59).min(story.events.len()));
    }
    let archive = tempfile::tempdir().expect("a directory");
    copy(&dir.path().join("journal/archive"), archive.path());
    let told = rounds(2, archive.path(), "archive", &story.events);
    // A segment or a state that is gone from an end is not missed; everything else is.
    assert!(told > ROUNDS * 3 / 5, "only {told} of {ROUNDS} were noticed");
}

#[test]
fn a_damaged_bundle() {
    let story = golden::edison();
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("edison.sfx");
    golden::export(&story, &path);
    let told = rounds(3, &path, "bundle", &story.events);
    assert_eq!(told, ROUNDS, "every byte of an export is checked");
}

//! Every place a journal can be in, whole and damaged: read only, located, never a panic.

use std::fs;
use std::path::{Path, PathBuf};

use shapefold::domain::{Epoch, EventId, Timestamp};
use shapefold::events::encode;
use shapefold::journal::{Archive, Entry, Journal, JournalPaths, SealSpan, SledJournal, StateMark};
use shapefold::state::State;

use crate::figures::{run, text};
use crate::golden::{self, Story};

/// Commands with what they need besides the journal.
pub const COMMANDS: [&[&str]; 21] = [
    &["tail"],
    &["tail", "--json", "-n", "5"],
    &["state"],
    &["holding"],
    &["consumers", "--dead"],
    &["owners"],
    &["acks"],
    &["incident"],
    &["stats"],
    &["step", "--count", "3"],
    &["plot"],
    &["whatif"],
    &["verify"],
    &["holding", "--at", "300", "--json"],
    &["shape", "1"],
    &["why", "ack"],
    &["why", "1"],
    &["diff", "100", "end"],
    &["bisect", "gap > 1 GB"],
    &["sql", "SELECT kind, count(*) FROM events GROUP BY 1 ORDER BY 1"],
    &["sql", "SELECT * FROM shapes", "--json", "--at", "200"],
];

fn entries(story: &Story) -> Vec<Entry> {
    story.events.iter().map(|recorded| Entry { id: recorded.id, bytes: encode(recorded) }).collect()
}

fn fold(story: &Story, upto: usize) -> State {
    let mut state = State::default();
    story.events[..upto].iter().for_each(|recorded| state.apply(recorded));
    state
}

pub fn seal(dir: &Path, story: &Story, first: usize, last: usize) {
    let span = SealSpan {
        epoch: Epoch(4),
        first: EventId(first as u64),
        last: EventId(last as u64),
        oldest_at: Timestamp(0),
        newest_at: Timestamp(0),
    };
    let archive = Archive::open(&JournalPaths::new(dir)).expect("opens");
    archive.seal(&span, entries(story).into_iter().skip(first - 1).map(Ok)).expect("seals");
    save(&archive, &fold(story, last));
}

fn save(archive: &Archive, state: &State) {
    let mark = StateMark { epoch: Epoch(4), upto: state.last, at: state.at, routed: state.stream.routed };
    archive.save_state(&mark, &state.to_bytes()).expect("saves");
}

fn states(dir: &Path) -> Vec<PathBuf> {
    let archive = fs::read_dir(dir.join("journal/archive")).expect("reads");
    let mut found: Vec<PathBuf> = archive.map(|file| file.expect("reads").path()).collect();
    found.retain(|path| path.extension().is_some_and(|extension| extension == "sfs"));
    found.sort();
    found
}

/// A data directory with checkpoints after event 400 and at the end, and segments up to event 250. The owner's
/// handle comes with it: it stays open.
pub fn data_dir(story: &Story) -> (tempfile::TempDir, SledJournal) {
    let dir = tempfile::tempdir().expect("a directory");
    let (mut journal, _) = SledJournal::open(dir.path(), EventId(0)).expect("opens");
    for upto in [200, 400, story.events.len()] {
        let last = journal.last().0 as usize;
        journal.append(&entries(story)[last..upto]).expect("appends");
        if upto < story.events.len() {
            journal.checkpoint(EventId(upto as u64), &fold(story, upto).to_bytes()).expect("saves");
        }
    }
    // Moves the mark to the end, as an owner does that ends in order: the loss of the newest events would go
    // unseen otherwise.
    journal
        .checkpoint(EventId(story.events.len() as u64), &fold(story, story.events.len()).to_bytes())
        .expect("saves");
    seal(dir.path(), story, 1, 150);
    seal(dir.path(), story, 151, 250);
    (dir, journal)
}

pub fn ask(command: &[&str], journal: &Path) -> std::process::Output {
    let path = journal.to_str().expect("text");
    let mut arguments = vec![command[0], path];
    arguments.extend(&command[1..]);
    run(&arguments)
}

pub fn files(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).expect("reads") {
        let path = entry.expect("reads").path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.push((path.clone(), fs::read(path).expect("reads")));
        }
    }
    found.sort();
    found
}

pub fn copy(from: &Path, to: &Path) {
    for (path, bytes) in files(from) {
        let target = to.join(path.strip_prefix(from).expect("below"));
        fs::create_dir_all(target.parent().expect("has one")).expect("makes");
        fs::write(target, bytes).expect("writes");
    }
}

/// The same answers from a directory whose owner is at work, from a copy, from its inner directory, and
/// from exports of all of them; and nothing is written.
#[test]
fn every_place_gives_the_same_answers() {
    let (dir, _owner) = data_dir(&golden::edison());
    let elsewhere = tempfile::tempdir().expect("a directory");
    // The owner of the first goes on writing to it; nobody else may write to the second.
    copy(dir.path(), &elsewhere.path().join("copy"));
    let before = files(&elsewhere.path().join("copy"));
    let exported = elsewhere.path().join("edison.sfx");
    let imported = elsewhere.path().join("imported");
    text(&["export", dir.path().to_str().expect("text"), exported.to_str().expect("text")]);
    text(&["import", exported.to_str().expect("text"), imported.to_str().expect("text")]);
    let places =
        [dir.path().join("journal"), elsewhere.path().join("copy"), exported, imported, "edison.sfx".into()];
    for command in COMMANDS.iter().filter(|command| command[0] != "stats") {
        let live = ask(command, dir.path());
        for place in &places {
            let other = ask(command, place);
            assert_eq!(other.status, live.status, "{command:?} of {}", place.display());
            assert!(other.stdout == live.stdout, "{command:?} of {} says something else", place.display());
            assert_eq!(String::from_utf8_lossy(&other.stderr), "", "{command:?} of {}", place.display());
        }
    }
    assert!(files(&elsewhere.path().join("copy")) == before, "a command has written to the directory");
}

/// While an owner writes at full speed, every command answers from the directory and from a raw copy of it,
/// torn as it may be; what it reads is a prefix of the history.
#[test]
fn a_directory_that_is_written_to_is_read_all_the_same() {
    let story = golden::faraday();
    let dir = tempfile::tempdir().expect("a directory");
    let (mut journal, _) = SledJournal::open(dir.path(), EventId(0)).expect("opens");
    let all = entries(&story);
    journal.append(&all[..200]).expect("appends");
    journal.checkpoint(EventId(200), &fold(&story, 200).to_bytes()).expect("saves");
    let writing = std::thread::spawn(move || {
        for batch in all[200..].chunks(3) {
            journal.append(batch).expect("appends");
            journal.sync().expect("syncs");
        }
        journal
    });
    for command in COMMANDS {
        let copied = tempfile::tempdir().expect("a directory");
        copy(dir.path(), copied.path());
        for place in [dir.path(), copied.path()] {
            let output = ask(command, place);
            let code = output.status.code();
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(code.is_some_and(|code| code == 0 || command[0] == "verify"), "{command:?}: {said}");
            if *command == ["tail"] {
                let ids = ids(&output.stdout);
                assert!(ids.len() >= 200, "{} events: {said}", ids.len());
                assert!(ids.iter().copied().eq(1..=ids.len() as u64), "{said}");
            }
        }
    }
    drop(writing.join().expect("writes"));
    assert!(String::from_utf8_lossy(&ask(&["holding"], dir.path()).stdout).contains("17,212,350,577"));
}

/// The beginning is retired: the oldest checkpoint stands in for it, and what follows it is checked.
#[test]
fn a_journal_without_its_beginning_is_checked_from_a_checkpoint() {
    let (dir, mut owner) = data_dir(&golden::edison());
    owner.trim(EventId(401)).expect("trims");
    drop(owner);
    fs::remove_dir_all(dir.path().join("journal/archive")).expect("removes");
    let output = ask(&["verify"], dir.path());
    let answer = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(2), "{answer}");
    assert!(answer.contains("the first: F2 broken by event 424"), "{answer}");
    assert!(answer.contains("33 broken invariants"), "{answer}");
    assert!(!answer.contains("not checked"), "{answer}");
    let holding = String::from_utf8_lossy(&ask(&["holding"], dir.path()).stdout).into_owned();
    assert!(holding.contains("gap           1,574,459,193 bytes"), "{holding}");
    let slice = dir.path().join("slice.sfx");
    let path = |path: &Path| path.to_str().expect("text").to_owned();
    text(&["export", &path(dir.path()), &path(&slice), "--from", "420"]);
    let answer = String::from_utf8_lossy(&ask(&["holding"], &slice).stdout).into_owned();
    assert_eq!(answer, holding, "a slice carries the state before it");
}

/// A moment long ago is answered from the state before it in the archive, and as if everything had been
/// folded; an archive without states, or with damaged ones, answers the same.
#[test]
fn states_in_the_archive_change_no_answer() {
    let story = golden::edison();
    let (dir, owner) = data_dir(&story);
    drop(owner);
    fs::remove_dir_all(dir.path().join("journal/sled")).expect("removes");
    seal(dir.path(), &story, 251, story.events.len());
    let questions: [&[&str]; 6] = [
        &["holding", "--at", "250"],
        &["holding", "--at", "300", "--json"],
        &["state", "--at", "2026-03-19T20:00:00Z"],
        &["state", "--at", "1/F827A8C7"],
        &["holding", "--at", "100"],
        &["holding"],
    ];
    let with: Vec<_> = questions.iter().map(|question| ask(question, dir.path()).stdout).collect();
    let kept = states(dir.path());
    assert_eq!(kept.len(), 3);
    assert_eq!(ask(&["verify"], dir.path()).status.code(), Some(2), "the states are what the events fold to");

    // One that is a state, but not this one: only `verify` can know.
    save(
        &Archive::open(&JournalPaths::new(dir.path())).expect("opens"),
        &State { last: EventId(150), ..fold(&story, 140) },
    );
    let answer = ask(&["verify"], dir.path());
    let said = String::from_utf8_lossy(&answer.stdout).into_owned();
    assert_eq!(answer.status.code(), Some(3), "{said}");
    assert!(said.contains("150.sfs is not what the events up to 150 fold to"), "{said}");

    for path in &kept {
        let mut bytes = fs::read(path).expect("reads");
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        fs::write(path, bytes).expect("writes");
    }
    let answer = ask(&["verify"], dir.path());
    let said = String::from_utf8_lossy(&answer.stdout).into_owned();
    assert_eq!(answer.status.code(), Some(3), "{said}");
    assert_eq!(said.matches("checksum of an archived state").count(), 3, "{said}");
    let damaged: Vec<_> = questions.iter().map(|question| ask(question, dir.path()).stdout).collect();
    kept.iter().for_each(|path| fs::remove_file(path).expect("removes"));
    let without: Vec<_> = questions.iter().map(|question| ask(question, dir.path()).stdout).collect();
    assert!(with == without && damaged == without, "the answers differ");
}

/// What is retired takes no answer away: the state before the oldest segment stands in for the beginning.
#[test]
fn an_archive_without_its_beginning_begins_with_a_state() {
    let story = golden::edison();
    let (dir, owner) = data_dir(&story);
    drop(owner);
    fs::remove_dir_all(dir.path().join("journal/sled")).expect("removes");
    seal(dir.path(), &story, 251, story.events.len());
    let whole = ask(&["holding"], dir.path()).stdout;
    let archive = Archive::open(&JournalPaths::new(dir.path())).expect("opens");
    archive.remove(&archive.segments().expect("lists")[0]).expect("removes");
    assert_eq!(states(dir.path()).len(), 3);
    assert!(ask(&["holding"], dir.path()).stdout == whole, "the answers differ");
    let answer = ask(&["verify"], dir.path());
    let said = String::from_utf8_lossy(&answer.stdout).into_owned();
    assert!(said.contains("33 broken invariants") && !said.contains("not checked"), "{said}");
}

/// A missing segment is located; what lies behind it is shown, and checked again from the next checkpoint.
#[test]
fn a_missing_segment_is_located() {
    let story = golden::edison();
    let (dir, owner) = data_dir(&story);
    drop(owner);
    fs::remove_dir_all(dir.path().join("journal/sled")).expect("removes");
    let archive = dir.path().join("journal/archive");
    seal(dir.path(), &story, 251, story.events.len());
    let middle = fs::read_dir(&archive).expect("reads").map(|file| file.expect("reads").path());
    let middle = middle.filter(|path| path.to_string_lossy().contains("-00000000000000000151-")).last();
    fs::remove_file(middle.expect("is there")).expect("removes");
    let output = ask(&["verify"], dir.path());
    let answer = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(3), "{answer}");
    assert!(answer.contains("events 151 to 250 are not kept"), "{answer}");
    assert!(!answer.contains("events were not checked"), "the state at its end stands in for it: {answer}");
    states(dir.path()).iter().for_each(|path| fs::remove_file(path).expect("removes"));
    let answer = String::from_utf8_lossy(&ask(&["verify"], dir.path()).stdout).into_owned();
    assert!(answer.contains("events were not checked"), "{answer}");
    let tail = String::from_utf8_lossy(&ask(&["tail", "-n", "1"], &archive).stdout).into_owned();
    assert!(tail.trim_start().starts_with("477 "), "{tail}");
}

fn ids(listing: &[u8]) -> Vec<u64> {
    let lines = String::from_utf8_lossy(listing).into_owned();
    lines.lines().filter_map(|line| line.split_ascii_whitespace().next()?.parse().ok()).collect()
}

//! Bytes that outlive the process, against fixtures that are never edited: events and checkpoints.
//!
//! `SHAPEFOLD_WRITE_FIXTURES=1` writes the files of a new version; a file that is there stays as it is.

mod samples;

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use samples::{additions, causes_of_tables, liveness, operations, promotion, recorded};
use shapefold::events::{RECORD_VERSION, Recorded, decode, encode, names};
use shapefold::state::{STATE_VERSION, State};

fn data(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

/// The fixture, written first where it is new and that was asked for.
fn fixture(name: &str, current: impl FnOnce() -> Vec<u8>) -> Vec<u8> {
    let path = data(name);
    if !path.exists() && std::env::var_os("SHAPEFOLD_WRITE_FIXTURES").is_some() {
        fs::create_dir_all(path.parent().expect("a folder")).expect("the folder is made");
        fs::write(&path, current()).expect("the fixture is written");
    }
    fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    let digits = text.as_bytes().chunks(2);
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).expect("text"), 16).expect("hex");
    digits.map(byte).collect()
}

/// `name hex` a line, in the order of the samples.
fn encoded_events(recorded: &[Recorded]) -> String {
    recorded
        .iter()
        .map(|recorded| format!("{} {}\n", recorded.event.name(), hex(&encode(recorded))))
        .collect()
}

#[test]
fn events_of_version_1_are_read_for_ever() {
    reads_for_ever("events/v1.hex", &recorded());
    reads_for_ever("events/v1-causes-of-tables.hex", &causes_of_tables());
    reads_for_ever("events/v1-strangers.hex", &additions());
    reads_for_ever("events/v1-operations.hex", &operations());
    reads_for_ever("events/v1-promotion.hex", &promotion());
    reads_for_ever("events/v1-liveness.hex", &liveness());
}

fn reads_for_ever(name: &str, samples: &[Recorded]) {
    let fixture = fixture(name, || encoded_events(samples).into_bytes());
    let lines = String::from_utf8(fixture).expect("the fixture is text");
    assert_eq!(lines.lines().count(), samples.len(), "a sample was added: add its line to the fixture, too");
    for (line, sample) in lines.lines().zip(samples) {
        let (name, bytes) = line.split_once(' ').expect("a name and bytes");
        let bytes = unhex(bytes);
        assert_eq!((name, bytes.first()), (sample.event.name(), Some(&1)));
        assert_eq!(decode(&bytes).as_ref(), Ok(sample), "{name}");
        if RECORD_VERSION == 1 {
            assert_eq!(hex(&encode(sample)), hex(&bytes), "{name}: other bytes need another version");
        }
    }
}

/// What filters accept is what events are called; a new event is in both, and among the samples.
#[test]
fn names_lists_every_event_once() {
    let listed: BTreeSet<&str> = names().iter().copied().collect();
    assert_eq!(listed.len(), names().len(), "a name twice");
    let samples = [recorded(), promotion(), liveness()].concat();
    let sampled: BTreeSet<&str> = samples.iter().map(|recorded| recorded.event.name()).collect();
    assert_eq!(sampled, listed);
    assert_eq!(names_in_the_sources(), listed.iter().map(|name| (*name).to_owned()).collect());
}

/// The texts that the functions `name` of `src/events` give.
fn names_in_the_sources() -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src/events");
    for entry in fs::read_dir(folder).expect("the sources are there") {
        let text = fs::read_to_string(entry.expect("an entry").path()).expect("a source is text");
        let Some((_, body)) = text.split_once("pub fn name(&self)") else { continue };
        let body = body.split("\n    }\n").next().unwrap_or_default();
        found.extend(body.split("=> \"").skip(1).filter_map(|rest| Some(rest.split_once('"')?.0.to_owned())));
    }
    found
}

/// Samples that the fixture of a state is the fold of; the others were added later.
const FOLDED: usize = 99;

/// A checkpoint is what a journal folds to. One of this version reads back as that state; one of
/// another is refused, and the journal is folded instead.
#[test]
fn a_checkpoint_of_version_1_is_read_or_refused() {
    let mut state = State::default();
    recorded().iter().take(FOLDED).for_each(|recorded| state.apply(recorded));
    let bytes = fixture("state/v1.bin", || state.to_bytes());
    assert_eq!(bytes.first(), Some(&1));
    if STATE_VERSION == 1 {
        assert_eq!(State::from_bytes(&bytes).as_ref(), Some(&state), "another fold needs another version");
        assert_eq!(hex(&state.to_bytes()), hex(&bytes), "other bytes need another version");
    } else {
        assert_eq!(State::from_bytes(&bytes), None);
    }
    recorded().iter().skip(FOLDED).for_each(|recorded| state.apply(recorded));
    liveness().iter().take(2).for_each(|recorded| state.apply(recorded));
    assert_eq!(State::from_bytes(&state.to_bytes()), Some(state.clone()), "what was added is kept, too");
    let mut newer = state.to_bytes();
    newer[0] = STATE_VERSION + 1;
    assert_eq!(State::from_bytes(&newer), None);
    assert_eq!(State::from_bytes(&[]), None);
    // Found by tests/fuzz: an unknown field, and values in values to the end of the stack.
    let deep = [&[STATE_VERSION, 0x81, 0xa1, b'z'][..], &[0x91; 100_000]].concat();
    assert_eq!(State::from_bytes(&deep), None);
}

//! Events that are missing in the middle: said once, and no rule is called broken because of them.

use std::fs;

use crate::golden;
use crate::storage::{ask, seal};

/// `edison` without the events 201 to 260, in three segments; with the state behind the gap or without any.
fn archive(with_state: bool) -> tempfile::TempDir {
    let (dir, story) = (tempfile::tempdir().expect("a directory"), golden::edison());
    for (first, last) in [(1, 200), (201, 260), (261, story.events.len())] {
        seal(dir.path(), &story, first, last);
    }
    for file in fs::read_dir(dir.path().join("journal/archive")).expect("reads") {
        let path = file.expect("reads").path();
        let is_state = path.extension().is_some_and(|extension| extension == "sfs");
        let name = path.file_name().expect("has one").to_string_lossy().into_owned();
        if (is_state && !with_state) || (!is_state && name.contains("201-")) {
            fs::remove_file(&path).expect("removes");
        }
    }
    dir
}

fn told(with_state: bool) -> String {
    let dir = archive(with_state);
    let output = ask(&["incident"], &dir.path().join("journal/archive"));
    let answer = String::from_utf8(output.stdout).expect("text");
    assert!(output.status.success(), "{answer}");
    assert!(
        answer.contains("1 journal torn") && answer.contains("events 201 to 260 are missing"),
        "{answer}"
    );
    for rule in ["J1", "S1", "S3"] {
        assert!(!answer.contains(&format!("{rule} broken")), "{rule}: {answer}");
    }
    answer
}

#[test]
fn behind_the_next_state_rules_are_judged_again() {
    let answer = told(true);
    assert!(answer.contains("33 writers died, 33 shapes orphaned"), "{answer}");
    assert!(answer.contains("F2 broken by event 424: shape 1 owes transaction 33"), "{answer}");
}

/// What events say by themselves is still told.
#[test]
fn without_a_state_no_rule_is_judged() {
    let answer = told(false);
    assert!(answer.contains("33 writers died") && !answer.contains("broken by"), "{answer}");
}

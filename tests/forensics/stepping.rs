//! Stepping by a script on stdin: forward, back, to a place, to the next anomaly.

use std::io::Write;
use std::process::{Command, Stdio};

use crate::figures::text;
use crate::golden;

/// What is printed for each line of the script, and first of all.
fn steps(arguments: &[&str], script: &str) -> Vec<String> {
    let mut child = Command::new(env!("CARGO_BIN_EXE_shapefold"))
        .args(["journal", "step"])
        .args(arguments)
        .arg("--interactive")
        .current_dir(golden::directory())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("starts");
    child.stdin.take().expect("piped").write_all(script.as_bytes()).expect("is read");
    let output = child.wait_with_output().expect("ends");
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).expect("text");
    text.split("[Enter forward")
        .map(|part| part.split_once("q quit] ").map_or(part, |(_, rest)| rest).to_owned())
        .collect()
}

fn event(step: &str) -> &str {
    step.strip_prefix("event ").and_then(|rest| rest.split(' ').next()).unwrap_or(step)
}

#[test]
fn forward_and_back_over_the_same_events() {
    let steps = steps(&["edison.sfx", "--from", "422"], "\n\nb\nb\nb\nb\n\nn\nq\n");
    let events: Vec<&str> = steps.iter().map(|step| event(step)).take(9).collect();
    assert_eq!(events, ["422", "423", "424", "423", "422", "421", "420", "421", "422"]);
    assert_eq!(steps[1], steps[3], "the same step says the same, also on the way back");
    assert_eq!(steps[0], steps[8]);
    assert!(
        steps[2].contains("shape[1].writer              Live { incarnation: 1, ready: true } -> Absent"),
        "{}",
        steps[2]
    );
    assert!(steps[1].contains("gap_bytes                    0 -> 1"), "{}", steps[1]);
}

#[test]
fn to_any_place_by_the_one_grammar() {
    let steps = steps(&["edison.sfx"], "424\n02:09:30\n1/F827A8C8\nend\n\nb\nyesterday\n2027-01-01\n1\nb\n");
    let events: Vec<&str> = steps.iter().map(|step| event(step)).collect();
    assert_eq!(events[..6], ["1", "424", "423", "423", "477", "this is the end\n"]);
    assert_eq!(events[6], "476");
    assert!(steps[7].starts_with("expected an event (1234)"), "{}", steps[7]);
    assert_eq!(events[8], "there is no event from there on\n");
    assert_eq!(events[9..11], ["1", "this is the beginning\n"]);
}

#[test]
fn from_one_anomaly_to_the_next() {
    let found = steps(&["edison.sfx"], "a\na\nb\na\nend\na\n");
    assert_eq!(event(&found[1]), "424");
    assert!(
        found[1].contains("ANOMALY: shape 10000019-1773922140000000: writer 1 ended with the drain"),
        "{}",
        found[1]
    );
    assert!(
        found[1].contains("ANOMALY: F2 broken by event 424: shape 1 owes transaction 33"),
        "{}",
        found[1]
    );
    assert_eq!(event(&found[2]), "425");
    assert!(!found[2].contains("event 424"), "what was told is not told again: {}", found[2]);
    assert_eq!((event(&found[3]), event(&found[4])), ("424", "425"));
    assert_eq!(found[6], "no anomaly from here to the end\n");
    assert_eq!(steps(&["deploy.sfx"], "a\n")[1], "no anomaly from here to the end\n");
}

#[test]
fn one_shape_alone() {
    let found =
        steps(&["edison.sfx", "--shape", "94359551-1773923988150221", "--from", "100"], "\nb\nb\nb\n");
    let events: Vec<&str> = found.iter().map(|step| event(step)).take(5).collect();
    assert_eq!(events, ["423", "427", "423", "44", "43"]);
    assert_eq!(text(&["step", "edison.sfx", "--shape", "4", "--from", "100", "--count", "1"]), found[0]);
}

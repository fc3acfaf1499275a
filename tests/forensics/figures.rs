//! The figures that incident reports name come out exactly, and the cohort is named.

use std::process::{Command, Output};

use crate::golden;

pub fn run(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_shapefold"))
        .arg("journal")
        .args(arguments)
        .current_dir(golden::directory())
        .output()
        .expect("runs")
}

pub fn text(arguments: &[&str]) -> String {
    let output = run(arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

#[track_caller]
pub fn says(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{part:?} is not in:\n{text}");
    }
}

/// Runs `verify`, which is to end with this exit code.
#[track_caller]
pub fn verify(journal: &str, code: i32) -> String {
    let output = run(&["verify", journal]);
    assert_eq!(output.status.code(), Some(code), "{}", String::from_utf8_lossy(&output.stdout));
    String::from_utf8(output.stdout).expect("text")
}

#[test]
fn edison_who_holds_the_log() {
    let answer = text(&["holding", "edison.sfx", "--all"]);
    says(
        &answer,
        &[
            "(10,032,775,168)",
            "(8,458,315,975)",
            "gap           1,574,459,193 bytes",
            "owing         33 of 40 shapes, 33 of them without a live writer and with nobody to pay",
            "COHORT: 33 shapes owe the same transaction 33 (commit 1/F827A8C8, xid 833) and have no live writer",
            "created    2026-03-19T12:09:00.000000Z to 2026-03-20T02:07:00.000000Z",
            "last exits Drained: 33",
            "flushed nothing ever: 2 of them: 86559626-1773922634786024, 94359551-1773923988150221",
        ],
    );
    let holders = answer.lines().filter(|line| line.contains("nobody; writer 1 Drained at event")).count();
    assert_eq!(holders, 33);
}

#[test]
fn edison_as_json() {
    let answer: serde_json::Value =
        serde_json::from_str(&text(&["holding", "edison.sfx", "--json"])).expect("JSON");
    assert_eq!(answer["gap_bytes"], 1_574_459_193_u64);
    assert_eq!(answer["holders"].as_array().map(Vec::len), Some(33));
    assert_eq!(answer["cohorts"][0]["flushed_nothing"].as_array().map(Vec::len), Some(2));
    assert_eq!(answer["holders"][0]["last_exit"]["cause"], "Drained");
}

/// LSN, time and event name the same moment; before it, nothing was held.
#[test]
fn edison_at_other_moments() {
    let by_time = text(&["holding", "edison.sfx", "--at", "2026-03-20T02:09:29Z"]);
    assert_eq!(by_time, text(&["holding", "edison.sfx", "--at", "02:09:29"]));
    assert_eq!(by_time, text(&["holding", "edison.sfx", "--at", "1/F827A8C7"]));
    assert_eq!(by_time, text(&["holding", "edison.sfx", "--at", "422"]));
    says(&by_time, &["gap           0 bytes", "owing         0 of 40 shapes"]);
}

#[test]
fn edison_why_and_what_broke_first() {
    let answer = verify("edison.sfx", 2);
    says(
        &answer,
        &["the first: F2 broken by event 424", "33 broken invariants", "writer 1 ended with the drain"],
    );
    let answer = text(&["why", "edison.sfx", "ack"]);
    says(
        &answer,
        &[
            "the acknowledgement cannot pass transaction 33 (commit 1/F827A8C8), which 33 shapes owe",
            "33 of them have no live writer",
            "no restart, no removal (F2)",
        ],
    );
    let answer = text(&["why", "edison.sfx", "94359551-1773923988150221"]);
    says(&answer, &["owes 1 transaction, the oldest is 33", "next step by nobody", "     427 "]);
    let answer = text(&["incident", "edison.sfx"]);
    says(
        &answer,
        &["33 writers died, 33 shapes orphaned", "and it goes on", "1,574,459,193", "\n1 incident\n"],
    );
    let answer = text(&["consumers", "edison.sfx", "--dead"]);
    says(&answer, &["33 shapes owe something and have no writer"]);
}

#[test]
fn faraday_twice_and_the_difference() {
    let first = text(&["holding", "faraday.sfx", "--at", "2026-03-24T09:00:00Z"]);
    says(
        &first,
        &[
            "(3,487,446,326,072)",
            "(3,471,528,106,047)",
            "gap           15,918,220,025 bytes",
            "owing         518 of 518 shapes, 402 of them without a live writer",
            "COHORT: 402 shapes owe the same transaction 2 (commit 328/47331840",
            "last exits Suspended: 402",
            "32B/EF1F65D8     15,918,220,023     115              0",
        ],
    );
    let second = text(&["holding", "faraday.sfx"]);
    says(&second, &["gap           17,212,350,577 bytes", "COHORT: 402 shapes", "(3,488,740,456,624)"]);
    let answer = text(&["diff", "faraday.sfx", "2026-03-24T09:00:00Z", "end", "--limit", "20GB"]);
    says(
        &answer,
        &[
            "+1,294,130,552",
            "no live writer: 402 -> 402 (402 stayed, 0 removed, 0 moved on, 0 joined, 0 created)",
            "somebody works on it: 116 -> 114 (109 stayed, 7 removed",
            "removed   7:",
            "the gap grows by 410,835 bytes a second",
            "it reaches 20,000,000,000 bytes in",
        ],
    );
    says(&verify("faraday.sfx", 2), &["402 broken invariants", "the first: F2 broken by event 4155"]);
}

#[test]
fn two_owners_at_once_are_one_incident_with_one_cause() {
    let answer = text(&["owners", "ampere.sfx"]);
    says(
        &answer,
        &[
            "ampere-1",
            "version 1.7.7",
            "ampere-2",
            "version 1.7.8",
            "it wrote 6 events beside epoch 2",
            "at once",
        ],
    );
    let answer = text(&["incident", "ampere.sfx"]);
    says(
        &answer,
        &[
            "2 writes beside another owner, 5 storage faults",
            "epoch 2 took the directory while epoch 1 had not ended",
        ],
    );
    says(&answer, &["\n1 incident\n", "first cause:\n      58 "]);
    says(&verify("ampere.sfx", 2), &["the first: O1 broken by event 58"]);
}

#[test]
fn a_deploy_in_order_is_no_incident() {
    says(&text(&["owners", "deploy.sfx"]), &["released in order", "2 owners, never two at once"]);
    says(&text(&["incident", "deploy.sfx"]), &["0 incidents"]);
    says(&verify("deploy.sfx", 0), &["0 broken invariants"]);
    says(&text(&["acks", "deploy.sfx"]), &["1 acknowledgements, 0 unsafe"]);
}

/// Each of the five ways to owe for ever is found, at the event with which it began.
#[test]
fn the_five_hypotheses_are_told_apart() {
    let answer = verify("hypotheses.sfx", 2);
    says(
        &answer,
        &[
            "R4 broken by event 59",
            "F2 broken by event 60: shape 1",
            "F2 broken by event 62: shape 2",
            "F2 broken by event 64: shape 3",
            "F2 broken by event 67: shape 4",
            "F2 broken by event 69: shape 5",
        ],
    );
    let answer = text(&["consumers", "hypotheses.sfx", "--dead"]);
    says(&answer, &["5 shapes owe something", "ended Suspended", "ended Drained", "ended Panicked"]);
}

#[test]
fn bisect_finds_the_first_event() {
    let answer = text(&["bisect", "edison.sfx", "gap > 1 GB"]);
    says(&answer, &["first holds after event 461"]);
    let answer = text(&["bisect", "edison.sfx", "pending >= 33 and not writer(94359551-1773923988150221)"]);
    says(&answer, &["first holds after event 427"]);
    let answer = text(&["bisect", "edison.sfx", "acked stalled for 60s"]);
    says(&answer, &["first holds after event 457"]);
    says(&text(&["bisect", "edison.sfx", "epoch > 4"]), &["never holds, up to event 477"]);
    assert!(!run(&["bisect", "edison.sfx", "gap >"]).status.success());
}

#[test]
fn filters_that_can_match_nothing_are_refused() {
    for arguments in [
        ["tail", "edison.sfx", "--kind", "ShapeDied"],
        ["tail", "edison.sfx", "--cause", "Tiredness"],
        ["tail", "edison.sfx", "--shape", "1-2"],
        ["tail", "edison.sfx", "--from", "yesterday"],
    ] {
        assert!(!run(&arguments).status.success(), "{arguments:?}");
    }
}

#[test]
fn events_are_json_with_fields() {
    let lines = text(&["dump", "edison.sfx", "--json", "--kind", "ConsumerExited", "--cause", "Drained"]);
    assert_eq!(lines.lines().count(), 33);
    let first: serde_json::Value = serde_json::from_str(lines.lines().next().expect("a line")).expect("JSON");
    assert_eq!(first["event"]["pending_oldest"], 33);
    assert_eq!(first["event"]["cause"], "Drained");
    assert_eq!(first["shape"], "10000019-1773922140000000");
    let of_table = text(&["tail", "edison.sfx", "--table", "16402", "--kind", "ShapeCreated"]);
    assert_eq!(of_table.lines().count(), 19);
    let late = text(&["tail", "edison.sfx", "--from", "2/30000000", "--json"]);
    assert!(late.lines().count() < 20, "{late}");
    let old = text(&["tail", "ampere.sfx", "--epoch", "1", "--from", "2026-06-17T13:39:00Z"]);
    assert_eq!(old.lines().count(), 6, "{old}");
}

/// A watermark names no shape; it is about those that it moves all the same.
#[test]
fn a_flush_is_about_the_shapes_that_it_moves() {
    let story = text(&["tail", "deploy.sfx", "--shape", "1", "--kind", "ShapesFlushed"]);
    assert_eq!(story.lines().count(), 1, "{story}");
}

/// A stricter policy would have decided upon every one of them; what would have followed is not claimed.
#[test]
fn another_policy_decides_otherwise() {
    let answer = text(&["whatif", "hypotheses.sfx", "--stall-grace", "10s"]);
    says(&answer, &["would have been suspected by now", "not known"]);
    let answer = text(&["whatif", "edison.sfx", "--stall-invalidations", "100"]);
    says(
        &answer,
        &["99 decisions would have been others", "would have had its writer started again (attempt 1)"],
    );
    let answer = text(&["whatif", "edison.sfx", "--exit-policy", "give-up"]);
    says(
        &answer,
        &["     424 2026-03-20T02:09:30.041000Z shape 10000019-1773922140000000 would have been given up"],
    );
    says(&text(&["whatif", "week.sfx"]), &["0 decisions would have been others"]);
}

//! What programs get: every answer as JSON, with the figures that people are shown. And what a copy of a directory
//! says of its configuration.

use serde_json::Value;
use shapefold::journal::{JournalPaths, write_configuration};

use crate::figures::{run, says, text};
use crate::golden;
use crate::storage::{ask, data_dir};

fn json(arguments: &[&str]) -> Value {
    let output = run(&[arguments, &["--json"]].concat());
    let said = String::from_utf8(output.stdout).expect("text");
    serde_json::from_str(&said).unwrap_or_else(|error| panic!("{arguments:?}: {error}: {said}"))
}

fn lines(arguments: &[&str]) -> Vec<Value> {
    let said = text(&[arguments, &["--json"]].concat());
    said.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect()
}

#[test]
fn every_answer_is_there_as_json() {
    let owners = json(&["owners", "ampere.sfx"]);
    assert_eq!((&owners["overlap"], owners["owners"].as_array().map(Vec::len)), (&true.into(), Some(2)));
    assert_eq!(owners["owners"][0]["late"]["count"], 6);
    let incident = json(&["incident", "edison.sfx"]);
    assert_eq!(incident["incidents"][0]["gap_bytes"], 1_574_459_193_u64);
    assert_eq!(incident["incidents"][0]["first_cause"]["links"][0]["event"], 424);
    let verify = run(&["verify", "edison.sfx", "--json"]);
    assert_eq!(verify.status.code(), Some(2), "the exit code is the same");
    let found: Value = serde_json::from_slice(&verify.stdout).expect("JSON");
    assert_eq!((&found["broken"], found["violations"].as_array().map(Vec::len)), (&33.into(), Some(33)));
    let diff = json(&["diff", "faraday.sfx", "2026-03-24T09:00:00Z", "end", "--limit", "20GB"]);
    assert_eq!(diff["after"]["gap_bytes"], 17_212_350_577_u64);
    assert_eq!(diff["stuck"][0]["change"]["stayed"], 402);
    assert_eq!(diff["time_to_limit"], "1 h 53 min");
    assert_eq!(json(&["why", "edison.sfx", "ack"])["oldest"]["shapes"], 33);
    assert_eq!(json(&["why", "edison.sfx", "94359551-1773923988150221"])["is"], "owing");
    let life = json(&["shape", "edison.sfx", "94359551-1773923988150221"]);
    assert_eq!((&life["lines_count"], &life["today"]["owed"]), (&10.into(), &1.into()));
    assert_eq!(json(&["bisect", "edison.sfx", "gap > 1 GB"])["id"], 461);
    assert_eq!(json(&["bisect", "edison.sfx", "epoch > 4"]), Value::Null);
    assert_eq!(json(&["stats", "edison.sfx"])["kinds"]["ConsumerExited"]["events"], 33);
    let plot = json(&["plot", "faraday.sfx"]);
    let highest = plot["gap_bytes"].as_array().and_then(|gaps| gaps.iter().filter_map(Value::as_u64).max());
    assert_eq!(highest, Some(17_212_350_577));
    assert_eq!(lines(&["consumers", "hypotheses.sfx", "--dead"]).len(), 5);
    let acks = lines(&["acks", "edison.sfx"]);
    assert_eq!((acks.len(), &acks[32]["unsafe"]), (33, &0.into()));
    let whatif = lines(&["whatif", "hypotheses.sfx", "--stall-grace", "30s"]);
    assert_eq!((whatif.len(), &whatif[13]["others"]), (14, &13.into()), "all of them, none left out");
    let steps = lines(&["step", "edison.sfx", "--from", "423", "--count", "2"]);
    assert_eq!((&steps[0]["id"], &steps[0]["other_shapes"]), (&423.into(), &29.into()));
    assert!(steps[1]["changes"].as_array().is_some_and(|all| all.iter().any(|one| one["after"] == "Absent")));
}

/// A transaction for 518 shapes concerns the last of them as well as the first, and the others are counted.
#[test]
fn a_step_of_very_many_shapes_is_one_of_each() {
    let last = text(&["step", "faraday.sfx", "--from", "4154", "--count", "1", "--shape", "518"]);
    says(&last, &["TxnRouted", "shape[518].pending"]);
    let broadcast = lines(&["tail", "faraday.sfx", "--kind", "TxnRouted", "--shape", "400"]);
    let id = broadcast.last().expect("one")["id"].to_string();
    let shown = lines(&["step", "faraday.sfx", "--from", &id, "--count", "1"]);
    let set = &lines(&["tail", "faraday.sfx", "--from", &id, "-n", "1", "--to", &id])[0]["event"]["set"];
    let told = 4;
    assert_eq!(shown[0]["other_shapes"].as_u64(), set.as_array().map(|all| all.len() as u64 - told));
}

#[test]
fn a_plot_shows_who_owned_it() {
    let answer = text(&["plot", "week.sfx"]);
    let owner = answer.lines().find(|line| line.starts_with("owner ")).expect("a line of owners");
    assert!(["|1111", "12", "23"].iter().all(|part| owner.contains(part)), "{answer}");
    says(
        &answer,
        &["epoch 1 from 2026-05-25T08:00:00.", "epoch 2 from 2026-05-28T16:58:00.", "epoch 3 from"],
    );
    // Somebody owned it also where the drawing begins later.
    says(&text(&["plot", "week.sfx", "--from", "2026-05-30"]), &["epoch 3 from 2026-05-30"]);
}

/// The settings go with a copy, with an export of it, and with an export of that; those of another process do not.
#[test]
fn a_directory_says_how_its_owner_is_configured() {
    let (dir, owner) = data_dir(&golden::edison());
    drop(owner);
    let place = tempfile::tempdir().expect("a directory");
    let path = |name: &str| place.path().join(name).to_str().expect("text").to_owned();
    let paths = JournalPaths::new(dir.path());
    let settings = r#"{"config_hash":"5ee10ff5e77e0001","pool_size":20,"stream_id":"default"}"#;
    write_configuration(&paths, settings).expect("writes");
    let answer = String::from_utf8(ask(&["owners"], dir.path()).stdout).expect("text");
    says(&answer, &["configuration of the newest:", "          pool_size = 20", "stream_id = \"default\""]);
    text(&["export", dir.path().to_str().expect("text"), &path("whole.sfx")]);
    text(&["export", &path("whole.sfx"), &path("slice.sfx"), "--from", "2026-03-20T02:00:00Z"]);
    let answer = text(&["import", &path("slice.sfx"), &path("colleague")]);
    says(
        &answer,
        &[
            "owner     Active, epoch 4, process 17 on edison-1, version 1.7.12",
            "slot      electric_slot_default, confirmed 1/F4ADD400",
            "gap 1,574,459,193 bytes",
            "settings  5ee10ff5e77e0001",
            "          pool_size = 20",
            "125 events, every checksum right",
        ],
    );
    let manifest: Value =
        serde_json::from_str(&text(&["import", &path("whole.sfx"), &path("again"), "--json"])).expect("JSON");
    assert_eq!(manifest["configuration"]["pool_size"], 20);
    assert_eq!(manifest["slot"]["observed"]["event"], 5);
    write_configuration(&paths, &settings.replace("5ee1", "0000")).expect("writes");
    let answer = String::from_utf8(ask(&["owners"], dir.path()).stdout).expect("text");
    assert!(!answer.contains("pool_size"), "{answer}");
}

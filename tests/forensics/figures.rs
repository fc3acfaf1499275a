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
fn says(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{part:?} is not in:\n{text}");
    }
}

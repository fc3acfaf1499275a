//! Every command of `shapefold journal`, as a person would call it.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use crate::support::BINARY;

/// Commands that read a journal. `JOURNAL`, `HANDLE` and `OUT` (a directory for what is written) are put in.
const CALLS: &[&[&str]] = &[
    &["tail", "JOURNAL"],
    &["tail", "JOURNAL", "--json", "--kind", "TxnRouted", "--from", "10"],
    &["dump", "JOURNAL", "--plain", "--shape", "HANDLE"],
    &["step", "JOURNAL", "--count", "20"],
    &["step", "JOURNAL", "--interactive", "--from", "end"],
    &["stats", "JOURNAL"],
    &["state", "JOURNAL"],
    &["state", "JOURNAL", "--at", "40", "--json"],
    &["bisect", "JOURNAL", "shapes >= 1"],
    &["shape", "JOURNAL", "HANDLE"],
    &["why", "JOURNAL", "HANDLE"],
    &["why", "JOURNAL", "ack"],
    &["consumers", "JOURNAL"],
    &["consumers", "JOURNAL", "--dead"],
    &["holding", "JOURNAL", "--all"],
    &["holding", "JOURNAL", "--json", "--at", "60"],
    &["diff", "JOURNAL", "20", "end", "--limit", "20GB"],
    &["acks", "JOURNAL"],
    &["plot", "JOURNAL", "--svg", "OUT/plot.svg"],
    &["owners", "JOURNAL"],
    &["incident", "JOURNAL"],
    &["verify", "JOURNAL"],
    &["whatif", "JOURNAL", "--stall-grace", "1s"],
    &["sql", "JOURNAL", "SELECT * FROM events"],
    &["sql", "JOURNAL", "SELECT * FROM moment, shapes LEFT JOIN consumers USING (sid)", "--json"],
    &["export", "JOURNAL", "OUT/journal.sfx"],
    &["export", "JOURNAL", "--sqlite", "OUT/journal.sqlite"],
    &["import", "OUT/journal.sfx", "OUT/imported"],
    &["tail", "OUT/imported", "--json"],
];

/// A call and what came of it.
pub struct Ran {
    pub call: String,
    /// Whether it read the journal itself, not what was exported from it.
    pub of_journal: bool,
    pub output: Output,
}

impl Ran {
    pub fn code(&self) -> Option<i32> {
        self.output.status.code()
    }

    /// All that it printed.
    pub fn said(&self) -> String {
        let (out, error) = (&self.output.stdout, &self.output.stderr);
        format!("{}{}", String::from_utf8_lossy(out), String::from_utf8_lossy(error))
    }

    pub fn complained(&self) -> String {
        String::from_utf8_lossy(&self.output.stderr).into_owned()
    }
}

/// Runs them all.
pub fn run_all(journal: &Path, handle: &str, out: &Path) -> Vec<Ran> {
    std::fs::create_dir_all(out).expect("a directory for what is written");
    let text = |path: &Path| path.to_str().expect("text").to_owned();
    let run = |call: &&[&str]| {
        let put_in = |word: &&str| {
            word.replace("JOURNAL", &text(journal)).replace("HANDLE", handle).replace("OUT", &text(out))
        };
        let arguments: Vec<String> = call.iter().map(put_in).collect();
        let output = Command::new(BINARY)
            .arg("journal")
            .args(&arguments)
            .stdin(Stdio::null())
            .output()
            .expect("the binary runs");
        Ran { call: call.join(" "), of_journal: call.contains(&"JOURNAL"), output }
    };
    CALLS.iter().map(run).collect()
}

/// A command that is added must be added here.
#[test]
fn every_command_is_among_them() {
    let output = Command::new(BINARY).args(["journal", "--help"]).output().expect("the binary runs");
    let help = String::from_utf8(output.stdout).expect("text");
    let (_, commands) = help.split_once("Commands:\n").expect("commands are listed");
    let listed = commands.lines().take_while(|line| line.starts_with("  "));
    let names: Vec<&str> = listed.filter_map(|line| line.split_whitespace().next()).collect();
    assert!(names.len() > 15, "{names:?}");
    // `open` shows a journal in the browser and ends when it is told to.
    for name in names.into_iter().filter(|name| !["help", "open"].contains(name)) {
        assert!(CALLS.iter().any(|call| call[0] == name), "{name} is not called");
    }
}

//! Every command in `docs/forensics.md` and `docs/runbook.md` is run, and its output is what the page shows.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use crate::golden;

const WRITE_VARIABLE: &str = "SHAPEFOLD_WRITE_DOCS";
const FENCE: &str = "```console";

/// The page with every output as it is now: each block holds one command behind `$ ` and what it prints. A
/// command may write files: it runs in a copy of the directory of journals.
fn rewritten(page: &str) -> (String, usize) {
    let place = tempfile::tempdir().expect("a directory");
    for file in fs::read_dir(golden::directory()).expect("reads") {
        let path = file.expect("reads").path();
        fs::copy(&path, place.path().join(path.file_name().expect("named"))).expect("copies");
    }
    let (mut text, mut commands, mut lines) = (String::new(), 0, page.lines());
    while let Some(line) = lines.next() {
        text += line;
        text.push('\n');
        if line != FENCE {
            continue;
        }
        let command = lines.next().expect("a command");
        let call = command.strip_prefix("$ shapefold ").expect("a command of ours").to_owned();
        let program = env!("CARGO_BIN_EXE_shapefold");
        // Through a shell: what a person types has quotes and pipes in it.
        let output = Command::new("sh")
            .arg("-c")
            .arg(format!("'{program}' {call}"))
            .current_dir(place.path())
            .output()
            .expect("runs");
        assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{command}");
        text += &format!("{command}\n{}", String::from_utf8(output.stdout).expect("text"));
        commands += 1;
        for line in lines.by_ref() {
            if line == "```" {
                text += "```\n";
                break;
            }
        }
    }
    (text, commands)
}

/// Run with SHAPEFOLD_WRITE_DOCS set to write the outputs into the page.
fn check(name: &str, commands_min: usize) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(name);
    let page = fs::read_to_string(&path).expect("reads");
    let (now, commands) = rewritten(&page);
    if std::env::var_os(WRITE_VARIABLE).is_some() {
        fs::write(&path, &now).expect("writes");
        return;
    }
    assert!(commands >= commands_min, "only {commands} commands in {name}");
    for (shown, printed) in page.lines().zip(now.lines()) {
        assert_eq!(shown, printed, "{name} is out of date: set {WRITE_VARIABLE}");
    }
    assert_eq!(page, now);
}

#[test]
fn the_page_shows_what_the_commands_print() {
    check("docs/forensics.md", 25);
}

#[test]
fn the_runbook_shows_what_the_commands_print() {
    check("docs/runbook.md", 30);
}

/// Every class of incidents has a section, and every section something to run.
#[test]
fn every_section_of_the_runbook_has_a_command() {
    let page =
        fs::read_to_string(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("docs/runbook.md")).expect("reads");
    let sections: Vec<&str> = page.split("\n## ").skip(1).collect();
    assert_eq!(sections.len(), 19, "one for each class");
    for section in sections {
        assert!(section.contains(FENCE), "nothing to run: {}", section.lines().next().unwrap_or_default());
    }
}

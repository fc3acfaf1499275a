//! Every command in `docs/forensics.md` is run, and its output is what the page shows.

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
#[test]
fn the_page_shows_what_the_commands_print() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("docs/forensics.md");
    let page = fs::read_to_string(&path).expect("reads");
    let (now, commands) = rewritten(&page);
    if std::env::var_os(WRITE_VARIABLE).is_some() {
        fs::write(&path, &now).expect("writes");
        return;
    }
    assert!(commands >= 20, "only {commands} commands");
    for (shown, printed) in page.lines().zip(now.lines()) {
        assert_eq!(shown, printed, "docs/forensics.md is out of date: set {WRITE_VARIABLE}");
    }
    assert_eq!(page, now);
}

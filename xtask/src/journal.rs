//! The service's own offline inspection commands, as the harness uses them.

use std::path::Path;
use std::process::{Command, Output};

use crate::{Outcome, service};

/// Exit code of clap for arguments that it does not know.
const UNKNOWN_ARGUMENT: i32 = 2;

fn run(binary: &Path, arguments: &[&str], data_dir: &Path) -> Outcome<Output> {
    let mut command = Command::new(binary);
    command.arg("journal").args(arguments).arg(data_dir);
    Ok(command.output()?)
}

/// `shapefold journal verify`: its output, or an error that contains it when it found something.
pub fn verify(binary: &Path, data_dir: &Path) -> Outcome<String> {
    let output = run(binary, &["verify"], data_dir)?;
    let text =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if output.status.success() {
        return Ok(text.trim().to_owned());
    }
    Err(format!("journal verify failed ({}):\n{}", output.status, service::last_lines(&text, 40)).into())
}

/// `shapefold journal tail` over the whole history, one line for each event.
pub fn history(binary: &Path, data_dir: &Path) -> Outcome<String> {
    let mut output = run(binary, &["tail", "--all"], data_dir)?;
    if output.status.code() == Some(UNKNOWN_ARGUMENT) {
        output = run(binary, &["tail"], data_dir)?;
    }
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    Err(format!("journal tail failed ({}):\n{}", output.status, service::last_lines(&text, 40)).into())
}

/// Whether the history tells why a client of that handle was sent away: a line that names the
/// handle and an end of the shape.
#[must_use]
pub fn explains_end(history: &str, handle: &str) -> bool {
    history.lines().filter(|line| line.contains(handle)).any(|line| {
        let line = line.to_ascii_lowercase();
        ["invalidat", "remov", "delet", "rotat", "dropped"].iter().any(|word| line.contains(word))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_end_of_that_handle_explains() {
        let history = "12 ShapeCreated handle=1-2\n13 ShapeInvalidated handle=1-2 because=…\n14 ShapeCreated handle=3-4";
        assert!(explains_end(history, "1-2"));
        assert!(!explains_end(history, "3-4"));
        assert!(!explains_end(history, "5-6"));
    }
}

//! Counts for people who ask how much was tested.

use std::fs::OpenOptions;
use std::io::Write;

/// Prints a line and appends it to the file that `SHAPEFOLD_TEST_SUMMARY` names.
pub fn summarise(line: &str) {
    println!("{line}");
    let Some(path) = std::env::var_os("SHAPEFOLD_TEST_SUMMARY") else { return };
    let mut file =
        OpenOptions::new().create(true).append(true).open(path).expect("the summary file can be opened");
    writeln!(file, "{line}").expect("the summary file can be written");
}

/// A number from the environment.
pub fn setting(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is not a number")))
}

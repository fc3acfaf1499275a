//! `chaos-writers`: a fleet of shapes whose writers die at random, over the real engine and journal. The work is
//! in the example `dying_writers` of the service, which `./dev` builds beside this.

use std::process::Command;

use rand::Rng;

use crate::Outcome;
use crate::directory::RunDirectory;
use crate::service::default_binary;
use crate::stage::report;

/// What the command line says.
#[derive(Clone, Debug)]
pub struct WritersOptions {
    pub shapes: u32,
    pub seconds: u32,
    pub seed: Option<u64>,
}

/// Runs it; true where those that were flagged are those that died.
///
/// # Errors
/// The example is not built or cannot be run.
pub fn run(options: &WritersOptions) -> Outcome<bool> {
    let example = default_binary()?.with_file_name("examples").join("dying_writers");
    let directory = RunDirectory::claim("writers")?;
    let seed = options.seed.unwrap_or_else(|| rand::rng().random());
    println!(
        "writers: {} shapes, 1 % of the writers killed each second for {} s, 1,000 transactions a second, seed {seed}",
        options.shapes, options.seconds
    );
    let status = Command::new(&example)
        .arg(directory.path().join("data"))
        .args([options.shapes.to_string(), options.seconds.to_string(), seed.to_string()])
        .status()
        .map_err(|error| format!("cannot run {}: {error}", example.display()))?;
    Ok(report(status.success(), "flagged are those that were killed, nobody else, and the log stays bounded"))
}

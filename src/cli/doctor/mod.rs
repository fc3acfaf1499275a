//! `shapefold doctor`: looks at everything that the service will need, with the settings of `serve`, and says
//! what to do about what is not as it should be. Changes nothing, neither in the database nor on the disk.

mod database;
mod findings;
mod slot;
mod storage;

use std::process::ExitCode;

use crate::cli::serve;

use findings::{Findings, Level};

#[derive(Debug, clap::Args)]
#[group(id = "doctor")]
pub struct Arguments {
    /// Print one JSON object instead of lines.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    serve: serve::Arguments,
}

/// Looks, prints, and ends with 0 where all is well, 1 where there is something to know, 2 where the
/// service would not work.
pub fn run(arguments: Arguments) -> ExitCode {
    let mut findings = Findings::default();
    let json = arguments.json;
    look(arguments.serve, &mut findings);
    if json {
        println!("{}", findings.to_json());
    } else {
        print!("{findings}");
    }
    match findings.worst() {
        Level::Good => ExitCode::SUCCESS,
        Level::Warning => ExitCode::from(1),
        Level::Problem => ExitCode::from(2),
    }
}

fn look(arguments: serve::Arguments, findings: &mut Findings) {
    let data_dir = arguments.data_dir();
    storage::look(data_dir.as_deref(), findings);
    let settings = match serve::checked_settings(arguments) {
        Ok(settings) => settings,
        Err(message) => {
            findings.problem("settings", message, "Correct the variable that is named.");
            return;
        }
    };
    findings.good("settings", "every variable has a value of its form");
    storage::limits(settings.open_files_wanted, findings);
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            let remedy = "Raise the limits of this user for processes and files.";
            findings.problem("process", format!("no runtime can be started: {error}"), remedy);
            return;
        }
    };
    runtime.block_on(database::look(&settings.service, findings));
}

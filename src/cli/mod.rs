//! The command line: Electric's environment variables, `serve`, and looking into a journal.

mod accepted;
mod admin;
mod demo;
mod descriptors;
mod doctor;
mod export;
mod journal;
mod log;
mod operations;
mod serve;
mod values;

use std::process::ExitCode;

use clap::error::{ContextKind, ContextValue};
use clap::{CommandFactory, Parser, Subcommand};

/// A Postgres sync engine whose whole lifecycle is one journal.
#[derive(Debug, Parser)]
#[command(name = "shapefold", version, arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve shapes over HTTP. Every option is also an environment variable of the Electric sync
    /// service.
    #[command(visible_alias = "start", after_help = accepted::help())]
    Serve(Box<serve::Arguments>),
    /// Serve shapes of a database of yours that two demo tables are made in, with a page that shows them.
    Demo(Box<demo::Arguments>),
    /// Check what the service needs, with the settings of serve, and say what to do: exits with 0 where all
    /// is well, 1 for warnings, 2 for problems. Changes nothing.
    Doctor(Box<doctor::Arguments>),
    /// Look into the journal of a data directory: read-only, without a lock, also while the service runs.
    Journal(Box<journal::Arguments>),
}

/// Runs the command line of this process.
#[must_use]
pub fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            // Help and version are errors to clap, too.
            let _printed = error.print();
            if let Some(variable) = variable_of(&error) {
                eprintln!("\nThe value may come from the environment variable {variable}.");
            }
            return u8::try_from(error.exit_code()).map_or(ExitCode::FAILURE, ExitCode::from);
        }
    };
    match arguments.command {
        Command::Serve(arguments) => serve::run(*arguments),
        Command::Demo(arguments) => demo::run(*arguments),
        Command::Doctor(arguments) => doctor::run(*arguments),
        Command::Journal(arguments) => journal::run(*arguments),
    }
}

/// The environment variable behind the option that an error is about.
fn variable_of(error: &clap::Error) -> Option<String> {
    let Some(ContextValue::String(option)) = error.get(ContextKind::InvalidArg) else { return None };
    let option = option.split_whitespace().next()?.strip_prefix("--")?;
    let command = Arguments::command();
    let argument = command.get_subcommands().flat_map(clap::Command::get_arguments);
    let found = argument.into_iter().find(|argument| argument.get_long() == Some(option))?;
    found.get_env().map(|variable| variable.to_string_lossy().into_owned())
}

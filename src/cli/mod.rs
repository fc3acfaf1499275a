//! The command line: Electric's environment variables, `serve`, and looking into a journal.

mod admin;
mod demo;
mod journal;
mod serve;
mod values;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

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
    #[command(visible_alias = "start")]
    Serve(Box<serve::Arguments>),
    /// Serve shapes of a database of yours that two demo tables are made in, with a page that shows them.
    Demo(Box<demo::Arguments>),
    /// Look into the journal of a data directory: read-only, without a lock, also while the service runs.
    Journal(Box<journal::Arguments>),
}

/// Runs the command line of this process.
#[must_use]
pub fn main() -> ExitCode {
    match Arguments::parse().command {
        Command::Serve(arguments) => serve::run(*arguments),
        Command::Demo(arguments) => demo::run(*arguments),
        Command::Journal(arguments) => journal::run(*arguments),
    }
}

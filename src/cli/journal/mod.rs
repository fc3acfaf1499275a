//! `shapefold journal`: what happened, what is, what held it up, and whether all is well. Reads, never
//! writes to a journal; needs neither a lock nor the service.

mod bundle;
mod events;
mod open;
mod owners;
mod remote;
mod shapes;
mod sql;
mod state;
mod step;
mod verify;
mod wal;

use std::io::{self, BufWriter, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use crate::inspect::{AskError, Source};

/// Exit code of `verify` where an invariant is broken.
const VIOLATED: u8 = 2;
/// Exit code of `verify` where bytes are damaged or events missing: what else is wrong may follow from it.
const DAMAGED: u8 = 3;

#[derive(Debug, clap::Args)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

/// Which journal.
#[derive(Debug, clap::Args)]
struct Where {
    /// A data directory (ELECTRIC_STORAGE_DIR), a copy of one, an archive directory, a sealed segment, an
    /// exported file; or http://HOST:PORT of a service's admin API, with SHAPEFOLD_ADMIN_TOKEN set.
    journal: PathBuf,
    /// Say on stderr how far work is that takes longer than a second, also where that is no terminal.
    #[arg(long)]
    progress: bool,
    #[arg(skip)]
    given: Option<Given>,
}

/// A journal that is open already.
struct Given(Source);

impl std::fmt::Debug for Given {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Given")
    }
}

impl Where {
    fn open(&self) -> Result<Source, Failure> {
        if let Some(Given(source)) = &self.given {
            return Ok(source.again());
        }
        let opened = Source::open(&self.journal);
        let opened = opened.map_err(|error| Failure::Open(self.journal.display().to_string(), error))?;
        Ok(opened.with_progress(self.progress))
    }
}

/// Positions are an event (1234), a time (2026-03-20T13:41:02Z or 13:41:02), an LSN (16/B374D848) or `end`.
#[derive(Debug, clap::Subcommand)]
enum Command {
    /// The events, oldest first.
    #[command(visible_alias = "dump")]
    Tail(events::Tail),
    /// Before and after each event, field by field; forward, back, to a place, to the next anomaly.
    Step(step::Step),
    /// How much of what there is, and how fast it came.
    Stats(events::Stats),
    /// The state at a place.
    State(state::StateAt),
    /// The first event after which something holds.
    Bisect(state::Bisect),
    /// The life of one shape, in sentences.
    Shape(shapes::Life),
    /// Why a shape ended or owes, or (`why ... ack`) why the acknowledgement stands where it stands.
    Why(shapes::Why),
    /// The writers of all shapes.
    Consumers(shapes::Consumers),
    /// Who holds the write-ahead log.
    Holding(wal::HoldingAt),
    /// What changed between two places.
    Diff(wal::Between),
    /// Every acknowledgement, and whether it was safe.
    Acks(wal::Acks),
    /// The gap, pending shapes, invalidations and owners over time.
    Plot(wal::Plot),
    /// Who owned the data directory, and when.
    Owners(owners::Timeline),
    /// Everything unusual, clustered into stories with their first causes.
    Incident(owners::Incident),
    /// Check every invariant. Exit code 0 where all is well, 2 where one is broken, 3 where bytes are damaged.
    Verify(verify::Verify),
    /// Which decisions would have been others under other settings.
    #[command(name = "whatif")]
    WhatIf(verify::WhatIf),
    /// A query in SQL over the events and the state.
    Sql(sql::Sql),
    /// The journal, or a part of it, as one file to hand to a colleague.
    Export(bundle::Export),
    /// Check an exported file and make a directory of it.
    Import(bundle::Import),
    /// Look at a journal in the browser: the dashboard's time machine over any journal.
    Open(open::Open),
}

/// Where a command is answered if its journal is that of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answered {
    /// There.
    There,
    /// Here, from an export that is fetched first: it writes files.
    Here,
    /// It asks no journal, or is for people at this machine.
    Never,
}

impl Command {
    /// The journal that it asks, and where it is answered.
    fn journal(&mut self) -> Option<(&mut Where, Answered)> {
        let here = matches!(self, Command::Step(step) if step.asks())
            || matches!(self, Command::Plot(plot) if plot.writes());
        let there = if here { Answered::Here } else { Answered::There };
        Some(match self {
            Command::Tail(tail) => (&mut tail.journal, there),
            Command::Step(step) => (&mut step.journal, there),
            Command::Stats(stats) => (&mut stats.journal, there),
            Command::State(state) => (&mut state.journal, there),
            Command::Bisect(bisect) => (&mut bisect.journal, there),
            Command::Shape(life) => (&mut life.journal, there),
            Command::Why(why) => (&mut why.journal, there),
            Command::Consumers(consumers) => (&mut consumers.journal, there),
            Command::Holding(holding) => (&mut holding.journal, there),
            Command::Diff(between) => (&mut between.journal, there),
            Command::Acks(acks) => (&mut acks.journal, there),
            Command::Plot(plot) => (&mut plot.journal, there),
            Command::Owners(owners) => (&mut owners.journal, there),
            Command::Incident(incident) => (&mut incident.journal, there),
            Command::Verify(verify) => (&mut verify.journal, there),
            Command::WhatIf(whatif) => (&mut whatif.journal, there),
            // It makes a file to ask, and may write one.
            Command::Sql(sql) => (&mut sql.journal, Answered::Here),
            Command::Export(export) => (&mut export.journal, Answered::Here),
            Command::Open(open) => (&mut open.journal, Answered::Never),
            Command::Import(_) => return None,
        })
    }
}

/// Runs one of the journal's commands.
pub fn run(mut arguments: Arguments) -> ExitCode {
    let mut out = BufWriter::new(io::stdout().lock());
    let result = match remote::service_of(&mut arguments.command) {
        Some(url) => remote::run(&url, &mut arguments.command, &mut out),
        None => perform(&arguments.command, &mut out).map(ExitCode::from),
    };
    let flushed = out.flush();
    match (result, flushed) {
        (Ok(code), Ok(())) => code,
        // Whoever reads us has read enough.
        (_, Err(error)) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        (Err(Failure::Output(error)), _) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        (Err(error), _) => {
            eprintln!("shapefold journal: {error}");
            ExitCode::FAILURE
        }
        (Ok(_), Err(error)) => {
            eprintln!("shapefold journal: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Runs a command for somebody who asks over the network: see [`crate::server::admin::Asker`].
///
/// # Errors
/// What to tell them.
pub fn answer(asked: crate::server::admin::Command<'_>, out: Box<dyn Write + Send>) -> Result<u8, String> {
    #[derive(Debug, clap::Parser)]
    struct Line {
        #[command(flatten)]
        arguments: Arguments,
    }
    let words = std::iter::once("journal".to_owned()).chain(asked.arguments);
    let line = <Line as clap::Parser>::try_parse_from(words).map_err(|error| error.to_string())?;
    let mut command = line.arguments.command;
    match command.journal() {
        Some((journal, answered)) if answered == Answered::There || asked.may_write => {
            journal.given = Some(Given(asked.source.again()));
        }
        Some(_) | None => return Err("this is answered where it is asked".to_owned()),
    }
    let mut out = BufWriter::new(out);
    let code = perform(&command, &mut out).map_err(|error| error.to_string())?;
    out.flush().map_err(|error| error.to_string())?;
    Ok(code)
}

fn perform(command: &Command, out: &mut impl Write) -> Result<u8, Failure> {
    let done = match command {
        Command::Tail(tail) => tail.run(out),
        Command::Step(step) => step.run(out),
        Command::Stats(stats) => stats.run(out),
        Command::State(state) => state.run(out),
        Command::Bisect(bisect) => bisect.run(out),
        Command::Shape(life) => life.run(out),
        Command::Why(why) => why.run(out),
        Command::Consumers(consumers) => consumers.run(out),
        Command::Holding(holding) => holding.run(out),
        Command::Diff(between) => between.run(out),
        Command::Acks(acks) => acks.run(out),
        Command::Plot(plot) => plot.run(out),
        Command::Owners(owners) => owners.run(out),
        Command::Incident(incident) => incident.run(out),
        Command::Verify(verify) => return verify.run(out),
        Command::WhatIf(whatif) => whatif.run(out),
        Command::Sql(sql) => sql.run(out),
        Command::Export(export) => export.run(out),
        Command::Import(import) => import.run(out),
        Command::Open(open) => open.run(out),
    };
    done.map(|()| 0)
}

#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("{0}: {1}")]
    Open(String, AskError),
    #[error(transparent)]
    Journal(#[from] crate::journal::JournalError),
    #[error(transparent)]
    Ask(#[from] AskError),
    #[error("the output cannot be written: {0}")]
    Output(#[from] io::Error),
    #[error("no event is called {0:?}")]
    UnknownKind(String),
    #[error("no event names the cause {0:?}")]
    UnknownCause(String),
    #[error("{0}")]
    Predicate(#[from] crate::projections::forensics::PredicateError),
    #[error("{0}")]
    Import(String),
    #[error("{0}")]
    Sql(#[from] sql::SqlError),
    #[error("{0}")]
    Service(String),
    #[error("the answer cannot be shown: {0}")]
    Json(#[from] serde_json::Error),
}

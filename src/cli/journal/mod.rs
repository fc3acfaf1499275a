//! `shapefold journal`: what happened, what is, what held it up, and whether all is well. Reads, never
//! writes to a journal; needs neither a lock nor the service.

mod bundle;
mod events;
mod owners;
mod shapes;
mod source;
mod sql;
mod state;
mod step;
mod verify;
mod wal;

use std::io::{self, BufWriter, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use source::Source;

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
    /// A data directory (ELECTRIC_STORAGE_DIR), a copy of one, an archive directory, a sealed segment, or
    /// an exported file.
    journal: PathBuf,
    /// Say on stderr how far work is that takes longer than a second, also where that is no terminal.
    #[arg(long)]
    progress: bool,
}

impl Where {
    fn open(&self) -> Result<Source, Failure> {
        Ok(Source::open(&self.journal)?.with_progress(self.progress))
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
}

/// Runs one of the journal's commands.
pub fn run(arguments: &Arguments) -> ExitCode {
    let mut out = BufWriter::new(io::stdout().lock());
    let result = perform(&arguments.command, &mut out);
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

fn perform(command: &Command, out: &mut impl Write) -> Result<ExitCode, Failure> {
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
    };
    done.map(|()| ExitCode::SUCCESS)
}

#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Journal(#[from] crate::journal::JournalError),
    #[error("the output cannot be written: {0}")]
    Output(#[from] io::Error),
    #[error("no event is called {0:?}")]
    UnknownKind(String),
    #[error("no event names the cause {0:?}")]
    UnknownCause(String),
    #[error("no shape of the journal is called {0:?}")]
    UnknownShape(String),
    #[error("{0}")]
    Predicate(#[from] crate::projections::forensics::PredicateError),
    #[error("{0}")]
    Import(String),
    #[error("{0}")]
    Sql(#[from] sql::SqlError),
    #[error("the answer cannot be shown: {0}")]
    Json(#[from] serde_json::Error),
}

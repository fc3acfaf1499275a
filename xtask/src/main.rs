//! Commands behind `./dev`; see the library for what they do.

use std::process::{Command, ExitCode};

use clap::{Parser, Subcommand};
use shapefold_xtask::bench_journal::{self, JournalOptions};
use shapefold_xtask::chaos::{self, ChaosOptions};
use shapefold_xtask::demo::{self, DemoOptions};
use shapefold_xtask::directory::{RunDirectory, dev_directory};
use shapefold_xtask::dying_writers::{self, WritersOptions};
use shapefold_xtask::faults::{self, FaultsOptions};
use shapefold_xtask::measure::report;
use shapefold_xtask::oracle;
use shapefold_xtask::postgres::{Installation, MAJOR_VARIABLE, Server, stop_leftover};
use shapefold_xtask::rolling::{self, RollingOptions};
use shapefold_xtask::scenarios::Common;
use shapefold_xtask::scenarios::fanout::{self, FanoutOptions};
use shapefold_xtask::scenarios::http::{self, HttpOptions};
use shapefold_xtask::scenarios::initial_sync::{self, InitialSyncOptions};
use shapefold_xtask::scenarios::instructions::{self, InstructionsOptions};
use shapefold_xtask::scenarios::mixed::{self, MixedOptions};
use shapefold_xtask::scenarios::overlap::{self, OverlapOptions};
use shapefold_xtask::scenarios::replication::{self, ReplicationOptions};
use shapefold_xtask::scenarios::shapes::{self, ShapesOptions};
use shapefold_xtask::scenarios::sync::{self, SyncOptions};
use shapefold_xtask::service::default_binary;
use shapefold_xtask::soak::{self, SoakOptions};
use shapefold_xtask::{Outcome, demo_check};
use tokio::signal::unix::{SignalKind, signal};

#[derive(Parser)]
#[command(name = "xtask", about = "Development commands of Shapefold, started by ./dev")]
struct Arguments {
    /// Major version of Postgres; the newest that is installed by default
    #[arg(long, global = true)]
    postgres: Option<u32>,
    #[command(subcommand)]
    command: Task,
}

#[derive(Subcommand)]
enum Task {
    /// A private Postgres that stays running
    #[command(subcommand)]
    Pg(Pg),
    /// Runs a command with SHAPEFOLD_TEST_DATABASE_URL set to a private Postgres
    WithPostgres {
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// Postgres, service, writer and page, until Ctrl-C
    Demo {
        /// Port of the page; 0 picks one
        #[arg(long, default_value_t = 0)]
        port: u16,
    },
    /// The demo without a person: writes, kills, compares
    DemoCheck,
    /// Random transactions over many shapes while the service is killed
    Soak {
        #[arg(long, default_value_t = 3.0)]
        minutes: f64,
        #[arg(long)]
        seed: Option<u64>,
    },
    /// Random shapes with subqueries and the official client while the service is killed
    SoakOracle {
        #[arg(long, default_value_t = 3.0)]
        minutes: f64,
        #[arg(long)]
        seed: Option<u64>,
    },
    /// Freezes the service, and opens what had reached the device
    ChaosPowerLoss {
        #[arg(long, default_value_t = 20)]
        rounds: u32,
        #[arg(long)]
        seed: Option<u64>,
    },
    /// Rolling deploys of two builds on one data directory
    ChaosRolling {
        #[arg(long, default_value_t = 20)]
        rounds: u32,
        #[arg(long)]
        seed: Option<u64>,
        /// The second build: a path to its binary. The debug build where there is one
        #[arg(long)]
        other: Option<std::path::PathBuf>,
    },
    /// Errors, short writes and delays of the file system under the running service, and a disk that fills up
    ChaosFaults {
        /// Only the rows whose stage or fault contains this
        #[arg(long)]
        only: Option<String>,
    },
    /// Writers that die at random, and whether the audit finds them and nobody else
    ChaosWriters {
        #[arg(long, default_value_t = 300_000)]
        shapes: u32,
        #[arg(long, default_value_t = 120)]
        seconds: u32,
        #[arg(long)]
        seed: Option<u64>,
    },
    /// Streaming rate against pg_recvlogical
    BenchReplication {
        #[arg(long, default_value_t = 1_000_000)]
        rows: u64,
        /// Only the kinds of shapes whose name contains this
        #[arg(long)]
        only: Option<String>,
        #[arg(long)]
        keep: bool,
    },
    /// First read of a table against COPY, second against a static nginx
    BenchInitialSync {
        #[arg(long, default_value_t = 1_000_000)]
        rows: u64,
        #[arg(long, default_value_t = 3)]
        repeat: usize,
        #[arg(long)]
        keep: bool,
    },
    /// Live clients on one shape: one beside pg_recvlogical, thousands with one write a second
    BenchHttp {
        /// Only a round of so many clients, instead of all rounds
        #[arg(long)]
        clients: Option<usize>,
        /// With --clients: by server-sent events
        #[arg(long)]
        events: bool,
        #[arg(long, default_value_t = 20)]
        writes: usize,
        #[arg(long)]
        keep: bool,
    },
    /// The journal against raw sled and a plain file, and questions to ten million events
    BenchJournal {
        #[arg(long, default_value_t = 10_000_000)]
        events: u64,
        /// Also prints every figure as a line of JSON
        #[arg(long)]
        json: bool,
        /// Keep the figures for docs/benchmarks.md
        #[arg(long)]
        keep: bool,
    },
    /// Many clients at the same moment, each with a new shape, or all with one; against COPY
    BenchSync {
        #[arg(long, default_value_t = 450)]
        clients: u64,
        /// Rows of the shape that all ask for
        #[arg(long, default_value_t = 100_000)]
        rows: u64,
        #[arg(long)]
        keep: bool,
    },
    /// A transaction that every shape wants, against pg_recvlogical
    BenchOverlap {
        /// Transactions that are measured in each round
        #[arg(long, default_value_t = 50)]
        samples: u64,
        #[arg(long)]
        keep: bool,
    },
    /// Very many shapes: made, weighed, flushed, restored, deleted
    BenchShapes {
        #[arg(long, default_value_t = 10_000)]
        shapes: u64,
        #[arg(long)]
        keep: bool,
    },
    /// Everything at once for a while
    BenchMixed {
        #[arg(long, default_value_t = 60)]
        seconds: u64,
        #[arg(long, default_value_t = 1_000)]
        shapes: u64,
        #[arg(long)]
        keep: bool,
    },
    /// Instructions of the innermost loops, against the budget that is checked in
    BenchInstructions {
        /// Write the budget
        #[arg(long)]
        write: bool,
    },
    /// Writes the figures and plots of docs/benchmarks.md
    BenchReport,
    /// From commit to one live client beside many shapes, next to pg_recvlogical
    BenchFanout {
        /// Shapes of the largest round
        #[arg(long, default_value_t = 300_000)]
        shapes: u64,
        /// Commits that are measured in each round
        #[arg(long, default_value_t = 500)]
        samples: u64,
        #[arg(long)]
        keep: bool,
    },
}

#[derive(Subcommand)]
enum Pg {
    /// Creates and starts a cluster, prints its URL
    Start,
    /// Stops it
    Stop,
    /// Prints the URL of the running one
    Url,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("xtask: {error}");
            return ExitCode::FAILURE;
        }
    };
    let is_demo = matches!(arguments.command, Task::Demo { .. });
    // Dropping what runs stops the service and Postgres, in this order.
    let outcome = runtime.block_on(async {
        tokio::select! {
            outcome = run(arguments) => outcome,
            outcome = interrupted() => outcome.map(|()| is_demo),
        }
    });
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            // The whole chain: a database error says what it is only in its source.
            eprint!("xtask: {error}");
            let mut source = error.source();
            while let Some(cause) = source {
                eprint!(": {cause}");
                source = cause.source();
            }
            eprintln!();
            ExitCode::FAILURE
        }
    }
}

/// Resolves on Ctrl-C or SIGTERM. For the demo this is the ordinary end.
async fn interrupted() -> Outcome<()> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    println!("\nstopping the service and Postgres");
    Ok(())
}

async fn run(arguments: Arguments) -> Outcome<bool> {
    let postgres = arguments.postgres;
    match arguments.command {
        Task::Pg(command) => pg(command, postgres).await,
        Task::WithPostgres { command } => with_postgres(&command, postgres).await,
        Task::Demo { port } => demo::run(DemoOptions { port, postgres }).await,
        Task::DemoCheck => demo_check::run(postgres).await,
        Task::Soak { minutes, seed } => soak::run(SoakOptions { minutes, seed, postgres }).await,
        Task::SoakOracle { minutes, seed } => oracle::run(SoakOptions { minutes, seed, postgres }).await,
        Task::ChaosPowerLoss { rounds, seed } => chaos::run(ChaosOptions { rounds, seed, postgres }).await,
        Task::ChaosRolling { rounds, seed, other } => {
            let other = other.or_else(|| rolling::other_build(&default_binary().ok()?));
            rolling::run(RollingOptions { rounds, seed, postgres, other }).await
        }
        Task::ChaosFaults { only } => faults::run(FaultsOptions { postgres, only }).await,
        Task::ChaosWriters { shapes, seconds, seed } => {
            let options = WritersOptions { shapes, seconds, seed };
            tokio::task::spawn_blocking(move || {
                dying_writers::run(&options).map_err(|error| error.to_string())
            })
            .await?
            .map_err(Into::into)
        }
        Task::BenchReplication { rows, only, keep } => {
            replication::run(ReplicationOptions { rows, only, common: Common { keep, postgres } }).await
        }
        Task::BenchInitialSync { rows, repeat, keep } => {
            initial_sync::run(InitialSyncOptions { rows, repeat, common: Common { keep, postgres } }).await
        }
        Task::BenchHttp { clients, events, writes, keep } => {
            http::run(HttpOptions { clients, events, writes, common: Common { keep, postgres } }).await
        }
        Task::BenchJournal { events, json, keep } => {
            let options = JournalOptions { events, json, keep };
            tokio::task::spawn_blocking(move || {
                bench_journal::run(options).map_err(|error| error.to_string())
            })
            .await?
            .map_err(Into::into)
        }
        Task::BenchSync { clients, rows, keep } => {
            sync::run(SyncOptions { clients, rows, common: Common { keep, postgres } }).await
        }
        Task::BenchOverlap { samples, keep } => {
            overlap::run(OverlapOptions { samples, common: Common { keep, postgres } }).await
        }
        Task::BenchShapes { shapes, keep } => {
            shapes::run(ShapesOptions { shapes, common: Common { keep, postgres } }).await
        }
        Task::BenchMixed { seconds, shapes, keep } => {
            mixed::run(MixedOptions { seconds, shapes, common: Common { keep, postgres } }).await
        }
        Task::BenchInstructions { write } => instructions::run(InstructionsOptions { write }),
        Task::BenchReport => report::run(),
        Task::BenchFanout { shapes, samples, keep } => {
            fanout::run(FanoutOptions { shapes, samples, common: Common { keep, postgres } }).await
        }
    }
}

async fn pg(command: Pg, major: Option<u32>) -> Outcome<bool> {
    let dev = dev_directory()?;
    let directory = dev.join("pg").join("postgres");
    match command {
        Pg::Start => {
            let claimed = RunDirectory::claim("pg")?;
            let server =
                Server::create(Installation::find(major, &dev)?, &claimed.path().join("postgres")).await?;
            println!("{}", server.url("postgres"));
            server.detach()?;
        }
        Pg::Stop => stop_leftover(&directory),
        Pg::Url => {
            let url = std::fs::read_to_string(directory.join("url"))
                .map_err(|_| "no Postgres was started: xtask pg start")?;
            println!("{url}");
        }
    }
    Ok(true)
}

async fn with_postgres(command: &[String], major: Option<u32>) -> Outcome<bool> {
    let claimed = RunDirectory::claim("test")?;
    let installation = Installation::find(major, &dev_directory()?)?;
    let server = Server::create(installation, &claimed.path().join("postgres")).await?;
    println!("postgres: version {} on port {}", server.installation().major, server.port());
    let (program, rest) = command.split_first().ok_or("no command given")?;
    let mut child = Command::new(program)
        .args(rest)
        .env("SHAPEFOLD_TEST_DATABASE_URL", server.url("postgres"))
        .env(MAJOR_VARIABLE, server.installation().major.to_string())
        .spawn()
        .map_err(|error| format!("cannot run {program}: {error}"))?;
    let status = tokio::task::spawn_blocking(move || child.wait()).await??;
    Ok(status.success())
}

//! Benchmarks, each on a Postgres and a service of its own: see docs/benchmarks.md.

pub mod fanout;
mod forms;
pub mod http;
pub mod initial_sync;
pub mod instructions;
pub mod mixed;
mod nginx;
pub mod overlap;
pub mod replication;
pub mod shapes;
pub mod sync;

/// How the service's replication stream is called.
const STREAM_ID: &str = "bench";

/// What every benchmark is told.
#[derive(Clone, Copy, Debug)]
pub struct Common {
    /// Keep the figures for docs/benchmarks.md.
    pub keep: bool,
    pub postgres: Option<u32>,
}

fn millis(duration: std::time::Duration) -> f64 {
    duration.as_secs_f64() * 1_000.0
}

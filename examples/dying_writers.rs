//! `cargo run --release --example dying_writers -- DIRECTORY SHAPES SECONDS SEED`: a fleet whose writers die at
//! random. Behind `./dev chaos writers`; the same with fewer shapes is among the tests.

#[path = "../tests/sim/fleet/mod.rs"]
mod fleet;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use fleet::{FleetReport, FleetSettings};

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("dying_writers: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Outcome<bool> {
    let mut arguments = std::env::args().skip(1);
    let usage = "dying_writers DIRECTORY SHAPES SECONDS SEED";
    let directory: PathBuf = arguments.next().ok_or(usage)?.into();
    let settings = FleetSettings {
        shapes: arguments.next().ok_or(usage)?.parse()?,
        duration: Duration::from_secs(arguments.next().ok_or(usage)?.parse()?),
        txns_per_second: 1_000,
        fan_out: 10,
        wal_bytes: 1_000,
        killed_percent: 1.0,
        audit_every: Duration::from_secs(10),
        seed: arguments.next().ok_or(usage)?.parse()?,
        real_time: true,
    };
    std::fs::create_dir_all(&directory)?;
    let report = fleet::run(&directory, &settings, |at, report| {
        if at.as_secs().is_multiple_of(10) {
            println!(
                "  {:>4} s: {} transactions, {} killed, {} flagged, {:.1} MB of log kept, {:.1} MB at most",
                at.as_secs(),
                report.transactions,
                report.killed,
                report.flagged,
                megabytes(report.retained_at_end),
                megabytes(report.retained_max)
            );
        }
    })?;
    print(&settings, &report);
    let faults = report.faults(&settings);
    faults.iter().for_each(|fault| println!("  FAILED  {fault}"));
    Ok(faults.is_empty())
}

fn print(settings: &FleetSettings, report: &FleetReport) {
    println!("shapes           {:>12}, made in {:.1} s", settings.shapes, report.making.as_secs_f64());
    println!(
        "transactions     {:>12}, {} events, {} checkpoints",
        report.transactions, report.events, report.checkpoints
    );
    println!("writers killed   {:>12}", report.killed);
    println!(
        "flagged          {:>12}, {} of them alive, {} missed",
        report.flagged, report.flagged_alive, report.missed
    );
    println!("others touched   {:>12}", report.ended_before);
    println!(
        "log kept         {:>12.1} MB at most, bound {:.1} MB, {:.1} MB/s written",
        megabytes(report.retained_max),
        megabytes(report.retained_bound(settings)),
        megabytes(u64::from(settings.txns_per_second) * settings.wal_bytes)
    );
    println!(
        "audit            {:>12.1} ms at most, {} of them; longest turn of the loop {:.0} ms, behind the clock by {:.0} ms at most",
        report.longest_audit.as_secs_f64() * 1e3,
        report.audits,
        report.longest_slice.as_secs_f64() * 1e3,
        report.longest_lag.as_secs_f64() * 1e3
    );
    println!(
        "all ended        {:>12} events in one step ({:.1} MB, {:.1} s), nothing left of any shape after {:.1} s",
        report.end_events,
        megabytes(report.end_bytes),
        report.end_step.as_secs_f64(),
        report.ending.as_secs_f64()
    );
}

fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

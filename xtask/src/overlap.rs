//! Parts of `bench-fanout`: how fast shapes are made, next to pgbench with the transaction of their
//! snapshots, and how long a commit takes that all shapes want.

use std::process::Command;
use std::time::{Duration, Instant};

use crate::Outcome;
use crate::fanout::{Form, LiveClient, figures, make, wait_for};
use crate::service::Service;
use crate::stage::{Stage, report};

/// Connections of pgbench: as many as the service has for snapshots.
const CLIENTS: &str = "15";
const SECONDS: &str = "5";
/// Of the rate of pgbench.
const RATIO_MIN: f64 = 0.4;
const SHAPES: u64 = 1_500;
const ROWS: u64 = 50;
const SAMPLES: u64 = 20;
const OVERLAP_MAX: Duration = Duration::from_millis(30);

/// All rows, in as many shapes as there are numbers.
pub(crate) const OVERLAP: Form =
    Form { name: "all match", table: "b_all", clause: |k| format!("field >= -{k}"), shapes_max: SHAPES };

/// Runs the transaction of a snapshot as fast as pgbench can, a second.
fn pgbench(stage: &Stage, table: &str) -> Outcome<f64> {
    let script = stage.directory().join("snapshot.sql");
    let sql = format!(
        "\\set k random(1, 1000000)\n\
         BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY;\n\
         SET LOCAL bytea_output = 'hex';\nSET LOCAL DateStyle = 'ISO, DMY';\nSET LOCAL TimeZone = 'UTC';\n\
         SET LOCAL extra_float_digits = '1';\nSET LOCAL IntervalStyle = 'iso_8601';\n\
         SELECT pg_current_snapshot(), pg_current_wal_insert_lsn();\n\
         SELECT * FROM {table} WHERE field = :k;\nCOMMIT;\n"
    );
    std::fs::write(&script, sql)?;
    let program = stage.postgres.installation().program("pgbench")?;
    let output = Command::new(program)
        .args(["-n", "-c", CLIENTS, "-j", "2", "-T", SECONDS, "-f"])
        .arg(&script)
        .arg(stage.url())
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let tps = text.lines().find_map(|line| line.strip_prefix("tps = ")?.split(' ').next()?.parse().ok());
    tps.ok_or_else(|| format!("pgbench: {}", String::from_utf8_lossy(&output.stderr)).into())
}

/// Whether a rate at which shapes were made is enough of that of pgbench, which is measured now.
pub(crate) fn creation(stage: &Stage, table: &str, rate: f64, json: bool) -> Outcome<bool> {
    let limit = pgbench(stage, table)?;
    let ratio = rate / limit;
    if json {
        let line = serde_json::json!({"bench": "creation", "made_per_s": rate, "pgbench_per_s": limit, "ratio": ratio});
        println!("{line}");
    }
    let what = format!("{rate:.0} shapes/s, pgbench {limit:.0}/s: {ratio:.2} of it, at least {RATIO_MIN}");
    Ok(report(ratio >= RATIO_MIN, &what))
}

/// Transactions of 50 rows that 1,500 shapes want, one of which has a live client.
pub(crate) async fn overlap(stage: &Stage, service: &Service, json: bool) -> Outcome<bool> {
    let table = OVERLAP.table;
    make(service, &OVERLAP, 0, SHAPES).await?;
    let mut client = LiveClient::start(service, &OVERLAP).await?;
    let mut samples = Vec::new();
    for sample in 1..=SAMPLES {
        let number = sample * 1_000;
        let sql = format!(
            "INSERT INTO {table} SELECT {number} + n, n, 'label ' || n, '{{1}}', '{{}}', 'mark-{number:010}'
             FROM generate_series(1, {ROWS}) n"
        );
        let begun = Instant::now();
        stage.sql.batch_execute(&sql).await?;
        let committed = Instant::now();
        let received = wait_for(&mut client.arrivals, number).await?;
        samples.push(received.saturating_duration_since(committed));
        // The flush of all of them is not part of the next sample.
        tokio::time::sleep(Duration::from_millis(300).saturating_sub(begun.elapsed())).await;
    }
    let took = figures(samples);
    let (p50, p99) = (took.p50.as_secs_f64() * 1e3, took.p99.as_secs_f64() * 1e3);
    if json {
        let line = serde_json::json!({"bench": "overlap", "shapes": SHAPES, "rows": ROWS, "p50_ms": p50, "p99_ms": p99});
        println!("{line}");
    }
    let what = format!("{SHAPES} shapes want {ROWS} rows: p50 {p50:.1} ms, p99 {p99:.1} ms, at most 30");
    Ok(report(took.p50 <= OVERLAP_MAX, &what))
}

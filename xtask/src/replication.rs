//! `bench-replication`: how fast the service takes in what Postgres has written, next to
//! `pg_recvlogical` on the same WAL in the same run. Quote the ratios; the absolute figures move with the
//! machine.
//!
//! The WAL is written while the service is down. Then `pg_recvlogical` drains it to /dev/null, and the
//! service to live clients, which have all rows when they have seen a row that was written last.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use tokio_postgres::Client;

use crate::Outcome;
use crate::bench::{BenchOptions, Reader};
use crate::fanout::{Form, make};
use crate::service::Service;
use crate::stage::{Stage, report};

/// Rows of a large transaction.
const LARGE: u64 = 1_000;
/// Single-row transactions are slower to write and to decode: a fraction of the rows.
const SINGLE_FRACTION: u64 = 8;
/// How long the service may take for all rows before the benchmark gives up.
const DRAIN_DURATION_MAX: Duration = Duration::from_secs(1_800);
const MEMORY_BYTES_MAX: u64 = 300 * 1024 * 1024;
/// Slot of `pg_recvlogical`, and how the service's replication stream is called.
const PLAIN_SLOT: &str = "bench_plain";
const STREAM_ID: &str = "bench";
/// Shapes that have a live client: several, so that both writer threads have one.
const FOLLOWED: u64 = 4;

/// What the shapes are and which rows they want.
struct Kind {
    name: &'static str,
    form: Form,
    shapes: u64,
    /// SQL of `field` for row `n`.
    field: &'static str,
    /// What the rate may be of that of `pg_recvlogical`.
    ratio_min: f64,
}

fn kinds() -> [Kind; 4] {
    let form = |table, clause, shapes_max| Form { name: table, table, clause, shapes_max };
    [
        Kind {
            name: "one shape, all rows",
            form: form("r_one", |_| String::new(), 1),
            shapes: 1,
            field: "n % 1000",
            ratio_min: 0.9,
        },
        Kind {
            name: "1,000 shapes field = k",
            form: form("r_equal", |k| format!("field = {k}"), 1_000),
            shapes: 1_000,
            field: "n % 1000",
            ratio_min: 0.8,
        },
        Kind {
            name: "1,000 shapes, rows of none",
            form: form("r_none", |k| format!("field = {k}"), 1_000),
            shapes: 1_000,
            field: "1000 + n % 1000",
            ratio_min: 0.95,
        },
        Kind {
            name: "1,000 shapes ILIKE 'k%'",
            form: form("r_ilike", |k| format!("label ILIKE 'P{k}x%'"), 1_000),
            shapes: 1_000,
            field: "n % 1000",
            ratio_min: 0.5,
        },
    ]
}

/// Runs all kinds, with transactions of one row and of a thousand.
pub async fn run(options: BenchOptions) -> Outcome<bool> {
    let stage = Stage::open("bench-replication", options.postgres).await?;
    let mut service = Service::start(stage.service_settings(STREAM_ID)).await?;
    let mut passed = true;
    for kind in kinds() {
        let table = kind.form.table;
        // About 200 bytes a row.
        let schema = format!(
            "CREATE TABLE {table} (id bigint PRIMARY KEY, field int NOT NULL, label text NOT NULL, payload text NOT NULL)"
        );
        stage.sql.batch_execute(&schema).await?;
        make(&service, &kind.form, 0, kind.shapes).await?;
        let followed = FOLLOWED.min(kind.shapes);
        let mut readers = Vec::new();
        for number in 0..followed {
            let query = match (kind.form.clause)(number).as_str() {
                "" => format!("table={table}"),
                clause => format!("table={table}&where={}", crate::http::encode(clause)),
            };
            let mut reader = Reader::new(&service, &query);
            reader.read_to_tail().await?;
            readers.push(reader);
        }
        let mut bench = Bench { stage: &stage, kind: &kind, readers, rows_before: 0 };
        for (size, rows) in [(LARGE, options.rows), (1, options.rows / SINGLE_FRACTION)] {
            passed &= bench.round(&mut service, size, rows.max(1), options.json).await?;
        }
        stage.sql.batch_execute(&format!("TRUNCATE {table}")).await?;
    }
    service.terminate().await;
    Ok(passed)
}

struct Bench<'a> {
    stage: &'a Stage,
    kind: &'a Kind,
    readers: Vec<Reader>,
    rows_before: u64,
}

impl Bench<'_> {
    async fn round(&mut self, service: &mut Service, size: u64, rows: u64, json: bool) -> Outcome<bool> {
        if !service.terminate().await {
            return Err("the service did not end by itself on SIGTERM".into());
        }
        let sql = &self.stage.sql;
        sql.execute("SELECT pg_create_logical_replication_slot($1, 'pgoutput')", &[&PLAIN_SLOT]).await?;
        let first = self.rows_before;
        self.write(sql, first, rows, size).await?;
        let end: String = sql.query_one("SELECT pg_current_wal_insert_lsn()::text", &[]).await?.get(0);
        // Something after the end, so that the receiver sees that it is past it.
        sql.batch_execute("CREATE TABLE bench_end (id int); DROP TABLE bench_end; CHECKPOINT").await?;
        let plain = self.drain_plain(end).await?;
        sql.execute("SELECT pg_drop_replication_slot($1)", &[&PLAIN_SLOT]).await?;
        let (elapsed, peak_bytes) = self.drain(service, first + rows).await?;
        self.rows_before = first + rows + FOLLOWED;
        let rate = |duration: Duration| rows as f64 / duration.as_secs_f64();
        let ratio = rate(elapsed) / rate(plain);
        println!("{}, {rows} rows in transactions of {size}", self.kind.name);
        println!("  pg_recvlogical   {:>9.0} rows/s  ({:.2} s)", rate(plain), plain.as_secs_f64());
        println!("  shapefold        {:>9.0} rows/s  ({:.2} s)", rate(elapsed), elapsed.as_secs_f64());
        println!("  memory           {:>9.0} MB at most", peak_bytes as f64 / 1e6);
        if json {
            let line = serde_json::json!({"bench": "replication", "kind": self.kind.name, "rows": rows,
                "transaction_rows": size, "recvlogical_rows_per_s": rate(plain),
                "service_rows_per_s": rate(elapsed), "ratio": ratio, "peak_memory_bytes": peak_bytes});
            println!("{line}");
        }
        let min = self.kind.ratio_min;
        let fast = report(ratio >= min, &format!("{ratio:.2} of pg_recvlogical, at least {min}"));
        Ok(report(peak_bytes < MEMORY_BYTES_MAX, "less than 300 MiB of memory") && fast)
    }

    /// The rows, then one for each shape that is followed.
    async fn write(&self, sql: &Client, first: u64, rows: u64, size: u64) -> Outcome<()> {
        let (table, field) = (self.kind.form.table, self.kind.field);
        let row = format!("n, {field}, 'P' || {field} || 'x' || n, repeat(md5(n::text), 5)");
        let (last, step) = (first + rows - 1, size);
        sql.batch_execute("SET synchronous_commit = off").await?;
        let block = format!(
            "DO $$ DECLARE at bigint := {first};
             BEGIN
                 WHILE at <= {last} LOOP
                     INSERT INTO {table} SELECT {row}
                     FROM generate_series(at, least(at + {step} - 1, {last})) n;
                     COMMIT;
                     at := at + {step};
                 END LOOP;
             END $$"
        );
        sql.batch_execute(&block).await?;
        sql.batch_execute("SET synchronous_commit = on").await?;
        let end = last + 1;
        sql.batch_execute(&format!(
            "INSERT INTO {table} SELECT {end} + k, k, 'P' || k || 'x', 'mark-' || lpad('{end}', 10, '0')
             FROM generate_series(0, {FOLLOWED} - 1) k"
        ))
        .await?;
        Ok(())
    }

    async fn drain_plain(&self, end: String) -> Outcome<Duration> {
        let program = self.stage.postgres.installation().program("pg_recvlogical")?;
        let url = self.stage.url();
        let (done, elapsed) = tokio::task::spawn_blocking(move || {
            let started = Instant::now();
            let status = Command::new(program)
                .args(["--slot", PLAIN_SLOT, "--start", "--no-loop", "-f", "/dev/null"])
                .args(["--endpos", &end, "-d", &url, "-o", "proto_version=1", "-o"])
                .arg(format!("publication_names=electric_publication_{STREAM_ID}"))
                .stderr(Stdio::inherit())
                .status();
            status.map(|status| (status.success(), started.elapsed()))
        })
        .await??;
        if done { Ok(elapsed) } else { Err("pg_recvlogical failed".into()) }
    }

    /// Starts the service; the time from the start of its stream until every client has the row that was
    /// written last, and the service's peak memory.
    async fn drain(&mut self, service: &mut Service, mark: u64) -> Outcome<(Duration, u64)> {
        service.relaunch()?;
        let slot = format!("electric_slot_{STREAM_ID}");
        let launched = Instant::now();
        let active = "SELECT 1 FROM pg_replication_slots WHERE slot_name = $1 AND active";
        while self.stage.sql.query_opt(active, &[&slot]).await?.is_none() {
            if launched.elapsed() > crate::service::START_DURATION_MAX {
                return Err("the service did not start its stream".into());
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        let started = Instant::now();
        service.wait_active(crate::service::START_DURATION_MAX).await?;
        let mark = format!("mark-{mark:010}");
        let reading = self.readers.iter_mut().map(|reader| reader.read_until(mark.as_bytes()));
        let all = futures_util::future::try_join_all(reading);
        tokio::time::timeout(DRAIN_DURATION_MAX, all)
            .await
            .map_err(|_| "the rows did not arrive in time")??;
        let elapsed = started.elapsed();
        Ok((elapsed, service.peak_memory_bytes().ok_or("the service is gone")?))
    }
}

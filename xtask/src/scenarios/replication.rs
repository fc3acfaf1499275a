//! `bench-replication`: how fast the service takes in what Postgres has written, next to `pg_recvlogical` on the
//! same WAL in the same run.
//!
//! The WAL is written while the service is down. Then `pg_recvlogical` drains it to /dev/null, and the service to
//! live clients, which have all rows when they have seen a row that was written last.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use futures_util::future::try_join_all;
use tokio_postgres::Client;

use crate::Outcome;
use crate::measure::load::CpuClock;
use crate::measure::reader::Reader;
use crate::measure::{Limit, Point, Run};
use crate::service::{START_DURATION_MAX, Service};
use crate::stage::Stage;

use super::forms::{Form, make};
use super::{Common, STREAM_ID};

/// Rows of a large transaction.
const LARGE: u64 = 1_000;
/// Single-row transactions are slower to write and to decode: a fraction of the rows.
const SINGLE_FRACTION: u64 = 5;
/// How long the service may take for all rows before the benchmark gives up.
const DRAIN_DURATION_MAX: Duration = Duration::from_secs(1_800);
const MEMORY_MB_MAX: f64 = 300.0;
const PLAIN_SLOT: &str = "bench_plain";
/// Shapes that have a live client: several, so that both writer threads have one.
const FOLLOWED: u64 = 4;
/// How often it is looked whether the stream has begun.
const LOOK_INTERVAL: Duration = Duration::from_millis(2);
/// How long the slot may take to be where the log ends, and how often Postgres is asked to see to that.
const SETTLE_DURATION_MAX: Duration = Duration::from_secs(20);
const SETTLE_INTERVAL: Duration = Duration::from_millis(300);

/// What the command line says.
#[derive(Clone, Debug)]
pub struct ReplicationOptions {
    pub rows: u64,
    /// Only the kinds whose name contains this.
    pub only: Option<String>,
    pub common: Common,
}

/// What the shapes are and which rows they want.
struct Kind {
    name: &'static str,
    form: Form,
    /// SQL of `field` for row `n`.
    field: &'static str,
    /// What the rate may be of that of `pg_recvlogical`: issue 7.
    ratio_min: f64,
}

const fn kind(
    name: &'static str,
    (table, clause, shapes_max): (&'static str, fn(u64) -> String, u64),
    field: &'static str,
    ratio_min: f64,
) -> Kind {
    Kind { name, form: Form { name, table, clause, shapes_max }, field, ratio_min }
}

const KINDS: [Kind; 4] = [
    kind("one shape, all rows", ("r_one", |_| String::new(), 1), "n % 1000", 0.9),
    kind("field = k", ("r_equal", |k| format!("field = {k}"), 1_000), "n % 1000", 0.8),
    kind("rows of no shape", ("r_none", |k| format!("field = {k}"), 1_000), "1000 + n % 1000", 0.95),
    kind("ILIKE 'k%'", ("r_ilike", |k| format!("label ILIKE 'P{k}x%'"), 1_000), "n % 1000", 0.5),
];

/// Runs all kinds, with transactions of one row and of a thousand; whether every limit was kept.
pub async fn run(options: ReplicationOptions) -> Outcome<bool> {
    let stage = Stage::open("bench-replication", options.common.postgres).await?;
    let mut run = Run::begin("replication", options.common.keep, Some(stage.postgres.installation().major))?;
    let mut service = Service::start(stage.service_settings(STREAM_ID)).await?;
    let wanted = |kind: &&Kind| options.only.as_ref().is_none_or(|only| kind.name.contains(only.as_str()));
    for kind in KINDS.iter().filter(wanted) {
        let Form { table, clause, shapes_max: shapes, .. } = kind.form;
        // About 200 bytes a row.
        let schema = format!(
            "CREATE TABLE {table} (id bigint PRIMARY KEY, field int NOT NULL, label text NOT NULL, payload text NOT NULL)"
        );
        stage.sql.batch_execute(&schema).await?;
        make(service.address(), &kind.form, 0, shapes).await?;
        let mut readers = Vec::new();
        for number in 0..FOLLOWED.min(shapes) {
            let query = super::forms::query(table, &clause(number));
            let mut reader = Reader::new(service.address(), &query);
            reader.read_to_tail().await?;
            readers.push(reader);
        }
        let mut bench = Bench { stage: &stage, kind, readers, rows_before: 0 };
        for (size, rows) in [(LARGE, options.rows), (1, options.rows / SINGLE_FRACTION)] {
            bench.round(&mut run, &mut service, size, rows.max(1)).await?;
        }
        stage.sql.batch_execute(&format!("TRUNCATE {table}")).await?;
    }
    service.terminate().await;
    run.finish()
}

struct Bench<'a> {
    stage: &'a Stage,
    kind: &'a Kind,
    readers: Vec<Reader>,
    rows_before: u64,
}

impl Bench<'_> {
    async fn round(&mut self, run: &mut Run, service: &mut Service, size: u64, rows: u64) -> Outcome<()> {
        self.settle().await?;
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
        let rate = |duration: Duration| rows as f64 / duration.as_secs_f64();
        let point = self.drain(service, first + rows).await?;
        let elapsed = Duration::from_secs_f64(point.value);
        self.rows_before = first + rows + FOLLOWED;
        let of_kind = |point: Point| {
            point.with("rows in each transaction", size).with("shapes", self.kind.form.shapes_max)
        };
        run.note(of_kind(
            Point {
                name: self.kind.name.to_owned(),
                value: rate(elapsed),
                unit: "rows/s".to_owned(),
                ..point
            }
            .beside("pg_recvlogical", rate(plain))
            .limited(Limit::RatioMin(self.kind.ratio_min)),
        ));
        let peak = service.peak_memory_bytes().ok_or("the service is gone")?;
        run.note(of_kind(Point::new("memory at most", peak as f64 / 1e6, "MB").at_most(MEMORY_MB_MAX)));
        Ok(())
    }

    /// Waits until the service's slot begins where the log ends: what is before would be decoded once more, and
    /// only for the service.
    async fn settle(&self) -> Outcome<()> {
        let sql = &self.stage.sql;
        let end: String = sql.query_one("SELECT pg_current_wal_insert_lsn()::text", &[]).await?.get(0);
        let settled = format!(
            "SELECT restart_lsn >= '{end}'::pg_lsn FROM pg_replication_slots WHERE slot_name = 'electric_slot_{STREAM_ID}'"
        );
        let begun = Instant::now();
        while !sql.query_one(&settled, &[]).await?.get::<_, bool>(0) {
            if begun.elapsed() > SETTLE_DURATION_MAX {
                return Err("the slot of the service stays behind".into());
            }
            // Notes which transactions run: from such a note on, decoding can begin.
            sql.batch_execute("CHECKPOINT").await?;
            tokio::time::sleep(SETTLE_INTERVAL).await;
        }
        Ok(())
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

    /// Starts the service; the seconds from the start of its stream until every client has the row that was
    /// written last, and who used the processors meanwhile.
    async fn drain(&mut self, service: &mut Service, mark: u64) -> Outcome<Point> {
        service.relaunch()?;
        let slot = format!("electric_slot_{STREAM_ID}");
        let launched = Instant::now();
        let active = "SELECT 1 FROM pg_replication_slots WHERE slot_name = $1 AND active";
        while self.stage.sql.query_opt(active, &[&slot]).await?.is_none() {
            if launched.elapsed() > START_DURATION_MAX {
                return Err("the service did not start its stream".into());
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
        let (started, cpu) = (Instant::now(), CpuClock::start(service, self.stage));
        service.wait_active(START_DURATION_MAX).await?;
        let mark = format!("mark-{mark:010}");
        let reading =
            try_join_all(self.readers.iter_mut().map(|reader| reader.follow_until(mark.as_bytes())));
        tokio::time::timeout(DRAIN_DURATION_MAX, reading)
            .await
            .map_err(|_| "the rows did not arrive in time")??;
        Ok(Point::new("drained", started.elapsed().as_secs_f64(), "s").costing(cpu.stop()))
    }
}

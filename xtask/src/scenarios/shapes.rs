//! `bench-shapes`: very many shapes. How fast they are made and deleted, what each costs in memory and on disk, how
//! long a transaction that concerns many of them takes until it is acknowledged, and how long a start takes.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::Outcome;
use crate::http::{HttpClient, encode};
use crate::measure::load::{CpuClock, insist, over_connections};
use crate::measure::{Limit, Point, Run};
use crate::service::{START_DURATION_MAX, Service};
use crate::stage::Stage;

use super::{Common, STREAM_ID, millis};

/// Connections that make and delete shapes, and clients of pgbench.
const CONNECTIONS: u64 = 16;
/// How long pgbench runs the same snapshot transaction.
const PGBENCH_SECONDS: u64 = 5;
/// After so long without work a writer has been put to sleep (30 s), and memory is that of idle shapes.
const IDLE_AFTER: Duration = Duration::from_secs(40);
/// Numbers of shapes that one transaction concerns.
const DIRTY: [u64; 3] = [100, 10_000, 300_000];
/// Transactions of each.
const FLUSHES: u64 = 5;
/// Shapes that are deleted one by one.
const DELETED_MAX: u64 = 10_000;
/// How long anything may take before the benchmark gives up.
const WAIT_MAX: Duration = Duration::from_secs(600);
const POLL: Duration = Duration::from_millis(1);
/// What issue 7 asks for.
const IDLE_MB_MAX: f64 = 25.0;
const MADE_RATIO_MIN: f64 = 0.4;
const MEMORY_BYTES_MAX: f64 = 1_024.0;
const DISK_BYTES_MAX: f64 = 1_024.0;
const FIRST_ANSWER_MS_MAX: f64 = 1_000.0;
const RESTORED_MS_MAX: f64 = 5_000.0;

/// What the command line says.
#[derive(Clone, Copy, Debug)]
pub struct ShapesOptions {
    pub shapes: u64,
    pub common: Common,
}

/// Runs it; whether every limit was kept.
pub async fn run(options: ShapesOptions) -> Outcome<bool> {
    let stage = Stage::open("bench-shapes", options.common.postgres).await?;
    let mut run = Run::begin("shapes", options.common.keep, Some(stage.postgres.installation().major))?;
    stage
        .sql
        .batch_execute(
            "CREATE TABLE many (id bigserial PRIMARY KEY, field bigint NOT NULL, label text NOT NULL);
             CREATE INDEX ON many (field); ALTER TABLE many REPLICA IDENTITY FULL",
        )
        .await?;
    let mut settings = stage.service_settings(STREAM_ID);
    settings.set("ELECTRIC_ENABLE_INTEGRATION_TESTING", "true");
    let service = Service::start(settings).await?;
    let base = service.memory_bytes().ok_or("the service is gone")?;
    run.note(Point::new("idle service", base as f64 / 1e6, "MB").at_most(IDLE_MB_MAX));
    let mut bench = Bench { stage, service, run, shapes: options.shapes, base };
    bench.make().await?;
    bench.weigh().await?;
    bench.flush().await?;
    bench.start().await?;
    bench.delete().await?;
    bench.run.finish()
}

struct Bench {
    stage: Stage,
    service: Service,
    run: Run,
    shapes: u64,
    /// Memory without shapes.
    base: u64,
}

/// Shape number `k`.
fn query(number: u64) -> String {
    format!("table=many&where={}", encode(&format!("field = {number}")))
}

impl Bench {
    async fn make(&mut self) -> Outcome<()> {
        let plain = self.snapshot_transactions()?;
        let cpu = CpuClock::start(&self.service, &self.stage);
        let took = over_connections(
            self.service.address(),
            CONNECTIONS,
            (0, self.shapes),
            |mut http, number| async move {
                insist(&mut http, "GET", &format!("/v1/shape?{}&offset=-1", query(number))).await?;
                Ok(http)
            },
        )
        .await?;
        let rate = self.shapes as f64 / took.as_secs_f64();
        self.run.note(
            Point::new("shapes created", rate, "1/s")
                .with("shapes", self.shapes)
                .beside("pgbench, the snapshot's transaction", plain)
                .limited(Limit::RatioMin(MADE_RATIO_MIN))
                .costing(cpu.stop()),
        );
        Ok(())
    }

    /// How many transactions like that of a snapshot pgbench does in a second.
    fn snapshot_transactions(&self) -> Outcome<f64> {
        let pgbench = self.stage.postgres.installation().program("pgbench")?;
        let script = self.stage.directory().join("snapshot.sql");
        fs::write(
            &script,
            "\\set k random(0, 1000000)\n\
             BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY;\n\
             SELECT pg_current_snapshot(), pg_current_wal_insert_lsn();\n\
             SELECT id, field, label FROM many WHERE field = :k;\n\
             COMMIT;\n",
        )?;
        let output = Command::new(pgbench)
            .args(["--no-vacuum", "--jobs", "2", "--client", &CONNECTIONS.to_string()])
            .args(["--time", &PGBENCH_SECONDS.to_string(), "--file"])
            .arg(&script)
            .arg(self.stage.url())
            .stderr(Stdio::inherit())
            .output()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let rate = text
            .lines()
            .find_map(|line| line.strip_prefix("tps = ")?.split_whitespace().next()?.parse().ok());
        rate.ok_or_else(|| format!("pgbench did not say how fast it was: {text}").into())
    }

    async fn weigh(&mut self) -> Outcome<()> {
        let before = self.service.memory_bytes().ok_or("the service is gone")?;
        tokio::time::sleep(IDLE_AFTER).await;
        let after = self.service.memory_bytes().ok_or("the service is gone")?;
        let each = |bytes: u64| bytes.saturating_sub(self.base) as f64 / self.shapes as f64;
        let (fresh, idle) = (each(before), each(after));
        self.run.note(Point::new("memory of a new shape", fresh, "bytes").with("shapes", self.shapes));
        self.run.note(
            Point::new("memory of an idle shape", idle, "bytes")
                .with("shapes", self.shapes)
                .at_most(MEMORY_BYTES_MAX),
        );
        let on_disk = allocated(&self.service.data_dir().join("shapes"))? as f64 / self.shapes as f64;
        self.run.note(
            Point::new("disk of an empty shape", on_disk, "bytes")
                .with("shapes", self.shapes)
                .at_most(DISK_BYTES_MAX),
        );
        let journal = allocated(&self.service.data_dir().join("journal"))? as f64 / self.shapes as f64;
        self.run.note(Point::new("journal for a shape", journal, "bytes").with("shapes", self.shapes));
        Ok(())
    }

    /// Transactions with a row for each of `dirty` shapes, each waited for until it is acknowledged.
    async fn flush(&mut self) -> Outcome<()> {
        let sizes: Vec<u64> =
            DIRTY.into_iter().filter(|dirty| *dirty < self.shapes).chain([self.shapes]).collect();
        for dirty in sizes {
            let cpu = CpuClock::start(&self.service, &self.stage);
            let (mut committing, mut acknowledged) = (Duration::ZERO, Duration::ZERO);
            for _ in 0..FLUSHES {
                let begun = Instant::now();
                let insert = format!(
                    "BEGIN; INSERT INTO many (field, label) SELECT n, repeat('x', 100) FROM generate_series(0, {}) n",
                    dirty - 1
                );
                self.stage.sql.batch_execute(&insert).await?;
                let written = "SELECT pg_current_wal_insert_lsn()::text";
                let written: String = self.stage.sql.query_one(written, &[]).await?.get(0);
                self.stage.sql.batch_execute("COMMIT").await?;
                committing += begun.elapsed();
                let committed = Instant::now();
                self.wait_acknowledged(&written).await?;
                acknowledged += committed.elapsed();
            }
            let each = |all: Duration| millis(all) / FLUSHES as f64;
            self.run.note(
                Point::new("commit to acknowledged", each(acknowledged), "ms")
                    .with("dirty", dirty)
                    .beside("the transaction itself", each(committing))
                    .costing(cpu.stop()),
            );
        }
        Ok(())
    }

    /// Waits until a commit behind that position is acknowledged.
    async fn wait_acknowledged(&self, written: &str) -> Outcome<()> {
        let passed = format!(
            "SELECT confirmed_flush_lsn > '{written}'::pg_lsn FROM pg_replication_slots WHERE slot_name = 'electric_slot_{STREAM_ID}'"
        );
        let begun = Instant::now();
        while !self.stage.sql.query_one(&passed, &[]).await?.get::<_, Option<bool>>(0).unwrap_or(false) {
            if begun.elapsed() > WAIT_MAX {
                return Err("a transaction is not acknowledged".into());
            }
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    }

    /// From the process to the first answer, and until everything is restored.
    async fn start(&mut self) -> Outcome<()> {
        let ended = Instant::now();
        if !self.service.terminate().await {
            return Err("the service did not end by itself".into());
        }
        self.run
            .note(Point::new("drained and ended", millis(ended.elapsed()), "ms").with("shapes", self.shapes));
        let reading = Instant::now();
        let bytes = read_all(self.service.data_dir())?;
        let read_ms = millis(reading.elapsed());
        self.service.relaunch()?;
        let begun = Instant::now();
        // The last shape that was made.
        let path = format!("/v1/shape?{}&offset=-1", query(self.shapes - 1));
        loop {
            let answer = HttpClient::new(self.service.address()).get(&path).await;
            if answer.is_ok_and(|answer| answer.status == 200) {
                break;
            }
            if begun.elapsed() > WAIT_MAX {
                return Err("the service does not answer after its start".into());
            }
            tokio::time::sleep(POLL).await;
        }
        let first = millis(begun.elapsed());
        self.service.wait_active(START_DURATION_MAX).await?;
        let active = millis(begun.elapsed());
        let name = format!("reading its {:.0} MB of files", bytes as f64 / 1e6);
        for (what, took, limit) in [
            ("start to the first answer", first, FIRST_ANSWER_MS_MAX),
            ("start to active", active, RESTORED_MS_MAX),
        ] {
            let point = Point::new(what, took, "ms").with("shapes", self.shapes);
            self.run.note(point.beside(&name, read_ms).at_most(limit));
        }
        let memory = self.service.memory_bytes().ok_or("the service is gone")?;
        let each = memory.saturating_sub(self.base) as f64 / self.shapes as f64;
        self.run.note(Point::new("memory of a restored shape", each, "bytes").with("shapes", self.shapes));
        Ok(())
    }

    async fn delete(&mut self) -> Outcome<()> {
        let deleted = self.shapes.min(DELETED_MAX);
        let cpu = CpuClock::start(&self.service, &self.stage);
        let took = over_connections(
            self.service.address(),
            CONNECTIONS,
            (0, deleted),
            |mut http, number| async move {
                insist(&mut http, "DELETE", &format!("/v1/shape?{}", query(number))).await?;
                Ok(http)
            },
        )
        .await?;
        let rate = deleted as f64 / took.as_secs_f64();
        self.run.note(Point::new("shapes deleted", rate, "1/s").with("shapes", deleted).costing(cpu.stop()));
        Ok(())
    }
}

/// Bytes that files and folders below one take on the disk.
fn allocated(folder: &Path) -> Outcome<u64> {
    let mut bytes = fs::metadata(folder)?.blocks() * 512;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let about = entry.metadata()?;
        bytes += if about.is_dir() { allocated(&entry.path())? } else { about.blocks() * 512 };
    }
    Ok(bytes)
}

/// Reads every file once; how many bytes that was. A start cannot be asked to read faster.
fn read_all(folder: &Path) -> Outcome<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        bytes += if path.is_dir() { read_all(&path)? } else { fs::read(&path)?.len() as u64 };
    }
    Ok(bytes)
}

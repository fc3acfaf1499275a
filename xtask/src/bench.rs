//! `bench-replication` and `bench-initial-sync`: the service beside what Postgres itself can do,
//! in the same run on the same data. Quote the ratios; the absolute figures move with the machine.

use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures_util::{StreamExt, pin_mut};
use tokio_postgres::Client;

use crate::Outcome;
use crate::http::{HttpClient, encode};
use crate::service::Service;
use crate::stage::{Stage, report};

/// Rows in one transaction of the replication benchmark.
const TRANSACTION_ROWS: u64 = 1_000;
/// Text that every inserted row's message contains once, and nothing else does.
const INSERT_MARK: &[u8] = b"\"operation\":\"insert\"";
/// How long the service may take for all rows before the benchmark gives up.
const DRAIN_DURATION_MAX: Duration = Duration::from_secs(1_800);
const MEMORY_BYTES_MAX: u64 = 300 * 1024 * 1024;
const REPLICATION_RATIO_MIN: f64 = 0.5;
const INITIAL_SYNC_RATIO_MIN: f64 = 0.3;
/// Slot of `pg_recvlogical`, and how the service's replication stream is called.
const PLAIN_SLOT: &str = "bench_plain";
const STREAM_ID: &str = "bench";

/// About 200 bytes a row.
const SCHEMA: &str = "CREATE TABLE bench (id bigint PRIMARY KEY, tenant int NOT NULL, label text NOT NULL, payload text NOT NULL)";

/// What the command line says.
#[derive(Clone, Debug)]
pub struct BenchOptions {
    pub rows: u64,
    /// Repetitions of the initial sync; the median counts.
    pub repeat: usize,
    pub json: bool,
    pub postgres: Option<u32>,
}

/// The service's streaming rate against `pg_recvlogical` draining the same WAL.
pub async fn replication(options: BenchOptions) -> Outcome<bool> {
    let stage = Stage::open("bench-replication", options.postgres).await?;
    let recvlogical = stage.postgres.installation().program("pg_recvlogical")?;
    stage.sql.batch_execute(SCHEMA).await?;
    let mut service = Service::start(stage.service_settings(STREAM_ID)).await?;
    let mut reader = Reader::new(&service, "table=bench");
    reader.read_to_tail().await?;
    if !service.terminate().await {
        return Err("the service did not end by itself on SIGTERM".into());
    }
    stage.sql.execute("SELECT pg_create_logical_replication_slot($1, 'pgoutput')", &[&PLAIN_SLOT]).await?;
    println!("inserting {} rows in transactions of {TRANSACTION_ROWS}, the service is down", options.rows);
    insert_in_transactions(&stage.sql, options.rows).await?;
    let end: String = stage.sql.query_one("SELECT pg_current_wal_insert_lsn()::text", &[]).await?.get(0);
    // Something after the end, so that both receivers see that they are past it.
    stage.sql.batch_execute("CREATE TABLE bench_end (id int); CHECKPOINT").await?;

    println!("pg_recvlogical drains the WAL up to {end}");
    let url = stage.url();
    let plain = tokio::task::spawn_blocking(move || {
        let started = Instant::now();
        let status = Command::new(recvlogical)
            .args([
                "--slot",
                PLAIN_SLOT,
                "--start",
                "--no-loop",
                "-f",
                "/dev/null",
                "--endpos",
                &end,
                "-d",
                &url,
            ])
            .args(["-o", "proto_version=1", "-o"])
            .arg(format!("publication_names=electric_publication_{STREAM_ID}"))
            .stderr(Stdio::inherit())
            .status();
        status.map(|status| (status.success(), started.elapsed()))
    })
    .await??;
    if !plain.0 {
        return Err("pg_recvlogical failed".into());
    }

    println!("the service drains the same WAL to one live client");
    let (elapsed, peak_bytes) = drain(&mut service, &mut reader, &stage.sql, options.rows).await?;
    let rate = |duration: Duration| options.rows as f64 / duration.as_secs_f64();
    let ratio = rate(elapsed) / rate(plain.1);
    println!("pg_recvlogical   {:>9.0} rows/s  ({:.2} s)", rate(plain.1), plain.1.as_secs_f64());
    println!(
        "shapefold        {:>9.0} rows/s  ({:.2} s, to the client)",
        rate(elapsed),
        elapsed.as_secs_f64()
    );
    println!("ratio            {ratio:>9.2}");
    println!("memory           {:>9.0} MB at most", peak_bytes as f64 / 1e6);
    if options.json {
        let line = serde_json::json!({"bench": "replication", "rows": options.rows, "recvlogical_rows_per_s": rate(plain.1),
            "service_rows_per_s": rate(elapsed), "ratio": ratio, "peak_memory_bytes": peak_bytes});
        println!("{line}");
    }
    let fast = report(
        ratio >= REPLICATION_RATIO_MIN,
        &format!("at least {REPLICATION_RATIO_MIN} of pg_recvlogical"),
    );
    Ok(report(peak_bytes < MEMORY_BYTES_MAX, "less than 300 MiB of memory") && fast)
}

async fn insert_in_transactions(sql: &Client, rows: u64) -> Outcome<()> {
    let mut first = 0;
    while first < rows {
        let last = (first + TRANSACTION_ROWS).min(rows) - 1;
        sql.batch_execute(&insert(first, last)).await?;
        first = last + 1;
    }
    Ok(())
}

fn insert(first: u64, last: u64) -> String {
    format!(
        "INSERT INTO bench SELECT n, (n % 100)::int, 'label ' || n, repeat(md5(n::text), 5) \
         FROM generate_series({first}::bigint, {last}) n"
    )
}

/// Starts the service; the time from the start of its stream until the client has all rows, and
/// the service's peak memory.
async fn drain(
    service: &mut Service,
    reader: &mut Reader,
    sql: &Client,
    rows: u64,
) -> Outcome<(Duration, u64)> {
    service.relaunch()?;
    let slot = format!("electric_slot_{STREAM_ID}");
    let launched = Instant::now();
    loop {
        let active = sql
            .query_opt("SELECT 1 FROM pg_replication_slots WHERE slot_name = $1 AND active", &[&slot])
            .await?;
        if active.is_some() {
            break;
        }
        if launched.elapsed() > crate::service::START_DURATION_MAX {
            return Err("the service did not start its stream".into());
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let started = Instant::now();
    service.wait_active(crate::service::START_DURATION_MAX).await?;
    let mut last_progress = Instant::now();
    while reader.inserts() < rows {
        reader.read_once(true).await?;
        if last_progress.elapsed() > Duration::from_secs(5) {
            last_progress = Instant::now();
            println!("  {:>4.0} s: {} rows", started.elapsed().as_secs_f64(), reader.inserts());
        }
        if started.elapsed() > DRAIN_DURATION_MAX {
            return Err(format!("only {} of {rows} rows arrived", reader.inserts()).into());
        }
    }
    let elapsed = started.elapsed();
    if reader.inserts() != rows {
        return Err(format!("{} messages for {rows} rows", reader.inserts()).into());
    }
    let peak_bytes = service.peak_memory_bytes().ok_or("the service is gone")?;
    Ok((elapsed, peak_bytes))
}

/// Reads a shape and counts rows, without looking at them.
struct Reader {
    http: HttpClient,
    query: String,
    handle: Option<String>,
    offset: String,
    cursor: String,
    inserts: Arc<AtomicU64>,
    bytes: u64,
}

impl Reader {
    fn new(service: &Service, query: &str) -> Self {
        Self {
            http: HttpClient::new(service.address()),
            query: query.to_owned(),
            handle: None,
            offset: "-1".to_owned(),
            cursor: String::new(),
            inserts: Arc::default(),
            bytes: 0,
        }
    }

    fn inserts(&self) -> u64 {
        self.inserts.load(Ordering::Relaxed)
    }

    /// One request; true when the answer reached the tail.
    async fn read_once(&mut self, live: bool) -> Outcome<bool> {
        let mut path = format!("/v1/shape?{}&offset={}", self.query, self.offset);
        if let Some(handle) = &self.handle {
            path.push_str(&format!("&handle={}", encode(handle)));
        }
        if live {
            path.push_str(&format!("&live=true&cursor={}", self.cursor));
        }
        // A mark can lie across two pieces of the body: the end of each is looked at again with the next.
        let mut carried: Vec<u8> = Vec::with_capacity(INSERT_MARK.len() * 2);
        let (mut found, mut bytes) = (0_u64, 0_u64);
        let head = self
            .http
            .request_streaming("GET", &path, &[], b"", |part| {
                bytes += part.len() as u64;
                let border = part.len().min(INSERT_MARK.len() - 1);
                carried.extend_from_slice(&part[..border]);
                found += memchr::memmem::find_iter(&carried, INSERT_MARK).count() as u64;
                found += memchr::memmem::find_iter(part, INSERT_MARK).count() as u64;
                if part.len() >= INSERT_MARK.len() - 1 {
                    carried.clear();
                    carried.extend_from_slice(&part[part.len() - border..]);
                } else {
                    let excess = carried.len().saturating_sub(INSERT_MARK.len() - 1);
                    carried.drain(..excess);
                }
            })
            .await?;
        if head.status != 200 {
            return Err(format!("status {} for {path}", head.status).into());
        }
        self.inserts.fetch_add(found, Ordering::Relaxed);
        self.bytes += bytes;
        self.handle = head.header("electric-handle").map(str::to_owned);
        self.offset = head.header("electric-offset").ok_or("an answer without electric-offset")?.to_owned();
        self.cursor = head.header("electric-cursor").unwrap_or_default().to_owned();
        Ok(head.header("electric-up-to-date").is_some())
    }

    async fn read_to_tail(&mut self) -> Outcome<()> {
        while !self.read_once(false).await? {}
        Ok(())
    }
}

/// Reading a table for the first time, cold and warm, against `COPY … TO STDOUT`.
pub async fn initial_sync(options: BenchOptions) -> Outcome<bool> {
    let stage = Stage::open("bench-initial-sync", options.postgres).await?;
    stage.sql.batch_execute(SCHEMA).await?;
    println!("inserting {} rows", options.rows);
    stage.sql.batch_execute(&insert(0, options.rows - 1)).await?;
    // One by one: VACUUM does not run among other statements.
    stage.sql.batch_execute("VACUUM ANALYZE bench").await?;
    stage.sql.batch_execute("CHECKPOINT").await?;
    let mut service = Service::start(stage.service_settings(STREAM_ID)).await?;

    let (mut copies, mut colds, mut warms) = (Vec::new(), Vec::new(), Vec::new());
    let mut body_bytes = 0;
    for _ in 0..options.repeat {
        copies.push(copy_out(&stage.sql).await?);
        let (cold, bytes) = read_all(&service, options.rows).await?;
        let (warm, _) = read_all(&service, options.rows).await?;
        colds.push(cold);
        warms.push(warm);
        body_bytes = bytes;
        println!(
            "  COPY {:.2} s, cold {:.2} s, warm {:.2} s",
            copies[copies.len() - 1].as_secs_f64(),
            cold.as_secs_f64(),
            warm.as_secs_f64()
        );
        let deleted =
            HttpClient::new(service.address()).request("DELETE", "/v1/shape?table=bench", &[], b"").await?;
        if deleted.status != 202 {
            return Err(format!("DELETE answered {}: {}", deleted.status, deleted.text()).into());
        }
    }
    let peak_bytes = service.peak_memory_bytes().ok_or("the service is gone")?;
    service.terminate().await;
    let (copy, cold, warm) = (median(copies), median(colds), median(warms));
    let rate = |duration: Duration| options.rows as f64 / duration.as_secs_f64();
    let megabytes = |duration: Duration| body_bytes as f64 / 1e6 / duration.as_secs_f64();
    println!(
        "medians of {}, {} rows, {:.0} MB of JSON",
        options.repeat,
        options.rows,
        body_bytes as f64 / 1e6
    );
    println!("COPY TO STDOUT   {:>9.0} rows/s  ({:.2} s)", rate(copy), copy.as_secs_f64());
    println!(
        "cold             {:>9.0} rows/s  ({:.2} s, {:.0} MB/s)",
        rate(cold),
        cold.as_secs_f64(),
        megabytes(cold)
    );
    println!(
        "warm             {:>9.0} rows/s  ({:.2} s, {:.0} MB/s)",
        rate(warm),
        warm.as_secs_f64(),
        megabytes(warm)
    );
    let (cold_ratio, warm_ratio) = (rate(cold) / rate(copy), rate(warm) / rate(copy));
    println!("ratio            {cold_ratio:>9.2} cold, {warm_ratio:.2} warm");
    println!("memory           {:>9.0} MB at most", peak_bytes as f64 / 1e6);
    if options.json {
        let line = serde_json::json!({"bench": "initial-sync", "rows": options.rows, "copy_rows_per_s": rate(copy),
            "cold_rows_per_s": rate(cold), "warm_rows_per_s": rate(warm), "cold_ratio": cold_ratio,
            "warm_ratio": warm_ratio, "peak_memory_bytes": peak_bytes});
        println!("{line}");
    }
    Ok(report(
        cold_ratio >= INITIAL_SYNC_RATIO_MIN,
        &format!("cold at least {INITIAL_SYNC_RATIO_MIN} of COPY"),
    ))
}

async fn copy_out(sql: &Client) -> Outcome<Duration> {
    let started = Instant::now();
    let stream = sql.copy_out("COPY bench TO STDOUT").await?;
    pin_mut!(stream);
    while let Some(part) = stream.next().await {
        part?;
    }
    Ok(started.elapsed())
}

/// Reads the shape from the beginning with a client of its own; time and bytes.
async fn read_all(service: &Service, rows: u64) -> Outcome<(Duration, u64)> {
    let mut reader = Reader::new(service, "table=bench");
    let started = Instant::now();
    reader.read_to_tail().await?;
    let elapsed = started.elapsed();
    if reader.inserts() != rows {
        return Err(format!("{} messages for {rows} rows", reader.inserts()).into());
    }
    Ok((elapsed, reader.bytes))
}

fn median(mut durations: Vec<Duration>) -> Duration {
    durations.sort_unstable();
    durations.get(durations.len() / 2).copied().unwrap_or_default()
}

//! `bench-initial-sync`: the service beside what Postgres itself can do, in the same run on the same data. Quote the ratios; the absolute figures move with the machine.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures_util::{StreamExt, pin_mut};
use tokio_postgres::Client;

use crate::Outcome;
use crate::http::{HttpClient, encode};
use crate::service::Service;
use crate::stage::{Stage, report};

/// Text that every inserted row's message contains once, and nothing else does.
const INSERT_MARK: &[u8] = b"\"operation\":\"insert\"";
const INITIAL_SYNC_RATIO_MIN: f64 = 0.3;
/// How the service's replication stream is called.
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

fn insert(first: u64, last: u64) -> String {
    format!(
        "INSERT INTO bench SELECT n, (n % 100)::int, 'label ' || n, repeat(md5(n::text), 5) \
         FROM generate_series({first}::bigint, {last}) n"
    )
}

/// Reads a shape and counts rows, without looking at them.
pub(crate) struct Reader {
    http: HttpClient,
    query: String,
    handle: Option<String>,
    offset: String,
    cursor: String,
    inserts: Arc<AtomicU64>,
    bytes: u64,
}

impl Reader {
    pub(crate) fn new(service: &Service, query: &str) -> Self {
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

    /// Follows the shape until its messages contain that text.
    pub(crate) async fn read_until(&mut self, text: &[u8]) -> Outcome<()> {
        let mut found = false;
        while !found {
            // It may lie across two pieces of the body.
            let mut carried = Vec::with_capacity(2 * text.len());
            self.read_parts(true, |part| {
                let border = part.len().min(text.len() - 1);
                carried.extend_from_slice(&part[..border]);
                found |= memchr::memmem::find(&carried, text).is_some();
                found |= memchr::memmem::find(part, text).is_some();
                if border < text.len() - 1 {
                    carried.drain(..carried.len().saturating_sub(text.len() - 1));
                } else {
                    carried.clear();
                    carried.extend_from_slice(&part[part.len() - border..]);
                }
            })
            .await?;
        }
        Ok(())
    }

    /// One request; true when the answer reached the tail.
    async fn read_once(&mut self, live: bool) -> Outcome<bool> {
        // A mark can lie across two pieces of the body: the end of each is looked at again with the next.
        let mut carried: Vec<u8> = Vec::with_capacity(INSERT_MARK.len() * 2);
        let (mut found, mut bytes) = (0_u64, 0_u64);
        let up_to_date = self
            .read_parts(live, |part| {
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
        self.inserts.fetch_add(found, Ordering::Relaxed);
        self.bytes += bytes;
        Ok(up_to_date)
    }

    /// One request, its body in pieces; true when the answer reached the tail.
    async fn read_parts(&mut self, live: bool, visit: impl FnMut(&[u8])) -> Outcome<bool> {
        let mut path = format!("/v1/shape?{}&offset={}", self.query, self.offset);
        if let Some(handle) = &self.handle {
            path.push_str(&format!("&handle={}", encode(handle)));
        }
        if live {
            path.push_str(&format!("&live=true&cursor={}", self.cursor));
        }
        let head = self.http.request_streaming("GET", &path, &[], b"", visit).await?;
        if head.status != 200 {
            return Err(format!("status {} for {path}", head.status).into());
        }
        self.handle = head.header("electric-handle").map(str::to_owned);
        self.offset = head.header("electric-offset").ok_or("an answer without electric-offset")?.to_owned();
        self.cursor = head.header("electric-cursor").unwrap_or_default().to_owned();
        Ok(head.header("electric-up-to-date").is_some())
    }

    pub(crate) async fn read_to_tail(&mut self) -> Outcome<()> {
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

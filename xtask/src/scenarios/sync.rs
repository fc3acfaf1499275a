//! `bench-sync`: many clients that come at the same moment, each with a shape of its own, or all with one.

use std::time::{Duration, Instant};

use futures_util::{StreamExt, pin_mut};

use crate::Outcome;
use crate::http::{HttpClient, encode};
use crate::measure::load::{CpuClock, read_to_end};
use crate::measure::{Latencies, Limit, Point, Run};
use crate::service::Service;
use crate::stage::Stage;

use super::{Common, STREAM_ID};

/// Rows of each client's own shape.
const OWN_ROWS: u64 = 500;
/// Mean of all clients that open a shape of their own at once: issue 7.
const OWN_MEAN_MS_MAX: f64 = 500.0;
/// Connections that read with COPY: as many as the service has.
const COPY_CONNECTIONS: u64 = 20;
/// Clients on one new shape.
const TOGETHER: [u64; 3] = [1, 8, 64];

/// What the command line says.
#[derive(Clone, Copy, Debug)]
pub struct SyncOptions {
    /// Clients that come at once, each with a shape of its own.
    pub clients: u64,
    /// Rows of the shape that many ask for together.
    pub rows: u64,
    pub common: Common,
}

/// Runs it; whether every limit was kept.
pub async fn run(options: SyncOptions) -> Outcome<bool> {
    let stage = Stage::open("bench-sync", options.common.postgres).await?;
    let mut run = Run::begin("sync", options.common.keep, Some(stage.postgres.installation().major))?;
    let (clients, rows) = (options.clients, options.rows);
    for (table, rows, of) in [("own", clients * OWN_ROWS, clients), ("shared", rows, 1)] {
        let fill = format!(
            "CREATE TABLE {table} (id bigint PRIMARY KEY, field bigint NOT NULL, label text NOT NULL);
             INSERT INTO {table} SELECT n, n % {of}, repeat(md5(n::text), 5) FROM generate_series(1, {rows}) n;
             CREATE INDEX ON {table} (field);"
        );
        stage.sql.batch_execute(&fill).await?;
        stage.sql.batch_execute(&format!("VACUUM ANALYZE {table}")).await?;
    }
    stage.sql.batch_execute("CHECKPOINT").await?;
    let service = Service::start(stage.service_settings(STREAM_ID)).await?;

    let copies = copies(&stage, clients).await?;
    let cpu = CpuClock::start(&service, &stage);
    let found =
        at_once(&service, clients, |number| format!("table=own&where=field%20%3D%20{number}")).await?;
    let mean = found.latencies.percentiles().mean_ms;
    run.note(
        Point { value: mean, ..Point::latency("a new shape each, mean", &found.latencies) }
            .with("clients", clients)
            .beside("COPY over 20 connections", copies.percentiles().mean_ms)
            .limited(Limit::ValueMax(OWN_MEAN_MS_MAX))
            .costing(cpu.stop()),
    );

    let copy = copy_all(&stage, "COPY shared TO STDOUT").await?;
    let copy_rate = rows as f64 / copy.as_secs_f64();
    for together in TOGETHER {
        // Another clause is another shape.
        let clause = encode(&format!("id > -{together}"));
        let cpu = CpuClock::start(&service, &stage);
        let found = at_once(&service, together, |_| format!("table=shared&where={clause}")).await?;
        let rate = (rows * together) as f64 / found.elapsed.as_secs_f64();
        run.note(
            Point::new("one new shape, rows to all", rate, "rows/s")
                .with("clients", together)
                .beside("COPY, one connection", copy_rate)
                .costing(cpu.stop()),
        );
        let megabytes = found.bytes as f64 / 1e6 / found.elapsed.as_secs_f64();
        run.note(Point::new("one new shape, bodies to all", megabytes, "MB/s").with("clients", together));
    }
    let peak = service.peak_memory_bytes().ok_or("the service is gone")?;
    run.note(Point::new("memory at most", peak as f64 / 1e6, "MB"));
    run.finish()
}

struct Found {
    latencies: Latencies,
    elapsed: Duration,
    bytes: u64,
}

/// So many clients at the same moment, each reads one shape to its end.
async fn at_once(service: &Service, clients: u64, query: impl Fn(u64) -> String) -> Outcome<Found> {
    let (address, begun) = (service.address(), Instant::now());
    let reading: Vec<_> = (0..clients)
        .map(|number| {
            let query = query(number);
            tokio::spawn(async move {
                let (_, bytes) = read_to_end(&mut HttpClient::new(address), &query).await?;
                Ok::<_, crate::Failure>((begun.elapsed(), bytes))
            })
        })
        .collect();
    let mut found = Found { latencies: Latencies::default(), elapsed: Duration::ZERO, bytes: 0 };
    for one in reading {
        let (took, bytes) = one.await??;
        found.latencies.add(took);
        found.elapsed = found.elapsed.max(took);
        found.bytes += bytes;
    }
    Ok(found)
}

/// The same rows by COPY, asked for at the same moment, over as many connections as the service has.
async fn copies(stage: &Stage, clients: u64) -> Outcome<Latencies> {
    let mut latencies = Latencies::default();
    let mut connections = Vec::new();
    for _ in 0..COPY_CONNECTIONS {
        connections.push(stage.connect().await?);
    }
    let begun = Instant::now();
    let reading: Vec<_> = (0..)
        .zip(connections)
        .map(|(first, sql): (u64, _)| {
            tokio::spawn(async move {
                let mut took = Vec::new();
                let mut number = first;
                while number < clients {
                    let wanted = format!("COPY (SELECT * FROM own WHERE field = {number}) TO STDOUT");
                    let rows = sql.copy_out(&wanted).await?;
                    pin_mut!(rows);
                    while let Some(part) = rows.next().await {
                        part?;
                    }
                    took.push(begun.elapsed());
                    number += COPY_CONNECTIONS;
                }
                Ok::<_, crate::Failure>(took)
            })
        })
        .collect();
    for one in reading {
        one.await??.into_iter().for_each(|took| latencies.add(took));
    }
    Ok(latencies)
}

async fn copy_all(stage: &Stage, statement: &str) -> Outcome<Duration> {
    let begun = Instant::now();
    let rows = stage.sql.copy_out(statement).await?;
    pin_mut!(rows);
    while let Some(part) = rows.next().await {
        part?;
    }
    Ok(begun.elapsed())
}

//! `bench-initial-sync`: one client reads a table for the first time (cold) and again (warm), next to `COPY` of the
//! same table and to a static nginx that serves the same bytes to the same client.

use std::fs;
use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use futures_util::{StreamExt, pin_mut};
use tokio_postgres::Client;

use crate::Outcome;
use crate::http::HttpClient;
use crate::measure::load::{CpuClock, insist};
use crate::measure::reader::{Marks, Reader};
use crate::measure::{Limit, Point, Run};
use crate::service::Service;
use crate::stage::Stage;

use super::nginx::Nginx;
use super::{Common, STREAM_ID};

/// Of the rate of `COPY`, which carries about half the bytes: issue 7.
const COLD_RATIO_MIN: f64 = 0.5;
/// Of the rate of nginx: issue 7.
const WARM_RATIO_MIN: f64 = 0.8;
const MEMORY_MB_MAX: f64 = 150.0;
/// About 200 bytes a row.
const SCHEMA: &str = "CREATE TABLE bench (id bigint PRIMARY KEY, tenant int NOT NULL, label text NOT NULL, payload text NOT NULL)";

/// What the command line says.
#[derive(Clone, Copy, Debug)]
pub struct InitialSyncOptions {
    pub rows: u64,
    /// Rounds; the medians count.
    pub repeat: usize,
    pub common: Common,
}

/// Runs it; whether every limit was kept.
pub async fn run(options: InitialSyncOptions) -> Outcome<bool> {
    let InitialSyncOptions { rows, repeat, common } = options;
    let stage = Stage::open("bench-initial-sync", common.postgres).await?;
    let mut run = Run::begin("initial-sync", common.keep, Some(stage.postgres.installation().major))?;
    stage.sql.batch_execute(SCHEMA).await?;
    println!("inserting {rows} rows");
    let insert = format!(
        "INSERT INTO bench SELECT n, (n % 100)::int, 'label ' || n, repeat(md5(n::text), 5) FROM generate_series(1, {rows}) n"
    );
    stage.sql.batch_execute(&insert).await?;
    // One by one: VACUUM does not run among other statements.
    stage.sql.batch_execute("VACUUM ANALYZE bench").await?;
    stage.sql.batch_execute("CHECKPOINT").await?;
    let mut service = Service::start(stage.service_settings(STREAM_ID)).await?;
    let (mut copies, mut colds, mut warms, mut plains) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let (mut megabytes, cpu) = (0.0, CpuClock::start(&service, &stage));
    for _ in 0..repeat.max(1) {
        copies.push(copy_out(&stage.sql).await?);
        let (cold, bytes) = read_all(service.address(), rows).await?;
        colds.push(cold);
        megabytes = bytes as f64 / 1e6;
        let folder = stage.directory().join("static");
        let files = keep(service.address(), &folder).await?;
        let nginx = Nginx::start(&folder).await?;
        // Both have read their files once, just now.
        plains.push(read_files(nginx.address, &files, rows).await?);
        warms.push(read_all(service.address(), rows).await?.0);
        drop(nginx);
        fs::remove_dir_all(&folder)?;
        let last = |times: &[Duration]| times.last().copied().unwrap_or_default().as_secs_f64();
        println!(
            "COPY {:.2} s, cold {:.2} s, warm {:.2} s, nginx {:.2} s",
            last(&copies),
            last(&colds),
            last(&warms),
            last(&plains)
        );
        insist(&mut HttpClient::new(service.address()), "DELETE", "/v1/shape?table=bench").await?;
    }
    let cpu = cpu.stop();
    let rate = |times: Vec<Duration>| rows as f64 / median(times).as_secs_f64();
    let cold = Point::new("cold", rate(colds), "rows/s").with("rows", rows);
    run.note(cold.beside("COPY TO STDOUT", rate(copies)).limited(Limit::RatioMin(COLD_RATIO_MIN)));
    let rate = |times: Vec<Duration>| megabytes / median(times).as_secs_f64();
    let warm = Point::new("warm", rate(warms), "MB/s").with("rows", rows);
    let warm = warm.beside("a static nginx", rate(plains)).limited(Limit::RatioMin(WARM_RATIO_MIN));
    run.note(warm.costing(cpu));
    let peak = service.peak_memory_bytes().ok_or("the service is gone")?;
    run.note(Point::new("memory at most", peak as f64 / 1e6, "MB").at_most(MEMORY_MB_MAX));
    service.terminate().await;
    run.finish()
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

/// Reads the shape from its beginning with a client of its own; how long that took, and bytes.
async fn read_all(address: SocketAddr, rows: u64) -> Outcome<(Duration, u64)> {
    let mut reader = Reader::new(address, "table=bench");
    let started = Instant::now();
    reader.read_to_tail().await?;
    let elapsed = started.elapsed();
    if reader.rows != rows {
        return Err(format!("{} messages for {rows} rows", reader.rows).into());
    }
    Ok((elapsed, reader.bytes))
}

/// The bodies of the shape as files, one for each answer; their names.
async fn keep(address: SocketAddr, folder: &Path) -> Outcome<Vec<PathBuf>> {
    fs::create_dir_all(folder)?;
    let mut reader = Reader::new(address, "table=bench");
    let mut files = Vec::new();
    loop {
        let name = PathBuf::from(format!("{}.json", files.len()));
        let mut file = fs::File::create(folder.join(&name))?;
        files.push(name);
        let mut written = Ok(());
        let at_end = reader
            .read_body(|part| {
                if written.is_ok() {
                    written = file.write_all(part);
                }
            })
            .await?;
        written?;
        if at_end {
            return Ok(files);
        }
    }
}

/// Reads those files from nginx, and looks at them as it is looked at answers of the service.
async fn read_files(address: SocketAddr, files: &[PathBuf], rows: u64) -> Outcome<Duration> {
    let mut http = HttpClient::new(address);
    let mut marks = Marks::of_inserts();
    let started = Instant::now();
    for file in files {
        let path = format!("/{}", file.display());
        let head = http.request_streaming("GET", &path, &[], b"", |part| marks.look_at(part)).await?;
        if head.status != 200 {
            return Err(format!("nginx answers {}", head.status).into());
        }
    }
    let elapsed = started.elapsed();
    if marks.found == rows {
        Ok(elapsed)
    } else {
        Err(format!("nginx sent {} of {rows} rows", marks.found).into())
    }
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or_default()
}

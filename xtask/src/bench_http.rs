//! `bench-http`: many live clients on one shape, one write a second. What a waiting client costs in
//! memory, and how long a commit takes to reach all of them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use crate::Outcome;
use crate::http::{HttpClient, encode};
use crate::service::Service;
use crate::stage::{Stage, report};

/// Resident memory of the service for each long-poll client that waits.
const WAITING_BYTES_MAX: f64 = 12.0 * 1024.0;
/// How long all clients may take to be where they should be.
const SETTLE_DURATION_MAX: Duration = Duration::from_secs(120);
/// What clients have told and nobody has looked at yet.
const TOLD_MAX: usize = 65_536;
/// Clients that open their connection at the same time: the listener's queue is finite.
const OPENING_MAX: usize = 200;

#[derive(Clone, Copy, Debug)]
pub struct BenchHttpOptions {
    pub clients: usize,
    /// Writes, one a second.
    pub writes: usize,
    pub json: bool,
    pub postgres: Option<u32>,
}

/// What a client tells: it waits, or it has received that write.
enum Told {
    Waits,
    Received { write: usize, at: Instant },
    Failed(String),
}

pub async fn run(options: BenchHttpOptions) -> Outcome<bool> {
    let stage = Stage::open("bench-http", options.postgres).await?;
    stage.sql.batch_execute("CREATE TABLE bench (id int PRIMARY KEY, write int NOT NULL)").await?;
    stage.sql.batch_execute("INSERT INTO bench VALUES (1, -1)").await?;
    let mut settings = stage.service_settings("bench");
    settings.set("ELECTRIC_MAX_CONCURRENT_REQUESTS", r#"{"initial":20000,"existing":20000}"#);
    let service = Service::start(settings).await?;
    let mut first = HttpClient::new(service.address());
    let (handle, offset) = tail(&mut first).await?;
    let before = memory(&service)?;

    println!("{} clients open a live request each", options.clients);
    let (told, mut tells) = mpsc::channel(TOLD_MAX);
    let open = Arc::new(tokio::sync::Semaphore::new(OPENING_MAX));
    let waiting = Arc::new(AtomicUsize::new(0));
    for _ in 0..options.clients {
        let client = Client {
            address: service.address(),
            handle: handle.clone(),
            offset: offset.clone(),
            told: told.clone(),
            open: Arc::clone(&open),
        };
        tokio::spawn(client.follow(options.writes));
    }
    drop(told);
    let settled = async {
        while waiting.load(Ordering::Relaxed) < options.clients {
            match tells.recv().await {
                Some(Told::Waits) => drop(waiting.fetch_add(1, Ordering::Relaxed)),
                Some(Told::Received { .. }) => {}
                Some(Told::Failed(error)) => return Err(error),
                None => return Err("all clients are gone".to_owned()),
            }
        }
        Ok(())
    };
    tokio::time::timeout(SETTLE_DURATION_MAX, settled).await.map_err(|_| "the clients do not settle")??;
    // They have written their requests; the service has read them when nothing grows any more.
    let idle = settled_memory(&service).await?;

    let latencies = write(&stage, &mut tells, options).await?;
    summarize(options, (before, idle), &latencies)
}

/// One write a second; how long each took to reach each client, in order.
async fn write(
    stage: &Stage,
    tells: &mut mpsc::Receiver<Told>,
    options: BenchHttpOptions,
) -> Outcome<Vec<Duration>> {
    let mut latencies = Vec::with_capacity(options.clients * options.writes);
    for write in 0..options.writes {
        let begun = Instant::now();
        stage.sql.batch_execute(&format!("UPDATE bench SET write = {write} WHERE id = 1")).await?;
        let committed = Instant::now();
        let received = async {
            let mut count = 0;
            while count < options.clients {
                match tells.recv().await {
                    Some(Told::Received { write: of, at }) if of == write => {
                        latencies.push(at.saturating_duration_since(committed));
                        count += 1;
                    }
                    Some(Told::Received { .. } | Told::Waits) => {}
                    Some(Told::Failed(error)) => return Err(error),
                    None => return Err("all clients are gone".to_owned()),
                }
            }
            Ok(())
        };
        tokio::time::timeout(SETTLE_DURATION_MAX, received).await.map_err(|_| "a write did not arrive")??;
        tokio::time::sleep_until((begun + Duration::from_secs(1)).into()).await;
    }
    latencies.sort_unstable();
    Ok(latencies)
}

fn summarize(options: BenchHttpOptions, (before, idle): (u64, u64), latencies: &[Duration]) -> Outcome<bool> {
    let milliseconds = |part: f64| {
        let index = ((latencies.len() - 1) as f64 * part).round() as usize;
        latencies[index].as_secs_f64() * 1e3
    };
    let (p50, p99) = (milliseconds(0.5), milliseconds(0.99));
    let each = idle.saturating_sub(before) as f64 / options.clients as f64;
    println!("clients            {:>9}", options.clients);
    println!("memory before      {:>9.1} MB", before as f64 / 1e6);
    println!("memory, all wait   {:>9.1} MB", idle as f64 / 1e6);
    println!("each client        {:>9.1} KB", each / 1024.0);
    println!("commit to receive  {p50:>9.1} ms p50, {p99:.1} ms p99 ({} writes)", options.writes);
    if options.json {
        let line = serde_json::json!({"bench": "http", "clients": options.clients, "writes": options.writes,
            "bytes_per_client": each, "p50_ms": p50, "p99_ms": p99});
        println!("{line}");
    }
    Ok(report(each <= WAITING_BYTES_MAX, "at most 12 KB for each client that waits"))
}

/// Handle and offset of the end of the log.
async fn tail(http: &mut HttpClient) -> Outcome<(String, String)> {
    let mut path = "/v1/shape?table=bench&offset=-1".to_owned();
    loop {
        let answer = http.get(&path).await?;
        let header = |name: &str| {
            answer.header(name).map(str::to_owned).ok_or_else(|| format!("no {name}: {}", answer.text()))
        };
        let (handle, offset) = (header("electric-handle")?, header("electric-offset")?);
        if answer.header("electric-up-to-date").is_some() {
            return Ok((handle, offset));
        }
        path = format!("/v1/shape?table=bench&handle={}&offset={offset}", encode(&handle));
    }
}

fn memory(service: &Service) -> Outcome<u64> {
    service.memory_bytes().ok_or_else(|| "the service is gone".into())
}

/// The memory once it stays the same for a second.
async fn settled_memory(service: &Service) -> Outcome<u64> {
    let deadline = Instant::now() + SETTLE_DURATION_MAX;
    let mut last = memory(service)?;
    while Instant::now() < deadline {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let now = memory(service)?;
        if now.abs_diff(last) < 64 * 1024 {
            return Ok(now);
        }
        last = now;
    }
    Ok(last)
}

struct Client {
    address: SocketAddr,
    handle: String,
    offset: String,
    told: mpsc::Sender<Told>,
    open: Arc<tokio::sync::Semaphore>,
}

impl Client {
    /// Follows the shape until the last write.
    async fn follow(mut self, writes: usize) {
        if let Err(error) = self.run(writes).await {
            let _over = self.told.send(Told::Failed(error.to_string())).await;
        }
    }

    async fn run(&mut self, writes: usize) -> Outcome<()> {
        let mut http = HttpClient::new(self.address);
        {
            // A first answer, so that the connection is there when the waiting begins.
            let _place = self.open.acquire().await?;
            http.get("/v1/health").await?;
        }
        self.told.send(Told::Waits).await?;
        let mut cursor = String::new();
        loop {
            let path = format!(
                "/v1/shape?table=bench&handle={}&offset={}&live=true{cursor}",
                encode(&self.handle),
                self.offset
            );
            let answer = http.get(&path).await?;
            let at = Instant::now();
            let header = |name: &str| answer.header(name).map(str::to_owned);
            self.offset = header("electric-offset").ok_or_else(|| answer.text())?;
            cursor = header("electric-cursor").map(|cursor| format!("&cursor={cursor}")).unwrap_or_default();
            for write in written(&answer.text()) {
                self.told.send(Told::Received { write, at }).await?;
                if write + 1 == writes {
                    return Ok(());
                }
            }
        }
    }
}

/// Numbers of the writes in a body.
fn written(body: &str) -> Vec<usize> {
    let rest = body.split(r#""write":""#).skip(1);
    rest.filter_map(|rest| rest.split('"').next()?.parse().ok()).collect()
}

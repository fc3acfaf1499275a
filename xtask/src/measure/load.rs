//! What loads the service: many connections that ask for shapes, clients that follow one, `pg_recvlogical` as what
//! Postgres can do; and who used the processors meanwhile. Times are taken in this process, on one clock.

use std::fmt;
use std::fs;
use std::io::Read;
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::Outcome;
use crate::http::{HttpClient, encode};
use crate::service::Service;
use crate::stage::Stage;

/// Arrivals that wait to be looked at.
const ARRIVALS_MAX: usize = 4_096;
/// Longest wait for anything to arrive.
pub const ARRIVAL_WAIT_MAX: Duration = Duration::from_secs(60);
/// How long one waits to ask again whoever said 503.
const BUSY_PAUSE: Duration = Duration::from_millis(100);
const SLOT: &str = "bench_plain";
/// Kernel ticks in a second: `USER_HZ`, 100 on every Linux that we know.
const TICKS: f64 = 100.0;
/// Stands in front of the number of a write, in a column of its own.
const MARK: &[u8] = b"mark-";
const MARK_DIGITS: usize = 10;

/// The text by which a write is known when it arrives.
#[must_use]
pub fn mark(number: u64) -> String {
    format!("mark-{number:010}")
}

/// The newest mark in what was received.
fn newest_mark(text: &[u8]) -> Option<u64> {
    let at = memchr::memmem::rfind(text, MARK)? + MARK.len();
    std::str::from_utf8(text.get(at..at + MARK_DIGITS)?).ok()?.parse().ok()
}

/// Processor time in seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CpuSeconds {
    pub service: f64,
    pub postgres: f64,
    pub load: f64,
    /// Everything else on the machine: should be next to nothing.
    pub rest: f64,
}

impl fmt::Display for CpuSeconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let CpuSeconds { service, postgres, load, rest } = self;
        write!(f, "cpu: service {service:.2} s, Postgres {postgres:.2} s, load {load:.2} s, rest {rest:.2} s")
    }
}

/// Counts processor time from here on.
#[derive(Debug)]
pub struct CpuClock {
    service: Option<u32>,
    postmaster: Option<u32>,
    begun: [f64; 4],
}

impl CpuClock {
    #[must_use]
    pub fn start(service: &Service, stage: &Stage) -> CpuClock {
        let pid_file = fs::read_to_string(stage.directory().join("postgres/cluster/postmaster.pid"));
        let postmaster = pid_file.ok().and_then(|text| text.lines().next()?.trim().parse().ok());
        let mut clock = CpuClock { service: service.pid(), postmaster, begun: [0.0; 4] };
        clock.begun = clock.now();
        clock
    }

    #[must_use]
    pub fn stop(&self) -> CpuSeconds {
        let now = self.now();
        let [service, postgres, load, all] = std::array::from_fn(|one| (now[one] - self.begun[one]).max(0.0));
        CpuSeconds { service, postgres, load, rest: (all - service - postgres - load).max(0.0) }
    }

    fn now(&self) -> [f64; 4] {
        let service = self.service.map_or(0.0, |pid| ticks_of(pid, false));
        let postgres = self.postmaster.map_or(0.0, |pid| {
            let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
            let alive: f64 = children
                .split_ascii_whitespace()
                .filter_map(|child| child.parse().ok())
                .map(|child| ticks_of(child, false))
                .sum();
            // Those that have ended are counted with the postmaster.
            alive + ticks_of(pid, true)
        });
        let all = fs::read_to_string("/proc/stat").unwrap_or_default();
        let mut fields = all.lines().next().unwrap_or_default().split_ascii_whitespace().skip(1);
        let mut field = || fields.next().and_then(|text| text.parse::<f64>().ok()).unwrap_or(0.0);
        let (user, nice, system, _idle, _wait, irq, soft) =
            (field(), field(), field(), field(), field(), field(), field());
        let busy = user + nice + system + irq + soft;
        [service, postgres, ticks_of(std::process::id(), true), busy].map(|ticks| ticks / TICKS)
    }
}

/// Ticks that a process has used, with those of its children that ended.
fn ticks_of(pid: u32, with_children: bool) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name, in brackets, may contain anything.
    let behind = stat.rsplit_once(") ").map_or("", |(_, behind)| behind);
    let fields: Vec<f64> =
        behind.split_ascii_whitespace().map(|field| field.parse().unwrap_or(0.0)).collect();
    fields.iter().skip(11).take(if with_children { 4 } else { 2 }).sum()
}

/// Does `work` for the numbers from `from` to `to`, over so many connections; how long it took.
///
/// # Errors
/// The first error of `work`.
pub async fn over_connections<W, F>(
    address: SocketAddr,
    connections: u64,
    (from, to): (u64, u64),
    work: W,
) -> Outcome<Duration>
where
    W: Fn(HttpClient, u64) -> F + Clone + Send + 'static,
    F: Future<Output = Outcome<HttpClient>> + Send + 'static,
{
    let begun = Instant::now();
    let next = Arc::new(AtomicU64::new(from));
    let workers: Vec<JoinHandle<Outcome<()>>> = (0..connections)
        .map(|_| {
            let (next, work) = (Arc::clone(&next), work.clone());
            let mut http = HttpClient::new(address);
            tokio::spawn(async move {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= to {
                        return Ok(());
                    }
                    http = work(http, number).await?;
                }
            })
        })
        .collect();
    for worker in workers {
        worker.await??;
    }
    Ok(begun.elapsed())
}

/// One request until it is not refused as too many.
///
/// # Errors
/// The service answers anything but 2xx and 503, or not at all.
pub async fn insist(http: &mut HttpClient, method: &str, path: &str) -> Outcome<crate::http::Response> {
    let begun = Instant::now();
    loop {
        let answer = http.request(method, path, &[], b"").await?;
        match answer.status {
            200..=299 => return Ok(answer),
            503 | 429 if begun.elapsed() < ARRIVAL_WAIT_MAX => tokio::time::sleep(BUSY_PAUSE).await,
            status => return Err(format!("{method} {path}: {status}: {}", answer.text()).into()),
        }
    }
}

/// Reads a shape from its beginning to its end; how many bytes of bodies that were.
///
/// # Errors
/// Those of [`insist`].
pub async fn read_to_end(http: &mut HttpClient, query: &str) -> Outcome<(Place, u64)> {
    let mut place = Place { offset: "-1".to_owned(), handle: String::new(), cursor: String::new() };
    let mut bytes = 0;
    loop {
        let path = format!("/v1/shape?{query}&offset={}&handle={}", place.offset, encode(&place.handle));
        let answer = insist(http, "GET", &path).await?;
        bytes += answer.body.len() as u64;
        place.take(&answer);
        if answer.header("electric-up-to-date").is_some() {
            return Ok((place, bytes));
        }
    }
}

/// How far a client is.
#[derive(Clone, Debug)]
pub struct Place {
    offset: String,
    handle: String,
    cursor: String,
}

impl Place {
    fn take(&mut self, answer: &crate::http::Response) {
        let header = |name: &str| answer.header(name).unwrap_or_default().to_owned();
        (self.offset, self.handle, self.cursor) =
            (header("electric-offset"), header("electric-handle"), header("electric-cursor"));
    }
}

/// A client that follows a shape by long-poll.
#[derive(Debug)]
pub struct Follower {
    arrivals: mpsc::Receiver<(u64, Instant)>,
    task: JoinHandle<()>,
}

impl Follower {
    /// Reads the shape to its end, then follows it.
    ///
    /// # Errors
    /// Those of [`read_to_end`].
    pub async fn start(address: SocketAddr, query: &str) -> Outcome<Follower> {
        let mut http = HttpClient::new(address);
        let (mut place, _) = read_to_end(&mut http, query).await?;
        let (tell, arrivals) = mpsc::channel(ARRIVALS_MAX);
        let query = query.to_owned();
        let task = tokio::spawn(async move {
            loop {
                let (offset, cursor) = (&place.offset, &place.cursor);
                let path = format!(
                    "/v1/shape?{query}&offset={offset}&handle={}&live=true&cursor={cursor}",
                    encode(&place.handle)
                );
                let Ok(answer) = http.get(&path).await else { return };
                let at = Instant::now();
                if let Some(number) = newest_mark(&answer.body)
                    && tell.send((number, at)).await.is_err()
                {
                    return;
                }
                place.take(&answer);
            }
        });
        Ok(Follower { arrivals, task })
    }

    /// When the write of that number had arrived.
    ///
    /// # Errors
    /// It does not, or the client broke.
    pub async fn arrived(&mut self, number: u64) -> Outcome<Instant> {
        arrived(&mut self.arrivals, number).await
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn arrived(arrivals: &mut mpsc::Receiver<(u64, Instant)>, number: u64) -> Outcome<Instant> {
    let waited = async {
        loop {
            match arrivals.recv().await {
                Some((seen, at)) if seen >= number => return Ok(at),
                Some(_) => {}
                None => return Err("a receiver has ended".into()),
            }
        }
    };
    let late = |_| format!("write {number} did not arrive in {} s", ARRIVAL_WAIT_MAX.as_secs());
    tokio::time::timeout(ARRIVAL_WAIT_MAX, waited).await.map_err(late)?
}

/// `pg_recvlogical` on a slot of its own, read through a pipe: a commit cannot reach anybody sooner.
#[derive(Debug)]
pub struct Recvlogical {
    child: Child,
    arrivals: mpsc::Receiver<(u64, Instant)>,
}

impl Recvlogical {
    /// # Errors
    /// Postgres refuses the slot, or the program is missing.
    pub async fn start(stage: &Stage, stream_id: &str) -> Outcome<Recvlogical> {
        let program = stage.postgres.installation().program("pg_recvlogical")?;
        stage.sql.execute("SELECT pg_create_logical_replication_slot($1, 'pgoutput')", &[&SLOT]).await?;
        let mut child = Command::new(program)
            .args(["--slot", SLOT, "--start", "--no-loop", "-f", "-", "-d", &stage.url()])
            .args(["-o", "proto_version=1", "-o"])
            .arg(format!("publication_names=electric_publication_{stream_id}"))
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()?;
        let mut stdout = child.stdout.take().ok_or("pg_recvlogical has no output")?;
        let (tell, arrivals) = mpsc::channel(ARRIVALS_MAX);
        std::thread::spawn(move || {
            let mut buffer = vec![0; 1 << 16];
            while let Ok(read) = stdout.read(&mut buffer) {
                let at = Instant::now();
                if read == 0 {
                    return;
                }
                if let Some(number) = newest_mark(&buffer[..read])
                    && tell.blocking_send((number, at)).is_err()
                {
                    return;
                }
            }
        });
        Ok(Recvlogical { child, arrivals })
    }

    /// When the write of that number had arrived.
    ///
    /// # Errors
    /// It does not.
    pub async fn arrived(&mut self, number: u64) -> Outcome<Instant> {
        arrived(&mut self.arrivals, number).await
    }

    /// Ends it and drops its slot, so that Postgres keeps nothing for it.
    ///
    /// # Errors
    /// The slot cannot be dropped.
    pub async fn end(mut self, stage: &Stage) -> Outcome<()> {
        self.stop();
        let begun = Instant::now();
        loop {
            let dropped = stage
                .sql
                .execute(
                    "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = $1 AND NOT active",
                    &[&SLOT],
                )
                .await?;
            if dropped > 0 {
                return Ok(());
            }
            if begun.elapsed() > ARRIVAL_WAIT_MAX {
                return Err("pg_recvlogical does not let go of its slot".into());
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    fn stop(&mut self) {
        // It has nothing to lose.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Recvlogical {
    fn drop(&mut self) {
        self.stop();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_mark_is_found() {
        let text = format!("a{}b{}c", mark(7), mark(12));
        assert_eq!(newest_mark(text.as_bytes()), Some(12));
        assert_eq!(newest_mark(b"mark-12"), None, "cut short");
        assert_eq!(newest_mark(b"none"), None);
    }

    #[test]
    fn processor_time_of_this_process_grows() {
        let before = ticks_of(std::process::id(), false);
        let mut sum = 0_u64;
        while ticks_of(std::process::id(), false) <= before {
            sum = (0..100_000_u64).fold(sum, |sum, one| sum ^ one.wrapping_mul(31));
        }
        assert_ne!(sum, 1);
    }
}

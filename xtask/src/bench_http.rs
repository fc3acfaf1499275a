//! `bench-http`: many live clients on one shape, one write a second. What a waiting client costs in
//! memory, and how long a commit takes to reach all of them.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::Outcome;
use crate::crowd::{self, Asked, Receipt, Told, Way};
use crate::fanout::{Plain, wait_for};
use crate::http::{HttpClient, encode};
use crate::service::Service;
use crate::stage::{Stage, report};

/// Resident memory of the service for each long-poll client that waits.
const WAITING_BYTES_MAX: f64 = 11.0 * 1024.0;
/// How long all clients may take to be where they should be.
const SETTLE_DURATION_MAX: Duration = Duration::from_secs(120);
/// What a commit may take longer to a client than to `pg_recvlogical`: the median, the 99th percentile.
const ABOVE_PLAIN_MAX: (Duration, Duration) = (Duration::from_micros(500), Duration::from_millis(3));
/// Commits of a round with one client.
const SAMPLES: usize = 1_000;
/// The pause after each, in which a client asks again.
const PAUSE: Duration = Duration::from_millis(4);
/// How often it is looked whether they are.
const LOOK_INTERVAL: Duration = Duration::from_millis(5);
/// Writes before those that count.
const WARM_UP: usize = 2;
/// Jiffies a second, of `/proc/<pid>/stat`: the kernel's `USER_HZ`.
const JIFFIES: f64 = 100.0;

#[derive(Clone, Copy, Debug)]
pub struct BenchHttpOptions {
    /// Clients of the only round; without it, all rounds of the issue.
    pub clients: Option<usize>,
    /// They follow by server-sent events.
    pub events: bool,
    /// Writes that count, one a second.
    pub writes: usize,
    pub json: bool,
    pub postgres: Option<u32>,
}

/// A number of clients, and what is wanted of it.
#[derive(Clone, Copy, Debug)]
struct Round {
    clients: usize,
    way: Way,
    /// Milliseconds at most: the median to a client, and the 99th percentile to the last one.
    wanted: Option<(f64, f64)>,
}

const fn round(clients: usize, way: Way, wanted: Option<(f64, f64)>) -> Round {
    Round { clients, way, wanted }
}

const ROUNDS: [Round; 7] = [
    round(1, Way::LongPoll, None),
    round(1, Way::Events, None),
    round(1_000, Way::LongPoll, Some((10.0, 40.0))),
    round(1_000, Way::Events, Some((10.0, 40.0))),
    round(5_000, Way::LongPoll, Some((40.0, 150.0))),
    round(5_000, Way::Events, Some((40.0, 150.0))),
    round(15_000, Way::LongPoll, None),
];

pub async fn run(options: BenchHttpOptions) -> Outcome<bool> {
    raise_descriptors()?;
    let stage = Stage::open("bench-http", options.postgres).await?;
    let only = options.clients.map(|clients| {
        let way = if options.events { Way::Events } else { Way::LongPoll };
        let known = ROUNDS.iter().find(|round| round.clients == clients && round.way == way);
        vec![round(clients, way, known.and_then(|round| round.wanted))]
    });
    let mut passed = true;
    for (number, round) in only.unwrap_or_else(|| ROUNDS.to_vec()).into_iter().enumerate() {
        passed &= match round.clients {
            1 => run_single(&stage, number, round.way, options).await?,
            _ => run_round(&stage, number, round, options).await?,
        };
    }
    Ok(passed)
}

/// One descriptor for each client, here as well.
fn raise_descriptors() -> Outcome<()> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    Ok(setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })?)
}

/// A service, and clients that follow a table of one row.
struct Followed {
    service: Service,
    told: Arc<Told>,
    crowd: std::thread::JoinHandle<Outcome<Vec<Receipt>>>,
    /// Memory of the service before the clients came, bytes.
    before: u64,
}

fn stream_id(number: usize) -> String {
    format!("bench_{number}")
}

/// Starts both, with a data directory of their own for each round.
async fn follow(stage: &Stage, number: usize, clients: usize, way: Way) -> Outcome<Followed> {
    stage.sql.batch_execute("DROP TABLE IF EXISTS bench").await?;
    let columns = "id int PRIMARY KEY, write int NOT NULL, mark text";
    stage.sql.batch_execute(&format!("CREATE TABLE bench ({columns})")).await?;
    stage.sql.batch_execute("INSERT INTO bench VALUES (1, -1)").await?;
    let mut settings = stage.service_settings(&stream_id(number));
    settings.data_dir = stage.directory().join(format!("data-{number}"));
    settings.set("ELECTRIC_MAX_CONCURRENT_REQUESTS", r#"{"initial":20000,"existing":20000}"#);
    let service = Service::start(settings).await?;
    let (handle, offset) = tail(&mut HttpClient::new(service.address())).await?;
    let before = settled_memory(&service).await?;
    println!("{clients} clients, {way:?}");
    let asked = Asked { address: service.address(), handle, offset, way, clients };
    let told = Arc::new(Told::default());
    let crowd = {
        let told = Arc::clone(&told);
        std::thread::spawn(move || {
            let followed = crowd::follow(&asked, &told);
            if let Err(error) = &followed {
                println!("the clients: {error}");
            }
            followed
        })
    };
    Ok(Followed { service, told, crowd, before })
}

/// One client beside `pg_recvlogical`, for the same commits.
async fn run_single(stage: &Stage, number: usize, way: Way, options: BenchHttpOptions) -> Outcome<bool> {
    let Followed { mut service, told, crowd, .. } = follow(stage, number, 1, way).await?;
    let mut plain = Plain::start(stage, &stream_id(number)).await?;
    let (mut begun, mut theirs) = (Vec::new(), Vec::new());
    for write in 0..SAMPLES + WARM_UP {
        let mark = write + 1;
        let sql = format!("UPDATE bench SET write = {write}, mark = 'mark-{mark:010}' WHERE id = 1");
        let at = Instant::now();
        stage.sql.batch_execute(&sql).await?;
        let arrived = wait_for(&mut plain.arrivals, mark as u64);
        let arrived =
            tokio::time::timeout(SETTLE_DURATION_MAX, arrived).await.map_err(|_| "no commit came")??;
        begun.push(at);
        if write >= WARM_UP {
            theirs.push(arrived.saturating_duration_since(at));
        }
        until(&crowd, || told.received.load(Ordering::Relaxed) > write).await?;
        tokio::time::sleep(PAUSE).await;
    }
    told.stop.store(true, Ordering::Relaxed);
    let receipts = crowd.join().map_err(|_| "the crowd's thread panicked")??;
    service.terminate().await;
    theirs.sort_unstable();
    let ours = Figures::new(&begun, &receipts, 1).each;
    let shown = |times: &[Duration]| (milliseconds(times, 0.5), milliseconds(times, 0.99));
    let ((p50, p99), (plain_p50, plain_p99)) = (shown(&ours), shown(&theirs));
    println!("shapefold          {p50:>9.2} ms p50 {p99:>9.2} ms p99");
    println!("pg_recvlogical     {plain_p50:>9.2} ms p50 {plain_p99:>9.2} ms p99");
    if options.json {
        let line = serde_json::json!({"bench": "http", "clients": 1, "way": format!("{way:?}"),
            "p50_ms": p50, "p99_ms": p99, "recvlogical_p50_ms": plain_p50, "recvlogical_p99_ms": plain_p99});
        println!("{line}");
    }
    let (p50_max, p99_max) = (ABOVE_PLAIN_MAX.0.as_secs_f64() * 1e3, ABOVE_PLAIN_MAX.1.as_secs_f64() * 1e3);
    let passed = report(p50 - plain_p50 <= p50_max, &format!("p50 at most {p50_max} ms above"));
    Ok(passed & report(p99 - plain_p99 <= p99_max, &format!("p99 at most {p99_max} ms above")))
}

async fn run_round(stage: &Stage, number: usize, round: Round, options: BenchHttpOptions) -> Outcome<bool> {
    let Followed { mut service, told, crowd, before } =
        follow(stage, number, round.clients, round.way).await?;
    until(&crowd, || told.connected.load(Ordering::Relaxed) == round.clients).await?;
    // They have written their requests; the service has read them when nothing grows any more.
    let opened = settled_memory(&service).await?;

    let cpu_before = cpu_seconds(&service)?;
    let mut commits = Vec::with_capacity(WARM_UP + options.writes);
    for write in 0..WARM_UP + options.writes {
        let begun = Instant::now();
        stage.sql.batch_execute(&format!("UPDATE bench SET write = {write} WHERE id = 1")).await?;
        commits.push(Instant::now());
        let all = (write + 1) * round.clients;
        until(&crowd, || told.received.load(Ordering::Relaxed) >= all).await?;
        tokio::time::sleep_until((begun + Duration::from_secs(1)).into()).await;
    }
    let cpu = cpu_seconds(&service)? - cpu_before;
    let answered = settled_memory(&service).await?;
    told.stop.store(true, Ordering::Relaxed);
    let receipts = crowd.join().map_err(|_| "the crowd's thread panicked")??;
    service.terminate().await;
    let figures = Figures::new(&commits, &receipts, round.clients);
    let memory = Memory { before, opened, answered };
    Ok(figures.tell(round, memory, cpu / receipts.len() as f64, options.json))
}

/// Resident memory of the service, bytes.
#[derive(Clone, Copy, Debug)]
struct Memory {
    /// Without clients.
    before: u64,
    /// All wait for the first time.
    opened: u64,
    /// All wait again, after the last write.
    answered: u64,
}

impl Memory {
    /// For each client, in the worse of both cases.
    fn each(self, clients: usize) -> f64 {
        self.opened.max(self.answered).saturating_sub(self.before) as f64 / clients as f64
    }
}

/// Times from a commit, sorted.
struct Figures {
    /// To each client.
    each: Vec<Duration>,
    /// To the last one, by write.
    last: Vec<Duration>,
}

impl Figures {
    fn new(commits: &[Instant], receipts: &[Receipt], clients: usize) -> Figures {
        let mut by_write = vec![Vec::with_capacity(clients); commits.len()];
        for Receipt { write, at } in receipts {
            let write = *write as usize;
            if let Some(committed) = commits.get(write) {
                by_write[write].push(at.saturating_duration_since(*committed));
            }
        }
        let counted = by_write.split_off(WARM_UP.min(by_write.len()));
        let mut last: Vec<Duration> =
            counted.iter().filter_map(|times| times.iter().max()).copied().collect();
        let mut each: Vec<Duration> = counted.into_iter().flatten().collect();
        each.sort_unstable();
        last.sort_unstable();
        Figures { each, last }
    }

    fn tell(&self, round: Round, memory: Memory, cpu_each: f64, json: bool) -> bool {
        let each_memory = memory.each(round.clients);
        let (p50, p99) = (milliseconds(&self.each, 0.5), milliseconds(&self.each, 0.99));
        let (last_p50, last_p99) = (milliseconds(&self.last, 0.5), milliseconds(&self.last, 0.99));
        let Memory { before, opened, answered } = memory;
        let megabytes = |bytes: u64| bytes as f64 / 1e6;
        println!("memory             {:>9.1} MB without clients", megabytes(before));
        println!("                   {:>9.1} MB when all wait", megabytes(opened));
        println!("                   {:>9.1} MB after {} writes", megabytes(answered), self.last.len());
        println!("each client        {:>9.1} KB", each_memory / 1024.0);
        println!("commit to a client {p50:>9.1} ms p50 {p99:>9.1} ms p99");
        println!("commit to the last {last_p50:>9.1} ms p50 {last_p99:>9.1} ms p99");
        println!("service            {:>9.1} us of CPU for each answer", cpu_each * 1e6);
        if json {
            let line = serde_json::json!({"bench": "http", "clients": round.clients,
                "way": format!("{:?}", round.way), "writes": self.last.len(),
                "bytes_per_client": each_memory, "p50_ms": p50, "p99_ms": p99,
                "last_p50_ms": last_p50, "last_p99_ms": last_p99, "cpu_us_each": cpu_each * 1e6});
            println!("{line}");
        }
        let mut passed = true;
        if round.way == Way::LongPoll && round.clients >= 5_000 {
            passed &= report(each_memory <= WAITING_BYTES_MAX, "at most 11 KB for each client that waits");
        }
        if let Some((p50_max, last_max)) = round.wanted {
            passed &= report(p50 <= p50_max, &format!("p50 to a client at most {p50_max} ms"));
            passed &= report(last_p99 <= last_max, &format!("p99 to the last at most {last_max} ms"));
        }
        passed
    }
}

/// The value below which that part of the sorted values is.
fn milliseconds(sorted: &[Duration], part: f64) -> f64 {
    let index = (sorted.len().saturating_sub(1) as f64 * part).round() as usize;
    sorted.get(index).map_or(f64::NAN, |value| value.as_secs_f64() * 1e3)
}

/// Waits for something that the crowd has told.
async fn until(
    crowd: &std::thread::JoinHandle<Outcome<Vec<Receipt>>>,
    reached: impl Fn() -> bool,
) -> Outcome<()> {
    let deadline = Instant::now() + SETTLE_DURATION_MAX;
    while !reached() {
        if crowd.is_finished() {
            return Err("the clients gave up".into());
        }
        if Instant::now() > deadline {
            return Err("not all clients are where they should be".into());
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
    Ok(())
}

/// User and system time of the service so far, seconds.
fn cpu_seconds(service: &Service) -> Outcome<f64> {
    let pid = service.pid().ok_or("the service is gone")?;
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    let jiffies: f64 = fields.skip(11).take(2).filter_map(|field| field.parse::<f64>().ok()).sum();
    Ok(jiffies / JIFFIES)
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

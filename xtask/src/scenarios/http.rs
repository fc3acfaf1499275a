//! `bench-http`: live clients on one shape. One, beside `pg_recvlogical`; thousands, with one write a second. What a
//! waiting client costs in memory, and how long a commit takes to reach all of them.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::Outcome;
use crate::crowd::{self, Asked, Receipt, Told, Way};
use crate::http::{HttpClient, encode};
use crate::measure::load::{CpuClock, Recvlogical, mark};
use crate::measure::{Latencies, Limit, Point, Run};
use crate::service::Service;
use crate::stage::Stage;

use super::Common;

/// Issue 7, milliseconds above `pg_recvlogical`: the median, the 99th percentile.
const ABOVE_PLAIN_MS_MAX: (f64, f64) = (0.5, 3.0);
/// Issue 7: a waiting client, and a service without clients.
const WAITING_KB_MAX: f64 = 11.0;
const IDLE_MB_MAX: f64 = 25.0;
/// How long all clients may take to be where they should be.
const SETTLE_DURATION_MAX: Duration = Duration::from_secs(120);
/// Commits of a round with one client.
const SAMPLES: usize = 1_000;
/// The pause after each, in which a client asks again.
const PAUSE: Duration = Duration::from_millis(4);
/// How often it is looked whether they are.
const LOOK_INTERVAL: Duration = Duration::from_millis(5);
/// Writes before those that count.
const WARM_UP: usize = 2;
/// From so many on, the memory of each is asked about.
const MANY: usize = 5_000;

/// What the command line says.
#[derive(Clone, Copy, Debug)]
pub struct HttpOptions {
    /// Clients of the only round; without it, all rounds of the issue.
    pub clients: Option<usize>,
    /// They follow by server-sent events.
    pub events: bool,
    /// Writes that count, one a second.
    pub writes: usize,
    pub common: Common,
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

/// Runs the rounds; whether every limit was kept.
pub async fn run(options: HttpOptions) -> Outcome<bool> {
    raise_descriptors()?;
    let stage = Stage::open("bench-http", options.common.postgres).await?;
    let mut run = Run::begin("http", options.common.keep, Some(stage.postgres.installation().major))?;
    let only = options.clients.map(|clients| {
        let way = if options.events { Way::Events } else { Way::LongPoll };
        let known = ROUNDS.iter().find(|round| round.clients == clients && round.way == way);
        vec![round(clients, way, known.and_then(|round| round.wanted))]
    });
    for (number, round) in only.unwrap_or_else(|| ROUNDS.to_vec()).into_iter().enumerate() {
        let followed = follow(&stage, number, round).await?;
        if number == 0 {
            let idle = followed.before as f64 / 1e6;
            run.note(Point::new("idle service", idle, "MB").at_most(IDLE_MB_MAX));
        }
        match round.clients {
            1 => run_single(&mut run, &stage, followed, round).await?,
            _ => run_crowd(&mut run, &stage, followed, round, options.writes).await?,
        }
    }
    run.finish()
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
    stream_id: String,
    told: Arc<Told>,
    crowd: JoinHandle<Outcome<Vec<Receipt>>>,
    /// Memory of the service before the clients came, bytes.
    before: u64,
}

/// Starts both, with a data directory of their own for each round.
async fn follow(stage: &Stage, number: usize, round: Round) -> Outcome<Followed> {
    stage.sql.batch_execute("DROP TABLE IF EXISTS bench").await?;
    let columns = "id int PRIMARY KEY, write int NOT NULL, mark text";
    stage.sql.batch_execute(&format!("CREATE TABLE bench ({columns})")).await?;
    stage.sql.batch_execute("INSERT INTO bench VALUES (1, -1)").await?;
    let stream_id = format!("bench_{number}");
    let mut settings = stage.service_settings(&stream_id);
    settings.data_dir = stage.directory().join(format!("data-{number}"));
    settings.set("ELECTRIC_MAX_CONCURRENT_REQUESTS", r#"{"initial":20000,"existing":20000}"#);
    let service = Service::start(settings).await?;
    let (handle, offset) = tail(&mut HttpClient::new(service.address())).await?;
    let before = settled_memory(&service).await?;
    let asked = Asked { address: service.address(), handle, offset, way: round.way, clients: round.clients };
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
    Ok(Followed { service, stream_id, told, crowd, before })
}

/// One client beside `pg_recvlogical`, for the same commits.
async fn run_single(run: &mut Run, stage: &Stage, followed: Followed, round: Round) -> Outcome<()> {
    let Followed { mut service, stream_id, told, crowd, .. } = followed;
    let mut plain = Recvlogical::start(stage, &stream_id).await?;
    let (mut commits, mut theirs) = (Vec::new(), Latencies::default());
    let cpu = CpuClock::start(&service, stage);
    for write in 0..SAMPLES + WARM_UP {
        let number = write as u64 + 1;
        let sql = format!("UPDATE bench SET write = {write}, mark = '{}' WHERE id = 1", mark(number));
        stage.sql.batch_execute(&sql).await?;
        let committed = Instant::now();
        commits.push(committed);
        let arrived = plain.arrived(number).await?;
        if write >= WARM_UP {
            theirs.add(arrived.saturating_duration_since(committed));
        }
        until(&crowd, || told.received.load(Ordering::Relaxed) > write).await?;
        tokio::time::sleep(PAUSE).await;
    }
    let cpu = cpu.stop();
    told.stop.store(true, Ordering::Relaxed);
    let receipts = crowd.join().map_err(|_| "the crowd's thread panicked")??;
    plain.end(stage).await?;
    service.terminate().await;
    let ours = Reached::new(&commits, &receipts).each;
    let (p99, plain) = (ours.percentiles().p99_ms, theirs.percentiles());
    let of_round = |point: Point| point.with(way_text(round.way), 1);
    run.note(
        of_round(Point::latency("commit to one client, p50", &ours))
            .beside("pg_recvlogical", plain.p50_ms)
            .limited(Limit::ExtraMax(ABOVE_PLAIN_MS_MAX.0))
            .costing(cpu),
    );
    run.note(
        of_round(Point::new("commit to one client, p99", p99, "ms"))
            .beside("pg_recvlogical", plain.p99_ms)
            .limited(Limit::ExtraMax(ABOVE_PLAIN_MS_MAX.1)),
    );
    Ok(())
}

async fn run_crowd(
    run: &mut Run,
    stage: &Stage,
    followed: Followed,
    round: Round,
    writes: usize,
) -> Outcome<()> {
    let Followed { mut service, told, crowd, before, .. } = followed;
    let Round { clients, way, wanted } = round;
    until(&crowd, || told.connected.load(Ordering::Relaxed) == clients).await?;
    // They have written their requests; the service has read them when nothing grows any more.
    let opened = settled_memory(&service).await?;
    let cpu = CpuClock::start(&service, stage);
    let mut commits = Vec::with_capacity(WARM_UP + writes);
    for write in 0..WARM_UP + writes {
        // Before it, not after it: when thousands of answers are on their way, this thread would be late to see
        // that the commit is acknowledged.
        let begun = Instant::now();
        commits.push(begun);
        stage.sql.batch_execute(&format!("UPDATE bench SET write = {write} WHERE id = 1")).await?;
        let all = (write + 1) * clients;
        until(&crowd, || told.received.load(Ordering::Relaxed) >= all).await?;
        tokio::time::sleep_until((begun + Duration::from_secs(1)).into()).await;
    }
    let cpu = cpu.stop();
    let answered = settled_memory(&service).await?;
    told.stop.store(true, Ordering::Relaxed);
    let receipts = crowd.join().map_err(|_| "the crowd's thread panicked")??;
    service.terminate().await;
    let Reached { each, last } = Reached::new(&commits, &receipts);
    let of_round = |point: Point| point.with(way_text(way), clients as u64);
    let limited = |point: Point, most: Option<f64>| match most {
        Some(most) => point.at_most(most),
        None => point,
    };
    let to_each = of_round(Point::latency("commit to a client, p50", &each)).costing(cpu);
    run.note(limited(to_each, wanted.map(|(p50, _)| p50)));
    let to_last = of_round(Point::new("commit to the last, p99", last.percentiles().p99_ms, "ms"));
    run.note(limited(to_last, wanted.map(|(_, p99)| p99)));
    // In the worse of both cases: all wait for the first time, or again.
    let memory = opened.max(answered).saturating_sub(before) as f64 / clients as f64 / 1024.0;
    let waits = way == Way::LongPoll && clients >= MANY;
    let memory = of_round(Point::new("memory of a client that waits", memory, "KB"));
    run.note(limited(memory, waits.then_some(WAITING_KB_MAX)));
    let micros = cpu.service * 1e6 / receipts.len() as f64;
    run.note(of_round(Point::new("processor time of an answer", micros, "us")));
    Ok(())
}

fn way_text(way: Way) -> &'static str {
    match way {
        Way::LongPoll => "by long-poll",
        Way::Events => "by events",
    }
}

/// Times from a commit.
struct Reached {
    /// To each client.
    each: Latencies,
    /// To the last one.
    last: Latencies,
}

impl Reached {
    fn new(commits: &[Instant], receipts: &[Receipt]) -> Reached {
        let (mut each, mut last) = (Latencies::default(), vec![Duration::ZERO; commits.len()]);
        for Receipt { write, at } in receipts {
            let write = *write as usize;
            if write >= WARM_UP
                && let Some(committed) = commits.get(write)
            {
                let took = at.saturating_duration_since(*committed);
                each.add(took);
                last[write] = last[write].max(took);
            }
        }
        let mut to_last = Latencies::default();
        last.into_iter().skip(WARM_UP).for_each(|took| to_last.add(took));
        Reached { each, last: to_last }
    }
}

/// Waits for something that the crowd has told.
async fn until(crowd: &JoinHandle<Outcome<Vec<Receipt>>>, reached: impl Fn() -> bool) -> Outcome<()> {
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

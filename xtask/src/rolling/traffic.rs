//! The traffic during rolling deploys: writers, clients over all shapes, and a beat whose arrival is timed.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_postgres::Client;

use super::Setup;
use crate::Outcome;
use crate::compare::Table;
use crate::postgres::connect;
use crate::shape_client::{ClientError, ShapeClient, ShapeRequest};
use crate::soak::Follower;
use crate::workload::{SCHEMA, Writer, shapes};

const WRITERS: u64 = 2;
/// Between two transactions of a writer, at most.
const WRITE_PAUSE_MS: u64 = 60;
/// Between two beats.
const BEAT_INTERVAL: Duration = Duration::from_millis(20);
const BEATS: Table = Table { name: "beats", primary_key: &["id"] };
/// Clients that follow the beat. Even ones stay where they are until it fails them.
const BEAT_CLIENTS: usize = 4;
/// What a client does after an answer that is no use: the next target may be better.
const RETRY_PAUSE: Duration = Duration::from_millis(50);
/// How long clients may take to see what was committed.
const ARRIVE_DURATION_MAX: Duration = Duration::from_secs(60);
/// The texts of contract 6.6 begin like this, and those of 1.6 for a shape that is not ready.
const DOCUMENTED: [&str; 3] =
    ["Timeout waiting for", "Failed to create shape", "Cannot connect to the database"];

/// Makes the tables.
pub async fn prepare(sql: &Client) -> Outcome<()> {
    sql.batch_execute(SCHEMA).await?;
    Ok(sql.batch_execute("CREATE TABLE beats (id bigint PRIMARY KEY)").await?)
}

/// What was counted.
#[derive(Clone, Debug, Default)]
pub struct Counts {
    pub unavailable: u64,
    pub broken: u64,
    pub forbidden: Vec<String>,
    pub transactions: u64,
}

/// Everything that runs beside the deploys.
pub struct Traffic {
    stop: watch::Sender<bool>,
    writers: Vec<JoinHandle<Outcome<()>>>,
    clients: Vec<JoinHandle<Follower>>,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    counts: Mutex<Counts>,
    /// When each beat was committed; the first has id 1.
    beats: Mutex<Vec<Instant>>,
    /// Arrivals: of which beat, and how long after its commit, for each client.
    arrivals: Mutex<Vec<(usize, Duration)>>,
    /// Highest beat that each client has.
    reached: [AtomicU64; BEAT_CLIENTS],
    transactions: AtomicU64,
    begun: AtomicU64,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Traffic {
    pub async fn start(setup: &Setup, addresses: [SocketAddr; 2]) -> Outcome<Self> {
        let (stop, stopped) = watch::channel(false);
        let shared = Arc::new(Shared::default());
        let mut writers = Vec::new();
        for number in 0..WRITERS {
            let random = StdRng::seed_from_u64(setup.seed.wrapping_add(number));
            let writer = Writer::new(random, number, WRITERS);
            let session = connect(&setup.database_url).await?;
            writers.push(tokio::spawn(write(writer, session, Arc::clone(&shared), stopped.clone())));
        }
        let session = connect(&setup.database_url).await?;
        writers.push(tokio::spawn(beat(session, Arc::clone(&shared), stopped.clone())));
        let beats = (0..BEAT_CLIENTS).map(|number| (Some(number), BEATS, ShapeRequest::table("beats")));
        let others = shapes().into_iter().map(|(table, request)| (None, table, request));
        let clients = beats
            .chain(others)
            .enumerate()
            .map(|(number, (beats, table, request))| {
                let client = Balanced {
                    follower: Follower {
                        table,
                        client: ShapeClient::new(addresses[0], request),
                        refusals: Vec::new(),
                    },
                    addresses,
                    at: 0,
                    sticks: number % 2 == 0,
                    random: StdRng::seed_from_u64(setup.seed ^ number as u64),
                    beats,
                };
                tokio::spawn(client.run(Arc::clone(&shared), stopped.clone()))
            })
            .collect();
        Ok(Self { stop, writers, clients, shared })
    }

    /// Waits until every client has its shape.
    pub async fn everybody_has_begun(&self) -> Outcome<()> {
        let deadline = Instant::now() + ARRIVE_DURATION_MAX;
        while self.shared.begun.load(Ordering::Relaxed) < self.clients.len() as u64 {
            if Instant::now() > deadline {
                return Err("not every client has got its shape".into());
            }
            tokio::time::sleep(RETRY_PAUSE).await;
        }
        Ok(())
    }

    /// The longest that a beat committed after `since`, or just before, took to a client. Waits until what
    /// was committed before the call has arrived everywhere.
    pub async fn longest_delivery_since(&self, since: Instant) -> Outcome<Duration> {
        let committed = lock(&self.shared.beats).len() as u64;
        let deadline = Instant::now() + ARRIVE_DURATION_MAX;
        while self.shared.reached.iter().any(|reached| reached.load(Ordering::Acquire) < committed) {
            if Instant::now() > deadline {
                return Err("a live client has not been told of a commit".into());
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let beats = lock(&self.shared.beats).clone();
        // One that was on its way when the signal came is delayed by it, too.
        let from = since.checked_sub(Duration::from_millis(200)).unwrap_or(since);
        let arrivals = lock(&self.shared.arrivals);
        let delays = arrivals.iter().filter(|(beat, _)| beats[*beat] >= from).map(|(_, delay)| *delay);
        Ok(delays.max().unwrap_or_default())
    }

    /// Ends the writing; the clients stay where they are.
    pub async fn stop(self) -> Outcome<(Vec<Follower>, Counts)> {
        self.stop.send_replace(true);
        for writer in self.writers {
            writer.await??;
        }
        let mut followers = Vec::new();
        for client in self.clients {
            followers.push(client.await?);
        }
        let transactions = self.shared.transactions.load(Ordering::Relaxed);
        Ok((followers, Counts { transactions, ..lock(&self.shared.counts).clone() }))
    }
}

async fn write(
    mut writer: Writer,
    session: Client,
    shared: Arc<Shared>,
    stopped: watch::Receiver<bool>,
) -> Outcome<()> {
    while !*stopped.borrow() {
        let transaction = writer.next_transaction();
        session
            .batch_execute(&transaction.sql)
            .await
            .map_err(|error| format!("the workload's own SQL failed: {error:?}"))?;
        writer.done(transaction);
        shared.transactions.fetch_add(1, Ordering::Relaxed);
        let pause = rand::rng().random_range(0..WRITE_PAUSE_MS);
        tokio::time::sleep(Duration::from_millis(pause)).await;
    }
    Ok(())
}

async fn beat(session: Client, shared: Arc<Shared>, stopped: watch::Receiver<bool>) -> Outcome<()> {
    let mut id = 0_i64;
    while !*stopped.borrow() {
        id += 1;
        // The time before the commit: what arrives is never earlier.
        let begun = Instant::now();
        lock(&shared.beats).push(begun);
        session.execute("INSERT INTO beats VALUES ($1)", &[&id]).await?;
        shared.transactions.fetch_add(1, Ordering::Relaxed);
        tokio::time::sleep(BEAT_INTERVAL).await;
    }
    Ok(())
}

/// A client behind a balancer that knows two targets.
struct Balanced {
    follower: Follower,
    addresses: [SocketAddr; 2],
    at: usize,
    /// Stays with a target until it fails; others are spread at random.
    sticks: bool,
    random: StdRng,
    /// Which of those that follow the beat.
    beats: Option<usize>,
}

impl Balanced {
    async fn run(mut self, shared: Arc<Shared>, mut stopped: watch::Receiver<bool>) -> Follower {
        let mut has_begun = false;
        loop {
            let outcome = tokio::select! {
                _ = stopped.wait_for(|stopped| *stopped) => return self.follower,
                outcome = self.follower.client.step() => outcome,
            };
            match outcome {
                Ok(()) => {
                    if !has_begun && self.follower.client.handle().is_some() {
                        has_begun = true;
                        shared.begun.fetch_add(1, Ordering::Relaxed);
                    }
                    self.arrived(&shared);
                    if !self.sticks && self.random.random_bool(0.3) {
                        let target = self.random.random_range(0..2);
                        self.go_to(target);
                    }
                }
                Err(error) => {
                    self.count(&shared, error);
                    self.go_to(1 - self.at);
                    tokio::time::sleep(RETRY_PAUSE).await;
                }
            }
        }
    }

    fn go_to(&mut self, target: usize) {
        if target != self.at {
            self.at = target;
            self.follower.client.redirect(self.addresses[target]);
        }
    }

    /// Ids are dense and committed in order: their number is the highest.
    fn arrived(&self, shared: &Shared) {
        let Some(number) = self.beats else { return };
        let now = Instant::now();
        let has = self.follower.client.rows().len();
        let had = usize::try_from(shared.reached[number].load(Ordering::Acquire)).unwrap_or(0);
        if has <= had {
            return;
        }
        let beats = lock(&shared.beats);
        lock(&shared.arrivals).extend((had..has).map(|beat| (beat, now.duration_since(beats[beat]))));
        shared.reached[number].store(has as u64, Ordering::Release);
    }

    fn count(&mut self, shared: &Shared, error: ClientError) {
        match error {
            ClientError::Refused(reason) => self.follower.refusals.push(reason),
            ClientError::Unavailable(reason) => {
                let mut counts = lock(&shared.counts);
                match reason.strip_prefix("status ") {
                    None => counts.broken += 1,
                    Some(text) => {
                        let documented = text.starts_with("503")
                            && DOCUMENTED.iter().any(|message| text.contains(message));
                        if documented {
                            counts.unavailable += 1;
                        } else {
                            counts.forbidden.push(reason);
                        }
                    }
                }
            }
        }
    }
}

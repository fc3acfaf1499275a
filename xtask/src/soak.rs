//! `soak`: random transactions over many shapes while the service is killed again and again.
//!
//! At the end every client's rows must equal SQL, no client may have seen what the contract rules
//! out, every 409 must have its cause in the journal, and the journal must verify.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_postgres::Client;

use crate::compare::{Table, difference, rows_in_postgres};
use crate::service::{Service, ServiceSettings};
use crate::shape_client::{ClientError, ShapeClient, ShapeRequest};
use crate::stage::{Stage, report};
use crate::workload::{SCHEMA, Writer, shapes};
use crate::{Outcome, journal};

/// Concurrent writing sessions.
const WRITERS: u64 = 2;
/// Transactions before the first client reads, so that the first snapshots have rows.
const TRANSACTIONS_BEFORE: usize = 200;
const KILLS_PER_MINUTE: f64 = 7.0;
const KILLS_MIN: f64 = 20.0;
/// How long clients may take, after the last write, until their rows equal SQL.
const SETTLE_DURATION_MAX: Duration = Duration::from_secs(90);
/// Distance between two lines of progress.
const PROGRESS_EVERY: Duration = Duration::from_secs(10);

/// What the command line says.
#[derive(Clone, Debug)]
pub struct SoakOptions {
    pub minutes: f64,
    /// Replays the same transactions and kill times; random when absent.
    pub seed: Option<u64>,
    pub postgres: Option<u32>,
}

/// What is counted while it runs.
#[derive(Debug, Default)]
pub struct Figures {
    transactions: AtomicU64,
    rows: AtomicU64,
    rollbacks: AtomicU64,
    unavailable: AtomicU64,
}

/// A client that follows its shape until told to stop, and what was refused meanwhile.
#[derive(Debug)]
pub struct Follower {
    pub table: Table,
    pub client: ShapeClient,
    pub refusals: Vec<String>,
}

/// Runs the soak; true when everything held.
pub async fn run(options: SoakOptions) -> Outcome<bool> {
    let seed = options.seed.unwrap_or_else(|| rand::rng().random());
    println!("soak: {} minutes, seed {seed} (--seed {seed} replays it)", options.minutes);
    let stage = Stage::open("soak", options.postgres).await?;
    stage.sql.batch_execute(SCHEMA).await?;
    let figures = Arc::new(Figures::default());
    let mut writers = Vec::new();
    for number in 0..WRITERS {
        let random = StdRng::seed_from_u64(seed.wrapping_add(number));
        let mut writer = Writer::new(random, number, WRITERS);
        let session = stage.connect().await?;
        for _ in 0..TRANSACTIONS_BEFORE {
            write(&mut writer, &session, &figures).await?;
        }
        writers.push((writer, session));
    }

    let settings = stage.service_settings("soak");
    let mut service = Service::start(settings.clone()).await?;
    let (stop, stopped) = watch::channel(false);
    let followers: Vec<_> = shapes()
        .into_iter()
        .map(|(table, request)| follow(table, request, service.address(), &figures, stopped.clone()))
        .collect();
    println!("service: {}, {} shapes, one client each", service.url(), followers.len());
    let writing: Vec<_> = writers
        .into_iter()
        .map(|(writer, session)| {
            tokio::spawn(write_until(writer, session, Arc::clone(&figures), stopped.clone()))
        })
        .collect();

    let deaths = kill_until(&mut service, &options, KILLS_MIN, seed, &figures).await?;
    stop.send_replace(true);
    for task in writing {
        task.await??;
    }
    let mut finished = Vec::new();
    for task in followers {
        finished.push(task.await?);
    }
    println!("writes ended; comparing every client with SQL");
    let unequal = settle(&mut finished, &stage.sql).await?;
    let graceful = service.terminate().await;
    verdict(&figures, &finished, &unequal, deaths, graceful, &settings, &stage)
}

async fn write(writer: &mut Writer, session: &Client, figures: &Figures) -> Outcome<()> {
    let transaction = writer.next_transaction();
    session
        .batch_execute(&transaction.sql)
        .await
        .map_err(|error| format!("the workload's own SQL failed: {error:?}"))?;
    figures.transactions.fetch_add(1, Ordering::Relaxed);
    figures.rows.fetch_add(transaction.rows as u64, Ordering::Relaxed);
    figures.rollbacks.fetch_add(u64::from(!transaction.commits), Ordering::Relaxed);
    writer.done(transaction);
    Ok(())
}

async fn write_until(
    mut writer: Writer,
    session: Client,
    figures: Arc<Figures>,
    stopped: watch::Receiver<bool>,
) -> Outcome<()> {
    while !*stopped.borrow() {
        write(&mut writer, &session, &figures).await?;
        let pause_ms = rand::rng().random_range(0..30);
        tokio::time::sleep(Duration::from_millis(pause_ms)).await;
    }
    Ok(())
}

fn follow(
    table: Table,
    request: ShapeRequest,
    address: std::net::SocketAddr,
    figures: &Arc<Figures>,
    mut stopped: watch::Receiver<bool>,
) -> JoinHandle<Follower> {
    let figures = Arc::clone(figures);
    tokio::spawn(async move {
        let mut follower =
            Follower { table, client: ShapeClient::new(address, request), refusals: Vec::new() };
        loop {
            let outcome = tokio::select! {
                _ = stopped.wait_for(|stopped| *stopped) => return follower,
                outcome = follower.client.step() => outcome,
            };
            match outcome {
                Ok(()) => continue,
                Err(ClientError::Unavailable(_)) => {
                    figures.unavailable.fetch_add(1, Ordering::Relaxed);
                }
                Err(ClientError::Refused(reason)) => follower.refusals.push(reason),
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    })
}

/// What happened to the service on purpose.
pub struct Deaths {
    pub kills: u32,
    /// Ends that it was asked for.
    pub graceful: u32,
    longest_start: Duration,
}

/// Kills and restarts the service at random moments, some of them while it is still starting; at least
/// `kills_min` times.
///
/// # Errors
/// It ends by itself, or does not start.
pub async fn kill_until(
    service: &mut Service,
    options: &SoakOptions,
    kills_min: f64,
    seed: u64,
    figures: &Figures,
) -> Outcome<Deaths> {
    let mut random = StdRng::seed_from_u64(seed ^ 0x6b69_6c6c);
    let wanted = (KILLS_PER_MINUTE * options.minutes).max(kills_min).ceil();
    let started = Instant::now();
    let duration = Duration::from_secs_f64(options.minutes * 60.0);
    let mut deaths = Deaths { kills: 0, graceful: 0, longest_start: Duration::ZERO };
    let mut last_progress = Instant::now();
    loop {
        let done = started.elapsed().as_secs_f64() / duration.as_secs_f64();
        if done >= 1.0 && f64::from(deaths.kills) >= wanted {
            return Ok(deaths);
        }
        let average = (duration.as_secs_f64() - started.elapsed().as_secs_f64()).max(2.0)
            / (wanted - f64::from(deaths.kills) + 1.0).max(1.0);
        let pause = average.min(15.0) * random.random_range(0.2..1.6);
        tokio::time::sleep(Duration::from_secs_f64(pause)).await;
        if let Some(status) = service.try_wait() {
            return Err(format!(
                "the service ended by itself ({status}):\n{}",
                crate::service::last_lines(&service.output(), 40)
            )
            .into());
        }
        if random.random_bool(0.2) {
            if !service.terminate().await {
                return Err("the service did not end by itself when it was asked to".into());
            }
            deaths.graceful += 1;
        } else {
            service.kill9();
            deaths.kills += 1;
        }
        if random.random_bool(0.15) {
            service.relaunch()?;
            tokio::time::sleep(Duration::from_millis(random.random_range(5..600))).await;
            service.kill9();
            deaths.kills += 1;
        }
        let restarted = Instant::now();
        service.restart().await?;
        deaths.longest_start = deaths.longest_start.max(restarted.elapsed());
        if last_progress.elapsed() >= PROGRESS_EVERY {
            last_progress = Instant::now();
            println!(
                "  {:>4.0} s: {} transactions, {} rows, {} kills",
                started.elapsed().as_secs_f64(),
                figures.transactions.load(Ordering::Relaxed),
                figures.rows.load(Ordering::Relaxed),
                deaths.kills
            );
        }
    }
}

/// Lets every client read on until its rows equal SQL; the differences that stay.
pub async fn settle(followers: &mut [Follower], sql: &Client) -> Outcome<Vec<String>> {
    let deadline = Instant::now() + SETTLE_DURATION_MAX;
    let mut unequal = Vec::new();
    for follower in followers {
        let expected = rows_in_postgres(sql, &follower.table, follower.client.request()).await?;
        loop {
            let synced = follower.client.sync().await;
            if let Err(ClientError::Refused(reason)) = &synced {
                follower.refusals.push(reason.clone());
            }
            let differs = difference(follower.client.rows(), &expected);
            match (synced, differs) {
                (Ok(()), None) => break,
                (synced, differs) if Instant::now() > deadline => {
                    let reason = synced.err().map(|error| error.to_string()).or(differs).unwrap_or_default();
                    unequal.push(format!("{}: {reason}", follower.client.request().query()));
                    break;
                }
                _ => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    }
    Ok(unequal)
}

fn verdict(
    figures: &Figures,
    followers: &[Follower],
    unequal: &[String],
    deaths: Deaths,
    graceful: bool,
    settings: &ServiceSettings,
    stage: &Stage,
) -> Outcome<bool> {
    let messages: u64 = followers.iter().map(|follower| follower.client.messages()).sum();
    let rows: usize = followers.iter().map(|follower| follower.client.rows().len()).sum();
    println!(
        "soak: {} transactions ({} rolled back), {} row changes written, {messages} messages read by {} clients, \
         {rows} rows held, {} kills, {} graceful restarts, {} requests met a service that was down, longest start {:.2} s",
        figures.transactions.load(Ordering::Relaxed),
        figures.rollbacks.load(Ordering::Relaxed),
        figures.rows.load(Ordering::Relaxed),
        followers.len(),
        deaths.kills,
        deaths.graceful,
        figures.unavailable.load(Ordering::Relaxed),
        deaths.longest_start.as_secs_f64()
    );
    let mut passed = report(
        unequal.is_empty(),
        &format!("{} of {} clients have the rows of SQL", followers.len() - unequal.len(), followers.len()),
    );
    unequal.iter().for_each(|text| println!("          {text}"));
    passed &= report_clients(followers);

    let verified = journal::verify(&settings.binary, &settings.data_dir);
    let text = match &verified {
        Ok(text) => text.lines().last().unwrap_or_default().to_owned(),
        Err(error) => error.to_string(),
    };
    passed &= report(verified.is_ok(), &format!("journal verify: {text}"));
    let refetches: Vec<_> = followers.iter().flat_map(|follower| follower.client.refetches()).collect();
    let history = if refetches.is_empty() {
        String::new()
    } else {
        journal::history(&settings.binary, &settings.data_dir)?
    };
    let unexplained: Vec<_> =
        refetches.iter().filter(|refetch| !journal::explains_end(&history, &refetch.old_handle)).collect();
    passed &= report(
        unexplained.is_empty(),
        &format!(
            "{} answers 409, of which the journal does not explain {}",
            refetches.len(),
            unexplained.len()
        ),
    );
    unexplained.iter().for_each(|refetch| println!("          {refetch:?}"));
    passed &= report(graceful, "the service ended by itself, with success, on SIGTERM");
    println!("service log: {}", stage.service_log().display());
    println!("soak: {}", if passed { "passed" } else { "FAILED" });
    Ok(passed)
}

/// Prints what clients saw that the contract rules out.
pub fn report_clients(followers: &[Follower]) -> bool {
    let anomalies: u64 = followers.iter().map(|follower| follower.client.anomaly_count()).sum();
    let refusals: usize = followers.iter().map(|follower| follower.refusals.len()).sum();
    let clean = report(
        anomalies == 0 && refusals == 0,
        &format!("{anomalies} messages that cannot be, {refusals} requests refused"),
    );
    for follower in followers {
        for text in follower.client.anomalies().iter().chain(&follower.refusals).take(3) {
            println!("          {}: {text}", follower.client.request().query());
        }
    }
    clean
}

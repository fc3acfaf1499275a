//! `chaos-faults`: a failing file system under the running service.
//!
//! In each round one fault strikes at one stage, while clients follow shapes and transactions are written. Then
//! it is lifted, a service that has ended is started again, and every client must come to hold the rows of SQL;
//! once more after `kill -9`, and so must clients that begin anew. Before that restart the journal must verify
//! (no file destroyed that was not announced under ownership), and every client that was sent away must find
//! the cause there.

pub mod disk;
pub mod layer;
pub mod scenarios;

use std::time::{Duration, Instant};

use tokio_postgres::Client;
use tokio_postgres::types::PgLsn;

use crate::compare::Table;
use crate::http::{HttpClient, encode};
use crate::service::Service;
use crate::shape_client::{ClientError, ShapeClient, ShapeRequest};
use crate::soak::{Follower, settle};
use crate::stage::Stage;
use crate::{Outcome, journal};
use layer::Layer;
use scenarios::{Scenario, Work};

const STREAM_ID: &str = "faults";
/// The fault has to strike within this time, or the stage was not reached.
const STRIKE_WAIT_MAX: Duration = Duration::from_secs(20);
/// How long a fault that strikes until it is lifted does so.
const HELD: Duration = Duration::from_secs(3);
/// Longest wait for the end of a service that cannot go on.
const END_WAIT_MAX: Duration = Duration::from_secs(15);
/// More than the service keeps of one transaction in memory.
const LARGE_ROWS: u32 = 12;

const LEDGER: Table = Table { name: "ledger", primary_key: &["id"] };
pub(crate) const SCHEMA: &str = "
CREATE TABLE ledger (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, bucket int NOT NULL, entry text NOT NULL);
INSERT INTO ledger (bucket, entry) SELECT n % 6, md5(n::text) FROM generate_series(1, 60) n;
";

/// What the command line says.
#[derive(Clone, Debug)]
pub struct FaultsOptions {
    pub postgres: Option<u32>,
    /// Only the rows whose stage or fault contains this.
    pub only: Option<String>,
}

/// Runs all rounds; true when every promise was kept.
pub async fn run(options: FaultsOptions) -> Outcome<bool> {
    let stage = Stage::open("faults", options.postgres).await?;
    stage.sql.batch_execute(SCHEMA).await?;
    let layer = Layer::compile(stage.directory())?;
    let mut bench = Bench::start(stage, layer).await?;
    println!(
        "{:<18} {:<22} {:>7}  {:<52} {:>6}  {:>8}",
        "stage", "fault", "struck", "outcome", "ended", "equal in"
    );
    let mut kept = true;
    let mut rounds = 0;
    for scenario in scenarios::all(options.only.as_deref()) {
        rounds += 1;
        let row = bench.round(&scenario).await;
        kept &= print(scenario.stage, &scenario.name, &row);
        if row.is_err() {
            // One failure is told once: what comes next begins with clients without a past.
            bench.begin_anew().await?;
        }
    }
    let graceful = bench.service.terminate().await;
    let log = bench.stage.service_log();
    if options.only.is_none() {
        // What was written for the spill would fill the small disk by itself.
        bench.stage.sql.batch_execute("DELETE FROM ledger WHERE length(entry) > 1000").await?;
        for filling in disk::FILLINGS {
            rounds += 1;
            let row = disk::run(&bench.stage, filling).await;
            kept &= match row {
                Err(error) if error.to_string().starts_with(disk::NOT_POSSIBLE) => {
                    println!("{:<18} {:<22} {error}", "tmpfs", filling.name());
                    true
                }
                row => print("tmpfs", filling.name(), &row),
            };
        }
    }
    println!("faults: {rounds} rounds, {}", if kept && graceful { "every promise kept" } else { "FAILED" });
    println!("service log: {}", log.display());
    Ok(kept && graceful)
}

/// What one round came to.
#[derive(Clone, Debug)]
pub struct Row {
    pub struck: u32,
    pub outcome: String,
    /// Clients that were sent away.
    pub sent_away: usize,
    /// From the lifting of the fault until all clients held the rows of SQL.
    pub equal_in: Duration,
}

fn print(stage: &str, fault: &str, row: &Outcome<Row>) -> bool {
    match row {
        Ok(row) => println!(
            "{stage:<18} {fault:<22} {:>7}  {:<52} {:>6}  {:>6.1} s",
            row.struck,
            shortened(&row.outcome, 52),
            row.sent_away,
            row.equal_in.as_secs_f64()
        ),
        Err(error) => println!("{stage:<18} {fault:<22} FAILED: {error}"),
    }
    row.is_ok()
}

fn shortened(text: &str, chars: usize) -> String {
    if text.chars().count() <= chars {
        return text.to_owned();
    }
    text.chars().take(chars - 1).chain(['…']).collect()
}

/// The service, its clients, and the layer.
pub struct Bench {
    pub stage: Stage,
    pub layer: Layer,
    pub service: Service,
    followers: Vec<Follower>,
    /// Distinguishes the shapes of one round from those of all others.
    round: u32,
}

impl Bench {
    /// Starts the service with the layer under it, and clients that hold what SQL holds.
    pub async fn start(stage: Stage, layer: Layer) -> Outcome<Bench> {
        let mut settings = stage.service_settings(STREAM_ID);
        layer.put_under(&mut settings);
        settings.set("SHAPEFOLD_WATCHDOG_AFTER", "1s");
        settings.set("SHAPEFOLD_CHECKPOINT_EVENTS", "50");
        let service = Service::start(settings).await?;
        if !layer.is_loaded() {
            return Err("the fault layer was not loaded: is the service linked statically?".into());
        }
        let mut bench = Bench { stage, layer, service, followers: Vec::new(), round: 0 };
        bench.begin_anew().await?;
        Ok(bench)
    }

    /// Clients without a past, on a service that runs.
    async fn begin_anew(&mut self) -> Outcome<()> {
        self.layer.lift()?;
        if self.service.pid().is_none() || self.service.try_wait().is_some() {
            self.service.restart().await?;
        }
        self.followers = followers(&self.service);
        equal(&mut self.followers, &self.stage.sql).await
    }

    /// One fault at one stage.
    ///
    /// # Errors
    /// A promise that was not kept, in words.
    pub async fn round(&mut self, scenario: &Scenario) -> Outcome<Row> {
        self.round += 1;
        let sent_away_before = self.sent_away();
        self.layer.arm(&scenario.rule)?;
        let strike = self.work_until_struck(scenario).await;
        let ended = self.wait_for_end().await;
        let alarm = self.alarm().await;
        self.layer.lift()?;
        let (_, struck) = self.layer.counts();
        strike?;
        let acknowledged = confirmed_flush(&self.stage.sql, STREAM_ID).await?;
        let lifted = Instant::now();
        let mut outcome = match &ended {
            Some(end) => {
                self.restart().await?;
                format!("ended: {end}")
            }
            None => alarm.map_or_else(|| "went on".to_owned(), |alarm| format!("went on; {alarm}")),
        };
        let address = self.service.address();
        self.followers.iter_mut().for_each(|follower| follower.client.redirect(address));
        equal(&mut self.followers, &self.stage.sql).await?;
        let equal_in = lifted.elapsed();
        if self.service.output().contains("panicked") {
            return Err("something panicked".into());
        }
        // What was acknowledged must be on disk: Postgres does not send it again.
        self.service.kill9();
        journal::verify(&self.stage.binary, self.service.data_dir())?;
        self.explain(sent_away_before)?;
        self.restart().await?;
        equal(&mut self.followers, &self.stage.sql).await?;
        equal(&mut followers(&self.service), &self.stage.sql).await?;
        if confirmed_flush(&self.stage.sql, STREAM_ID).await? < acknowledged {
            return Err(format!("the slot went back behind {acknowledged}").into());
        }
        let sent_away = self.sent_away() - sent_away_before;
        if sent_away > 0 && ended.is_none() {
            outcome.push_str("; shapes given up");
        }
        Ok(Row { struck, outcome, sent_away, equal_in })
    }

    /// Another process, which has yet to hear from Postgres what its predecessor had heard.
    async fn restart(&mut self) -> Outcome<()> {
        self.service.restart().await?;
        let address = self.service.address();
        self.followers.iter_mut().for_each(|follower| follower.client.redirect(address));
        Ok(())
    }

    fn sent_away(&self) -> usize {
        self.followers.iter().map(|follower| follower.client.refetches().len()).sum()
    }

    /// Does what leads to the stage until the fault has struck, and as long as it is to be held.
    async fn work_until_struck(&mut self, scenario: &Scenario) -> Outcome<()> {
        let begun = Instant::now();
        let mut struck_at = None;
        let mut turn = 0;
        loop {
            turn += 1;
            self.work(scenario.work, turn).await?;
            if self.layer.counts().1 > 0 {
                struck_at.get_or_insert_with(Instant::now);
            }
            let held = if scenario.rule.times == 0 { HELD } else { HELD / 3 };
            if self.service.try_wait().is_some() || struck_at.is_some_and(|at| at.elapsed() >= held) {
                break;
            }
            if struck_at.is_none() && begun.elapsed() > STRIKE_WAIT_MAX {
                return Err("the fault never struck: the stage was not reached".into());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        if struck_at.is_none() && self.layer.counts().1 == 0 {
            return Err("the service ended before the fault struck".into());
        }
        Ok(())
    }

    async fn work(&mut self, work: Work, turn: u32) -> Outcome<()> {
        // Whatever is asked for, rows change meanwhile: their loss would be seen.
        let sql = "INSERT INTO ledger (bucket, entry) SELECT n % 6, md5(random()::text) FROM generate_series(1, 3) n;
                   UPDATE ledger SET entry = md5(entry) WHERE id IN (SELECT id FROM ledger ORDER BY random() LIMIT 3)";
        self.stage.sql.batch_execute(sql).await?;
        match work {
            Work::Changes => {}
            Work::LargeTransaction => {
                let large = format!(
                    "INSERT INTO ledger (bucket, entry) SELECT n % 6, repeat(md5(random()::text), 32768) \
                     FROM generate_series(1, {LARGE_ROWS}) n"
                );
                if turn == 1 {
                    self.stage.sql.batch_execute(&large).await?;
                }
            }
            Work::NewShape => {
                let clause = format!("bucket < {} AND id > {turn}", 1_000 + self.round);
                let mut client = ShapeClient::new(
                    self.service.address(),
                    ShapeRequest::table("ledger").filtered(&clause, &[]),
                );
                patient(client.sync()).await?;
            }
            Work::DropShape => {
                let victim = &self.followers[self.round as usize % self.followers.len()].client;
                if let Some(handle) = victim.handle().filter(|_| turn == 1) {
                    let mut http = HttpClient::new(self.service.address());
                    let path = format!("/v1/shape?handle={}", encode(handle));
                    let _answer = http.request("DELETE", &path, &[], b"").await;
                }
            }
            Work::Read => {
                for follower in &mut followers(&self.service) {
                    patient(follower.client.sync()).await?;
                }
            }
        }
        let address = self.service.address();
        for follower in &mut self.followers {
            // The successor of a writer that failed begins with what is durable, and may tell of a lower
            // position than its predecessor did; rows and offsets may not go back.
            follower.client.redirect(address);
            patient(follower.client.sync()).await?;
        }
        Ok(())
    }

    /// A service that cannot go on says so and ends; any other goes on.
    async fn wait_for_end(&mut self) -> Option<String> {
        let begun = Instant::now();
        let tells_its_end =
            |output: &str| output.contains("the service ends") || output.contains("DrainStarted");
        while begun.elapsed() < END_WAIT_MAX {
            if self.service.try_wait().is_some() {
                return Some(last_words(&self.service.output()));
            }
            if begun.elapsed() > Duration::from_millis(500) && !tells_its_end(&self.service.output()) {
                return None;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        None
    }

    /// What `/v1/ready` complains about.
    async fn alarm(&mut self) -> Option<String> {
        if self.service.try_wait().is_some() {
            return None;
        }
        let told = self.service.output().lines().filter(|line| line.contains("stands still")).count();
        let mut http = HttpClient::new(self.service.address());
        let answer = tokio::time::timeout(Duration::from_secs(2), http.get("/v1/ready")).await.ok()?.ok()?;
        let message = answer.json()["message"].as_str().map(str::to_owned);
        message.or_else(|| (told > 0).then(|| "the watchdog raised the alarm".to_owned()))
    }

    /// Every client that was sent away finds the cause in the journal.
    fn explain(&self, before: usize) -> Outcome<()> {
        if self.sent_away() == before {
            return Ok(());
        }
        let history = journal::history(&self.stage.binary, self.service.data_dir())?;
        let refetches = self.followers.iter().flat_map(|follower| follower.client.refetches());
        match refetches.into_iter().find(|refetch| !journal::explains_end(&history, &refetch.old_handle)) {
            Some(refetch) => Err(format!("the journal does not say why: {refetch:?}").into()),
            None => Ok(()),
        }
    }
}

/// The last error that a process told.
pub(crate) fn last_words(output: &str) -> String {
    let line = output.lines().rev().find(|line| line.contains("ERROR"));
    let text = line.and_then(|line| line.split_once("ERROR")).map_or("", |(_, text)| text.trim());
    let text = text
        .split_once(": ")
        .filter(|(target, _)| target.starts_with("shapefold::"))
        .map_or(text, |(_, message)| message);
    if text.is_empty() { "without a word".to_owned() } else { text.to_owned() }
}

pub(crate) fn followers(service: &Service) -> Vec<Follower> {
    let mut requests = vec![ShapeRequest::table("ledger")];
    requests.extend(
        (0..3).map(|bucket| ShapeRequest::table("ledger").filtered(&format!("bucket = {bucket}"), &[])),
    );
    let follower = |request| {
        let mut client = ShapeClient::new(service.address(), request);
        client.expect_failing_writers();
        Follower { table: LEDGER, client, refusals: Vec::new() }
    };
    requests.into_iter().map(follower).collect()
}

/// Every client comes to hold the rows of SQL, and has seen nothing that the contract rules out.
pub(crate) async fn equal(followers: &mut [Follower], sql: &Client) -> Outcome<()> {
    let unequal = settle(followers, sql).await?;
    if let Some(text) = unequal.first() {
        return Err(format!(
            "{} of {} clients differ from SQL, first: {text}",
            unequal.len(),
            followers.len()
        )
        .into());
    }
    let complaint = followers
        .iter()
        .find_map(|follower| follower.client.anomalies().first().or(follower.refusals.first()));
    match complaint {
        Some(complaint) => Err(complaint.clone().into()),
        None => Ok(()),
    }
}

/// A service that is struck may be unavailable, but says nothing that is wrong.
async fn patient(asking: impl Future<Output = Result<(), ClientError>>) -> Outcome<()> {
    match tokio::time::timeout(Duration::from_secs(2), asking).await {
        Ok(Err(ClientError::Refused(reason))) => Err(format!("a request was refused: {reason}").into()),
        Ok(Ok(()) | Err(ClientError::Unavailable(_))) | Err(_) => Ok(()),
    }
}

pub(crate) async fn confirmed_flush(sql: &Client, stream_id: &str) -> Outcome<PgLsn> {
    let slot = format!("electric_slot_{stream_id}");
    let row = sql
        .query_one("SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = $1", &[&slot])
        .await
        .map_err(|error| format!("the slot {slot} is gone: {error}"))?;
    Ok(row.get(0))
}

//! `chaos-rolling`: rolling deploys of two builds on one data directory, under traffic.
//!
//! In each round a second instance starts on the directory of the first, is waited for until it says that
//! it waits, serves for a while beside the owner, and takes over when that is drained or killed. Clients
//! are spread over both as a load balancer would; what they may meet is a documented 503 and a connection
//! that ends. The waiting instance runs under `strace`: see [`crate::audit`].

mod traffic;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::audit::Audit;
use crate::directory::free_port;
use crate::postgres::connect;
use crate::service::{Service, ServiceSettings, last_lines};
use crate::soak::{Follower, report_clients, settle};
use crate::stage::{Stage, report};
use crate::{Outcome, journal};

use traffic::Traffic;

const STREAM_ID: &str = "rolling";
/// Both instances side by side.
const BESIDE_MS: std::ops::Range<u64> = 700..1_500;
/// From one takeover to the next deploy.
const ALONE_MS: std::ops::Range<u64> = 500..1_200;
/// Longest wait for an instance to wait, and to take over.
const STEP_DURATION_MAX: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(5);
/// What is wanted of live delivery over a deploy.
const DRAINED_GAP_MAX: Duration = Duration::from_secs(2);
const KILLED_GAP_MAX: Duration = Duration::from_secs(5);

/// What the command line says.
#[derive(Clone, Debug)]
pub struct RollingOptions {
    pub rounds: u32,
    pub seed: Option<u64>,
    pub postgres: Option<u32>,
    /// The second build; the same where absent.
    pub other: Option<PathBuf>,
}

/// What is deployed, on what.
#[derive(Clone, Debug)]
pub struct Setup {
    pub database_url: String,
    pub stream_id: String,
    /// Deployed in turn.
    pub builds: [PathBuf; 2],
    /// For the data directory, the traces and the logs. Must exist.
    pub folder: PathBuf,
    pub rounds: u32,
    pub seed: u64,
}

/// One deploy.
#[derive(Clone, Copy, Debug)]
pub struct Round {
    pub killed: bool,
    /// From the signal to the old instance until the new one said that it is active.
    pub takeover: Duration,
    /// Longest time from a commit to its arrival at a live client, over this deploy.
    pub gap: Duration,
}

/// What came of all of them.
#[derive(Debug)]
pub struct Report {
    pub rounds: Vec<Round>,
    /// Calls of instances that waited which could have changed something in the directory.
    pub mutating: Vec<String>,
    /// Calls of them that were seen at all.
    pub harmless: u64,
    /// Requests that were answered by a documented 503, and that met a broken connection.
    pub unavailable: u64,
    pub broken: u64,
    /// Answers that no client may be given.
    pub forbidden: Vec<String>,
    pub refetches: usize,
    /// Clients whose rows are not those of SQL.
    pub unequal: Vec<String>,
    pub transactions: u64,
    /// All clients, with what they saw.
    pub followers: Vec<Follower>,
    pub verified: Result<String, String>,
    pub graceful: bool,
}

/// Runs the rounds for a person; true when every one of them held.
pub async fn run(options: RollingOptions) -> Outcome<bool> {
    let seed = options.seed.unwrap_or_else(|| rand::rng().random());
    println!("rolling deploys: {} rounds, seed {seed}", options.rounds);
    let stage = Stage::open("rolling", options.postgres).await?;
    let other = options.other.unwrap_or_else(|| stage.binary.clone());
    println!("builds: {} and {}", stage.binary.display(), other.display());
    let setup = Setup {
        database_url: stage.url(),
        stream_id: STREAM_ID.to_owned(),
        builds: [stage.binary.clone(), other],
        folder: stage.directory().to_owned(),
        rounds: options.rounds,
        seed,
    };
    let found = deploy(&setup).await?;
    for (number, round) in found.rounds.iter().enumerate() {
        println!(
            "  round {:>2}: {}, active after {:>5.2} s, longest gap in live delivery {:>5.2} s",
            number + 1,
            if round.killed { "killed -9" } else { "drained  " },
            round.takeover.as_secs_f64(),
            round.gap.as_secs_f64()
        );
    }
    Ok(tell(&found))
}

fn tell(found: &Report) -> bool {
    println!(
        "rolling deploys: {} transactions, {} requests met a documented 503, {} a connection that ended",
        found.transactions, found.unavailable, found.broken
    );
    let mut passed = true;
    for (killed, name, wanted) in [(false, "drained", DRAINED_GAP_MAX), (true, "killed -9", KILLED_GAP_MAX)] {
        let mut gaps: Vec<Duration> =
            found.rounds.iter().filter(|round| round.killed == killed).map(|round| round.gap).collect();
        gaps.sort_unstable();
        let Some(max) = gaps.last() else { continue };
        let (p50, p99) = (percentile(&gaps, 50), percentile(&gaps, 99));
        passed &= report(
            p99 <= wanted,
            &format!(
                "gap in live delivery, {} deploys {name}: p50 {:.2} s, p99 {:.2} s, max {:.2} s (wanted: p99 at most {} s)",
                gaps.len(),
                p50.as_secs_f64(),
                p99.as_secs_f64(),
                max.as_secs_f64(),
                wanted.as_secs()
            ),
        );
    }
    passed &= report(
        found.mutating.is_empty() && found.harmless > 0,
        &format!(
            "{} mutating system calls in the data directory by instances that waited ({} others seen there)",
            found.mutating.len(),
            found.harmless
        ),
    );
    found.mutating.iter().take(5).for_each(|call| println!("          {call}"));
    passed &= report(
        found.forbidden.is_empty(),
        &format!("{} answers 5xx but documented 503", found.forbidden.len()),
    );
    found.forbidden.iter().take(5).for_each(|answer| println!("          {answer}"));
    passed &= report(found.refetches == 0, &format!("{} clients sent away by a 409", found.refetches));
    passed &= report_clients(&found.followers);
    passed &= report(
        found.unequal.is_empty(),
        &format!(
            "{} of {} clients have the rows of SQL",
            found.followers.len() - found.unequal.len(),
            found.followers.len()
        ),
    );
    found.unequal.iter().for_each(|text| println!("          {text}"));
    let text = match &found.verified {
        Ok(text) => text.lines().last().unwrap_or_default().to_owned(),
        Err(error) => error.clone(),
    };
    passed &= report(found.verified.is_ok(), &format!("journal verify: {text}"));
    passed &= report(found.graceful, "every drained instance ended by itself, with success");
    println!("rolling deploys: {}", if passed { "passed" } else { "FAILED" });
    passed
}

/// Nearest rank, of an ascending list that is not empty.
fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    sorted[(sorted.len() * percent).div_ceil(100).clamp(1, sorted.len()) - 1]
}

/// Deploys again and again under traffic, and collects what was seen.
///
/// # Errors
/// An instance does not start, wait or take over, or the workload itself fails.
pub async fn deploy(setup: &Setup) -> Outcome<Report> {
    let mut random = StdRng::seed_from_u64(setup.seed);
    let ports = [free_port()?, free_port()?];
    let settings = |index: usize| {
        let data = setup.folder.join("data");
        let mut settings = ServiceSettings::new(&setup.builds[index % 2], &setup.database_url, &data);
        settings.port = ports[index % 2];
        settings.stream_id.clone_from(&setup.stream_id);
        settings.log_file = Some(setup.folder.join(format!("service-{}.log", index % 2)));
        settings
    };
    let addresses = ports.map(|port| ([127, 0, 0, 1], port).into());
    traffic::prepare(&connect(&setup.database_url).await?).await?;
    let mut owner = Service::start(settings(0)).await?;
    let traffic = Traffic::start(setup, addresses).await?;
    traffic.everybody_has_begun().await?;

    let mut rounds = Vec::new();
    let (mut mutating, mut harmless, mut graceful) = (Vec::new(), 0, true);
    for number in 1..=setup.rounds {
        let mut settings = settings(number as usize);
        let trace = setup.folder.join("trace");
        let audit = Audit::attach(&mut settings, &trace)?;
        let mut next = Service::spawn(settings)?;
        until_waiting(&mut next).await?;
        pause(&mut random, BESIDE_MS).await;
        let killed = number % 2 == 0;
        let begun = Instant::now();
        let (old_ended, active) = tokio::join!(end(&mut owner, killed), next.wait_active(STEP_DURATION_MAX));
        active?;
        graceful &= old_ended;
        let takeover = begun.elapsed();
        let seen = audit.seen_while_waiting()?;
        mutating.extend(seen.mutating);
        harmless += seen.harmless;
        audit.detach(&next);
        pause(&mut random, ALONE_MS).await;
        let gap = traffic.longest_delivery_since(begun).await?;
        rounds.push(Round { killed, takeover, gap });
        fs::remove_file(&trace)?;
        owner = next;
    }
    finish(setup, traffic, owner, rounds, (mutating, harmless, graceful)).await
}

async fn finish(
    setup: &Setup,
    traffic: Traffic,
    mut owner: Service,
    rounds: Vec<Round>,
    (mutating, harmless, mut graceful): (Vec<String>, u64, bool),
) -> Outcome<Report> {
    let (mut followers, counts) = traffic.stop().await?;
    for follower in &mut followers {
        follower.client.redirect(owner.address());
    }
    let unequal = settle(&mut followers, &connect(&setup.database_url).await?).await?;
    graceful &= owner.terminate().await;
    let verified = journal::verify(&setup.builds[0], &setup.folder.join("data"));
    Ok(Report {
        rounds,
        mutating,
        harmless,
        unavailable: counts.unavailable,
        broken: counts.broken,
        forbidden: counts.forbidden,
        refetches: followers.iter().map(|follower| follower.client.refetches().len()).sum(),
        unequal,
        transactions: counts.transactions,
        followers,
        verified: verified.map_err(|error| error.to_string()),
        graceful,
    })
}

/// Ends the old instance. Whether it ended as it should.
async fn end(owner: &mut Service, killed: bool) -> bool {
    if killed {
        owner.kill9();
        return true;
    }
    owner.terminate().await
}

async fn until_waiting(service: &mut Service) -> Outcome<()> {
    let deadline = Instant::now() + STEP_DURATION_MAX;
    loop {
        if let Some(answer) = service.health_answer().await
            && answer.status == 202
            && answer.json()["status"] == "waiting"
        {
            return Ok(());
        }
        if let Some(status) = service.try_wait() {
            let output = last_lines(&service.output(), 40);
            return Err(format!("the waiting instance ended ({status}):\n{output}").into());
        }
        if Instant::now() > deadline {
            let output = last_lines(&service.output(), 40);
            return Err(format!("the second instance does not wait:\n{output}").into());
        }
        tokio::time::sleep(POLL).await;
    }
}

async fn pause(random: &mut StdRng, range_ms: std::ops::Range<u64>) {
    tokio::time::sleep(Duration::from_millis(random.random_range(range_ms))).await;
}

/// The second build of `./dev chaos rolling`, where there is one.
#[must_use]
pub fn other_build(binary: &Path) -> Option<PathBuf> {
    let target = binary.parent()?.parent()?;
    let other = target.join("debug").join(binary.file_name()?);
    (other != binary && other.is_file()).then_some(other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_were_measured() {
        let gaps: Vec<Duration> = (1..=10).map(Duration::from_secs).collect();
        assert_eq!(percentile(&gaps, 50), Duration::from_secs(5));
        assert_eq!(percentile(&gaps, 99), Duration::from_secs(10));
        assert_eq!(percentile(&gaps[..1], 50), Duration::from_secs(1));
    }
}

//! `chaos-power-loss`: what is left of the service's data when the power goes, and whether it is enough.
//!
//! The data directory lies on an ext4 file system in an image file. What the service has written but
//! not flushed is in the page cache of that file system; what has reached the "device" is in the
//! image. In each round the service is frozen at a random moment, the image is copied, the service
//! is killed, and the copy is mounted and opened in its place, against the same Postgres.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rustix::process::Signal;
use tokio::task::JoinHandle;
use tokio_postgres::Client;
use tokio_postgres::types::PgLsn;

use crate::compare::Table;
use crate::service::{Service, last_lines};
use crate::shape_client::{ClientError, ShapeClient, ShapeRequest};
use crate::soak::{Follower, settle};
use crate::stage::Stage;
use crate::{Outcome, journal};

const IMAGE_BYTES: u64 = 1024 * 1024 * 1024;
/// Writing sessions at once.
const WRITERS: usize = 3;
/// How long the load runs before the freeze.
const LOAD_MS: std::ops::Range<u64> = 300..3_000;
/// Copies that were disturbed by a write are made again, at most this often.
const COPIES_MAX: usize = 20;
const FREEZE_DURATION_MAX: Duration = Duration::from_secs(10);
const STREAM_ID: &str = "power_loss";

const LEDGER: Table = Table { name: "ledger", primary_key: &["id"] };
const COUNTERS: Table = Table { name: "counters", primary_key: &["id"] };
const SCHEMA: &str = "
CREATE TABLE ledger (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, bucket int NOT NULL, entry text NOT NULL);
CREATE TABLE counters (id int PRIMARY KEY, value bigint NOT NULL);
INSERT INTO counters SELECT n, 0 FROM generate_series(1, 50) n;
";

/// What the command line says.
#[derive(Clone, Debug)]
pub struct ChaosOptions {
    pub rounds: u32,
    pub seed: Option<u64>,
    pub postgres: Option<u32>,
}

/// Runs the rounds; true when every one of them held.
pub async fn run(options: ChaosOptions) -> Outcome<bool> {
    let seed = options.seed.unwrap_or_else(|| rand::rng().random());
    println!("power loss: {} rounds, seed {seed}", options.rounds);
    require_loop_devices()?;
    let mut random = StdRng::seed_from_u64(seed);
    let stage = Stage::open("power-loss", options.postgres).await?;
    stage.sql.batch_execute(SCHEMA).await?;

    let mut device = Device::create(&stage.directory().join("device-0"))?;
    let mut settings = stage.service_settings(STREAM_ID);
    settings.data_dir = device.mount_point.join("data");
    let mut service = Service::start(settings).await?;
    let mut followers = new_clients(&service);
    for follower in &mut followers {
        follower.client.sync().await?;
    }

    let mut held = 0;
    for number in 1..=options.rounds {
        let load = Load::start(&stage, &mut random).await?;
        follow_for(Duration::from_millis(random.random_range(LOAD_MS)), &mut followers).await;
        freeze(&service).await?;
        let commits = load.stop().await?;
        let copy = device.copy(&stage.directory().join(format!("device-{number}")))?;
        service.kill9();
        // Read after the kill: whatever the frozen service still had on the wire has arrived.
        let acknowledged = confirmed_flush(&stage.sql).await?;
        drop(device);
        device = copy;
        service.settings_mut().data_dir = device.mount_point.join("data");
        let verdict = examine(&mut service, &mut followers, &stage).await;
        let covered = commits.iter().filter(|lsn| **lsn <= acknowledged).count();
        match verdict {
            Ok(text) => {
                held += 1;
                println!(
                    "  round {number:>2}: ok: {} transactions, {covered} acknowledged when the power went; {text}",
                    commits.len()
                );
            }
            Err(error) => {
                println!("  round {number:>2}: FAILED: {} transactions: {error}", commits.len());
                // One failure is told once: the next round is followed by clients without a past.
                followers = new_clients(&service);
            }
        }
        if service.pid().is_none() || service.try_wait().is_some() {
            service.restart().await?;
        }
    }
    let graceful = service.terminate().await;
    let verified = journal::verify(&stage.binary, &device.mount_point.join("data"));
    if let Err(error) = &verified {
        println!("  {error}");
    }
    println!(
        "power loss: {held} of {} rounds held, final journal verify: {}",
        options.rounds,
        verified.is_ok()
    );
    println!("service log: {}", stage.service_log().display());
    Ok(held == options.rounds && verified.is_ok() && graceful)
}

fn shapes() -> Vec<(Table, ShapeRequest)> {
    let mut shapes =
        vec![(LEDGER, ShapeRequest::table("ledger")), (COUNTERS, ShapeRequest::table("counters"))];
    for bucket in 0..6 {
        shapes.push((LEDGER, ShapeRequest::table("ledger").filtered(&format!("bucket = {bucket}"), &[])));
    }
    shapes
}

fn new_clients(service: &Service) -> Vec<Follower> {
    let follower = |(table, request)| {
        let client = ShapeClient::new(service.address(), request);
        Follower { table, client, refusals: Vec::new() }
    };
    shapes().into_iter().map(follower).collect()
}

/// Writers that are running; they do not stop before the service is frozen in the middle of things.
struct Load {
    stop: Arc<AtomicBool>,
    writers: Vec<JoinHandle<Outcome<Vec<PgLsn>>>>,
}

impl Load {
    async fn start(stage: &Stage, random: &mut StdRng) -> Outcome<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let mut writers = Vec::new();
        for _ in 0..WRITERS {
            let session = stage.connect().await?;
            let random = StdRng::seed_from_u64(random.random());
            writers.push(tokio::spawn(write_until(session, random, Arc::clone(&stop))));
        }
        Ok(Self { stop, writers })
    }

    /// For each transaction a WAL position at or after its commit.
    async fn stop(self) -> Outcome<Vec<PgLsn>> {
        self.stop.store(true, Ordering::Relaxed);
        let mut commits = Vec::new();
        for writer in self.writers {
            commits.extend(writer.await??);
        }
        Ok(commits)
    }
}

async fn follow_for(duration: Duration, followers: &mut [Follower]) {
    let until = Instant::now() + duration;
    while Instant::now() < until {
        for follower in followers.iter_mut() {
            if let Err(ClientError::Refused(reason)) = follower.client.sync().await {
                follower.refusals.push(reason);
            }
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn write_until(session: Client, mut random: StdRng, stop: Arc<AtomicBool>) -> Outcome<Vec<PgLsn>> {
    let mut commits = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let rows = random.random_range(1..40);
        let sql = format!(
            "BEGIN; INSERT INTO ledger (bucket, entry) SELECT n % 6, repeat(md5(n::text), {}) \
             FROM generate_series(1, {rows}) n; UPDATE counters SET value = value + 1 WHERE id = {}; COMMIT",
            random.random_range(1..20),
            random.random_range(1..51)
        );
        session.batch_execute(&sql).await?;
        commits.push(session.query_one("SELECT pg_current_wal_insert_lsn()", &[]).await?.get(0));
    }
    Ok(commits)
}

/// Stops every thread of the service where it is, and waits until the kernel says so.
async fn freeze(service: &Service) -> Outcome<()> {
    service.signal(Signal::STOP);
    let pid = service.pid().ok_or("the service is not running")?;
    let deadline = Instant::now() + FREEZE_DURATION_MAX;
    loop {
        let mut stopped = true;
        for task in fs::read_dir(format!("/proc/{pid}/task"))?.flatten() {
            let stat = fs::read_to_string(task.path().join("stat")).unwrap_or_default();
            let state = stat.rsplit(')').next().and_then(|rest| rest.trim().chars().next());
            stopped &= matches!(state, Some('T') | None);
        }
        if stopped {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err("the service did not stop on SIGSTOP".into());
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

async fn confirmed_flush(sql: &Client) -> Outcome<PgLsn> {
    let slot = format!("electric_slot_{STREAM_ID}");
    let row = sql
        .query_one("SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = $1", &[&slot])
        .await
        .map_err(|error| format!("the slot {slot} is gone: {error}"))?;
    Ok(row.get(0))
}

/// Opens what was left: the journal as found, then the service on it, old clients and new ones.
async fn examine(service: &mut Service, followers: &mut [Follower], stage: &Stage) -> Outcome<String> {
    journal::verify(&stage.binary, service.data_dir())?;
    let started = Instant::now();
    service.restart().await?;
    let open_ms = started.elapsed().as_millis();
    let unequal = settle(followers, &stage.sql).await?;
    if let Some(text) = unequal.first() {
        return Err(format!("{} clients that went on differ from SQL, first: {text}", unequal.len()).into());
    }
    for follower in followers.iter() {
        if let Some(refetch) = follower.client.refetches().first() {
            return Err(format!("a client was sent away: {refetch:?}").into());
        }
        let complaint = follower.client.anomalies().first().or(follower.refusals.first());
        if let Some(complaint) = complaint {
            return Err(format!("{}: {complaint}", follower.client.request().query()).into());
        }
    }
    let mut fresh = new_clients(service);
    let unequal = settle(&mut fresh, &stage.sql).await?;
    if let Some(text) = unequal.first() {
        return Err(
            format!("{} clients that began anew differ from SQL, first: {text}", unequal.len()).into()
        );
    }
    for (old, new) in followers.iter().zip(&fresh) {
        if old.client.handle() != new.client.handle() || new.client.anomaly_count() > 0 {
            return Err(format!(
                "a client that began anew got handle {:?} instead of {:?}, anomalies {:?}",
                new.client.handle(),
                old.client.handle(),
                new.client.anomalies()
            )
            .into());
        }
    }
    Ok(format!("active after {open_ms} ms, {} clients equal SQL", followers.len() + fresh.len()))
}

/// An image file, attached to a loop device and mounted. Taken apart when dropped.
struct Device {
    image: PathBuf,
    loop_device: String,
    mount_point: PathBuf,
}

impl Device {
    fn create(base: &Path) -> Outcome<Self> {
        let image = base.with_extension("img");
        fs::File::create(&image)?.set_len(IMAGE_BYTES)?;
        command("mkfs.ext4", &["-q", "-F", &image.to_string_lossy()])?;
        Self::mount(image, base)
    }

    /// `commit=300` keeps the file system from committing its journal by itself while it is copied;
    /// what the service flushes is committed at once all the same.
    fn mount(image: PathBuf, mount_point: &Path) -> Outcome<Self> {
        fs::create_dir_all(mount_point)?;
        let loop_device = command("losetup", &["--find", "--show", &image.to_string_lossy()])?;
        let device = Self { image, loop_device, mount_point: mount_point.to_owned() };
        command("mount", &["-o", "commit=300", &device.loop_device, &mount_point.to_string_lossy()])?;
        Ok(device)
    }

    /// Number of writes that the device has completed.
    fn writes(&self) -> Outcome<String> {
        let name = self.loop_device.trim_start_matches("/dev/");
        let stat = fs::read_to_string(format!("/sys/block/{name}/stat"))?;
        Ok(stat.split_whitespace().nth(4).unwrap_or_default().to_owned())
    }

    /// Copies what has reached the device and mounts the copy. A copy during which the device was
    /// written to is no state that ever existed: it is thrown away and made again.
    fn copy(&self, base: &Path) -> Outcome<Self> {
        let image = base.with_extension("img");
        for _ in 0..COPIES_MAX {
            let before = self.writes()?;
            command("cp", &["--sparse=always", &self.image.to_string_lossy(), &image.to_string_lossy()])?;
            if self.writes()? == before {
                return Self::mount(image, base);
            }
        }
        Err(format!("the device was written to during each of {COPIES_MAX} copies").into())
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        let mount_point = self.mount_point.to_string_lossy().into_owned();
        if command("umount", &[&mount_point]).is_err() {
            let _ = command("umount", &["--lazy", &mount_point]);
        }
        let _ = command("losetup", &["--detach", &self.loop_device]);
        let _ = fs::remove_file(&self.image);
    }
}

fn command(program: &str, arguments: &[&str]) -> Outcome<String> {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .map_err(|error| format!("cannot run {program}: {error}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned());
    }
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    Err(format!("{program} failed: {}", last_lines(&text, 5)).into())
}

fn require_loop_devices() -> Outcome<()> {
    let reason = if !rustix::process::geteuid().is_root() {
        "this user is not root".to_owned()
    } else {
        match command("losetup", &["--find"]) {
            Ok(_) => return Ok(()),
            Err(error) => error.to_string(),
        }
    };
    Err(format!(
        "chaos power-loss mounts a file system in a file and needs root and loop devices: {reason}. \
         Run it as root on a machine (or in a privileged container) that has /dev/loop*"
    )
    .into())
}

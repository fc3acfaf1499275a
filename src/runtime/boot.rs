//! From a data directory to a core that carries on from it: lock, journal, fold.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::domain::{Epoch, EventId};
use crate::engine::{Boot, Engine, Policy};
use crate::events::{self, CodecError, PreviousEnd, ProcessInfo};
use crate::inspect::AskError;
use crate::journal::{Journal, JournalError, JournalPaths, SledJournal, write_configuration};
use crate::ownership::{Attempt, FsLock, Identity, LockedDirectory, OwnershipError, PrevEnd, Trust};
use crate::runtime::clock;
use crate::runtime::core::Core;
use crate::runtime::handle::{Service, Status};
use crate::runtime::layout;
use crate::runtime::settings::Configured;
use crate::runtime::standby::Standby;
use crate::shape_log::{Disk, PackedDisk, RealDisk, StorageFault};
use crate::state::State;

/// How often a waiting instance looks whether the directory is free.
pub(super) const LOCK_POLL: Duration = Duration::from_millis(100);
/// Between two tries of a directory that cannot be locked, such as one that is mounted read-only.
const REFUSED_POLL_MIN: Duration = Duration::from_secs(1);
const REFUSED_POLL_MAX: Duration = Duration::from_secs(10);

/// Why a data directory cannot be used. Nothing in it has been changed, but by a migration that failed.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    #[error("{error}. {}", .error.remedy())]
    Ownership {
        #[from]
        error: OwnershipError,
    },
    #[error("the journal cannot be used: {0}")]
    Journal(#[from] JournalError),
    #[error("event {id} of the journal cannot be read: {error}")]
    Event { id: EventId, error: CodecError },
    #[error("the journal begins at event {first} and no checkpoint says what was before")]
    NoBeginning { first: EventId },
    #[error(
        "the data directory was used by version {by}, which writes layout {found}; this version reads up to \
         {supported}. Start the newer version, or use another directory; nothing was changed"
    )]
    NewerLayout { found: u32, supported: u32, by: String },
    #[error("the data directory could not be brought to layout {to}: {error}; the next start tries again")]
    Migration { to: u32, error: std::io::Error },
    #[error("the journal cannot be followed: {0}")]
    Observe(AskError),
    #[error("the shapes that share files cannot be read: {0}")]
    Pack(StorageFault),
    #[error("a thread could not be started: {0}")]
    Thread(std::io::Error),
    #[error("the data directory cannot be used: {0}")]
    Directory(std::io::Error),
}

/// A data directory that is ours, and what its journal says.
pub struct Opened {
    pub lock: FsLock,
    pub journal: SledJournal,
    pub core: Core,
    /// The first input of this process.
    pub boot: Boot,
    /// The newest checkpoint.
    pub checkpoint: EventId,
    /// Where the files of the shapes are.
    pub disk: Arc<dyn Disk>,
}

/// Waits until the directory is free, then takes it. Nothing in it is touched before.
///
/// A directory that cannot be locked at all is waited for as well: the cause and its remedy are in the
/// status and, once, in the log. Ending the process would have it started again and again.
pub async fn lock(data_dir: &Path, trust: Trust, service: &Service) -> (LockedDirectory, Duration) {
    let started = Instant::now();
    let mut told: Option<String> = None;
    let mut refused_poll = REFUSED_POLL_MIN;
    loop {
        match FsLock::try_acquire_trusting(data_dir, trust) {
            Ok(Attempt::Locked(locked)) => return (locked, started.elapsed()),
            Ok(Attempt::HeldBy(holder)) => {
                let reason = "Timeout waiting for Postgres lock acquisition".to_owned();
                if told.as_ref() != Some(&reason) {
                    tracing::info!(?holder, "waiting: another instance owns the data directory");
                    stand_by(data_dir, service);
                    service.set_status(Status::Waiting { reason: reason.clone() });
                    told = Some(reason);
                }
                refused_poll = REFUSED_POLL_MIN;
                tokio::time::sleep(LOCK_POLL).await;
            }
            Err(error) => {
                let reason = BootError::from(error).to_string();
                if told.as_ref() != Some(&reason) {
                    tracing::error!("the data directory cannot be used: {reason} Trying again.");
                    service.set_status(Status::Starting { reason: reason.clone() });
                    told = Some(reason);
                }
                tokio::time::sleep(refused_poll).await;
                refused_poll = (refused_poll * 2).min(REFUSED_POLL_MAX);
            }
        }
    }
}

/// Serves what the owner of the directory has, as far as it can be read.
fn stand_by(data_dir: &Path, service: &Service) {
    if service.is_standing_by() {
        return;
    }
    match Standby::start(data_dir.to_owned()) {
        Ok(standby) => service.stand_by(standby),
        Err(error) => tracing::warn!(%error, "shapes are not served while waiting"),
    }
}

/// Opens the journal under the lock, folds it, and claims the next epoch.
///
/// # Errors
/// [`BootError`]; the directory is as it was, but for a migration that failed half-way.
pub fn open(
    data_dir: &Path,
    locked: LockedDirectory,
    waited: Duration,
    policy: Policy,
    (configured, pack): (Configured, bool),
) -> Result<Opened, BootError> {
    layout::check_lock(locked.previous())?;
    let (journal, report) = SledJournal::open(data_dir, EventId(0))?;
    if let Some(upto) = report.missing_upto {
        tracing::error!(last = %report.last, %upto, "the journal has lost its end; every shape starts over");
    }
    for finding in &report.findings {
        tracing::warn!(?finding, "the journal was damaged");
    }
    let (engine, checkpoint) = replay(&journal, report.first, policy)?;
    let before = &engine.state().owner.process;
    let layout_before = before.format;
    layout::check(layout_before, &before.version)?;
    let previous_end = match locked.previous().end {
        PrevEnd::None => PreviousEnd::None,
        PrevEnd::Released => PreviousEnd::Released,
        PrevEnd::Crashed => PreviousEnd::Crashed,
    };
    let identity = Identity::of_this_process(env!("CARGO_PKG_VERSION"), layout::supported(), clock::now());
    let process = ProcessInfo {
        boot_id: identity.boot_id.clone(),
        version: identity.version.clone(),
        format: layout::supported(),
        host: identity.host.clone(),
        pid: identity.pid,
        config_hash: configured.hash,
    };
    let held: Epoch = engine.state().owner.epoch;
    // From here on an older program refuses the directory.
    let lock = locked.claim(held, identity)?;
    layout::migrate(data_dir, layout_before)?;
    // For people only: nothing is decided by it, so nothing fails for it.
    if let Err(error) = write_configuration(&JournalPaths::new(data_dir), &configured.described) {
        tracing::warn!(%error, "the configuration cannot be kept beside the journal");
    }
    let boot = Boot {
        process,
        epoch: lock.epoch(),
        previous_end,
        device: lock.directory().dev,
        inode: lock.directory().ino,
        waited_ms: u64::try_from(waited.as_millis()).unwrap_or(u64::MAX),
        torn_values: report.torn.map_or(0, |torn| torn.values),
        missing_upto: report.missing_upto,
    };
    let disk = open_disk(data_dir, pack)?;
    Ok(Opened { lock, journal, core: Core::new(engine), boot, checkpoint, disk })
}

/// `pack`: new shapes are kept with others in one file for as long as they are small.
fn open_disk(data_dir: &Path, pack: bool) -> Result<Arc<dyn Disk>, BootError> {
    let real = RealDisk::new(data_dir).map_err(BootError::Directory)?;
    let packed = PackedDisk::open(Arc::new(real), data_dir).map_err(BootError::Pack)?;
    Ok(if pack { Arc::new(packed) } else { Arc::new(packed.without_new_ones()) })
}

/// Folds a journal whose oldest event is `first`: the newest checkpoint, and what came after it. Also
/// says where that checkpoint stands.
///
/// # Errors
/// [`BootError`]: the journal cannot be read, or its beginning is missing.
pub fn replay(
    journal: &impl Journal,
    first: EventId,
    policy: Policy,
) -> Result<(Engine, EventId), BootError> {
    let (state, checkpoint) = newest_state(journal)?;
    if state.last == EventId(0) && first > EventId(1) {
        return Err(BootError::NoBeginning { first });
    }
    let mut engine = Engine::from_state(state, policy);
    for entry in journal.read(engine.state().last.next()) {
        let entry = entry?;
        let recorded =
            events::decode(&entry.bytes).map_err(|error| BootError::Event { id: entry.id, error })?;
        engine.follow(&recorded);
    }
    Ok((engine, checkpoint))
}

/// The newest checkpoint that this build reads, and where it stands; from nothing where there is none.
fn newest_state(journal: &impl Journal) -> Result<(State, EventId), BootError> {
    for checkpoint in journal.checkpoints()? {
        match State::from_bytes(&checkpoint.state) {
            Some(state) if state.last == checkpoint.upto => return Ok((state, checkpoint.upto)),
            Some(_) | None => {
                tracing::warn!(upto = %checkpoint.upto, "a checkpoint is of another version or damaged; folding more instead");
            }
        }
    }
    Ok((State::default(), EventId(0)))
}

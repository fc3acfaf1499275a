//! Taking, keeping and giving back a data directory.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

use crate::domain::Epoch;

use super::error::{NotHeld, OwnershipError, OwnershipStage};
use super::mounts;
use super::record::{CONTENT_BYTES_MAX, Contents, FORMAT_VERSION, Identity, LockRecord, LockState};

const LOCK_FILE: &str = "LOCK";
/// How often a lock file that was replaced between open and lock is tried again.
const ATTEMPTS_MAX: u32 = 8;

/// What a file or directory is, whatever its path: two bind mounts of one directory are the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inode {
    pub dev: u64,
    pub ino: u64,
}

impl Inode {
    fn of_path(path: &Path) -> io::Result<Inode> {
        fs::metadata(path).map(|found| Inode { dev: found.dev(), ino: found.ino() })
    }

    fn of_file(file: &File) -> io::Result<Inode> {
        file.metadata().map(|found| Inode { dev: found.dev(), ino: found.ino() })
    }
}

/// How the ownership before this one ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PrevEnd {
    /// There was none.
    None,
    Released,
    /// It ended without a word: killed, or torn while writing.
    Crashed,
}

/// What the lock file said when it was locked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Previous {
    pub end: PrevEnd,
    /// Absent if there was none or its content is damaged.
    pub record: Option<LockRecord>,
}

/// What is asked of the locks of a file system.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Trust {
    /// They exclude others, as far as can be told from here.
    #[default]
    Verified,
    /// Whatever they do: that nobody else uses the directory is promised by the one who runs this.
    Unconditional,
}

/// The outcome of one try.
#[derive(Debug)]
pub enum Attempt {
    Locked(LockedDirectory),
    /// Another process holds the lock; what it says about itself, for the log and the status page.
    HeldBy(Contents),
}

/// The lock is held, the epoch not yet taken: the journal may be opened to learn its highest epoch.
/// Dropping it gives the lock back and leaves no trace.
#[derive(Debug)]
pub struct LockedDirectory {
    files: LockFiles,
    previous: Previous,
    content_epoch: Epoch,
}

/// An owned data directory. Dropping it without [`FsLock::release`] counts as a crash.
#[derive(Debug)]
pub struct FsLock {
    files: LockFiles,
    record: LockRecord,
    previous: Previous,
}

impl FsLock {
    /// One try, never waits. Creates the directory and the empty lock file if there are none.
    ///
    /// # Errors
    /// Refusals of the operating system, each with a [`OwnershipError::remedy`]; a lock file of a newer
    /// format. That somebody else holds the lock is not an error.
    pub fn try_acquire(data_dir: &Path) -> Result<Attempt, OwnershipError> {
        FsLock::try_acquire_trusting(data_dir, Trust::Verified)
    }

    /// As [`FsLock::try_acquire`].
    ///
    /// # Errors
    /// As [`FsLock::try_acquire`].
    pub fn try_acquire_trusting(data_dir: &Path, trust: Trust) -> Result<Attempt, OwnershipError> {
        if let Some(holder) = held_by_another(data_dir) {
            return Ok(Attempt::HeldBy(holder));
        }
        create_directory(data_dir)?;
        for _ in 0..ATTEMPTS_MAX {
            let files = LockFiles::open(data_dir)?;
            match fs4::FileExt::try_lock(&files.lock) {
                Ok(()) => {}
                Err(fs4::TryLockError::WouldBlock) => return Ok(Attempt::HeldBy(files.read()?)),
                Err(fs4::TryLockError::Error(error)) => {
                    return Err(OwnershipError::classify(data_dir, OwnershipStage::Lock, error));
                }
            }
            match files.compare() {
                Ok(()) => {
                    if trust == Trust::Verified {
                        files.verify()?;
                    }
                    return files.into_locked().map(Attempt::Locked);
                }
                // Locked a file that is not at the path any more: whoever comes next would not see it.
                Err(NotHeld::InodeChanged | NotHeld::DirectoryVanished | NotHeld::EpochHigher { .. }) => {}
                Err(NotHeld::Unverified(error)) => {
                    return Err(OwnershipError::classify(data_dir, OwnershipStage::Inspect, error));
                }
            }
        }
        Err(OwnershipError::KeepsChanging { dir: data_dir.to_owned() })
    }

    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.record.epoch
    }

    #[must_use]
    pub fn previous(&self) -> &Previous {
        &self.previous
    }

    /// The locked directory: stable over renames and mounts, unlike its path.
    #[must_use]
    pub fn directory(&self) -> Inode {
        self.files.dir_inode
    }

    /// Cheap enough for every commit: three `stat`s and one read.
    ///
    /// # Errors
    /// Evidence that another process may own the directory.
    pub fn still_held(&self) -> Result<(), NotHeld> {
        self.files.compare()?;
        let contents = self.files.read_raw().map_err(NotHeld::Unverified)?;
        let found = contents.epoch();
        if found > self.record.epoch {
            return Err(NotHeld::EpochHigher { found });
        }
        Ok(())
    }

    /// Writes down the orderly end, then unlocks. Writes nothing if the directory is not ours any more.
    ///
    /// # Errors
    /// The lock is given back in any case; after an error the next owner takes this for a crash.
    pub fn release(mut self) -> Result<(), OwnershipError> {
        if self.still_held().is_err() {
            return Ok(());
        }
        self.record.state = LockState::Released;
        self.files.write(&self.record)
    }
}

impl LockedDirectory {
    #[cfg(test)]
    pub(super) fn files_for_test(&self) -> &LockFiles {
        &self.files
    }

    #[must_use]
    pub fn previous(&self) -> &Previous {
        &self.previous
    }

    /// Takes the next epoch durably: one more than the lock file and the journal have ever seen.
    ///
    /// # Errors
    /// The lock file cannot be written; the lock is given back.
    pub fn claim(self, journal_epoch: Epoch, owner: Identity) -> Result<FsLock, OwnershipError> {
        let epoch = self.content_epoch.max(journal_epoch).next();
        let record = LockRecord::new(epoch, LockState::Held, owner);
        self.files.write(&record)?;
        Ok(FsLock { files: self.files, record, previous: self.previous })
    }
}

/// Who holds the lock, as seen through a descriptor that cannot write: an instance that waits makes no
/// call that could change anything. `None` where nobody does or that cannot be told this way (NFS locks
/// nothing exclusively that is open for reading only); then it is tried in earnest.
fn held_by_another(data_dir: &Path) -> Option<Contents> {
    let lock = File::open(data_dir.join(LOCK_FILE)).ok()?;
    match fs4::FileExt::try_lock(&lock) {
        Err(fs4::TryLockError::WouldBlock) => read_contents(&lock).ok(),
        Ok(()) => {
            // As in `LockFiles::drop`. Whoever tries in this moment tries again.
            let _unlocked_by_closing = fs4::FileExt::unlock(&lock);
            None
        }
        Err(fs4::TryLockError::Error(_)) => None,
    }
}

/// What the lock file says, without taking or creating anything. `None` if there is no lock file.
///
/// # Errors
/// The file cannot be read.
pub fn read_record(data_dir: &Path) -> Result<Option<Contents>, OwnershipError> {
    let fault = |error| OwnershipError::classify(data_dir, OwnershipStage::Read, error);
    match File::open(data_dir.join(LOCK_FILE)) {
        Ok(file) => read_contents(&file).map(Some).map_err(fault),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(fault(error)),
    }
}

/// The open directory and the open lock file in it.
#[derive(Debug)]
pub(super) struct LockFiles {
    dir_path: PathBuf,
    dir: File,
    dir_inode: Inode,
    lock: File,
    lock_inode: Inode,
}

impl LockFiles {
    fn open(data_dir: &Path) -> Result<LockFiles, OwnershipError> {
        let fault = |stage| move |error: io::Error| OwnershipError::classify(data_dir, stage, error);
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir: File = rustix::fs::open(data_dir, flags, Mode::empty())
            .map_err(|errno| fault(OwnershipStage::OpenDirectory)(errno.into()))?
            .into();
        // Relative to the handle: a directory moved away meanwhile does not get a file at its old path.
        // Read and write, because NFS wants that for an exclusive lock. Never truncated: the content is
        // somebody else's until the lock is ours.
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let lock: File = rustix::fs::openat(&dir, LOCK_FILE, flags, Mode::from_raw_mode(0o644))
            .map_err(|errno| fault(OwnershipStage::OpenLockFile)(errno.into()))?
            .into();
        let dir_inode = Inode::of_file(&dir).map_err(fault(OwnershipStage::Inspect))?;
        let lock_inode = Inode::of_file(&lock).map_err(fault(OwnershipStage::Inspect))?;
        Ok(LockFiles { dir_path: data_dir.to_owned(), dir, dir_inode, lock, lock_inode })
    }

    /// Does the path still lead to what was opened?
    fn compare(&self) -> Result<(), NotHeld> {
        let same = |path: &Path, opened: Inode| match Inode::of_path(path) {
            Ok(found) => Ok(found == opened),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) if error.kind() == io::ErrorKind::NotADirectory => Ok(false),
            Err(error) => Err(NotHeld::Unverified(error)),
        };
        if !same(&self.dir_path, self.dir_inode)? {
            return Err(NotHeld::DirectoryVanished);
        }
        if !same(&self.dir_path.join(LOCK_FILE), self.lock_inode)? {
            return Err(NotHeld::InodeChanged);
        }
        Ok(())
    }

    #[cfg(test)]
    pub(super) fn unlock_for_test(&self) {
        fs4::FileExt::unlock(&self.lock).expect("it is held");
    }

    /// Does the lock that is held exclude anybody?
    pub(super) fn verify(&self) -> Result<(), OwnershipError> {
        let dir = || self.dir_path.clone();
        let fault = |error: io::Error| OwnershipError::classify(&self.dir_path, OwnershipStage::Lock, error);
        let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let second: File = rustix::fs::openat(&self.dir, LOCK_FILE, flags, Mode::empty())
            .map_err(|errno| fault(errno.into()))?
            .into();
        match fs4::FileExt::try_lock(&second) {
            Err(fs4::TryLockError::WouldBlock) => {}
            Ok(()) => return Err(OwnershipError::LocksIneffective { dir: dir() }),
            Err(fs4::TryLockError::Error(error)) => return Err(fault(error)),
        }
        match mounts::local_locks(self.dir_inode.dev) {
            Some(option) => Err(OwnershipError::LocksLocal { dir: dir(), option }),
            None => Ok(()),
        }
    }

    fn read_raw(&self) -> io::Result<Contents> {
        read_contents(&self.lock)
    }

    fn read(&self) -> Result<Contents, OwnershipError> {
        self.read_raw().map_err(|error| OwnershipError::classify(&self.dir_path, OwnershipStage::Read, error))
    }

    fn into_locked(self) -> Result<LockedDirectory, OwnershipError> {
        let contents = self.read()?;
        let content_epoch = contents.epoch();
        let previous = match contents {
            Contents::Empty => Previous { end: PrevEnd::None, record: None },
            Contents::Damaged => Previous { end: PrevEnd::Crashed, record: None },
            Contents::Newer { found } => {
                return Err(OwnershipError::NewerFormat {
                    dir: self.dir_path.clone(),
                    found,
                    supported: FORMAT_VERSION,
                });
            }
            Contents::Record(record) => {
                let end = match record.state {
                    LockState::Held => PrevEnd::Crashed,
                    LockState::Released => PrevEnd::Released,
                };
                Previous { end, record: Some(record) }
            }
        };
        Ok(LockedDirectory { files: self, previous, content_epoch })
    }

    /// In place, then cut, then fsync: the inode must stay the same.
    fn write(&self, record: &LockRecord) -> Result<(), OwnershipError> {
        let bytes = record.encode();
        assert!(bytes.len() <= CONTENT_BYTES_MAX, "a lock record must be readable again");
        let write = || {
            self.lock.write_all_at(&bytes, 0)?;
            self.lock.set_len(bytes.len() as u64)?;
            self.lock.sync_all()?;
            // The file may be new. Waiting processes sync nothing.
            self.dir.sync_all()
        };
        write().map_err(|error| OwnershipError::classify(&self.dir_path, OwnershipStage::Write, error))
    }
}

impl Drop for LockFiles {
    /// Closing would do, but for a handle that a process just being started has inherited until its `exec`.
    fn drop(&mut self) {
        if let Err(error) = fs4::FileExt::unlock(&self.lock) {
            tracing::warn!(%error, "unlocking the data directory failed; closing it unlocks it too");
        }
    }
}

fn read_contents(file: &File) -> io::Result<Contents> {
    let mut bytes = vec![0; CONTENT_BYTES_MAX];
    let mut filled = 0;
    while filled < bytes.len() {
        match file.read_at(&mut bytes[filled..], filled as u64) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(Contents::decode(&bytes[..filled]))
}

fn create_directory(data_dir: &Path) -> Result<(), OwnershipError> {
    let fault = |error| OwnershipError::classify(data_dir, OwnershipStage::CreateDirectory, error);
    if data_dir.is_dir() {
        return Ok(());
    }
    fs::create_dir_all(data_dir).map_err(fault)?;
    match data_dir.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => {
            File::open(parent).and_then(|parent| parent.sync_all()).map_err(fault)
        }
        Some(_) | None => Ok(()),
    }
}

//! Why a data directory could not be taken, and what to do about it.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use crate::domain::Epoch;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OwnershipStage {
    CreateDirectory,
    OpenDirectory,
    OpenLockFile,
    Lock,
    Inspect,
    Read,
    Write,
}

impl fmt::Display for OwnershipStage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            OwnershipStage::CreateDirectory => "creating the directory",
            OwnershipStage::OpenDirectory => "opening the directory",
            OwnershipStage::OpenLockFile => "opening the lock file",
            OwnershipStage::Lock => "locking",
            OwnershipStage::Inspect => "inspecting the lock file",
            OwnershipStage::Read => "reading the lock file",
            OwnershipStage::Write => "writing the lock file",
        })
    }
}

#[derive(Debug, thiserror::Error)]
pub enum OwnershipError {
    #[error("{} is on a read-only file system", dir.display())]
    ReadOnly { dir: PathBuf },
    #[error("no permission for {} ({stage})", dir.display())]
    Denied { dir: PathBuf, stage: OwnershipStage },
    #[error("the file system of {} does not support file locks", dir.display())]
    LocksUnsupported { dir: PathBuf },
    /// Two descriptors hold an exclusive lock at once.
    #[error("file locks in {} are granted and exclude nobody", dir.display())]
    LocksIneffective { dir: PathBuf },
    /// A mount option keeps them from the server.
    #[error("file locks in {} are only seen on this host: it is mounted with {option}", dir.display())]
    LocksLocal { dir: PathBuf, option: String },
    #[error("{} is not a directory", dir.display())]
    NotADirectory { dir: PathBuf },
    #[error("no space left for {} ({stage})", dir.display())]
    NoSpace { dir: PathBuf, stage: OwnershipStage },
    /// Somebody replaces the lock file or the directory faster than it can be locked.
    #[error("the lock file in {} keeps being replaced", dir.display())]
    KeepsChanging { dir: PathBuf },
    #[error(
        "the lock file in {} has format version {found}, this program reads up to {supported}; nothing was changed",
        dir.display()
    )]
    NewerFormat { dir: PathBuf, found: u32, supported: u32 },
    #[error("{}: {stage} failed: {source}", dir.display())]
    Io {
        dir: PathBuf,
        stage: OwnershipStage,
        #[source]
        source: io::Error,
    },
}

impl OwnershipError {
    /// One sentence for the operator.
    #[must_use]
    pub fn remedy(&self) -> &'static str {
        match self {
            OwnershipError::ReadOnly { .. } => "Mount the data directory read-write.",
            OwnershipError::Denied { .. } => {
                "Let the user of this process read and write the data directory and its LOCK file."
            }
            OwnershipError::LocksUnsupported { .. } => {
                "Put the data directory on a local file system; without a lock two instances could destroy each other's data."
            }
            OwnershipError::LocksIneffective { .. } => {
                "Put the data directory on a local file system. If only one instance can ever use it, SHAPEFOLD_UNSAFE_FILE_LOCKS=true takes it all the same; a second one would destroy its data."
            }
            OwnershipError::LocksLocal { .. } => {
                "Mount it with locks that the server sees, or use a local disk. If no other host can ever use it, SHAPEFOLD_UNSAFE_FILE_LOCKS=true takes it all the same; an instance elsewhere would destroy its data."
            }
            OwnershipError::NotADirectory { .. } => "Point the data directory setting at a directory.",
            OwnershipError::NoSpace { .. } => {
                "Free disk space or inodes on the data directory's file system."
            }
            OwnershipError::KeepsChanging { .. } => {
                "Stop whatever removes or replaces the LOCK file; it must stay for ever."
            }
            OwnershipError::NewerFormat { .. } => "Start the newer version that wrote this directory.",
            OwnershipError::Io { .. } => "Check the disk and the kernel log; the data was not touched.",
        }
    }

    pub(super) fn classify(dir: &Path, stage: OwnershipStage, source: io::Error) -> OwnershipError {
        let dir = dir.to_owned();
        match source.raw_os_error().map(Errno::from_raw_os_error) {
            Some(Errno::ROFS) => OwnershipError::ReadOnly { dir },
            Some(Errno::ACCESS | Errno::PERM) => OwnershipError::Denied { dir, stage },
            Some(Errno::NOLCK | Errno::OPNOTSUPP | Errno::NOSYS) if stage == OwnershipStage::Lock => {
                OwnershipError::LocksUnsupported { dir }
            }
            Some(Errno::NOTDIR) => OwnershipError::NotADirectory { dir },
            // create_dir_all says so if there is a file of that name.
            Some(Errno::EXIST) if stage == OwnershipStage::CreateDirectory => {
                OwnershipError::NotADirectory { dir }
            }
            Some(Errno::NOSPC | Errno::DQUOT) => OwnershipError::NoSpace { dir, stage },
            Some(_) | None => OwnershipError::Io { dir, stage, source },
        }
    }
}

/// The directory is not (or not provably) ours any more. Nothing further may be written to it.
#[derive(Debug, thiserror::Error)]
pub enum NotHeld {
    /// The path leads to another lock file than the locked one, or to none.
    #[error("ownership lost: the lock file was replaced or removed")]
    InodeChanged,
    /// The path leads to another directory than the locked one, or to none.
    #[error("ownership lost: the data directory was moved or removed")]
    DirectoryVanished,
    #[error("ownership lost: epoch {found} was taken by another process")]
    EpochHigher { found: Epoch },
    /// The operating system could not say. Not evidence of a loss.
    #[error("ownership could not be verified: {0}")]
    Unverified(#[source] io::Error),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_the_system_become_typed_refusals() {
        use OwnershipStage::{CreateDirectory, Lock, OpenLockFile, Write};
        let check = |errno: Errno, stage| {
            let error = OwnershipError::classify(
                Path::new("data"),
                stage,
                io::Error::from_raw_os_error(errno.raw_os_error()),
            );
            assert!(!error.remedy().is_empty());
            error.to_string()
        };
        for (errno, stage, text) in [
            (Errno::ROFS, OpenLockFile, "data is on a read-only file system"),
            (Errno::ACCESS, OpenLockFile, "no permission for data (opening the lock file)"),
            (Errno::NOLCK, Lock, "the file system of data does not support file locks"),
            (Errno::OPNOTSUPP, Lock, "the file system of data does not support file locks"),
            (Errno::NOSPC, Write, "no space left for data (writing the lock file)"),
            (Errno::EXIST, CreateDirectory, "data is not a directory"),
        ] {
            assert_eq!(check(errno, stage), text);
        }
        assert!(check(Errno::IO, Lock).starts_with("data: locking failed"), "anything else stays as it is");
    }
}

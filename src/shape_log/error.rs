//! What can go wrong with the files of a shape, and with the rows that go into them.

use std::fmt;
use std::io;

/// Errors of this module. None carries row values, keys or SQL.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ShapeLogError {
    #[error(transparent)]
    Storage(#[from] StorageFault),
    #[error(transparent)]
    Encode(#[from] EncodeError),
    /// The snapshot of this shape failed or was given up; there is nothing to read and there will
    /// be nothing.
    #[error("the snapshot of this shape did not complete")]
    SnapshotFailed,
    /// The definition was written by a newer release.
    #[error("shape definition of version {found}, newest known {known}")]
    DefinitionVersion { found: u16, known: u16 },
}

/// A change or a row that cannot be made into a message. The cure is a new shape, never a retry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    /// The table lost REPLICA IDENTITY FULL, or a row was written before it had it.
    #[error("an update or delete came without the old row")]
    OldRowMissing,
    /// The stream's relation lacks a column that the shape selects or is keyed by.
    #[error("column {column} of the shape is not in the replicated relation")]
    ColumnMissing {
        /// Index into the columns of the definition's relation.
        column: usize,
    },
    #[error("a value is not valid UTF-8")]
    InvalidUtf8,
    #[error("a truncate has no message: the shape has to be replaced")]
    Truncate,
    #[error("a message of {bytes} bytes is larger than a frame can hold")]
    MessageTooLarge { bytes: u64 },
    #[error("a snapshot row has {found} values, the shape has {expected}")]
    RowWidth { found: usize, expected: usize },
}

/// A storage operation that failed. After one on the write side the file is not written again, and
/// nothing counts as durable that did not before: results of write and fdatasync are never ignored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{stage} of the {file} file: {class}")]
pub struct StorageFault {
    pub class: FaultClass,
    pub stage: Stage,
    pub file: FileKind,
}

/// What a fault means to the one who decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultClass {
    /// Bytes that were durable are not what was written; `at` is the file position.
    Corrupt { at: u64 },
    /// The file or directory is gone.
    Vanished,
    /// ENOSPC or EDQUOT.
    NoSpace,
    /// EACCES, EPERM or EROFS.
    Denied,
    /// Any other errno; 0 where the system gave none (a write of zero bytes).
    Transient { errno: i32 },
}

impl fmt::Display for FaultClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FaultClass::Corrupt { at } => write!(f, "corrupt at byte {at}"),
            FaultClass::Vanished => f.write_str("vanished"),
            FaultClass::NoSpace => f.write_str("no space left"),
            FaultClass::Denied => f.write_str("permission denied"),
            FaultClass::Transient { errno } => write!(f, "errno {errno}"),
        }
    }
}

/// The operation that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    Create,
    Open,
    Read,
    Write,
    Sync,
    Truncate,
    Remove,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Stage::Create => "create",
            Stage::Open => "open",
            Stage::Read => "read",
            Stage::Write => "write",
            Stage::Sync => "sync",
            Stage::Truncate => "truncate",
            Stage::Remove => "remove",
        })
    }
}

/// The files of a shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileKind {
    Directory,
    Definition,
    Snapshot,
    Log,
    Index,
}

impl FileKind {
    /// Of the file in the directory of its shape.
    #[must_use]
    pub(crate) fn file_name(self) -> &'static str {
        match self {
            FileKind::Directory => ".",
            FileKind::Definition => "definition",
            FileKind::Snapshot => "snapshot",
            FileKind::Log => "log",
            FileKind::Index => "log.idx",
        }
    }
}

impl fmt::Display for FileKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            FileKind::Directory => "directory",
            FileKind::Definition => "definition",
            FileKind::Snapshot => "snapshot",
            FileKind::Log => "log",
            FileKind::Index => "index",
        })
    }
}

impl StorageFault {
    #[must_use]
    pub fn new(error: &io::Error, stage: Stage, file: FileKind) -> StorageFault {
        let class = match error.kind() {
            // What a disk says that keeps many shapes in one file: system calls have no such error.
            io::ErrorKind::InvalidData => FaultClass::Corrupt { at: 0 },
            io::ErrorKind::NotFound => FaultClass::Vanished,
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => FaultClass::NoSpace,
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => FaultClass::Denied,
            _ => FaultClass::Transient { errno: error.raw_os_error().unwrap_or(0) },
        };
        StorageFault { class, stage, file }
    }

    #[must_use]
    pub fn corrupt(file: FileKind, at: u64) -> StorageFault {
        StorageFault { class: FaultClass::Corrupt { at }, stage: Stage::Read, file }
    }
}

/// Names the operation and the file where an [`io::Error`] becomes a [`StorageFault`].
pub(crate) trait Named<T> {
    fn named(self, stage: Stage, file: FileKind) -> Result<T, StorageFault>;
}

impl<T> Named<T> for io::Result<T> {
    fn named(self, stage: Stage, file: FileKind) -> Result<T, StorageFault> {
        self.map_err(|error| StorageFault::new(&error, stage, file))
    }
}

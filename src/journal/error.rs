//! What can go wrong with the journal, with enough evidence to tell damage from absence.

use std::fmt;
use std::io;

use crate::domain::EventId;

/// Where in its work the journal was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    Open,
    Append,
    Sync,
    Read,
    Checkpoint,
    Trim,
    Seal,
    Retain,
    Reserve,
    Copy,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Stage::Open => "open",
            Stage::Append => "append",
            Stage::Sync => "sync",
            Stage::Read => "read",
            Stage::Checkpoint => "checkpoint",
            Stage::Trim => "trim",
            Stage::Seal => "seal",
            Stage::Retain => "retain",
            Stage::Reserve => "reserve",
            Stage::Copy => "copy",
        })
    }
}

/// What a failure means for what happens next. Damage is only what a checksum or an order proves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultClass {
    /// A checksum, a length or the sequence is wrong.
    Corrupt,
    /// The file or its directory is not there any more.
    Vanished,
    /// The disk or the quota is full.
    NoSpace,
    /// Permission denied or a read-only file system.
    Denied,
    /// Anything else the operating system said; may pass.
    Transient,
    /// The bytes are fine, this version of the software is too old for them.
    TooNew,
    /// A call that the caller may not make.
    Misuse,
}

impl FaultClass {
    pub(crate) fn of(error: &io::Error) -> FaultClass {
        use io::ErrorKind;
        match error.kind() {
            ErrorKind::NotFound => FaultClass::Vanished,
            ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => FaultClass::Denied,
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => FaultClass::NoSpace,
            ErrorKind::InvalidData | ErrorKind::UnexpectedEof => FaultClass::Corrupt,
            _ => FaultClass::Transient,
        }
    }
}

/// A place in the history or in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Position {
    Event(EventId),
    /// File name inside the journal directory and byte offset.
    File {
        name: String,
        offset: u64,
    },
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Position::Event(id) => write!(f, "event {id}"),
            Position::File { name, offset } => write!(f, "{name} at byte {offset}"),
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    #[error("journal {stage} failed: {source}")]
    Io {
        stage: Stage,
        #[source]
        source: io::Error,
    },
    /// sled refused. `message` is sled's; it may name files, never contents.
    #[error("journal {stage} failed in the store: {message}")]
    Store { stage: Stage, class: FaultClass, message: String },
    /// sled panicked, which it does on some kinds of damage.
    #[error("journal {stage} failed: the store panicked: {message}")]
    Panicked { stage: Stage, message: String },
    #[error("{what} has format version {found}, this program reads up to {supported}; nothing was changed")]
    NewerFormat { what: &'static str, found: u32, supported: u32 },
    #[error("damage at {at}: {what}")]
    Damaged { at: Position, what: &'static str },
    #[error("hole in the journal: expected event {expected}, found {found}")]
    Hole { expected: EventId, found: EventId },
    #[error("append out of order: expected event {expected}, got {got}")]
    NotDense { expected: EventId, got: EventId },
    #[error("{what} of {bytes} bytes exceeds the limit of {bytes_max}")]
    TooLarge { what: &'static str, bytes: usize, bytes_max: usize },
    /// Checkpoints never go backwards, nor beyond the end.
    #[error("checkpoint at event {upto} is not within {newest}..={last}")]
    CheckpointOutOfRange { upto: EventId, newest: EventId, last: EventId },
    #[error("the range {first}..={last} is not in the journal")]
    NotInJournal { first: EventId, last: EventId },
    /// sled's own file lock is held: another handle or process has the store open.
    #[error("the journal is already open elsewhere")]
    InUse,
    #[error("the journal failed earlier and takes no more calls")]
    Poisoned,
    /// A fail point of the simulated journal.
    #[error("injected failure of journal {stage}")]
    Injected { stage: Stage },
}

impl JournalError {
    #[must_use]
    pub fn class(&self) -> FaultClass {
        match self {
            JournalError::Io { source, .. } => FaultClass::of(source),
            JournalError::Store { class, .. } => *class,
            JournalError::Panicked { .. } | JournalError::Damaged { .. } | JournalError::Hole { .. } => {
                FaultClass::Corrupt
            }
            JournalError::NewerFormat { .. } => FaultClass::TooNew,
            JournalError::InUse | JournalError::Poisoned | JournalError::Injected { .. } => {
                FaultClass::Transient
            }
            JournalError::NotDense { .. }
            | JournalError::TooLarge { .. }
            | JournalError::CheckpointOutOfRange { .. }
            | JournalError::NotInJournal { .. } => FaultClass::Misuse,
        }
    }

    pub(crate) fn io(stage: Stage) -> impl FnOnce(io::Error) -> JournalError {
        move |source| JournalError::Io { stage, source }
    }

    pub(crate) fn store(stage: Stage) -> impl FnOnce(sled::Error) -> JournalError {
        move |error| match error {
            sled::Error::Io(source) if source.to_string().contains("could not acquire lock") => {
                JournalError::InUse
            }
            sled::Error::Io(source) => JournalError::Io { stage, source },
            sled::Error::Corruption { .. } => {
                JournalError::Store { stage, class: FaultClass::Corrupt, message: "corruption".to_owned() }
            }
            other => JournalError::Store { stage, class: FaultClass::Transient, message: other.to_string() },
        }
    }

    pub(crate) fn damaged_event(id: u64, what: &'static str) -> JournalError {
        JournalError::Damaged { at: Position::Event(EventId(id)), what }
    }

    pub(crate) fn check_size(what: &'static str, bytes: usize, bytes_max: usize) -> Result<(), JournalError> {
        if bytes > bytes_max {
            return Err(JournalError::TooLarge { what, bytes, bytes_max });
        }
        Ok(())
    }
}

/// Something that an inspection or a recovery noticed. Evidence, not a failure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    /// Events `from..=to` are missing between intact ones.
    Hole {
        from: EventId,
        to: EventId,
    },
    /// Events `from..=to` lie between two whole segments: retention dropped them, or the file is lost.
    NotKept {
        from: EventId,
        to: EventId,
    },
    /// Bytes whose checksum or structure is wrong.
    Damaged {
        at: Position,
        what: String,
    },
    /// A file ends before its footer, or the store before what was promised.
    TornTail {
        at: Position,
    },
    /// The history ends at `last`, though events up to `durable_upto` had been durable.
    EndMissing {
        last: EventId,
        durable_upto: EventId,
    },
    NewerFormat {
        what: &'static str,
        found: u32,
        supported: u32,
    },
    /// The store or a file could not be read at all.
    Unreadable {
        what: String,
        reason: String,
    },
}

impl From<&JournalError> for Finding {
    fn from(error: &JournalError) -> Finding {
        match error {
            JournalError::Damaged { at, what } => {
                Finding::Damaged { at: at.clone(), what: (*what).to_owned() }
            }
            JournalError::Hole { expected, found } => {
                Finding::Hole { from: *expected, to: EventId(found.0.saturating_sub(1)) }
            }
            JournalError::NewerFormat { what, found, supported } => {
                Finding::NewerFormat { what, found: *found, supported: *supported }
            }
            other => Finding::Unreadable { what: "journal".to_owned(), reason: other.to_string() },
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Finding::Hole { from, to } if from == to => write!(f, "event {from} is missing"),
            Finding::Hole { from, to } => write!(f, "events {from} to {to} are missing"),
            Finding::NotKept { from, to } => write!(f, "events {from} to {to} are not kept"),
            Finding::Damaged { at, what } => write!(f, "damage at {at}: {what}"),
            Finding::TornTail { at } => write!(f, "torn tail at {at}"),
            Finding::EndMissing { last, durable_upto } => {
                write!(f, "the journal ends at event {last}, though event {durable_upto} had been durable")
            }
            Finding::NewerFormat { what, found, supported } => {
                write!(f, "{what} has format version {found}, this program reads up to {supported}")
            }
            Finding::Unreadable { what, reason } => write!(f, "{what} cannot be read: {reason}"),
        }
    }
}

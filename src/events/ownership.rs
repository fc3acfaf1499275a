//! Process, ownership of the data directory, and what was done to its files.

use serde::{Deserialize, Serialize};

use crate::domain::{Epoch, Handle, Lsn, Sid};
use crate::events::Durability;

/// Facts about the process and its data directory.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum OwnershipEvent {
    /// First event of an epoch.
    #[serde(rename = "ps")]
    ProcessStarted(ProcessInfo),
    /// The file lock is held and the epoch is written under it. Closes whatever the previous epoch
    /// left open: its writers are gone with its process.
    #[serde(rename = "oa")]
    Acquired {
        epoch: Epoch,
        previous: Epoch,
        previous_end: PreviousEnd,
        /// Identity of the directory: device and inode, not its path.
        device: u64,
        inode: u64,
        waited_ms: u64,
    },
    #[serde(rename = "ds")]
    DrainStarted { cause: DrainCause },
    /// Last event of an epoch that ended in order.
    #[serde(rename = "or")]
    Released { epoch: Epoch, pending: u64, acked: Lsn },
    #[serde(rename = "ol")]
    Lost { epoch: Epoch, evidence: LossEvidence },
    /// Files are about to be renamed or removed. Durable first.
    #[serde(rename = "di")]
    DestructiveIntent { intent: IntentId, target: DestructionTarget, cause: DestructionCause },
    #[serde(rename = "dd")]
    DestructiveDone { intent: IntentId, result: DestructionResult },
    /// A storage operation failed. `count` collapses repetitions.
    #[serde(rename = "sf")]
    StorageFault { class: FaultClass, stage: Stage, file: FileKind, sid: Option<Sid>, count: u64 },
}

/// Who is running.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessInfo {
    /// `/proc/sys/kernel/random/boot_id` of the host.
    pub boot_id: String,
    pub version: String,
    /// Version of the on-disk formats as a whole.
    pub format: u32,
    pub host: String,
    pub pid: u32,
    /// Hash of the settings without secrets: tells whether two starts were configured alike.
    pub config_hash: u64,
}

/// How the ownership before this one ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PreviousEnd {
    /// There was none.
    #[serde(rename = "n")]
    None,
    #[serde(rename = "r")]
    Released,
    /// The kernel dropped its lock.
    #[serde(rename = "c")]
    Crashed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DrainCause {
    #[serde(rename = "s")]
    Signal,
    #[serde(rename = "o")]
    Operator,
    #[serde(rename = "f")]
    Fatal,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LossEvidence {
    #[serde(rename = "i")]
    InodeChanged,
    #[serde(rename = "e")]
    EpochHigher,
    #[serde(rename = "d")]
    DirectoryVanished,
}

/// Number of a destructive intent; dense over the journal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct IntentId(pub u64);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum DestructionTarget {
    #[serde(rename = "s")]
    ShapeFiles(Sid),
    /// The log of a living shape: another that brings every client to the same rows takes its place.
    #[serde(rename = "l")]
    ShapeLog(Sid),
    /// A directory with the name of a handle that no shape of this journal has.
    #[serde(rename = "q")]
    Stranger(Handle),
}

/// The only reasons for which files may go. A missing file, a version, an empty registry or a
/// failed open are not among them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DestructionCause {
    #[serde(rename = "i")]
    ShapeInvalidated,
    /// Set aside, not removed: the journal does not say what it is.
    #[serde(rename = "u")]
    Unknown,
    /// It has been set aside for long enough.
    #[serde(rename = "x")]
    QuarantineExpired,
    /// A log has grown far beyond its rows.
    #[serde(rename = "c")]
    Compacted,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DestructionResult {
    #[serde(rename = "d")]
    Done,
    /// Done by an earlier attempt: intents are repeated after a crash.
    #[serde(rename = "a")]
    AlreadyDone,
    /// Nothing was removed, and nothing will be under this intent.
    #[serde(rename = "n")]
    Abandoned,
}

/// What kind of failure, with evidence behind each: a checksum, a changed inode, an errno.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FaultClass {
    #[serde(rename = "c")]
    Corrupt,
    #[serde(rename = "v")]
    Vanished,
    #[serde(rename = "t")]
    Transient { errno: i32 },
    #[serde(rename = "n")]
    NoSpace,
    #[serde(rename = "d")]
    Denied,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stage {
    #[serde(rename = "o")]
    Open,
    #[serde(rename = "r")]
    Read,
    #[serde(rename = "w")]
    Write,
    #[serde(rename = "s")]
    Sync,
    #[serde(rename = "m")]
    Rename,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FileKind {
    #[serde(rename = "l")]
    ShapeLog,
    #[serde(rename = "s")]
    Snapshot,
    #[serde(rename = "d")]
    Definition,
    #[serde(rename = "i")]
    Index,
    #[serde(rename = "p")]
    Spill,
    #[serde(rename = "x")]
    Directory,
}

impl OwnershipEvent {
    #[must_use]
    pub fn durability(&self) -> Durability {
        match self {
            OwnershipEvent::ProcessStarted(_)
            | OwnershipEvent::Acquired { .. }
            | OwnershipEvent::DrainStarted { .. }
            | OwnershipEvent::Released { .. }
            | OwnershipEvent::Lost { .. }
            | OwnershipEvent::DestructiveIntent { .. } => Durability::Durable,
            OwnershipEvent::StorageFault { .. } => Durability::BeforeAck,
            OwnershipEvent::DestructiveDone { .. } => Durability::Lazy,
        }
    }

    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            OwnershipEvent::ProcessStarted(_) => "ProcessStarted",
            OwnershipEvent::Acquired { .. } => "OwnershipAcquired",
            OwnershipEvent::DrainStarted { .. } => "DrainStarted",
            OwnershipEvent::Released { .. } => "OwnershipReleased",
            OwnershipEvent::Lost { .. } => "OwnershipLost",
            OwnershipEvent::DestructiveIntent { .. } => "DestructiveIntent",
            OwnershipEvent::DestructiveDone { .. } => "DestructiveDone",
            OwnershipEvent::StorageFault { .. } => "StorageFault",
        }
    }
}

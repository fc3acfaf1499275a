//! The content of the lock file.

use serde::{Deserialize, Serialize};

use crate::domain::{Epoch, Timestamp};

pub(super) const FORMAT_VERSION: u32 = 1;
/// More than this is not a lock file of ours.
pub(super) const CONTENT_BYTES_MAX: usize = 4096;
const TEXT_CHARS_MAX: usize = 255;
const CHECKSUM_LABEL: &str = "crc32c=";

/// Who takes a data directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    pub pid: u32,
    pub host: String,
    /// Identifies one boot of one kernel: tells a pid from the same pid after a restart of the machine.
    pub boot_id: String,
    /// When the process started.
    pub started_at: Timestamp,
    /// Version of the program.
    pub version: String,
    /// Version of the directory as a whole that the program writes; 0 in records that do not say.
    #[serde(default)]
    pub layout: u32,
}

impl Identity {
    /// Asks the operating system for everything but the time and the versions.
    #[must_use]
    pub fn of_this_process(version: &str, layout: u32, started_at: Timestamp) -> Identity {
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        Identity {
            pid: std::process::id(),
            host: shorten(&host),
            boot_id: shorten(boot_id.trim()),
            started_at,
            version: shorten(version),
            layout,
        }
    }
}

fn shorten(text: &str) -> String {
    text.chars().take(TEXT_CHARS_MAX).collect()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LockState {
    Held,
    Released,
}

/// One ownership as its owner wrote it down.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LockRecord {
    format: u32,
    pub epoch: Epoch,
    pub state: LockState,
    #[serde(flatten)]
    pub owner: Identity,
}

impl LockRecord {
    pub(super) fn new(epoch: Epoch, state: LockState, owner: Identity) -> LockRecord {
        LockRecord { format: FORMAT_VERSION, epoch, state, owner }
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let json = serde_json::to_string(self).expect("a struct of numbers and strings is JSON");
        let checksum = crc32c::crc32c(json.as_bytes());
        format!("{json}\n{CHECKSUM_LABEL}{checksum:08x}\n").into_bytes()
    }
}

/// What a lock file says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Contents {
    /// Created, never claimed.
    Empty,
    Record(LockRecord),
    /// Torn while it was written, or not ours.
    Damaged,
    /// Intact and written by a newer program.
    Newer {
        found: u32,
    },
}

impl Contents {
    pub(super) fn decode(bytes: &[u8]) -> Contents {
        if bytes.is_empty() {
            return Contents::Empty;
        }
        Self::decode_lines(bytes).unwrap_or(Contents::Damaged)
    }

    fn decode_lines(bytes: &[u8]) -> Option<Contents> {
        #[derive(Deserialize)]
        struct Stamp {
            format: u32,
        }
        // What follows the second line is the rest of a longer record, cut off a moment later.
        let mut lines = std::str::from_utf8(bytes).ok()?.split_inclusive('\n');
        let json = lines.next()?.strip_suffix('\n')?;
        let checksum = lines.next()?.strip_suffix('\n')?.strip_prefix(CHECKSUM_LABEL)?;
        if u32::from_str_radix(checksum, 16).ok()? != crc32c::crc32c(json.as_bytes()) {
            return None;
        }
        let stamp: Stamp = serde_json::from_str(json).ok()?;
        if stamp.format > FORMAT_VERSION {
            return Some(Contents::Newer { found: stamp.format });
        }
        Some(Contents::Record(serde_json::from_str(json).ok()?))
    }

    /// The highest epoch that the content proves.
    pub(super) fn epoch(&self) -> Epoch {
        match self {
            Contents::Record(record) => record.epoch,
            Contents::Empty | Contents::Damaged | Contents::Newer { .. } => Epoch(0),
        }
    }
}

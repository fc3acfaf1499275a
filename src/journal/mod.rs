//! The journal: the one ordered history of everything that happened to this data directory.
//!
//! A record is opaque here: [`Entry`] carries the bytes of one encoded event, whose own version byte
//! belongs to the events codec. This module owns order (dense ids), durability, framing, checksums and
//! the container versions. It knows neither what an event means nor who reads it.
//!
//! # Where things are
//!
//! | Path under the data directory | What | Written by |
//! |---|---|---|
//! | `journal/FORMAT` | stamp: container version, read before anything else is opened | [`SledJournal::open`] |
//! | `journal/MARK` | which event was certainly durable: gives a store away that lost its end | [`SledJournal`] |
//! | `journal/sled/` | recent entries and the last two checkpoints (sled 0.34.7) | [`SledJournal`] |
//! | `journal/archive/<epoch>-<first>-<last>.sfj` | sealed segments | [`Archive`] |
//! | `journal/archive/<epoch>-<last>.sfs` | states at the ends of segments | [`Archive`] |
//! | `journal/CONFIGURATION` | how the newest owner is configured, without secrets: for people | [`write_configuration`] |
//! | `journal/reserve` | disk space kept for the drain | [`Reserve`] |
//!
//! # On-disk formats
//!
//! Integers are little-endian unless marked BE (keys, so that byte order is number order). Every checksum
//! is CRC-32C. A version number is never reused; a newer one is refused ([`JournalError::NewerFormat`])
//! and nothing is changed. Fixtures of every version are in `tests/data/journal/`.
//!
//! `FORMAT`, version 1: the line `shapefold-journal 1 crc32c=<8 hex digits>`, checksum over the text before
//! ` crc32c`. Replaced by rename only.
//!
//! `MARK`, version 1: two slots, at byte 0 and 512, written in turn; the intact one with the higher turn counts.
//!
//! | Slot | bytes | meaning |
//! |---|---|---|
//! | magic and version | 8 | `SFJMARK1` |
//! | turn | u64 | number of the write |
//! | durable | u64 | id of an event that was durable |
//! | checksum | u32 | over the fields above |
//!
//! `CONFIGURATION`, version 1: the line `shapefold-configuration 1 crc32c=<8 hex digits>`, checksum over the JSON
//! object on the second line. Replaced by rename only; may be missing.
//!
//! sled trees: `entries`, `checkpoints`, `damaged` (values taken out of the way by recovery, kept as
//! evidence under their old key), `meta` (key `first`: the trim floor; key `unfinished`: there while an append
//! of several writes is made).
//!
//! | Key in `entries` | bytes | meaning |
//! |---|---|---|
//! | first id | u64 BE | id of the first record in the value |
//! | fragment | u16 BE | 0 for packed records; number of the fragment otherwise |
//!
//! | Key in `checkpoints` | bytes | meaning |
//! |---|---|---|
//! | serial | u64 BE | number of the checkpoint, strictly increasing |
//! | chunk | u32 BE | number of the chunk; `u32::MAX` is the manifest, written last |
//!
//! Every value, version 1, at most [`VALUE_BYTES_MAX`] bytes (larger ones would end up in sled's `blobs/`,
//! which sled writes without any fsync):
//!
//! | Field | bytes | meaning |
//! |---|---|---|
//! | version | u8 | 1. This field and the next keep their place in every future version |
//! | checksum | u32 | over key, version and payload |
//! | payload | rest | by kind, see below |
//!
//! | Kind (first payload byte) | rest of the payload |
//! |---|---|
//! | 1 packed | count u16, then per record: length u16, bytes |
//! | 2 fragment | index u16, total u16, bytes: one record larger than a value |
//! | 3 checkpoint chunk | bytes |
//! | 4 checkpoint manifest | upto u64, state length u64, chunk count u32, checksum of the state u32 |
//! | 5 trim floor | id u64 |
//! | 6 unfinished append | last id before it u64 |
//!
//! The archive's format is described in [`archive`].

pub mod archive;
mod checkpoint;
mod configuration;
mod error;
pub mod export;
mod files;
mod mark;
mod memory;
mod offline;
mod reserve;
mod sled_journal;
mod survey;
mod thread;
mod unfinished;
mod value;
mod walk;

use crate::domain::EventId;

pub use archive::{Archive, ArchiveReader, ArchiveSegment, ArchivedState, Retention, SealSpan, StateMark};
pub use configuration::write_configuration;
pub use error::{FaultClass, Finding, JournalError, Position, Stage};
pub use export::{ExportFile, ExportWriter};
pub use files::JournalPaths;
pub use memory::{FailPoint, MemoryJournal};
pub use offline::{IMPORTED_NAME, OfflineJournal, Reading};
pub use reserve::{RESERVE_BYTES, Reserve, ReserveState};
pub use sled_journal::{JournalReader, OpenReport, SledJournal, TornTail};
pub use thread::{Durability, JournalHandle, JournalThread, Notice, Stopped};
pub use value::VALUE_BYTES_MAX;

/// Largest encoded record. Larger is refused: an event of this size means that somebody put data in it.
pub const RECORD_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Record bytes in one atomic write of sled. What is appended together may be more, and is all there or not
/// at all nevertheless: the events of one step belong together, and a step may end every shape there is.
pub const WRITE_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Largest state in one checkpoint.
pub const CHECKPOINT_BYTES_MAX: usize = 512 * 1024 * 1024;

/// One encoded record and its position.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Dense over the whole life of the data directory, over all epochs.
    pub id: EventId,
    /// One encoded record: at most [`RECORD_BYTES_MAX`].
    pub bytes: Vec<u8>,
}

/// A saved fold of everything up to and including `upto`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    pub upto: EventId,
    pub state: Vec<u8>,
}

/// What the runtime and the simulator write to. Implemented by [`SledJournal`] and [`MemoryJournal`].
pub trait Journal {
    /// Adds records: all or nothing, also over a crash. Ids continue densely from [`Journal::last`]. Not
    /// durable before [`Journal::sync`].
    ///
    /// # Errors
    /// A refusal (wrong id, a record that is too large) changes nothing. Any failure of the store poisons the journal.
    fn append(&mut self, batch: &[Entry]) -> Result<(), JournalError>;

    /// Makes everything appended durable and returns the last durable id.
    ///
    /// # Errors
    /// After a failure nothing may be assumed about what reached the disk, and a second fsync would lie:
    /// the journal is poisoned, every later call fails and the process stops.
    fn sync(&mut self) -> Result<EventId, JournalError>;

    /// Entries from `from` on, or from the first one kept if `from` has been trimmed. An error item names
    /// its position; the iterator carries on behind it.
    fn read(&self, from: EventId) -> Box<dyn Iterator<Item = Result<Entry, JournalError>> + '_>;

    /// Id of the last entry, durable or not; [`EventId`] 0 in an empty journal.
    fn last(&self) -> EventId;

    /// Saves the fold of everything up to `upto` durably (entries first), then drops all but the last two
    /// intact checkpoints. `upto` lies between the newest checkpoint and the end.
    ///
    /// # Errors
    /// [`JournalError::CheckpointOutOfRange`] changes nothing; a failure of the store poisons.
    fn checkpoint(&mut self, upto: EventId, state: &[u8]) -> Result<(), JournalError>;

    /// Intact checkpoints, newest first. Damaged ones are left out (and reported at open).
    ///
    /// # Errors
    /// Only if the store cannot be read at all.
    fn checkpoints(&self) -> Result<Vec<Checkpoint>, JournalError>;

    /// Drops entries below `before`, but never what the second-last checkpoint needs, nor the last value.
    /// The caller must have sealed them into the archive. Returns the first id that is kept.
    ///
    /// # Errors
    /// A failure of the store poisons.
    fn trim(&mut self, before: EventId) -> Result<EventId, JournalError>;
}

/// Checks that `batch` continues `last` densely and is within the limits; shared by both journals.
fn check_batch(last: EventId, batch: &[Entry]) -> Result<(), JournalError> {
    let mut expected = last;
    for entry in batch {
        expected = expected.next();
        if entry.id != expected {
            return Err(JournalError::NotDense { expected, got: entry.id });
        }
        JournalError::check_size("record", entry.bytes.len(), RECORD_BYTES_MAX)?;
    }
    Ok(())
}

/// Checks where a checkpoint may stand; shared by both journals.
fn check_checkpoint(newest: EventId, upto: EventId, last: EventId, state: &[u8]) -> Result<(), JournalError> {
    if upto < newest || upto > last {
        return Err(JournalError::CheckpointOutOfRange { upto, newest, last });
    }
    JournalError::check_size("checkpoint", state.len(), CHECKPOINT_BYTES_MAX)
}

#[cfg(test)]
mod tests;

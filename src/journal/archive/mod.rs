//! Sealed segments: what is not needed for recovery any more, compressed, for inspection after the fact.
//!
//! A segment is a plain file that never changes: written under a temporary name, fsynced, renamed. A reader
//! takes no lock and may run on a copy, in another process, beside a running owner. Beside segments lie
//! states (`<epoch>-<last id>.sfs`, see `state.rs`), from which a fold may begin.
//!
//! # `<epoch>-<first id>-<last id>.sfj`, format version 1
//!
//! The numbers in the name are decimal, padded to 10, 20 and 20 digits, so that names sort. Integers are
//! little-endian, checksums CRC-32C.
//!
//! | Header | bytes | meaning |
//! |---|---|---|
//! | magic | 8 | `SFJARCHV` |
//! | version | u16 | 1 |
//! | header length | u16 | 56 in version 1. Up to and including the checksum, fields keep their place |
//! | header checksum | u32 | over the header without this field |
//! | epoch | u64 | the ownership that sealed the segment |
//! | first, last | 2 × u64 | ids of the records, dense |
//! | oldest, newest | 2 × i64 | when they happened, microseconds since 1970, UTC |
//!
//! | Block (any number) | bytes | meaning |
//! |---|---|---|
//! | marker | 4 | `SFJB` |
//! | first | u64 | id of the first record in the block |
//! | count | u32 | records, dense |
//! | raw length | u32 | of the payload before compression |
//! | stored length | u32 | of the payload as stored |
//! | checksum | u32 | over first to stored length, and the stored payload |
//! | payload | stored length | zstd; per record: length u32, bytes |
//!
//! | Footer | bytes | meaning |
//! |---|---|---|
//! | marker | 4 | `SFJE` |
//! | blocks | u32 | number of blocks |
//! | count | u64 | number of records |
//! | total checksum | u32 | over all bytes between header and footer |
//! | footer checksum | u32 | over the footer without this field |

mod block;
mod reader;
mod retention;
mod state;

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use crate::domain::{Epoch, EventId, Timestamp};

use super::error::{JournalError, Stage};
use super::files::{self, JournalPaths};
use super::{Entry, RECORD_BYTES_MAX};

pub use reader::ArchiveReader;
pub use retention::Retention;
pub(super) use state::list_states;
pub use state::{ArchivedState, StateMark};

use block::{Footer, Header};

const EXTENSION: &str = "sfj";
const TEMPORARY_EXTENSION: &str = "sfj-tmp";
/// Record bytes after which a block is closed.
const BLOCK_BYTES_TARGET: usize = 256 * 1024;
/// A block holds the target and one more record at most.
const BLOCK_RAW_BYTES_MAX: usize = BLOCK_BYTES_TARGET + RECORD_BYTES_MAX + 8;
const ZSTD_LEVEL: i32 = 3;

/// Which records a seal covers and what the caller knows of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SealSpan {
    pub epoch: Epoch,
    pub first: EventId,
    pub last: EventId,
    /// Time of the oldest and of the newest event: retention goes by the newest.
    pub oldest_at: Timestamp,
    pub newest_at: Timestamp,
}

/// One sealed file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArchiveSegment {
    pub path: PathBuf,
    pub epoch: Epoch,
    pub first: EventId,
    pub last: EventId,
    /// Size of the file.
    pub bytes: u64,
    /// Size of the state that is saved at its end; 0 where there is none.
    pub state_bytes: u64,
    /// Absent if the header is damaged or of a newer version: then age does not remove the file.
    pub newest_at: Option<Timestamp>,
}

/// The writing side. Only under the ownership lock.
pub struct Archive {
    dir: PathBuf,
}

impl Archive {
    /// Makes the directory, and removes what a seal that never finished left behind.
    ///
    /// # Errors
    /// The directory cannot be made or read.
    pub fn open(paths: &JournalPaths) -> Result<Archive, JournalError> {
        let dir = paths.archive();
        let prepare = || -> io::Result<()> {
            fs::create_dir_all(&dir)?;
            files::sync_dir(paths.root())?;
            for found in fs::read_dir(&dir)? {
                let path = found?.path();
                let temporary = |extension: &std::ffi::OsStr| {
                    extension == TEMPORARY_EXTENSION || extension == state::TEMPORARY_EXTENSION
                };
                if path.extension().is_some_and(temporary) {
                    fs::remove_file(path)?;
                }
            }
            Ok(())
        };
        prepare().map_err(JournalError::io(Stage::Seal))?;
        Ok(Archive { dir })
    }

    /// Writes the records `first..=last` of `entries` (which may begin earlier and go on) as one segment,
    /// durably. Sealing the same range again replaces the file by an equal one. Seal only what is durable in
    /// the journal.
    ///
    /// # Errors
    /// [`JournalError::NotInJournal`] if records are missing; an error of `entries`; or the disk's. Nothing
    /// but a temporary file is left.
    pub fn seal(
        &self,
        span: &SealSpan,
        entries: impl Iterator<Item = Result<Entry, JournalError>>,
    ) -> Result<ArchiveSegment, JournalError> {
        let missing = || JournalError::NotInJournal { first: span.first, last: span.last };
        if span.first > span.last || span.first == EventId(0) {
            return Err(missing());
        }
        let path = self.dir.join(file_name(span));
        let temporary = path.with_extension(TEMPORARY_EXTENSION);
        let mut writer = SegmentWriter::create(&temporary, span).map_err(JournalError::io(Stage::Seal))?;
        let mut expected = span.first;
        for entry in entries {
            let entry = entry?;
            if entry.id < span.first {
                continue;
            }
            if entry.id != expected {
                return Err(missing());
            }
            JournalError::check_size("record", entry.bytes.len(), RECORD_BYTES_MAX)?;
            writer.push(&entry).map_err(JournalError::io(Stage::Seal))?;
            if entry.id == span.last {
                let bytes = writer.finish().map_err(JournalError::io(Stage::Seal))?;
                let publish = fs::rename(&temporary, &path).and_then(|()| files::sync_dir(&self.dir));
                publish.map_err(JournalError::io(Stage::Seal))?;
                return Ok(ArchiveSegment {
                    path,
                    epoch: span.epoch,
                    first: span.first,
                    last: span.last,
                    bytes,
                    state_bytes: 0,
                    newest_at: Some(span.newest_at),
                });
            }
            expected = expected.next();
        }
        Err(missing())
    }

    /// Saves the state at the end of a segment, durably: where a later fold may begin.
    ///
    /// # Errors
    /// The state is too large, or the disk's. Nothing but a temporary file is left.
    pub fn save_state(&self, mark: &StateMark, state: &[u8]) -> Result<ArchivedState, JournalError> {
        state::save(&self.dir, mark, state)
    }

    /// The saved states, oldest first.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn states(&self) -> Result<Vec<ArchivedState>, JournalError> {
        Ok(list_states(&self.dir).map_err(JournalError::io(Stage::Retain))?.0)
    }

    /// All sealed segments, by first id.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn segments(&self) -> Result<Vec<ArchiveSegment>, JournalError> {
        list(&self.dir).map_err(JournalError::io(Stage::Retain))
    }

    /// Removes one segment durably, and the states that lead to nothing any more; `false` if the segment
    /// was gone already (a removal that is run again).
    ///
    /// # Errors
    /// A file cannot be removed.
    pub fn remove(&self, segment: &ArchiveSegment) -> Result<bool, JournalError> {
        let removed = remove_file(&segment.path)?;
        // The state right before the oldest segment stands in for the beginning that is gone.
        let oldest = self.segments()?.first().map_or(segment.last.next(), |oldest| oldest.first);
        for state in self.states()? {
            if state.mark.upto.next() < oldest {
                remove_file(&state.path)?;
            }
        }
        files::sync_dir(&self.dir).map_err(JournalError::io(Stage::Retain))?;
        Ok(removed)
    }
}

/// `false` if it was gone already.
fn remove_file(path: &Path) -> Result<bool, JournalError> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(JournalError::io(Stage::Retain)(error)),
    }
}

fn file_name(span: &SealSpan) -> String {
    format!("{:010}-{:020}-{:020}.{EXTENSION}", span.epoch.0, span.first.0, span.last.0)
}

/// Sealed segments in a directory, by first id; other files are not ours to judge. None if there is no such
/// directory.
pub(super) fn list(dir: &Path) -> io::Result<Vec<ArchiveSegment>> {
    let found = match fs::read_dir(dir) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut segments = Vec::new();
    for file in found {
        segments.extend(segment(&file?.path())?);
    }
    for state in list_states(dir)?.0 {
        for segment in segments.iter_mut().filter(|segment| segment.last == state.mark.upto) {
            segment.state_bytes = state.bytes;
        }
    }
    segments.sort_by_key(|segment| (segment.first, segment.last, segment.epoch));
    Ok(segments)
}

/// The sealed segment that this file's name says it is, if it does.
pub(super) fn segment(path: &Path) -> io::Result<Option<ArchiveSegment>> {
    let Some((epoch, first, last)) = parse_file_name(path) else { return Ok(None) };
    let newest_at = ArchiveReader::open(path).ok().and_then(|reader| Some(reader.header()?.newest_at));
    let bytes = fs::metadata(path)?.len();
    Ok(Some(ArchiveSegment { path: path.to_owned(), epoch, first, last, bytes, state_bytes: 0, newest_at }))
}

fn parse_file_name(path: &Path) -> Option<(Epoch, EventId, EventId)> {
    if path.extension()? != EXTENSION {
        return None;
    }
    let mut numbers = path.file_stem()?.to_str()?.split('-').map(str::parse::<u64>);
    let mut number = || numbers.next()?.ok();
    let parsed = (Epoch(number()?), EventId(number()?), EventId(number()?));
    numbers.next().is_none().then_some(parsed)
}

/// Writes one segment from front to back.
struct SegmentWriter {
    out: BufWriter<File>,
    raw: Vec<u8>,
    block_first: EventId,
    block_count: u32,
    footer: Footer,
    bytes: u64,
}

impl SegmentWriter {
    fn create(path: &Path, span: &SealSpan) -> io::Result<SegmentWriter> {
        let file = OpenOptions::new().write(true).create(true).truncate(true).open(path)?;
        let mut out = BufWriter::new(file);
        let header = Header(*span).encode();
        out.write_all(&header)?;
        Ok(SegmentWriter {
            out,
            raw: Vec::new(),
            block_first: span.first,
            block_count: 0,
            footer: Footer::default(),
            bytes: header.len() as u64,
        })
    }

    fn push(&mut self, entry: &Entry) -> io::Result<()> {
        if self.block_count == 0 {
            self.block_first = entry.id;
        }
        block::push_record(&mut self.raw, &entry.bytes);
        self.block_count += 1;
        if self.raw.len() >= BLOCK_BYTES_TARGET { self.close_block() } else { Ok(()) }
    }

    fn close_block(&mut self) -> io::Result<()> {
        if self.block_count == 0 {
            return Ok(());
        }
        let stored = zstd::bulk::compress(&self.raw, ZSTD_LEVEL)?;
        let block = block::encode(self.block_first, self.block_count, self.raw.len(), &stored);
        self.out.write_all(&block)?;
        self.bytes += block.len() as u64;
        self.footer.blocks += 1;
        self.footer.count += u64::from(self.block_count);
        self.footer.total_crc = crc32c::crc32c_append(self.footer.total_crc, &block);
        self.raw.clear();
        self.block_count = 0;
        Ok(())
    }

    /// Closes and fsyncs; returns the size of the file.
    fn finish(mut self) -> io::Result<u64> {
        self.close_block()?;
        let footer = self.footer.encode();
        self.out.write_all(&footer)?;
        let file = self.out.into_inner().map_err(io::IntoInnerError::into_error)?;
        file.sync_all()?;
        Ok(self.bytes + footer.len() as u64)
    }
}

#[cfg(test)]
mod tests;

//! States beside the segments: where a fold may begin that asks for a moment long ago.
//!
//! # `<epoch>-<last id>.sfs`, format version 1
//!
//! The numbers in the name are decimal, padded to 10 and 20 digits. Integers are little-endian, checksums
//! CRC-32C. Like a segment, the file never changes: written under a temporary name, fsynced, renamed. It
//! may be missing for any segment: then the fold begins earlier.
//!
//! | Header | bytes | meaning |
//! |---|---|---|
//! | magic | 8 | `SFJSTATE` |
//! | version | u16 | 1 |
//! | header length | u16 | 68 in version 1. Up to and including the checksum, fields keep their place |
//! | header checksum | u32 | over the header without this field |
//! | epoch | u64 | the ownership that saved the state |
//! | last | u64 | id of the last event in the state |
//! | at | i64 | newest time in the state, microseconds since 1970, UTC |
//! | routed | u64 | LSN up to which the state has routed |
//! | raw length | u64 | of the state before compression |
//! | stored length | u64 | of the state as stored |
//! | stored checksum | u32 | over the state as stored |
//!
//! Behind the header: the state, zstd.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::domain::{Epoch, EventId, Lsn, Timestamp};

use super::super::error::{Finding, JournalError, Position, Stage};
use super::super::value::{Cursor, ValueFault};
use super::super::{CHECKPOINT_BYTES_MAX, Checkpoint};

const MAGIC: &[u8; 8] = b"SFJSTATE";
const VERSION: u16 = 1;
/// Magic, version, length, checksum: what every version begins with.
const PREFIX_BYTES: usize = 16;
const HEADER_BYTES: usize = PREFIX_BYTES + 52;
const EXTENSION: &str = "sfs";
pub(super) const TEMPORARY_EXTENSION: &str = "sfs-tmp";
const ZSTD_LEVEL: i32 = 3;

/// What a saved state says of itself without being unpacked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StateMark {
    pub epoch: Epoch,
    /// The last event in it.
    pub upto: EventId,
    /// The newest time in it.
    pub at: Timestamp,
    /// The LSN up to which it has routed.
    pub routed: Lsn,
}

/// One saved state whose header is intact.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArchivedState {
    pub path: PathBuf,
    pub mark: StateMark,
    /// Size of the file.
    pub bytes: u64,
}

impl ArchivedState {
    /// Reads and checks the whole.
    ///
    /// # Errors
    /// Damage, with its place; or the operating system's.
    pub fn load(&self) -> Result<Checkpoint, JournalError> {
        let bytes = fs::read(&self.path).map_err(JournalError::io(Stage::Read))?;
        let name = self.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let refuse = |offset: usize, what| JournalError::Damaged {
            at: Position::File { name: name.clone(), offset: offset as u64 },
            what,
        };
        let header = Header::decode(&bytes).map_err(|fault| match fault {
            ValueFault::Damaged(what) => refuse(0, what),
            ValueFault::Newer { found } => newer(found.into()),
        })?;
        let stored = &bytes[HEADER_BYTES..];
        if stored.len() as u64 != header.stored_bytes || crc32c::crc32c(stored) != header.stored_crc {
            return Err(refuse(HEADER_BYTES, "checksum of an archived state"));
        }
        let raw = usize::try_from(header.raw_bytes).unwrap_or(usize::MAX);
        JournalError::check_size("state", raw, CHECKPOINT_BYTES_MAX)?;
        match zstd::bulk::decompress(stored, raw) {
            Ok(state) if state.len() == raw => Ok(Checkpoint { upto: header.mark.upto, state }),
            Ok(_) | Err(_) => Err(refuse(HEADER_BYTES, "compression of an archived state")),
        }
    }
}

fn newer(found: u32) -> JournalError {
    JournalError::NewerFormat { what: "an archived state", found, supported: u32::from(VERSION) }
}

struct Header {
    mark: StateMark,
    raw_bytes: u64,
    stored_bytes: u64,
    stored_crc: u32,
}

impl Header {
    fn encode(&self) -> Vec<u8> {
        let mut body = Vec::with_capacity(HEADER_BYTES - PREFIX_BYTES);
        body.extend(self.mark.epoch.0.to_le_bytes());
        body.extend(self.mark.upto.0.to_le_bytes());
        body.extend(self.mark.at.0.to_le_bytes());
        body.extend(self.mark.routed.0.to_le_bytes());
        body.extend(self.raw_bytes.to_le_bytes());
        body.extend(self.stored_bytes.to_le_bytes());
        body.extend(self.stored_crc.to_le_bytes());
        let mut header = MAGIC.to_vec();
        header.extend(VERSION.to_le_bytes());
        header.extend(u16::try_from(HEADER_BYTES).expect("the header is small").to_le_bytes());
        let checksum = crc32c::crc32c_append(crc32c::crc32c(&header), &body);
        header.extend(checksum.to_le_bytes());
        header.extend(body);
        header
    }

    /// From the beginning of a file. Never panics, whatever the bytes.
    fn decode(bytes: &[u8]) -> Result<Header, ValueFault> {
        let mut cursor = Cursor(bytes);
        if cursor.take(MAGIC.len())? != MAGIC {
            return Err(ValueFault::Damaged("magic"));
        }
        let version = cursor.u16()?;
        let length = usize::from(cursor.u16()?);
        let checksum = cursor.u32()?;
        let body_bytes = length.checked_sub(PREFIX_BYTES).ok_or(ValueFault::Damaged("header length"))?;
        let body = cursor.take(body_bytes)?;
        if checksum != crc32c::crc32c_append(crc32c::crc32c(&bytes[..PREFIX_BYTES - 4]), body) {
            return Err(ValueFault::Damaged("checksum of the header"));
        }
        if version != VERSION {
            return Err(ValueFault::Newer { found: u8::try_from(version).unwrap_or(u8::MAX) });
        }
        let mut body = Cursor(body);
        Ok(Header {
            mark: StateMark {
                epoch: Epoch(body.u64()?),
                upto: EventId(body.u64()?),
                at: Timestamp(body.i64()?),
                routed: Lsn(body.u64()?),
            },
            raw_bytes: body.u64()?,
            stored_bytes: body.u64()?,
            stored_crc: body.u32()?,
        })
    }
}

/// Writes a state durably under its final name. Saving the same again replaces the file by an equal one.
pub(super) fn save(dir: &Path, mark: &StateMark, state: &[u8]) -> Result<ArchivedState, JournalError> {
    JournalError::check_size("state", state.len(), CHECKPOINT_BYTES_MAX)?;
    let path = dir.join(format!("{:010}-{:020}.{EXTENSION}", mark.epoch.0, mark.upto.0));
    let write = || -> io::Result<u64> {
        let stored = zstd::bulk::compress(state, ZSTD_LEVEL)?;
        let header = Header {
            mark: *mark,
            raw_bytes: state.len() as u64,
            stored_bytes: stored.len() as u64,
            stored_crc: crc32c::crc32c(&stored),
        };
        let temporary = path.with_extension(TEMPORARY_EXTENSION);
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).open(&temporary)?;
        file.write_all(&header.encode())?;
        file.write_all(&stored)?;
        file.sync_all()?;
        fs::rename(&temporary, &path)?;
        super::files::sync_dir(dir)?;
        Ok((HEADER_BYTES + stored.len()) as u64)
    };
    let bytes = write().map_err(JournalError::io(Stage::Seal))?;
    Ok(ArchivedState { path, mark: *mark, bytes })
}

/// Saved states in a directory, oldest first, and what is wrong with others. None if there is no such
/// directory.
pub(in super::super) fn list_states(dir: &Path) -> io::Result<(Vec<ArchivedState>, Vec<Finding>)> {
    let (mut states, mut findings) = (Vec::new(), Vec::new());
    let found = match fs::read_dir(dir) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((states, findings)),
        Err(error) => return Err(error),
    };
    for file in found {
        let path = file?.path();
        if path.extension().is_none_or(|extension| extension != EXTENSION) {
            continue;
        }
        match mark_of(&path) {
            Ok(state) => states.push(state),
            Err(error) => findings.push(Finding::from(&error)),
        }
    }
    states.sort_by_key(|state| state.mark.upto);
    Ok((states, findings))
}

fn mark_of(path: &Path) -> Result<ArchivedState, JournalError> {
    let file = File::open(path).map_err(JournalError::io(Stage::Read))?;
    let bytes = file.metadata().map_err(JournalError::io(Stage::Read))?.len();
    let mut header = [0; HEADER_BYTES];
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let damaged = |what| JournalError::Damaged { at: Position::File { name: name.clone(), offset: 0 }, what };
    match file.read_exact_at(&mut header, 0) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Err(damaged("truncated")),
        Err(error) => return Err(JournalError::io(Stage::Read)(error)),
    }
    match Header::decode(&header) {
        Ok(header) if bytes == HEADER_BYTES as u64 + header.stored_bytes => {
            Ok(ArchivedState { path: path.to_owned(), mark: header.mark, bytes })
        }
        Ok(_) => Err(damaged("length of an archived state")),
        Err(ValueFault::Damaged(what)) => Err(damaged(what)),
        Err(ValueFault::Newer { found }) => Err(newer(found.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(upto: u64) -> StateMark {
        StateMark { epoch: Epoch(3), upto: EventId(upto), at: Timestamp(7), routed: Lsn(9) }
    }

    #[test]
    fn what_was_saved_comes_back() {
        let dir = tempfile::tempdir().unwrap();
        let state = vec![5; 100_000];
        let saved = save(dir.path(), &mark(12), &state).unwrap();
        save(dir.path(), &mark(4), b"earlier").unwrap();
        let (states, findings) = list_states(dir.path()).unwrap();
        assert_eq!(findings, []);
        assert_eq!(states.iter().map(|state| state.mark.upto.0).collect::<Vec<_>>(), [4, 12]);
        assert_eq!(states[1], saved);
        assert_eq!(saved.load().unwrap(), Checkpoint { upto: EventId(12), state });
        assert_eq!(saved.bytes, fs::metadata(&saved.path).unwrap().len());
    }

    /// Every byte and every length counts: what is not as it was written is not read.
    #[test]
    fn damage_anywhere_is_located() {
        let dir = tempfile::tempdir().unwrap();
        let state: Vec<u8> = (0..60_u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
        let saved = save(dir.path(), &mark(12), &state).unwrap();
        let whole = fs::read(&saved.path).unwrap();
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x21;
            fs::write(&saved.path, &bytes).unwrap();
            let (states, findings) = list_states(dir.path()).unwrap();
            let told = match states.first() {
                Some(state) => matches!(state.load(), Err(JournalError::Damaged { .. })),
                None => findings.len() == 1,
            };
            assert!(told, "byte {at}");
        }
        for length in (0..whole.len()).step_by(13) {
            fs::write(&saved.path, &whole[..length]).unwrap();
            let (states, findings) = list_states(dir.path()).unwrap();
            assert_eq!((states.len(), findings.len()), (0, 1), "{length} bytes");
        }
    }

    #[test]
    fn a_newer_version_is_told_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let saved = save(dir.path(), &mark(12), b"state").unwrap();
        let mut bytes = fs::read(&saved.path).unwrap();
        bytes[8] = 2;
        let crc = crc32c::crc32c_append(crc32c::crc32c(&bytes[..12]), &bytes[16..HEADER_BYTES]);
        bytes[12..16].copy_from_slice(&crc.to_le_bytes());
        fs::write(&saved.path, &bytes).unwrap();
        let (states, findings) = list_states(dir.path()).unwrap();
        assert_eq!(states, []);
        assert!(
            matches!(findings[..], [Finding::NewerFormat { found: 2, supported: 1, .. }]),
            "{findings:?}"
        );
    }
}

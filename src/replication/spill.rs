//! Transactions, in memory or in a file.
//!
//! The file never outlives the process: it has no name from the moment it is open. It is therefore no
//! format: records as in memory, `length u32 | relation u32 | message`, native to this process, where
//! `relation` is a position in the transaction's announcements and all ones for a truncate.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;

use crate::domain::{Change, Lsn, Oid, Timestamp, WireRelation, Xid};
use crate::replication::ReplicationError;
use crate::replication::pgoutput::{self, Head, Malformed};

/// One committed transaction with all its changes, in the order of the stream.
#[derive(Debug)]
pub struct Transaction {
    pub xid: Xid,
    /// Position of the commit record: the LSN that the rows carry on the wire.
    pub lsn: Lsn,
    /// End of the commit record. Acknowledging it, or anything later, means that Postgres does not
    /// send the transaction again; acknowledging `lsn` does not.
    pub end_lsn: Lsn,
    pub committed_at: Timestamp,
    /// Number of changes; their `op`s are 0, 2, 4, …
    pub changes: u64,
    /// Encoded size: what it holds in memory (apart from per-row bookkeeping) or on disk.
    pub bytes: u64,
    /// Relations that it touched, truncated ones included. Ascending.
    pub relations: Vec<Oid>,
    /// Relations that it truncated. Ascending.
    pub truncated: Vec<Oid>,
    pub(super) body: Body,
}

#[derive(Debug)]
pub(super) enum Body {
    Memory(Vec<Change>),
    Spilled { file: SpillFile, wire: Vec<Arc<WireRelation>> },
}

impl Transaction {
    /// One in memory, for tests.
    #[cfg(test)]
    pub(crate) fn of_changes(xid: Xid, lsn: Lsn, changes: Vec<Change>) -> Transaction {
        let mut relations: Vec<Oid> =
            changes.iter().filter_map(|change| change.relation().map(|relation| relation.oid)).collect();
        relations.sort_unstable();
        relations.dedup();
        Transaction {
            xid,
            lsn,
            end_lsn: Lsn(lsn.0 + 1),
            committed_at: Timestamp(0),
            changes: changes.len() as u64,
            bytes: 0,
            relations,
            truncated: Vec::new(),
            body: Body::Memory(changes),
        }
    }

    /// Hands all changes to `visit`, in order: at once if they are in memory, otherwise in pieces of
    /// about a mebibyte, decoded from the file each time.
    ///
    /// # Errors
    /// Where the file cannot be read. What was visited until then is not undone.
    pub fn for_each_chunk(&self, visit: &mut dyn FnMut(&[Change])) -> Result<(), ReplicationError> {
        match &self.body {
            Body::Memory(changes) => {
                if !changes.is_empty() {
                    visit(changes);
                }
                Ok(())
            }
            Body::Spilled { file, wire } => {
                let mut changes = Vec::new();
                for chunk in &file.chunks {
                    changes.clear();
                    file.read(chunk, wire, &mut changes)?;
                    visit(&changes);
                }
                Ok(())
            }
        }
    }

    /// All changes, where they are in memory.
    #[must_use]
    pub fn in_memory(&self) -> Option<&[Change]> {
        match &self.body {
            Body::Memory(changes) => Some(changes),
            Body::Spilled { .. } => None,
        }
    }

    /// Hands the changes from number `first` on to `visit`, in pieces, each with the number of its first
    /// change, until it breaks off.
    ///
    /// # Errors
    /// Where the file cannot be read.
    pub fn for_each_from(
        &self,
        first: u64,
        visit: &mut dyn FnMut(u64, &[Change]) -> ControlFlow<()>,
    ) -> Result<(), ReplicationError> {
        let rest = |changes: &[Change], before: u64| {
            usize::try_from(first.saturating_sub(before))
                .map_or(changes.len(), |skip| skip.min(changes.len()))
        };
        match &self.body {
            Body::Memory(changes) => {
                let skip = rest(changes, 0);
                if skip < changes.len() {
                    let _broken_off = visit(skip as u64, &changes[skip..]);
                }
            }
            Body::Spilled { file, wire } => {
                let mut changes = Vec::new();
                for (index, chunk) in file.chunks.iter().enumerate() {
                    let end = file.chunks.get(index + 1).map_or(file.changes, |next| next.changes_before);
                    if end <= first {
                        continue;
                    }
                    changes.clear();
                    file.read(chunk, wire, &mut changes)?;
                    let skip = rest(&changes, chunk.changes_before);
                    if visit(chunk.changes_before + skip as u64, &changes[skip..]).is_break() {
                        break;
                    }
                }
            }
        }
        Ok(())
    }

    /// Bytes of memory that it holds, about.
    #[must_use]
    pub fn memory_bytes(&self) -> u64 {
        // What a row costs beyond its bytes: the change and the places of its columns.
        const CHANGE_BYTES: u64 = 128;
        match &self.body {
            Body::Memory(changes) => self.bytes + changes.len() as u64 * CHANGE_BYTES,
            Body::Spilled { .. } => 0,
        }
    }

    /// Whether its rows are in a file.
    #[must_use]
    pub fn is_spilled(&self) -> bool {
        matches!(self.body, Body::Spilled { .. })
    }
}

/// A file without a name that holds the records of one transaction.
#[derive(Debug)]
pub(super) struct SpillFile {
    file: File,
    len: u64,
    changes: u64,
    chunks: Vec<Chunk>,
}

/// Records that are read and decoded together.
#[derive(Debug)]
struct Chunk {
    start: u64,
    len: usize,
    /// Changes before this chunk.
    changes_before: u64,
}

impl SpillFile {
    /// A chunk ends before the record that would make it longer; a single longer record is a chunk.
    pub(super) const CHUNK_BYTES_MAX: usize = 1 << 20;

    pub(super) fn create(dir: &Path) -> io::Result<SpillFile> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = dir.join(format!("transaction-{}-{number}.spill", std::process::id()));
        // A file of this name is from a process that died between the two calls.
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path)?;
        std::fs::remove_file(&path)?;
        Ok(SpillFile { file, len: 0, changes: 0, chunks: Vec::new() })
    }

    /// Appends whole records. They are decoded once to check them: an error in the middle of the
    /// commit, when other shapes have their rows already, would be worse.
    pub(super) fn append(
        &mut self,
        records: &[u8],
        wire: &[Arc<WireRelation>],
    ) -> Result<(), ReplicationError> {
        let mut rest = records;
        while !rest.is_empty() {
            let (len, changes) = whole_records(rest)?;
            let (chunk, after) = rest.split_at(len);
            decode_records(&Bytes::copy_from_slice(chunk), 0, wire, &mut Vec::with_capacity(changes))?;
            self.file.write_all(chunk).map_err(ReplicationError::Spill)?;
            self.chunks.push(Chunk { start: self.len, len, changes_before: self.changes });
            self.len += len as u64;
            self.changes += changes as u64;
            rest = after;
        }
        Ok(())
    }

    fn read(
        &self,
        chunk: &Chunk,
        wire: &[Arc<WireRelation>],
        changes: &mut Vec<Change>,
    ) -> Result<(), ReplicationError> {
        let mut records = vec![0; chunk.len];
        self.file.read_exact_at(&mut records, chunk.start).map_err(ReplicationError::Spill)?;
        decode_records(&Bytes::from(records), chunk.changes_before, wire, changes)?;
        Ok(())
    }
}

const RECORD_HEAD_BYTES: usize = 8;
const NO_RELATION: u32 = u32::MAX;
const DAMAGED: Malformed = Malformed("a damaged record");

/// Appends one record; a truncate has no single relation.
pub(super) fn append_record(records: &mut Vec<u8>, wire: Option<u32>, message: &[u8]) {
    let len = u32::try_from(message.len()).expect("a frame is below 4 GiB");
    records.reserve(RECORD_HEAD_BYTES + message.len());
    records.extend_from_slice(&len.to_le_bytes());
    records.extend_from_slice(&wire.unwrap_or(NO_RELATION).to_le_bytes());
    records.extend_from_slice(message);
}

/// Decodes all records; `changes_before` is their first one's position in the transaction.
pub(super) fn decode_records(
    records: &Bytes,
    changes_before: u64,
    wire: &[Arc<WireRelation>],
    changes: &mut Vec<Change>,
) -> Result<(), Malformed> {
    let mut at = 0;
    let mut op = changes_before * 2;
    while at < records.len() {
        let (len, relation) = record_head(&records[at..])?;
        let start = at + RECORD_HEAD_BYTES;
        let message = records.slice(start..start + len);
        changes.push(match wire.get(relation as usize) {
            Some(relation) => pgoutput::change(&message, op, relation)?,
            None => match pgoutput::head(&message)? {
                Head::Truncate { relations } => Change::Truncate { op, relations },
                _ => return Err(DAMAGED),
            },
        });
        at = start + len;
        op += 2;
    }
    Ok(())
}

/// Length of a record's message, checked against what there is, and its relation.
fn record_head(rest: &[u8]) -> Result<(usize, u32), Malformed> {
    let (len, rest) = rest.split_first_chunk::<4>().ok_or(DAMAGED)?;
    let (relation, rest) = rest.split_first_chunk::<4>().ok_or(DAMAGED)?;
    let len = u32::from_le_bytes(*len) as usize;
    if len > rest.len() {
        return Err(DAMAGED);
    }
    Ok((len, u32::from_le_bytes(*relation)))
}

/// Length and number of the records that make up the next chunk.
fn whole_records(records: &[u8]) -> Result<(usize, usize), Malformed> {
    let (mut at, mut count) = (0, 0);
    while at < records.len() {
        let (len, _) = record_head(&records[at..])?;
        let end = at + RECORD_HEAD_BYTES + len;
        if count > 0 && end > SpillFile::CHUNK_BYTES_MAX {
            break;
        }
        (at, count) = (end, count + 1);
    }
    Ok((at, count))
}

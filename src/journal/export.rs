//! A journal as one file, to hand to a colleague: compressed, checksummed, and with nothing in it but
//! events and states, which by design hold no row, no SQL text, no parameter and no secret.
//!
//! # Format, version 1
//!
//! Integers are little-endian, checksums CRC-32C.
//!
//! | Header | bytes | meaning |
//! |---|---|---|
//! | magic | 8 | `SFJEXPRT` |
//! | version | u16 | 1 |
//!
//! | Block (any number) | bytes | meaning |
//! |---|---|---|
//! | marker | 4 | `SFJX` |
//! | kind | u8 | 1 manifest, 2 part of a checkpoint, 3 events, 4 end |
//! | first | u64 | events: id of the first; checkpoint: the event that it stands behind; end: id of the last |
//! | count | u32 | events: how many, dense; checkpoint: parts still to come; end: blocks before this one |
//! | raw length | u32 | of the payload before compression |
//! | stored length | u32 | of the payload as stored |
//! | checksum | u32 | over kind to stored length, and the stored payload |
//! | payload | stored length | zstd; manifest: JSON; events: per record length u32, bytes |

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::domain::EventId;

use super::error::{Finding, JournalError, Position, Stage};
use super::offline::Reading;
use super::{CHECKPOINT_BYTES_MAX, Checkpoint, Entry, RECORD_BYTES_MAX};

const MAGIC: &[u8; 8] = b"SFJEXPRT";
const VERSION: u16 = 1;
const HEADER_BYTES: u64 = 10;
const MARKER: &[u8; 4] = b"SFJX";
const BLOCK_HEADER_BYTES: usize = 29;
/// A flipped bit costs a block, some two hundred events: an incident is not large.
const BLOCK_TARGET_BYTES: usize = 16 * 1024;
/// Earlier exports have blocks of 256 KiB.
const BLOCK_RAW_BYTES_MAX: usize = 256 * 1024 + RECORD_BYTES_MAX + 8;
const PART_BYTES_MAX: usize = 4 * 1024 * 1024;
const SEARCH_BYTES: usize = 64 * 1024;
const ZSTD_LEVEL: i32 = 9;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Manifest = 1,
    Checkpoint = 2,
    Events = 3,
    End = 4,
}

impl Kind {
    fn of(byte: u8) -> Option<Kind> {
        match byte {
            1 => Some(Kind::Manifest),
            2 => Some(Kind::Checkpoint),
            3 => Some(Kind::Events),
            4 => Some(Kind::End),
            _ => None,
        }
    }
}

/// Whether the file says of itself that it is an export.
#[must_use]
pub fn is_export(path: &Path) -> bool {
    let mut magic = [0; MAGIC.len()];
    File::open(path).and_then(|file| file.read_exact_at(&mut magic, 0)).is_ok() && magic == *MAGIC
}

/// Writes one export from front to back.
pub struct ExportWriter {
    path: PathBuf,
    temporary: PathBuf,
    out: BufWriter<File>,
    blocks: u32,
    raw: Vec<u8>,
    first: EventId,
    count: u32,
    last: EventId,
}

impl ExportWriter {
    /// # Errors
    /// There is a file of this name, or none can be made.
    pub fn create(path: &Path, manifest: &str) -> Result<ExportWriter, JournalError> {
        let create = || -> io::Result<ExportWriter> {
            if path.try_exists()? {
                return Err(io::Error::from(io::ErrorKind::AlreadyExists));
            }
            let temporary = path.with_extension("partial");
            let file = OpenOptions::new().write(true).create(true).truncate(true).open(&temporary)?;
            let mut out = BufWriter::new(file);
            out.write_all(MAGIC)?;
            out.write_all(&VERSION.to_le_bytes())?;
            let mut writer = ExportWriter {
                path: path.to_owned(),
                temporary,
                out,
                blocks: 0,
                raw: Vec::new(),
                first: EventId(0),
                count: 0,
                last: EventId(0),
            };
            writer.block(Kind::Manifest, 0, 0, manifest.as_bytes())?;
            Ok(writer)
        };
        create().map_err(JournalError::io(Stage::Copy))
    }

    /// A state from which reading may start. Before the events that follow it.
    ///
    /// # Errors
    /// The disk's.
    pub fn checkpoint(&mut self, checkpoint: &Checkpoint) -> Result<(), JournalError> {
        JournalError::check_size("checkpoint", checkpoint.state.len(), CHECKPOINT_BYTES_MAX)?;
        let parts = checkpoint.state.chunks(PART_BYTES_MAX);
        let mut left = parts.len() as u32;
        for part in parts {
            left -= 1;
            self.block(Kind::Checkpoint, checkpoint.upto.0, left, part)
                .map_err(JournalError::io(Stage::Copy))?;
        }
        Ok(())
    }

    /// The next record; ids ascend, and may have holes.
    ///
    /// # Errors
    /// The disk's.
    pub fn push(&mut self, entry: &Entry) -> Result<(), JournalError> {
        let dense = self.count > 0 && entry.id == self.last.next();
        if !dense || self.raw.len() >= BLOCK_TARGET_BYTES {
            self.close().map_err(JournalError::io(Stage::Copy))?;
            self.first = entry.id;
        }
        self.raw.extend((entry.bytes.len() as u32).to_le_bytes());
        self.raw.extend_from_slice(&entry.bytes);
        self.count += 1;
        self.last = entry.id;
        Ok(())
    }

    /// Closes, syncs and names the file; returns its size.
    ///
    /// # Errors
    /// The disk's; then only a file of another name is left.
    pub fn finish(mut self) -> Result<u64, JournalError> {
        let finish = |writer: &mut ExportWriter| -> io::Result<u64> {
            writer.close()?;
            let (last, blocks) = (writer.last.0, writer.blocks);
            writer.block(Kind::End, last, blocks, &[])?;
            writer.out.flush()?;
            writer.out.get_ref().sync_all()?;
            fs::rename(&writer.temporary, &writer.path)?;
            Ok(fs::metadata(&writer.path)?.len())
        };
        finish(&mut self).map_err(JournalError::io(Stage::Copy))
    }

    fn close(&mut self) -> io::Result<()> {
        if self.count == 0 {
            return Ok(());
        }
        let raw = std::mem::take(&mut self.raw);
        let (first, count) = (self.first.0, std::mem::take(&mut self.count));
        self.block(Kind::Events, first, count, &raw)
    }

    fn block(&mut self, kind: Kind, first: u64, count: u32, raw: &[u8]) -> io::Result<()> {
        let stored = zstd::bulk::compress(raw, ZSTD_LEVEL)?;
        let mut head = vec![kind as u8];
        head.extend(first.to_le_bytes());
        head.extend(count.to_le_bytes());
        head.extend((raw.len() as u32).to_le_bytes());
        head.extend((stored.len() as u32).to_le_bytes());
        let checksum = crc32c::crc32c_append(crc32c::crc32c(&head), &stored);
        self.out.write_all(MARKER)?;
        self.out.write_all(&head)?;
        self.out.write_all(&checksum.to_le_bytes())?;
        self.out.write_all(&stored)?;
        self.blocks += 1;
        Ok(())
    }
}

/// An export that can be read like a journal.
pub struct ExportFile {
    file: File,
    name: String,
    bytes: u64,
    manifest: Option<String>,
    checkpoints: Vec<Checkpoint>,
    last: EventId,
    findings: Vec<Finding>,
}

struct Block {
    kind: Kind,
    first: u64,
    count: u32,
    payload: Vec<u8>,
    /// Where the next one begins.
    end: u64,
}

impl ExportFile {
    /// Reads the manifest and the checkpoints, and finds the end. Damage is among the findings.
    ///
    /// # Errors
    /// It is no export, of a newer version, or the operating system's.
    pub fn open(path: &Path) -> Result<ExportFile, JournalError> {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let file = File::open(path).map_err(JournalError::io(Stage::Open))?;
        let bytes = file.metadata().map_err(JournalError::io(Stage::Open))?.len();
        let mut header = [0; HEADER_BYTES as usize];
        let at = |offset| Position::File { name: name.clone(), offset };
        if file.read_exact_at(&mut header, 0).is_err() || header[..8] != *MAGIC {
            return Err(JournalError::Damaged { at: at(0), what: "not an exported journal" });
        }
        let found = u16::from_le_bytes([header[8], header[9]]);
        if found != VERSION {
            let (found, supported) = (u32::from(found), u32::from(VERSION));
            return Err(JournalError::NewerFormat { what: "the exported journal", found, supported });
        }
        let findings = Vec::new();
        let mut export = ExportFile {
            file,
            name,
            bytes,
            manifest: None,
            checkpoints: Vec::new(),
            last: EventId(0),
            findings,
        };
        export.survey();
        Ok(export)
    }

    /// What the exporting program said of itself and of the journal: JSON.
    #[must_use]
    pub fn manifest(&self) -> Option<&str> {
        self.manifest.as_deref()
    }

    /// Newest first.
    #[must_use]
    pub fn checkpoints(&self) -> &[Checkpoint] {
        &self.checkpoints
    }

    #[must_use]
    pub fn findings(&self) -> &[Finding] {
        &self.findings
    }

    /// The last event that it says to have.
    #[must_use]
    pub fn last(&self) -> EventId {
        self.last
    }

    /// The events from `from` on, and what is damaged.
    pub fn read(&self, from: EventId) -> impl Iterator<Item = Reading> + '_ {
        ExportReader { export: self, from, offset: HEADER_BYTES, expected: None, queue: VecDeque::new() }
    }

    /// Reads every block in front of the first event, and the end.
    fn survey(&mut self) {
        let mut offset = HEADER_BYTES;
        let mut state = Vec::new();
        while let Ok(block) = self.block(offset, None) {
            offset = block.end;
            match block.kind {
                Kind::Manifest => self.manifest = String::from_utf8(block.payload).ok(),
                Kind::Checkpoint => {
                    state.extend(block.payload);
                    if block.count == 0 {
                        let upto = EventId(block.first);
                        self.checkpoints.insert(0, Checkpoint { upto, state: std::mem::take(&mut state) });
                    }
                }
                Kind::Events | Kind::End => break,
            }
        }
        self.checkpoints.sort_by_key(|checkpoint| std::cmp::Reverse(checkpoint.upto));
        // The end block's payload is the compressed nothing, of a fixed length.
        let tail = zstd::bulk::compress(&[], ZSTD_LEVEL).map_or(0, |stored| stored.len());
        let end = self.bytes.saturating_sub((BLOCK_HEADER_BYTES + tail) as u64);
        match self.block(end, None) {
            Ok(block) if block.kind == Kind::End => self.last = EventId(block.first),
            Ok(_) | Err(_) => {
                let at = Position::File { name: self.name.clone(), offset: self.bytes };
                self.findings.push(Finding::TornTail { at });
            }
        }
    }

    /// Reads the block at `offset`. `skip`: the payload of blocks of events that end before it is not
    /// unpacked.
    fn block(&self, offset: u64, skip_before: Option<EventId>) -> Result<Block, &'static str> {
        let mut header = [0; BLOCK_HEADER_BYTES];
        self.file.read_exact_at(&mut header, offset).map_err(|_| "cut short")?;
        if header[..4] != *MARKER {
            return Err("no block where one must be");
        }
        let u32_at =
            |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        let kind = Kind::of(header[4]).ok_or("a block of an unknown kind")?;
        let mut first = [0; 8];
        first.copy_from_slice(&header[5..13]);
        let (first, count) = (u64::from_le_bytes(first), u32_at(13));
        let (raw, stored) = (u32_at(17) as usize, u32_at(21) as usize);
        if raw > BLOCK_RAW_BYTES_MAX || stored as u64 > self.bytes.saturating_sub(offset) {
            return Err("a block of impossible length");
        }
        let end = offset + (BLOCK_HEADER_BYTES + stored) as u64;
        let passed = skip_before.is_some_and(|from| first.saturating_add(u64::from(count)) <= from.0);
        if kind == Kind::Events && passed {
            return Ok(Block { kind, first, count, payload: Vec::new(), end });
        }
        let mut bytes = vec![0; stored];
        self.file.read_exact_at(&mut bytes, offset + BLOCK_HEADER_BYTES as u64).map_err(|_| "cut short")?;
        if crc32c::crc32c_append(crc32c::crc32c(&header[4..25]), &bytes) != u32_at(25) {
            return Err("the checksum of a block does not match");
        }
        let payload = zstd::bulk::decompress(&bytes, raw).map_err(|_| "a block that does not unpack")?;
        Ok(Block { kind, first, count, payload, end })
    }

    /// The next offset after `offset` where an intact block begins.
    fn search(&self, offset: u64) -> Option<u64> {
        let mut from = offset + 1;
        let mut window = vec![0; SEARCH_BYTES];
        while from < self.bytes {
            let length = usize::try_from(self.bytes - from).unwrap_or(usize::MAX).min(SEARCH_BYTES);
            self.file.read_exact_at(&mut window[..length], from).ok()?;
            for found in memchr::memmem::find_iter(&window[..length], MARKER) {
                let at = from + found as u64;
                if self.block(at, None).is_ok() {
                    return Some(at);
                }
            }
            // Windows overlap, so that a marker on their border is found.
            from += (length.saturating_sub(MARKER.len() - 1)).max(1) as u64;
        }
        None
    }
}

struct ExportReader<'a> {
    export: &'a ExportFile,
    from: EventId,
    offset: u64,
    expected: Option<u64>,
    queue: VecDeque<Reading>,
}

impl ExportReader<'_> {
    fn unpack(&mut self, block: &Block) {
        if let Some(expected) = self.expected.filter(|expected| block.first > *expected) {
            let (from, to) = (EventId(expected), EventId(block.first - 1));
            self.queue.push_back(Reading::Finding(Finding::Hole { from, to }));
        }
        self.expected = Some(block.first + u64::from(block.count));
        let mut rest = block.payload.as_slice();
        for id in block.first..block.first + u64::from(block.count) {
            let Some((length, tail)) = rest.split_first_chunk::<4>() else { return };
            let length = u32::from_le_bytes(*length) as usize;
            let Some((bytes, tail)) = tail.split_at_checked(length) else { return };
            rest = tail;
            if id >= self.from.0 {
                self.queue.push_back(Reading::Entry(Entry { id: EventId(id), bytes: bytes.to_vec() }));
            }
        }
    }
}

impl Iterator for ExportReader<'_> {
    type Item = Reading;

    fn next(&mut self) -> Option<Reading> {
        loop {
            if let Some(reading) = self.queue.pop_front() {
                return Some(reading);
            }
            if self.offset >= self.export.bytes {
                return None;
            }
            match self.export.block(self.offset, Some(self.from)) {
                Ok(block) => {
                    self.offset = block.end;
                    if block.kind == Kind::Events && !block.payload.is_empty() {
                        self.unpack(&block);
                    }
                }
                Err(what) => {
                    let at = Position::File { name: self.export.name.clone(), offset: self.offset };
                    self.offset = self.export.search(self.offset).unwrap_or(self.export.bytes);
                    return Some(Reading::Finding(Finding::Damaged { at, what: what.to_owned() }));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(id: u64) -> Entry {
        Entry { id: EventId(id), bytes: vec![id as u8; 40_000] }
    }

    fn export(dir: &Path) -> PathBuf {
        let path = dir.join("journal.sfx");
        let mut writer = ExportWriter::create(&path, "{}").unwrap();
        writer.checkpoint(&Checkpoint { upto: EventId(4), state: vec![7; PART_BYTES_MAX + 1] }).unwrap();
        for id in (5..=30).chain(33..=40) {
            writer.push(&entry(id)).unwrap();
        }
        writer.finish().unwrap();
        path
    }

    fn read(path: &Path, from: u64) -> (Vec<u64>, Vec<Finding>) {
        let export = ExportFile::open(path).unwrap();
        let (mut ids, mut findings) = (Vec::new(), export.findings().to_vec());
        for reading in export.read(EventId(from)) {
            match reading {
                Reading::Entry(found) => {
                    assert_eq!(found, entry(found.id.0));
                    ids.push(found.id.0);
                }
                Reading::Finding(finding) => findings.push(finding),
            }
        }
        (ids, findings)
    }

    #[test]
    fn what_is_exported_is_read_holes_included() {
        let dir = tempfile::tempdir().unwrap();
        let path = export(dir.path());
        let hole = Finding::Hole { from: EventId(31), to: EventId(32) };
        assert_eq!(read(&path, 1), ((5..=30).chain(33..=40).collect(), vec![hole]));
        assert_eq!(read(&path, 35).0, (35..=40).collect::<Vec<_>>());
        let export = ExportFile::open(&path).unwrap();
        assert_eq!(export.manifest(), Some("{}"));
        assert_eq!(export.checkpoints()[0].upto, EventId(4));
        assert_eq!(export.checkpoints()[0].state.len(), PART_BYTES_MAX + 1);
        assert_eq!(export.last(), EventId(40));
        assert!(ExportWriter::create(&path, "{}").is_err(), "nothing is overwritten");
    }

    #[test]
    fn damage_is_located_and_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        let path = export(dir.path());
        let whole = fs::read(&path).unwrap();
        for at in (0..whole.len()).step_by(7) {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x41;
            fs::write(&path, &bytes).unwrap();
            match ExportFile::open(&path) {
                Ok(_) => {
                    let (ids, findings) = read(&path, 1);
                    let checkpoint = ExportFile::open(&path).unwrap().checkpoints().len();
                    let missing = ids.len() < 34 || checkpoint < 1;
                    assert!(!missing || findings.len() > 1, "byte {at}");
                    assert!(ids.len() >= 20, "byte {at} costs {} events", 34 - ids.len());
                }
                Err(error) => assert!(at < HEADER_BYTES as usize, "byte {at}: {error}"),
            }
        }
        fs::write(&path, &whole[..whole.len() / 2]).unwrap();
        let (_, findings) = read(&path, 1);
        assert!(findings.iter().any(|finding| matches!(finding, Finding::TornTail { .. })), "{findings:?}");
    }
}

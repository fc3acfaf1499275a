//! Reading a sealed segment, whatever state it is in. Takes no lock, writes nothing.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::domain::EventId;

use super::super::Entry;
use super::super::error::{Finding, JournalError, Position, Stage};
use super::super::offline::Reading;
use super::super::value::ValueFault;
use super::block::{self, BLOCK_HEADER_BYTES, BLOCK_MARKER, BlockHeader, FOOTER_BYTES, FOOTER_MARKER};
use super::block::{Footer, HEADER_PREFIX_BYTES, Header, VERSION};
use super::{SealSpan, parse_file_name};

/// Bytes looked at in one step of the search for the next intact block.
const SEARCH_BYTES: usize = 64 * 1024;

/// Yields the records block by block; on damage a finding with its position, then the next intact block.
pub struct ArchiveReader {
    file: File,
    name: String,
    file_bytes: u64,
    /// From the header or, if that is damaged, from the file's name.
    span: SealSpan,
    header_intact: bool,
    offset: u64,
    seen: Footer,
    damaged: bool,
    ended: bool,
    /// Blocks that end before this event are passed over, unread.
    from: EventId,
    passed: bool,
    queue: VecDeque<Reading>,
}

impl ArchiveReader {
    /// Reads the header only. If that is damaged, the first reading says so and the file's name stands in
    /// for it.
    ///
    /// # Errors
    /// [`JournalError::NewerFormat`], a damaged header under a name that says nothing, or the operating
    /// system's.
    pub fn open(path: &Path) -> Result<ArchiveReader, JournalError> {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let file = File::open(path).map_err(JournalError::io(Stage::Read))?;
        let file_bytes = file.metadata().map_err(JournalError::io(Stage::Read))?.len();
        let mut reader = ArchiveReader {
            file,
            name,
            file_bytes,
            span: SealSpan::default(),
            header_intact: true,
            offset: 0,
            seen: Footer::default(),
            damaged: false,
            ended: false,
            from: EventId(0),
            passed: false,
            queue: VecDeque::new(),
        };
        match reader.read_header() {
            Ok(()) => Ok(reader),
            Err(error @ JournalError::Damaged { .. }) => {
                let Some((epoch, first, last)) = parse_file_name(path) else { return Err(error) };
                reader.span = SealSpan { epoch, first, last, ..SealSpan::default() };
                reader.damaged = true;
                reader.header_intact = false;
                reader.queue.push_back(Reading::Finding(Finding::from(&error)));
                reader.offset = reader.search(0);
                reader.ended = reader.offset >= reader.file_bytes;
                Ok(reader)
            }
            Err(error) => Err(error),
        }
    }

    /// Passes over blocks that hold nothing from `from` on: neither unpacked nor checked.
    #[must_use]
    pub fn starting_at(mut self, from: EventId) -> ArchiveReader {
        self.from = from;
        self
    }

    fn read_header(&mut self) -> Result<(), JournalError> {
        let prefix = self.bytes_at(0, HEADER_PREFIX_BYTES).map_err(|fault| self.refuse(fault))?;
        let length = Header::length(&prefix).map_err(|fault| self.refuse(fault.into()))?;
        let header = self.bytes_at(0, length).map_err(|fault| self.refuse(fault))?;
        let (version, body) = Header::open(&header).map_err(|fault| self.refuse(fault.into()))?;
        if version != VERSION {
            return Err(JournalError::NewerFormat {
                what: "an archive segment",
                found: u32::from(version),
                supported: u32::from(VERSION),
            });
        }
        self.span = Header::decode(body).map_err(|fault| self.refuse(fault.into()))?.0;
        self.offset = length as u64;
        Ok(())
    }

    fn refuse(&self, fault: Fault) -> JournalError {
        match fault {
            Fault::Bytes(what) => JournalError::Damaged { at: self.here(), what },
            Fault::Io(source) => JournalError::Io { stage: Stage::Read, source },
        }
    }

    /// What the header says the segment covers; `None` if it is damaged.
    #[must_use]
    pub fn header(&self) -> Option<&SealSpan> {
        self.header_intact.then_some(&self.span)
    }

    fn advance(&mut self) {
        match self.next_piece() {
            Ok(()) => {}
            Err(Fault::Bytes(what)) => {
                self.damaged = true;
                let at = self.here();
                self.offset = self.search(self.offset + 1);
                let torn = self.offset >= self.file_bytes;
                self.ended = torn;
                self.queue.push_back(Reading::Finding(if torn && what == TRUNCATED {
                    Finding::TornTail { at }
                } else {
                    Finding::Damaged { at, what: what.to_owned() }
                }));
            }
            Err(Fault::Io(error)) => {
                self.ended = true;
                let finding = Finding::Unreadable { what: self.name.clone(), reason: error.to_string() };
                self.queue.push_back(Reading::Finding(finding));
            }
        }
    }

    /// Takes the block or the footer at the current offset.
    fn next_piece(&mut self) -> Result<(), Fault> {
        let marker = self.bytes_at(self.offset, FOOTER_MARKER.len())?;
        if marker == FOOTER_MARKER {
            return self.take_footer();
        }
        if self.pass_over()? {
            return Ok(());
        }
        let bytes = self.block_at(self.offset)?;
        let (first, records) = block::decode(&bytes)?;
        let last = EventId(first.0 + records.len() as u64 - u64::from(!records.is_empty()));
        if records.is_empty() || first < self.span.first || last > self.span.last {
            return Err(Fault::Bytes("ids of a block"));
        }
        self.offset += bytes.len() as u64;
        self.seen.blocks += 1;
        self.seen.count += records.len() as u64;
        self.seen.total_crc = crc32c::crc32c_append(self.seen.total_crc, &bytes);
        let ids = first.0..;
        let entries = ids.zip(records).map(|(id, bytes)| Reading::Entry(Entry { id: EventId(id), bytes }));
        self.queue.extend(entries);
        Ok(())
    }

    /// Whether the block at the current offset lies before what is asked for, and was passed. A length that
    /// leads nowhere is found out by what is read next.
    fn pass_over(&mut self) -> Result<bool, Fault> {
        let header = BlockHeader::decode(&self.bytes_at(self.offset, BLOCK_HEADER_BYTES)?)?;
        let next = self.offset + (BLOCK_HEADER_BYTES + header.stored_bytes) as u64;
        let before = header.first >= self.span.first
            && header.first.0.saturating_add(u64::from(header.count)) <= self.from.0
            && self
                .bytes_at(next, BLOCK_MARKER.len())
                .is_ok_and(|four| four == BLOCK_MARKER || four == FOOTER_MARKER);
        if before {
            self.offset = next;
            self.passed = true;
        }
        Ok(before)
    }

    fn take_footer(&mut self) -> Result<(), Fault> {
        let footer = Footer::decode(&self.bytes_at(self.offset, FOOTER_BYTES)?)?;
        if self.offset + FOOTER_BYTES as u64 != self.file_bytes {
            return Err(Fault::Bytes("bytes behind the footer"));
        }
        self.ended = true;
        if footer != self.seen && !self.damaged && !self.passed {
            let what = "footer disagrees with the blocks".to_owned();
            self.queue.push_back(Reading::Finding(Finding::Damaged { at: self.here(), what }));
        }
        Ok(())
    }

    /// A whole block as stored.
    fn block_at(&self, offset: u64) -> Result<Vec<u8>, Fault> {
        let header = BlockHeader::decode(&self.bytes_at(offset, BLOCK_HEADER_BYTES)?)?;
        self.bytes_at(offset, BLOCK_HEADER_BYTES + header.stored_bytes)
    }

    fn bytes_at(&self, offset: u64, length: usize) -> Result<Vec<u8>, Fault> {
        if offset.saturating_add(length as u64) > self.file_bytes {
            return Err(Fault::Bytes(TRUNCATED));
        }
        let mut bytes = vec![0; length];
        match self.file.read_exact_at(&mut bytes, offset) {
            Ok(()) => Ok(bytes),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(Fault::Bytes(TRUNCATED)),
            Err(error) => Err(Fault::Io(error)),
        }
    }

    /// Offset of the next intact block or footer from `start` on; the end of the file if there is none.
    fn search(&self, start: u64) -> u64 {
        let overlap = BLOCK_MARKER.len() - 1;
        let mut at = start;
        while at < self.file_bytes {
            let left = usize::try_from(self.file_bytes - at).unwrap_or(usize::MAX);
            let Ok(window) = self.bytes_at(at, left.min(SEARCH_BYTES)) else { break };
            for (index, four) in window.windows(BLOCK_MARKER.len()).enumerate() {
                let offset = at + index as u64;
                let intact = if four == BLOCK_MARKER {
                    self.block_at(offset).is_ok_and(|bytes| block::decode(&bytes).is_ok())
                } else if four == FOOTER_MARKER {
                    self.bytes_at(offset, FOOTER_BYTES).is_ok_and(|bytes| Footer::decode(&bytes).is_ok())
                } else {
                    false
                };
                if intact {
                    return offset;
                }
            }
            if window.len() <= overlap {
                break;
            }
            at += (window.len() - overlap) as u64;
        }
        self.file_bytes
    }

    fn here(&self) -> Position {
        Position::File { name: self.name.clone(), offset: self.offset }
    }
}

impl Iterator for ArchiveReader {
    type Item = Reading;

    fn next(&mut self) -> Option<Reading> {
        loop {
            if let Some(reading) = self.queue.pop_front() {
                return Some(reading);
            }
            if self.ended {
                return None;
            }
            self.advance();
        }
    }
}

const TRUNCATED: &str = "truncated";

enum Fault {
    Bytes(&'static str),
    Io(io::Error),
}

impl From<ValueFault> for Fault {
    fn from(fault: ValueFault) -> Fault {
        match fault {
            ValueFault::Damaged(what) => Fault::Bytes(what),
            ValueFault::Newer { .. } => Fault::Bytes("version of a block"),
        }
    }
}

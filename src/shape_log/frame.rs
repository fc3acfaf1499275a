//! Frames: what the `log` file of a shape consists of.
//!
//! One frame holds consecutive messages of one transaction. Little endian:
//!
//! | at | bytes | field |
//! |---|---|---|
//! | 0 | 2 | magic `F5 53`; `F5` is in no UTF-8 text, so a payload never looks like a header |
//! | 2 | 1 | version, 1 |
//! | 3 | 1 | flags: 1 commit (last frame of its transaction), 2 chunk end, 4 end of a compacted part |
//! | 4 | 4 | payload length |
//! | 8 | 8 | transaction: LSN of its commit record |
//! | 16 | 8 | `op_position` of the first message |
//! | 24 | 8 | `op_position` of the last message |
//! | 32 | 8 | file position below which everything was durable when the frame was made |
//! | 40 | 4 | number of messages |
//! | 44 | 4 | table length |
//! | 48 | 4 | crc32c of payload and table |
//! | 52 | 4 | crc32c of bytes 0 to 52 |
//! | 56 | | payload: messages in wire form, each followed by a comma |
//! | | | table, with more than one message: per message the LEB128 of its `op_position` less that of the one before, and of its length with the comma |
//! | | | note: the rest of the table length. For the service itself, sent to no client: what a shape with inner queries was made with (`runtime/subquery/note.rs`) |

use std::sync::Arc;

use bytes::Bytes;

use crate::domain::Lsn;

use super::disk::{DiskFile, read_full};
use super::error::{FileKind, StorageFault};

pub(crate) const HEADER_LEN: usize = 56;
pub(crate) const MAGIC: [u8; 2] = [0xF5, 0x53];
const VERSION: u8 = 1;
const COMMIT: u8 = 1;
const CHUNK_END: u8 = 2;
const COMPACTED: u8 = 4;

/// A frame ends with the message that takes its payload to this size.
pub(crate) const FRAME_PAYLOAD_TARGET: usize = 64 << 10;
/// Bytes read from a file at a time; only a single larger frame makes a reader hold more.
pub(crate) const READ_WINDOW: usize = 256 << 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FrameHeader {
    pub commit: bool,
    pub chunk_end: bool,
    /// What lies before its end was compacted: rewrite.rs.
    pub compacted: bool,
    pub payload_len: u32,
    pub tx: Lsn,
    pub first_op: u64,
    pub last_op: u64,
    pub durable: u64,
    pub count: u32,
    pub table_len: u32,
    pub crc: u32,
}

impl FrameHeader {
    /// Parses and checks the header at the start of `bytes`. With it come trustworthy lengths; the
    /// payload is checked by [`FrameHeader::verifies`].
    pub fn parse(bytes: &[u8]) -> Option<FrameHeader> {
        let header: &[u8; HEADER_LEN] = bytes.first_chunk()?;
        let u32_at = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().expect("four bytes"));
        let u64_at = |at: usize| u64::from_le_bytes(header[at..at + 8].try_into().expect("eight bytes"));
        if header[..2] != MAGIC || header[2] != VERSION || crc32c::crc32c(&header[..52]) != u32_at(52) {
            return None;
        }
        Some(FrameHeader {
            commit: header[3] & COMMIT != 0,
            chunk_end: header[3] & CHUNK_END != 0,
            compacted: header[3] & COMPACTED != 0,
            payload_len: u32_at(4),
            tx: Lsn(u64_at(8)),
            first_op: u64_at(16),
            last_op: u64_at(24),
            durable: u64_at(32),
            count: u32_at(40),
            table_len: u32_at(44),
            crc: u32_at(48),
        })
    }

    /// Writes the header to the start of `out`, which has room for it.
    pub fn write(&self, out: &mut [u8]) {
        let flag = |is: bool, flag: u8| if is { flag } else { 0 };
        let flags =
            flag(self.commit, COMMIT) | flag(self.chunk_end, CHUNK_END) | flag(self.compacted, COMPACTED);
        out[..2].copy_from_slice(&MAGIC);
        out[2] = VERSION;
        out[3] = flags;
        out[4..8].copy_from_slice(&self.payload_len.to_le_bytes());
        out[8..16].copy_from_slice(&self.tx.0.to_le_bytes());
        out[16..24].copy_from_slice(&self.first_op.to_le_bytes());
        out[24..32].copy_from_slice(&self.last_op.to_le_bytes());
        out[32..40].copy_from_slice(&self.durable.to_le_bytes());
        out[40..44].copy_from_slice(&self.count.to_le_bytes());
        out[44..48].copy_from_slice(&self.table_len.to_le_bytes());
        out[48..52].copy_from_slice(&self.crc.to_le_bytes());
        let crc = crc32c::crc32c(&out[..52]);
        out[52..56].copy_from_slice(&crc.to_le_bytes());
    }

    /// Length of the whole frame.
    pub fn frame_len(&self) -> u64 {
        HEADER_LEN as u64 + u64::from(self.payload_len) + u64::from(self.table_len)
    }

    /// Sum of the JSON bytes of its messages, without the commas: what the chunk rule counts.
    pub fn json_bytes(&self) -> u64 {
        u64::from(self.payload_len).saturating_sub(u64::from(self.count))
    }

    /// Whether payload and table are the ones that were written.
    pub fn verifies(&self, frame: &[u8]) -> bool {
        frame.len() as u64 == self.frame_len() && crc32c::crc32c(&frame[HEADER_LEN..]) == self.crc
    }

    /// Position in the payload of the first message after `op`; its length where there is none.
    /// `frame` must verify.
    pub fn position_after(&self, frame: &[u8], op: u64) -> usize {
        let payload_len = self.payload_len as usize;
        if op < self.first_op {
            return 0;
        }
        if op >= self.last_op {
            return payload_len;
        }
        let mut table = &frame[HEADER_LEN + payload_len..];
        let (mut at, mut message_op) = (0_usize, self.first_op);
        while let (Some(step), Some(len)) = (read_varint(&mut table), read_varint(&mut table)) {
            message_op = message_op.saturating_add(step);
            if message_op > op {
                break;
            }
            at = at.saturating_add(usize::try_from(len).unwrap_or(usize::MAX));
        }
        at.min(payload_len)
    }
}

impl FrameHeader {
    /// What is noted for the service itself behind the messages; empty in most frames. `frame` must verify.
    pub fn note<'f>(&self, frame: &'f [u8]) -> &'f [u8] {
        let mut table = &frame[HEADER_LEN + self.payload_len as usize..];
        let numbers = if self.count > 1 { 2 * u64::from(self.count) } else { 0 };
        for _ in 0..numbers {
            if read_varint(&mut table).is_none() {
                return &[];
            }
        }
        table
    }
}

/// The messages of a frame that verifies, with their `op_position`, without the commas behind them.
pub(crate) fn frame_messages<'f>(
    header: &FrameHeader,
    frame: &'f [u8],
) -> impl Iterator<Item = (u64, &'f [u8])> {
    let payload_len = header.payload_len as usize;
    let mut payload = &frame[HEADER_LEN..HEADER_LEN + payload_len];
    let mut table = &frame[HEADER_LEN + payload_len..];
    let (mut op, single) = (header.first_op, header.count == 1);
    std::iter::from_fn(move || {
        if payload.is_empty() {
            return None;
        }
        let len = if single {
            payload.len()
        } else {
            op = op.saturating_add(read_varint(&mut table)?);
            usize::try_from(read_varint(&mut table)?).ok()?
        };
        let (message, rest) = payload.split_at_checked(len)?;
        payload = rest;
        Some((op, message.strip_suffix(b",").unwrap_or(message)))
    })
}

/// Collects messages into a frame. Its last message may still be open.
#[derive(Debug)]
pub(crate) struct FrameBuilder {
    /// Header space and the payload so far.
    bytes: Vec<u8>,
    table: Vec<u8>,
    count: u32,
    first_op: u64,
    last_op: u64,
    /// Where the open message starts in `bytes`.
    open_at: Option<usize>,
}

impl FrameBuilder {
    pub fn new() -> FrameBuilder {
        let bytes = vec![0; HEADER_LEN];
        FrameBuilder { bytes, table: Vec::new(), count: 0, first_op: 0, last_op: 0, open_at: None }
    }

    pub fn payload_len(&self) -> usize {
        self.bytes.len().saturating_sub(HEADER_LEN)
    }

    /// JSON bytes of the closed messages; none may be open.
    pub fn json_bytes(&self) -> u64 {
        self.payload_len() as u64 - u64::from(self.count)
    }

    pub fn has_open(&self) -> bool {
        self.open_at.is_some()
    }

    /// Appends a message without its close; none may be open.
    pub fn open(&mut self, op: u64, message: &[u8]) {
        if self.count == 0 {
            self.bytes.resize(HEADER_LEN, 0);
            self.first_op = op;
            self.last_op = op;
        }
        self.open_at = Some(self.bytes.len());
        write_varint(&mut self.table, op - self.last_op);
        self.last_op = op;
        self.bytes.extend_from_slice(message);
    }

    /// Closes the open message.
    pub fn close(&mut self, close: &[u8]) {
        let start = self.open_at.take().expect("a message is open");
        self.bytes.extend_from_slice(close);
        self.bytes.push(b',');
        write_varint(&mut self.table, (self.bytes.len() - start) as u64);
        self.count += 1;
    }

    /// The finished frame; the builder is empty again. `None` where it has no message.
    pub fn seal(
        &mut self,
        tx: Lsn,
        commit: bool,
        chunk_end: bool,
        durable: u64,
        note: &[u8],
    ) -> Option<(FrameHeader, Bytes)> {
        if self.count == 0 {
            return None;
        }
        let payload_len =
            u32::try_from(self.payload_len()).expect("a payload is limited when a message is pushed");
        if self.count > 1 {
            self.bytes.extend_from_slice(&self.table);
        }
        self.bytes.extend_from_slice(note);
        let header = FrameHeader {
            commit,
            chunk_end,
            compacted: false,
            payload_len,
            tx,
            first_op: self.first_op,
            last_op: self.last_op,
            durable,
            count: self.count,
            table_len: (self.bytes.len() - HEADER_LEN) as u32 - payload_len,
            crc: crc32c::crc32c(&self.bytes[HEADER_LEN..]),
        };
        header.write(&mut self.bytes);
        // Copied to its exact size, so that the tail of an idle shape holds no spare capacity.
        let frame = Bytes::copy_from_slice(&self.bytes);
        self.clear();
        Some((header, frame))
    }

    pub fn clear(&mut self) {
        self.bytes.truncate(HEADER_LEN);
        self.open_at = None;
        // One huge message must not keep its memory for the life of the shape.
        self.bytes.shrink_to(4 * FRAME_PAYLOAD_TARGET);
        self.table.clear();
        self.count = 0;
    }

    /// Gives back the memory; for a shape that has become idle.
    pub fn release(&mut self) {
        self.clear();
        self.bytes = Vec::new();
        self.table = Vec::new();
    }
}

/// Reads frames one after another from `at` to `end` of a file.
#[derive(Debug)]
pub(crate) struct FrameReader {
    file: Arc<dyn DiskFile>,
    pub at: u64,
    end: u64,
    window: Vec<u8>,
    window_at: u64,
}

/// What is at a position of the log.
pub(crate) enum Found<'a> {
    Frame(FrameHeader, &'a [u8]),
    /// Not a whole and valid frame.
    Bad,
    End,
}

impl FrameReader {
    pub fn new(file: Arc<dyn DiskFile>, at: u64, end: u64) -> FrameReader {
        FrameReader { file, at, end, window: Vec::new(), window_at: at }
    }

    /// The frame at the position, verified, and moves behind it.
    pub fn next(&mut self) -> Result<Found<'_>, StorageFault> {
        if self.at >= self.end {
            return Ok(Found::End);
        }
        if !self.fill(HEADER_LEN as u64)? {
            return Ok(Found::Bad);
        }
        let start = (self.at - self.window_at) as usize;
        let Some(header) = FrameHeader::parse(&self.window[start..]) else { return Ok(Found::Bad) };
        let len = header.frame_len();
        if !self.fill(len)? {
            return Ok(Found::Bad);
        }
        let start = (self.at - self.window_at) as usize;
        let frame = &self.window[start..start + len as usize];
        if !header.verifies(frame) {
            return Ok(Found::Bad);
        }
        self.at += len;
        Ok(Found::Frame(header, frame))
    }

    /// Whether the next frame is in memory already and its payload is no longer than `len`.
    pub fn next_fits(&self, len: usize) -> bool {
        let start = (self.at - self.window_at) as usize;
        let header = self.window.get(start..).and_then(FrameHeader::parse);
        header.is_some_and(|header| {
            header.payload_len as usize <= len
                && start as u64 + header.frame_len() <= self.window.len() as u64
        })
    }

    /// Gives back the memory; what was read ahead is read again.
    pub fn release(&mut self) {
        self.window = Vec::new();
        self.window_at = self.at;
    }

    /// Makes `len` bytes from the position available; false where the range does not have them.
    fn fill(&mut self, len: u64) -> Result<bool, StorageFault> {
        if len > self.end - self.at {
            return Ok(false);
        }
        let window_end = self.window_at + self.window.len() as u64;
        if self.at + len <= window_end {
            return Ok(true);
        }
        let wanted = len.max(READ_WINDOW as u64).min(self.end - self.at);
        self.window_at = self.at;
        self.window.resize(wanted as usize, 0);
        let read = read_full(self.file.as_ref(), &mut self.window, self.at, FileKind::Log)?;
        self.window.truncate(read);
        Ok(read as u64 >= len)
    }
}

pub(crate) fn write_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

pub(crate) fn read_varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

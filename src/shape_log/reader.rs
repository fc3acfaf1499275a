//! Reading: from an offset to a range of bytes, and the bytes of a range.

use std::sync::Arc;

use bytes::Bytes;

use crate::domain::{Lsn, Offset, Op};

use super::disk::{DiskFile, read_full};
use super::error::{FaultClass, FileKind, ShapeLogError, Stage, StorageFault};
use super::frame::{Found, FrameHeader, FrameReader, HEADER_LEN, READ_WINDOW};
use super::held::{held, piece_bytes_max};
use super::json::whole_messages;
use super::shared::SharedBlocks;
use super::snapshot::{Block, SnapshotState};
use super::view::{LogView, ShapeView, TailFrame};

/// What a view has after an offset.
#[derive(Debug)]
pub enum Read {
    Range(Range),
    /// The snapshot chunk is still being written: wait, or follow it with
    /// [`SnapshotFollow`](super::SnapshotFollow).
    Pending {
        chunk: u64,
    },
    /// The offset is larger than the last of the view: contract 1.11, "out of bounds".
    Beyond,
}

/// Whole messages, up to the end of a chunk or of the view.
#[derive(Debug)]
pub struct Range {
    /// The offset of the last message in the body: what the client asks for next (P1). The one
    /// asked for where the body is empty.
    pub end: Offset,
    /// The body reaches the end of the view, and that is not held back. Never in mid-transaction, never for the first snapshot
    /// chunk.
    pub up_to_date: bool,
    pub body: Body,
}

impl ShapeView {
    /// The messages after `from`, up to the end of their chunk.
    ///
    /// # Errors
    /// [`ShapeLogError::SnapshotFailed`], or a [`StorageFault`] while searching the log file.
    pub fn read(&self, from: Offset) -> Result<Read, ShapeLogError> {
        match from {
            Offset::BeforeAll => self.read_snapshot(0),
            Offset::At { tx: Lsn(0), op: Op::At(chunk) } => self.read_snapshot(chunk.saturating_add(1)),
            Offset::At { .. } => self.read_log(from),
        }
    }

    fn read_log(&self, from: Offset) -> Result<Read, ShapeLogError> {
        let mut read = self.log.read(from)?;
        if let Read::Range(range) = &mut read {
            range.up_to_date &= !self.held_back;
        }
        Ok(read)
    }

    fn read_snapshot(&self, chunk: u64) -> Result<Read, ShapeLogError> {
        if let Some(blocks) = self.snapshot.chunk(chunk) {
            let end = Offset::snapshot_chunk(chunk);
            return Ok(Read::Range(Range {
                end,
                up_to_date: false,
                body: Body::snapshot(&self.snapshot, blocks)?,
            }));
        }
        match self.snapshot.state {
            SnapshotState::Complete => self.read_log(Offset::SNAPSHOT_END),
            SnapshotState::Absent | SnapshotState::Writing => Ok(Read::Pending { chunk }),
            SnapshotState::Failed => Err(ShapeLogError::SnapshotFailed),
        }
    }
}

impl LogView {
    fn read(&self, from: Offset) -> Result<Read, ShapeLogError> {
        if from > self.last {
            return Ok(Read::Beyond);
        }
        if from == self.last {
            return Ok(Read::Range(Range { end: from, up_to_date: true, body: Body::default() }));
        }
        let start = self.start_after(from)?;
        let chunk = self.marks.iter_from(self.marks.partition_point(|mark| mark.end <= start));
        let (stop, end) =
            match chunk.filter(|mark| mark.chunk_end).map(|mark| (mark.end, mark.last_offset())).next() {
                Some(chunk_end) => chunk_end,
                None => (self.end, self.last),
            };
        Ok(Read::Range(Range { end, up_to_date: end == self.last, body: self.body(from, start, stop)? }))
    }

    /// Position of the first frame with a message after `from`, which must be below `last`.
    fn start_after(&self, from: Offset) -> Result<u64, StorageFault> {
        if from.is_virtual() {
            return Ok(0);
        }
        if from >= self.file_last {
            let later = self.tail.iter().take_while(|frame| last_offset(&frame.header) > from);
            return Ok(later.last().map_or(self.file_end, |frame| frame.at));
        }
        let index = self.marks.partition_point(|mark| mark.last_offset() <= from);
        let (scan_from, scan_to) = match self.marks.get(index) {
            Some(mark) if from < Offset::new(mark.first.0, mark.first.1) => return Ok(mark.start),
            Some(mark) => (mark.start, mark.end.min(self.file_end)),
            None => (self.marks.last().map_or(0, |mark| mark.end), self.file_end),
        };
        let mut frames = FrameReader::new(self.file.open()?, scan_from, scan_to);
        loop {
            let at = frames.at;
            match frames.next()? {
                Found::Frame(header, _) if last_offset(&header) > from => return Ok(at),
                Found::Frame(..) => {}
                // The view says that a later message is in the file.
                Found::Bad | Found::End => return Err(StorageFault::corrupt(FileKind::Log, at)),
            }
        }
    }

    fn body(&self, from: Offset, start: u64, stop: u64) -> Result<Body, StorageFault> {
        let mut body = Body { after: Some(from), ..Body::default() };
        let file_stop = stop.min(self.file_end);
        if start < file_stop {
            body.frames = Some((FrameReader::new(self.file.open()?, start, file_stop), file_stop));
        }
        let wanted =
            self.tail.iter().skip_while(|frame| frame.at >= stop).take_while(|frame| frame.at >= start);
        body.tail = wanted.cloned().collect();
        Ok(body)
    }
}

fn last_offset(header: &FrameHeader) -> Offset {
    Offset::new(header.tx, header.last_op)
}

/// The bytes of a range: messages in wire form with commas between them and none at the end. Yields
/// pieces of whole messages, of about 256 KiB at most unless a single message is larger. After an
/// error it ends.
///
/// Pieces from files are read when asked for and block for as long as the disk takes; where
/// [`Body::in_memory`] holds there are none.
#[derive(Debug, Default)]
pub struct Body {
    /// Messages up to this offset are left out of the first frame.
    after: Option<Offset>,
    /// Boxed, since most bodies are live ones and have none.
    blocks: Option<Box<Blocks>>,
    frames: Option<(FrameReader, u64)>,
    /// Bytes of the payload of the next frame in the file that are done with.
    taken: usize,
    /// The oldest is last.
    tail: Vec<TailFrame>,
}

#[derive(Debug)]
struct Blocks {
    file: Arc<dyn DiskFile>,
    shared: Arc<SharedBlocks>,
    /// Where the next block begins.
    start: u64,
    /// Where the next piece begins.
    at: u64,
    /// The next is last.
    rest: Vec<Block>,
}

impl Body {
    pub(crate) fn snapshot(
        snapshot: &super::snapshot::SnapshotView,
        (at, mut rest): (u64, Vec<Block>),
    ) -> Result<Body, StorageFault> {
        rest.reverse();
        Ok(Body {
            blocks: Some(Box::new(Blocks {
                file: snapshot.file.open()?,
                shared: Arc::clone(&snapshot.shared),
                start: at,
                at,
                rest,
            })),
            ..Body::default()
        })
    }

    /// Nothing to come.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.blocks.is_none() && self.in_memory() && self.tail.is_empty()
    }

    /// No piece has to be read from a file.
    #[must_use]
    pub fn in_memory(&self) -> bool {
        self.frames.is_none() && self.blocks.is_none()
    }

    /// Bytes of all that comes, at most; `None` for a snapshot.
    #[must_use]
    pub fn len_max(&self) -> Option<u64> {
        if self.blocks.is_some() {
            return None;
        }
        let file = self.frames.as_ref().map_or(0, |(frames, stop)| stop - frames.at);
        Some(file + self.tail.iter().map(|frame| u64::from(frame.header.payload_len)).sum::<u64>())
    }

    fn next_piece(&mut self, max: usize) -> Result<Option<Bytes>, StorageFault> {
        if let Some(blocks) = self.blocks.as_mut() {
            let piece = blocks.next_piece(max);
            if blocks.rest.is_empty() {
                self.blocks = None;
            }
            return piece;
        }
        if let Some((mut frames, stop)) = self.frames.take() {
            let piece = self.file_piece(&mut frames, stop, max)?;
            if frames.at < stop {
                self.frames = Some((frames, stop));
            }
            return Ok(Some(piece));
        }
        Ok(self.tail_piece())
    }

    fn file_piece(&mut self, frames: &mut FrameReader, stop: u64, max: usize) -> Result<Bytes, StorageFault> {
        let mut piece = Vec::with_capacity(usize::try_from(stop - frames.at).unwrap_or(max).min(max));
        while frames.at < stop && (piece.is_empty() || frames.next_fits(max.saturating_sub(piece.len()))) {
            let at = frames.at;
            match frames.next()? {
                Found::Frame(header, frame) => {
                    let skip = skipped(self.after.take(), &header, frame).max(self.taken);
                    let payload = &frame[HEADER_LEN + skip..HEADER_LEN + header.payload_len as usize];
                    let part = whole_messages(payload, max);
                    piece.extend_from_slice(&payload[..part]);
                    self.taken = 0;
                    if part < payload.len() {
                        // The rest of this frame comes next.
                        self.taken = skip + part;
                        frames.at = at;
                        break;
                    }
                }
                Found::Bad | Found::End => return Err(StorageFault::corrupt(FileKind::Log, at)),
            }
        }
        // A client may take its time: it is not to hold what it is not sent yet.
        frames.release();
        Ok(held(piece))
    }

    /// One large frame as it is, or several small ones copied together: a piece of a few hundred
    /// bytes costs an HTTP chunk of its own.
    fn tail_piece(&mut self) -> Option<Bytes> {
        const SMALL: usize = 16 << 10;
        let first = self.tail_payload()?;
        if first.len() >= SMALL || self.tail.is_empty() {
            return Some(first);
        }
        let mut piece = first.to_vec();
        while piece.len() < READ_WINDOW
            && self.tail.last().is_some_and(|frame| (frame.header.payload_len as usize) < SMALL)
            && let Some(payload) = self.tail_payload()
        {
            piece.extend_from_slice(&payload);
        }
        Some(held(piece))
    }

    fn tail_payload(&mut self) -> Option<Bytes> {
        let frame = self.tail.pop()?;
        let skip = skipped(self.after.take(), &frame.header, &frame.bytes);
        Some(frame.bytes.slice(HEADER_LEN + skip..HEADER_LEN + frame.header.payload_len as usize))
    }
}

/// Payload bytes of a frame that lie at or before `after`.
fn skipped(after: Option<Offset>, header: &FrameHeader, frame: &[u8]) -> usize {
    match after {
        Some(Offset::At { tx, op: Op::At(op) }) if tx == header.tx => header.position_after(frame, op),
        _ => 0,
    }
}

impl Iterator for Body {
    type Item = Result<Bytes, ShapeLogError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.next_of(piece_bytes_max())
    }
}

impl Body {
    /// The next piece, of whole messages that together are no longer than `max`, or of one that is.
    pub(crate) fn next_of(&mut self, max: usize) -> Option<Result<Bytes, ShapeLogError>> {
        match self.next_piece(max) {
            Ok(None) => None,
            Ok(Some(mut piece)) => {
                if self.is_empty() {
                    // The comma after the last message of the range.
                    piece.truncate(piece.len().saturating_sub(1));
                }
                Some(Ok(piece))
            }
            Err(fault) => {
                *self = Body::default();
                Some(Err(fault.into()))
            }
        }
    }
}

impl Blocks {
    fn next_piece(&mut self, max: usize) -> Result<Option<Bytes>, StorageFault> {
        let Some(&block) = self.rest.last() else { return Ok(None) };
        let (file, start, at) = (self.file.as_ref(), self.start, self.at);
        // Somebody may hold more, or less, than would be read now.
        let bytes = self.shared.get(at, || {
            let mut bytes = read_block(file, start, &block, 0)?;
            let done = (at - start) as usize;
            let part = whole_messages(&bytes[done..], max);
            if part < bytes.len() {
                bytes = bytes[done..done + part].to_vec();
            }
            Ok::<_, StorageFault>(bytes)
        })?;
        self.at += bytes.len() as u64;
        if self.at >= block.end {
            self.start = block.end;
            self.rest.pop();
        }
        Ok(Some(bytes))
    }
}

/// A verified snapshot block with `before` bytes that come before it.
pub(crate) fn read_block(
    file: &dyn DiskFile,
    at: u64,
    block: &Block,
    before: usize,
) -> Result<Vec<u8>, StorageFault> {
    let corrupt = StorageFault::corrupt(FileKind::Snapshot, at);
    let len = block.end.checked_sub(at).and_then(|len| usize::try_from(len).ok()).ok_or(corrupt)?;
    let mut bytes = vec![0; before + len];
    let read = read_full(file, &mut bytes, at - before as u64, FileKind::Snapshot)?;
    if read != bytes.len() || crc32c::crc32c(&bytes[before..]) != block.crc {
        return Err(StorageFault { class: FaultClass::Corrupt { at }, stage: Stage::Read, ..corrupt });
    }
    Ok(bytes)
}

//! Appending the changes of transactions to the log of one shape.

use std::sync::Arc;

use crate::domain::{Change, Incarnation, Lsn, Offset, ShapeDefinition, Xid};

use super::disk::{DiskFile, FileSlot, write_all};
use super::encoder::{CLOSE, CLOSE_LAST, Encoded, Encoder, Op, TransactionHeaders};
use super::error::{EncodeError, FileKind, Named, ShapeLogError, Stage, StorageFault};
use super::files::ShapeFiles;
use super::frame::{FRAME_PAYLOAD_TARGET, FrameBuilder};
use super::index::{AppendList, Mark, MarkBuilder, RECORD_LEN};
use super::recovery::{Verify, make_durable, scan};
use super::rewrite::compacted_end;
use super::shared_encoder::SharedEncoder;
use super::tags::{Annotation, Unit};
use super::view::{ShapeReader, ShapeView, TailFrame};

/// Bytes of committed frames in memory at which they are written to the file.
pub const TAIL_BYTES_MAX: usize = 64 << 10;
/// Bytes of an open transaction in memory at which they are written to the file.
pub const OPEN_BYTES_MAX: usize = 1 << 20;
/// A message has to fit into a frame, whose lengths are 32 bits.
const MESSAGE_BYTES_MAX: usize = 1 << 31;

/// The one writer of the log of a shape.
///
/// `begin`, `push` for each change, then `commit` or `abort`. Readers see a transaction whole at its
/// commit and not before. Nothing is durable before [`flush_all`](super::flush_all) says so.
///
/// After a [`StorageFault`] every call gives that fault again and the file is left alone: what a
/// failed fsync leaves in the page cache may look written and not be. The shape is then to be replaced,
/// or the process restarted; a new writer in the same process would trust that cache.
#[derive(Debug)]
pub struct LogWriter {
    pub(super) log: Arc<FileSlot>,
    pub(super) index: FileSlot,
    pub(super) reader: Arc<ShapeReader>,
    encoder: Encoder,
    encoded: Encoded,
    frame: FrameBuilder,
    chunk_bytes_threshold: u64,
    pub(super) open: Option<OpenTransaction>,

    /// Last committed offset and the end of its frame. Invariant: `durable <= end`.
    pub(super) last: Offset,
    pub(super) end: u64,
    pub(super) builder: MarkBuilder,
    pub(super) marks: AppendList<Mark>,
    /// Committed frames that are not in the file, oldest first.
    pub(super) unwritten: Vec<TailFrame>,
    unwritten_bytes: usize,
    /// Bytes in the file, and the last offset in them: up to `end`, or beyond it for an open
    /// transaction that was too large for memory.
    pub(super) written: u64,
    pub(super) written_last: Offset,
    pub(super) durable: u64,
    pub(super) durable_last: Offset,
    /// Marks that are in the index file.
    pub(super) marks_stored: usize,
    /// The directory entry of the log file may not be durable: it is synced with the file. A mark in
    /// the index file proves that it was; an existing file does not.
    pub(super) entry_unsynced: bool,
    /// Bytes found in the file at recovery may be in the page cache only.
    pub(super) sync_wanted: bool,
    /// The file, from what was written first until that is synced: one that is closed in between and
    /// opened again might not tell of a failed write-back.
    pub(super) unsynced: Option<Arc<dyn DiskFile>>,
    pub(super) index_broken: bool,
    /// Where the part ends that was compacted last.
    pub(super) compacted: u64,
    pub(super) fault: Option<StorageFault>,
    /// Readers see nothing before it is durable. So it is for shapes with inner queries: what they make of
    /// a transaction depends on what has moved before, and after a crash that may move at another place.
    durable_first: bool,
    /// Commits that readers have not been shown.
    pub(super) behind: bool,
}

#[derive(Debug)]
pub(super) struct OpenTransaction {
    tx: Lsn,
    headers: TransactionHeaders,
    /// The log has this transaction already.
    duplicate: bool,
    messages: u64,
    skipped: u64,
    builder: MarkBuilder,
    marks: Vec<Mark>,
    sealed: Vec<TailFrame>,
    sealed_bytes: usize,
    last_op: u64,
    /// What its last message is closed with.
    last_close: &'static [u8],
}

/// What a log had when its writer started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recovered {
    /// The last offset of the log.
    pub last: Offset,
    /// Bytes of torn frames and of unfinished transactions that were cut off.
    pub trimmed_bytes: u64,
}

/// What a commit did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Committed {
    /// Messages appended; 0 where the transaction had none for the shape.
    pub messages: u64,
    /// Changes dropped because the log has the transaction already.
    pub skipped: u64,
    /// The last offset of the log.
    pub last: Offset,
}

impl LogWriter {
    /// Takes over the log: verifies it, cuts off what a crash left behind, and publishes the rest.
    ///
    /// # Errors
    /// `Corrupt` where bytes that were durable are damaged; then nothing is cut off.
    pub fn recover(
        files: &ShapeFiles,
        definition: &ShapeDefinition,
        reader: Arc<ShapeReader>,
        incarnation: Incarnation,
        chunk_bytes_threshold: u64,
        verify: Verify,
    ) -> Result<(LogWriter, Recovered), ShapeLogError> {
        // The one of the views before, so that whoever holds one of them keeps this file.
        let log = Arc::clone(&reader.view().log.file);
        let durable_first = !definition.dependencies.is_empty();
        if durable_first {
            make_durable(files)?;
        }
        let index = files.slot(FileKind::Index);
        let scan = scan(&log, &index, verify)?;
        let compacted = compacted_end(&scan.marks);
        let trimmed_bytes = scan.file_len - scan.end;
        if trimmed_bytes > 0 {
            log.open()?.set_len(scan.end).named(Stage::Truncate, FileKind::Log)?;
        }
        if scan.index_len > (scan.stored * RECORD_LEN) as u64 {
            let len = (scan.stored * RECORD_LEN) as u64;
            index.open()?.set_len(len).named(Stage::Truncate, FileKind::Index)?;
        }
        scan.publish(Arc::clone(&log), &reader, incarnation);
        // At a start every shape is opened: none keeps a descriptor until it is used.
        log.release();
        index.release();
        let writer = LogWriter {
            log,
            index,
            reader,
            encoder: Encoder::new(definition),
            encoded: Encoded::default(),
            frame: FrameBuilder::new(),
            chunk_bytes_threshold: chunk_bytes_threshold.max(1),
            open: None,
            last: scan.last,
            end: scan.end,
            builder: scan.builder,
            marks: scan.marks,
            unwritten: Vec::new(),
            unwritten_bytes: 0,
            written: scan.end,
            written_last: scan.last,
            durable: scan.durable,
            durable_last: scan.durable_last,
            marks_stored: scan.stored,
            entry_unsynced: scan.durable == 0,
            sync_wanted: scan.file_len > scan.durable,
            unsynced: None,
            index_broken: false,
            compacted,
            fault: None,
            durable_first,
            behind: false,
        };
        Ok((writer, Recovered { last: scan.last, trimmed_bytes }))
    }

    /// The last committed offset, durable or not.
    #[must_use]
    pub fn last(&self) -> Offset {
        self.last
    }

    /// The last offset that is known to be durable.
    #[must_use]
    pub fn durable(&self) -> Offset {
        self.durable_last
    }

    /// Something is to be flushed.
    #[must_use]
    pub fn is_dirty(&self) -> bool {
        !self.unwritten.is_empty() || self.end > self.durable || self.sync_wanted
    }

    /// It holds its file open until the next flush.
    #[must_use]
    pub fn holds_file(&self) -> bool {
        self.unsynced.as_ref().is_some_and(|file| file.packed_upto().is_none())
    }

    /// The fault after which this writer does nothing more.
    #[must_use]
    pub fn fault(&self) -> Option<StorageFault> {
        self.fault
    }

    /// Starts a transaction. One that the log already has is taken in and dropped: the stream sends
    /// again what was not acknowledged. Panics where one is open.
    ///
    /// # Errors
    /// The fault of an earlier call.
    pub fn begin(&mut self, tx: Lsn, xid: Xid) -> Result<(), ShapeLogError> {
        self.check()?;
        assert!(self.open.is_none(), "a transaction begins after the one before has ended");
        self.open = Some(OpenTransaction {
            tx,
            headers: TransactionHeaders::new(tx, xid),
            duplicate: tx <= self.last.tx(),
            messages: 0,
            skipped: 0,
            builder: self.builder,
            marks: Vec::new(),
            sealed: Vec::new(),
            sealed_bytes: 0,
            last_op: 0,
            last_close: CLOSE_LAST,
        });
        Ok(())
    }

    /// Adds a whole message after the changes of the open transaction. Panics where none is open.
    ///
    /// # Errors
    /// As [`LogWriter::push`].
    pub fn push_message(&mut self, message: &[u8]) -> Result<(), ShapeLogError> {
        self.check()?;
        let open = self.open.as_mut().expect("a message belongs to an open transaction");
        if open.duplicate {
            open.skipped += 1;
            return Ok(());
        }
        // No change follows: the one before was the last.
        let close = std::mem::replace(&mut open.last_close, b"");
        let op = if open.messages == 0 { 0 } else { open.last_op + 1 };
        self.push_raw(op, message, close)
    }

    /// Appends messages that have no transaction of their own, after the one at `after`. Only a shape with
    /// inner queries has such, so readers see them once they are durable: after a crash others may stand in
    /// their place. A unit that the log has already is passed over. Panics where a transaction is open.
    ///
    /// # Errors
    /// As [`LogWriter::push`].
    pub fn append_unit(&mut self, after: Lsn, unit: &Unit) -> Result<(), ShapeLogError> {
        self.check()?;
        assert!(self.open.is_none(), "a unit follows a transaction that has ended");
        if unit.messages.is_empty() || unit.placed().is_some_and(|placed| placed <= self.last) {
            return Ok(());
        }
        let tx = after.max(self.last.tx());
        let first = if self.last.tx() == tx { self.last.op().map_or(0, |op| op + 1) } else { 0 };
        self.begin(tx, Xid(0))?;
        unit.place(Offset::new(tx, first));
        for (op, message) in (first..).zip(&unit.messages) {
            self.push_raw(op, message, b"")?;
        }
        self.seal(b"", true, &unit.note)?;
        self.publish_open();
        if self.unwritten_bytes >= TAIL_BYTES_MAX {
            self.write_out()?;
        }
        Ok(())
    }

    /// Opens a whole message, after closing the one before.
    fn push_raw(&mut self, op: u64, message: &[u8], close: &[u8]) -> Result<(), ShapeLogError> {
        if message.len() >= MESSAGE_BYTES_MAX {
            return Err(EncodeError::MessageTooLarge { bytes: message.len() as u64 }.into());
        }
        if self.frame.has_open() {
            self.close(close, false)?;
        }
        self.frame.open(op, message);
        let open = self.open.as_mut().expect("a message belongs to an open transaction");
        open.last_op = op;
        open.messages += 1;
        Ok(())
    }

    /// Adds a change, in ascending `op`. Panics where no transaction is open.
    ///
    /// # Errors
    /// An [`EncodeError`] or a [`StorageFault`]; the transaction is then to be aborted.
    pub fn push(&mut self, change: &Change, op: Op) -> Result<(), ShapeLogError> {
        self.push_tagged(change, op, None)
    }

    /// As [`LogWriter::push`], with the tags of the row.
    ///
    /// # Errors
    /// As [`LogWriter::push`].
    pub fn push_tagged(
        &mut self,
        change: &Change,
        op: Op,
        note: Option<&Annotation>,
    ) -> Result<(), ShapeLogError> {
        self.check()?;
        let open = self.open.as_mut().expect("a change belongs to an open transaction");
        if open.duplicate {
            open.skipped += 1;
            return Ok(());
        }
        let mut encoded = std::mem::take(&mut self.encoded);
        let result = self.encoder.encode_tagged(change, op, note, &open.headers, &mut encoded);
        let result = result.map_err(ShapeLogError::from).and_then(|()| self.append(encoded.messages()));
        self.encoded = encoded;
        result
    }

    /// As [`LogWriter::push`], with messages that other shapes of the class may have had made for the same
    /// transaction, or will get.
    ///
    /// # Errors
    /// As [`LogWriter::push`].
    pub fn push_shared(
        &mut self,
        change: &Change,
        op: Op,
        shared: &mut SharedEncoder,
    ) -> Result<(), ShapeLogError> {
        self.check()?;
        let open = self.open.as_mut().expect("a change belongs to an open transaction");
        if open.duplicate {
            open.skipped += 1;
            return Ok(());
        }
        let messages = shared.encode(change, op)?;
        self.append(messages.iter())
    }

    /// Ends the transaction: readers see it from here on.
    ///
    /// # Errors
    /// A [`StorageFault`] of writing out what is in memory. The transaction is then visible, as it
    /// may be before it is durable, but this writer will never report it as durable.
    pub fn commit(&mut self) -> Result<Committed, ShapeLogError> {
        self.check()?;
        if self.frame.has_open() {
            let last = self.open.as_ref().map_or(CLOSE_LAST, |open| open.last_close);
            self.close(last, true)?;
        }
        let (messages, skipped) = self.publish_open();
        if self.unwritten_bytes >= TAIL_BYTES_MAX {
            self.write_out()?;
        }
        Ok(Committed { messages, skipped, last: self.last })
    }

    /// Whether readers have not been shown all that was committed: see [`flush_all`](super::flush_all).
    #[must_use]
    pub fn is_behind(&self) -> bool {
        self.behind
    }

    /// Shows readers what was open, or that there is something that they are not shown yet. How many
    /// messages it had, and how many changes were dropped.
    fn publish_open(&mut self) -> (u64, u64) {
        let open = self.open.take().expect("a commit ends an open transaction");
        let done = (open.messages, open.skipped);
        if open.messages == 0 {
            return done;
        }
        self.builder = open.builder;
        self.end = open.builder.at;
        self.last = Offset::new(open.tx, open.last_op);
        open.marks.iter().for_each(|mark| self.marks.push(*mark));
        self.unwritten_bytes += open.sealed_bytes;
        if self.durable_first {
            self.unwritten.extend(open.sealed);
            if !std::mem::replace(&mut self.behind, true) {
                self.reader.fall_behind();
            }
            return done;
        }
        drop(self.reader.publish(|view| {
            let mut next = view.clone();
            next.log.file_end = self.written;
            next.log.file_last = self.written_last;
            next.log.end = self.end;
            next.log.last = self.last;
            next.log.marks = self.marks.clone();
            open.sealed.iter().for_each(|frame| next.log.tail.push(frame.clone()));
            next
        }));
        self.unwritten.extend(open.sealed);
        done
    }

    /// Shows readers everything that is committed. All of it is in the file, and durable.
    pub(super) fn publish_durable(&mut self) {
        if !std::mem::take(&mut self.behind) {
            return;
        }
        drop(self.reader.publish(|view| {
            let mut next = view.clone();
            next.log.file_end = self.end;
            next.log.file_last = self.last;
            next.log.end = self.end;
            next.log.last = self.last;
            next.log.marks = self.marks.clone();
            next.log.behind = false;
            next
        }));
    }

    /// Gives the open transaction up, if there is one; the log is as it was before `begin`.
    ///
    /// # Errors
    /// A [`StorageFault`] of cutting off what was written already.
    pub fn abort(&mut self) -> Result<(), ShapeLogError> {
        self.frame.clear();
        if self.open.take().is_some() && self.written > self.end {
            self.check()?;
            let cut =
                self.log.open().and_then(|file| file.set_len(self.end).named(Stage::Truncate, FileKind::Log));
            self.noted(cut)?;
            self.written = self.end;
            self.written_last = self.last;
        }
        Ok(())
    }

    /// Writes the committed frames in memory to the file, in one call unless there are many large
    /// ones. They are then in the page cache: safe from a crash of the process, not of the machine.
    ///
    /// # Errors
    /// A [`StorageFault`]; readers keep reading the frames from memory.
    pub fn write_out(&mut self) -> Result<(), StorageFault> {
        self.check()?;
        let frames = std::mem::take(&mut self.unwritten);
        if frames.is_empty() {
            return Ok(());
        }
        let written = self.write_frames(&frames);
        if written.is_err() {
            self.unwritten = frames;
        }
        written?;
        self.unwritten_bytes = 0;
        if self.durable_first {
            return Ok(());
        }
        drop(self.reader.publish(|view| {
            let mut next: ShapeView = view.clone();
            next.log.file_end = self.written;
            next.log.file_last = self.written_last;
            next.log.tail = super::view::Tail::default();
            next
        }));
        Ok(())
    }

    /// Gives back buffers, for a shape that will be idle for a while.
    pub fn release(&mut self) {
        if self.open.is_none() {
            self.frame.release();
            self.encoded = Encoded::default();
            self.index.release();
        }
    }

    pub(super) fn check(&self) -> Result<(), StorageFault> {
        self.fault.map_or(Ok(()), Err)
    }

    pub(super) fn noted<T>(&mut self, result: Result<T, StorageFault>) -> Result<T, StorageFault> {
        result.inspect_err(|fault| self.fault = Some(*fault))
    }

    fn append<'m>(&mut self, messages: impl Iterator<Item = (u64, &'m [u8])>) -> Result<(), ShapeLogError> {
        for (op, message) in messages {
            if message.len() >= MESSAGE_BYTES_MAX {
                return Err(EncodeError::MessageTooLarge { bytes: message.len() as u64 }.into());
            }
            // Only the next message shows that the one before was not the last.
            if self.frame.has_open() {
                self.close(CLOSE, false)?;
            }
            let open = self.open.as_mut().expect("a message belongs to an open transaction");
            let first = open.messages == 0;
            assert!(first || op > open.last_op, "the messages of a transaction come in ascending order");
            self.frame.open(op, message);
            open.last_op = op;
            open.messages += 1;
        }
        Ok(())
    }

    /// Closes the open message, and the frame where it is full, where the chunk ends, or at the end
    /// of the transaction.
    fn close(&mut self, close: &[u8], commit: bool) -> Result<(), StorageFault> {
        self.seal(close, commit, b"")
    }

    /// As [`LogWriter::close`], with a note in the last frame of a commit.
    fn seal(&mut self, close: &[u8], commit: bool, note: &[u8]) -> Result<(), StorageFault> {
        self.frame.close(close);
        let open = self.open.as_mut().expect("a message belongs to an open transaction");
        let chunk_end = open.builder.chunk_bytes + self.frame.json_bytes() >= self.chunk_bytes_threshold;
        if !commit && !chunk_end && self.frame.payload_len() < FRAME_PAYLOAD_TARGET {
            return Ok(());
        }
        let at = open.builder.at;
        let sealed = self.frame.seal(open.tx, commit, chunk_end, self.durable, note);
        let (header, bytes) = sealed.expect("a frame with a closed message");
        open.marks.extend(open.builder.push(&header));
        open.sealed_bytes += bytes.len();
        open.sealed.push(TailFrame { at, header, bytes });
        if open.sealed_bytes >= OPEN_BYTES_MAX && !commit {
            self.spill()?;
        }
        Ok(())
    }

    /// Moves the frames of the open transaction into the file, behind those that are committed.
    fn spill(&mut self) -> Result<(), StorageFault> {
        self.write_out()?;
        let Some(open) = self.open.as_mut() else { return Ok(()) };
        let frames = std::mem::take(&mut open.sealed);
        open.sealed_bytes = 0;
        self.write_frames(&frames)
    }

    fn write_frames(&mut self, frames: &[TailFrame]) -> Result<(), StorageFault> {
        let opened = self.log.open_or_create();
        let (file, new) = self.noted(opened)?;
        self.entry_unsynced |= new;
        self.unsynced = Some(Arc::clone(&file));
        let mut joined = Vec::new();
        let mut at = self.written;
        let mut rest = frames.iter().peekable();
        while let Some(frame) = rest.next() {
            assert_eq!(frame.at, at + joined.len() as u64, "frames follow each other");
            let alone = joined.is_empty() && (rest.peek().is_none() || frame.bytes.len() >= TAIL_BYTES_MAX);
            if alone {
                let result = write_all(file.as_ref(), &frame.bytes, at, FileKind::Log);
                self.noted(result)?;
                at += frame.bytes.len() as u64;
                continue;
            }
            joined.extend_from_slice(&frame.bytes);
            if rest.peek().is_none() || joined.len() >= OPEN_BYTES_MAX {
                let result = write_all(file.as_ref(), &joined, at, FileKind::Log);
                self.noted(result)?;
                at += joined.len() as u64;
                joined.clear();
            }
        }
        self.written = at;
        if let Some(frame) = frames.last() {
            self.written_last = Offset::new(frame.header.tx, frame.header.last_op);
        }
        Ok(())
    }
}

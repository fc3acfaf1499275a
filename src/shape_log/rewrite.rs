//! A new generation of a log, beside the old one, and the switch to it.
//!
//! [`prepare`] makes the file `log.new` while the shape goes on: what compact.rs says has to remain of the
//! older part, then copies of the newer frames. [`LogWriter::switch`] appends what has come since, syncs it,
//! and puts it in the place of `log`. Each step leaves a directory that a start understands:
//!
//! | Step | Found after a crash |
//! |---|---|
//! | `log.new` is written and synced | the old log; `log.new` is written over by the next attempt |
//! | `log.idx` is removed, durably | the old log; its index is made again from its frames |
//! | `log.new` takes the place of `log`, durably | the old log or the new one: both hold all that was durable |
//! | `log.idx` is written anew | the new log |
//!
//! The index goes first, since the one of the old log would prove the new one damaged. A reader goes on
//! with the view that it holds: the old file stays open for as long as somebody has one (P2).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::domain::{LogMode, Lsn, Offset, Replica, ShapeDefinition};

use super::compact::{Ending, Fold, Kept, Unreadable, follower, moved};
use super::disk::{DiskFile, FileSlot, write_all};
use super::encoder::Encoder;
use super::error::{FaultClass, FileKind, Named, ShapeLogError, Stage, StorageFault};
use super::files::ShapeFiles;
use super::frame::{FRAME_PAYLOAD_TARGET, Found, FrameBuilder, FrameHeader, FrameReader, frame_messages};
use super::index::{AppendList, Mark, MarkBuilder};
use super::view::{LogView, ShapeView, Tail};
use super::writer::LogWriter;

/// Memory of the messages that are compacted together. Where more has to remain, it is compacted in parts:
/// updates of a row in two of them stay two.
pub const COMPACTED_TOGETHER_BYTES_MAX: usize = 128 << 20;
/// The newest bytes of a log that are left as they are, at most: who is close behind gets transactions as
/// they were, with their ids.
const RECENT_BYTES_MAX: u64 = 4 << 20;
/// Bytes that are written at a time.
const OUTPUT_BYTES: usize = 1 << 20;
/// The name of a generation in the making.
const NEW_LOG: &str = "log.new";

/// When a log is rewritten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CompactionPolicy {
    /// Never below this size.
    pub bytes_min: u64,
    /// When it is so many times the size that its rows take: in the snapshot, and in the compacted part.
    pub ratio: u64,
}

impl CompactionPolicy {
    fn recent_bytes(&self) -> u64 {
        (self.bytes_min / 4).min(RECENT_BYTES_MAX)
    }
}

/// A generation in the making. Of use to the writer that the log has had since.
#[derive(Debug)]
pub struct Prepared {
    output: Output,
    /// What lies before this position of the old log is in the new one.
    taken: u64,
    through: Offset,
    /// Where the compacted part ends in the new one.
    compacted: u64,
}

impl Prepared {
    /// Up to here it is compacted.
    #[must_use]
    pub fn through(&self) -> Offset {
        self.through
    }
}

/// What came of preparing.
#[derive(Debug)]
pub enum Preparation {
    Prepared(Box<Prepared>),
    /// Nothing has come since the last time that may be compacted.
    Nothing,
    /// It was asked to stop.
    Stopped,
    /// A message is not one of a plain shape.
    Unreadable,
}

/// What a switch did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Switched {
    Done {
        /// Up to here it is compacted.
        through: Lsn,
        /// Bytes of the log before and after.
        before: u64,
        after: u64,
    },
    /// The old log goes on as if nothing had been.
    Abandoned(StorageFault),
}

/// Whether the log of a shape may be compacted: one that tells rows, and no more than rows. One of changes
/// (`log=changes_only`), one with old values (`replica=full`), and those of inner queries and of the shapes
/// that have some, whose messages stand in an order with others, may not.
#[must_use]
pub fn is_compactable(definition: &ShapeDefinition) -> bool {
    definition.log == LogMode::Full
        && definition.replica == Replica::Default
        && definition.dependencies.is_empty()
        && !definition.is_inner()
}

/// Writes the new generation of what the view has in its file, and syncs it. Blocks for as long as that
/// takes; looks at `stop` now and then.
///
/// # Errors
/// A [`StorageFault`]: of the old log where its class is `Corrupt`, otherwise of making the new one.
pub fn prepare(
    files: &ShapeFiles,
    definition: &ShapeDefinition,
    view: &ShapeView,
    (policy, chunk_bytes): (CompactionPolicy, u64),
    stop: &AtomicBool,
) -> Result<Preparation, ShapeLogError> {
    prepare_within(files, definition, view, (policy, chunk_bytes, COMPACTED_TOGETHER_BYTES_MAX), stop)
}

/// As [`prepare`], with another bound of its memory.
pub(super) fn prepare_within(
    files: &ShapeFiles,
    definition: &ShapeDefinition,
    view: &ShapeView,
    (policy, chunk_bytes, bytes_max): (CompactionPolicy, u64, usize),
    stop: &AtomicBool,
) -> Result<Preparation, ShapeLogError> {
    let log = &view.log;
    let end = log.end.min(log.file_end);
    let Some(last) = last_commit(&log.marks, end.saturating_sub(policy.recent_bytes())) else {
        return Ok(Preparation::Nothing);
    };
    if last.end <= compacted_end(&log.marks) {
        return Ok(Preparation::Nothing);
    }
    let old = log.file.open()?;
    let mut output = Output::new(create(files)?, chunk_bytes);
    let encoder = Encoder::new(definition);
    let frames = FrameReader::new(Arc::clone(&old), 0, last.end);
    match compact(frames, &encoder, &mut output, bytes_max, stop)? {
        Ok(()) => {}
        Err(given_up) => return Ok(given_up),
    }
    let compacted = output.builder.at;
    let through = last.last_offset();
    debug_assert_eq!(output.last, through, "the end of the compacted part stays where it was");
    output.copy(old, last.end, end, stop)?;
    if stop.load(Ordering::Relaxed) {
        return Ok(Preparation::Stopped);
    }
    output.sync()?;
    Ok(Preparation::Prepared(Box::new(Prepared { output, taken: end, through, compacted })))
}

/// The last mark up to this position that is at the end of a transaction.
fn last_commit(marks: &AppendList<Mark>, upto: u64) -> Option<Mark> {
    let count = marks.partition_point(|mark| mark.end <= upto);
    (0..count).rev().filter_map(|index| marks.get(index)).find(|mark| mark.commit).copied()
}

/// Where the part ends that was compacted last; 0 where none was.
pub(super) fn compacted_end(marks: &AppendList<Mark>) -> u64 {
    marks.iter_from(0).filter(|mark| mark.compacted).last().map_or(0, |mark| mark.end)
}

/// An empty file, whatever an earlier attempt has left.
fn create(files: &ShapeFiles) -> Result<Arc<dyn DiskFile>, StorageFault> {
    let path = files.path(NEW_LOG);
    match files.disk.create(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            let file = files.disk.open(&path).named(Stage::Open, FileKind::Log)?;
            file.set_len(0).named(Stage::Truncate, FileKind::Log)?;
            Ok(file)
        }
        created => created.named(Stage::Create, FileKind::Log),
    }
}

/// Reads all frames and writes what has to remain of them.
fn compact(
    mut frames: FrameReader,
    encoder: &Encoder,
    output: &mut Output,
    bytes_max: usize,
    stop: &AtomicBool,
) -> Result<Result<(), Preparation>, StorageFault> {
    let mut fold = Fold::new(encoder);
    loop {
        let at = frames.at;
        let whole = match frames.next()? {
            Found::Frame(header, frame) => {
                for (op, message) in frame_messages(&header, frame) {
                    if fold.push((header.tx, op), message) == Err(Unreadable) {
                        return Ok(Err(Preparation::Unreadable));
                    }
                }
                header.commit && fold.bytes() >= bytes_max
            }
            Found::End => {
                let Ok(kept) = fold.finish() else { return Ok(Err(Preparation::Unreadable)) };
                output.write(&kept, encoder, true)?;
                return Ok(Ok(()));
            }
            Found::Bad => return Err(StorageFault::corrupt(FileKind::Log, at)),
        };
        if stop.load(Ordering::Relaxed) {
            return Ok(Err(Preparation::Stopped));
        }
        if whole {
            let Ok(kept) = fold.finish() else { return Ok(Err(Preparation::Unreadable)) };
            output.write(&kept, encoder, false)?;
        }
    }
}

/// The new file, and what a writer has to know of it.
#[derive(Debug)]
struct Output {
    file: Arc<dyn DiskFile>,
    buffer: Vec<u8>,
    /// Bytes in the file; those in the buffer follow.
    written: u64,
    builder: MarkBuilder,
    marks: AppendList<Mark>,
    last: Offset,
    chunk_bytes: u64,
}

impl Output {
    fn new(file: Arc<dyn DiskFile>, chunk_bytes: u64) -> Output {
        Output {
            file,
            buffer: Vec::new(),
            written: 0,
            builder: MarkBuilder::default(),
            marks: AppendList::default(),
            last: Offset::SNAPSHOT_END,
            chunk_bytes,
        }
    }

    /// Writes messages of the compacted part, as frames with ends of chunks; `all`: they are its last ones.
    fn write(&mut self, kept: &[Kept], encoder: &Encoder, all: bool) -> Result<(), StorageFault> {
        let mut frame = FrameBuilder::new();
        for (index, message) in kept.iter().enumerate() {
            let (tx, mut op) = message.at;
            let commit = kept.get(index + 1).is_none_or(|next| next.at.0 != tx);
            let end = all && index + 1 == kept.len();
            let bytes = frame.json_bytes() + message.message.len() as u64;
            let full = self.builder.chunk_bytes + bytes >= self.chunk_bytes;
            let behind = match message.ending {
                Ending::Followed if full && !end => follower(encoder, &message.message),
                Ending::Moved | Ending::None | Ending::Followed => None,
            };
            let moved = match message.ending {
                Ending::Moved if full && !end => moved(encoder, &message.message),
                Ending::Moved | Ending::None | Ending::Followed => None,
            };
            op += u64::from(moved.is_some());
            frame.open(op, moved.as_ref().unwrap_or(&message.message));
            frame.close(b"");
            if let Some(behind) = &behind {
                frame.open(op + 1, behind);
                frame.close(b"");
            }
            let chunk_end = end || moved.is_some() || behind.is_some();
            if !commit && !chunk_end && frame.payload_len() < FRAME_PAYLOAD_TARGET {
                continue;
            }
            let durable = self.builder.at;
            let (mut header, sealed) =
                frame.seal(tx, commit, chunk_end, durable, &[]).expect("a frame with a message");
            let mut bytes = sealed.to_vec();
            if end {
                header.compacted = true;
                header.write(&mut bytes);
            }
            self.push(&header, &bytes)?;
        }
        Ok(())
    }

    /// Copies frames of the old log. They are durable before anybody sees them at their new places.
    fn copy(
        &mut self,
        old: Arc<dyn DiskFile>,
        from: u64,
        to: u64,
        stop: &AtomicBool,
    ) -> Result<(), StorageFault> {
        let mut frames = FrameReader::new(old, from, to);
        while !stop.load(Ordering::Relaxed) {
            let at = frames.at;
            match frames.next()? {
                Found::Frame(mut header, frame) => {
                    let mut bytes = frame.to_vec();
                    header.durable = self.builder.at;
                    header.write(&mut bytes);
                    self.push(&header, &bytes)?;
                }
                Found::End => return Ok(()),
                Found::Bad => return Err(StorageFault::corrupt(FileKind::Log, at)),
            }
        }
        Ok(())
    }

    fn push(&mut self, header: &FrameHeader, bytes: &[u8]) -> Result<(), StorageFault> {
        if let Some(mark) = self.builder.push(header) {
            self.marks.push(mark);
        }
        self.last = Offset::new(header.tx, header.last_op);
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() >= OUTPUT_BYTES { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<(), StorageFault> {
        write_all(self.file.as_ref(), &self.buffer, self.written, FileKind::Log)?;
        self.written += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }

    fn sync(&mut self) -> Result<(), StorageFault> {
        self.flush()?;
        self.file.sync_data().named(Stage::Sync, FileKind::Log)
    }
}

impl LogWriter {
    /// Bytes of the log.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.end
    }

    /// Whether the log is to be rewritten, if its shape is one that may be.
    #[must_use]
    pub fn compaction_due(&self, policy: CompactionPolicy) -> bool {
        let rows = self.reader.view().snapshot.size().saturating_add(self.compacted);
        self.fault.is_none() && self.end >= policy.bytes_min && self.end >= rows.saturating_mul(policy.ratio)
    }

    /// Puts the new generation in the place of the log: readers who look from here on see it. Panics where
    /// a transaction is open.
    ///
    /// # Errors
    /// A [`StorageFault`] after which this writer does nothing more.
    pub fn switch(&mut self, files: &ShapeFiles, prepared: Prepared) -> Result<Switched, ShapeLogError> {
        self.check()?;
        assert!(self.open.is_none(), "a log is rewritten between two transactions");
        self.write_out()?;
        let Prepared { mut output, taken, through, compacted } = prepared;
        let before = self.end;
        let completed = self
            .log
            .open()
            .and_then(|old| output.copy(old, taken, before, &AtomicBool::new(false)))
            .and_then(|()| output.sync());
        match completed {
            Ok(()) => {}
            // Its own bytes are wrong: it can neither go on nor be read.
            Err(fault) if matches!(fault.class, FaultClass::Corrupt { .. }) => {
                return Ok(self.noted(Err(fault))?);
            }
            Err(fault) => return Ok(Switched::Abandoned(fault)),
        }
        // Whoever holds a view goes on reading this file.
        if let Err(fault) = self.log.pin() {
            return Ok(Switched::Abandoned(fault));
        }
        if let Err(fault) = self.replace(files)? {
            self.log.unpin();
            return Ok(Switched::Abandoned(fault));
        }
        self.adopt(files, output, compacted);
        Ok(Switched::Done { through: through.tx(), before, after: self.end })
    }

    /// The steps that change the directory. The inner error: nothing has changed but for the index.
    fn replace(&mut self, files: &ShapeFiles) -> Result<Result<(), StorageFault>, StorageFault> {
        let index = files.path("log.idx");
        match files.disk.remove_file(&index) {
            Ok(()) => {}
            // It is made with the first mark.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Ok(Err(StorageFault::new(&error, Stage::Remove, FileKind::Index))),
        }
        self.index.release();
        self.marks_stored = 0;
        let synced = self.log.sync_directory();
        self.noted(synced)?;
        let renamed = files.disk.rename(&files.path(NEW_LOG), &files.path("log"));
        if let Err(fault) = renamed.named(Stage::Remove, FileKind::Log) {
            return Ok(Err(fault));
        }
        // What is appended from here on is in a file whose place must not be lost.
        let synced = self.log.sync_directory();
        self.noted(synced)?;
        Ok(Ok(()))
    }

    /// Goes on with the new file.
    fn adopt(&mut self, files: &ShapeFiles, output: Output, compacted: u64) {
        let Output { file, builder, marks, last, .. } = output;
        debug_assert_eq!(last, self.last, "it ends where the old one did");
        let slot = FileSlot::opened(Arc::clone(&files.disk), Arc::clone(&files.dir), FileKind::Log, file);
        self.log = Arc::new(slot);
        self.builder = builder;
        self.marks = marks;
        self.end = builder.at;
        self.written = builder.at;
        self.written_last = self.last;
        self.durable = builder.at;
        self.durable_last = self.last;
        self.compacted = compacted;
        self.entry_unsynced = false;
        self.unsynced = None;
        self.sync_wanted = false;
        self.index_broken = self.store_marks().is_err();
        let log = LogView {
            file: Arc::clone(&self.log),
            file_end: self.end,
            file_last: self.last,
            end: self.end,
            last: self.last,
            tail: Tail::default(),
            behind: false,
            marks: self.marks.clone(),
        };
        drop(self.reader.publish(|view| ShapeView { log: log.clone(), ..view.clone() }));
    }
}

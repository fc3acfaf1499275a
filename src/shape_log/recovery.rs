//! What a log file really holds: frames from the last mark on are verified, the rest on request.
//!
//! A torn tail is what a crash leaves behind what was last synced; it and a transaction without its
//! commit frame are given up: Postgres sends them again. Damage to bytes that were durable is
//! something else and never given up silently. Durable they were if a record of the index covers
//! them, or if a later frame says so: each frame carries how far the file was durable when it was made.

use std::sync::Arc;

use crate::domain::{Incarnation, Lsn, Offset};

use super::disk::{DiskFile, FileSlot, read_full};
use super::error::{FaultClass, FileKind, Named, ShapeLogError, Stage, StorageFault};
use super::files::ShapeFiles;
use super::frame::{Found, FrameHeader, FrameReader, HEADER_LEN, MAGIC, READ_WINDOW};
use super::index::{AppendList, Mark, MarkBuilder, RECORD_LEN};
use super::view::{LogView, ShapeReader, ShapeView, Tail};

/// How much of a log file is verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verify {
    /// From the last mark at the end of a transaction: 64 KiB and what came after.
    Tail,
    Everything,
}

/// The state of a log file, up to its last commit.
#[derive(Debug)]
pub(crate) struct Scan {
    pub marks: AppendList<Mark>,
    /// Records of the index file that are right.
    pub stored: usize,
    pub index_len: u64,
    pub builder: MarkBuilder,
    pub last: Offset,
    /// End of the last committed frame.
    pub end: u64,
    pub file_len: u64,
    /// Below this everything is known to be durable.
    pub durable: u64,
    pub durable_last: Offset,
}

/// Publishes the log of a shape that this process does not own: nothing is written or truncated.
///
/// # Errors
/// `Corrupt` where durable bytes are damaged, or another [`StorageFault`].
pub fn open_read_only(
    files: &ShapeFiles,
    reader: &ShapeReader,
    verify: Verify,
) -> Result<Offset, ShapeLogError> {
    let log = Arc::clone(&reader.view().log.file);
    let scan = scan(&log, &files.slot(FileKind::Index), verify)?;
    scan.publish(log, reader, Incarnation(0));
    Ok(scan.last)
}

/// Makes durable what an earlier process left in the log, whether it had done so or not. For shapes whose
/// readers are shown nothing before that.
///
/// # Errors
/// A [`StorageFault`].
pub fn make_durable(files: &ShapeFiles) -> Result<(), ShapeLogError> {
    let log = files.slot(FileKind::Log);
    if let Some(file) = log.open_existing()? {
        file.sync_data().named(Stage::Sync, FileKind::Log)?;
        log.sync_directory()?;
    }
    Ok(())
}

impl Scan {
    /// The same log later, written to meanwhile by its owner: reads on from the last commit. Not before
    /// it, so nothing is said about the index.
    ///
    /// # Errors
    /// `Corrupt` where a frame behind damaged bytes says that they had been durable; while the file is
    /// being written, that may pass. `Vanished` where the file is gone.
    pub fn carry_on(&self, log: &FileSlot) -> Result<Scan, StorageFault> {
        let file = log.open()?;
        let file_len = file.size().named(Stage::Read, FileKind::Log)?;
        if file_len < self.end {
            return Err(StorageFault::corrupt(FileKind::Log, file_len));
        }
        let mut walk = Walk {
            marks: self.marks.clone(),
            builder: self.builder,
            committed: self.builder,
            last: self.last,
            end: self.end,
        };
        let torn_at = walk.read(FrameReader::new(Arc::clone(&file), self.end, file_len))?;
        if later_frame_proves(file.as_ref(), torn_at, walk.end, file_len)? {
            return Err(StorageFault::corrupt(FileKind::Log, torn_at));
        }
        Ok(Scan {
            marks: walk.marks,
            builder: walk.committed,
            last: walk.last,
            end: walk.end,
            file_len,
            ..*self
        })
    }

    pub fn publish(&self, file: Arc<FileSlot>, reader: &ShapeReader, incarnation: Incarnation) {
        let log = LogView {
            file,
            file_end: self.end,
            file_last: self.last,
            end: self.end,
            last: self.last,
            tail: Tail::default(),
            marks: self.marks.clone(),
            behind: false,
        };
        reader.publish(|view| ShapeView { incarnation, log: log.clone(), ..view.clone() });
    }
}

pub(crate) fn scan(log: &FileSlot, index: &FileSlot, verify: Verify) -> Result<Scan, StorageFault> {
    let (stored, index_len) = read_index(index)?;
    let proven = stored.last().map_or(0, |mark| mark.end);
    let file = log.open_existing()?;
    let file_len = match &file {
        Some(file) => file.size().named(Stage::Read, FileKind::Log)?,
        None => 0,
    };
    if file.is_none() && proven > 0 {
        return Err(StorageFault { class: FaultClass::Vanished, stage: Stage::Open, file: FileKind::Log });
    }
    if proven > file_len {
        return Err(StorageFault::corrupt(FileKind::Log, file_len));
    }
    let trusted = match verify {
        Verify::Everything => 0,
        Verify::Tail => stored.iter().rposition(|mark| mark.commit).map_or(0, |index| index + 1),
    };
    let mut walk = Walk::after(&stored[..trusted]);
    if let Some(file) = file {
        let torn_at = walk.read(FrameReader::new(Arc::clone(&file), walk.builder.at, file_len))?;
        let durable_lost =
            walk.end < proven || later_frame_proves(file.as_ref(), torn_at, walk.end, file_len)?;
        if durable_lost {
            return Err(StorageFault::corrupt(FileKind::Log, torn_at));
        }
    }
    let right = stored.iter().enumerate().take_while(|(i, mark)| walk.marks.get(*i) == Some(mark)).count();
    let right_marks = &stored[..right];
    let last_commit = right_marks.iter().rfind(|mark| mark.commit);
    Ok(Scan {
        stored: right,
        index_len,
        builder: walk.committed,
        last: walk.last,
        end: walk.end,
        file_len,
        durable: right_marks.last().map_or(0, |mark| mark.end),
        durable_last: last_commit.map_or(Offset::SNAPSHOT_END, Mark::last_offset),
        marks: walk.marks,
    })
}

/// The walk over the frames.
struct Walk {
    marks: AppendList<Mark>,
    builder: MarkBuilder,
    /// `builder` at `end`.
    committed: MarkBuilder,
    last: Offset,
    end: u64,
}

impl Walk {
    fn after(trusted: &[Mark]) -> Walk {
        let mut marks = AppendList::default();
        for mark in trusted {
            marks.push(*mark);
        }
        let builder = trusted.last().map_or_else(MarkBuilder::default, MarkBuilder::after);
        let last = trusted.last().map_or(Offset::SNAPSHOT_END, Mark::last_offset);
        Walk { marks, builder, committed: builder, last, end: builder.at }
    }

    /// Reads to the first thing that is no valid next frame and says where it is.
    fn read(&mut self, mut frames: FrameReader) -> Result<u64, StorageFault> {
        let mut pending: Vec<Mark> = Vec::new();
        let mut before: Option<(Lsn, u64)> = None;
        loop {
            let at = frames.at;
            let Found::Frame(header, _) = frames.next()? else { return Ok(at) };
            if !follows(&header, before, self.last) {
                return Ok(at);
            }
            pending.extend(self.builder.push(&header));
            before = Some((header.tx, header.last_op));
            if header.commit {
                pending.drain(..).for_each(|mark| self.marks.push(mark));
                self.last = Offset::new(header.tx, header.last_op);
                self.end = self.builder.at;
                self.committed = self.builder;
                before = None;
            }
        }
    }
}

/// Offsets only rise, and a transaction is not interrupted by another.
fn follows(header: &FrameHeader, before: Option<(Lsn, u64)>, last: Offset) -> bool {
    let ordered = header.count > 0 && header.first_op <= header.last_op && header.tx > Lsn(0);
    ordered
        && match before {
            Some((tx, op)) => header.tx == tx && header.first_op > op,
            // What follows a transaction without one of its own has the same LSN.
            None => Offset::new(header.tx, header.first_op) > last,
        }
}

/// The valid records at the start of the index file, and its length.
fn read_index(index: &FileSlot) -> Result<(Vec<Mark>, u64), StorageFault> {
    let Some(file) = index.open_existing()? else { return Ok((Vec::new(), 0)) };
    let len = file.size().named(Stage::Read, FileKind::Index)?;
    let mut bytes = vec![0; usize::try_from(len).unwrap_or(0)];
    let read = read_full(file.as_ref(), &mut bytes, 0, FileKind::Index)?;
    index.release();
    let (records, _) = bytes[..read].as_chunks::<RECORD_LEN>();
    let mut marks: Vec<Mark> = Vec::with_capacity(records.len());
    for record in records {
        let start = marks.last().map_or(0, |mark| mark.end);
        match Mark::decode(record) {
            Some(mark) if mark.start == start && mark.end > start => marks.push(mark),
            _ => break,
        }
    }
    Ok((marks, len))
}

/// Whether a frame behind the damage at `torn_at` says that the log was durable beyond `end`, the
/// last commit that was found.
fn later_frame_proves(
    file: &dyn DiskFile,
    torn_at: u64,
    end: u64,
    file_len: u64,
) -> Result<bool, StorageFault> {
    let mut window = vec![0; READ_WINDOW.min(usize::try_from(file_len - torn_at).unwrap_or(READ_WINDOW))];
    let mut at = torn_at;
    while file_len - at >= HEADER_LEN as u64 {
        let read = read_full(file, &mut window, at, FileKind::Log)?;
        let bytes = &window[..read];
        let headers =
            memchr::memmem::find_iter(bytes, &MAGIC).filter_map(|place| FrameHeader::parse(&bytes[place..]));
        if headers.into_iter().any(|header| header.durable > end) {
            return Ok(true);
        }
        if read < window.len() || at + read as u64 >= file_len {
            break;
        }
        // A header may lie across the edge.
        at += (read - (HEADER_LEN - 1)) as u64;
    }
    Ok(false)
}

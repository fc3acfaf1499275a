//! The snapshot of a shape: its initial rows, readable while they are written.
//!
//! The file is messages in wire form, each followed by a comma, then a table, then a footer. A
//! snapshot is complete exactly when its footer is there: no second file can disagree with it.
//!
//! Table, 16 bytes a block, little endian: end in the file u64, crc32c of the block u32, flags u32
//! (1: a chunk ends here). A block is whole messages, 256 KiB or the end of a chunk. A block behind the end of
//! the last chunk is a note: what the service itself has to find again with the snapshot, and no client is sent.
//!
//! Footer, 40 bytes: magic `F5 44`, version u8 (1), zero u8, table crc32c u32, blocks u64, rows u64,
//! length of the messages u64, zero u32, crc32c of the 36 bytes before u32.

use std::sync::Arc;

use bytes::Bytes;

use crate::domain::{LogMode, PgSnapshot, ShapeDefinition, Value};

use super::disk::{Disk, DiskFile, FileSlot, read_full, write_all};
use super::encoder::{Encoder, snapshot_end};
use super::error::{FaultClass, FileKind, Named, ShapeLogError, Stage, StorageFault};
use super::files::{ShapeFiles, Unsynced};
use super::held::{held, piece_bytes_max};
use super::index::AppendList;
use super::json::whole_messages;
use super::reader::read_block;
use super::shared::SharedBlocks;
use super::tags::RowTags;
use super::view::{ShapeReader, ShapeView};

/// A block is written once it has this size.
const BLOCK_BYTES: usize = 256 << 10;
const ENTRY_LEN: usize = 16;
const FOOTER_LEN: usize = 40;
const MAGIC: [u8; 2] = [0xF5, 0x44];
const VERSION: u8 = 1;
const CHUNK_END: u32 = 1;
/// Room for the first rows; most shapes have few.
const FIRST_ROWS_BYTES: usize = 4 << 10;
/// Up to this many snapshots are synced one by one, with four or five calls each.
pub const SETTLE_EACH_MAX: usize = 4;

/// How far a snapshot is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SnapshotState {
    /// Not begun, or found incomplete after a restart.
    Absent,
    Writing,
    /// Durable.
    Complete,
    Failed,
}

/// Whole messages of the snapshot file; starts where the one before ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Block {
    pub end: u64,
    pub crc: u32,
    pub chunk_end: bool,
}

/// The snapshot part of a view.
#[derive(Clone, Debug)]
pub(crate) struct SnapshotView {
    pub file: Arc<FileSlot>,
    pub state: SnapshotState,
    pub blocks: AppendList<Block>,
    /// Number of blocks at the end of each chunk.
    pub chunks: AppendList<usize>,
    /// The note, and where it begins.
    note: Option<(u64, Block)>,
    pub shared: Arc<SharedBlocks>,
}

impl ShapeView {
    /// What was noted with the snapshot, see [`SnapshotWriter::note`]; empty where nothing was, and before it
    /// was read back from the disk.
    ///
    /// # Errors
    /// A [`StorageFault`].
    pub fn snapshot_note(&self) -> Result<Vec<u8>, ShapeLogError> {
        let Some((start, block)) = self.snapshot.note else { return Ok(Vec::new()) };
        let note = read_block(self.snapshot.file.open()?.as_ref(), start, &block, 0)?;
        self.snapshot.file.release();
        Ok(note)
    }

    #[must_use]
    pub fn snapshot_state(&self) -> SnapshotState {
        self.snapshot.state
    }

    /// Whether a reader of snapshot chunk `chunk` has something to begin with: a block of it, its
    /// end, or the news that there will be none.
    #[must_use]
    pub fn snapshot_started(&self, chunk: u64) -> bool {
        match self.snapshot.state {
            SnapshotState::Absent => false,
            SnapshotState::Writing => {
                self.snapshot.first_block(chunk).is_some_and(|at| at < self.snapshot.blocks.len())
            }
            SnapshotState::Complete | SnapshotState::Failed => true,
        }
    }
}

impl SnapshotView {
    pub fn absent(files: &ShapeFiles) -> SnapshotView {
        SnapshotView {
            file: Arc::new(files.slot(FileKind::Snapshot)),
            state: SnapshotState::Absent,
            blocks: AppendList::default(),
            chunks: AppendList::default(),
            note: None,
            shared: Arc::default(),
        }
    }

    /// The snapshot on disk; absent where it is not complete.
    pub fn open(files: &ShapeFiles) -> Result<SnapshotView, StorageFault> {
        let mut view = SnapshotView::absent(files);
        let Some(file) = view.file.open_existing()? else { return Ok(view) };
        if let Some(mut blocks) = read_table(file.as_ref())? {
            let note = blocks.pop_if(|block| !block.chunk_end);
            for block in blocks {
                view.push(block);
            }
            view.note = note.map(|note| (view.size(), note));
            view.state = SnapshotState::Complete;
        }
        // Ten thousand idle shapes must not hold ten thousand descriptors.
        view.file.release();
        Ok(view)
    }

    /// Bytes of its rows, as far as they are there.
    pub fn size(&self) -> u64 {
        self.blocks.last().map_or(0, |block| block.end)
    }

    /// Start and blocks of a chunk that has ended.
    pub fn chunk(&self, chunk: u64) -> Option<(u64, Vec<Block>)> {
        let stop = *self.chunks.get(usize::try_from(chunk).ok()?)?;
        let first = self.first_block(chunk)?;
        let blocks = self.blocks.iter_from(first).take(stop - first).copied().collect();
        Some((self.block_start(first), blocks))
    }

    /// Index of the first block of a chunk; `None` where the chunk before it has not ended.
    fn first_block(&self, chunk: u64) -> Option<usize> {
        match usize::try_from(chunk).ok()?.checked_sub(1) {
            None => Some(0),
            Some(before) => self.chunks.get(before).copied(),
        }
    }

    fn block_start(&self, index: usize) -> u64 {
        index.checked_sub(1).and_then(|before| self.blocks.get(before)).map_or(0, |block| block.end)
    }

    fn push(&mut self, block: Block) {
        self.blocks.push(block);
        if block.chunk_end {
            self.chunks.push(self.blocks.len());
        }
    }
}

/// Writes the snapshot of a shape. Dropped before [`SnapshotWriter::finish`], it tells readers that
/// the snapshot failed, so that none waits for ever.
#[derive(Debug)]
pub struct SnapshotWriter {
    files: ShapeFiles,
    file: Arc<dyn DiskFile>,
    reader: Arc<ShapeReader>,
    encoder: Encoder,
    log: LogMode,
    chunk_bytes_threshold: u64,
    /// The block in the making.
    block: Vec<u8>,
    /// Size of the running chunk by the chunk rule.
    chunk_bytes: u64,
    /// Bytes in the file.
    written: u64,
    rows: u64,
    blocks: Vec<Block>,
    note: Vec<u8>,
    finished: bool,
}

/// A complete and durable snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SnapshotDone {
    pub rows: u64,
    /// Length of the messages.
    pub bytes: u64,
}

impl SnapshotWriter {
    /// Begins the snapshot, replacing one that did not complete.
    ///
    /// # Errors
    /// A [`StorageFault`]; readers then still wait.
    pub fn create(
        files: &ShapeFiles,
        definition: &ShapeDefinition,
        reader: Arc<ShapeReader>,
        chunk_bytes_threshold: u64,
    ) -> Result<SnapshotWriter, ShapeLogError> {
        let path = files.path("snapshot");
        match files.disk.remove_file(&path).named(Stage::Remove, FileKind::Snapshot) {
            Ok(()) | Err(StorageFault { class: FaultClass::Vanished, .. }) => {}
            Err(fault) => return Err(fault.into()),
        }
        let file = files.disk.create(&path).named(Stage::Create, FileKind::Snapshot)?;
        let begun = SnapshotView { state: SnapshotState::Writing, ..SnapshotView::absent(files) };
        reader.publish(|view| ShapeView { snapshot: begun.clone(), ..view.clone() });
        Ok(SnapshotWriter {
            files: files.clone(),
            file,
            reader,
            encoder: Encoder::new(definition),
            log: definition.log,
            chunk_bytes_threshold: chunk_bytes_threshold.max(1),
            block: Vec::with_capacity(FIRST_ROWS_BYTES),
            chunk_bytes: 0,
            written: 0,
            rows: 0,
            blocks: Vec::new(),
            note: Vec::new(),
            finished: false,
        })
    }

    /// What is to be found again with the snapshot once it is complete, and is no part of it for readers.
    pub fn note(&mut self, note: Vec<u8>) {
        self.note = note;
    }

    /// Adds a row, in the order of [`snapshot_columns`](super::snapshot_columns). Panics for a shape
    /// with `log=changes_only`, which has no rows: asking for them is a bug.
    ///
    /// # Errors
    /// An encode error or a [`StorageFault`]; the snapshot is then to be given up.
    pub fn push_row(&mut self, row: &[Value<'_>]) -> Result<(), ShapeLogError> {
        self.push_tagged_row(row, None)
    }

    /// As [`SnapshotWriter::push_row`], with the tags of the row.
    ///
    /// # Errors
    /// As [`SnapshotWriter::push_row`].
    pub fn push_tagged_row(
        &mut self,
        row: &[Value<'_>],
        tags: Option<&RowTags>,
    ) -> Result<(), ShapeLogError> {
        assert_eq!(self.log, LogMode::Full, "a shape of changes only has no snapshot rows");
        let start = self.block.len();
        self.encoder.encode_row(row, &mut self.block)?;
        if let Some(tags) = tags {
            tags.append_to_row(false, &mut self.block);
        }
        self.block.push(b',');
        self.chunk_bytes += (self.block.len() - start) as u64;
        self.rows += 1;
        if self.chunk_bytes >= self.chunk_bytes_threshold {
            self.chunk_bytes = 0;
            self.write_block(true)?;
        } else if self.block.len() >= BLOCK_BYTES {
            self.write_block(false)?;
        }
        Ok(())
    }

    /// Lets readers that follow have the rows so far; for a query that yields rows slowly.
    ///
    /// # Errors
    /// A [`StorageFault`]; the snapshot is then to be given up.
    pub fn show(&mut self) -> Result<(), ShapeLogError> {
        if self.block.is_empty() { Ok(()) } else { Ok(self.write_block(false)?) }
    }

    /// Ends the snapshot: appends `snapshot-end` to the last chunk and makes all of it durable.
    ///
    /// # Errors
    /// A [`StorageFault`]; readers then see a failed snapshot.
    pub fn finish(self, visible: &PgSnapshot) -> Result<SnapshotDone, ShapeLogError> {
        let disk = Arc::clone(&self.files.disk);
        let sealed = self.seal(visible, None)?;
        sealed.sync(disk.as_ref())?;
        Ok(sealed.show())
    }

    /// Writes the end of the snapshot, for [`settle_all`] to make durable together with others, and with
    /// what of the shape is not durable yet.
    ///
    /// # Errors
    /// As [`SnapshotWriter::finish`].
    pub fn seal(
        mut self,
        visible: &PgSnapshot,
        unsynced: Option<Unsynced>,
    ) -> Result<SealedSnapshot, ShapeLogError> {
        self.block.extend_from_slice(&snapshot_end(visible));
        self.block.push(b',');
        // Rows may be served before they are durable, the end of the snapshot not: a client that has
        // it will never ask for the snapshot again.
        let last = self.append_block(true)?;
        if !self.note.is_empty() {
            self.block.append(&mut self.note);
            self.append_block(false)?;
        }
        let table = encode_table(&self.blocks, self.rows, self.written);
        write_all(self.file.as_ref(), &table, self.written, FileKind::Snapshot)?;
        Ok(SealedSnapshot { writer: self, last, unsynced })
    }

    fn write_block(&mut self, chunk_end: bool) -> Result<(), StorageFault> {
        let block = self.append_block(chunk_end)?;
        self.publish(Some(block), SnapshotState::Writing);
        Ok(())
    }

    fn append_block(&mut self, chunk_end: bool) -> Result<Block, StorageFault> {
        write_all(self.file.as_ref(), &self.block, self.written, FileKind::Snapshot)?;
        self.written += self.block.len() as u64;
        let block = Block { end: self.written, crc: crc32c::crc32c(&self.block), chunk_end };
        self.blocks.push(block);
        self.block.clear();
        self.block.shrink_to(4 * BLOCK_BYTES);
        Ok(block)
    }

    fn publish(&self, block: Option<Block>, state: SnapshotState) {
        self.reader.publish(|view| {
            let mut next = view.clone();
            next.snapshot.state = state;
            if let Some(block) = block {
                next.snapshot.push(block);
            }
            next
        });
    }
}

/// A snapshot that is written and not durable. Dropped before it is, it has failed.
#[derive(Debug)]
pub struct SealedSnapshot {
    writer: SnapshotWriter,
    last: Block,
    unsynced: Option<Unsynced>,
}

impl SealedSnapshot {
    /// It is kept with others in one file: the first sync of one is that of all.
    fn is_packed(&self) -> bool {
        self.writer.file.packed_upto().is_some()
    }

    fn sync(&self, disk: &dyn Disk) -> Result<(), StorageFault> {
        self.writer.file.sync_data().named(Stage::Sync, FileKind::Snapshot)?;
        match &self.unsynced {
            Some(unsynced) => unsynced.sync(disk),
            None => disk.sync_dir(&self.writer.files.dir).named(Stage::Sync, FileKind::Directory),
        }
    }

    /// Shows readers the end.
    fn show(mut self) -> SnapshotDone {
        self.writer.publish(Some(self.last), SnapshotState::Complete);
        self.writer.finished = true;
        SnapshotDone { rows: self.writer.rows, bytes: self.last.end }
    }
}

/// Makes snapshots durable, and shows readers their ends. One result each, in order. Up to
/// [`SETTLE_EACH_MAX`] are synced one by one; above it one barrier over the file system is cheaper.
pub fn settle_all(
    disk: &dyn Disk,
    sealed: impl IntoIterator<Item = SealedSnapshot>,
) -> Vec<Result<SnapshotDone, StorageFault>> {
    let sealed: Vec<SealedSnapshot> = sealed.into_iter().collect();
    let alone = sealed.iter().filter(|sealed| !sealed.is_packed()).count();
    let barrier = (alone > SETTLE_EACH_MAX).then(|| disk.barrier().named(Stage::Sync, FileKind::Snapshot));
    sealed
        .into_iter()
        .map(|sealed| {
            let barrier = barrier.filter(|_| !sealed.is_packed());
            barrier.unwrap_or_else(|| sealed.sync(disk)).map(|()| sealed.show())
        })
        .collect()
}

impl Drop for SnapshotWriter {
    fn drop(&mut self) {
        if !self.finished {
            self.publish(None, SnapshotState::Failed);
        }
    }
}

/// Reads a snapshot chunk while it is written. Pieces are whole messages with commas between them
/// and none at the end, as those of a [`Body`](super::Body): the bytes are the same as if the chunk
/// had been complete.
#[derive(Debug)]
pub struct SnapshotFollow {
    reader: Arc<ShapeReader>,
    chunk: u64,
    /// Blocks handed out so far.
    done: usize,
    /// Bytes of the next block that were handed out, with the comma at their end.
    taken: usize,
    ended: bool,
}

impl SnapshotFollow {
    #[must_use]
    pub fn new(reader: Arc<ShapeReader>, chunk: u64) -> SnapshotFollow {
        SnapshotFollow { reader, chunk, done: 0, taken: 0, ended: false }
    }

    /// The next piece, once there is one; `None` after the end of the chunk. Cancel-safe. Reads a block
    /// that was written a moment ago, hence from the page cache, without leaving the thread.
    ///
    /// # Errors
    /// [`ShapeLogError::SnapshotFailed`] where the chunk will never be complete, also where there is
    /// no such chunk; a [`StorageFault`] of reading.
    pub async fn next(&mut self) -> Result<Option<Bytes>, ShapeLogError> {
        self.next_of(piece_bytes_max()).await
    }

    /// The next piece, of whole messages that together are no longer than `max`, or of one that is.
    pub(crate) async fn next_of(&mut self, max: usize) -> Result<Option<Bytes>, ShapeLogError> {
        if self.ended {
            return Ok(None);
        }
        let (chunk, done) = (self.chunk, self.done);
        let next_block = |view: &ShapeView| view.snapshot.first_block(chunk).map(|first| first + done);
        let view = self
            .reader
            .wait_for(|view| {
                let there = next_block(view).is_some_and(|index| index < view.snapshot.blocks.len());
                there || matches!(view.snapshot.state, SnapshotState::Complete | SnapshotState::Failed)
            })
            .await;
        let index = next_block(&view).ok_or(ShapeLogError::SnapshotFailed)?;
        let block = view.snapshot.blocks.get(index).ok_or(ShapeLogError::SnapshotFailed)?;
        // The comma that was kept back from the piece before comes first.
        let comma = usize::from(done > 0);
        let file = view.snapshot.file.open()?;
        let mut piece = read_block(file.as_ref(), view.snapshot.block_start(index), block, comma)?;
        let len = piece.len() - comma;
        let from = self.taken;
        self.taken += whole_messages(&piece[comma + from..], max);
        if from > 0 || self.taken < len {
            let begin = if from > 0 { comma + from - 1 } else { 0 };
            piece = piece[begin..comma + self.taken].to_vec();
        }
        piece.truncate(piece.len().saturating_sub(1));
        if self.taken >= len {
            self.taken = 0;
            self.done += 1;
            self.ended = block.chunk_end;
        }
        Ok(Some(held(piece)))
    }
}

fn encode_table(blocks: &[Block], rows: u64, len: u64) -> Vec<u8> {
    let mut out = Vec::with_capacity(blocks.len() * ENTRY_LEN + FOOTER_LEN);
    for block in blocks {
        out.extend_from_slice(&block.end.to_le_bytes());
        out.extend_from_slice(&block.crc.to_le_bytes());
        out.extend_from_slice(&u32::from(block.chunk_end).to_le_bytes());
    }
    let table_crc = crc32c::crc32c(&out);
    let footer = out.len();
    out.extend_from_slice(&[MAGIC[0], MAGIC[1], VERSION, 0]);
    out.extend_from_slice(&table_crc.to_le_bytes());
    for number in [blocks.len() as u64, rows, len] {
        out.extend_from_slice(&number.to_le_bytes());
    }
    out.extend_from_slice(&[0; 4]);
    let crc = crc32c::crc32c(&out[footer..]);
    out.extend_from_slice(&crc.to_le_bytes());
    out
}

/// The blocks of a complete snapshot; `None` where the file has no valid end.
fn read_table(file: &dyn DiskFile) -> Result<Option<Vec<Block>>, StorageFault> {
    let kind = FileKind::Snapshot;
    let file_len = file.size().named(Stage::Read, kind)?;
    let Some(footer_at) = file_len.checked_sub(FOOTER_LEN as u64) else { return Ok(None) };
    let mut footer = [0; FOOTER_LEN];
    let read = read_full(file, &mut footer, footer_at, kind)?;
    let number = |at: usize| u64::from_le_bytes(footer[at..at + 8].try_into().expect("eight bytes"));
    let u32_at = |at: usize| u32::from_le_bytes(footer[at..at + 4].try_into().expect("four bytes"));
    if read != FOOTER_LEN
        || footer[..2] != MAGIC
        || footer[2] != VERSION
        || crc32c::crc32c(&footer[..36]) != u32_at(36)
    {
        return Ok(None);
    }
    let (count, len) = (number(8), number(24));
    let table_len =
        count.checked_mul(ENTRY_LEN as u64).filter(|table| len.checked_add(*table) == Some(footer_at));
    let Some(table_len) = table_len else { return Err(StorageFault::corrupt(kind, footer_at)) };
    let mut table = vec![0; usize::try_from(table_len).unwrap_or(0)];
    let read = read_full(file, &mut table, len, kind)?;
    if read != table.len() || crc32c::crc32c(&table) != u32_at(4) {
        return Err(StorageFault::corrupt(kind, len));
    }
    let (entries, _) = table.as_chunks::<ENTRY_LEN>();
    let blocks = entries.iter().map(|entry| Block {
        end: u64::from_le_bytes(entry[..8].try_into().expect("eight bytes")),
        crc: u32::from_le_bytes(entry[8..12].try_into().expect("four bytes")),
        chunk_end: u32::from_le_bytes(entry[12..16].try_into().expect("four bytes")) & CHUNK_END != 0,
    });
    Ok(Some(blocks.collect()))
}

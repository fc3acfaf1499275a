//! The records of all packed shapes: appending, syncing, and where each byte is.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use crate::domain::Handle;
use crate::shape_log::disk::{Disk, DiskFile, FileIdentity, read_whole};
use crate::shape_log::files::shard;

use super::record::{self, HEAD_LEN, Kind, SEGMENT_HEAD_LEN, SegmentHead, TAIL_LEN};

/// A segment is followed by another before it becomes larger. Read at a start, one after the other.
pub const SEGMENT_BYTES_MAX: u32 = 16 << 20;
/// A file in more pieces than this is written anew as one.
const PIECES_MAX: usize = 32;

/// A place in the sequence of all segments: number, then bytes from the start of the segment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position(u64);

impl Position {
    pub fn new(segment: u32, at: u32) -> Position {
        Position(u64::from(segment) << 32 | u64::from(at))
    }

    pub fn segment(self) -> u32 {
        (self.0 >> 32) as u32
    }

    pub fn at(self) -> u32 {
        self.0 as u32
    }

    pub fn number(self) -> u64 {
        self.0
    }
}

/// One file of records. Open for as long as somebody may read from it, removed or not.
#[derive(Debug)]
pub struct Segment {
    pub number: u32,
    pub file: Arc<dyn DiskFile>,
    pub head: SegmentHead,
    /// Read, or written, up to here.
    pub end: AtomicU32,
}

/// Content of a file, in a segment.
#[derive(Clone, Debug)]
pub struct Piece {
    pub segment: Arc<Segment>,
    /// Of the content, in the segment.
    pub at: u32,
    pub len: u32,
    pub kind: Kind,
}

/// A shape, for the index and for those who have a file of it open.
#[derive(Debug, Default)]
pub struct Shape(Mutex<State>);

impl Shape {
    pub fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.0)
    }
}

/// Where a shape is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Place {
    #[default]
    Here,
    /// In files of its own.
    Moved,
    /// Removed. Who has a file open goes on reading it.
    Gone,
}

/// What is known of a shape.
#[derive(Debug, Default)]
pub struct State {
    /// In the order of their content.
    pub pieces: Vec<Piece>,
    /// The end of its last record.
    pub upto: Position,
    pub place: Place,
    /// A record of it that was durable is lost.
    pub lost: bool,
    /// Files of which the bytes before a record are missing: bits by kind. They were in a segment that is
    /// gone, and a later record has all of the file; or they are lost.
    gaps: u8,
    /// Files that were made and have no content: bits by kind.
    empty: u8,
    /// Of a log that has been moved.
    pub log: Option<Box<FileIdentity>>,
}

impl State {
    pub fn has(&self, kind: Kind) -> bool {
        self.empty & bit(kind) != 0 || self.pieces.iter().any(|piece| piece.kind == kind)
    }

    pub fn make(&mut self, kind: Kind) {
        self.empty |= bit(kind);
    }

    /// Something of it that was durable cannot be found any more.
    pub fn is_damaged(&self) -> bool {
        self.lost || self.gaps != 0
    }

    /// Length of a file.
    pub fn len(&self, kind: Kind) -> u64 {
        self.pieces.iter().filter(|piece| piece.kind == kind).map(|piece| u64::from(piece.len)).sum()
    }

    /// Takes in a record: the file ends at `at`, but for this. Bytes of records that nobody needs any more.
    pub fn take(&mut self, kind: Kind, at: u32, piece: Option<Piece>) -> u64 {
        let mut freed = 0;
        let mut start = 0;
        if u64::from(at) > self.len(kind) {
            self.gaps |= bit(kind);
        } else if at == 0 {
            self.gaps &= !bit(kind);
        }
        self.pieces.retain_mut(|piece| {
            if piece.kind != kind {
                return true;
            }
            let begin = start;
            start += piece.len;
            let keep = begin < at;
            if keep {
                let kept = piece.len.min(at - begin);
                freed += u64::from(piece.len - kept);
                piece.len = kept;
            } else {
                freed += whole(piece.len);
            }
            keep
        });
        let removed = at == 0 && piece.is_none();
        self.empty = if removed { self.empty & !bit(kind) } else { self.empty | bit(kind) };
        // Most shapes have two pieces: no room is kept for more.
        if let Some(piece) = piece {
            self.pieces.reserve_exact(1);
            self.pieces.push(piece);
        }
        freed
    }

    /// Where the content at this position of a file is, and how much of it there.
    pub fn find(&self, kind: Kind, at: u64) -> Option<(Arc<Segment>, u64, usize)> {
        let mut start = 0;
        for piece in self.pieces.iter().filter(|piece| piece.kind == kind) {
            let end = start + u64::from(piece.len);
            if at < end {
                let inside = at - start;
                return Some((Arc::clone(&piece.segment), u64::from(piece.at) + inside, (end - at) as usize));
            }
            start = end;
        }
        None
    }

    /// Bytes of the records that are needed.
    pub fn live(&self) -> u64 {
        self.pieces.iter().map(|piece| whole(piece.len)).sum()
    }
}

/// Bytes of a record with content of this length.
fn whole(len: u32) -> u64 {
    (HEAD_LEN + TAIL_LEN) as u64 + u64::from(len)
}

fn bit(kind: Kind) -> u8 {
    1 << kind as u8
}

/// All of it. Locks are taken in the order: a shape, then `syncing`, then `tail`; the index alone.
#[derive(Debug)]
pub struct Store {
    pub inner: Arc<dyn Disk>,
    pub shapes_dir: PathBuf,
    pub folder: PathBuf,
    pub data: PathBuf,
    pub segment_bytes_max: u32,
    index: RwLock<HashMap<Handle, Arc<Shape>>>,
    pub tail: Mutex<Tail>,
    syncing: Mutex<()>,
    synced: AtomicU64,
    /// A sync has failed: what is durable is unknown, so nothing is any more.
    failed: AtomicBool,
    /// Bytes of records that somebody needs.
    pub live: AtomicU64,
    /// The directory is not ours any more, or soon will not be. Held while a segment is removed: what comes
    /// after that is another process's.
    pub given_back: Mutex<bool>,
}

/// The end of the sequence.
#[derive(Debug)]
pub struct Tail {
    /// Ascending. The last one is appended to if it is open.
    pub segments: Vec<Arc<Segment>>,
    /// Made by this process, and nothing went wrong with it.
    open: bool,
    /// Numbers below have been used.
    pub next: u32,
    scratch: Vec<u8>,
}

impl Store {
    pub fn new(inner: Arc<dyn Disk>, data: &Path, segment_bytes_max: u32) -> Store {
        let shapes_dir = data.join("shapes");
        Store {
            inner,
            folder: shapes_dir.join("pack"),
            shapes_dir,
            data: data.to_path_buf(),
            segment_bytes_max,
            index: RwLock::default(),
            tail: Mutex::new(Tail::new()),
            syncing: Mutex::default(),
            synced: AtomicU64::new(0),
            failed: AtomicBool::new(false),
            live: AtomicU64::new(0),
            given_back: Mutex::new(false),
        }
    }

    pub fn shape(&self, handle: Handle) -> Option<Arc<Shape>> {
        self.index.read().unwrap_or_else(PoisonError::into_inner).get(&handle).map(Arc::clone)
    }

    /// The shape, made where it is not known; and whether it is new.
    pub fn shape_or_new(&self, handle: Handle) -> (Arc<Shape>, bool) {
        let mut index = self.index.write().unwrap_or_else(PoisonError::into_inner);
        let mut new = false;
        let shape = index.entry(handle).or_insert_with(|| {
            new = true;
            Arc::default()
        });
        (Arc::clone(shape), new)
    }

    /// Nothing finds it by its handle from here on.
    pub fn forget(&self, handle: Handle) {
        self.index.write().unwrap_or_else(PoisonError::into_inner).remove(&handle);
    }

    /// Ascending.
    pub fn handles(&self) -> Vec<Handle> {
        let index = self.index.read().unwrap_or_else(PoisonError::into_inner);
        let mut handles: Vec<Handle> = index.keys().copied().collect();
        handles.sort_unstable();
        handles
    }

    pub fn all(&self) -> Vec<(Handle, Arc<Shape>)> {
        let index = self.index.read().unwrap_or_else(PoisonError::into_inner);
        index.iter().map(|(handle, shape)| (*handle, Arc::clone(shape))).collect()
    }

    pub fn clear(&self) {
        self.index.write().unwrap_or_else(PoisonError::into_inner).clear();
        self.live.store(0, Ordering::Relaxed);
    }

    pub fn shape_dir(&self, handle: Handle) -> PathBuf {
        self.shapes_dir.join(shard(handle)).join(handle.to_string())
    }

    pub fn synced(&self) -> Position {
        Position(self.synced.load(Ordering::Acquire))
    }

    /// Makes durable what was found at the start: a process that was killed leaves what nobody has synced.
    /// Segments before the last were synced when the next one was made.
    pub fn sync_found(&self) -> io::Result<()> {
        let tail = lock(&self.tail);
        if let Some(last) = tail.segments.last() {
            self.sync_segment(last)?;
            self.synced.store(tail.end().0, Ordering::Release);
        }
        Ok(())
    }

    /// Bytes of all segments.
    pub fn total(&self) -> u64 {
        let tail = lock(&self.tail);
        tail.segments.iter().map(|segment| u64::from(segment.end.load(Ordering::Relaxed))).sum()
    }

    /// Appends a record about a shape that is here, and notes it in its state.
    pub fn append(
        &self,
        handle: Handle,
        state: &mut State,
        kind: Kind,
        at: u32,
        content: &[u8],
    ) -> io::Result<()> {
        self.check()?;
        let mut tail = lock(&self.tail);
        let len =
            u32::try_from(HEAD_LEN + content.len() + TAIL_LEN).map_err(|_| io::ErrorKind::FileTooLarge)?;
        let fits = |segment: &Arc<Segment>| {
            segment.end.load(Ordering::Relaxed).saturating_add(len) <= self.segment_bytes_max
        };
        if !(tail.open && tail.segments.last().is_some_and(fits)) {
            self.roll(&mut tail)?;
        }
        let Tail { segments, scratch, open, .. } = &mut *tail;
        let segment = segments.last().ok_or(io::ErrorKind::NotFound)?;
        let start = segment.end.load(Ordering::Relaxed);
        record::encode(kind, handle, at, content, self.durable_in(segment.number), scratch);
        // After a failed write the file is left alone: the next record begins another one.
        write_whole(segment.file.as_ref(), scratch, u64::from(start)).inspect_err(|_| *open = false)?;
        segment.end.store(start + len, Ordering::Relaxed);
        let piece = (!content.is_empty()).then(|| Piece {
            segment: Arc::clone(segment),
            at: start + HEAD_LEN as u32,
            len: content.len() as u32,
            kind,
        });
        state.upto = Position::new(segment.number, start + len);
        drop(tail);
        self.account(state, kind, at, piece);
        Ok(())
    }

    /// Notes a record in the state of its shape.
    pub fn account(&self, state: &mut State, kind: Kind, at: u32, piece: Option<Piece>) {
        if kind == Kind::Gone {
            self.live.fetch_sub(state.live(), Ordering::Relaxed);
            return;
        }
        let more = piece.as_ref().map_or(0, |piece| whole(piece.len));
        let freed = state.take(kind, at, piece);
        self.live.fetch_add(more, Ordering::Relaxed);
        self.live.fetch_sub(freed, Ordering::Relaxed);
    }

    /// Writes at a position of a file that is here.
    pub fn write(
        &self,
        handle: Handle,
        state: &mut State,
        kind: Kind,
        at: u32,
        content: &[u8],
    ) -> io::Result<()> {
        let len = state.len(kind);
        if u64::from(at) > len {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        if content.is_empty() {
            return Ok(());
        }
        let start = at as usize;
        if (start + content.len()) as u64 <= len.saturating_sub(1) {
            // In its middle: what comes after stays.
            let mut all = content_of(state, kind)?;
            all[start..start + content.len()].copy_from_slice(content);
            return self.append(handle, state, kind, 0, &all);
        }
        self.append(handle, state, kind, at, content)?;
        if state.pieces.iter().filter(|piece| piece.kind == kind).count() > PIECES_MAX {
            let all = content_of(state, kind)?;
            self.append(handle, state, kind, 0, &all)?;
        }
        Ok(())
    }

    /// The shape is not here any more, whatever of it is in the segments.
    pub fn gone(&self, handle: Handle, state: &mut State, place: Place) -> io::Result<()> {
        self.append(handle, state, Kind::Gone, 0, &[])?;
        state.place = place;
        self.forget(handle);
        Ok(())
    }

    /// Makes everything up to a position durable, together with all else that was appended before: who
    /// comes while somebody syncs mostly finds that it is done.
    pub fn sync(&self, upto: Position) -> io::Result<()> {
        if self.synced() >= upto && !self.failed.load(Ordering::Acquire) {
            return Ok(());
        }
        let _one_at_a_time = lock(&self.syncing);
        self.check()?;
        if self.synced() >= upto {
            return Ok(());
        }
        let (segments, end) = {
            let tail = lock(&self.tail);
            let from = self.synced().segment();
            let segments = tail.segments.iter().filter(|segment| segment.number >= from);
            (segments.map(Arc::clone).collect::<Vec<_>>(), tail.end())
        };
        for segment in segments {
            self.sync_segment(&segment)?;
        }
        self.synced.fetch_max(end.0, Ordering::AcqRel);
        Ok(())
    }

    /// Everything that has been appended.
    pub fn sync_all(&self) -> io::Result<()> {
        let end = lock(&self.tail).end();
        self.sync(end)
    }

    fn sync_segment(&self, segment: &Segment) -> io::Result<()> {
        segment.file.sync_data().inspect_err(|_| self.failed.store(true, Ordering::Release))
    }

    fn check(&self) -> io::Result<()> {
        if self.failed.load(Ordering::Acquire) {
            return Err(io::Error::from_raw_os_error(rustix::io::Errno::IO.raw_os_error()));
        }
        Ok(())
    }

    fn durable_in(&self, segment: u32) -> u32 {
        let synced = self.synced();
        if synced.segment() == segment { synced.at() } else { 0 }
    }

    /// Begins another segment. The one before is durable first: its head says so.
    fn roll(&self, tail: &mut Tail) -> io::Result<()> {
        tail.open = false;
        let before = tail.segments.last().map(Arc::clone);
        let (number, valid) = match &before {
            Some(segment) => {
                let end = segment.end.load(Ordering::Relaxed);
                if self.synced() < Position::new(segment.number, end) {
                    self.sync_segment(segment)?;
                }
                (segment.number, end)
            }
            None => (0, 0),
        };
        if before.is_none() {
            self.inner.create_dir(&self.folder)?;
        }
        let head = SegmentHead { number: tail.next, before: number, before_valid: valid };
        tail.next += 1;
        let file = self.inner.create(&self.folder.join(segment_name(head.number)))?;
        write_whole(file.as_ref(), &head.encode(), 0)?;
        self.inner.sync_dir(&self.folder)?;
        if before.is_none() {
            self.inner.sync_dir(&self.shapes_dir)?;
            self.inner.sync_dir(&self.data)?;
        }
        let end = AtomicU32::new(SEGMENT_HEAD_LEN as u32);
        tail.segments.push(Arc::new(Segment { number: head.number, file, head, end }));
        tail.open = true;
        Ok(())
    }
}

impl Tail {
    /// Of no segments; the first has number 1.
    pub fn new() -> Tail {
        Tail { segments: Vec::new(), open: false, next: 1, scratch: Vec::new() }
    }

    /// The end of the last segment.
    pub fn end(&self) -> Position {
        let end = |segment: &Arc<Segment>| Position::new(segment.number, segment.end.load(Ordering::Relaxed));
        self.segments.last().map_or(Position::default(), end)
    }
}

pub fn segment_name(number: u32) -> String {
    format!("{number:08}")
}

/// All of a file.
pub fn content_of(state: &State, kind: Kind) -> io::Result<Vec<u8>> {
    let mut out = Vec::new();
    for piece in state.pieces.iter().filter(|piece| piece.kind == kind) {
        let start = out.len();
        out.resize(start + piece.len as usize, 0);
        let read = read_whole(piece.segment.file.as_ref(), &mut out[start..], u64::from(piece.at))?;
        if read < piece.len as usize {
            return Err(io::ErrorKind::InvalidData.into());
        }
    }
    Ok(out)
}

pub fn write_whole(file: &dyn DiskFile, mut bytes: &[u8], mut at: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        match file.write_at(bytes, at) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => {
                bytes = &bytes[count.min(bytes.len())..];
                at += count as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

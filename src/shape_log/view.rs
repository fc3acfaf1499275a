//! Views: what readers read from, and the order in which writers change it.
//!
//! A reader takes one [`ShapeView`] by one atomic load. It is immutable: the file ranges, the frames
//! in memory, the marks and the last offset in it belong together, so everything up to
//! [`ShapeView::last`] can be read from it for as long as it is held, whatever the writer does (P2).
//! A writer hands in the next view and gets back the old one, whose last reference it then drops:
//! publish-then-drop is the only order that [`replace`] allows. The model in `tests/publication.rs`
//! explores it, next to the order that loses rows.

use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwap;
use bytes::Bytes;
use tokio::sync::Notify;

use crate::domain::{Incarnation, Offset};

use super::disk::FileSlot;
use super::error::{FileKind, ShapeLogError};
use super::files::ShapeFiles;
use super::frame::FrameHeader;
use super::index::{AppendList, Mark};
use super::shared::SharedRows;
use super::snapshot::SnapshotView;

/// Newest rows that are kept for all who follow a log, bytes.
pub const RECENT_BYTES_MAX: usize = 16 << 10;

/// One state of a shape as readers see it. Reading from it: reader.rs.
#[derive(Clone, Debug)]
pub struct ShapeView {
    pub(crate) incarnation: Incarnation,
    pub(crate) snapshot: SnapshotView,
    pub(crate) log: LogView,
    /// Rows are to move in that the log does not have yet: its end is no committed state.
    pub(crate) held_back: bool,
}

impl ShapeView {
    /// The latest offset: of the last message in the log, or [`Offset::SNAPSHOT_END`].
    #[must_use]
    pub fn last(&self) -> Offset {
        self.log.last
    }

    /// Whether its end is no state that Postgres ever had, so that no client may be told to be up to date.
    #[must_use]
    pub fn is_held_back(&self) -> bool {
        self.held_back
    }

    /// Whether commits have been taken in that it does not have: they are shown once they are durable.
    #[must_use]
    pub fn is_behind(&self) -> bool {
        self.log.behind
    }

    /// Bytes of the log.
    #[must_use]
    pub fn log_size(&self) -> u64 {
        self.log.end
    }

    /// The writer that published it; 0 before the first.
    #[must_use]
    pub fn incarnation(&self) -> Incarnation {
        self.incarnation
    }
}

/// The log part of a view. Positions are those in the log file, also for frames that are not yet in
/// it. Invariant: `file_end <= end`; the tail's frames follow each other from `file_end` to `end`.
#[derive(Clone, Debug)]
pub(crate) struct LogView {
    pub file: Arc<FileSlot>,
    pub file_end: u64,
    /// Offset of the last message before `file_end`.
    pub file_last: Offset,
    pub end: u64,
    pub last: Offset,
    pub tail: Tail,
    pub marks: AppendList<Mark>,
    /// The writer has commits that it does not show before they are durable.
    pub behind: bool,
}

impl LogView {
    pub fn empty(file: Arc<FileSlot>) -> LogView {
        LogView {
            file,
            file_end: 0,
            file_last: Offset::SNAPSHOT_END,
            end: 0,
            last: Offset::SNAPSHOT_END,
            tail: Tail::default(),
            marks: AppendList::default(),
            behind: false,
        }
    }
}

/// The frames that are in memory only, newest first: appending shares the older ones, and a live
/// reader, who wants the newest, walks no further than it has to.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tail(Option<Arc<TailNode>>);

#[derive(Debug)]
pub(crate) struct TailNode {
    pub frame: TailFrame,
    older: Tail,
}

/// A committed or sealed frame and its position.
#[derive(Clone, Debug)]
pub(crate) struct TailFrame {
    pub at: u64,
    pub header: FrameHeader,
    pub bytes: Bytes,
}

impl Tail {
    pub fn push(&mut self, frame: TailFrame) {
        let older = Tail(self.0.take());
        self.0 = Some(Arc::new(TailNode { frame, older }));
    }

    /// Newest first.
    pub fn iter(&self) -> impl Iterator<Item = &TailFrame> {
        std::iter::successors(self.0.as_deref(), |node| node.older.0.as_deref()).map(|node| &node.frame)
    }
}

impl Drop for TailNode {
    /// One after another: a long tail dropped by recursion would use up the stack.
    fn drop(&mut self) {
        let mut older = self.older.0.take();
        while let Some(mut node) = older.and_then(Arc::into_inner) {
            older = node.older.0.take();
        }
    }
}

/// A place that holds the current view. A trait so that the model checker can run [`replace`] on a
/// place of its own.
pub(crate) trait Place<V> {
    fn load(&self) -> Arc<V>;
    /// Puts `next` where `current` is; false where something else is there by now.
    fn swap(&self, current: &Arc<V>, next: Arc<V>) -> bool;
}

impl<V> Place<V> for ArcSwap<V> {
    fn load(&self) -> Arc<V> {
        self.load_full()
    }

    fn swap(&self, current: &Arc<V>, next: Arc<V>) -> bool {
        Arc::ptr_eq(&self.compare_and_swap(current, next), current)
    }
}

/// Publishes what `change` makes of the current view, and gives back the old view for the caller to
/// drop. Several writers (of log and snapshot) may do so at once; each changes only its own part.
pub(crate) fn replace<V>(place: &impl Place<V>, change: impl Fn(&V) -> V) -> Arc<V> {
    loop {
        let current = place.load();
        if place.swap(&current, Arc::new(change(&current))) {
            return current;
        }
    }
}

/// Where the views of one shape are published. Outlives the writers of the shape (P5).
#[derive(Debug)]
pub struct ShapeReader {
    view: ArcSwap<ShapeView>,
    changed: Notify,
    /// Made for the first who follows the log.
    shared: OnceLock<Box<SharedRows>>,
}

impl ShapeReader {
    /// A shape without rows yet, for a new shape.
    #[must_use]
    pub fn new(files: &ShapeFiles) -> Arc<ShapeReader> {
        ShapeReader::with_snapshot(files, SnapshotView::absent(files))
    }

    /// A shape found on disk: with its snapshot where that is complete, without its log: that is
    /// published by [`LogWriter::recover`](super::LogWriter::recover) or by
    /// [`open_read_only`](super::open_read_only).
    ///
    /// # Errors
    /// A [`StorageFault`](super::StorageFault) other than that there is no snapshot file.
    pub fn open(files: &ShapeFiles) -> Result<Arc<ShapeReader>, ShapeLogError> {
        Ok(ShapeReader::with_snapshot(files, SnapshotView::open(files)?))
    }

    fn with_snapshot(files: &ShapeFiles, snapshot: SnapshotView) -> Arc<ShapeReader> {
        let log = LogView::empty(Arc::new(files.slot(FileKind::Log)));
        let view = ShapeView { incarnation: Incarnation(0), snapshot, log, held_back: false };
        let view = ArcSwap::from_pointee(view);
        Arc::new(ShapeReader { view, changed: Notify::new(), shared: OnceLock::new() })
    }

    /// The current view.
    #[must_use]
    pub fn view(&self) -> Arc<ShapeView> {
        self.view.load_full()
    }

    /// What those who follow the log share.
    #[must_use]
    pub fn shared(&self) -> &SharedRows {
        self.shared.get_or_init(Box::default)
    }

    /// The rows after `from` to the end of that view, where somebody has just read them. All who follow
    /// the log want them at the same time, and some only once they are in the file and no longer in memory.
    #[must_use]
    pub fn recent(&self, from: Offset, view: &ShapeView) -> Option<Bytes> {
        if view.is_held_back() { None } else { self.shared.get()?.recent(from, view.last()) }
    }

    /// Keeps the rows after `from` up to `end` for those who want them, too, until there are newer ones or
    /// the shape is idle. Many of them are not worth the memory.
    pub fn remember(&self, from: Offset, end: Offset, rows: &Bytes) {
        if from < end && rows.len() <= RECENT_BYTES_MAX {
            // Copied: they may be a small part of something large.
            self.shared().remember(from, end, Bytes::copy_from_slice(rows));
        }
    }

    /// The first view, from now on, of which `wanted` holds. Registers, then checks, so that no
    /// publication is missed (P6). Cancel-safe.
    pub async fn wait_for(&self, wanted: impl Fn(&ShapeView) -> bool) -> Arc<ShapeView> {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let view = self.view();
            if wanted(&view) {
                return view;
            }
            changed.await;
        }
    }

    /// Says whether the end of the log is a state that clients may take for one of Postgres.
    pub fn hold_back(&self, held_back: bool) {
        if self.view.load().held_back != held_back {
            drop(self.publish(|view| ShapeView { held_back, ..view.clone() }));
        }
    }

    /// Notes that what the writer has taken in is not all in the view. There is nothing new to see.
    pub(crate) fn fall_behind(&self) {
        drop(replace(&self.view, |view| {
            let mut next = view.clone();
            next.log.behind = true;
            next
        }));
    }

    /// Has everyone who waits look again, for news that is not in the view: that the shape is gone.
    pub fn wake(&self) {
        self.changed.notify_waiters();
    }

    /// Closes the descriptors of an idle shape; the next read opens them again.
    pub fn release_files(&self) {
        let view = self.view.load();
        view.log.file.release();
        view.snapshot.file.release();
        if let Some(shared) = self.shared.get() {
            shared.forget();
        }
    }

    /// Publishes, wakes, and gives back the old view.
    pub(crate) fn publish(&self, change: impl Fn(&ShapeView) -> ShapeView) -> Arc<ShapeView> {
        let old = replace(&self.view, change);
        self.changed.notify_waiters();
        old
    }
}

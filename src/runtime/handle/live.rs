//! One shape, as those see it who read it.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::domain::{Handle as ShapeHandle, Lsn, ShapeDefinition, Sid};
use crate::runtime::standby::{FollowedFiles, Interest};
use crate::runtime::subquery::RowTagger;
use crate::shape_log::{Followed, ShapeLogError, ShapeReader, ShapeView};

/// A shape that can be read.
#[derive(Debug)]
pub struct LiveShape {
    pub sid: Sid,
    pub handle: ShapeHandle,
    pub definition: Arc<ShapeDefinition>,
    /// Rows, and a signal when there are more.
    pub reader: Arc<ShapeReader>,
    /// Gives rows their tags, where the shape has inner queries.
    pub tagger: Option<Arc<RowTagger>>,
    phase: PhaseCell,
    /// Every commit up to this LSN has been taken in by the writers of one thread, if they exist.
    published: Arc<AtomicU64>,
    /// Something may be owed that was handed to no writer: the mark says nothing about this shape.
    lagging: AtomicBool,
    /// Where another process writes the shape.
    files: Option<Box<FollowedFiles>>,
    /// When somebody last read from it: a number that grows with each read of any shape.
    pub(in crate::runtime) last_used: AtomicU64,
    /// Where it is told that the files of this one cannot be right.
    pub(in crate::runtime) suspects: Option<Arc<Suspects>>,
    /// The highest mark that was found to hold for a view of this shape: it holds for later ones, too.
    told: AtomicU64,
}

/// Shapes of which somebody has read bytes that are not what was written. Nobody believes that at once: the
/// driver has the files looked at.
#[derive(Debug, Default)]
pub struct Suspects(Mutex<BTreeSet<Sid>>);

impl Suspects {
    /// Those that were named since the last time.
    pub(in crate::runtime) fn take(&self) -> BTreeSet<Sid> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// How far a shape has come, for those who wait for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The snapshot is not open yet.
    Opening,
    /// Rows can be read, perhaps not all of them yet.
    Readable,
    /// There will be no rows.
    Failed(SnapshotProblem),
    /// The shape is gone: must-refetch.
    Ended,
}

/// Why there are no initial rows, as the client is told: contract 4.4.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SnapshotProblem {
    /// 409: table, column or function vanished.
    MustRefetch,
    /// 503 with `electric-internal-known-error`.
    Known(String),
    /// 500 with Postgres' own words.
    Unexpected(String),
}

impl LiveShape {
    /// A shape that no writer has been started for. `published` is the mark of the pool that its writer
    /// will belong to. Made by the executor, and by the simulator, which drives the pools in its stead.
    #[must_use]
    pub fn new(
        sid: Sid,
        handle: ShapeHandle,
        definition: Arc<ShapeDefinition>,
        reader: Arc<ShapeReader>,
        phase: Phase,
        published: Arc<AtomicU64>,
    ) -> LiveShape {
        LiveShape {
            sid,
            handle,
            definition,
            reader,
            tagger: None,
            phase: PhaseCell { phase: Mutex::new(phase), changed: Notify::new() },
            published,
            lagging: AtomicBool::new(true),
            files: None,
            last_used: AtomicU64::new(0),
            suspects: None,
            told: AtomicU64::new(0),
        }
    }

    /// A shape that another process writes. Nothing is known of it but what its files say.
    #[must_use]
    pub(in crate::runtime) fn followed(
        sid: Sid,
        handle: ShapeHandle,
        definition: Arc<ShapeDefinition>,
        reader: Arc<ShapeReader>,
        files: FollowedFiles,
    ) -> LiveShape {
        let shape = LiveShape::new(sid, handle, definition, reader, Phase::Readable, Arc::default());
        LiveShape { files: Some(Box::new(files)), ..shape }
    }

    /// A read of its rows has failed. Damage is looked into, unless the files are another process's.
    pub fn unreadable(&self, error: &ShapeLogError) {
        if let (ShapeLogError::Storage(fault), Some(suspects)) = (error, &self.suspects)
            && crate::runtime::faults::is_damage(fault)
        {
            suspects.0.lock().unwrap_or_else(PoisonError::into_inner).insert(self.sid);
        }
    }

    /// Another process writes it, or did when the request came.
    #[must_use]
    pub fn is_followed(&self) -> bool {
        self.files.is_some()
    }

    /// Makes the view as new as the files are, where another process writes them. A shape that is gone
    /// has ended afterwards.
    ///
    /// # Errors
    /// The files cannot be read now: the view may be out of date.
    pub async fn refresh(self: &Arc<Self>) -> Result<(), ShapeLogError> {
        if self.files.is_none() {
            return Ok(());
        }
        let shape = Arc::clone(self);
        let looked = tokio::task::spawn_blocking(move || shape.look_at_files()).await;
        // Fails with the process only.
        looked.unwrap_or(Ok(()))
    }

    /// Until dropped, a shape that another process writes is looked at again and again.
    #[must_use]
    pub fn interest(&self) -> Interest<'_> {
        self.files.as_ref().map_or_else(Interest::none, |files| files.interest())
    }

    pub(in crate::runtime) fn files(&self) -> Option<&FollowedFiles> {
        self.files.as_deref()
    }

    pub(in crate::runtime) fn look_at_files(&self) -> Result<(), ShapeLogError> {
        let Some(files) = &self.files else { return Ok(()) };
        if files.look()? == Followed::Gone {
            self.set_phase(Phase::Ended);
        }
        Ok(())
    }

    /// Every commit up to here that concerns this shape is in every view taken *after* this call (P3):
    /// take the mark first, then the view. Zero where nothing can be said but what the view says.
    #[must_use]
    pub fn published(&self) -> Lsn {
        let mark = Lsn(self.published.load(Ordering::Acquire));
        // After the mark: a shape that falls behind or ends is flagged before the mark passes what it
        // lacks.
        let over = *self.phase.lock() == Phase::Ended;
        if over || self.lagging.load(Ordering::Acquire) { Lsn(0) } else { mark }
    }

    /// A view and how much of the stream it is about. The mark is taken first: then everything up to it is
    /// in the view. The other way round a commit between the two would be promised and missing (P3). It
    /// never goes back while the log does not.
    #[must_use]
    pub fn look(&self) -> (Lsn, Arc<ShapeView>) {
        let mark = self.published();
        let view = self.reader.view();
        // What is to move in was caused by transactions that the mark may have passed, and so is what waits
        // for the disk.
        let new = if view.is_held_back() || view.is_behind() { Lsn(0) } else { mark };
        let told = self.told.fetch_max(new.0, Ordering::AcqRel);
        (new.max(Lsn(told)), view)
    }

    /// The log may have lost what was in memory only.
    pub(in crate::runtime) fn forget_told(&self) {
        self.told.store(0, Ordering::Release);
    }

    /// Nothing is owed: the mark of the thread holds for this shape.
    pub fn caught_up(&self) {
        self.set_lagging(false);
    }

    #[must_use]
    pub fn is_lagging(&self) -> bool {
        self.lagging.load(Ordering::Acquire)
    }

    /// Invariant: true while something is owed that no living writer has been handed. Set by the writer
    /// thread when an incarnation ends, before its mark moves on; cleared once nothing is owed or the
    /// next incarnation has replayed all of it. After a restart or a lost connection that may be less
    /// than the mark says: the stream brings again, one by one, what had been received before.
    pub(in crate::runtime) fn set_lagging(&self, lagging: bool) {
        self.lagging.store(lagging, Ordering::Release);
    }

    #[must_use]
    pub fn phase(&self) -> Phase {
        self.phase.lock().clone()
    }

    /// There will be no more rows. Who comes now gets another shape: the reason may be gone by then.
    #[must_use]
    pub fn is_over(&self) -> bool {
        matches!(*self.phase.lock(), Phase::Failed(_) | Phase::Ended)
    }

    /// Waits until rows can be read or never will; the phase then.
    pub async fn started(&self) -> Phase {
        self.phase.wait_for(|phase| *phase != Phase::Opening).await
    }

    /// Waits until there will be no more rows.
    pub async fn over(&self) {
        self.phase.wait_for(|phase| matches!(phase, Phase::Failed(_) | Phase::Ended)).await;
    }

    /// Later phases win: a shape that failed or ended stays so.
    pub fn set_phase(&self, next: Phase) {
        let mut current = self.phase.lock();
        if !matches!(*current, Phase::Failed(_) | Phase::Ended) {
            *current = next;
            drop(current);
            self.phase.changed.notify_waiters();
        }
    }
}

/// A phase that can be waited for. A channel of tokio would be four times as large, and there is one for
/// each shape.
#[derive(Debug)]
struct PhaseCell {
    phase: Mutex<Phase>,
    changed: Notify,
}

impl PhaseCell {
    fn lock(&self) -> MutexGuard<'_, Phase> {
        self.phase.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The first phase, from now on, of which `wanted` holds. Registers, then checks, so that no change is
    /// missed (P6). Cancel-safe.
    async fn wait_for(&self, wanted: impl Fn(&Phase) -> bool) -> Phase {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let phase = self.lock().clone();
            if wanted(&phase) {
                return phase;
            }
            changed.await;
        }
    }
}

//! Serving shapes from a directory that another process owns, while waiting to take it over.
//!
//! The journal says which shapes there are (catalog.rs), their files what is in them
//! ([`Follower`]). Neither is written, created, or touched. What a request is told is as true as a
//! look at the files at that moment: before it is answered, the log is looked at again, and so is whether
//! the directory of the shape is still there. Where that says nothing clear, the answer is "not now".
//!
//! * A handle that the catalog does not know has ended if it has no directory; if it has one, the journal
//!   is read again, and if it still says nothing, nobody can tell yet.
//! * Long-polls are woken by `watch`, which looks at the logs that somebody waits for.
//! * Once the directory is ours the catalog is given up. Requests that are under way keep the shape that
//!   they have: its files go on, written by this process now.

mod catalog;
mod watch;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::task::spawn_blocking;

use crate::domain::{DefinitionHash, Handle};
use crate::runtime::handle::{LiveShape, Phase};
use crate::shape_log::{Disk, Followed, Follower, ShapeLogError, followed_disk};

use catalog::Catalog;
pub use catalog::CatalogError;

/// Between two readings of the journal, at least; and at least [`FOLD_SHARE`] times as long as the last
/// one took.
const FOLD_PAUSE: Duration = Duration::from_millis(250);
const FOLD_SHARE: u32 = 4;

/// Between two looks whether somebody has asked, so that the journal is read again in advance.
const USE_CHECK: Duration = Duration::from_secs(2);

/// What is known of a handle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It can be read, or has just ended; or this process owns the directory and knows by itself.
    Known,
    /// There is no such shape any more.
    Gone,
    /// There are files of it, and the journal does not say what they are yet.
    Unclear,
}

/// A directory that is owned by another process.
#[derive(Debug)]
pub struct Standby {
    data_dir: PathBuf,
    disk: Arc<dyn Disk>,
    catalog: Mutex<Arc<Catalog>>,
    /// Held by the one who reads the journal.
    folding: tokio::sync::Mutex<Folds>,
    /// Somebody asked since the journal was read.
    used: AtomicBool,
    closed: AtomicBool,
    /// Shapes that were opened, for those who watch their logs.
    opened: Mutex<Vec<std::sync::Weak<LiveShape>>>,
}

#[derive(Debug, Default)]
struct Folds {
    begun: Option<Instant>,
    next: Option<Instant>,
    /// The last error, told once.
    told: Option<String>,
}

/// The files of a shape that another process writes.
#[derive(Debug)]
pub struct FollowedFiles {
    follower: Mutex<Follower>,
    /// Requests that wait for more.
    waiting: AtomicUsize,
}

/// Somebody waits for the shape; until dropped its log is looked at again and again.
#[derive(Debug)]
pub struct Interest<'a>(Option<&'a FollowedFiles>);

impl Drop for Interest<'_> {
    fn drop(&mut self) {
        if let Some(files) = self.0 {
            files.waiting.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

impl Standby {
    /// Begins to watch, on the present tokio runtime. Costs next to nothing while nobody asks for a shape.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub fn start(data_dir: PathBuf) -> std::io::Result<Arc<Standby>> {
        let standby = Arc::new(Standby {
            disk: followed_disk(&data_dir),
            data_dir,
            catalog: Mutex::default(),
            folding: tokio::sync::Mutex::default(),
            used: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            opened: Mutex::default(),
        });
        watch::spawn(Arc::clone(&standby))?;
        tokio::spawn(Arc::clone(&standby).keep_up());
        Ok(standby)
    }

    /// Reads the journal once, and again for as long as somebody asks.
    async fn keep_up(self: Arc<Self>) {
        self.used.store(true, Ordering::Release);
        while !self.is_closed() {
            if self.used.swap(false, Ordering::AcqRel) {
                self.fold(Instant::now()).await;
            }
            tokio::time::sleep(USE_CHECK).await;
        }
    }

    /// The directory is ours: what the journal said before says nothing any more.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Release);
    }

    fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// The shape of this handle, opened; or why there is none.
    pub(super) async fn open_handle(self: &Arc<Self>, handle: Handle) -> (Standing, Option<Arc<LiveShape>>) {
        let asked = Instant::now();
        self.used.store(true, Ordering::Release);
        for again in [false, true] {
            if again && !self.fold(asked).await {
                return (Standing::Unclear, None);
            }
            if let Some(entry) = self.catalog().get(handle) {
                return match self.open(handle, entry).await {
                    Some(shape) => (Standing::Known, Some(shape)),
                    None => (self.standing(handle), None),
                };
            }
            // Its directory is made before, and taken away after, a client can know of it.
            if self.standing(handle) == Standing::Gone {
                return (Standing::Gone, None);
            }
        }
        (Standing::Unclear, None)
    }

    /// A handle that cannot be opened.
    fn standing(&self, handle: Handle) -> Standing {
        match Follower::exists(&self.disk, &self.data_dir, handle) {
            Ok(false) => Standing::Gone,
            Ok(true) | Err(_) => Standing::Unclear,
        }
    }

    /// The shapes of this definition that can be opened: one, as a rule.
    pub(super) async fn open_definition(self: &Arc<Self>, definition: DefinitionHash) -> Vec<Arc<LiveShape>> {
        let asked = Instant::now();
        self.used.store(true, Ordering::Release);
        let mut opened = Vec::new();
        for again in [false, true] {
            if again && !self.fold(asked).await {
                break;
            }
            let catalog = self.catalog();
            for handle in catalog.of_definition(definition) {
                let Some(entry) = catalog.get(handle) else { continue };
                opened.extend(self.open(handle, entry).await);
            }
            if !opened.is_empty() {
                break;
            }
        }
        opened
    }

    async fn open(self: &Arc<Self>, handle: Handle, entry: catalog::Entry) -> Option<Arc<LiveShape>> {
        let standby = Arc::clone(self);
        spawn_blocking(move || standby.open_files(handle, entry)).await.ok().flatten()
    }

    fn open_files(&self, handle: Handle, entry: catalog::Entry) -> Option<Arc<LiveShape>> {
        match Follower::open(&self.disk, &self.data_dir, handle) {
            Ok(Some((definition, follower))) => {
                let reader = Arc::clone(follower.reader());
                let files = FollowedFiles { follower: Mutex::new(follower), waiting: AtomicUsize::new(0) };
                let shape = LiveShape::followed(entry.sid, handle, Arc::new(definition), reader, files);
                let shape = Arc::new(shape);
                self.lock_opened().push(Arc::downgrade(&shape));
                Some(shape)
            }
            Ok(None) => None,
            Err(error) => {
                tracing::warn!(%handle, %error, "a shape of the directory's owner cannot be read");
                None
            }
        }
    }

    /// Reads the journal, unless somebody has begun to since `asked`. Whether the catalog is of a
    /// reading that began after that.
    async fn fold(self: &Arc<Self>, asked: Instant) -> bool {
        if self.is_closed() {
            return false;
        }
        let mut folds = self.folding.lock().await;
        if folds.begun.is_some_and(|begun| begun >= asked) {
            return true;
        }
        if let Some(next) = folds.next {
            tokio::time::sleep_until(next.into()).await;
        }
        if self.is_closed() {
            return false;
        }
        let begun = Instant::now();
        let standby = Arc::clone(self);
        let before = self.catalog().last();
        let result = spawn_blocking(move || Catalog::read(&standby.data_dir, before)).await;
        folds.next = Some(Instant::now() + FOLD_PAUSE.max(begun.elapsed() * FOLD_SHARE));
        let error = match result {
            Ok(Ok(catalog)) => {
                folds.begun = Some(begun);
                folds.told = None;
                self.replace(catalog);
                return true;
            }
            Ok(Err(error)) => error.to_string(),
            Err(panicked) => panicked.to_string(),
        };
        if folds.told.as_ref() != Some(&error) {
            tracing::warn!(%error, "what shapes the directory's owner has is not known; trying again");
            folds.told = Some(error);
        }
        false
    }

    /// Shapes that the journal has no more have ended, whatever their files look like.
    fn replace(&self, catalog: Catalog) {
        let catalog = Arc::new(catalog);
        *self.catalog.lock().unwrap_or_else(PoisonError::into_inner) = Arc::clone(&catalog);
        for shape in self.opened() {
            if catalog.get(shape.handle).is_none() {
                shape.set_phase(Phase::Ended);
            }
        }
    }

    fn catalog(&self) -> Arc<Catalog> {
        Arc::clone(&self.catalog.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn lock_opened(&self) -> std::sync::MutexGuard<'_, Vec<std::sync::Weak<LiveShape>>> {
        self.opened.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The shapes that somebody still holds.
    fn opened(&self) -> Vec<Arc<LiveShape>> {
        let mut opened = self.lock_opened();
        opened.retain(|shape| shape.strong_count() > 0);
        opened.iter().filter_map(std::sync::Weak::upgrade).collect()
    }
}

impl FollowedFiles {
    pub(super) fn interest(&self) -> Interest<'_> {
        self.waiting.fetch_add(1, Ordering::AcqRel);
        Interest(Some(self))
    }

    fn is_waited_for(&self) -> bool {
        self.waiting.load(Ordering::Acquire) > 0
    }

    /// One look at the files.
    pub(super) fn look(&self) -> Result<Followed, ShapeLogError> {
        self.follower.lock().unwrap_or_else(PoisonError::into_inner).follow()
    }
}

impl Interest<'_> {
    /// Of a shape whose writer wakes who waits.
    pub(super) fn none() -> Self {
        Interest(None)
    }
}

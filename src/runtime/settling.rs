//! Making new shapes durable, those together that end their snapshot at the same time.
//!
//! A thread of its own: while it waits for the disk, the next ones gather. A shape alone is synced at
//! once, with the calls that it needs; many cost one barrier.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use crate::shape_log::{Disk, OpenFiles, SealedSnapshot, SnapshotDone, StorageFault, settle_all};

/// Shapes between the first of their files and their sync; each holds two files open. Fewer where the
/// process may have few descriptors: a quarter of what may be kept open for shapes.
const UNSETTLED_MAX: usize = 256;

/// Where snapshots that are written are handed in.
#[derive(Clone, Debug)]
pub struct Settling {
    queue: Sender<Waiting>,
    places: Arc<Semaphore>,
}

#[derive(Debug)]
struct Waiting {
    sealed: SealedSnapshot,
    done: oneshot::Sender<Result<SnapshotDone, StorageFault>>,
}

impl Settling {
    /// Starts the thread; it ends with the last handle.
    ///
    /// # Errors
    /// The operating system gives no thread.
    pub fn spawn(disk: Arc<dyn Disk>) -> std::io::Result<Settling> {
        let (queue, waiting) = channel();
        let files = disk.open_files().map_or(usize::MAX, OpenFiles::max);
        let places = Arc::new(Semaphore::new((files / 4).clamp(1, UNSETTLED_MAX)));
        thread::Builder::new()
            .name("settling".to_owned())
            .spawn(move || run(disk.as_ref(), &waiting))
            .map(|_ends_by_itself| Settling { queue, places })
    }

    /// Waits for a place: to be had before the first file is made, and kept until the snapshot is settled.
    pub async fn place(&self) -> OwnedSemaphorePermit {
        let place = Arc::clone(&self.places).acquire_owned().await;
        place.expect("the semaphore is never closed")
    }

    /// Makes a snapshot and its shape durable; readers then see its end. `None` where the thread has
    /// ended: the snapshot has failed then.
    pub async fn settle(&self, sealed: SealedSnapshot) -> Option<Result<SnapshotDone, StorageFault>> {
        let (done, settled) = oneshot::channel();
        self.queue.send(Waiting { sealed, done }).ok()?;
        settled.await.ok()
    }
}

fn run(disk: &dyn Disk, waiting: &Receiver<Waiting>) {
    while let Ok(first) = waiting.recv() {
        // As many as there are places, at most.
        let more = waiting.try_iter().take(UNSETTLED_MAX);
        let (sealed, done): (Vec<_>, Vec<_>) =
            std::iter::once(first).chain(more).map(|waiting| (waiting.sealed, waiting.done)).unzip();
        for (result, done) in settle_all(disk, sealed).into_iter().zip(done) {
            // Who was aborted meanwhile does not wait any more.
            let _gone = done.send(result);
        }
    }
}

//! What the HTTP server sees of the running service.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use tokio::sync::{mpsc, oneshot, watch};

use crate::domain::{
    Handle as ShapeHandle, Lsn, Oid, PgSnapshot, Relation, RelationName, ShapeDefinition, Sid,
};
use crate::runtime::inspector::Inspector;
use crate::runtime::subquery::RowTagger;
use crate::runtime::subset::Subsets;
use crate::shape_log::{ShapeReader, ShapeView};

/// Requests that wait for the driver, at most.
pub const REQUESTS_MAX: usize = 1_024;

/// A cheap, shared entry to the service.
#[derive(Clone, Debug)]
pub struct Service {
    shared: Arc<Shared>,
}

/// Readiness, as contract 1.20 and 6.6 tell it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Status {
    /// Shapes are not loaded yet; the text says what is waited for, and the last error of it.
    Starting {
        reason: String,
    },
    /// Existing shapes can be read; for new ones something is missing yet.
    Waiting {
        reason: String,
    },
    Active,
    /// Shutting down: answer what waits, take nothing new.
    Draining,
}

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
    phase: watch::Sender<Phase>,
    /// Every commit up to this LSN has been taken in by the writers of one thread, if they exist.
    published: Arc<AtomicU64>,
    /// Something may be owed that was handed to no writer: the mark says nothing about this shape.
    lagging: AtomicBool,
    /// The highest mark that was found to hold for a view of this shape: it holds for later ones, too.
    told: AtomicU64,
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

/// Why no shape could be given.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CreateError {
    #[error("the service is shutting down or does not own its data directory")]
    NotActive,
}

/// Why a table could not be looked at.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InspectError {
    #[error("Cannot connect to the database to verify the shape. Please try again later.")]
    Unreachable,
}

/// What the server asks of the driver.
#[derive(Debug)]
pub enum Request {
    FindOrCreate {
        definition: Arc<ShapeDefinition>,
        reply: oneshot::Sender<Result<Arc<LiveShape>, CreateError>>,
    },
    Delete {
        sid: Sid,
        reply: oneshot::Sender<bool>,
    },
    /// Whether a snapshot lacks a commit to one of the tables at or before `upto`.
    Lacks {
        tables: Vec<Oid>,
        snapshot: PgSnapshot,
        upto: Lsn,
        reply: oneshot::Sender<bool>,
    },
    /// Make the writer of a shape panic in its next transactions: for tests of the supervision.
    #[cfg(feature = "test-hooks")]
    Sabotage {
        sid: Sid,
        /// As often as it tries, counted over its successors.
        times: u32,
    },
}

struct Shared {
    status: watch::Sender<Status>,
    shapes: RwLock<Shapes>,
    requests: mpsc::Sender<Request>,
    inspector: Inspector,
    subsets: Subsets,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("status", &*self.status.borrow()).finish_non_exhaustive()
    }
}

#[derive(Default)]
struct Shapes {
    by_handle: HashMap<ShapeHandle, Arc<LiveShape>>,
    by_definition: HashMap<u64, Vec<Arc<LiveShape>>>,
}

impl Service {
    #[must_use]
    pub fn new(requests: mpsc::Sender<Request>, inspector: Inspector, subsets: Subsets) -> Service {
        let (status, _) = watch::channel(Status::Starting { reason: "the journal is being read".to_owned() });
        let shapes = RwLock::default();
        Service { shared: Arc::new(Shared { status, shapes, requests, inspector, subsets }) }
    }

    #[must_use]
    pub fn status(&self) -> Status {
        self.shared.status.borrow().clone()
    }

    /// Follows the readiness.
    #[must_use]
    pub fn watch_status(&self) -> watch::Receiver<Status> {
        self.shared.status.subscribe()
    }

    pub fn set_status(&self, status: Status) {
        self.shared.status.send_if_modified(|current| {
            let changed = *current != status && *current != Status::Draining;
            if changed {
                *current = status;
            }
            changed
        });
    }

    /// The shape of this handle, unless it is gone.
    #[must_use]
    pub fn shape(&self, handle: ShapeHandle) -> Option<Arc<LiveShape>> {
        let shapes = self.shared.shapes.read().unwrap_or_else(PoisonError::into_inner);
        shapes.by_handle.get(&handle).cloned()
    }

    /// The shape of this definition, if there is one that has not failed or ended.
    #[must_use]
    pub fn find(&self, definition: &ShapeDefinition) -> Option<Arc<LiveShape>> {
        let shapes = self.shared.shapes.read().unwrap_or_else(PoisonError::into_inner);
        let candidates = shapes.by_definition.get(&definition.hash().0)?;
        candidates.iter().find(|shape| shape.definition.same_shape(definition) && !shape.is_over()).cloned()
    }

    /// The shape of this definition, made if there is none. Answers once it is durable in the journal;
    /// its rows come later: [`LiveShape::started`].
    ///
    /// # Errors
    /// [`CreateError`] where this process makes no shapes now.
    pub async fn find_or_create(&self, definition: ShapeDefinition) -> Result<Arc<LiveShape>, CreateError> {
        if let Some(shape) = self.find(&definition) {
            return Ok(shape);
        }
        let (reply, answer) = oneshot::channel();
        let request = Request::FindOrCreate { definition: Arc::new(definition), reply };
        self.shared.requests.send(request).await.map_err(|_| CreateError::NotActive)?;
        answer.await.map_err(|_| CreateError::NotActive)?
    }

    /// Ends a shape; `false` where it was gone already or this process ends nothing now. Returns when no
    /// request is served from it any more: whoever deleted it must not read it again.
    pub async fn delete(&self, shape: &LiveShape) -> bool {
        let (reply, answer) = oneshot::channel();
        if self.shared.requests.send(Request::Delete { sid: shape.sid, reply }).await.is_err() {
            return false;
        }
        if !answer.await.unwrap_or(false) {
            return false;
        }
        let mut phase = shape.phase.subscribe();
        let mut status = self.watch_status();
        tokio::select! {
            // Both senders live as long as `self` and `shape`. One that has failed serves nobody either.
            ended = phase.wait_for(|phase| matches!(phase, Phase::Failed(_) | Phase::Ended)) => ended.is_ok(),
            // Decided and perhaps never performed by this process.
            _ = status.wait_for(|status| *status == Status::Draining) => true,
        }
    }

    /// See [`Request::Sabotage`].
    #[cfg(feature = "test-hooks")]
    pub async fn sabotage(&self, sid: Sid, times: u32) {
        let _closed = self.shared.requests.send(Request::Sabotage { sid, times }).await;
    }

    /// The table as the catalog describes it; `None` where there is no such table.
    ///
    /// # Errors
    /// [`InspectError::Unreachable`] where Postgres cannot be asked.
    pub async fn inspect(&self, name: RelationName) -> Result<Option<Arc<Relation>>, InspectError> {
        self.shared.inspector.inspect(name).await
    }

    pub(super) fn subsets(&self) -> &Subsets {
        &self.shared.subsets
    }

    /// # Errors
    /// The driver is gone.
    pub(super) async fn ask(&self, request: Request) -> Result<(), mpsc::error::SendError<Request>> {
        self.shared.requests.send(request).await
    }

    /// Number of shapes that can be read.
    #[must_use]
    pub fn shapes_count(&self) -> usize {
        self.shared.shapes.read().unwrap_or_else(PoisonError::into_inner).by_handle.len()
    }

    pub(super) fn add(&self, shape: &Arc<LiveShape>) {
        let mut shapes = self.shared.shapes.write().unwrap_or_else(PoisonError::into_inner);
        shapes.by_handle.insert(shape.handle, Arc::clone(shape));
        shapes.by_definition.entry(shape.definition.hash().0).or_default().push(Arc::clone(shape));
    }

    pub(super) fn remove(&self, handle: ShapeHandle) -> Option<Arc<LiveShape>> {
        let mut shapes = self.shared.shapes.write().unwrap_or_else(PoisonError::into_inner);
        let shape = shapes.by_handle.remove(&handle)?;
        let hash = shape.definition.hash().0;
        if let Some(same) = shapes.by_definition.get_mut(&hash) {
            same.retain(|other| other.handle != handle);
            if same.is_empty() {
                shapes.by_definition.remove(&hash);
            }
        }
        Some(shape)
    }
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
        let phase = watch::Sender::new(phase);
        LiveShape {
            sid,
            handle,
            definition,
            reader,
            tagger: None,
            phase,
            published,
            lagging: AtomicBool::new(true),
            told: AtomicU64::new(0),
        }
    }

    /// Every commit up to here that concerns this shape is in every view taken *after* this call (P3):
    /// take the mark first, then the view. Zero where nothing can be said but what the view says.
    #[must_use]
    pub fn published(&self) -> Lsn {
        let mark = Lsn(self.published.load(Ordering::Acquire));
        // After the mark: a shape that falls behind or ends is flagged before the mark passes what it
        // lacks.
        let over = *self.phase.borrow() == Phase::Ended;
        if over || self.lagging.load(Ordering::Acquire) { Lsn(0) } else { mark }
    }

    /// A view and how much of the stream it is about. The mark is taken first: then everything up to it is
    /// in the view. The other way round a commit between the two would be promised and missing (P3). It
    /// never goes back while the log does not.
    #[must_use]
    pub fn look(&self) -> (Lsn, Arc<ShapeView>) {
        let mark = self.published();
        let view = self.reader.view();
        // What is to move in was caused by transactions that the mark may have passed.
        let new = if view.is_held_back() { Lsn(0) } else { mark };
        let told = self.told.fetch_max(new.0, Ordering::AcqRel);
        (new.max(Lsn(told)), view)
    }

    /// The log may have lost what was in memory only.
    pub(super) fn forget_told(&self) {
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
    pub(super) fn set_lagging(&self, lagging: bool) {
        self.lagging.store(lagging, Ordering::Release);
    }

    #[must_use]
    pub fn phase(&self) -> Phase {
        self.phase.borrow().clone()
    }

    /// There will be no more rows. Who comes now gets another shape: the reason may be gone by then.
    #[must_use]
    pub fn is_over(&self) -> bool {
        matches!(*self.phase.borrow(), Phase::Failed(_) | Phase::Ended)
    }

    /// Follows the phase: register, then check.
    #[must_use]
    pub fn watch_phase(&self) -> watch::Receiver<Phase> {
        self.phase.subscribe()
    }

    /// Waits until rows can be read or never will; the phase then.
    pub async fn started(&self) -> Phase {
        let mut phase = self.phase.subscribe();
        match phase.wait_for(|phase| *phase != Phase::Opening).await {
            Ok(phase) => phase.clone(),
            // The sender lives in `self`.
            Err(_) => Phase::Ended,
        }
    }

    /// Later phases win: a shape that failed or ended stays so.
    pub fn set_phase(&self, next: Phase) {
        self.phase.send_if_modified(|current| {
            let over = matches!(current, Phase::Failed(_) | Phase::Ended);
            if !over {
                *current = next;
            }
            !over
        });
    }
}

/// A service without a driver, for tests of what stands on top of it.
#[cfg(test)]
pub(crate) mod testing {
    use super::{
        Arc, AtomicU64, Inspector, LiveShape, Phase, Relation, Request, Service, ShapeDefinition,
        ShapeHandle, ShapeReader, Sid, mpsc,
    };
    use crate::postgres::{ConnectOptions, DatabaseUrl, TcpOptions, Tls};
    use crate::runtime::connections::Connections;
    use crate::runtime::subset::Subsets;

    /// Knows these tables, from before Postgres went away.
    pub(crate) fn service(requests: mpsc::Sender<Request>, tables: &[Relation]) -> Service {
        let url = DatabaseUrl::parse("postgresql://nobody@127.0.0.1:1/none").expect("a valid URL");
        let tls = Tls::unverified().expect("the TLS library works");
        let options = ConnectOptions { tls, tcp: TcpOptions::default() };
        let connections = Connections::new(url, options, 1);
        let inspector = Inspector::new(connections.clone());
        tables.iter().for_each(|table| inspector.remember(table));
        Service::new(requests, inspector, Subsets::new(connections, 1))
    }

    pub(crate) fn live_shape(
        handle: ShapeHandle,
        definition: Arc<ShapeDefinition>,
        reader: Arc<ShapeReader>,
        phase: Phase,
        published: Arc<AtomicU64>,
    ) -> Arc<LiveShape> {
        let shape = LiveShape::new(Sid(1), handle, definition, reader, phase, published);
        shape.set_lagging(false);
        Arc::new(shape)
    }

    pub(crate) fn set_phase(shape: &LiveShape, phase: Phase) {
        shape.set_phase(phase);
    }

    pub(crate) fn add(service: &Service, shape: &Arc<LiveShape>) {
        service.add(shape);
    }

    pub(crate) fn remove(service: &Service, handle: ShapeHandle) {
        service.remove(handle);
    }
}

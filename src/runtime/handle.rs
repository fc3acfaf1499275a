//! What the HTTP server sees of the running service.

mod live;

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use futures_util::FutureExt;
use tokio::sync::{Notify, mpsc, oneshot, watch};

use crate::domain::{
    Handle as ShapeHandle, Lsn, Oid, PgSnapshot, Relation, RelationName, ShapeDefinition, Sid,
};
use crate::runtime::evaluation::Evaluation;
use crate::runtime::inspector::Inspector;
use crate::runtime::observed::CheckReport;
use crate::runtime::progress::Progress;
use crate::runtime::standby::{Standby, Standing};
use crate::runtime::subset::Subsets;
#[cfg(feature = "test-hooks")]
use crate::runtime::watchdog::Watched;
use crate::telemetry::{Metrics, Tracer};

pub use live::{LiveShape, Phase, SnapshotProblem, Suspects};

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
    /// Compare the engine's views with the fold, a few shapes at a time.
    Check {
        reply: oneshot::Sender<CheckReport>,
    },
    /// Make a view wrong: for tests of the comparison.
    #[cfg(feature = "test-hooks")]
    Meddle(crate::events::ProjectionName),
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
    metrics: Arc<Metrics>,
    tracer: OnceLock<Tracer>,
    progress: Progress,
    /// All connections to Postgres are closed for want of work (`ELECTRIC_REPLICATION_IDLE_TIMEOUT`).
    asleep: watch::Sender<bool>,
    /// Somebody has work.
    wake: Notify,
    /// Reads of all shapes so far.
    uses: AtomicU64,
    evaluation: Evaluation,
    /// What tests may hold up.
    #[cfg(feature = "test-hooks")]
    parts: OnceLock<Vec<Watched>>,
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
    /// While another process owns the directory.
    standby: Option<Arc<Standby>>,
}

impl Shapes {
    fn insert(&mut self, shape: &Arc<LiveShape>) {
        self.remove(shape.handle);
        self.by_handle.insert(shape.handle, Arc::clone(shape));
        self.by_definition.entry(shape.definition.hash().0).or_default().push(Arc::clone(shape));
    }

    fn remove(&mut self, handle: ShapeHandle) -> Option<Arc<LiveShape>> {
        let shape = self.by_handle.remove(&handle)?;
        let hash = shape.definition.hash().0;
        if let Some(same) = self.by_definition.get_mut(&hash) {
            same.retain(|other| other.handle != handle);
            if same.is_empty() {
                self.by_definition.remove(&hash);
            }
        }
        Some(shape)
    }
}

impl Service {
    #[must_use]
    pub fn new(
        requests: mpsc::Sender<Request>,
        inspector: Inspector,
        subsets: Subsets,
        evaluation: Evaluation,
    ) -> Service {
        let (status, _) = watch::channel(Status::Starting { reason: "the journal is being read".to_owned() });
        let shapes = RwLock::default();
        let service = Service {
            shared: Arc::new(Shared {
                status,
                shapes,
                requests,
                inspector,
                subsets,
                metrics: Arc::default(),
                tracer: OnceLock::new(),
                progress: Progress::default(),
                asleep: watch::Sender::new(false),
                wake: Notify::new(),
                uses: AtomicU64::new(1),
                evaluation,
                #[cfg(feature = "test-hooks")]
                parts: OnceLock::new(),
            }),
        };
        service.tell_status(&service.status());
        service
    }

    /// Counted by whoever does something, read by whoever wants to.
    #[must_use]
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.shared.metrics
    }

    /// Takes spans, if anybody does.
    #[must_use]
    pub fn tracer(&self) -> Tracer {
        self.shared.tracer.get().cloned().unwrap_or_default()
    }

    /// Who takes spans from now on; the first one stays.
    pub fn set_tracer(&self, tracer: Tracer) {
        let _first = self.shared.tracer.set(tracer);
    }

    /// How the service gets on.
    #[must_use]
    pub fn progress(&self) -> &Progress {
        &self.shared.progress
    }

    /// All connections to Postgres are closed until somebody has work.
    #[must_use]
    pub fn is_asleep(&self) -> bool {
        *self.shared.asleep.borrow()
    }

    /// Waits until connections are there again, or cannot be had, if they were closed for want of work.
    pub async fn awake(&self) {
        let mut asleep = self.shared.asleep.subscribe();
        while *asleep.borrow_and_update() {
            self.shared.wake.notify_one();
            // The sender lives in `self`.
            if asleep.changed().await.is_err() {
                return;
            }
        }
    }

    pub(super) fn set_asleep(&self, asleep: bool) {
        if asleep {
            // Left from the last time, when two asked at once: nobody has asked since.
            let _stale = self.shared.wake.notified().now_or_never();
        }
        self.shared.asleep.send_replace(asleep);
    }

    /// Waits for somebody who has work.
    pub(super) async fn work(&self) {
        self.shared.wake.notified().await;
    }

    /// Somebody reads from the shape: it is not among those that nobody needs.
    pub fn touch(&self, shape: &LiveShape) {
        let use_number = self.shared.uses.fetch_add(1, Ordering::Relaxed);
        shape.last_used.store(use_number, Ordering::Relaxed);
    }

    fn tell_status(&self, status: &Status) {
        let current = match status {
            Status::Starting { .. } => "starting",
            Status::Waiting { .. } => "waiting",
            Status::Active => "active",
            Status::Draining => "draining",
        };
        for name in ["starting", "waiting", "active", "draining"] {
            let value = i64::from(name == current);
            self.shared.metrics.status.with_label_values(&[name]).set(value);
        }
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
                self.tell_status(&status);
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
        let mut status = self.watch_status();
        tokio::select! {
            // One that has failed serves nobody either.
            () = shape.over() => true,
            // Decided and perhaps never performed by this process.
            _ = status.wait_for(|status| *status == Status::Draining) => true,
        }
    }

    /// Compares the engine's views with the fold. Takes a round of the driver's turns, and no long one.
    /// `None` where the driver is gone or too many wait already.
    pub async fn check(&self) -> Option<CheckReport> {
        let (reply, answer) = oneshot::channel();
        self.shared.requests.send(Request::Check { reply }).await.ok()?;
        answer.await.ok()
    }

    /// See [`Request::Meddle`].
    #[cfg(feature = "test-hooks")]
    pub async fn meddle(&self) {
        let wrong = Request::Meddle(crate::events::ProjectionName::ShapeIndex);
        let _closed = self.shared.requests.send(wrong).await;
    }

    /// The parts of the pipeline, for tests that hold them up.
    #[cfg(feature = "test-hooks")]
    pub(in crate::runtime) fn hold_by(&self, parts: Vec<Watched>) {
        let _first = self.shared.parts.set(parts);
    }

    /// Holds a part of the pipeline up, or lets it go on; whether there is such a part.
    #[cfg(feature = "test-hooks")]
    pub fn hold(&self, name: &str, held: bool) -> bool {
        let parts = self.shared.parts.get().into_iter().flatten();
        let mut found = false;
        for watched in parts.filter(|watched| watched.part.to_string() == name) {
            watched.pulse.hold(held);
            found = true;
        }
        found
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

    /// The shapes whose rows can be read, and that have not ended.
    pub(super) fn readable(&self) -> Vec<Arc<LiveShape>> {
        let shapes = self.shared.shapes.read().unwrap_or_else(PoisonError::into_inner);
        shapes.by_handle.values().filter(|shape| shape.phase() == Phase::Readable).cloned().collect()
    }

    /// The partitioned tables that have shapes.
    pub(super) fn partitioned_tables(&self) -> BTreeSet<Oid> {
        let shapes = self.shared.shapes.read().unwrap_or_else(PoisonError::into_inner);
        let relations = shapes.by_handle.values().map(|shape| &shape.definition.relation);
        relations.filter(|relation| relation.partitioned).map(|relation| relation.oid).collect()
    }

    /// Where clauses that Postgres evaluates, and the counts of that.
    #[must_use]
    pub fn evaluation(&self) -> &Evaluation {
        &self.shared.evaluation
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

    /// A shape of this process; takes the place of one that was followed.
    pub(super) fn add(&self, shape: &Arc<LiveShape>) {
        // Whether made or restored: as if used just now (contract 6.5).
        self.touch(shape);
        self.shared.shapes.write().unwrap_or_else(PoisonError::into_inner).insert(shape);
    }

    pub(super) fn remove(&self, handle: ShapeHandle) -> Option<Arc<LiveShape>> {
        self.shared.shapes.write().unwrap_or_else(PoisonError::into_inner).remove(handle)
    }

    /// Another process owns the directory: its shapes are opened as they are asked for.
    pub(super) fn stand_by(&self, standby: Arc<Standby>) {
        self.shared.shapes.write().unwrap_or_else(PoisonError::into_inner).standby = Some(standby);
    }

    #[must_use]
    pub(super) fn is_standing_by(&self) -> bool {
        self.standby().is_some()
    }

    /// All shapes are there that this process will serve: those that were followed and are not among
    /// them are not found any more.
    pub(super) fn end_standby(&self) {
        let mut shapes = self.shared.shapes.write().unwrap_or_else(PoisonError::into_inner);
        let Some(standby) = shapes.standby.take() else { return };
        standby.close();
        let followed = shapes.by_handle.values().filter(|shape| shape.is_followed());
        let followed: Vec<ShapeHandle> = followed.map(|shape| shape.handle).collect();
        followed.into_iter().for_each(|handle| drop(shapes.remove(handle)));
    }

    /// While another process owns the directory: opens the shape of this handle, where it can be read.
    /// Otherwise this process knows by itself.
    pub async fn look_for(&self, handle: ShapeHandle) -> Standing {
        let Some(standby) = self.standby() else { return Standing::Known };
        match self.shape(handle) {
            // Its successor is looked for, as if nobody had known of it.
            Some(shape) if shape.is_over() => self.forget_followed(&shape),
            Some(_) => return Standing::Known,
            None => {}
        }
        let (standing, shape) = standby.open_handle(handle).await;
        shape.into_iter().for_each(|shape| self.add_followed(&standby, &shape));
        standing
    }

    /// The same for the shapes of a definition; those that have ended meanwhile are found to have.
    pub async fn look_for_definition(&self, definition: &ShapeDefinition) {
        let Some(standby) = self.standby() else { return };
        if let Some(shape) = self.find(definition) {
            let _result = shape.refresh().await;
            if !shape.is_over() {
                return;
            }
        }
        for shape in standby.open_definition(definition.hash()).await {
            self.add_followed(&standby, &shape);
        }
    }

    fn standby(&self) -> Option<Arc<Standby>> {
        self.shared.shapes.read().unwrap_or_else(PoisonError::into_inner).standby.clone()
    }

    /// Unless a shape of this process has taken its place.
    fn forget_followed(&self, shape: &Arc<LiveShape>) {
        let mut shapes = self.shared.shapes.write().unwrap_or_else(PoisonError::into_inner);
        if shapes.by_handle.get(&shape.handle).is_some_and(|current| Arc::ptr_eq(current, shape)) {
            shapes.remove(shape.handle);
        }
    }

    /// Unless the directory has become ours meanwhile, or somebody else was faster.
    fn add_followed(&self, standby: &Arc<Standby>, shape: &Arc<LiveShape>) {
        let mut shapes = self.shared.shapes.write().unwrap_or_else(PoisonError::into_inner);
        let still = shapes.standby.as_ref().is_some_and(|current| Arc::ptr_eq(current, standby));
        if still && !shapes.by_handle.contains_key(&shape.handle) {
            self.shared.inspector.remember(&shape.definition.relation);
            shapes.insert(shape);
        }
    }
}

/// A service without a driver, for tests of what stands on top of it.
#[cfg(test)]
pub(crate) mod testing {
    use super::{
        Arc, AtomicU64, Evaluation, Inspector, LiveShape, Phase, Relation, Request, Service, ShapeDefinition,
        ShapeHandle, Sid, mpsc,
    };
    use crate::postgres::{ConnectOptions, DatabaseUrl, TcpOptions, Tls};
    use crate::runtime::connections::Connections;
    use crate::runtime::subset::Subsets;
    use crate::shape_log::ShapeReader;

    /// Knows these tables, from before Postgres went away.
    pub(crate) fn service(requests: mpsc::Sender<Request>, tables: &[Relation]) -> Service {
        let url = DatabaseUrl::parse("postgresql://nobody@127.0.0.1:1/none").expect("a valid URL");
        let tls = Tls::unverified().expect("the TLS library works");
        let options = ConnectOptions { tls, tcp: TcpOptions::default() };
        let connections = Connections::new(url.clone(), options.clone(), 1);
        let evaluation = Evaluation::new(false, (url, options), connections.clone());
        let inspector = Inspector::new(connections.clone());
        tables.iter().for_each(|table| inspector.remember(&Arc::new(table.clone())));
        Service::new(requests, inspector, Subsets::new(connections, 1), evaluation)
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

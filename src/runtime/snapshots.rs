//! Taking snapshots: one task per shape, from the publication of its table to the last row.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use tokio::sync::{mpsc, oneshot};
use tokio::task::AbortHandle;

use crate::domain::{LogMode, Sid};
use crate::engine::Input;
use crate::events::SnapshotFailure;
use crate::replication::ReplicationError;
use crate::runtime::connections::{Connections, Place};
use crate::runtime::driver::Message;
use crate::runtime::faults;
use crate::runtime::handle::{LiveShape, Phase, Service, SnapshotProblem};
use crate::runtime::publishing::{Newcomers, Publishing};
use crate::runtime::settling::Settling;
use crate::runtime::subquery::{
    FoldError, GIVEN_VALUES_MAX, Members, RowTagger, base_note, given, load_snapshot,
};
use crate::shape_log::{
    Disk, SealedSnapshot, ShapeFiles, ShapeLogError, SnapshotDone, SnapshotWriter, StorageFault, Unsynced,
};
use crate::snapshot::{self, OpenSnapshot, RowBatch, SnapshotError};
use crate::telemetry::{Sampling, SpanKind, Value};

/// What all snapshot tasks share.
#[derive(Debug)]
pub struct SnapshotContext {
    /// For reading rows.
    pub query: Connections,
    pub data_dir: PathBuf,
    pub disk: Arc<dyn Disk>,
    pub chunk_bytes: u64,
    pub driver: mpsc::Sender<Message>,
    pub publishing: Arc<Publishing>,
    pub settling: Settling,
    pub service: Service,
}

/// The running snapshot tasks.
#[derive(Debug)]
pub struct Snapshots {
    context: Arc<SnapshotContext>,
    runtime: tokio::runtime::Handle,
    running: Arc<Mutex<BTreeMap<Sid, Running>>>,
}

#[derive(Debug)]
struct Running {
    attempt: u32,
    go_on: Option<oneshot::Sender<()>>,
    abort: AbortHandle,
}

impl Snapshots {
    #[must_use]
    pub fn new(context: Arc<SnapshotContext>, runtime: tokio::runtime::Handle) -> Snapshots {
        Snapshots { context, runtime, running: Arc::default() }
    }

    /// Publishes the table and opens a snapshot; ends an earlier attempt.
    pub fn start(&self, shape: Arc<LiveShape>, attempt: u32) {
        let (go_on, verdict) = oneshot::channel();
        let sid = shape.sid;
        let task = Task { context: Arc::clone(&self.context), shape, attempt };
        let running = Arc::clone(&self.running);
        let driver = self.context.driver.clone();
        // Supervised: however the work ends, by return, panic or abort, the task beside it notices.
        let work = self.runtime.spawn(task.run(verdict));
        let abort = work.abort_handle();
        let earlier = {
            let mut table = self.running.lock().unwrap_or_else(PoisonError::into_inner);
            table.insert(sid, Running { attempt, go_on: Some(go_on), abort })
        };
        if let Some(earlier) = earlier {
            earlier.abort.abort();
        }
        self.runtime.spawn(async move {
            let result = work.await;
            let replaced = {
                let mut table = running.lock().unwrap_or_else(PoisonError::into_inner);
                let current = table.get(&sid).is_some_and(|running| running.attempt == attempt);
                if current {
                    table.remove(&sid);
                }
                !current
            };
            if replaced {
                return;
            }
            let input = match result {
                Ok(input) => input,
                Err(error) if error.is_panic() => {
                    Some(Input::SnapshotFailed { sid, attempt, failure: SnapshotFailure::Query })
                }
                Err(_aborted) => None,
            };
            // The driver may be gone at shutdown.
            if let Some(input) = input {
                let _closed = driver.send(Message::Input(input)).await;
            }
            let _closed = driver.send(Message::Input(Input::SnapshotStopped { sid })).await;
        });
    }

    /// The snapshot that this attempt opened is good.
    pub fn copy_rows(&self, sid: Sid, attempt: u32) {
        let mut table = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let running = table.get_mut(&sid).filter(|running| running.attempt == attempt);
        if let Some(go_on) = running.and_then(|running| running.go_on.take()) {
            // The task may have failed in between; it says so itself.
            let _ended = go_on.send(());
        }
    }

    /// Ends the task of a shape. `false` where none runs: then nobody will answer.
    #[must_use]
    pub fn abort(&self, sid: Sid) -> bool {
        let table = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        table.get(&sid).map(|running| running.abort.abort()).is_some()
    }
}

struct Task {
    context: Arc<SnapshotContext>,
    shape: Arc<LiveShape>,
    attempt: u32,
}

/// Why there will be no rows.
enum Problem {
    /// Of a look at the catalog that others may share.
    Replication(Arc<ReplicationError>),
    Snapshot(SnapshotError),
    ShapeLog(ShapeLogError),
    /// The driver is gone, or has started another attempt.
    NotWanted,
}

impl From<Arc<ReplicationError>> for Problem {
    fn from(error: Arc<ReplicationError>) -> Problem {
        Problem::Replication(error)
    }
}

impl From<ReplicationError> for Problem {
    fn from(error: ReplicationError) -> Problem {
        Problem::Replication(Arc::new(error))
    }
}

impl From<SnapshotError> for Problem {
    fn from(error: SnapshotError) -> Problem {
        Problem::Snapshot(error)
    }
}

impl From<StorageFault> for Problem {
    fn from(fault: StorageFault) -> Problem {
        Problem::ShapeLog(fault.into())
    }
}

impl From<ShapeLogError> for Problem {
    fn from(error: ShapeLogError) -> Problem {
        Problem::ShapeLog(error)
    }
}

impl Task {
    async fn run(self, verdict: oneshot::Receiver<()>) -> Option<Input> {
        let (sid, attempt) = (self.shape.sid, self.attempt);
        let tracer = self.context.service.tracer();
        let mut span = tracer.begin("shape_snapshot.create", SpanKind::Internal, Sampling::Always, None);
        if let Some(span) = &mut span {
            span.set("shape.handle", Value::Text(self.shape.handle.to_string()));
            span.set("shape.root_table", Value::Text(self.shape.definition.relation.name.to_string()));
        }
        let taken = self.take(verdict).await;
        if let Some(span) = span {
            span.end(taken.is_err());
        }
        match taken {
            Ok(SnapshotDone { rows, bytes }) => Some(Input::SnapshotCompleted { sid, attempt, rows, bytes }),
            Err(Problem::NotWanted) => None,
            Err(problem) => {
                let (failure, told) = self.explain(&problem);
                tracing::warn!(%sid, shape_handle = %self.shape.handle, ?failure, "a snapshot failed");
                // The client that asked gets the reason; the journal gets its kind.
                self.shape.set_phase(Phase::Failed(told));
                if let Problem::ShapeLog(ShapeLogError::Storage(fault)) = problem {
                    self.tell(faults::input(fault, Some(sid))).await.ok()?;
                }
                Some(Input::SnapshotFailed { sid, attempt, failure })
            }
        }
    }

    async fn take(&self, verdict: oneshot::Receiver<()>) -> Result<SnapshotDone, Problem> {
        self.publish().await?;
        let _unsettled = self.context.settling.place().await;
        let loan = self.context.query.get().await.map_err(SnapshotError::from)?;
        let (client, place) = loan.split();
        let extra = self.shape.tagger.as_ref().map_or_else(Vec::new, |tagger| tagger.extra_sql());
        // Before the engine is told: from then on a writer may want the directory.
        let (opened, made) = tokio::join!(
            snapshot::open_with_extra(client, &self.shape.definition, &extra),
            self.make_files()
        );
        let (opened, (files, unsynced)) = (opened?, made?);
        let mut note = Vec::new();
        if let Some(tagger) = &self.shape.tagger {
            let given = given(&opened, &self.shape.definition).await?;
            note = base_note(&self.shape.definition, tagger, &given, GIVEN_VALUES_MAX);
            self.send(Message::Given { sid: self.shape.sid, given }).await?;
        }
        self.tell(Input::SnapshotOpened {
            sid: self.shape.sid,
            attempt: self.attempt,
            snapshot: opened.visible.clone(),
            lsn: opened.lsn,
        })
        .await?;
        verdict.await.map_err(|_| Problem::NotWanted)?;
        let sealed = self.copy(&files, opened, place, (unsynced, note)).await?;
        let settled = self.context.settling.settle(sealed).await.ok_or(ShapeLogError::SnapshotFailed)??;
        if self.shape.definition.is_inner() {
            self.load().await?;
        }
        Ok(settled)
    }

    /// The directory of the shape. It becomes durable with the snapshot: until then a restart starts the
    /// shape over.
    async fn make_files(&self) -> Result<(ShapeFiles, Unsynced), Problem> {
        let (context, shape) = (Arc::clone(&self.context), Arc::clone(&self.shape));
        // A retake finds the directory that the first attempt made.
        let again = self.attempt > 1;
        let make = move || {
            let (disk, data_dir) = (Arc::clone(&context.disk), &context.data_dir);
            if again {
                let files = ShapeFiles::open(disk, data_dir, shape.handle);
                return files.laid_out(data_dir).map(|unsynced| (files, unsynced));
            }
            ShapeFiles::lay_out(disk, data_dir, shape.handle, &shape.definition)
        };
        Ok(blocking(make).await??)
    }

    /// The order matters: published, and every earlier writer of the table ended, before the snapshot
    /// is taken (N3).
    async fn publish(&self) -> Result<(), Problem> {
        let relation = &self.shape.definition.relation;
        let started = Instant::now();
        self.context.publishing.publish(&self.shape.definition).await?;
        let waited_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.tell(Input::PublicationReady { sid: self.shape.sid, oid: relation.oid, waited_ms }).await
    }

    /// Writes the rows; the connection is free again once they are read.
    async fn copy(
        &self,
        files: &ShapeFiles,
        opened: OpenSnapshot,
        place: Place,
        (unsynced, note): (Unsynced, Vec<u8>),
    ) -> Result<SealedSnapshot, Problem> {
        let visible = opened.visible.clone();
        let reader = Arc::clone(&self.shape.reader);
        let mut writer =
            SnapshotWriter::create(files, &self.shape.definition, reader, self.context.chunk_bytes)?;
        writer.note(note);
        self.shape.set_phase(Phase::Readable);
        match self.shape.definition.log {
            LogMode::ChangesOnly => place.keep(opened.leave().await?),
            LogMode::Full => {
                let mut rows = opened.rows().await?;
                let mut batch = RowBatch::new();
                while rows.next_batch(&mut batch).await? {
                    writer = push(writer, &batch, self.shape.tagger.as_deref())?;
                }
                place.keep(rows.finish().await?);
            }
        }
        // Rows of a partition that came or went meanwhile may be among those that were read, or not.
        let relation = &self.shape.definition.relation;
        if relation.partitioned {
            self.context.publishing.look_below(relation.oid, Newcomers::MadeAsPartition).await?;
        }
        // Into the page cache, as the rows before.
        Ok(writer.seal(&visible, Some(unsynced))?)
    }

    /// The rows of an inner query are what the shapes that depend on it need.
    async fn load(&self) -> Result<(), Problem> {
        let shape = Arc::clone(&self.shape);
        let members = blocking(move || {
            let clause = shape.tagger.as_ref().map(|tagger| Arc::new(tagger.clause().clone()));
            let mut members = Members::new(Arc::clone(&shape.definition), clause);
            load_snapshot(&shape.reader.view(), &mut members).map(|()| members)
        });
        let members = members.await?.map_err(|error| match error {
            FoldError::ShapeLog(error) => Problem::ShapeLog(error),
            FoldError::Message => Problem::Snapshot(SnapshotError::Malformed),
        })?;
        self.send(Message::Loaded { sid: self.shape.sid, members: Box::new(members) }).await
    }

    async fn send(&self, message: Message) -> Result<(), Problem> {
        self.context.driver.send(message).await.map_err(|_| Problem::NotWanted)
    }

    async fn tell(&self, input: Input) -> Result<(), Problem> {
        self.send(Message::Input(input)).await
    }

    fn explain(&self, problem: &Problem) -> (SnapshotFailure, SnapshotProblem) {
        match problem {
            Problem::Replication(error) => explain_publication(error),
            Problem::Snapshot(error) => explain_query(error),
            Problem::ShapeLog(error) => {
                (SnapshotFailure::Storage, SnapshotProblem::Unexpected(error.to_string()))
            }
            Problem::NotWanted => (SnapshotFailure::Query, SnapshotProblem::MustRefetch),
        }
    }
}

/// Encodes and writes a batch. Into the page cache, hence quick; a thread of its own would cost more
/// than it saves.
fn push(
    mut writer: SnapshotWriter,
    batch: &RowBatch,
    tagger: Option<&RowTagger>,
) -> Result<SnapshotWriter, ShapeLogError> {
    let mut result = Ok(());
    batch.for_each(&mut |row| {
        if result.is_ok() {
            result = match tagger.map(|tagger| tagger.tags(row)) {
                Some((own, tags)) => writer.push_tagged_row(own, Some(&tags)),
                None => writer.push_row(row),
            };
        }
    });
    result.map(|()| writer)
}

fn explain_publication(error: &ReplicationError) -> (SnapshotFailure, SnapshotProblem) {
    let known = || SnapshotProblem::Known(error.to_string());
    match error {
        ReplicationError::Postgres(error) => explain_query(&SnapshotError::from(error.clone())),
        ReplicationError::TableGone(_) => (SnapshotFailure::Vanished, known()),
        ReplicationError::LockTimeout | ReplicationError::FenceTimeout(_) => {
            (SnapshotFailure::Timeout, known())
        }
        ReplicationError::NotPublished { .. }
        | ReplicationError::IdentityNotFull(_)
        | ReplicationError::NotReplicated { .. }
        | ReplicationError::PublishedAsRoot { .. }
        | ReplicationError::Narrowed { .. }
        | ReplicationError::GeneratedNotPublished(_)
        | ReplicationError::GeneratedBlocksWrites(_)
        | ReplicationError::PublicationNotFound(_)
        | ReplicationError::PublicationIncomplete(_)
        | ReplicationError::Malformed(_)
        | ReplicationError::Ended
        | ReplicationError::Silent(_)
        | ReplicationError::Spill(_)
        | ReplicationError::Standby => (SnapshotFailure::Publication, known()),
    }
}

fn explain_query(error: &SnapshotError) -> (SnapshotFailure, SnapshotProblem) {
    let known = || SnapshotProblem::Known(error.to_string());
    // The words alone: what they are about is said where they are told.
    let unexpected = |words: &str| (SnapshotFailure::Query, SnapshotProblem::Unexpected(words.to_owned()));
    match error {
        SnapshotError::MustRefetch => (SnapshotFailure::Vanished, SnapshotProblem::MustRefetch),
        SnapshotError::PermissionDenied(_) => (SnapshotFailure::Permission, known()),
        SnapshotError::LockTimeout
        | SnapshotError::FirstDataTimeout(_)
        | SnapshotError::StartTimeout
        | SnapshotError::PoolQueueTimeout => (SnapshotFailure::Timeout, known()),
        SnapshotError::Unavailable => (SnapshotFailure::Connection, known()),
        SnapshotError::InvalidLiteral(words) => unexpected(words),
        SnapshotError::Cancelled => unexpected("the query was cancelled"),
        SnapshotError::Unexpected(error) => match error.message() {
            Some(words) => unexpected(words),
            None => unexpected(&error.to_string()),
        },
        SnapshotError::Malformed => unexpected("the rows are not in the form of COPY"),
    }
}

/// Runs what waits for a disk on a thread that may.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Problem> {
    tokio::task::spawn_blocking(work).await.map_err(|_| Problem::NotWanted)
}

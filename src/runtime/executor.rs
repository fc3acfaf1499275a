//! From effects to actions: the only translator between the engine and the io modules.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{mpsc, oneshot};

use crate::domain::{Handle, Incarnation, Oid, RelationName, Seq, ShapeDefinition, Sid};
use crate::engine::{Effect, Input};
use crate::events::{DestructionResult, IntentId, InvalidationCause};
use crate::filter::subquery::Clause;
use crate::runtime::compaction::Compactor;
use crate::runtime::driver::Message;
use crate::runtime::faults;
use crate::runtime::handle::{CreateError, LiveShape, Phase, Service, Status, Suspects};
use crate::runtime::inspector::Inspector;
use crate::runtime::quarantine::{self, Timing};
use crate::runtime::removal::Removal;
use crate::runtime::restoring::{Filter, Loader, Restored, Restoring, Unrestored};
use crate::runtime::router::{RoutedTransaction, Router};
use crate::runtime::snapshots::{SnapshotContext, Snapshots};
use crate::runtime::stream::{self, Acknowledgements};
use crate::runtime::subquery::{FoldError, Resumed};
use crate::runtime::writers::{Command, WriterThreads};
use crate::shape_log::{Disk, FaultClass, ShapeFiles, ShapeLogError, ShapeReader, StorageFault};

/// Everything that effects act upon. Lives on the driver thread.
#[derive(Debug)]
pub struct Executor {
    pub service: Service,
    pub router: Router,
    pub inspector: Inspector,
    pub snapshots: Snapshots,
    pub context: Arc<SnapshotContext>,
    pub writers: WriterThreads,
    pub acknowledgements: Acknowledgements,
    pub stream: mpsc::Sender<stream::Command>,
    pub runtime: tokio::runtime::Handle,
    pub data_dir: PathBuf,
    pub disk: Arc<dyn Disk>,
    pub loader: Loader,
    pub restoring: Restoring,
    pub shapes: BTreeMap<Sid, Arc<LiveShape>>,
    pub bodies: Bodies,
    /// Who asked for a shape that is not durable in the journal yet.
    pub waiting: BTreeMap<Sid, Vec<Reply>>,
    /// The tables that have shapes: read by the tasks that publish and un-publish.
    pub tables: Arc<Mutex<BTreeSet<Oid>>>,
    pub table_names: BTreeMap<Oid, RelationName>,
    /// What the journal said at the start about the shapes that are restored.
    pub resumed: Resumed,
    /// Transactions that are to be handed out together, once everything before them has been.
    pub runs: BTreeMap<Sid, Vec<HandOut>>,
    pub suspects: Arc<Suspects>,
    /// None where logs are not compacted.
    pub compactor: Option<Compactor>,
}

/// See [`Executor::runs`].
#[derive(Debug)]
pub struct HandOut {
    pub incarnation: Incarnation,
    pub run: Vec<(Seq, Arc<RoutedTransaction>)>,
    pub owes_from: Option<Seq>,
}

/// Where the answer to a request for a shape goes.
pub type Reply = oneshot::Sender<Result<Arc<LiveShape>, CreateError>>;

/// The bytes are gone or wrong, with evidence: no restart brings them back.
fn is_lost(fault: &StorageFault) -> bool {
    match fault.class {
        FaultClass::Corrupt { .. } | FaultClass::Vanished => true,
        FaultClass::NoSpace | FaultClass::Denied | FaultClass::Transient { .. } => false,
    }
}

/// What the driver has to do about an effect, beyond performing it.
#[derive(Debug)]
pub enum Outcome {
    Done,
    /// Something to tell the engine at once.
    Answer(Input),
    /// A shape cannot be restored, and nothing may be done about it: stop, change nothing.
    Refuse {
        handle: Handle,
        error: ShapeLogError,
    },
    Exit,
    Abort,
}

/// The transactions that some shape still owes, by number.
#[derive(Debug, Default)]
pub struct Bodies {
    bodies: BTreeMap<Seq, Arc<RoutedTransaction>>,
    bytes: u64,
}

impl Bodies {
    pub fn insert(&mut self, seq: Seq, body: Arc<RoutedTransaction>) {
        self.bytes += body.txn.memory_bytes();
        if let Some(before) = self.bodies.insert(seq, body) {
            self.bytes -= before.txn.memory_bytes();
        }
    }

    #[must_use]
    pub fn get(&self, seq: Seq) -> Option<&Arc<RoutedTransaction>> {
        self.bodies.get(&seq)
    }

    /// Bytes of memory that they hold.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    fn forget_before(&mut self, seq: Seq) {
        let kept = self.bodies.split_off(&seq);
        let gone = std::mem::replace(&mut self.bodies, kept);
        self.bytes -= gone.values().map(|body| body.txn.memory_bytes()).sum::<u64>();
    }
}

impl Executor {
    /// Performs one effect. Never waits for a disk or the network.
    pub fn perform(&mut self, effect: Effect) -> Outcome {
        match effect {
            Effect::ConnectPostgres => {
                // Asked for once the shapes are restored.
                self.service.end_standby();
                self.command_stream(stream::Command::Connect)
            }
            Effect::StartStream { generation } => self.command_stream(stream::Command::Start { generation }),
            Effect::StopStream => self.command_stream(stream::Command::Stop),
            Effect::SendStatus { generation, lsn } => {
                self.acknowledgements.send(generation, lsn);
                Outcome::Done
            }
            Effect::RestoreShape { sid, handle } => {
                self.restoring.want(sid, handle);
                Outcome::Done
            }
            Effect::OpenShape { sid, .. } => self.open(sid),
            Effect::StartSnapshot { sid, attempt } => {
                if let Some(shape) = self.shapes.get(&sid) {
                    self.snapshots.start(Arc::clone(shape), attempt);
                }
                Outcome::Done
            }
            Effect::CopyRows { sid, attempt } => {
                self.snapshots.copy_rows(sid, attempt);
                Outcome::Done
            }
            Effect::AbortSnapshot { sid } => {
                if self.snapshots.abort(sid) {
                    Outcome::Done
                } else {
                    Outcome::Answer(Input::SnapshotStopped { sid })
                }
            }
            Effect::StartWriter { sid, incarnation, replay, complete } => {
                self.start_writer(sid, incarnation, &replay, complete)
            }
            Effect::StopWriter { sid, incarnation, cause } => {
                self.writers.send(sid, Command::Stop { sid, incarnation, cause });
                Outcome::Done
            }
            Effect::Deliver { seq, mut to } => {
                to.iter().for_each(|(sid, _)| self.hand_out(*sid, Some(seq)));
                match self.bodies.get(seq) {
                    Some(routed) => {
                        // A run brings it together with what is to follow it.
                        let in_run = |sid: &Sid| {
                            let runs = self.runs.get(sid).into_iter().flatten();
                            runs.flat_map(|hand_out| &hand_out.run).any(|(other, _)| *other == seq)
                        };
                        to.retain(|(sid, _)| {
                            !in_run(sid) && !self.router.subqueries.holds(*sid, seq, routed)
                        });
                        self.writers.deliver(seq, routed, to);
                    }
                    None => tracing::error!(%seq, "a transaction is owed but not held"),
                }
                Outcome::Done
            }
            Effect::ForgetBefore { seq } => {
                self.bodies.forget_before(seq);
                Outcome::Done
            }
            Effect::RotateReaders { sid, cause } => self.rotate(sid, cause),
            Effect::TrashFiles { sid, handle, intent, keep } => self.trash(sid, handle, intent, keep),
            Effect::SwitchLog { sid, incarnation, intent } => self.switch_log(sid, incarnation, intent),
            Effect::QuarantineFiles { handle, intent } => {
                tracing::warn!(%handle, "a directory that is no shape's is set aside in quarantine/");
                self.settle_stranger(
                    intent,
                    move |files, _, data_dir| quarantine::set_aside(&files, data_dir),
                    handle,
                )
            }
            Effect::PurgeQuarantined { handle, intent } => {
                let timing = Timing::current();
                let purge = move |_, disk: &dyn Disk, data_dir: &Path| {
                    quarantine::purge(disk, data_dir, handle, timing)
                };
                self.settle_stranger(intent, purge, handle)
            }
            Effect::ReleasePublication { oid } => self.release(oid),
            Effect::Exit => Outcome::Exit,
            Effect::Abort => Outcome::Abort,
        }
    }

    /// Makes a shape known to router and readers: from the next transaction on it is matched.
    pub fn add_shape(
        &mut self,
        sid: Sid,
        handle: Handle,
        definition: &Arc<ShapeDefinition>,
        filter: Filter,
        dependencies: Vec<Sid>,
    ) -> Arc<LiveShape> {
        let files = self.files(handle);
        let reader = ShapeReader::new(&files);
        let clause = match &filter {
            Filter::Tagged(tagger) => {
                let (definition, tagger) = (Arc::clone(definition), Arc::clone(tagger));
                let clause = Arc::new(tagger.clause().clone());
                self.router.subqueries.insert_outer(sid, definition, tagger, dependencies);
                Some(clause)
            }
            Filter::Everything | Filter::Plain(_) => None,
        };
        if definition.is_inner() {
            self.router.subqueries.insert_inner(sid, Arc::clone(definition), clause);
        }
        self.install(sid, handle, definition, filter, reader, Phase::Opening)
    }

    /// Hands transactions to the writer of a shape that were to be handed out together: those before
    /// `seq`, or all. Everything that was decided before them has been performed.
    pub fn hand_out(&mut self, sid: Sid, before: Option<Seq>) {
        let runs = self.runs.remove(&sid).unwrap_or_default();
        let due = |hand_out: &HandOut| {
            before.is_none_or(|seq| hand_out.run.first().is_some_and(|(first, _)| *first < seq))
        };
        let (due, later): (Vec<HandOut>, Vec<HandOut>) = runs.into_iter().partition(due);
        for HandOut { incarnation, run, owes_from } in due {
            self.writers.send(sid, Command::Run { sid, incarnation, run, owes_from });
        }
        if !later.is_empty() {
            self.runs.insert(sid, later);
        }
    }

    fn install(
        &mut self,
        sid: Sid,
        handle: Handle,
        definition: &Arc<ShapeDefinition>,
        filter: Filter,
        reader: Arc<ShapeReader>,
        phase: Phase,
    ) -> Arc<LiveShape> {
        let published = self.writers.published(sid);
        let mut shape = LiveShape::new(sid, handle, Arc::clone(definition), reader, phase, published);
        shape.suspects = Some(Arc::clone(&self.suspects));
        let relation = &definition.relation;
        match filter {
            Filter::Everything => self.router.insert(sid, Arc::clone(definition), None),
            Filter::Plain(predicate) => self.router.insert(sid, Arc::clone(definition), Some(*predicate)),
            Filter::Tagged(tagger) => {
                self.router.insert_outer(sid, Arc::clone(definition), tagger.clause().columns());
                shape.tagger = Some(tagger);
            }
        }
        let shape = Arc::new(shape);
        self.table_names.insert(relation.oid, relation.name.clone());
        self.tables.lock().unwrap_or_else(PoisonError::into_inner).insert(relation.oid);
        self.shapes.insert(sid, Arc::clone(&shape));
        shape
    }

    /// Nothing is routed to the shape from here on.
    pub fn unroute(&mut self, sid: Sid) {
        self.router.remove(sid);
    }

    pub(super) fn files(&self, handle: Handle) -> ShapeFiles {
        self.loader.files(handle)
    }

    fn command_stream(&self, command: stream::Command) -> Outcome {
        // The queue is longer than the driver can have commands outstanding; the task ends only with
        // the process.
        if self.stream.try_send(command).is_err() {
            tracing::error!(?command, "the stream task takes no command");
        }
        Outcome::Done
    }

    fn open(&mut self, sid: Sid) -> Outcome {
        let Some(shape) = self.shapes.get(&sid) else { return Outcome::Done };
        // Nobody asks for an inner query by its handle: its rows are those of no client.
        if !shape.definition.is_inner() {
            self.service.add(shape);
        }
        for waiting in self.waiting.remove(&sid).unwrap_or_default() {
            // The client may have gone away meanwhile.
            let _gone = waiting.send(Ok(Arc::clone(shape)));
        }
        Outcome::Done
    }

    /// Has the shapes read that are to be restored. Until then only they can be read that have been.
    pub fn begin_restoring(&mut self) {
        let shapes = self.restoring.begin(&self.loader, &self.runtime, &self.context.driver);
        tracing::info!(shapes, "restoring");
        let reason = "Timeout waiting for shape data to be loaded".to_owned();
        self.service.set_status(Status::Waiting { reason });
    }

    /// Makes a shape known that was read from its files.
    pub fn restore(&mut self, sid: Sid, handle: Handle, read: Result<Restored, Unrestored>) -> Outcome {
        match read {
            Ok((definition, filter, reader)) => {
                if let Err(error) = self.resume_subqueries(sid, &definition, &filter, &reader) {
                    return self.unfolded(sid, handle, error);
                }
                let shape = self.install(sid, handle, &definition, filter, reader, Phase::Readable);
                if !definition.is_inner() {
                    self.service.add(&shape);
                }
                Outcome::Done
            }
            Err(Unrestored::Files(ShapeLogError::Storage(fault))) if is_lost(&fault) => {
                tracing::error!(%sid, shape_handle = %handle, %fault, "a shape cannot be restored");
                Outcome::Answer(faults::input(fault, Some(sid)))
            }
            // Neither a newer format nor a disk that refuses is a reason to give a shape up, and
            // without it in the router its changes would pass unseen.
            Err(Unrestored::Files(error)) => Outcome::Refuse { handle, error },
            Err(Unrestored::Clause) => {
                tracing::error!(%sid, shape_handle = %handle, "a shape has a where clause that this version does not read");
                Outcome::Answer(Input::Invalidate { sid, cause: InvalidationCause::StorageDamaged })
            }
        }
    }

    /// Finds out what inner queries gave, and what shapes were made with.
    fn resume_subqueries(
        &mut self,
        sid: Sid,
        definition: &Arc<ShapeDefinition>,
        filter: &Filter,
        reader: &ShapeReader,
    ) -> Result<(), FoldError> {
        let received = self.resumed.received;
        let restored = &self.resumed.shape(sid);
        let subqueries = &mut self.router.subqueries;
        let tagger = match filter {
            Filter::Tagged(tagger) => Some(Arc::clone(tagger)),
            Filter::Everything | Filter::Plain(_) => None,
        };
        let view = reader.view();
        if definition.is_inner() {
            let clause = tagger.as_ref().map(|tagger| Arc::new(Clause::clone(tagger.clause())));
            subqueries.restore_inner(sid, Arc::clone(definition), clause, &view, restored)?;
        }
        if let Some(tagger) = tagger {
            subqueries.restore_outer(sid, Arc::clone(definition), tagger, &view, (received, restored))?;
        }
        Ok(())
    }

    fn unfolded(&self, sid: Sid, handle: Handle, error: FoldError) -> Outcome {
        match error {
            FoldError::ShapeLog(ShapeLogError::Storage(fault)) if is_lost(&fault) => {
                tracing::error!(%sid, %handle, %fault, "an inner query cannot be restored");
                Outcome::Answer(faults::input(fault, Some(sid)))
            }
            FoldError::ShapeLog(error) => Outcome::Refuse { handle, error },
            FoldError::Message => {
                tracing::error!(%sid, %handle, "a log has a message that this version does not read");
                Outcome::Answer(Input::Invalidate { sid, cause: InvalidationCause::StorageDamaged })
            }
        }
    }

    fn start_writer(
        &mut self,
        sid: Sid,
        incarnation: crate::domain::Incarnation,
        replay: &[Seq],
        complete: bool,
    ) -> Outcome {
        let Some(shape) = self.shapes.get(&sid).cloned() else { return Outcome::Done };
        let files = self.files(shape.handle);
        let decided = |seq: &&Seq| self.bodies.get(**seq).is_none_or(|body| body.is_decided(sid));
        let count = replay.len();
        let replay: Vec<_> = replay
            .iter()
            .take_while(decided)
            .filter_map(|seq| {
                let body = self.bodies.get(*seq).map(|body| (*seq, Arc::clone(body)));
                if body.is_none() {
                    tracing::error!(%sid, %seq, "a transaction is owed but not held");
                }
                body
            })
            .collect();
        // What waits for rows that move in is handed out with them.
        let complete = complete && replay.len() == count;
        let owes_from = self.router.subqueries.owes_from(sid);
        self.writers
            .send(sid, Command::Start { sid, incarnation, shape, files, replay, complete, owes_from });
        Outcome::Done
    }

    fn rotate(&mut self, sid: Sid, cause: InvalidationCause) -> Outcome {
        if let Some(shape) = self.shapes.remove(&sid) {
            tracing::info!(%sid, shape_handle = %shape.handle, ?cause, "a shape has ended");
            self.service.remove(shape.handle);
            // Its table may be another one by now: who comes for the next shape asks Postgres.
            self.inspector.forget(&shape.definition.relation.name);
            self.runs.remove(&sid);
            // Who waits for the rows of a shape is told why those of its inner queries cannot be had.
            if let failed @ Phase::Failed(_) = shape.phase() {
                for outer in self.router.subqueries.dependents(sid) {
                    if let Some(outer) = self.shapes.get(&outer) {
                        outer.set_phase(failed.clone());
                    }
                }
            }
            shape.set_phase(Phase::Ended);
            for waiting in self.waiting.remove(&sid).unwrap_or_default() {
                let _gone = waiting.send(Ok(Arc::clone(&shape)));
            }
            let oid = shape.definition.relation.oid;
            let used = self.shapes.values().any(|other| other.definition.relation.oid == oid);
            if !used {
                self.tables.lock().unwrap_or_else(PoisonError::into_inner).remove(&oid);
            }
        }
        Outcome::Done
    }

    /// Looks for directories that are no shape's. What is found comes back as a message.
    pub fn survey(&self) {
        let (disk, data_dir) = (Arc::clone(&self.disk), self.data_dir.clone());
        let driver = self.context.driver.clone();
        self.runtime.spawn_blocking(move || {
            match quarantine::survey(disk.as_ref(), &data_dir, Timing::current()) {
                Ok(found) => {
                    let _closed = driver.blocking_send(Message::Surveyed(found));
                }
                Err(error) => tracing::warn!(%error, "the directories of the shapes cannot be listed"),
            }
            if let Err(error) = disk.tidy() {
                tracing::warn!(%error, "no room could be won back among the small shapes");
            }
        });
    }

    fn settle_stranger(
        &self,
        intent: IntentId,
        work: impl FnOnce(ShapeFiles, &dyn Disk, &Path) -> Result<DestructionResult, ShapeLogError>
        + Send
        + 'static,
        handle: Handle,
    ) -> Outcome {
        let (files, disk, data_dir) = (self.files(handle), Arc::clone(&self.disk), self.data_dir.clone());
        let driver = self.context.driver.clone();
        self.runtime.spawn_blocking(move || match work(files, disk.as_ref(), &data_dir) {
            Ok(result) => {
                let _closed = driver.blocking_send(Message::Input(Input::StrangerSettled { intent, result }));
            }
            // The intent stays open until the next start, which looks again.
            Err(error) => tracing::error!(%handle, %error, "files of no shape could not be moved or removed"),
        });
        Outcome::Done
    }

    fn trash(&self, sid: Sid, handle: Handle, intent: IntentId, keep: bool) -> Outcome {
        let removal = Removal {
            sid,
            handle,
            intent,
            keep,
            files: self.files(handle),
            disk: Arc::clone(&self.disk),
            data_dir: self.data_dir.clone(),
            driver: self.context.driver.clone(),
            service: self.service.clone(),
        };
        self.runtime.spawn(removal.run());
        Outcome::Done
    }

    fn release(&mut self, oid: Oid) -> Outcome {
        let Some(name) = self.table_names.get(&oid).cloned() else { return Outcome::Done };
        let (context, tables) = (Arc::clone(&self.context), Arc::clone(&self.tables));
        self.runtime.spawn(async move {
            let in_use = || tables.lock().unwrap_or_else(PoisonError::into_inner).contains(&oid);
            if let Err(error) = context.publishing.release(oid, &name, in_use).await {
                tracing::warn!(%oid, %error, "a table without shapes stays in the publication");
            }
        });
        Outcome::Done
    }
}

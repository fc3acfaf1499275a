//! The driver thread: one loop around the core. It waits for nobody but its inputs.

mod moves;
mod requests;
mod upkeep;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use crate::domain::{EventId, Generation, Handle, Incarnation, Lsn, Sid, WireRelation};
use crate::engine::{Commit, Input, Refusal};
use crate::events::{self, DrainCause, Event, StopCause, StreamEvent};
use crate::filter::subquery::Values;
use crate::journal::{
    ArchiveSegment, Durability, Entry, JournalError, JournalHandle, JournalThread, Notice, Reserve,
};
use crate::ownership::{FsLock, NotHeld};
use crate::replication::{StreamItem, Transaction};
use crate::runtime::archiver::{Archived, Archiver};
use crate::runtime::clock;
use crate::runtime::core::{Core, Persist};
use crate::runtime::executor::{Executor, Outcome};
use crate::runtime::handle::{Request, Status};
use crate::runtime::keeper::Keeper;
use crate::runtime::settings::{HELD_BYTES_MAX, QUEUED_DELIVERIES_MAX};
use crate::runtime::story;
use crate::runtime::stream::Batch;
use crate::runtime::subquery::{Members, Moved, Resumed};
use crate::runtime::writers::Report;
use crate::shape_log::{ShapeLogError, StorageFault};
use crate::state::{Life, OwnerPhase, StreamPhase};

const TICK: Duration = Duration::from_millis(50);
/// A drain that has not ended by itself after this long is cut short: what is lost comes again.
const DRAIN_MAX: Duration = Duration::from_secs(10);

/// What other tasks send to the driver.
#[derive(Debug)]
pub enum Message {
    Input(Input),
    Drain(DrainCause),
    /// The initial rows of an inner query. Comes before the input that they are complete.
    Loaded {
        sid: Sid,
        members: Box<Members>,
    },
    /// What the inner queries of a shape give in its snapshot. Comes before the input that it is open.
    Given {
        sid: Sid,
        given: Vec<BTreeSet<Values>>,
    },
    /// Rows that move in; none where they cannot be had.
    Moved {
        sid: Sid,
        id: u64,
        moved: Option<Moved>,
    },
}

/// Why the process must stop. What was not acknowledged comes again from Postgres.
#[derive(Debug, thiserror::Error)]
pub enum Fatal {
    #[error("the journal failed: {0}")]
    Journal(JournalError),
    #[error("a sync of the shape logs failed: {0}; what the page cache holds can no longer be trusted")]
    Sync(StorageFault),
    #[error("the data directory is no longer owned: {0}")]
    OwnershipLost(NotHeld),
    #[error("the journal thread has ended")]
    JournalGone,
    #[error("shape {handle} cannot be restored: {error}; nothing was changed")]
    Restore { handle: Handle, error: ShapeLogError },
    #[error("the engine was told that ownership is lost")]
    Aborted,
}

/// The queues that the driver serves.
#[derive(Debug)]
pub struct Queues {
    pub messages: mpsc::Receiver<Message>,
    pub requests: mpsc::Receiver<Request>,
    pub batches: mpsc::Receiver<Batch>,
    /// At most one flush report and one exit for each writer, and one answer to each audit, wait here.
    pub reports: mpsc::UnboundedReceiver<Report>,
    /// At most one notice for each group commit.
    pub notices: mpsc::UnboundedReceiver<Notice>,
    /// At most one for each checkpoint.
    pub archived: mpsc::UnboundedReceiver<Archived>,
}

/// The driver.
pub struct Driver {
    core: Core,
    executor: Executor,
    journal: JournalHandle,
    journal_thread: JournalThread,
    lock: FsLock,
    queues: Queues,
    keeper: Keeper,
    archiver: Archiver,
    reserve: Reserve,
    state: Loop,
}

/// What the loop remembers from turn to turn.
#[derive(Debug)]
struct Loop {
    /// Events of this turn that the journal has not been handed yet.
    entries: Vec<Entry>,
    sync: bool,
    progress: Lsn,
    /// Segments to remove once the event that says so is durable.
    retired: Vec<(EventId, ArchiveSegment)>,
    audit: Option<Audit>,
    drain_until: Option<Instant>,
    checked: Checked,
    /// What inner queries gave in snapshots that are being opened.
    given: BTreeMap<Sid, Vec<BTreeSet<Values>>>,
    /// Since when a shape waits for the stream, or since it was last helped on.
    nudged: Instant,
}

#[derive(Debug)]
struct Audit {
    asked: EventId,
    parts_missing: usize,
    live: Vec<(Sid, Incarnation)>,
}

#[derive(Debug)]
struct Checked {
    lock: Instant,
    reserve: Instant,
    audit: Instant,
    projections: Instant,
    moves: Instant,
}

impl Driver {
    #[must_use]
    pub fn new(
        core: Core,
        executor: Executor,
        (journal, journal_thread): (JournalHandle, JournalThread),
        lock: FsLock,
        queues: Queues,
        (keeper, archiver, reserve): (Keeper, Archiver, Reserve),
    ) -> Driver {
        let now = Instant::now();
        let state = Loop {
            entries: Vec::new(),
            sync: false,
            progress: Lsn(0),
            retired: Vec::new(),
            audit: None,
            drain_until: None,
            checked: Checked { lock: now, reserve: now, audit: now, projections: now, moves: now },
            given: BTreeMap::new(),
            nudged: now,
        };
        Driver { core, executor, journal, journal_thread, lock, queues, keeper, archiver, reserve, state }
    }

    /// Runs until the end of the process's ownership; then gives the lock back.
    ///
    /// # Errors
    /// [`Fatal`]: the process must stop and change nothing more.
    pub async fn run(mut self, boot: Input) -> Result<(), Fatal> {
        let engine = self.core.engine();
        let from = engine.projections().flush_tracker.candidate();
        self.executor.resumed = Resumed::of(engine.state(), from);
        self.executor.router.subqueries.begin_at(from);
        self.input(boot);
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            if self.settle()? {
                break;
            }
            let read_stream = self.takes_more();
            tokio::select! {
                biased;
                Some(notice) = self.queues.notices.recv() => self.notice(notice)?,
                Some(report) = self.queues.reports.recv() => self.report(report)?,
                Some(archived) = self.queues.archived.recv() => self.archived(archived)?,
                Some(message) = self.queues.messages.recv() => self.message(message),
                Some(request) = self.queues.requests.recv() => self.request(request),
                Some(batch) = self.queues.batches.recv(), if read_stream => self.batch(batch),
                _ = tick.tick() => {
                    if self.tick()? {
                        break;
                    }
                }
            }
        }
        self.close()
    }

    /// Whether there is room for more of the stream. Where there is not, Postgres keeps it.
    fn takes_more(&self) -> bool {
        let held = self.executor.bodies.bytes() < HELD_BYTES_MAX as u64;
        held && self.executor.writers.queued() < QUEUED_DELIVERIES_MAX
    }

    /// Persists what was decided, then performs what may be performed. Whether that was the end.
    fn settle(&mut self) -> Result<bool, Fatal> {
        loop {
            // Before the deliveries: what waited comes before what was decided after it.
            self.follow_moves();
            self.persist()?;
            while let Some(effect) = self.core.next_effect() {
                match self.executor.perform(effect) {
                    Outcome::Done => {}
                    Outcome::Answer(input) => self.input(input),
                    Outcome::Exit => {
                        self.persist()?;
                        return Ok(true);
                    }
                    Outcome::Refuse { handle, error } => return Err(Fatal::Restore { handle, error }),
                    Outcome::Abort => return Err(Fatal::Aborted),
                }
            }
            self.follow_moves();
            if self.state.entries.is_empty() {
                break;
            }
        }
        // Everything received has been handed out: readers may be told so.
        let received = self.core.engine().received();
        if self.core.is_settled() && received > self.state.progress {
            self.state.progress = received;
            self.executor.writers.progress(received);
        }
        Ok(false)
    }

    fn persist(&mut self) -> Result<(), Fatal> {
        if self.state.entries.is_empty() {
            return Ok(());
        }
        let entries = std::mem::take(&mut self.state.entries);
        let durability =
            if std::mem::take(&mut self.state.sync) { Durability::Now } else { Durability::Lazy };
        self.journal.append(entries, durability).map_err(|_| Fatal::JournalGone)
    }

    /// Takes an input. A refusal is no error: it says that the world has moved on meanwhile.
    fn input(&mut self, input: Input) {
        match self.core.input(clock::now(), input) {
            Ok(persist) => self.follow(persist),
            Err(refusal) => tracing::debug!(%refusal, "an input was refused"),
        }
    }

    /// Queues a step's events for the journal, and lets the router follow them at once: the next
    /// transaction must be matched against the shapes as they are now.
    fn follow(&mut self, persist: Persist) {
        for recorded in &persist.events {
            story::tell(recorded);
            self.follow_shape(recorded);
        }
        self.state.entries.extend(
            persist.events.iter().map(|recorded| Entry { id: recorded.id, bytes: events::encode(recorded) }),
        );
        self.state.sync |= persist.sync;
    }

    fn notice(&mut self, notice: Notice) -> Result<(), Fatal> {
        match notice {
            Notice::Durable(upto) => {
                self.core.durable(upto);
                self.remove_retired(upto);
            }
            Notice::Checkpointed(upto) => {
                if let Some(event) = self.keeper.checkpointed(upto) {
                    let persist = self.core.note(clock::now(), event);
                    self.follow(persist);
                }
                self.archiver.seal(self.lock.epoch(), upto);
            }
            Notice::Trimmed(_) => {}
            Notice::Failed(error) => return Err(Fatal::Journal(error)),
        }
        Ok(())
    }

    fn report(&mut self, report: Report) -> Result<(), Fatal> {
        match report {
            Report::Input(input) => {
                let settled: Vec<Sid> = match &input {
                    Input::WriterExited { sid, .. } => vec![*sid],
                    Input::Flushed { reports } => {
                        let lags =
                            |sid: &Sid| self.executor.shapes.get(sid).is_some_and(|shape| shape.is_lagging());
                        reports.iter().map(|report| report.sid).filter(lags).collect()
                    }
                    _ => Vec::new(),
                };
                let flushed: Vec<Sid> = match &input {
                    Input::Flushed { reports } => reports.iter().map(|report| report.sid).collect(),
                    _ => Vec::new(),
                };
                self.input(input);
                settled.into_iter().for_each(|sid| self.catch_up(sid));
                flushed.into_iter().for_each(|sid| self.follow_flush(sid));
            }
            Report::Live { asked, live } => {
                let complete =
                    self.state.audit.as_mut().filter(|audit| audit.asked == asked).is_some_and(|audit| {
                        audit.live.extend(live);
                        audit.parts_missing -= 1;
                        audit.parts_missing == 0
                    });
                if complete && let Some(audit) = self.state.audit.take() {
                    self.input(Input::LiveWriters { asked: audit.asked, live: audit.live });
                }
            }
            Report::SyncFailed(fault) => return Err(Fatal::Sync(fault)),
        }
        Ok(())
    }

    /// A shape that owes nothing is as far as its thread: whatever comes next is handed to a new writer
    /// before the mark of the thread passes it. A shape that is over owes nothing and lacks it all the
    /// same, and readers may not have been told yet.
    fn catch_up(&self, sid: Sid) {
        let settled = self
            .core
            .engine()
            .state()
            .shape(sid)
            .is_some_and(|shape| shape.life < Life::Invalidated && shape.pending.is_empty());
        if settled && let Some(shape) = self.executor.shapes.get(&sid) {
            shape.caught_up();
        }
    }

    fn message(&mut self, message: Message) {
        match message {
            Message::Input(input) => {
                let opened = match &input {
                    Input::SnapshotOpened { sid, .. } => Some(*sid),
                    _ => None,
                };
                self.input(input);
                if let Some(sid) = opened {
                    self.catch_up(sid);
                }
            }
            Message::Loaded { sid, members } => self.executor.router.subqueries.loaded(sid, *members),
            Message::Given { sid, given } => drop(self.state.given.insert(sid, given)),
            Message::Moved { sid, id, moved } => self.executor.router.subqueries.moved(sid, id, moved),
            Message::Drain(cause) => {
                self.executor.service.set_status(Status::Draining);
                self.state.drain_until = Some(Instant::now() + DRAIN_MAX);
                self.input(Input::Drain { cause });
            }
        }
    }

    fn batch(&mut self, batch: Batch) {
        match batch {
            Batch::Items { generation, items } => {
                for item in items {
                    match item {
                        StreamItem::Transaction(txn) => self.transaction(generation, txn),
                        StreamItem::Relation(relation) => self.relation(&relation),
                        StreamItem::Keepalive { wal_end, .. } => {
                            self.executor.router.subqueries.reach(wal_end);
                            self.input(Input::Keepalive { generation, wal_end });
                        }
                    }
                }
            }
            Batch::Stopped { generation, cause } => self.input(Input::StreamStopped { generation, cause }),
        }
    }

    fn transaction(&mut self, generation: Generation, txn: Arc<Transaction>) {
        // The rest of a batch of a stream that has been ended: it comes again, and is matched then.
        let state = self.core.engine().state();
        let current = state.stream.generation == generation && state.stream.phase == StreamPhase::Streaming;
        if !current || state.owner.phase != OwnerPhase::Active {
            return;
        }
        let routing = match self.executor.router.route(Arc::clone(&txn)) {
            Ok(routing) => routing,
            Err(error) => {
                tracing::error!(%error, "a transaction could not be read back; the stream is started again");
                self.input(Input::StreamStopped { generation, cause: StopCause::Spill });
                return;
            }
        };
        let commit = Commit {
            generation,
            lsn: txn.lsn,
            xid: txn.xid,
            committed_at: txn.committed_at,
            changes: txn.changes,
            bytes: txn.bytes,
            set: routing.set,
            tables: txn.relations.clone(),
            truncated: txn.truncated.clone(),
            old_row_missing: routing.old_row_missing,
        };
        match self.core.input(clock::now(), Input::Commit(commit)) {
            Ok(persist) => {
                // The body is in place before the delivery that refers to it is performed.
                let body = Arc::new(routing.routed);
                let mut noted = None;
                for recorded in &persist.events {
                    if let Event::Stream(
                        StreamEvent::TxnRouted { seq, set, .. } | StreamEvent::TxnRedelivered { seq, set, .. },
                    ) = &recorded.event
                        // On a new connection: what it was decided to be is still here.
                        && self.executor.bodies.get(*seq).is_none()
                    {
                        self.executor.bodies.insert(*seq, Arc::clone(&body));
                        noted = Some((*seq, set.clone()));
                    }
                }
                self.follow(persist);
                if let Some((seq, set)) = noted {
                    self.executor.router.subqueries.note(seq, &body, &set);
                }
            }
            // The rest of a batch of a stream that has been ended.
            Err(refusal @ (Refusal::StaleGeneration | Refusal::NotActive)) => {
                tracing::debug!(%refusal, "a transaction was not taken");
            }
            Err(refusal) => tracing::error!(%refusal, "a transaction was refused"),
        }
    }

    fn relation(&mut self, relation: &Arc<WireRelation>) {
        let affected = self.executor.router.announce(relation);
        self.executor.inspector.forget(&relation.name);
        let (oid, schema) = (relation.oid, relation.schema_hash());
        self.input(Input::RelationAnnounced { oid, schema, affected });
    }

    /// The end of an ownership: a last checkpoint, the journal closed, the lock released.
    fn close(self) -> Result<(), Fatal> {
        let Driver { core, executor, journal, journal_thread, lock, mut queues, archiver, .. } = self;
        // Waits for the writer threads.
        drop(executor);
        let state = core.engine().state();
        journal.checkpoint(state.last, state.to_bytes()).map_err(|_| Fatal::JournalGone)?;
        // The thread ends, after a last sync, when its last handle is dropped.
        drop(journal);
        journal_thread.join();
        // Reads the journal's store: it ends before the lock is given back.
        drop(archiver);
        while let Ok(notice) = queues.notices.try_recv() {
            if let Notice::Failed(error) = notice {
                return Err(Fatal::Journal(error));
            }
        }
        if let Err(error) = lock.release() {
            tracing::error!(%error, "the lock was not released in order");
        }
        Ok(())
    }
}

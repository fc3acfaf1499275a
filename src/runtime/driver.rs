//! The driver thread: one loop around the core. It waits for nobody but its inputs.

mod matching;
mod moves;
mod observe;
mod requests;
mod tables;
mod upkeep;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use observe::Observer;

use crate::domain::{EventId, Handle, Incarnation, Lsn, Sid, WireRelation};
use crate::engine::Input;
use crate::events::{self, DrainCause, Event, FaultClass, ShapeEvent};
use crate::filter::subquery::Values;
use crate::journal::{
    ArchiveSegment, Durability, Entry, JournalError, JournalHandle, JournalThread, Notice, Reserve,
};
use crate::ownership::{FsLock, NotHeld};
use crate::runtime::archiver::{Archived, Archiver};
use crate::runtime::clock;
use crate::runtime::core::{Core, Persist, Upcoming};
use crate::runtime::executor::{Executor, Outcome};
use crate::runtime::handle::{Request, Status};
use crate::runtime::keeper::Keeper;
use crate::runtime::observed::{self, Round};
use crate::runtime::publishing::Below;
use crate::runtime::quarantine::Found;
use crate::runtime::reconciler::CatalogLook;
use crate::runtime::restoring::Loaded;
use crate::runtime::settings::{HELD_BYTES_MAX, Operation, QUEUED_DELIVERIES_MAX};
use crate::runtime::story;
use crate::runtime::stream::Batch;
use crate::runtime::subquery::{Members, Moved, Resumed};
use crate::runtime::watchdog::Pulse;
use crate::runtime::writers::Report;
use crate::shape_log::{ShapeLogError, StorageFault};
use crate::state::Life;
use matching::Held;

const TICK: Duration = Duration::from_millis(50);
/// A drain that has not ended by itself after this long is cut short: what is lost comes again.
const DRAIN_MAX: Duration = Duration::from_secs(10);

/// What other tasks send to the driver.
#[derive(Debug)]
pub enum Message {
    Input(Input),
    Drain(DrainCause),
    /// What is below a partitioned table.
    Below(Below),
    /// What the catalog says about the tables of shapes.
    Catalog(Box<CatalogLook>),
    /// The directories of the shapes, as they were found.
    Surveyed(Found),
    /// A compacted generation of a log has been made, or none.
    LogPrepared {
        sid: Sid,
        incarnation: Incarnation,
        done: bool,
    },
    /// Shapes that were read from their files after the start.
    Restored {
        part: usize,
        loaded: Vec<Loaded>,
    },
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
    #[error("the journal failed: {0}; see to the disk and start again: nothing acknowledged is lost")]
    Journal(JournalError),
    #[error(
        "a sync of the shape logs failed: {0}; what the page cache holds can no longer be \
             trusted; see to the disk and start again: nothing acknowledged is lost"
    )]
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
    observer: Observer,
    /// Those who look at the journal from outside.
    watched: Option<observed::Observer>,
    held: Held,
    pulse: Arc<Pulse>,
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
    /// Evidence that the directory is not ours any more: nothing further is decided.
    lost: Option<NotHeld>,
    check_interval: Duration,
    /// A comparison of views with the fold that is under way.
    round: Option<Round>,
    /// What inner queries gave in snapshots that are being opened.
    given: BTreeMap<Sid, Vec<BTreeSet<Values>>>,
    /// Since when a shape waits for the stream, or since it was last helped on.
    nudged: Instant,
    /// A shape that cannot be restored, and about which nothing may be done.
    unrestored: Option<(Handle, ShapeLogError)>,
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
    strangers: Instant,
    moves: Instant,
    queries: Instant,
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
        (operation, watched, check_interval, pulse): (
            Operation,
            Option<observed::Observer>,
            Duration,
            Arc<Pulse>,
        ),
    ) -> Driver {
        let now = Instant::now();
        let state = Loop {
            entries: Vec::new(),
            sync: false,
            progress: Lsn(0),
            retired: Vec::new(),
            audit: None,
            drain_until: None,
            checked: Checked {
                lock: now,
                reserve: now,
                audit: now,
                projections: now,
                strangers: now,
                moves: now,
                queries: now,
            },
            lost: None,
            check_interval,
            round: None,
            given: BTreeMap::new(),
            nudged: now,
            unrestored: None,
        };
        let observer = Observer::new(operation);
        let held = Held::new();
        Driver {
            core,
            executor,
            journal,
            journal_thread,
            lock,
            queues,
            keeper,
            archiver,
            reserve,
            observer,
            watched,
            held,
            pulse,
            state,
        }
    }

    /// Runs until the end of the process's ownership; then gives the lock back.
    ///
    /// # Errors
    /// [`Fatal`]: the process must stop and change nothing more. A directory that is lost while the
    /// process is ending anyway is none: what is pending stays with Postgres.
    pub async fn run(mut self, boot: Input) -> Result<(), Fatal> {
        let ended = self.serve(boot).await;
        match ended {
            Ok(()) => self.close(),
            Err(Fatal::OwnershipLost(lost)) if self.state.drain_until.is_some() => {
                tracing::error!(%lost, "the directory is gone; the drain ends here");
                Ok(())
            }
            Err(fatal) => Err(fatal),
        }
    }

    async fn serve(&mut self, boot: Input) -> Result<(), Fatal> {
        let engine = self.core.engine();
        let from = engine.projections().flush_tracker.candidate();
        self.executor.resumed = Resumed::of(engine.state());
        self.executor.router.subqueries.begin_at(from);
        self.input(boot);
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            self.pulse.beat();
            if self.settle()? {
                break;
            }
            let read_stream = self.takes_more() && !self.held.is_waiting();
            let take_requests = self.held.takes_requests();
            tokio::select! {
                biased;
                // First: what is due now and then is due however much else there is.
                _ = tick.tick() => {
                    if self.tick()? {
                        break;
                    }
                }
                Some(notice) = self.queues.notices.recv() => self.notice(notice)?,
                Some(report) = self.queues.reports.recv() => self.report(report)?,
                Some(archived) = self.queues.archived.recv() => self.archived(archived)?,
                Some(message) = self.queues.messages.recv() => self.message(message),
                Some(answers) = self.held.answered() => self.answers(answers),
                Some(request) = self.queues.requests.recv(), if take_requests => self.request(request),
                Some(batch) = self.queues.batches.recv(), if read_stream => self.batch(batch),
            }
        }
        Ok(())
    }

    /// Whether there is room for more of the stream. Where there is not, Postgres keeps it.
    fn takes_more(&self) -> bool {
        let held = self.executor.bodies.bytes() < HELD_BYTES_MAX as u64;
        held && self.executor.writers.queued() < QUEUED_DELIVERIES_MAX
    }

    /// Persists what was decided, then performs what may be performed. Whether that was the end.
    fn settle(&mut self) -> Result<bool, Fatal> {
        loop {
            self.require_directory()?;
            // Before the deliveries: what waited comes before what was decided after it.
            self.follow_moves();
            self.persist()?;
            if let Some((handle, error)) = self.state.unrestored.take() {
                return Err(Fatal::Restore { handle, error });
            }
            while self.may_perform()
                && let Some(effect) = self.core.next_effect()
            {
                self.pulse.beat();
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

    /// Whether the next effect may be performed: while shapes are being restored, none but the end, since
    /// what was decided after that relies on them.
    fn may_perform(&mut self) -> bool {
        match self.core.upcoming() {
            Upcoming::Nothing => return false,
            Upcoming::Abort => return true,
            Upcoming::Restore => {}
            Upcoming::Other if self.executor.restoring.is_asked() => self.executor.begin_restoring(),
            Upcoming::Other => {}
        }
        !self.executor.restoring.is_running()
    }

    /// Makes known what was read of shapes that live still.
    fn restored(&mut self, part: usize, loaded: Vec<Loaded>) {
        for (sid, handle, read) in self.executor.restoring.take(part, loaded) {
            let lives =
                self.core.engine().state().shape(sid).is_some_and(|shape| shape.life < Life::Invalidated);
            if !lives {
                continue;
            }
            match self.executor.restore(sid, handle, read) {
                Outcome::Answer(input) => self.input(input),
                Outcome::Refuse { handle, error } => {
                    self.state.unrestored.get_or_insert((handle, error));
                }
                Outcome::Done | Outcome::Exit | Outcome::Abort => {}
            }
        }
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
    ///
    /// A file that is not there is first of all a reason to ask whose directory this is: where it has been
    /// taken away, no shape is to blame (O6).
    fn input(&mut self, input: Input) {
        let vanished = matches!(&input, Input::StorageFault { class: FaultClass::Vanished, .. });
        if vanished {
            self.look_at_lock();
        }
        if self.state.lost.is_some() {
            return;
        }
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
            observe::note(self.executor.service.metrics(), recorded);
            if let Event::Shape(ShapeEvent::Unrouted { sid }) = &recorded.event {
                self.executor.unroute(*sid);
            }
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
                let switched = match &input {
                    Input::LogSwitched { sid, .. } => Some(*sid),
                    _ => None,
                };
                let flushed: Vec<Sid> = match &input {
                    Input::Flushed { reports } => reports.iter().map(|report| report.sid).collect(),
                    _ => Vec::new(),
                };
                self.input(input);
                settled.into_iter().for_each(|sid| self.catch_up(sid));
                flushed.into_iter().for_each(|sid| self.follow_flush(sid));
                if let Some(sid) = switched {
                    self.executor.compaction_over(sid);
                }
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
            Report::CompactionDue { sid, incarnation } => self.executor.compaction_due(sid, incarnation),
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
            Message::Below(below) => self.below(below),
            Message::Catalog(look) => self.catalog(&look),
            Message::Surveyed(found) => self.surveyed(found),
            Message::LogPrepared { sid, incarnation, done } => self.log_prepared(sid, incarnation, done),
            Message::Restored { part, loaded } => self.restored(part, loaded),
            Message::Loaded { sid, members } => self.executor.router.subqueries.loaded(sid, *members),
            Message::Given { sid, given } => drop(self.state.given.insert(sid, given)),
            Message::Moved { sid, id, moved } => self.executor.router.subqueries.moved(sid, id, moved),
            Message::Drain(cause) => {
                self.executor.service.set_status(Status::Draining);
                self.state.drain_until = Some(Instant::now() + DRAIN_MAX);
                self.note_queries();
                self.input(Input::Drain { cause });
            }
        }
    }

    fn batch(&mut self, batch: Batch) {
        match batch {
            Batch::Items { generation, items } => self.items(generation, items),
            Batch::Stopped { generation, cause } => self.input(Input::StreamStopped { generation, cause }),
        }
    }

    fn relation(&mut self, relation: &Arc<WireRelation>) {
        let affected = self.executor.router.announce(relation);
        self.executor.inspector.forget(&relation.name);
        let (oid, schema) = (relation.oid, self.schema_of(relation));
        self.input(Input::RelationAnnounced { oid, schema, affected });
    }

    /// The end of an ownership: a last checkpoint, the journal closed, the lock released.
    fn close(self) -> Result<(), Fatal> {
        let Driver { core, executor, journal, journal_thread, lock, mut queues, archiver, watched, .. } =
            self;
        executor.disk.leave_untidy();
        // Waits for the writer threads.
        drop(executor);
        let state = core.engine().state();
        journal.checkpoint(state.last, state.to_bytes()).map_err(|_| Fatal::JournalGone)?;
        // The thread ends, after a last sync, when its last handle is dropped.
        drop(journal);
        journal_thread.join();
        // Reads the journal's store: it ends before the lock is given back.
        drop(archiver);
        drop(watched);
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

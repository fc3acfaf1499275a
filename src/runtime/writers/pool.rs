//! The writers of one thread, without the thread: the simulator drives the same code.
//!
//! Supervision: an incarnation only ever runs inside [`guarded`], which turns a panic or a fault into
//! an exit, and only [`WriterPool::end`] removes one, which reports it. So every end yields a
//! `WriterExited`, and none is reported by the writer itself.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::domain::{Incarnation, Seq, Sid, Timestamp};
use crate::engine::{Compaction, FlushReport, Input};
use crate::events::{ExitCause, IntentId};
use crate::replication::ReplicationError;
use crate::runtime::faults;
use crate::runtime::handle::LiveShape;
use crate::runtime::router::{RoutedTransaction, Wants};
use crate::runtime::writers::classes::{ClassId, Classes};
use crate::runtime::writers::{Command, Report};
use crate::shape_log::{
    CompactionPolicy, Disk, LogWriter, OpenFiles, Prepared, ShapeFiles, ShapeLogError, SharedEncoder, Stage,
    StorageFault, Switched, Verify, flush_all, is_compactable,
};

/// Logs that are flushed together, each with its file open until it is synced; fewer where the process
/// may have few descriptors.
const FLUSHED_AT_ONCE_MAX: usize = 2_048;
/// With more writers than this in one thread, buffers are given back after each flush.
const BUFFERED_WRITERS_MAX: usize = 2_048;

/// Settings of the writers.
#[derive(Clone, Debug)]
pub struct PoolSettings {
    pub chunk_bytes: u64,
    /// A writer without work is put to sleep after this long.
    pub idle_after: Duration,
    /// When a log is to be rewritten; never, where there is none.
    pub compaction: Option<CompactionPolicy>,
}

/// The writers of the shapes of one thread.
#[derive(Debug)]
pub struct WriterPool {
    settings: PoolSettings,
    disk: Arc<dyn Disk>,
    /// Boxed, since those that are flushed are taken out meanwhile.
    writers: BTreeMap<Sid, Box<Incarnated>>,
    /// Writers that have taken in something which they have not reported as durable. Invariant: those
    /// with `taken > reported`.
    owing: BTreeSet<Sid>,
    /// Writers whose readers are shown nothing before it is durable, and wait for it.
    behind: BTreeSet<Sid>,
    /// Writers that hold their file open until they are flushed, at least: at most
    /// `flushed_at_once`.
    holding: usize,
    flushed_at_once: usize,
    /// How rows are encoded: most shapes share that with others.
    classes: Classes,
    /// Shared with every shape of this thread: see [`LiveShape::published`].
    published: Arc<AtomicU64>,
    reports: Vec<Report>,
    /// Transactions in whose middle the writer of a shape is to panic, its successors counted in.
    #[cfg(feature = "test-hooks")]
    sabotaged: BTreeMap<Sid, u32>,
}

/// One writer incarnation.
#[derive(Debug)]
struct Incarnated {
    incarnation: Incarnation,
    shape: Arc<LiveShape>,
    class: ClassId,
    log: LogWriter,
    /// The newest transaction that it has taken in, and the newest that it has reported as durable.
    taken: Seq,
    reported: Seq,
    active_at: Timestamp,
    idle_told: bool,
    /// The log is not looked at for compaction before it has this size.
    look_at: u64,
}

/// Why an incarnation could not go on.
#[derive(Debug)]
enum Failure {
    Panicked,
    ShapeLog(ShapeLogError),
    Transaction(ReplicationError),
    /// A bug: a transaction was handed out before it was decided what is wanted of it.
    Undecided,
}

impl From<ShapeLogError> for Failure {
    fn from(error: ShapeLogError) -> Failure {
        Failure::ShapeLog(error)
    }
}

impl From<ReplicationError> for Failure {
    fn from(error: ReplicationError) -> Failure {
        Failure::Transaction(error)
    }
}

impl WriterPool {
    #[must_use]
    pub fn new(settings: PoolSettings, disk: Arc<dyn Disk>, published: Arc<AtomicU64>) -> WriterPool {
        // Half of the files that may be open, whoever the others are used by.
        let files = disk.open_files().map_or(usize::MAX, OpenFiles::max);
        WriterPool {
            settings,
            disk,
            writers: BTreeMap::new(),
            owing: BTreeSet::new(),
            behind: BTreeSet::new(),
            holding: 0,
            classes: Classes::default(),
            flushed_at_once: (files / 2).clamp(1, FLUSHED_AT_ONCE_MAX),
            published,
            reports: Vec::new(),
            #[cfg(feature = "test-hooks")]
            sabotaged: BTreeMap::new(),
        }
    }

    /// Performs one command.
    pub fn perform(&mut self, now: Timestamp, command: Command) {
        match command {
            Command::Start { sid, incarnation, shape, files, replay, complete, owes_from } => {
                self.start(now, (sid, incarnation), &shape, &files);
                for (seq, routed) in replay {
                    self.deliver(now, (sid, incarnation), seq, (&routed, false), owes_from);
                }
                if complete && self.writers.contains_key(&sid) {
                    shape.set_lagging(false);
                }
            }
            Command::Deliver { seq, routed, to } => {
                let shared = to.len() > 1;
                for writer in to {
                    self.deliver(now, writer, seq, (&routed, shared), None);
                    self.bound_files();
                }
            }
            Command::Run { sid, incarnation, run, owes_from } => {
                for (seq, routed) in run {
                    self.deliver(now, (sid, incarnation), seq, (&routed, false), owes_from);
                }
            }
            Command::Stop { sid, incarnation, cause } => self.stop(sid, incarnation, cause),
            Command::Switch { sid, incarnation, intent, files, prepared } => {
                self.switch((sid, incarnation), intent, &files, *prepared);
            }
            Command::Progress(lsn) => {
                // After the views of everything before it: a reader takes this mark first.
                self.published.fetch_max(lsn.0, Ordering::AcqRel);
            }
            Command::Audit { asked } => {
                let live = self.writers.iter().map(|(sid, writer)| (*sid, writer.incarnation)).collect();
                self.reports.push(Report::Live { asked, live });
            }
            #[cfg(feature = "test-hooks")]
            Command::Sabotage { sid, times } => {
                self.sabotaged.insert(sid, times);
            }
        }
        self.bound_files();
    }

    /// Flushes where too many files are held open for it.
    fn bound_files(&mut self) {
        if self.holding >= self.flushed_at_once {
            self.flush();
        }
    }

    /// What there is to tell since the last time.
    pub fn take_reports(&mut self) -> Vec<Report> {
        std::mem::take(&mut self.reports)
    }

    /// Something waits to be flushed or to be reported as flushed.
    #[must_use]
    pub fn is_dirty(&self) -> bool {
        !self.owing.is_empty()
    }

    /// Logs that wait for that.
    #[must_use]
    pub fn dirty(&self) -> usize {
        self.owing.len()
    }

    /// Makes everything that was taken in durable, with one barrier where there is much, and reports
    /// what is.
    pub fn flush(&mut self) {
        self.behind.clear();
        let owing: Vec<Sid> = std::mem::take(&mut self.owing).into_iter().collect();
        self.holding = 0;
        for sids in owing.chunks(self.flushed_at_once) {
            self.flush_some(sids);
        }
    }

    /// Logs whose readers wait for the disk.
    #[must_use]
    pub fn behind(&self) -> usize {
        self.behind.len()
    }

    /// As [`WriterPool::flush`], only what readers wait for.
    pub fn flush_behind(&mut self) {
        let behind: Vec<Sid> = std::mem::take(&mut self.behind).into_iter().collect();
        for sid in &behind {
            self.owing.remove(sid);
        }
        for sids in behind.chunks(self.flushed_at_once) {
            self.flush_some(sids);
        }
    }

    /// Flushes the writers of these shapes. What that costs does not depend on how many others there are.
    fn flush_some(&mut self, sids: &[Sid]) {
        let many = self.writers.len() > BUFFERED_WRITERS_MAX;
        let mut dirty: Vec<(Sid, Box<Incarnated>)> =
            sids.iter().filter_map(|sid| self.writers.remove_entry(sid)).collect();
        let results = flush_all(self.disk.as_ref(), dirty.iter_mut().map(|(_, writer)| &mut writer.log));
        let sids: Vec<Sid> = dirty.iter().map(|(sid, _)| *sid).collect();
        self.writers.extend(dirty);
        let mut reports = Vec::with_capacity(sids.len());
        for (sid, result) in sids.into_iter().zip(results) {
            match result {
                Ok(_) => {
                    if let Some(writer) = self.writers.get_mut(&sid) {
                        writer.reported = writer.taken;
                        let (incarnation, upto) = (writer.incarnation, writer.taken);
                        reports.push(FlushReport { sid, incarnation, upto });
                        if self.settings.compaction.is_some_and(|policy| writer.is_to_be_compacted(policy)) {
                            self.reports.push(Report::CompactionDue { sid, incarnation });
                        }
                        if many {
                            writer.log.release();
                        }
                    }
                }
                Err(fault) => self.fail(sid, Failure::ShapeLog(fault.into())),
            }
        }
        if !reports.is_empty() {
            self.reports.push(Report::Input(Input::Flushed { reports }));
        }
    }

    /// Tells which writers have had nothing to do for long.
    pub fn tell_idle(&mut self, now: Timestamp) {
        for (sid, writer) in &mut self.writers {
            let settled = writer.taken == writer.reported;
            if settled && !writer.idle_told && now.since(writer.active_at) >= self.settings.idle_after {
                writer.idle_told = true;
                let incarnation = writer.incarnation;
                self.reports.push(Report::Input(Input::WriterIdle { sid: *sid, incarnation }));
            }
        }
    }

    fn start(
        &mut self,
        now: Timestamp,
        (sid, incarnation): (Sid, Incarnation),
        shape: &Arc<LiveShape>,
        files: &ShapeFiles,
    ) {
        shape.set_lagging(true);
        let chunk_bytes = self.settings.chunk_bytes;
        let recovered = guarded(|| {
            let reader = Arc::clone(&shape.reader);
            let definition = &shape.definition;
            Ok(LogWriter::recover(files, definition, reader, incarnation, chunk_bytes, Verify::Tail)?)
        });
        let (log, recovered) = match recovered {
            Ok(recovered) => recovered,
            Err(failure) => {
                self.report_failure(sid, &failure);
                self.report_exit(sid, incarnation, failure.cause());
                return;
            }
        };
        self.reports.push(Report::Input(Input::WriterReady {
            sid,
            incarnation,
            recovered: recovered.last.tx(),
            trimmed_bytes: recovered.trimmed_bytes,
        }));
        self.writers.insert(
            sid,
            Box::new(Incarnated {
                incarnation,
                shape: Arc::clone(shape),
                class: self.classes.enter(&shape.definition),
                log,
                taken: Seq(0),
                reported: Seq(0),
                active_at: now,
                idle_told: false,
                look_at: 0,
            }),
        );
    }

    fn deliver(
        &mut self,
        now: Timestamp,
        (sid, incarnation): (Sid, Incarnation),
        seq: Seq,
        (routed, shared): (&RoutedTransaction, bool),
        owes_from: Option<Seq>,
    ) {
        let Some(writer) = self.writers.get_mut(&sid) else { return };
        // What was sent to an incarnation that has ended is owed to its successor, who gets it when it
        // starts: never from its middle.
        if writer.incarnation != incarnation {
            return;
        }
        writer.active_at = now;
        writer.idle_told = false;
        let held = writer.log.holds_file();
        let shared = shared.then(|| self.classes.encoder(writer.class, &routed.txn));
        #[cfg(feature = "test-hooks")]
        let left = self.sabotaged.get_mut(&sid);
        let result = guarded(|| {
            #[cfg(feature = "test-hooks")]
            if let Some(left) = left.filter(|left| **left > 0) {
                *left -= 1;
                writer.take_half_and_panic(sid, routed);
            }
            writer.take(sid, routed, shared)
        });
        match result {
            Ok(()) => {
                if owes_from.is_none_or(|from| seq < from) {
                    writer.taken = writer.taken.max(seq);
                }
                self.holding += usize::from(!held && writer.log.holds_file());
                self.owing.insert(sid);
                if writer.log.is_behind() {
                    self.behind.insert(sid);
                }
            }
            Err(failure) => self.fail(sid, failure),
        }
    }

    fn stop(&mut self, sid: Sid, incarnation: Incarnation, cause: ExitCause) {
        if self.writers.get(&sid).is_none_or(|writer| writer.incarnation != incarnation) {
            return;
        }
        let flush = match cause {
            ExitCause::Suspended | ExitCause::Drained => true,
            ExitCause::Removed
            | ExitCause::Panicked
            | ExitCause::StorageFault
            | ExitCause::Ended
            | ExitCause::Vanished => false,
        };
        if flush {
            self.flush();
        }
        // A flush that failed has ended it already.
        self.end(sid, cause);
    }

    /// Replaces the log of a writer, if it is still the one for which that was prepared. Answers in any case.
    fn switch(
        &mut self,
        (sid, incarnation): (Sid, Incarnation),
        intent: IntentId,
        files: &ShapeFiles,
        prepared: Prepared,
    ) {
        let writer = self.writers.get_mut(&sid).filter(|writer| writer.incarnation == incarnation);
        let switched = writer.map(|writer| guarded(|| Ok(writer.log.switch(files, prepared)?)));
        let (outcome, failure) = match switched {
            None => (None, None),
            Some(Ok(Switched::Done { through, before, after })) => {
                (Some(Compaction { through, before, after }), None)
            }
            Some(Ok(Switched::Abandoned(fault))) => {
                tracing::warn!(%sid, %fault, "a log was not compacted; it goes on as it was");
                self.reports.push(Report::Input(faults::input(fault, None)));
                (None, None)
            }
            Some(Err(failure)) => (None, Some(failure)),
        };
        self.reports.push(Report::Input(Input::LogSwitched { sid, intent, outcome }));
        if let Some(failure) = failure {
            return self.fail(sid, failure);
        }
        // What came while it was made may be as much again, and nothing may come after it.
        if let (Some(policy), Some(writer)) = (self.settings.compaction, self.writers.get_mut(&sid))
            && outcome.is_some()
        {
            writer.look_at = 0;
            if writer.is_to_be_compacted(policy) {
                self.reports.push(Report::CompactionDue { sid, incarnation });
            }
        }
    }

    fn fail(&mut self, sid: Sid, failure: Failure) {
        self.report_failure(sid, &failure);
        self.end(sid, failure.cause());
    }

    /// The only way in which an incarnation ends.
    fn end(&mut self, sid: Sid, cause: ExitCause) {
        self.owing.remove(&sid);
        self.behind.remove(&sid);
        if let Some(writer) = self.writers.remove(&sid) {
            self.classes.leave(writer.class);
            writer.shape.set_lagging(true);
            match cause {
                ExitCause::Suspended | ExitCause::Drained => {}
                ExitCause::Removed
                | ExitCause::Panicked
                | ExitCause::StorageFault
                | ExitCause::Ended
                | ExitCause::Vanished => writer.shape.forget_told(),
            }
            writer.shape.reader.release_files();
            self.report_exit(sid, writer.incarnation, cause);
        }
    }

    fn report_exit(&mut self, sid: Sid, incarnation: Incarnation, cause: ExitCause) {
        self.reports.push(Report::Input(Input::WriterExited { sid, incarnation, cause }));
    }

    fn report_failure(&mut self, sid: Sid, failure: &Failure) {
        match failure {
            Failure::Panicked => tracing::error!(%sid, "a writer panicked"),
            Failure::Transaction(error) => {
                tracing::error!(%sid, %error, "a transaction could not be read back")
            }
            Failure::ShapeLog(ShapeLogError::Storage(fault)) => {
                tracing::error!(%sid, %fault, "a shape log failed");
                if is_failed_sync(fault) {
                    self.reports.push(Report::SyncFailed(*fault));
                }
                self.reports.push(Report::Input(faults::input(*fault, Some(sid))));
            }
            Failure::ShapeLog(error) => tracing::error!(%sid, %error, "a change could not be written"),
            Failure::Undecided => tracing::error!(%sid, "a transaction was handed out undecided"),
        }
    }
}

impl Incarnated {
    /// Says so once, and again when the log has grown by half: to look at all of it each time that it has grown
    /// a little costs the square of its length where there is nothing to be gained, as with rows that are never
    /// changed.
    fn is_to_be_compacted(&mut self, policy: CompactionPolicy) -> bool {
        let size = self.log.size();
        if size < self.look_at.max(policy.bytes_min) {
            return false;
        }
        self.look_at = size.saturating_add(size / 2);
        is_compactable(&self.shape.definition) && self.log.compaction_due(policy)
    }

    /// Takes in a transaction: whole, or not at all.
    fn take(
        &mut self,
        sid: Sid,
        routed: &RoutedTransaction,
        mut shared: Option<&mut SharedEncoder>,
    ) -> Result<(), Failure> {
        let log = &mut self.log;
        let late = match routed.wants(sid) {
            Some(Wants::Late(late)) => Some((late, late.decided().ok_or(Failure::Undecided)?)),
            Some(Wants::Tables(_) | Wants::Changes(_)) | None => None,
        };
        log.begin(routed.txn.lsn, routed.txn.xid)?;
        let mut pushed = routed.for_each(sid, |change, op, note| {
            match (&mut shared, note) {
                (Some(shared), None) => log.push_shared(change, op, shared)?,
                (_, note) => log.push_tagged(change, op, note)?,
            }
            Ok::<(), Failure>(())
        });
        if let (Ok(()), Some(event)) = (&pushed, late.and_then(|(_, decided)| decided.event.as_ref())) {
            pushed = log.push_message(event).map_err(Failure::from);
        }
        if let Err(failure) = pushed {
            log.abort()?;
            return Err(failure);
        }
        log.commit()?;
        for unit in late.map_or_else(Vec::new, |(late, _)| late.units()) {
            if let Err(error) = log.append_unit(routed.txn.lsn, &unit) {
                log.abort()?;
                return Err(error.into());
            }
        }
        Ok(())
    }

    /// Panics where the most has been begun and the least is finished.
    #[cfg(feature = "test-hooks")]
    fn take_half_and_panic(&mut self, sid: Sid, routed: &RoutedTransaction) {
        let log = &mut self.log;
        let begun = log.begin(routed.txn.lsn, routed.txn.xid).is_ok();
        let pushed = routed
            .for_each(sid, |change, op, note| Ok::<(), Failure>(log.push_tagged(change, op, note)?))
            .is_ok();
        panic!("a test asked for this panic (begun: {begun}, pushed: {pushed})");
    }
}

impl Failure {
    fn cause(&self) -> ExitCause {
        match self {
            Failure::Panicked => ExitCause::Panicked,
            Failure::ShapeLog(ShapeLogError::Storage(_)) | Failure::Transaction(_) => ExitCause::StorageFault,
            Failure::ShapeLog(_) | Failure::Undecided => ExitCause::Ended,
        }
    }
}

/// Runs a piece of one writer's work; a panic ends this writer and no other.
fn guarded<T>(work: impl FnOnce() -> Result<T, Failure>) -> Result<T, Failure> {
    // The incarnation is thrown away after a panic, so nothing half-done in it is seen again; its file
    // is recovered by its successor.
    catch_unwind(AssertUnwindSafe(work)).unwrap_or(Err(Failure::Panicked))
}

fn is_failed_sync(fault: &StorageFault) -> bool {
    fault.stage == Stage::Sync
}

/// Which thread a shape belongs to.
#[must_use]
pub(super) fn thread_of(sid: Sid, threads: usize) -> usize {
    sid.0 as usize % threads
}

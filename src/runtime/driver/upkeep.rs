//! What the driver does now and then: look after the lock, the disk, the writers, the journal.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::domain::{EventId, Handle, Incarnation, Sid};
use crate::engine::Input;
use crate::events::{DrainCause, FaultClass, FileKind, InvalidationCause, JournalEvent, Stage};
use crate::inspect::Figures;
use crate::journal::ReserveState;
use crate::ownership::NotHeld;
use crate::runtime::archiver::Archived;
use crate::runtime::clock;
use crate::runtime::driver::{Audit, Driver, Fatal, Message};
use crate::runtime::faults;
use crate::runtime::observed::{CHECKED_AT_ONCE_MAX, CHECKS_WAITING_MAX, CheckReport, Round};
use crate::runtime::quarantine::{Found, STRANGERS_MAX, Timing};

/// Is the directory still ours?
const LOCK_CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// Is there room on the disk?
const RESERVE_CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// Which shapes wait for rows that move in, or for what comes before?
const MOVE_CHECK_INTERVAL: Duration = Duration::from_secs(10);
/// How far has the database been read beside the stream?
const QUERY_NOTE_INTERVAL: Duration = Duration::from_secs(1);
/// Do all writers exist that the registry names?
const AUDIT_INTERVAL: Duration = Duration::from_secs(10);

impl Driver {
    /// Notes what was sealed, lets the journal forget it, and notes what is to be removed.
    pub(super) fn archived(&mut self, archived: Archived) -> Result<(), Fatal> {
        for segment in archived.sealed {
            let (first, last, bytes) = (segment.first, segment.last, segment.bytes);
            let persist = self.core.note(clock::now(), JournalEvent::SegmentSealed { first, last, bytes });
            self.follow(persist);
            // What the checkpoints need is kept, whatever is asked for.
            self.journal.trim(last.next()).map_err(|_| Fatal::JournalGone)?;
        }
        for segment in archived.expired {
            let (first, last) = (segment.first, segment.last);
            let persist = self.core.note(clock::now(), JournalEvent::SegmentRetired { first, last });
            self.state.sync = true;
            self.follow(persist);
            self.state.retired.push((self.core.engine().state().last, segment));
        }
        Ok(())
    }

    /// A compacted generation of a log takes its place only once that is announced.
    pub(super) fn log_prepared(&mut self, sid: Sid, incarnation: Incarnation, done: bool) {
        let before = self.core.engine().state().owner.last_intent;
        if done {
            self.input(Input::LogPrepared { sid, incarnation });
        }
        // Refused, where its writer has ended meanwhile.
        if self.core.engine().state().owner.last_intent == before {
            self.executor.compaction_over(sid);
        }
    }

    pub(super) fn remove_retired(&mut self, durable: EventId) {
        let retired = std::mem::take(&mut self.state.retired);
        let (due, later): (Vec<_>, Vec<_>) = retired.into_iter().partition(|(after, _)| *after <= durable);
        self.state.retired = later;
        if !due.is_empty() {
            self.archiver.remove(due.into_iter().map(|(_, segment)| segment).collect());
        }
    }

    /// Is the directory still ours? What the operating system cannot say is no evidence of a loss.
    pub(super) fn look_at_lock(&mut self) {
        if let Err(lost) = self.lock.still_held()
            && !matches!(lost, NotHeld::Unverified(_))
        {
            self.state.lost = Some(lost);
        }
    }

    /// # Errors
    /// [`Fatal::OwnershipLost`]: it is not. Told to the journal, as far as that can still be written.
    pub(super) fn require_directory(&mut self) -> Result<(), Fatal> {
        let Some(lost) = self.state.lost.take() else { return Ok(()) };
        tracing::error!(%lost, "the data directory is no longer owned by this process");
        self.executor.disk.leave_untidy();
        self.input(Input::OwnershipLost { evidence: faults::evidence(&lost) });
        // Best effort: nothing waits for a journal in a directory that is no longer ours.
        let _closed = self.persist();
        Err(Fatal::OwnershipLost(lost))
    }

    /// What is due now and then. Whether a drain has taken too long.
    pub(super) fn tick(&mut self) -> Result<bool, Fatal> {
        let now = Instant::now();
        if now.duration_since(self.state.checked.lock) >= LOCK_CHECK_INTERVAL {
            self.state.checked.lock = now;
            self.look_at_lock();
            self.require_directory()?;
        }
        if now.duration_since(self.state.checked.reserve) >= RESERVE_CHECK_INTERVAL {
            self.state.checked.reserve = now;
            self.watch_space();
            self.executor.look_into_suspects();
        }
        if now.duration_since(self.state.checked.audit) >= AUDIT_INTERVAL {
            self.state.checked.audit = now;
            let asked = self.core.performed_upto();
            // Asked twice at the same event, a thread that answers twice would answer for one that is
            // busy, whose writers would count as gone.
            if self.state.audit.as_ref().is_none_or(|audit| audit.asked != asked) {
                let parts_missing = self.executor.writers.audit(asked);
                self.state.audit = Some(Audit { asked, parts_missing, live: Vec::new() });
            }
        }
        if now.duration_since(self.state.checked.projections) >= self.state.check_interval {
            self.state.checked.projections = now;
            self.ask_for_check(None);
        }
        if now.duration_since(self.state.checked.strangers) >= Timing::current().every {
            self.state.checked.strangers = now;
            self.executor.survey();
        }
        if now.duration_since(self.state.checked.queries) >= QUERY_NOTE_INTERVAL {
            self.state.checked.queries = now;
            self.note_queries();
        }
        self.check_part();
        self.input(Input::HandedOut { upto: self.executor.writers.reached() });
        self.input(Input::Tick);
        self.observe(now);
        self.ask_position();
        if now.duration_since(self.state.checked.moves) >= MOVE_CHECK_INTERVAL {
            self.state.checked.moves = now;
            for (sid, waits_for, held) in self.executor.router.subqueries.waiting() {
                tracing::info!(%sid, waits_for, held, "a shape is not settled");
            }
        }
        self.relieve();
        // The checkpoint covers what the journal has been handed.
        self.persist()?;
        if let Some((upto, state)) = self.keeper.due(self.core.engine().state()) {
            self.journal.checkpoint(upto, state).map_err(|_| Fatal::JournalGone)?;
        }
        let late = self.state.drain_until.is_some_and(|until| now >= until);
        if late {
            tracing::warn!("the drain takes too long and is cut short; nothing acknowledged is lost");
        }
        Ok(late)
    }

    /// Lets the journal know how far the database was read beside the stream, if it was.
    pub(super) fn note_queries(&mut self) {
        let upto = self.executor.service.progress().queried();
        if upto > self.core.engine().state().stream.queried.upto {
            self.input(Input::Queried { upto });
        }
    }

    /// Directories that no shape has are set aside, and what has been aside for long enough is removed.
    pub(super) fn surveyed(&mut self, found: Found) {
        let known: BTreeSet<Handle> =
            self.core.engine().state().shapes.values().map(|shape| shape.handle).collect();
        let strangers = found.directories.into_iter().filter(|handle| !known.contains(handle));
        for handle in strangers.take(STRANGERS_MAX) {
            self.input(Input::StrangerFound { handle });
        }
        for handle in found.expired.into_iter().take(STRANGERS_MAX) {
            self.input(Input::QuarantineExpired { handle });
        }
    }

    /// Does every projection equal the fold? Found out a part at a time, so that nothing waits for it.
    pub(super) fn ask_for_check(&mut self, asker: Option<oneshot::Sender<CheckReport>>) {
        let round = self.state.round.get_or_insert_with(Round::default);
        // Who is turned away sees that there is no answer.
        if round.askers.len() < CHECKS_WAITING_MAX {
            round.askers.extend(asker);
        }
    }

    fn check_part(&mut self) {
        let Some(round) = &mut self.state.round else { return };
        let (persist, last) = self.core.audit_part(clock::now(), round.after, CHECKED_AT_ONCE_MAX);
        round.after = last;
        round.shapes += CHECKED_AT_ONCE_MAX;
        let over = last.is_none();
        self.follow(persist);
        if over && let Some(round) = self.state.round.take() {
            let engine = self.core.engine();
            let figures = Figures::of(engine.state(), &engine.projections().flush_tracker);
            let shapes = round.shapes.min(figures.shapes);
            let report = CheckReport { shapes, drifted: engine.drifted().to_vec(), engine: figures };
            for asker in round.askers {
                let _gone = asker.send(report.clone());
            }
        }
    }

    /// A disk that is nearly full ends the service while there is room to end it in order; what is not
    /// acknowledged stays with Postgres.
    fn watch_space(&mut self) {
        let before = self.reserve.state();
        match self.reserve.watch() {
            Ok(ReserveState::Released) if before == ReserveState::Kept => {
                tracing::error!("the disk is full; make room and start again: nothing acknowledged is lost");
                let (class, stage, file) = (FaultClass::NoSpace, Stage::Write, FileKind::Directory);
                self.input(Input::StorageFault { class, stage, file, sid: None });
                self.message(Message::Drain(DrainCause::Fatal));
            }
            Ok(ReserveState::Kept | ReserveState::Released) => {}
            Err(error) => tracing::warn!(%error, "the free space is not known"),
        }
    }

    /// Where too much is held for shapes whose snapshot is not open yet, gives those up (N5): one slow
    /// snapshot must not stop the stream for all.
    fn relieve(&mut self) {
        if self.takes_more() {
            return;
        }
        let engine = self.core.engine();
        let waiting: Vec<Sid> = engine
            .projections()
            .flush_tracker
            .blockers()
            .map(|(_, sid)| sid)
            .filter(|sid| engine.state().shape(*sid).is_some_and(|shape| shape.visible.is_none()))
            .collect();
        for sid in waiting {
            self.input(Input::Invalidate { sid, cause: InvalidationCause::Backlog });
        }
        self.relieve_moves();
    }
}

//! What the driver does now and then: look after the lock, the disk, the writers, the journal.

use std::time::{Duration, Instant};

use crate::domain::{EventId, Sid};
use crate::engine::Input;
use crate::events::{DrainCause, FaultClass, FileKind, InvalidationCause, JournalEvent, Stage};
use crate::journal::ReserveState;
use crate::ownership::NotHeld;
use crate::runtime::archiver::Archived;
use crate::runtime::clock;
use crate::runtime::driver::{Audit, Driver, Fatal, Message};
use crate::runtime::faults;

/// Is the directory still ours?
const LOCK_CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// Is there room on the disk?
const RESERVE_CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// Which shapes wait for rows that move in, or for what comes before?
const MOVE_CHECK_INTERVAL: Duration = Duration::from_secs(10);
/// Do all writers exist that the registry names?
const AUDIT_INTERVAL: Duration = Duration::from_secs(10);
/// Does every projection equal the fold? Costs time in proportion to the shapes.
const PROJECTION_CHECK_INTERVAL: Duration = Duration::from_secs(60);

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

    pub(super) fn remove_retired(&mut self, durable: EventId) {
        let retired = std::mem::take(&mut self.state.retired);
        let (due, later): (Vec<_>, Vec<_>) = retired.into_iter().partition(|(after, _)| *after <= durable);
        self.state.retired = later;
        if !due.is_empty() {
            self.archiver.remove(due.into_iter().map(|(_, segment)| segment).collect());
        }
    }

    /// What is due now and then. Whether a drain has taken too long.
    pub(super) fn tick(&mut self) -> Result<bool, Fatal> {
        let now = Instant::now();
        if now.duration_since(self.state.checked.lock) >= LOCK_CHECK_INTERVAL {
            self.state.checked.lock = now;
            // What the operating system could not say is no evidence of a loss.
            if let Err(lost) = self.lock.still_held()
                && !matches!(lost, NotHeld::Unverified(_))
            {
                tracing::error!(%lost, "the data directory is no longer owned by this process");
                self.input(Input::OwnershipLost { evidence: faults::evidence(&lost) });
                return Err(Fatal::OwnershipLost(lost));
            }
        }
        if now.duration_since(self.state.checked.reserve) >= RESERVE_CHECK_INTERVAL {
            self.state.checked.reserve = now;
            self.watch_space();
        }
        if now.duration_since(self.state.checked.audit) >= AUDIT_INTERVAL && self.core.is_settled() {
            self.state.checked.audit = now;
            let asked = self.core.engine().state().last;
            // Asked twice at the same event, a thread that answers twice would answer for one that is
            // busy, whose writers would count as gone.
            if self.state.audit.as_ref().is_none_or(|audit| audit.asked != asked) {
                let parts_missing = self.executor.writers.audit(asked);
                self.state.audit = Some(Audit { asked, parts_missing, live: Vec::new() });
            }
        }
        if now.duration_since(self.state.checked.projections) >= PROJECTION_CHECK_INTERVAL {
            self.state.checked.projections = now;
            let persist = self.core.audit(clock::now());
            self.follow(persist);
        }
        self.input(Input::Tick);
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

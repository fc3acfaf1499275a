//! Deciding about writers. What happens after one ends depends on how it ended *and* on what it
//! still owes, never on the cause alone.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::domain::{EventId, Incarnation, Lsn, Seq, Sid};
use crate::engine::{Decision, Effect, Refusal};
use crate::events::{ConsumerEvent, ExitCause, InvalidationCause};
use crate::state::{Life, Shape, StreamPhase, Writer};

impl Decision<'_> {
    pub(in crate::engine) fn start_writer(&mut self, sid: Sid, because: EventId) {
        let incarnation = self.state().shapes[&sid].last_incarnation.next();
        self.engine.scratch.writer_started =
            self.record(Some(because), ConsumerEvent::Started { sid, incarnation });
        // What this connection has not brought again yet comes to the writer when it does.
        let received = self.state().stream.received;
        let replay: Vec<Seq> = self.state().shapes[&sid]
            .pending
            .iter()
            .copied()
            .filter(|seq| self.state().window.get(*seq).is_some_and(|txn| txn.lsn <= received))
            .collect();
        let complete = replay.len() == self.state().shapes[&sid].pending.len();
        self.ask(Effect::StartWriter { sid, incarnation, replay, complete });
    }

    pub(in crate::engine) fn stop_writer(
        &mut self,
        sid: Sid,
        incarnation: Incarnation,
        cause: ExitCause,
        because: EventId,
    ) {
        if self.state().shapes[&sid].writer == (Writer::Stopping { incarnation }) {
            return;
        }
        self.record(Some(because), ConsumerEvent::Stopping { sid, incarnation, cause });
        self.ask(Effect::StopWriter { sid, incarnation, cause });
    }

    pub(super) fn writer_ready(
        &mut self,
        sid: Sid,
        incarnation: Incarnation,
        recovered: Lsn,
        trimmed_bytes: u64,
    ) -> Result<(), Refusal> {
        self.require_incarnation(sid, incarnation)?;
        self.record(None, ConsumerEvent::Ready { sid, incarnation, recovered, trimmed_bytes });
        Ok(())
    }

    pub(super) fn require_incarnation(&self, sid: Sid, incarnation: Incarnation) -> Result<&Shape, Refusal> {
        self.require_owned()?;
        let shape = self.state().shape(sid).ok_or(Refusal::UnknownShape)?;
        if shape.writer.incarnation() == Some(incarnation) {
            Ok(shape)
        } else {
            Err(Refusal::StaleIncarnation)
        }
    }

    pub(super) fn writer_exited(
        &mut self,
        sid: Sid,
        incarnation: Incarnation,
        cause: ExitCause,
    ) -> Result<(), Refusal> {
        let shape = self.require_incarnation(sid, incarnation)?;
        let (pending_oldest, pending) = (shape.pending.front().copied(), shape.pending.len() as u64);
        let exited =
            self.record(None, ConsumerEvent::Exited { sid, incarnation, cause, pending_oldest, pending });
        if self.state().shapes[&sid].life == Life::Invalidated {
            self.settle_removal(sid);
            return Ok(());
        }
        let draining = self.require_active().is_err();
        if draining || pending == 0 {
            // Shutting down keeps the obligation: the acknowledgement stays below it, and Postgres
            // sends it again to the next process.
            return Ok(());
        }
        match cause {
            // Asked to end, and then something came for it.
            ExitCause::Suspended | ExitCause::Drained | ExitCause::Removed => self.start_writer(sid, exited),
            ExitCause::Panicked | ExitCause::StorageFault | ExitCause::Ended | ExitCause::Vanished => {
                self.retry_writer(sid, exited);
            }
        }
        Ok(())
    }

    /// Replays to a new writer, a few times and with growing patience; then gives up this shape,
    /// and no other.
    fn retry_writer(&mut self, sid: Sid, exited: EventId) {
        let shape = &self.state().shapes[&sid];
        let oldest = shape.pending.front().copied();
        let failed_before =
            shape.retry.filter(|retry| Some(retry.seq) == oldest).map_or(0, |retry| retry.attempts);
        let attempts_max = self.engine.policy.writer_attempts_max;
        if failed_before >= attempts_max {
            let cause = InvalidationCause::WriterFailed { attempts: failed_before };
            let running = self.state().shapes[&sid].life < Life::Live;
            self.invalidate(sid, cause, Some(exited), running);
            return;
        }
        let attempt = failed_before + 1;
        let backoff = self.engine.policy.writer_backoff.saturating_mul(1 << failed_before.min(16));
        let due = self.now.plus(backoff);
        self.record(Some(exited), ConsumerEvent::RestartScheduled { sid, attempt, due });
    }

    pub(super) fn restart_writers(&mut self) {
        let now = self.now;
        let due: Vec<Sid> = self
            .engine
            .projections
            .registry
            .restarts()
            .filter(|(_, due)| *due <= now)
            .map(|(sid, _)| sid)
            .collect();
        for sid in due {
            let because = self.last_event();
            self.start_writer(sid, because);
        }
    }

    pub(super) fn writer_idle(&mut self, sid: Sid, incarnation: Incarnation) -> Result<(), Refusal> {
        self.require_active()?;
        let shape = self.require_incarnation(sid, incarnation)?;
        // R4: a writer that owes something may not be put to sleep.
        if !shape.pending.is_empty() {
            return Err(Refusal::Pending);
        }
        let because = self.last_event();
        self.stop_writer(sid, incarnation, ExitCause::Suspended, because);
        Ok(())
    }

    /// Compares the registry with the writers that really run: one that is gone without a word is
    /// treated as any other that ended (R5).
    pub(super) fn live_writers(
        &mut self,
        asked: EventId,
        live: &[(Sid, Incarnation)],
    ) -> Result<(), Refusal> {
        // Also while draining: the end would wait for ever for a writer that is gone.
        self.require_owned()?;
        if self.engine.scratch.writer_started > asked {
            // Some writer was started after the question; the answer says nothing about it.
            return Ok(());
        }
        let live: BTreeSet<(Sid, Incarnation)> = live.iter().copied().collect();
        let missing: Vec<_> =
            self.engine.projections.registry.iter().filter(|writer| !live.contains(writer)).collect();
        for (sid, incarnation) in missing {
            self.writer_exited(sid, incarnation, ExitCause::Vanished)?;
        }
        Ok(())
    }

    /// Alive is not progress: a shape that owes and does not get on is named, and after as long
    /// again given up; so few at a time that a cause which hits all cannot purge them.
    pub(super) fn watch_progress(&mut self) {
        if self.state().stream.phase != StreamPhase::Streaming {
            return;
        }
        let (now, grace) = (self.now, self.engine.policy.stall_grace);
        let received = self.state().stream.received;
        let late: Vec<(Sid, Seq, Duration, bool)> = self
            .engine
            .projections
            .flush_tracker
            .blockers()
            .filter_map(|(seq, sid)| {
                let shape = self.state().shape(sid)?;
                let age = now.since(shape.progressed_at);
                let stalled = age > grace && shape.visible.is_some() && self.arrived(seq, received);
                stalled.then_some((sid, seq, age, shape.suspected))
            })
            .collect();
        let mut given_up = 0;
        for (sid, oldest, age, suspected) in late {
            if !suspected {
                let age_ms = u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
                self.record(None, ConsumerEvent::StallSuspected { sid, oldest, age_ms });
            } else if age > grace.saturating_mul(2) && given_up < self.engine.policy.stall_invalidations_max {
                given_up += 1;
                let because = self.last_event();
                let running = self.state().shapes[&sid].life < Life::Live;
                self.invalidate(sid, InvalidationCause::Stalled, Some(because), running);
            }
        }
    }

    fn arrived(&self, seq: Seq, received: Lsn) -> bool {
        self.state().window.get(seq).is_some_and(|txn| txn.lsn <= received)
    }
}

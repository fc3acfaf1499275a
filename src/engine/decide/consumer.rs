//! Deciding about writers. What happens after one ends depends on how it ended *and* on what it
//! still owes, never on the cause alone.

use crate::domain::{EventId, Incarnation, Lsn, Seq, Sid};
use crate::engine::{Decision, Effect, Refusal};
use crate::events::{ConsumerEvent, ExitCause, InvalidationCause};
use crate::state::{Life, Shape, Writer};

impl Decision<'_> {
    pub(in crate::engine) fn start_writer(&mut self, sid: Sid, because: EventId) {
        let incarnation = self.state().shapes[&sid].last_incarnation.next();
        let started = self.record(Some(because), ConsumerEvent::Started { sid, incarnation });
        self.engine.scratch.started.insert(sid, started);
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
        let policy = &self.engine.policy;
        let (attempts_max, backoff_max) = (policy.writer_attempts_max, policy.writer_backoff_max);
        let backoff = policy.writer_backoff.saturating_mul(1 << failed_before.min(16)).min(backoff_max);
        if failed_before >= attempts_max && self.may_give_up_worn_out(sid) {
            let cause = InvalidationCause::WriterFailed { attempts: failed_before };
            let running = self.state().shapes[&sid].life < Life::Live;
            self.invalidate(sid, cause, Some(exited), running);
            return;
        }
        let attempt = failed_before + 1;
        let due = self.now.plus(backoff);
        self.record(Some(exited), ConsumerEvent::RestartScheduled { sid, attempt, due });
        self.tell_worn_out();
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
        let mut live = live.to_vec();
        live.sort_unstable();
        // Of a writer that was started after the question the answer says nothing.
        let started = &self.engine.scratch.started;
        let missing: Vec<_> = self
            .engine
            .projections
            .registry
            .iter()
            .filter(|writer| live.binary_search(writer).is_err())
            .filter(|(sid, _)| started.get(sid).is_none_or(|event| *event <= asked))
            .collect();
        self.engine.scratch.started.retain(|_, event| *event > asked);
        for (sid, incarnation) in missing {
            self.writer_exited(sid, incarnation, ExitCause::Vanished)?;
        }
        Ok(())
    }
}

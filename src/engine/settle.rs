//! What follows from the state after every input: acknowledging, letting go, finishing a drain.

use crate::domain::{Lsn, Seq};
use crate::engine::{Decision, Effect};
use crate::events::{AckCause, OwnershipEvent, StreamEvent};
use crate::state::{OwnerPhase, StreamPhase};

impl Decision<'_> {
    pub(super) fn settle(&mut self) {
        match self.state().owner.phase {
            OwnerPhase::Active => {
                if self.now.since(self.engine.scratch.acked_at) >= self.engine.policy.ack_interval {
                    self.acknowledge();
                }
            }
            OwnerPhase::Draining => self.finish_drain(),
            OwnerPhase::Unowned | OwnerPhase::Released | OwnerPhase::Lost => {}
        }
        self.forget();
    }

    /// Tells Postgres how far everything is flushed (F1). The caller performs it once this event,
    /// and so all that it rests on, is durable in the journal.
    fn acknowledge(&mut self) {
        let streaming = self.state().stream.phase == StreamPhase::Streaming && self.state().stream.lock_held;
        if !streaming || self.engine.scratch.ack_frozen {
            return;
        }
        let Some((lsn, cause)) = self.ack_due() else { return self.repeat() };
        self.record_nothing();
        self.record(None, StreamEvent::AckSent { lsn, cause });
        let generation = self.state().stream.generation;
        self.ask(Effect::SendStatus { generation, lsn });
        self.engine.scratch.acked_at = self.now;
        self.engine.scratch.told = lsn;
    }

    /// Tells again what was recorded and did not arrive before a crash or the end of a connection: a
    /// server on which nothing happens would keep its WAL for want of it. Once something has come on
    /// this connection; before, there may be nobody to tell it to.
    fn repeat(&mut self) {
        let lsn = self.state().stream.acked;
        let scratch = &mut self.engine.scratch;
        if scratch.told < lsn && scratch.idle_at > Lsn(0) {
            scratch.told = lsn;
            let generation = self.state().stream.generation;
            self.ask(Effect::SendStatus { generation, lsn });
        }
    }

    fn ack_due(&self) -> Option<(Lsn, AckCause)> {
        let (state, scratch) = (self.state(), &self.engine.scratch);
        let mut due = (self.engine.projections.flush_tracker.candidate(), AckCause::Commit);
        if state.window.is_empty() {
            if let Some((upto, _)) = scratch.nothing {
                due.0 = due.0.max(Lsn(upto.0.saturating_add(1)));
            }
            // S5: a keepalive counts only while nothing is owed.
            if scratch.idle_at > due.0 {
                due = (scratch.idle_at, AckCause::Keepalive);
            }
        }
        (due.0 > state.stream.acked).then_some(due)
    }

    /// Lets the runtime drop the bodies of transactions that nobody owes any more.
    fn forget(&mut self) {
        let oldest = match self.state().window.oldest() {
            Some((seq, _)) => seq,
            None => Seq(self.state().stream.last_seq.0 + 1),
        };
        if oldest > self.engine.scratch.forgotten {
            self.engine.scratch.forgotten = oldest;
            self.ask(Effect::ForgetBefore { seq: oldest });
        }
    }

    /// O4: the last event of an epoch comes when every writer has ended and no file operation is
    /// under way.
    fn finish_drain(&mut self) {
        let busy =
            !self.engine.projections.registry.is_empty() || !self.state().owner.open_intents.is_empty();
        if busy {
            return;
        }
        self.acknowledge();
        let (epoch, acked) = (self.state().owner.epoch, self.state().stream.acked);
        let pending = self.engine.projections.flush_tracker.pending_shapes() as u64;
        self.record(None, OwnershipEvent::Released { epoch, pending, acked });
        self.ask(Effect::StopStream);
        self.ask(Effect::Exit);
    }
}

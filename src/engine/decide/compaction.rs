//! Deciding about logs that are to be replaced by compacted ones.

use crate::domain::{Incarnation, Sid};
use crate::engine::{Compaction, Decision, Effect, Refusal};
use crate::events::{
    DestructionCause, DestructionResult, DestructionTarget, IntentId, OwnershipEvent, ShapeEvent,
};
use crate::state::{Life, Writer};

impl Decision<'_> {
    /// The old log goes only if that was announced, and only under the writer whose log it is: another
    /// has written a file of its own since.
    pub(super) fn log_prepared(&mut self, sid: Sid, incarnation: Incarnation) -> Result<(), Refusal> {
        self.require_active()?;
        let shape = self.require_incarnation(sid, incarnation)?;
        if shape.life != Life::Live {
            return Err(Refusal::AlreadyInvalidated);
        }
        if matches!(shape.writer, Writer::Stopping { .. }) {
            return Err(Refusal::StaleIncarnation);
        }
        let target = DestructionTarget::ShapeLog(sid);
        if self.state().owner.open_intents.is_announced(target) {
            return Err(Refusal::LogBusy);
        }
        let intent = IntentId(self.state().owner.last_intent.0 + 1);
        let cause = DestructionCause::Compacted;
        self.record(None, OwnershipEvent::DestructiveIntent { intent, target, cause });
        self.ask(Effect::SwitchLog { sid, incarnation, intent });
        Ok(())
    }

    pub(super) fn log_switched(
        &mut self,
        sid: Sid,
        intent: IntentId,
        outcome: Option<Compaction>,
    ) -> Result<(), Refusal> {
        self.require_owned()?;
        if !self.state().owner.open_intents.is_for(intent, DestructionTarget::ShapeLog(sid)) {
            return Err(Refusal::UnknownShape);
        }
        let result = match outcome {
            Some(Compaction { through, before, after }) => {
                self.record(None, ShapeEvent::Compacted { sid, through, before, after });
                DestructionResult::Done
            }
            None => DestructionResult::Abandoned,
        };
        self.record(None, OwnershipEvent::DestructiveDone { intent, result });
        Ok(())
    }
}

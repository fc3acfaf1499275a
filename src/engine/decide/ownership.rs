//! Deciding about the process, its directory, and its end.

use crate::domain::{Handle, Sid};
use crate::engine::{Boot, Decision, Effect, Refusal};
use crate::events::{
    DestructionCause, DestructionResult, DestructionTarget, DrainCause, ExitCause, FaultClass, FileKind,
    IntentId, InvalidationCause, JournalEvent, LossEvidence, OwnershipEvent, RemovalStep, ShapeEvent, Stage,
};
use crate::state::Life;

impl Decision<'_> {
    pub(super) fn boot(&mut self, boot: Boot) {
        let torn = (boot.torn_values > 0 || boot.missing_upto.is_some()).then_some(JournalEvent::TornTail {
            last: self.last_event(),
            values: boot.torn_values,
            missing_upto: boot.missing_upto,
        });
        let acquired = self.record(
            None,
            OwnershipEvent::Acquired {
                epoch: boot.epoch,
                previous: self.state().owner.epoch,
                previous_end: boot.previous_end,
                device: boot.device,
                inode: boot.inode,
                waited_ms: boot.waited_ms,
            },
        );
        self.record(Some(acquired), OwnershipEvent::ProcessStarted(boot.process));
        let torn = torn.map(|torn| self.record(None, torn));
        let sids: Vec<Sid> = self.state().shapes.keys().copied().collect();
        for sid in sids {
            let life = self.state().shapes[&sid].life;
            match life {
                // Part of an unfinished snapshot may have been read; a second one would put other
                // rows at the same offsets.
                Life::Registered | Life::Snapshotting => {
                    self.invalidate(sid, InvalidationCause::SnapshotInterrupted, Some(acquired), false);
                }
                Life::Invalidated => self.carry_on_removal(sid),
                // Clients may have been told of it what the journal no longer knows.
                Life::Live if boot.missing_upto.is_some() => {
                    self.invalidate(sid, InvalidationCause::JournalLost, torn, false);
                }
                Life::Live => {}
            }
        }
        self.resume();
    }

    /// An invalidated shape of an earlier process: its writer and its snapshot task died with it.
    fn carry_on_removal(&mut self, sid: Sid) {
        let invalidated = self.state().shapes[&sid].invalidated.map(|invalidation| invalidation.event);
        if !self.state().shapes[&sid].steps.snapshot_stopped {
            self.record(invalidated, ShapeEvent::StepDone { sid, step: RemovalStep::SnapshotStopped });
        }
        self.settle_removal(sid);
    }

    pub(super) fn ownership_lost(&mut self, evidence: LossEvidence) -> Result<(), Refusal> {
        self.require_owned()?;
        let epoch = self.state().owner.epoch;
        self.record(None, OwnershipEvent::Lost { epoch, evidence });
        // Nothing may wait for a journal that lies in a directory which is no longer ours.
        self.step.barrier = None;
        self.ask(Effect::Abort);
        Ok(())
    }

    pub(super) fn drain(&mut self, cause: DrainCause) -> Result<(), Refusal> {
        self.require_active()?;
        let started = self.record(None, OwnershipEvent::DrainStarted { cause });
        let writers: Vec<_> = self.engine.projections.registry.iter().collect();
        for (sid, incarnation) in writers {
            self.stop_writer(sid, incarnation, ExitCause::Drained, started);
        }
        let unfinished: Vec<Sid> = self
            .state()
            .shapes
            .iter()
            .filter(|(_, shape)| shape.life < Life::Live)
            .map(|(sid, _)| *sid)
            .collect();
        for sid in unfinished {
            self.ask(Effect::AbortSnapshot { sid });
        }
        Ok(())
    }

    pub(super) fn storage_fault(
        &mut self,
        class: FaultClass,
        stage: Stage,
        file: FileKind,
        sid: Option<Sid>,
    ) -> Result<(), Refusal> {
        self.require_owned()?;
        let fault = self.record(None, OwnershipEvent::StorageFault { class, stage, file, sid, count: 1 });
        // What cannot be read cannot be served: a shape whose files are damaged is of no more use,
        // and no other shape is touched. While draining a missing file may be the first of a directory
        // that is being taken away (O6): whoever comes next will see.
        let unreadable = match class {
            FaultClass::Corrupt => true,
            FaultClass::Vanished => self.require_active().is_ok(),
            FaultClass::Transient { .. } | FaultClass::NoSpace | FaultClass::Denied => false,
        };
        if let Some(sid) = sid
            && unreadable
            && self.living(sid).is_ok()
        {
            let running = self.state().shapes[&sid].life < Life::Live;
            self.invalidate(sid, InvalidationCause::StorageDamaged, Some(fault), running);
        }
        Ok(())
    }

    /// Files that nobody knows are set aside one directory at a time, and kept: that the journal does not
    /// know them is no proof that nobody needs them.
    pub(super) fn stranger_found(&mut self, handle: Handle) -> Result<(), Refusal> {
        let intent = self.announce_stranger(handle, DestructionCause::Unknown)?;
        self.ask(Effect::QuarantineFiles { handle, intent });
        Ok(())
    }

    pub(super) fn quarantine_expired(&mut self, handle: Handle) -> Result<(), Refusal> {
        let intent = self.announce_stranger(handle, DestructionCause::QuarantineExpired)?;
        self.ask(Effect::PurgeQuarantined { handle, intent });
        Ok(())
    }

    fn announce_stranger(&mut self, handle: Handle, cause: DestructionCause) -> Result<IntentId, Refusal> {
        self.require_active()?;
        let target = DestructionTarget::Stranger(handle);
        let known = self.state().shapes.values().any(|shape| shape.handle == handle);
        if known || self.state().owner.open_intents.is_announced(target) {
            return Err(Refusal::NoStranger);
        }
        let intent = IntentId(self.state().owner.last_intent.0 + 1);
        self.record(None, OwnershipEvent::DestructiveIntent { intent, target, cause });
        Ok(intent)
    }

    pub(super) fn stranger_settled(
        &mut self,
        intent: IntentId,
        result: DestructionResult,
    ) -> Result<(), Refusal> {
        self.require_owned()?;
        if !self.state().owner.open_intents.contains(intent) {
            return Err(Refusal::NoStranger);
        }
        self.record(None, OwnershipEvent::DestructiveDone { intent, result });
        Ok(())
    }

    pub(super) fn files_trashed(
        &mut self,
        sid: Sid,
        intent: IntentId,
        result: DestructionResult,
    ) -> Result<(), Refusal> {
        self.require_owned()?;
        let shape = self.state().shape(sid).ok_or(Refusal::UnknownShape)?;
        let oid = shape.oid;
        if !self.state().owner.open_intents.contains(intent) {
            return Err(Refusal::UnknownShape);
        }
        let done = self.record(None, OwnershipEvent::DestructiveDone { intent, result });
        self.record(Some(done), ShapeEvent::StepDone { sid, step: RemovalStep::FilesTrashed });
        self.record(Some(done), ShapeEvent::Gone { sid });
        if self.engine.projections.shape_index.by_table(oid).next().is_none() {
            self.ask(Effect::ReleasePublication { oid });
        }
        Ok(())
    }
}

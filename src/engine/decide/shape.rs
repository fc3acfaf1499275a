//! Deciding about the life of shapes.

use crate::domain::{DefinitionHash, EventId, Handle, Lsn, Oid, PgSnapshot, Sid};
use crate::engine::{Decision, Effect, Refusal};
use crate::events::{
    DestructionCause, DestructionTarget, ExitCause, FlushEvent, IntentId, InvalidationCause, OwnershipEvent,
    RemovalStep, ShapeEvent, SnapshotFailure,
};
use crate::state::{Life, Shape, Writer, is_suspicion};

impl Decision<'_> {
    pub(super) fn create_shape(
        &mut self,
        handle: Handle,
        definition: DefinitionHash,
        oid: Oid,
    ) -> Result<(), Refusal> {
        self.create_dependent(handle, definition, oid, Vec::new())
    }

    /// A shape is routed to and takes its snapshot once all rows of its inner queries are known: what
    /// is in it follows from them.
    pub(super) fn create_dependent(
        &mut self,
        handle: Handle,
        definition: DefinitionHash,
        oid: Oid,
        dependencies: Vec<Sid>,
    ) -> Result<(), Refusal> {
        self.require_active()?;
        if handle.micros <= self.state().last_handle_micros {
            return Err(Refusal::HandleNotNew);
        }
        for dependency in &dependencies {
            self.living(*dependency)?;
        }
        // A shape is routed from the next commit on: say which was the last.
        self.record_nothing();
        let sid = self.state().last_sid.next();
        let created = self.record(None, ShapeEvent::Created { sid, handle, definition, oid });
        if !dependencies.is_empty() {
            self.record(Some(created), ShapeEvent::Depends { sid, on: dependencies });
        }
        let begins = self.dependencies_live(sid);
        if begins {
            self.route_shape(sid, created);
        }
        self.ask(Effect::OpenShape { sid, handle });
        if begins {
            self.ask(Effect::StartSnapshot { sid, attempt: 1 });
        }
        Ok(())
    }

    fn dependencies_live(&self, sid: Sid) -> bool {
        let live = |sid: &Sid| self.state().shape(*sid).is_some_and(|shape| shape.life == Life::Live);
        self.state().shape(sid).is_some_and(|shape| shape.dependencies.iter().all(live))
    }

    fn route_shape(&mut self, sid: Sid, because: EventId) {
        self.record_nothing();
        let (after, after_lsn) = (self.state().stream.last_seq, self.state().stream.routed);
        self.record(Some(because), ShapeEvent::Routed { sid, after, after_lsn });
        self.record(Some(because), ShapeEvent::SnapshotStarted { sid, attempt: 1 });
    }

    /// The tables whose rows decide about a shape: its own, and those of its inner queries.
    fn tables_of(&self, sid: Sid) -> Vec<Oid> {
        let (mut oids, mut sids) = (Vec::new(), vec![sid]);
        while let Some(shape) = sids.pop().and_then(|sid| self.state().shape(sid)) {
            oids.push(shape.oid);
            sids.extend(&shape.dependencies);
        }
        oids.sort_unstable();
        oids.dedup();
        oids
    }

    pub(super) fn publication_ready(&mut self, sid: Sid, oid: Oid, waited_ms: u64) -> Result<(), Refusal> {
        self.require_active()?;
        self.living(sid)?;
        self.record(None, ShapeEvent::PublicationReady { sid, oid, waited_ms });
        Ok(())
    }

    pub(super) fn snapshot_opened(
        &mut self,
        sid: Sid,
        attempt: u32,
        snapshot: PgSnapshot,
        lsn: Lsn,
    ) -> Result<(), Refusal> {
        self.require_active()?;
        let shape = self.attempt(sid, attempt, Life::Registered)?;
        let after_lsn = shape.routed_after.map_or(Lsn(0), |(_, lsn)| lsn);
        let recent = &self.engine.scratch.recent;
        if self.tables_of(sid).into_iter().any(|oid| recent.lacking(&snapshot, oid, after_lsn)) {
            self.retake_snapshot(sid, attempt);
            return Ok(());
        }
        let visible = self.record(None, ShapeEvent::SnapshotVisible { sid, snapshot, lsn });
        // First what came since the shape is routed: by the time a client has read the rows, the
        // writer has been handed it.
        if !self.state().shapes[&sid].pending.is_empty() {
            self.start_writer(sid, visible);
        }
        self.ask(Effect::CopyRows { sid, attempt });
        Ok(())
    }

    fn retake_snapshot(&mut self, sid: Sid, attempt: u32) {
        let failure = SnapshotFailure::NotYetVisible;
        let failed = self.record(None, ShapeEvent::SnapshotFailed { sid, attempt, failure });
        if attempt >= self.engine.policy.snapshot_attempts_max {
            self.invalidate(sid, InvalidationCause::SnapshotFailed, Some(failed), true);
            return;
        }
        let attempt = attempt + 1;
        self.record(Some(failed), ShapeEvent::SnapshotStarted { sid, attempt });
        self.ask(Effect::StartSnapshot { sid, attempt });
    }

    pub(super) fn snapshot_completed(
        &mut self,
        sid: Sid,
        attempt: u32,
        rows: u64,
        bytes: u64,
    ) -> Result<(), Refusal> {
        self.require_active()?;
        self.attempt(sid, attempt, Life::Snapshotting)?;
        let completed = self.record(None, ShapeEvent::SnapshotCompleted { sid, rows, bytes });
        let waiting: Vec<Sid> = self.engine.projections.shape_index.dependents(sid).collect();
        for outer in waiting {
            let begun = self.state().shape(outer).is_none_or(|shape| shape.routed_after.is_some());
            if !begun && self.dependencies_live(outer) {
                self.route_shape(outer, completed);
                self.ask(Effect::StartSnapshot { sid: outer, attempt: 1 });
            }
        }
        Ok(())
    }

    pub(super) fn snapshot_failed(
        &mut self,
        sid: Sid,
        attempt: u32,
        failure: SnapshotFailure,
    ) -> Result<(), Refusal> {
        self.require_active()?;
        let shape = self.living(sid)?;
        if shape.snapshot_attempt != attempt || shape.life == Life::Live {
            return Err(Refusal::StaleAttempt);
        }
        let failed = self.record(None, ShapeEvent::SnapshotFailed { sid, attempt, failure });
        self.invalidate(sid, InvalidationCause::SnapshotFailed, Some(failed), false);
        Ok(())
    }

    fn attempt(&self, sid: Sid, attempt: u32, life: Life) -> Result<&Shape, Refusal> {
        let shape = self.living(sid)?;
        if shape.snapshot_attempt == attempt && shape.life == life {
            Ok(shape)
        } else {
            Err(Refusal::StaleAttempt)
        }
    }

    pub(super) fn snapshot_stopped(&mut self, sid: Sid) -> Result<(), Refusal> {
        self.require_owned()?;
        let shape = self.state().shape(sid).ok_or(Refusal::UnknownShape)?;
        if shape.life != Life::Invalidated || shape.steps.snapshot_stopped {
            return Ok(());
        }
        self.step_done(sid, RemovalStep::SnapshotStopped);
        self.settle_removal(sid);
        Ok(())
    }

    pub(super) fn invalidate_asked(&mut self, sid: Sid, cause: InvalidationCause) -> Result<(), Refusal> {
        self.require_active()?;
        let running = self.living(sid)?.life < Life::Live;
        self.invalidate(sid, cause, None, running);
        Ok(())
    }

    /// Ends a shape: nothing is routed to it any more, readers are told, and it is taken apart step
    /// by step. `snapshot_running` tells whether a snapshot task has to be waited for.
    pub(in crate::engine) fn invalidate(
        &mut self,
        sid: Sid,
        cause: InvalidationCause,
        because: Option<EventId>,
        snapshot_running: bool,
    ) {
        // The end of one shape may have been the end of others.
        if self.living(sid).is_err() {
            return;
        }
        let outers: Vec<Sid> = self.engine.projections.shape_index.dependents(sid).collect();
        let invalidated = self.record(because, ShapeEvent::Invalidated { sid, cause });
        self.record(Some(invalidated), ShapeEvent::Unrouted { sid });
        if is_suspicion(cause) {
            self.record(Some(invalidated), FlushEvent::BudgetSpent { sid });
        }
        self.ask(Effect::RotateReaders { sid, cause });
        match self.state().shapes[&sid].writer {
            Writer::Live { incarnation, .. } => {
                self.stop_writer(sid, incarnation, ExitCause::Removed, invalidated)
            }
            Writer::Absent | Writer::Stopping { .. } => {}
        }
        if snapshot_running {
            self.ask(Effect::AbortSnapshot { sid });
        } else {
            self.step_done(sid, RemovalStep::SnapshotStopped);
        }
        self.settle_removal(sid);
        for outer in outers {
            let running = self.state().shape(outer).is_some_and(|shape| shape.life < Life::Live);
            self.invalidate(outer, InvalidationCause::DependencyGone, Some(invalidated), running);
        }
        self.release_dependencies(sid, invalidated);
    }

    /// Inner queries go with the last shape that depends on them.
    fn release_dependencies(&mut self, sid: Sid, because: EventId) {
        let dependencies = self.state().shape(sid).map_or_else(Vec::new, |shape| shape.dependencies.clone());
        for dependency in dependencies {
            let needed = self.engine.projections.shape_index.dependents(dependency).next().is_some();
            if let Some(shape) = self.state().shape(dependency).filter(|_| !needed) {
                let running = shape.life < Life::Live;
                self.invalidate(dependency, InvalidationCause::NotNeeded, Some(because), running);
            }
        }
    }

    fn step_done(&mut self, sid: Sid, step: RemovalStep) {
        let because = self.state().shapes[&sid].invalidated.map(|invalidation| invalidation.event);
        self.record(because, ShapeEvent::StepDone { sid, step });
    }

    /// Takes the next steps of a removal, as far as they are due.
    pub(in crate::engine) fn settle_removal(&mut self, sid: Sid) {
        let Some(shape) = self.state().shape(sid) else { return };
        if shape.life != Life::Invalidated {
            return;
        }
        if shape.writer == Writer::Absent && !shape.steps.writer_stopped {
            self.step_done(sid, RemovalStep::WriterStopped);
        }
        let shape = &self.state().shapes[&sid];
        let target = DestructionTarget::ShapeFiles(sid);
        let announced = self.state().owner.open_intents.is_announced(target);
        let steps = shape.steps;
        if steps.writer_stopped && steps.snapshot_stopped && !steps.files_trashed && !announced {
            let handle = shape.handle;
            let because = shape.invalidated.map(|invalidation| invalidation.event);
            let intent = IntentId(self.state().owner.last_intent.0 + 1);
            let cause = DestructionCause::ShapeInvalidated;
            let damaged = |cause| cause == InvalidationCause::StorageDamaged;
            let keep = shape.invalidated.is_some_and(|invalidation| damaged(invalidation.cause));
            self.record(because, OwnershipEvent::DestructiveIntent { intent, target, cause });
            self.ask(Effect::TrashFiles { sid, handle, intent, keep });
        }
    }
}

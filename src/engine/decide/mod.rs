//! Every "may we?" of the core. One file per topic, named as in `events` and `state`.

mod compaction;
mod consumer;
mod flush;
mod lineage;
mod ownership;
mod shape;
mod stream;
mod watch;

use crate::domain::{EventId, Sid};
use crate::engine::{Decision, Input, Refusal};
use crate::state::{Life, OwnerPhase, Shape};

impl Decision<'_> {
    pub(super) fn decide(&mut self, input: Input) -> Result<(), Refusal> {
        match input {
            Input::Boot(boot) => {
                self.boot(boot);
                Ok(())
            }
            Input::OwnershipLost { evidence } => self.ownership_lost(evidence),
            Input::Drain { cause } => self.drain(cause),
            Input::StorageFault { class, stage, file, sid } => self.storage_fault(class, stage, file, sid),
            Input::PostgresReady(ready) => self.postgres_ready(ready),
            Input::StreamStopped { generation, cause } => self.stream_stopped(generation, cause),
            Input::Commit(commit) => self.commit(commit),
            Input::Keepalive { generation, wal_end } => self.keepalive(generation, wal_end),
            Input::Queried { upto } => self.queried(upto),
            Input::RelationAnnounced { oid, schema, affected } => {
                self.relation_announced(oid, schema, &affected)
            }
            Input::PartitionsSeen { oid, members, tree, grown } => {
                self.partitions_seen(oid, &members, tree, grown)
            }
            Input::CreateShape { handle, definition, oid } => self.create_shape(handle, definition, oid),
            Input::CreateDependentShape { handle, definition, oid, dependencies } => {
                self.create_dependent(handle, definition, oid, dependencies)
            }
            Input::Invalidate { sid, cause } => self.invalidate_asked(sid, cause),
            Input::PublicationReady { sid, oid, waited_ms } => self.publication_ready(sid, oid, waited_ms),
            Input::SnapshotOpened { sid, attempt, snapshot, lsn } => {
                self.snapshot_opened(sid, attempt, snapshot, lsn)
            }
            Input::SnapshotCompleted { sid, attempt, rows, bytes } => {
                self.snapshot_completed(sid, attempt, rows, bytes)
            }
            Input::SnapshotFailed { sid, attempt, failure } => self.snapshot_failed(sid, attempt, failure),
            Input::SnapshotStopped { sid } => self.snapshot_stopped(sid),
            Input::FilesTrashed { sid, intent, result } => self.files_trashed(sid, intent, result),
            Input::LogPrepared { sid, incarnation } => self.log_prepared(sid, incarnation),
            Input::LogSwitched { sid, intent, outcome } => self.log_switched(sid, intent, outcome),
            Input::StrangerFound { handle } => self.stranger_found(handle),
            Input::QuarantineExpired { handle } => self.quarantine_expired(handle),
            Input::StrangerSettled { intent, result } => self.stranger_settled(intent, result),
            Input::WriterReady { sid, incarnation, recovered, trimmed_bytes } => {
                self.writer_ready(sid, incarnation, recovered, trimmed_bytes)
            }
            Input::WriterExited { sid, incarnation, cause } => self.writer_exited(sid, incarnation, cause),
            Input::WriterIdle { sid, incarnation } => self.writer_idle(sid, incarnation),
            Input::LiveWriters { asked, live } => self.live_writers(asked, &live),
            Input::Flushed { reports } => self.flushed(&reports),
            Input::HandedOut { upto } => {
                self.engine.scratch.watch.handed = Some(upto);
                Ok(())
            }
            Input::StoodStill { part, still } => self.stood_still(part, still),
            Input::WentOn { part, still } => self.went_on(part, still),
            Input::Tick => {
                self.tick();
                Ok(())
            }
        }
    }

    fn require_active(&self) -> Result<(), Refusal> {
        if self.state().owner.phase == OwnerPhase::Active { Ok(()) } else { Err(Refusal::NotActive) }
    }

    /// Draining writers still report what they finish.
    fn require_owned(&self) -> Result<(), Refusal> {
        match self.state().owner.phase {
            OwnerPhase::Active | OwnerPhase::Draining => Ok(()),
            OwnerPhase::Unowned | OwnerPhase::Released | OwnerPhase::Lost => Err(Refusal::NotActive),
        }
    }

    /// A shape that has not been invalidated.
    fn living(&self, sid: Sid) -> Result<&Shape, Refusal> {
        let shape = self.state().shape(sid).ok_or(Refusal::UnknownShape)?;
        if shape.life == Life::Invalidated { Err(Refusal::AlreadyInvalidated) } else { Ok(shape) }
    }

    fn tick(&mut self) {
        if self.require_active().is_ok() {
            self.restart_writers();
            self.watch_progress();
        }
    }

    fn last_event(&self) -> EventId {
        self.state().last
    }
}

//! Performing effects: strictly in order, each only when its barrier is durable.

use std::collections::VecDeque;

use crate::engine::{Effect, Input};
use crate::events::{DestructionTarget, StopCause};

use crate::testing::model::disk::ShapeFiles;
use crate::testing::model::postgres::definition;
use crate::testing::model::tasks::{SnapshotPhase, SnapshotTask, Writer};
use crate::testing::model::world::{Connection, Mutation, World};

impl World {
    /// Performs the next effect, if its barrier allows it.
    pub fn perform_next(&mut self) -> bool {
        let (durable, free) = (self.disk.durable_id(), self.mutation == Mutation::PerformBeforePersist);
        let Some(process) = &mut self.process else { return false };
        let ready = process.effects.front().is_some_and(|(_, barrier)| free || *barrier <= durable);
        if !ready {
            return false;
        }
        if let Some((effect, _)) = process.effects.pop_front() {
            self.perform(effect);
        }
        true
    }

    /// Sends the next status, once all that its step recorded is durable.
    pub fn perform_status(&mut self) -> bool {
        let (durable, free) = (self.disk.durable_id(), self.mutation == Mutation::PerformBeforePersist);
        let Some(process) = &mut self.process else { return false };
        let ready = process.statuses.front().is_some_and(|(_, barrier)| free || *barrier <= durable);
        if !ready {
            return false;
        }
        if let Some((effect, _)) = process.statuses.pop_front() {
            self.perform(effect);
        }
        true
    }

    fn perform(&mut self, effect: Effect) {
        if self.trace {
            eprintln!("  {effect:?}");
        }
        match effect {
            Effect::ConnectPostgres
            | Effect::StartStream { .. }
            | Effect::StopStream
            | Effect::SendStatus { .. }
            | Effect::ReleasePublication { .. } => self.perform_postgres(effect),
            Effect::RestoreShape { .. }
            | Effect::OpenShape { .. }
            | Effect::StartSnapshot { .. }
            | Effect::CopyRows { .. }
            | Effect::AbortSnapshot { .. }
            | Effect::RotateReaders { .. }
            | Effect::TrashFiles { .. } => self.perform_shape(effect),
            Effect::StartWriter { .. }
            | Effect::StopWriter { .. }
            | Effect::Deliver { .. }
            | Effect::ForgetBefore { .. } => self.perform_writer(effect),
            Effect::QuarantineFiles { .. } | Effect::PurgeQuarantined { .. } => {
                self.fail("nobody has looked for strangers".to_owned());
            }
            Effect::SwitchLog { .. } => self.fail("nobody has prepared a log".to_owned()),
            Effect::Exit => self.exit(),
            Effect::Abort => self.crash(),
        }
    }

    fn perform_postgres(&mut self, effect: Effect) {
        let Some(process) = &mut self.process else { return };
        match effect {
            Effect::ConnectPostgres => {
                // It can be asked for by a new process only, or after the stream was reported ended.
                process.connection = Connection::Asked;
            }
            Effect::StartStream { generation } => match process.connection {
                Connection::Ready { alive: true } => {
                    let at = self.postgres.slot.map_or(self.postgres.insert, |slot| slot.confirmed);
                    process.connection = Connection::Streaming { generation, at };
                    self.postgres.publication_dropped = false;
                }
                Connection::Ready { alive: false } => {
                    process.connection = Connection::None;
                    self.send(Input::StreamStopped { generation, cause: StopCause::Connection });
                }
                other => self.fail(format!("stream {generation} starts on {other:?}")),
            },
            Effect::StopStream => process.connection = Connection::None,
            Effect::SendStatus { generation, lsn } => {
                if matches!(process.connection, Connection::Streaming { generation: own, .. } if own == generation)
                {
                    self.postgres.confirm(lsn);
                    self.check_acknowledged();
                }
            }
            Effect::ReleasePublication { oid } => self.postgres.unpublish(oid),
            other => self.fail(format!("not of Postgres: {other:?}")),
        }
    }

    fn perform_shape(&mut self, effect: Effect) {
        let Some(process) = &mut self.process else { return };
        match effect {
            Effect::RestoreShape { sid, handle } => match self.disk.shapes.get(&sid) {
                Some(files) if files.handle == handle && files.initial_complete => {
                    process.router.insert(sid, files.definition);
                }
                _ => self.fail(format!("shape {sid} is restored and its files are not there")),
            },
            Effect::OpenShape { sid, handle } => {
                let (definition, history) = process.definitions[&sid];
                let (initial, log) = (None, Vec::new());
                let files = ShapeFiles { handle, definition, history, initial, initial_complete: false, log };
                if self.disk.shapes.insert(sid, files).is_some() {
                    self.fail(format!("shape {sid} is opened on the files of another"));
                }
                self.told.insert(handle);
            }
            Effect::StartSnapshot { sid, attempt } => {
                let Some(files) = self.disk.shapes.get(&sid) else {
                    return self.fail(format!("a snapshot of shape {sid}, which has no files"));
                };
                self.postgres.publish(definition(files.definition).0);
                process.snapshots.insert(sid, SnapshotTask { attempt, phase: SnapshotPhase::Fencing });
            }
            Effect::CopyRows { sid, attempt } => {
                let Some(task) = process.snapshots.get_mut(&sid) else { return };
                if task.attempt != attempt {
                    return;
                }
                let opened = std::mem::replace(&mut task.phase, SnapshotPhase::Copying);
                if let (SnapshotPhase::Opened(snapshot), Some(files)) =
                    (opened, self.disk.shapes.get_mut(&sid))
                {
                    files.initial = Some(snapshot);
                }
            }
            Effect::AbortSnapshot { sid } => {
                process.snapshots.remove(&sid);
                self.send(Input::SnapshotStopped { sid });
            }
            Effect::RotateReaders { sid, .. } => {
                process.router.remove(&sid);
                if let Some(files) = self.disk.shapes.get(&sid) {
                    self.rotated.insert(files.handle);
                }
            }
            Effect::TrashFiles { sid, intent, .. } => {
                let busy = process.snapshots.contains_key(&sid)
                    || process.writers.keys().any(|(writing, _)| *writing == sid);
                process.trashing.push((sid, intent));
                let target = DestructionTarget::ShapeFiles(sid);
                let announced = self.disk.state.owner.open_intents.is_for(intent, target);
                if busy {
                    self.fail(format!("the files of shape {sid} are removed under its tasks"));
                }
                if !announced {
                    self.fail(format!("O3: the files of shape {sid} are removed before that is durable"));
                }
            }
            other => self.fail(format!("not of a shape: {other:?}")),
        }
    }

    fn perform_writer(&mut self, effect: Effect) {
        let Some(process) = &mut self.process else { return };
        match effect {
            Effect::StartWriter { sid, incarnation, replay, .. } => {
                let Some(files) = self.disk.shapes.get(&sid) else {
                    return self.fail(format!("a writer of shape {sid}, which has no files"));
                };
                if process.writers.keys().any(|(writing, _)| *writing == sid) {
                    return self.fail(format!("R2: a second writer of shape {sid}"));
                }
                let queue: Option<VecDeque<_>> =
                    replay.iter().map(|seq| Some((*seq, process.bodies.get(seq)?.lsn))).collect();
                let Some(queue) = queue else {
                    return self.fail(format!("a replay of {replay:?} to {sid}, which is not all held"));
                };
                let last = files.log.last().copied().unwrap_or_default();
                let (handled, unsynced, stopping) = (None, Vec::new(), None);
                let writer = Writer { ready: false, queue, last, handled, unsynced, stopping };
                process.writers.insert((sid, incarnation), writer);
            }
            Effect::StopWriter { sid, incarnation, cause } => {
                if let Some(writer) = process.writers.get_mut(&(sid, incarnation)) {
                    writer.stopping = Some(cause);
                }
            }
            Effect::Deliver { seq, to } => {
                let Some(lsn) = process.bodies.get(&seq).map(|body| body.lsn) else {
                    return self.fail(format!("transaction {seq} is delivered and not held"));
                };
                for receiver in to {
                    if let Some(writer) = process.writers.get_mut(&receiver) {
                        writer.queue.push_back((seq, lsn));
                    }
                }
            }
            Effect::ForgetBefore { seq } => process.bodies = process.bodies.split_off(&seq),
            other => self.fail(format!("not of a writer: {other:?}")),
        }
    }

    /// Performs all that the journal allows, after syncing it.
    pub fn perform_all(&mut self) {
        self.disk.sync_to(self.disk.history.len());
        while self.perform_next() || self.perform_status() {}
    }
}

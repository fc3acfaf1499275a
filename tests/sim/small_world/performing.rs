//! Performing effects, strictly in order, each once its barrier is durable.

use std::collections::VecDeque;

use shapefold::domain::Sid;
use shapefold::engine::{Effect, Input};
use shapefold::events::DestructionTarget;

use super::world::{Connection, Files, Message, Protocol, Snapshot, World, Writer};

impl World {
    pub fn next_effect(&self, who: usize) -> Option<&Effect> {
        let process = self.process(who)?;
        let (effect, barrier) = process.effects.front()?;
        (*barrier <= self.disk.durable()).then_some(effect)
    }

    pub fn perform(&mut self, who: usize) {
        let Some(process) = self.process_mut(who) else { return };
        let Some((effect, _)) = process.effects.pop_front() else { return };
        match effect {
            Effect::ConnectPostgres => process.connection = Connection::Asked,
            Effect::StartStream { generation } => {
                if process.connection == Connection::Ready {
                    let confirmed = self.postgres.slot.unwrap_or_default();
                    let sent =
                        (0..self.postgres.committed).take_while(|txn| super::world::lsn(*txn) < confirmed);
                    let streaming = Connection::Streaming(generation, sent.count() as u8);
                    if let Some(process) = self.process_mut(who) {
                        process.connection = streaming;
                    }
                } else {
                    let cause = shapefold::events::StopCause::Connection;
                    self.send(who, Input::StreamStopped { generation, cause });
                }
            }
            Effect::StopStream => {
                process.connection = Connection::None;
                if self.postgres.lock == Some(who) {
                    self.postgres.lock = None;
                }
            }
            Effect::SendStatus { .. } => self.fail("an acknowledgement among the effects"),
            // The publication plays no part here.
            Effect::ReleasePublication { .. } => {}
            Effect::QuarantineFiles { .. } | Effect::PurgeQuarantined { .. } => {
                self.fail("something is set aside, and there is nothing strange in this world");
            }
            Effect::SwitchLog { .. } => self.fail("a log is replaced, and nobody prepares one in this world"),
            Effect::Exit | Effect::Abort => {
                if effect == Effect::Exit && !process.writers.is_empty() {
                    self.fail("O4: the process exits and leaves writers");
                }
                let kept = if effect == Effect::Exit { usize::MAX } else { 0 };
                self.end(who, kept, false);
            }
            Effect::StartWriter { .. }
            | Effect::StopWriter { .. }
            | Effect::Deliver { .. }
            | Effect::ForgetBefore { .. } => self.perform_writer(who, effect),
            Effect::RestoreShape { .. }
            | Effect::OpenShape { .. }
            | Effect::StartSnapshot { .. }
            | Effect::CopyRows { .. }
            | Effect::AbortSnapshot { .. }
            | Effect::RotateReaders { .. }
            | Effect::TrashFiles { .. } => self.perform_shape(who, effect),
        }
    }

    /// Tells Postgres what the oldest acknowledgement says.
    pub fn perform_status(&mut self, who: usize) {
        let Some(process) = self.process_mut(who) else { return };
        let connection = process.connection;
        let Some((Effect::SendStatus { generation, lsn }, _)) = process.statuses.pop_front() else { return };
        if let Connection::Streaming(own, _) = connection
            && own == generation
        {
            let confirmed = self.postgres.slot.unwrap_or_default();
            self.postgres.slot = Some(confirmed.max(lsn));
        }
    }

    fn perform_writer(&mut self, who: usize, effect: Effect) {
        let protocol = self.bounds.protocol;
        let Some(Files { .. }) = self.files_of(&effect) else {
            return self.perform_without_files(who, effect);
        };
        let Some(process) = self.process_mut(who) else { return };
        match effect {
            Effect::StartWriter { sid, incarnation, replay, .. } => {
                if process.writers.contains_key(&sid) {
                    return self.fail(format!("R2: a second writer of shape {sid}"));
                }
                let bodies: Option<VecDeque<_>> =
                    replay.iter().map(|seq| Some((*seq, *process.bodies.get(seq)?))).collect();
                let Some(mut queue) = bodies else {
                    return self.fail(format!("a replay of {replay:?} to {sid}, which is not all held"));
                };
                let mut handled = None;
                if protocol == Protocol::ConsideredFlushed && incarnation.0 > 1 {
                    handled = queue.back().map(|(seq, _)| *seq);
                    queue.clear();
                }
                let writer =
                    Writer { incarnation, ready: false, queue, handled, tail: Vec::new(), stopping: None };
                process.writers.insert(sid, writer);
            }
            Effect::StopWriter { sid, incarnation, cause } => {
                if let Some(writer) = process.writers.get_mut(&sid)
                    && writer.incarnation == incarnation
                {
                    writer.stopping = Some(cause);
                }
            }
            other => self.fail(format!("not of one writer: {other:?}")),
        }
    }

    /// The files of the shape whose writer this effect is about.
    fn files_of(&self, effect: &Effect) -> Option<&Files> {
        match effect {
            Effect::StartWriter { sid, .. } | Effect::StopWriter { sid, .. } => self.disk.shapes.get(sid),
            _ => None,
        }
    }

    fn perform_without_files(&mut self, who: usize, effect: Effect) {
        let protocol = self.bounds.protocol;
        let Some(process) = self.process_mut(who) else { return };
        match effect {
            Effect::Deliver { seq, to } => {
                let Some(txn) = process.bodies.get(&seq).copied() else {
                    return self.fail(format!("transaction {seq} is delivered and not held"));
                };
                let mut undeliverable = Vec::new();
                for (sid, incarnation) in to {
                    match process.writers.get_mut(&sid) {
                        Some(writer) if writer.incarnation == incarnation => {
                            writer.queue.push_back((seq, txn));
                        }
                        _ => undeliverable.push((sid, incarnation)),
                    }
                }
                if protocol == Protocol::UndeliverableForgotten && !undeliverable.is_empty() {
                    let report =
                        |(sid, incarnation)| shapefold::engine::FlushReport { sid, incarnation, upto: seq };
                    // At once, as it was done there: before anybody can tell of the writer's end.
                    let reports = undeliverable.into_iter().map(report).collect();
                    process.inbox.push_front(Message::Input(Input::Flushed { reports }));
                }
            }
            Effect::ForgetBefore { seq } => process.bodies = process.bodies.split_off(&seq),
            Effect::StopWriter { .. } => {}
            Effect::StartWriter { sid, .. } => self.no_files(sid, "a writer is started"),
            other => self.fail(format!("not of a writer: {other:?}")),
        }
    }

    fn no_files(&mut self, sid: Sid, what: &str) {
        self.fail(format!("{what} and shape {sid} has no files"));
    }

    fn perform_shape(&mut self, who: usize, effect: Effect) {
        match effect {
            Effect::RestoreShape { sid, handle } => {
                let found =
                    self.disk.shapes.get(&sid).filter(|files| files.handle == handle && files.complete);
                let Some(definition) = found.map(|files| files.definition) else {
                    return self.no_files(sid, "a shape is restored");
                };
                if let Some(process) = self.process_mut(who) {
                    process.router.insert(sid, definition);
                }
            }
            Effect::OpenShape { sid, handle } => {
                let Some(definition) = self.process(who).map(|process| process.definitions[&sid]) else {
                    return;
                };
                let files = Files { handle, definition, initial: None, complete: false, log: Vec::new() };
                if self.disk_mut().shapes.insert(sid, files).is_some() {
                    self.fail(format!("shape {sid} is opened on the files of another"));
                }
            }
            Effect::StartSnapshot { sid, attempt } => {
                if !self.disk.shapes.contains_key(&sid) {
                    return self.no_files(sid, "a snapshot is started");
                }
                if let Some(process) = self.process_mut(who) {
                    process.snapshots.insert(sid, (attempt, Snapshot::Wanted));
                }
            }
            Effect::CopyRows { sid, attempt } => {
                let Some(process) = self.process_mut(who) else { return };
                let Some((own, phase)) = process.snapshots.get_mut(&sid) else { return };
                let Snapshot::Opened(contains) = *phase else { return };
                if *own != attempt {
                    return;
                }
                *phase = Snapshot::Copying(contains);
                match self.disk_mut().shapes.get_mut(&sid) {
                    Some(files) => files.initial = Some(contains),
                    None => self.no_files(sid, "rows are copied"),
                }
            }
            Effect::AbortSnapshot { sid } => {
                if let Some(process) = self.process_mut(who) {
                    process.snapshots.remove(&sid);
                }
                self.send(who, Input::SnapshotStopped { sid });
            }
            Effect::RotateReaders { sid, .. } => {
                if let Some(process) = self.process_mut(who) {
                    process.router.remove(&sid);
                }
            }
            Effect::TrashFiles { sid, intent, .. } => self.trash(who, sid, intent),
            other => self.fail(format!("not of a shape: {other:?}")),
        }
    }

    fn trash(&mut self, who: usize, sid: Sid, intent: shapefold::events::IntentId) {
        let target = DestructionTarget::ShapeFiles(sid);
        if !self.disk.state.owner.open_intents.is_for(intent, target) {
            self.fail(format!("O3: the files of shape {sid} are removed before that is durable"));
        }
        let Some(process) = self.process_mut(who) else { return };
        if process.snapshots.contains_key(&sid) || process.writers.contains_key(&sid) {
            self.fail(format!("the files of shape {sid} are removed under its tasks"));
        } else {
            process.trashing.push((sid, intent));
        }
    }
}

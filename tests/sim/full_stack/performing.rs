//! Performing effects, as `runtime::executor` does.

use std::sync::Arc;

use shapefold::domain::{Handle, Seq, Sid};
use shapefold::engine::{Effect, Input};
use shapefold::events::{DestructionTarget, InvalidationCause};
use shapefold::filter::Predicate;
use shapefold::runtime::faults;
use shapefold::runtime::handle::Phase;
use shapefold::runtime::writers::Command;
use shapefold::shape_log::{ShapeFiles, ShapeLogError, ShapeReader, Verify, open_read_only};

use super::driver::pool_of;
use super::tasks::SnapshotTask;
use super::world::{Connection, Item, World};

impl World {
    pub fn perform(&mut self, effect: Effect) {
        self.tell(|| format!("    {effect:?}"));
        let Some(process) = &mut self.process else { return };
        match effect {
            Effect::ConnectPostgres => {
                process.connection = Connection::Asked;
                process.ready = true;
            }
            Effect::StartStream { generation } => self.start_stream(generation),
            Effect::StopStream => process.connection = Connection::None,
            Effect::SendStatus { generation, lsn } => {
                if matches!(&process.connection, Connection::Streaming { generation: own, .. } if *own == generation)
                {
                    self.postgres.confirm(lsn);
                    self.check_acknowledged();
                }
            }
            Effect::RestoreShape { sid, handle } => self.restore(sid, handle),
            Effect::OpenShape { sid, .. } => {
                if let Some(shape) = process.shapes.get(&sid) {
                    process.service.insert(shape.handle, Arc::clone(shape));
                }
            }
            Effect::StartSnapshot { sid, attempt } => {
                if let Some(shape) = process.shapes.get(&sid) {
                    process.snapshots.insert(sid, SnapshotTask::new(Arc::clone(shape), attempt));
                }
            }
            Effect::CopyRows { sid, attempt } => {
                if let Some(task) = process.snapshots.get_mut(&sid).filter(|task| task.attempt == attempt)
                    && let Some((handle, snapshot)) = task.go_on()
                {
                    self.remember_snapshot(handle, &snapshot);
                }
            }
            Effect::AbortSnapshot { sid } => {
                // Its task ends, and the one beside it says so.
                process.snapshots.remove(&sid);
                process.messages.push_back(Input::SnapshotStopped { sid });
            }
            Effect::StartWriter { sid, incarnation, replay, complete } => {
                self.start_writer(sid, incarnation, &replay, complete);
            }
            Effect::StopWriter { sid, incarnation, cause } => {
                process.pools[pool_of(sid)].commands.push_back(Command::Stop { sid, incarnation, cause });
            }
            Effect::Deliver { seq, to } => {
                let Some(routed) = process.bodies.get(&seq) else {
                    return self.fail(format!("transaction {seq} is owed and not held"));
                };
                for (number, pool) in process.pools.iter_mut().enumerate() {
                    let to: Vec<_> = to.iter().copied().filter(|(sid, _)| pool_of(*sid) == number).collect();
                    if !to.is_empty() {
                        pool.commands.push_back(Command::Deliver { seq, routed: Arc::clone(routed), to });
                    }
                }
            }
            Effect::ForgetBefore { seq } => process.bodies = process.bodies.split_off(&seq),
            Effect::RotateReaders { sid, .. } => {
                if let Some(shape) = process.shapes.remove(&sid) {
                    process.service.remove(&shape.handle);
                    shape.set_phase(Phase::Ended);
                }
            }
            Effect::SwitchLog { sid, incarnation, intent } => self.switch_log(sid, incarnation, intent),
            Effect::QuarantineFiles { .. } | Effect::PurgeQuarantined { .. } => {
                self.fail("nobody has looked for strangers".to_owned());
            }
            Effect::TrashFiles { sid, handle, intent, .. } => {
                let target = DestructionTarget::ShapeFiles(sid);
                process.trashing.push((sid, handle, intent));
                if !self.durable.owner.open_intents.is_for(intent, target) {
                    self.fail(format!("O3: the files of shape {sid} are removed before that is durable"));
                }
            }
            Effect::ReleasePublication { oid } => {
                if !process.shapes.values().any(|shape| shape.definition.relation.oid == oid) {
                    self.postgres.unpublish(oid);
                }
            }
            Effect::Exit => self.exit(),
            Effect::Abort => self.crash(),
        }
    }

    fn start_stream(&mut self, generation: shapefold::domain::Generation) {
        let Some(process) = &mut self.process else { return };
        match process.connection {
            Connection::Ready { alive: true } => {
                let at = self.postgres.slot.unwrap_or(self.postgres.insert);
                process.connection = super::tasks::streaming(generation, at);
            }
            Connection::Ready { alive: false } => {
                process.connection = Connection::None;
                process.batches.push_back((generation, Item::Stopped));
            }
            Connection::None | Connection::Asked | Connection::Streaming { .. } => {
                self.fail(format!("stream {generation} starts on no connection"));
            }
        }
    }

    fn restore(&mut self, sid: Sid, handle: Handle) {
        let Some(process) = &mut self.process else { return };
        let files = ShapeFiles::open(Arc::clone(&process.files), World::data(), handle);
        let read = || {
            let definition = Arc::new(files.read_definition()?);
            let predicate = definition.where_sql.as_ref().map(|sql| {
                Predicate::from_canonical(sql, &definition.relation).expect("its own canonical form")
            });
            let reader = ShapeReader::open(&files)?;
            open_read_only(&files, &reader, Verify::Tail)?;
            Ok::<_, ShapeLogError>((definition, predicate, reader))
        };
        let read = read();
        if self.died_on_disk() {
            return;
        }
        let Some(process) = &mut self.process else { return };
        match read {
            Ok((definition, predicate, reader)) => {
                let shape = process.install(sid, handle, &definition, predicate, reader, Phase::Readable);
                process.service.insert(handle, shape);
            }
            Err(ShapeLogError::Storage(fault)) => {
                self.tell(|| format!("    not restored: {fault}"));
                self.stats.count("shapes that could not be restored");
                self.input(faults::input(fault, Some(sid)));
                self.input(Input::Invalidate { sid, cause: InvalidationCause::StorageDamaged });
            }
            Err(_) => {
                self.input(Input::Invalidate { sid, cause: InvalidationCause::StorageDamaged });
            }
        }
    }

    fn start_writer(
        &mut self,
        sid: Sid,
        incarnation: shapefold::domain::Incarnation,
        replay: &[Seq],
        complete: bool,
    ) {
        let Some(process) = &mut self.process else { return };
        let Some(shape) = process.shapes.get(&sid).cloned() else { return };
        let files = ShapeFiles::open(Arc::clone(&process.files), World::data(), shape.handle);
        let held: Option<Vec<_>> =
            replay.iter().map(|seq| Some((*seq, Arc::clone(process.bodies.get(seq)?)))).collect();
        let Some(replay) = held else {
            return self.fail(format!("a replay of {replay:?} to {sid}, which is not all held"));
        };
        let owes_from = None;
        let start = Command::Start { sid, incarnation, shape, files, replay, complete, owes_from };
        process.pools[pool_of(sid)].commands.push_back(start);
    }
}

//! What runs beside the driver: the stream, the writer pools, the snapshot tasks, the trash.

use std::collections::BTreeSet;
use std::future::Future;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};

use shapefold::domain::Value;
use shapefold::domain::{Generation, Handle, Lsn, Sid};
use shapefold::engine::{Input, PostgresReady};
use shapefold::events::{DestructionResult, SnapshotFailure};
use shapefold::replication::{Assembler, Frame, SPILL_BYTES_DEFAULT};
use shapefold::runtime::faults;
use shapefold::runtime::handle::{LiveShape, Phase, SnapshotProblem};
use shapefold::runtime::writers::Command;
use shapefold::shape_log::{FaultClass, ShapeFiles, ShapeLogError, SnapshotWriter, purge, snapshot_columns};

use super::disk::PANIC;
use super::postgres::{KINDS, Row, Snapshot, messages};
use super::world::{Connection, Item, World};

/// Taking the snapshot of one shape, step by step.
pub struct SnapshotTask {
    pub attempt: u32,
    pub shape: Arc<LiveShape>,
    phase: SnapshotPhase,
}

#[expect(clippy::large_enum_variant, reason = "a handful exist at a time")]
enum SnapshotPhase {
    Begun,
    Published,
    /// The driver decides whether it is good.
    Opened(Snapshot),
    GoOn(Snapshot),
    Copying {
        writer: SnapshotWriter,
        rows: Vec<Row>,
        snapshot: Snapshot,
    },
}

impl SnapshotTask {
    pub fn new(shape: Arc<LiveShape>, attempt: u32) -> SnapshotTask {
        SnapshotTask { attempt, shape, phase: SnapshotPhase::Begun }
    }

    /// The snapshot that was opened is good.
    pub fn go_on(&mut self) -> Option<(Handle, Snapshot)> {
        let SnapshotPhase::Opened(snapshot) = &self.phase else { return None };
        let snapshot = snapshot.clone();
        self.phase = SnapshotPhase::GoOn(snapshot.clone());
        Some((self.shape.handle, snapshot))
    }
}

pub fn streaming(generation: Generation, at: Lsn) -> Connection {
    let assembler = Assembler::new(PathBuf::from("/nonexistent"), SPILL_BYTES_DEFAULT);
    Connection::Streaming { generation, at, assembler, announced: BTreeSet::new() }
}

/// Panics when it is woken: a way to have a writer panic in the middle of a commit, right after it has
/// shown the transaction to readers.
struct PanicsWhenWoken;

impl Wake for PanicsWhenWoken {
    fn wake(self: Arc<Self>) {
        std::panic::panic_any(PANIC);
    }
}

impl World {
    // The stream.

    pub fn connect(&mut self) {
        let Some(process) = &mut self.process else { return };
        if !matches!(process.connection, Connection::Asked) {
            return;
        }
        process.connection = Connection::Ready { alive: true };
        let slot_created = self.postgres.slot.is_none();
        if slot_created {
            // A slot is made when every transaction that was running has ended.
            self.postgres.reveal_before(shapefold::domain::Timestamp(i64::MAX));
            self.postgres.slot = Some(self.postgres.insert);
        }
        let confirmed = self.postgres.slot.unwrap_or_default();
        process.messages.push_back(Input::PostgresReady(PostgresReady {
            system_id: 1,
            timeline: 1,
            server_version: 170_000,
            database: shapefold::domain::Oid(5),
            backend_pid: 9,
            slot: "slot".to_owned(),
            confirmed,
            restart: confirmed,
            slot_created,
            slot_lost: false,
            published: self.postgres.published_tables(),
            publication_created: false,
            lineage: shapefold::domain::Lineage::default(),
        }));
    }

    pub fn disconnect(&mut self) {
        let Some(process) = &mut self.process else { return };
        match process.connection {
            Connection::None | Connection::Asked => {}
            Connection::Ready { .. } => process.connection = Connection::Ready { alive: false },
            Connection::Streaming { generation, .. } => {
                process.connection = Connection::None;
                process.batches.push_back((generation, Item::Stopped));
                self.stats.count("disconnects");
            }
        }
    }

    /// Postgres sends the next commit.
    pub fn stream_next(&mut self) -> bool {
        let Some(process) = &mut self.process else { return false };
        let Connection::Streaming { generation, at, assembler, announced } = &mut process.connection else {
            return false;
        };
        let Some(committed) = self.postgres.decode(*at) else { return false };
        *at = Lsn(committed.lsn.0 + 1);
        let mut items = Vec::new();
        for data in messages(committed, announced) {
            let frame = Frame::XLogData { wal_start: committed.lsn, wal_end: committed.lsn, data: &data };
            assembler.accept(frame, &mut items).expect("the model sends what Postgres would");
        }
        let items = items.into_iter().map(|item| (*generation, Item::Stream(item)));
        process.batches.extend(items);
        true
    }

    pub fn send_keepalive(&mut self) {
        let Some(process) = &mut self.process else { return };
        let Connection::Streaming { generation, at, assembler, .. } = &mut process.connection else { return };
        let wal_end = self.postgres.decode(*at).map_or(self.postgres.insert, |next| next.lsn);
        let mut items = Vec::new();
        let frame = Frame::Keepalive { wal_end, reply_requested: false };
        assembler.accept(frame, &mut items).expect("a keepalive");
        process.batches.extend(items.into_iter().map(|item| (*generation, Item::Stream(item))));
    }

    // The writers.

    /// A pool performs its next command; the writer that is handed something may not survive it.
    pub fn pool_works(&mut self, number: usize) -> bool {
        if self.process.as_ref().is_none_or(|process| process.pools[number].commands.is_empty()) {
            return false;
        }
        if self.point("before a command") {
            return true;
        }
        let now = self.now;
        let Some(process) = &mut self.process else { return true };
        let Some(command) = process.pools[number].commands.pop_front() else { return false };
        if let Command::Switch { files, prepared, .. } = &command {
            let (handle, through) = (files.handle(), prepared.through().tx());
            self.note_rewritten(handle, through);
        }
        let Some(process) = &mut self.process else { return true };
        let target = match &command {
            Command::Start { shape, .. } => Some(Arc::clone(shape)),
            Command::Deliver { to, .. } => to.first().and_then(|(sid, _)| process.shapes.get(sid)).cloned(),
            _ => None,
        };
        let waker = Waker::from(Arc::new(PanicsWhenWoken));
        let panics = target.as_ref().and_then(|shape| self.panics(shape.sid));
        let Some(process) = &mut self.process else { return true };
        match (panics, target) {
            (Some(Panics::WhenShown), Some(shape)) => {
                let mut woken = pin!(shape.reader.wait_for(|_| false));
                assert!(woken.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
                process.pools[number].pool.perform(now, command);
            }
            (Some(Panics::OnDisk(calls)), Some(_)) => {
                process.disk.panic_in(calls);
                process.pools[number].pool.perform(now, command);
                process.disk.panic_in(0);
            }
            _ => process.pools[number].pool.perform(now, command),
        }
        self.after_pool(number);
        true
    }

    pub fn pool_flushes(&mut self, number: usize) {
        if self.point("before a flush") {
            return;
        }
        let Some(process) = &mut self.process else { return };
        process.pools[number].pool.flush();
        self.after_pool(number);
    }

    pub fn pool_tells_idle(&mut self, number: usize) {
        let now = self.now;
        let Some(process) = &mut self.process else { return };
        process.pools[number].pool.tell_idle(now);
        self.after_pool(number);
    }

    fn after_pool(&mut self, number: usize) {
        if self.died_on_disk() {
            return;
        }
        let Some(process) = &mut self.process else { return };
        let reports = process.pools[number].pool.take_reports();
        process.reports.extend(reports);
        self.point("after a command");
    }

    // Snapshots.

    pub fn snapshot_tasks(&self) -> Vec<Sid> {
        self.process.as_ref().map(|process| process.snapshots.keys().copied().collect()).unwrap_or_default()
    }

    /// The snapshot task of a shape takes its next step.
    pub fn snapshot_works(&mut self, sid: Sid) {
        let Some(process) = &mut self.process else { return };
        let Some(mut task) = process.snapshots.remove(&sid) else { return };
        let attempt = task.attempt;
        let result = self.snapshot_step(&mut task);
        if self.died_on_disk() {
            return;
        }
        let Some(process) = &mut self.process else { return };
        match result {
            Ok(None) => {
                process.snapshots.insert(sid, task);
            }
            Ok(Some(done)) => {
                process.messages.push_back(done);
                process.messages.push_back(Input::SnapshotStopped { sid });
            }
            Err(error) => {
                let text = error.to_string();
                task.shape.set_phase(Phase::Failed(SnapshotProblem::Unexpected(text)));
                if let ShapeLogError::Storage(fault) = error {
                    process.messages.push_back(faults::input(fault, Some(sid)));
                }
                let failure = SnapshotFailure::Storage;
                process.messages.push_back(Input::SnapshotFailed { sid, attempt, failure });
                process.messages.push_back(Input::SnapshotStopped { sid });
            }
        }
    }

    fn snapshot_step(&mut self, task: &mut SnapshotTask) -> Result<Option<Input>, ShapeLogError> {
        let (sid, attempt, handle) = (task.shape.sid, task.attempt, task.shape.handle);
        let definition = Arc::clone(&task.shape.definition);
        let chunk_bytes = self.chunk_bytes;
        let Some(disk) = self.shared_disk() else { return Ok(None) };
        let kind = self.kind_of(definition.hash());
        let table = KINDS[kind].table;
        let Some(process) = &mut self.process else { return Ok(None) };
        // Taken out, so that what is dropped on an error is dropped there.
        match std::mem::replace(&mut task.phase, SnapshotPhase::Begun) {
            SnapshotPhase::Begun => {
                if attempt == 1 {
                    ShapeFiles::create(disk, World::data(), handle, &definition)?;
                }
                self.postgres.publish(table);
                task.phase = SnapshotPhase::Published;
            }
            SnapshotPhase::Published if !self.postgres.fence_passed(table) => {
                task.phase = SnapshotPhase::Published;
            }
            SnapshotPhase::Published => {
                process.messages.push_back(Input::PublicationReady { sid, oid: table, waited_ms: 0 });
                let snapshot = self.postgres.snapshot();
                process.messages.push_back(Input::SnapshotOpened {
                    sid,
                    attempt,
                    snapshot: snapshot.snapshot.clone(),
                    lsn: snapshot.lsn,
                });
                task.phase = SnapshotPhase::Opened(snapshot);
            }
            SnapshotPhase::Opened(snapshot) => task.phase = SnapshotPhase::Opened(snapshot),
            SnapshotPhase::GoOn(snapshot) => {
                let files = ShapeFiles::open(disk, World::data(), handle);
                let reader = Arc::clone(&task.shape.reader);
                let writer = SnapshotWriter::create(&files, &definition, reader, chunk_bytes)?;
                task.shape.set_phase(Phase::Readable);
                let rows = self.postgres.rows_after(table, |lsn| snapshot.contains.contains(&lsn));
                let rows = rows.into_values().filter(|row| (KINDS[kind].wants)(row)).collect();
                task.phase = SnapshotPhase::Copying { writer, rows, snapshot };
            }
            SnapshotPhase::Copying { mut writer, mut rows, snapshot } => {
                let Some(row) = rows.pop() else {
                    let done = writer.finish(&snapshot.snapshot)?;
                    let (rows, bytes) = (done.rows, done.bytes);
                    return Ok(Some(Input::SnapshotCompleted { sid, attempt, rows, bytes }));
                };
                let values: Vec<String> =
                    snapshot_columns(&definition).iter().map(|column| row.value(column)).collect();
                let values: Vec<Value<'_>> =
                    values.iter().map(|value| Value::Text(value.as_bytes())).collect();
                writer.push_row(&values)?;
                if rows.len() % 2 == 0 {
                    writer.show()?;
                }
                task.phase = SnapshotPhase::Copying { writer, rows, snapshot };
            }
        }
        Ok(None)
    }

    pub fn snapshot_fails(&mut self, sid: Sid) {
        let Some(process) = &mut self.process else { return };
        let Some(task) = process.snapshots.remove(&sid) else { return };
        task.shape.set_phase(Phase::Failed(SnapshotProblem::Known("the connection broke".to_owned())));
        let (attempt, failure) = (task.attempt, SnapshotFailure::Connection);
        process.messages.push_back(Input::SnapshotFailed { sid, attempt, failure });
        process.messages.push_back(Input::SnapshotStopped { sid });
    }

    // The trash.

    pub fn trash_works(&mut self, number: usize) {
        let Some(process) = &mut self.process else { return };
        let (sid, handle, intent) = process.trashing.remove(number);
        let disk = Arc::clone(&process.files);
        let files = ShapeFiles::open(Arc::clone(&disk), World::data(), handle);
        let result = match files.trash(World::data()) {
            Ok(()) => Ok(DestructionResult::Done),
            Err(ShapeLogError::Storage(fault)) if fault.class == FaultClass::Vanished => {
                Ok(DestructionResult::AlreadyDone)
            }
            Err(error) => Err(error),
        };
        let result =
            result.and_then(|result| match purge(disk.as_ref(), World::data(), &handle.to_string()) {
                Err(ShapeLogError::Storage(fault)) if fault.class == FaultClass::Vanished => Ok(result),
                purged => purged.map(|()| result),
            });
        if self.died_on_disk() {
            return;
        }
        let Some(process) = &mut self.process else { return };
        match result {
            Ok(result) => process.messages.push_back(Input::FilesTrashed { sid, intent, result }),
            Err(ShapeLogError::Storage(fault)) => process.messages.push_back(faults::input(fault, None)),
            Err(_) => {}
        }
    }
}

/// Where a writer panics.
#[derive(Clone, Copy, Debug)]
pub enum Panics {
    /// In a commit, when readers are told.
    WhenShown,
    /// In a call of the disk.
    OnDisk(u64),
}

/// What a future has now.
pub fn poll_now<F: Future>(future: F) -> Option<F::Output> {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => Some(output),
        Poll::Pending => None,
    }
}

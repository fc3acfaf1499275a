//! Tasks that run beside the engine: the stream, writers, snapshots, the trash.

use std::collections::VecDeque;

use crate::domain::{Generation, Incarnation, Lsn, Oid, Seq, Sid, SidSet, Timestamp};
use crate::engine::{Commit, FlushReport, Input, PostgresReady};
use crate::events::{
    DestructionResult, Event, ExitCause, FaultClass, FileKind, SnapshotFailure, Stage, StopCause, StreamEvent,
};

use crate::testing::model::postgres::{Committed, Slot, Snapshot, TABLES, definition};
use crate::testing::model::world::{Connection, Message, Mutation, World};

/// One incarnation.
pub struct Writer {
    pub ready: bool,
    pub queue: VecDeque<(Seq, Lsn)>,
    /// The newest commit in the log or waiting to be synced.
    pub last: Lsn,
    /// The newest number that it has dealt with.
    pub handled: Option<Seq>,
    pub unsynced: Vec<Lsn>,
    pub stopping: Option<ExitCause>,
}

pub struct SnapshotTask {
    pub attempt: u32,
    pub phase: SnapshotPhase,
}

pub enum SnapshotPhase {
    Fencing,
    Opened(Snapshot),
    Copying,
}

impl World {
    /// The connection that was asked for comes up.
    pub fn connect(&mut self) {
        let Some(process) = &mut self.process else { return };
        if process.connection != Connection::Asked || self.locked_elsewhere {
            return;
        }
        process.connection = Connection::Ready { alive: true };
        let insert = self.postgres.insert;
        let fresh = Slot { confirmed: insert, persisted: insert, lost: false };
        let created = self.postgres.slot.is_none() || self.postgres.slot.is_some_and(|slot| slot.lost);
        let lost = self.postgres.slot.is_some_and(|slot| slot.lost);
        if created {
            // A slot is made when every transaction that was running has ended.
            self.postgres.reveal_before(Timestamp(i64::MAX));
            self.postgres.slot = Some(fresh);
        }
        // It is made when the stream starts, once it is durable that the history is broken: a process
        // that made it now and died would leave one that its successor takes for the old one.
        let publication_created = self.postgres.publication_dropped;
        let confirmed = self.postgres.slot.map_or(insert, |slot| slot.confirmed);
        self.send(Input::PostgresReady(PostgresReady {
            system_id: self.postgres.system_id,
            timeline: self.postgres.timeline,
            server_version: 170_000,
            database: Oid(5),
            backend_pid: 9,
            slot: "slot".to_owned(),
            confirmed,
            restart: confirmed,
            slot_created: created,
            slot_lost: lost,
            published: if publication_created {
                Vec::new()
            } else {
                (0..TABLES).map(|table| Oid(100 + u32::try_from(table).expect("few tables"))).collect()
            },
            publication_created,
            lineage: crate::domain::Lineage::default(),
        }));
    }

    pub fn disconnect(&mut self, cause: StopCause) {
        let Some(process) = &mut self.process else { return };
        match process.connection {
            Connection::None | Connection::Asked => {}
            Connection::Ready { .. } => process.connection = Connection::Ready { alive: false },
            Connection::Streaming { generation, .. } => {
                process.connection = Connection::None;
                self.send_aside([Input::StreamStopped { generation, cause }]);
            }
        }
    }

    /// Postgres sends the next commit.
    pub fn stream_next(&mut self) -> bool {
        let Some(process) = &mut self.process else { return false };
        let Connection::Streaming { generation, at } = process.connection else { return false };
        let Some(committed) = self.postgres.decode(at).cloned() else { return false };
        process.connection = Connection::Streaming { generation, at: Lsn(committed.lsn.0 + 1) };
        process.inbox.push_back(Message::Commit(generation, committed));
        true
    }

    pub fn send_keepalive(&mut self) {
        let Some(process) = &self.process else { return };
        let Connection::Streaming { generation, at } = process.connection else { return };
        let wal_end = self.postgres.decode(at).map_or(self.postgres.insert, |next| next.lsn);
        self.send(Input::Keepalive { generation, wal_end });
    }

    pub fn take_commit(&mut self, generation: Generation, committed: Committed) {
        let Some(process) = &mut self.process else { return };
        match self.mutation {
            Mutation::SkipReceived if committed.lsn <= process.received => return,
            Mutation::AcknowledgeOnReceive => self.postgres.confirm(Lsn(committed.lsn.0 + 1)),
            _ => {}
        }
        process.received = process.received.max(committed.lsn);
        let set: SidSet = process
            .router
            .iter()
            .filter(|(_, hash)| committed.matches(**hash))
            .map(|(sid, _)| *sid)
            .collect();
        let before = self.disk.history.len();
        let accepted = self.input(Input::Commit(Commit {
            generation,
            lsn: committed.lsn,
            xid: committed.xid(),
            committed_at: committed.at,
            changes: committed.txn.rows.len() as u64,
            bytes: 10,
            set,
            tables: committed.tables(),
            truncated: committed.txn.truncated.clone(),
            old_row_missing: committed.txn.old_row_missing.clone(),
        }));
        if !accepted {
            return;
        }
        let numbered = self.disk.history[before..].iter().find_map(|recorded| match &recorded.event {
            Event::Stream(StreamEvent::TxnRouted { seq, .. } | StreamEvent::TxnRedelivered { seq, .. }) => {
                Some(*seq)
            }
            _ => None,
        });
        if let (Some(seq), Some(process)) = (numbered, &mut self.process) {
            process.bodies.insert(seq, committed);
        }
    }

    /// A writer recovers its log, deals with what it was handed, or ends where it was asked to.
    pub fn writer_works(&mut self, sid: Sid, incarnation: Incarnation, upto: usize) {
        let twice = self.mutation == Mutation::ApplyTwice;
        let Some(process) = &mut self.process else { return };
        let Some(writer) = process.writers.get_mut(&(sid, incarnation)) else { return };
        if !writer.ready {
            writer.ready = true;
            let recovered = writer.last;
            self.send(Input::WriterReady { sid, incarnation, recovered, trimmed_bytes: 0 });
            return;
        }
        if self.cursed && sid.0.is_multiple_of(4) && !writer.queue.is_empty() {
            return self.writer_ends(sid, incarnation, ExitCause::Panicked);
        }
        for _ in 0..upto {
            let Some((seq, lsn)) = writer.queue.pop_front() else { break };
            writer.handled = writer.handled.max(Some(seq));
            if lsn > writer.last || twice {
                writer.last = writer.last.max(lsn);
                writer.unsynced.push(lsn);
            }
        }
    }

    /// A group flush: syncs what these writers have written and reports it as one.
    pub fn flush(&mut self, chosen: &[(Sid, Incarnation)]) {
        let mut reports = Vec::new();
        for (sid, incarnation) in chosen {
            let Some(process) = &mut self.process else { return };
            let Some(writer) = process.writers.get_mut(&(*sid, *incarnation)) else { continue };
            let Some(upto) = writer.handled else { continue };
            if self.mutation != Mutation::ReportBeforeSync {
                let written = std::mem::take(&mut writer.unsynced);
                self.store(*sid, &written);
            }
            reports.push(FlushReport { sid: *sid, incarnation: *incarnation, upto });
        }
        if !reports.is_empty() {
            self.send(Input::Flushed { reports });
        }
    }

    fn store(&mut self, sid: Sid, written: &[Lsn]) {
        match self.disk.shapes.get_mut(&sid) {
            Some(files) => files.log.extend_from_slice(written),
            None => self.fail(format!("shape {sid} is written to and has no files")),
        }
        self.check_log(sid);
    }

    /// Some of what a dead writer had written and not synced is found all the same.
    pub fn abandon(&mut self, sid: Sid, writer: Writer) {
        let found = self.choices.below(writer.unsynced.len() + 1);
        if self.disk.shapes.contains_key(&sid) {
            self.store(sid, &writer.unsynced[..found]);
        }
    }

    pub fn writer_ends(&mut self, sid: Sid, incarnation: Incarnation, cause: ExitCause) {
        let Some(process) = &mut self.process else { return };
        let Some(writer) = process.writers.remove(&(sid, incarnation)) else { return };
        self.abandon(sid, writer);
        let mut told = Vec::new();
        if cause == ExitCause::StorageFault {
            let class = FaultClass::Transient { errno: 5 };
            let (stage, file) = (Stage::Sync, FileKind::ShapeLog);
            told.push(Input::StorageFault { class, stage, file, sid: Some(sid) });
        }
        // One that vanishes says nothing: the audit finds out.
        if cause != ExitCause::Vanished && !self.mutation.swallows_exits() {
            told.push(Input::WriterExited { sid, incarnation, cause });
        }
        self.send_aside(told);
    }

    /// A writer that was asked to end does: after flushing, unless its shape is going anyway.
    pub fn writer_obeys(&mut self, sid: Sid, incarnation: Incarnation) {
        let Some(process) = &self.process else { return };
        let Some(cause) = process.writers.get(&(sid, incarnation)).and_then(|writer| writer.stopping) else {
            return;
        };
        if cause != ExitCause::Removed {
            self.writer_works(sid, incarnation, usize::MAX);
            self.writer_works(sid, incarnation, usize::MAX);
            self.flush(&[(sid, incarnation)]);
        }
        self.writer_ends(sid, incarnation, cause);
    }

    /// The next step of a snapshot.
    pub fn snapshot_works(&mut self, sid: Sid) {
        let Some(process) = &mut self.process else { return };
        let Some(task) = process.snapshots.get_mut(&sid) else { return };
        let Some(files) = self.disk.shapes.get_mut(&sid) else { return };
        let (oid, _) = definition(files.definition);
        let attempt = task.attempt;
        match &task.phase {
            SnapshotPhase::Fencing => {
                if self.postgres.fence_passed(oid) {
                    let opened = self.postgres.snapshot();
                    let (snapshot, lsn) = (opened.snapshot.clone(), opened.lsn);
                    task.phase = SnapshotPhase::Opened(opened);
                    self.send(Input::PublicationReady { sid, oid, waited_ms: 0 });
                    self.send(Input::SnapshotOpened { sid, attempt, snapshot, lsn });
                }
            }
            SnapshotPhase::Opened(_) => {}
            SnapshotPhase::Copying => {
                files.initial_complete = true;
                process.snapshots.remove(&sid);
                self.send(Input::SnapshotCompleted { sid, attempt, rows: 1, bytes: 1 });
            }
        }
    }

    pub fn snapshot_fails(&mut self, sid: Sid, failure: SnapshotFailure) {
        let Some(process) = &mut self.process else { return };
        if let Some(task) = process.snapshots.remove(&sid) {
            let attempt = task.attempt;
            self.send(Input::SnapshotFailed { sid, attempt, failure });
        }
    }

    /// The trash removes the files of a shape.
    pub fn trash_works(&mut self, index: usize) {
        let Some(process) = &mut self.process else { return };
        let (sid, intent) = process.trashing.remove(index);
        let result = match self.disk.shapes.remove(&sid) {
            Some(_) => DestructionResult::Done,
            None => DestructionResult::AlreadyDone,
        };
        self.send(Input::FilesTrashed { sid, intent, result });
    }
}

//! What may happen next, all of it.

use shapefold::domain::{Handle, Lsn, Sid, SidSet};
use shapefold::engine::{Commit, FlushReport, Input, PostgresReady};
use shapefold::events::{
    DestructionResult, DrainCause, Event, ExitCause, LossEvidence, SnapshotFailure, StopCause, StreamEvent,
};
use shapefold::state::OwnerPhase;

use super::world::{
    Connection, Instance, Message, NOW, Pace, Protocol, Snapshot, TABLE, World, concerns, definition_hash,
    insert, lsn, visible, xid,
};

/// One step of one part of the world. The number is the instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Start(usize),
    Boot(usize),
    Drain(usize),
    /// A client asks for the next shape.
    Create(usize),
    /// Postgres commits the next transaction.
    Commit,
    Take(usize),
    Perform(usize),
    Status(usize),
    Sync(usize),
    Connect(usize),
    Stream(usize),
    Keepalive(usize),
    Tick(usize),
    Snapshot(usize, Sid),
    GetReady(usize, Sid),
    Write(usize, Sid),
    Flush(usize),
    Obey(usize, Sid),
    Trash(usize),
    Read(usize),
    /// A reader of a wrong protocol looks before it reads.
    Look(usize),
    // What goes wrong.
    Crash(usize, usize, bool),
    Panic(usize, Sid),
    FlushFails(usize, Sid),
    Disconnect(usize),
    SnapshotFails(usize, Sid),
    LoseOwnership(usize),
}

impl Action {
    /// What goes first; see [`World::chosen`].
    fn rank(self, pace: Pace) -> u8 {
        match self {
            Action::Perform(_) => 0,
            Action::Status(_) => 1,
            Action::Take(_) | Action::Tick(_) | Action::Trash(_) | Action::GetReady(..) => 2,
            Action::Sync(_) if pace == Pace::JournalFirst => 2,
            _ => 3,
        }
    }

    pub fn is_disturbance(self) -> bool {
        matches!(
            self,
            Action::Crash(..)
                | Action::Panic(..)
                | Action::FlushFails(..)
                | Action::Disconnect(_)
                | Action::SnapshotFails(..)
                | Action::LoseOwnership(_)
        )
    }
}

impl World {
    /// What is tried next: not every order of what a process does by itself. An effect that may be
    /// performed is, then the acknowledgement goes out, then the next message is taken, and only then
    /// does the world around go on. What may go wrong may do so at any of these moments, and an effect
    /// that waits for the journal waits for as long as it takes, so no delay that matters is left out.
    pub fn chosen(&self) -> Vec<Action> {
        let actions = self.actions();
        let rank = actions.iter().map(|action| action.rank(self.bounds.pace)).min();
        actions
            .into_iter()
            .filter(|action| action.is_disturbance() || Some(action.rank(self.bounds.pace)) == rank)
            .collect()
    }

    /// Everything that may happen, disturbances last.
    pub fn actions(&self) -> Vec<Action> {
        let mut actions = Vec::new();
        if self.postgres.committed < self.bounds.transactions {
            actions.push(Action::Commit);
        }
        for who in 0..2 {
            match &self.instances[who] {
                Instance::Down => self.of_one_that_is_down(who, &mut actions),
                Instance::Waiting => {
                    if self.disk.flock.is_none() || self.bounds.protocol == Protocol::NoLock {
                        actions.push(Action::Boot(who));
                    }
                    if self.read(who, false).is_some() {
                        actions.push(Action::Read(who));
                    }
                }
                Instance::Owner(_) => self.of_the_owner(who, &mut actions),
            }
        }
        actions
    }

    fn of_one_that_is_down(&self, who: usize, actions: &mut Vec<Action>) {
        let other_is_up = !matches!(self.instances[1 - who], Instance::Down);
        let first = self.starts == 0 && who == 0;
        let again = self.starts > 0 && !other_is_up;
        let deploy = self.bounds.deploy && self.starts == 1 && other_is_up;
        if first || again || deploy {
            actions.push(Action::Start(who));
        }
    }

    fn of_the_owner(&self, who: usize, actions: &mut Vec<Action>) {
        let Some(process) = self.process(who) else { return };
        let active = process.engine.state().owner.phase == OwnerPhase::Active;
        if !self.disk.unsynced.is_empty() {
            actions.push(Action::Sync(who));
        }
        if self.next_effect(who).is_some() {
            actions.push(Action::Perform(who));
        }
        if process.statuses.front().is_some_and(|(_, after)| *after <= self.disk.durable()) {
            actions.push(Action::Status(who));
        }
        if !process.inbox.is_empty() {
            actions.push(Action::Take(who));
        }
        if active && self.created < self.bounds.shapes {
            actions.push(Action::Create(who));
        }
        if active && matches!(self.instances[1 - who], Instance::Waiting) {
            actions.push(Action::Drain(who));
        }
        self.of_postgres(who, actions);
        self.of_tasks(who, actions);
        if self.looks(who) {
            actions.push(Action::Look(who));
        } else if self.read(who, false).is_some() {
            actions.push(Action::Read(who));
        }
        if self.disturbances > 0 {
            self.of_disturbances(who, actions);
        }
    }

    fn of_postgres(&self, who: usize, actions: &mut Vec<Action>) {
        let Some(process) = self.process(who) else { return };
        match process.connection {
            Connection::Asked if self.postgres.lock.is_none_or(|holder| holder == who) => {
                actions.push(Action::Connect(who));
            }
            Connection::Streaming(_, sent) if sent < self.postgres.committed => {
                actions.push(Action::Stream(who));
            }
            Connection::Streaming(generation, sent) => {
                let wal_end = insert(sent);
                let keepalive = Message::Input(Input::Keepalive { generation, wal_end });
                let state = process.engine.state();
                let behind = state.stream.acked < wal_end || self.postgres.slot < Some(wal_end);
                if behind && !process.inbox.contains(&keepalive) {
                    actions.push(Action::Keepalive(who));
                }
            }
            Connection::None | Connection::Asked | Connection::Ready => {}
        }
        let due = |shape: &shapefold::state::Shape| shape.retry.is_some_and(|retry| retry.due.is_some());
        if process.engine.state().shapes.values().any(due)
            && !process.inbox.contains(&Message::Input(Input::Tick))
        {
            actions.push(Action::Tick(who));
        }
    }

    fn of_tasks(&self, who: usize, actions: &mut Vec<Action>) {
        let Some(process) = self.process(who) else { return };
        for (sid, (_, phase)) in &process.snapshots {
            if !matches!(phase, Snapshot::Opened(_)) {
                actions.push(Action::Snapshot(who, *sid));
            }
        }
        for (sid, writer) in &process.writers {
            if !writer.ready {
                actions.push(Action::GetReady(who, *sid));
            } else if !writer.queue.is_empty() {
                actions.push(Action::Write(who, *sid));
            }
            if writer.stopping.is_some() {
                actions.push(Action::Obey(who, *sid));
            }
        }
        if process.writers.values().any(|writer| writer.handled.is_some()) {
            actions.push(Action::Flush(who));
        }
        if !process.trashing.is_empty() {
            actions.push(Action::Trash(who));
        }
    }

    fn of_disturbances(&self, who: usize, actions: &mut Vec<Action>) {
        let Some(process) = self.process(who) else { return };
        let tails = process.writers.values().any(|writer| !writer.tail.is_empty());
        for kept in 0..=self.disk.unsynced.len() {
            actions.push(Action::Crash(who, kept, false));
            if tails {
                actions.push(Action::Crash(who, kept, true));
            }
        }
        for (sid, writer) in &process.writers {
            actions.push(Action::Panic(who, *sid));
            if writer.handled.is_some() {
                actions.push(Action::FlushFails(who, *sid));
            }
        }
        if matches!(process.connection, Connection::Streaming(..) | Connection::Ready) {
            actions.push(Action::Disconnect(who));
        }
        actions.extend(process.snapshots.keys().map(|sid| Action::SnapshotFails(who, *sid)));
        if process.engine.state().owner.phase == OwnerPhase::Active {
            actions.push(Action::LoseOwnership(who));
        }
    }

    /// Takes one of [`World::actions`].
    pub fn act(&mut self, action: Action) {
        match action {
            Action::Start(who) => self.start(who),
            Action::Boot(who) => self.boot(who),
            Action::Drain(who) => self.send_and_take(who, Input::Drain { cause: DrainCause::Signal }),
            Action::Create(who) => self.create(who),
            Action::Commit => self.postgres.committed += 1,
            Action::Take(who) => self.take(who),
            Action::Perform(who) => self.perform(who),
            Action::Status(who) => self.perform_status(who),
            Action::Sync(_) => self.disk_mut().sync(),
            Action::Connect(who) => self.connect(who),
            Action::Stream(who) => self.stream(who),
            Action::Keepalive(who) => self.keepalive(who),
            Action::Tick(who) => self.send(who, Input::Tick),
            Action::Snapshot(who, sid) => self.snapshot(who, sid),
            Action::GetReady(who, sid) => self.get_ready(who, sid),
            Action::Write(who, sid) => self.write(who, sid),
            Action::Flush(who) => self.flush(who),
            Action::Obey(who, sid) => self.obey(who, sid),
            Action::Trash(who) => self.remove_files(who),
            Action::Read(who) => {
                if let Some(reader) = self.read(who, true) {
                    self.reader = reader;
                }
            }
            Action::Look(_) => self.reader.decided = true,
            disturbance => {
                self.disturbances -= 1;
                self.disturb(disturbance);
            }
        }
        self.check();
    }

    fn disturb(&mut self, disturbance: Action) {
        match disturbance {
            Action::Crash(who, kept, tails) => self.end(who, kept, tails),
            Action::Panic(who, sid) => self.writer_ends(who, sid, ExitCause::Panicked),
            Action::FlushFails(who, sid) => self.writer_ends(who, sid, ExitCause::StorageFault),
            Action::Disconnect(who) => {
                if self.postgres.lock == Some(who) {
                    self.postgres.lock = None;
                }
                let Some(process) = self.process_mut(who) else { return };
                match std::mem::replace(&mut process.connection, Connection::None) {
                    Connection::Streaming(generation, _) => {
                        self.send(who, Input::StreamStopped { generation, cause: StopCause::Connection });
                    }
                    Connection::None | Connection::Asked | Connection::Ready => {}
                }
            }
            Action::SnapshotFails(who, sid) => {
                let Some(process) = self.process_mut(who) else { return };
                if let Some((attempt, _)) = process.snapshots.remove(&sid) {
                    let failure = SnapshotFailure::Connection;
                    self.send(who, Input::SnapshotFailed { sid, attempt, failure });
                }
            }
            Action::LoseOwnership(who) => {
                self.send_and_take(who, Input::OwnershipLost { evidence: LossEvidence::EpochHigher });
            }
            other => self.fail(format!("no disturbance: {other:?}")),
        }
    }

    fn start(&mut self, who: usize) {
        self.starts += 1;
        self.instances[who] = Instance::Waiting;
        // Every one but the first is of another version, and knows none of what it finds.
        if self.bounds.protocol == Protocol::WipeOnZeroShapes && self.starts > 1 {
            self.disk_mut().shapes.clear();
        }
    }

    /// What a request does: the engine decides before anything else happens.
    fn send_and_take(&mut self, who: usize, input: Input) {
        self.input(who, input);
    }

    fn create(&mut self, who: usize) {
        let definition = self.created;
        self.created += 1;
        let hash = definition_hash(definition);
        let handle = Handle { hash: hash.0, micros: 1 + definition };
        self.input(who, Input::CreateShape { handle, definition: hash, oid: TABLE });
        if let Some(process) = self.process_mut(who) {
            let sid = process.engine.state().last_sid;
            process.router.insert(sid, definition);
            process.definitions.insert(sid, definition);
        }
    }

    fn take(&mut self, who: usize) {
        let Some(process) = self.process_mut(who) else { return };
        match process.inbox.pop_front() {
            None => {}
            Some(Message::Input(input)) => {
                self.input(who, input);
            }
            Some(Message::Commit(generation, txn)) => {
                let wanting = process.router.iter().filter(|(_, definition)| concerns(txn, **definition));
                let set: SidSet = wanting.map(|(sid, _)| *sid).collect();
                let events = self.input(
                    who,
                    Input::Commit(Commit {
                        generation,
                        lsn: lsn(txn),
                        xid: xid(txn),
                        committed_at: NOW,
                        changes: 1,
                        bytes: 1,
                        set,
                        tables: vec![TABLE],
                        truncated: Vec::new(),
                        old_row_missing: Vec::new(),
                    }),
                );
                let numbered = events.iter().find_map(|recorded| match &recorded.event {
                    Event::Stream(
                        StreamEvent::TxnRouted { seq, .. } | StreamEvent::TxnRedelivered { seq, .. },
                    ) => Some(*seq),
                    _ => None,
                });
                if let (Some(seq), Some(process)) = (numbered, self.process_mut(who)) {
                    process.bodies.insert(seq, txn);
                }
            }
        }
    }

    fn connect(&mut self, who: usize) {
        let created = self.postgres.slot.is_none();
        let confirmed = *self.postgres.slot.get_or_insert(insert(self.postgres.committed));
        self.postgres.lock = Some(who);
        if let Some(process) = self.process_mut(who) {
            process.connection = Connection::Ready;
        }
        self.send(
            who,
            Input::PostgresReady(PostgresReady {
                system_id: 1,
                timeline: 1,
                server_version: 170_000,
                database: shapefold::domain::Oid(5),
                backend_pid: 9,
                slot: "slot".to_owned(),
                confirmed,
                restart: confirmed,
                slot_created: created,
                slot_lost: false,
                published: vec![TABLE],
                publication_created: false,
                lineage: shapefold::domain::Lineage::default(),
            }),
        );
    }

    fn stream(&mut self, who: usize) {
        let Some(process) = self.process_mut(who) else { return };
        if let Connection::Streaming(generation, sent) = process.connection {
            process.inbox.push_back(Message::Commit(generation, sent));
            process.connection = Connection::Streaming(generation, sent + 1);
        }
    }

    fn keepalive(&mut self, who: usize) {
        let Some(process) = self.process(who) else { return };
        if let Connection::Streaming(generation, sent) = process.connection {
            self.send(who, Input::Keepalive { generation, wal_end: insert(sent) });
        }
    }

    fn snapshot(&mut self, who: usize, sid: Sid) {
        let committed = self.postgres.committed;
        let Some(process) = self.process_mut(who) else { return };
        let Some((attempt, phase)) = process.snapshots.get_mut(&sid) else { return };
        let attempt = *attempt;
        match *phase {
            Snapshot::Wanted => {
                *phase = Snapshot::Opened(committed);
                self.send(who, Input::PublicationReady { sid, oid: TABLE, waited_ms: 0 });
                let (snapshot, lsn) = (visible(committed), insert(committed));
                self.send(who, Input::SnapshotOpened { sid, attempt, snapshot, lsn });
            }
            Snapshot::Opened(_) => {}
            Snapshot::Copying(_) => {
                process.snapshots.remove(&sid);
                if let Some(files) = self.disk_mut().shapes.get_mut(&sid) {
                    files.complete = true;
                }
                self.send(who, Input::SnapshotCompleted { sid, attempt, rows: 1, bytes: 1 });
            }
        }
    }

    /// A writer has recovered its log.
    fn get_ready(&mut self, who: usize, sid: Sid) {
        let newest = self.disk.shapes.get(&sid).map(|files| files.log.last().copied());
        let Some(newest) = newest else {
            return self.fail(format!("a log of shape {sid}, which has no files"));
        };
        let Some(process) = self.process_mut(who) else { return };
        let Some(writer) = process.writers.get_mut(&sid) else { return };
        writer.ready = true;
        let incarnation = writer.incarnation;
        let recovered = newest.map_or(Lsn(0), lsn);
        self.send(who, Input::WriterReady { sid, incarnation, recovered, trimmed_bytes: 0 });
    }

    /// A writer takes all that waits for it; what its log holds already it drops.
    fn write(&mut self, who: usize, sid: Sid) {
        let newest = self.disk.shapes.get(&sid).and_then(|files| files.log.last().copied());
        let Some(process) = self.process_mut(who) else { return };
        let Some(writer) = process.writers.get_mut(&sid) else { return };
        for (seq, txn) in std::mem::take(&mut writer.queue) {
            writer.handled = Some(seq);
            if writer.tail.last().copied().or(newest).is_none_or(|newest| newest < txn) {
                writer.tail.push(txn);
            }
        }
    }

    /// One group flush, and its report.
    fn flush(&mut self, who: usize) {
        let Some(process) = self.process_mut(who) else { return };
        let (mut reports, mut written) = (Vec::new(), Vec::new());
        for (sid, writer) in &mut process.writers {
            if let Some(upto) = writer.handled.take() {
                written.push((*sid, std::mem::take(&mut writer.tail)));
                reports.push(FlushReport { sid: *sid, incarnation: writer.incarnation, upto });
            }
        }
        for (sid, tail) in written {
            match self.disk_mut().shapes.get_mut(&sid) {
                Some(files) => files.log.extend(tail),
                None => self.fail(format!("shape {sid} is flushed and has no files")),
            }
        }
        self.send(who, Input::Flushed { reports });
    }

    fn obey(&mut self, who: usize, sid: Sid) {
        let stopping = self.process(who).and_then(|process| process.writers.get(&sid)?.stopping);
        let Some(cause) = stopping else { return };
        if cause != ExitCause::Removed {
            self.write(who, sid);
            self.flush(who);
        }
        self.writer_ends(who, sid, cause);
    }

    /// What it had in memory is gone.
    fn writer_ends(&mut self, who: usize, sid: Sid, cause: ExitCause) {
        let Some(process) = self.process_mut(who) else { return };
        if let Some(writer) = process.writers.remove(&sid) {
            self.send(who, Input::WriterExited { sid, incarnation: writer.incarnation, cause });
        }
    }

    fn remove_files(&mut self, who: usize) {
        let Some(process) = self.process_mut(who) else { return };
        let (sid, intent) = process.trashing.remove(0);
        let result = match self.disk_mut().shapes.remove(&sid) {
            Some(_) => DestructionResult::Done,
            None => DestructionResult::AlreadyDone,
        };
        self.send(who, Input::FilesTrashed { sid, intent, result });
    }
}

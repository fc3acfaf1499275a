//! The loop around the core, as `runtime::driver` has it, one turn at a time.

use std::sync::Arc;
use std::time::Duration;

use shapefold::domain::{EventId, Generation, Handle, Sid};
use shapefold::engine::{Commit, Input};
use shapefold::events::{
    self, ConsumerEvent, Event, InvalidationCause, JournalEvent, ShapeEvent, StopCause, StreamEvent,
};
use shapefold::filter::Predicate;
use shapefold::journal::Entry;
use shapefold::replication::{StreamItem, Transaction};
use shapefold::runtime::core::Persist;
use shapefold::runtime::handle::{LiveShape, Phase};
use shapefold::runtime::writers::{Command, Report};
use shapefold::shape_log::{ShapeFiles, ShapeReader};
use shapefold::state::{Life, OwnerPhase};

use super::world::{Item, Known, Mutation, Notice, Request, World};

const DRAIN_MAX: Duration = Duration::from_secs(10);
/// Shapes whose views are compared with the fold at once: a part of them, mostly.
const AUDITED_AT_ONCE: usize = 3;

impl World {
    /// Hands an input to the engine. True where it was acted upon.
    pub fn input(&mut self, input: Input) -> bool {
        let now = self.now;
        let Some(process) = &mut self.process else { return false };
        match process.core.input(now, input) {
            Ok(persist) => {
                self.follow(persist);
                true
            }
            Err(refusal) => {
                self.stats.count(format!("refused {refusal:?}"));
                false
            }
        }
    }

    fn follow(&mut self, persist: Persist) {
        for recorded in &persist.events {
            self.tell(|| format!("  {} {:?}", recorded.id, recorded.event));
            self.checker.observe(recorded);
            self.history.push(recorded.clone());
            self.note_kind(&recorded.event);
            if let Some(process) = &mut self.process
                && let Event::Shape(ShapeEvent::Unrouted { sid }) = &recorded.event
            {
                process.router.remove(*sid);
            }
        }
        self.stats.events += persist.events.len() as u64;
        let Some(process) = &mut self.process else { return };
        process.entries.extend(
            persist.events.iter().map(|recorded| Entry { id: recorded.id, bytes: events::encode(recorded) }),
        );
        process.sync |= persist.sync;
        self.check_events(&persist.events);
    }

    fn note_kind(&mut self, event: &Event) {
        match event {
            Event::Shape(ShapeEvent::Invalidated { cause, .. }) => {
                let cause = match cause {
                    InvalidationCause::WriterFailed { .. } => "WriterFailed".to_owned(),
                    cause => format!("{cause:?}"),
                };
                self.stats.count(format!("invalidated {cause}"));
            }
            Event::Consumer(ConsumerEvent::Exited { cause, pending, .. }) => {
                self.stats.count(format!("exited {cause:?}{}", if *pending > 0 { " owing" } else { "" }));
            }
            Event::Stream(StreamEvent::TxnRedelivered { set, .. }) if !set.is_empty() => {
                self.stats.count("redelivered to those who owe");
            }
            _ => {}
        }
    }

    /// Persists what was decided, then performs what may be performed.
    pub fn settle(&mut self) {
        loop {
            self.persist();
            loop {
                let early = self.mutation == Mutation::EffectsBeforePersist;
                let Some(process) = &mut self.process else { return };
                if early {
                    process.core.durable(EventId(u64::MAX));
                }
                let Some(effect) = process.core.next_effect() else { break };
                if self.point("before an effect") {
                    return;
                }
                self.perform(effect);
                if self.died_on_disk() {
                    return;
                }
            }
            if self.process.as_ref().is_none_or(|process| process.entries.is_empty()) {
                break;
            }
        }
        let early = self.mutation == Mutation::MarkBeforeDelivery;
        let Some(process) = &mut self.process else { return };
        let received = process.core.engine().received();
        if process.core.is_settled() && received > process.progress {
            process.progress = received;
            for pool in &mut process.pools {
                if early {
                    pool.commands.push_front(Command::Progress(received));
                } else {
                    pool.commands.push_back(Command::Progress(received));
                }
            }
        }
    }

    fn persist(&mut self) {
        let Some(process) = &mut self.process else { return };
        if process.entries.is_empty() {
            return;
        }
        let entries = std::mem::take(&mut process.entries);
        let now = std::mem::take(&mut process.sync);
        process.requests.push_back(Request::Append { entries, now });
    }

    // The turns of the driver.

    pub fn take_notice(&mut self) -> bool {
        let Some(process) = &mut self.process else { return false };
        let Some(notice) = process.notices.pop_front() else { return false };
        match notice {
            Notice::Durable(upto) => process.core.durable(upto),
            Notice::Checkpointed { upto, state } => {
                process.checkpointing = false;
                let checksum = state.iter().fold(0_u32, |sum, byte| sum.rotate_left(5) ^ u32::from(*byte));
                let note = JournalEvent::StateSnapshot { upto, checksum, bytes: state.len() as u64 };
                let persist = process.core.note(self.now, note);
                self.follow(persist);
                if let Some(process) = &mut self.process
                    && upto.0.is_multiple_of(2)
                {
                    process.requests.push_back(Request::Trim { before: upto.next() });
                }
            }
        }
        self.settle();
        true
    }

    pub fn take_report(&mut self) -> bool {
        let Some(process) = &mut self.process else { return false };
        let Some(report) = process.reports.pop_front() else { return false };
        match report {
            Report::CompactionDue { sid, incarnation } => {
                process.compactor.asked.push_back((sid, incarnation))
            }
            Report::Input(input) => {
                if let Input::LogSwitched { outcome, .. } = &input {
                    process.compactor.busy = None;
                    self.stats.count(if outcome.is_some() { "logs compacted" } else { "logs not compacted" });
                }
                let settled: Vec<Sid> = match &input {
                    Input::WriterExited { sid, .. } => vec![*sid],
                    Input::Flushed { reports } => reports.iter().map(|report| report.sid).collect(),
                    _ => Vec::new(),
                };
                self.input(input);
                settled.into_iter().for_each(|sid| self.catch_up(sid));
            }
            Report::Live { asked, live } => {
                let complete = process.audit.as_mut().filter(|audit| audit.0 == asked).is_some_and(|audit| {
                    audit.1 -= 1;
                    audit.2.extend(live);
                    audit.1 == 0
                });
                if complete && let Some((asked, _, live)) = process.audit.take() {
                    self.input(Input::LiveWriters { asked, live });
                }
            }
            Report::SyncFailed(_) => {
                self.stats.count("stopped by a sync that failed");
                self.dies_with_the_machine = false;
                self.crash();
                return true;
            }
        }
        self.settle();
        true
    }

    fn catch_up(&self, sid: Sid) {
        let Some(process) = &self.process else { return };
        let state = process.core.engine().state();
        let settled =
            state.shape(sid).is_some_and(|shape| shape.life < Life::Invalidated && shape.pending.is_empty());
        if settled && let Some(shape) = process.shapes.get(&sid) {
            shape.caught_up();
        }
    }

    pub fn take_input(&mut self) -> bool {
        let Some(process) = &mut self.process else { return false };
        let Some(input) = process.messages.pop_front() else { return false };
        let opened = match &input {
            Input::SnapshotOpened { sid, .. } => Some(*sid),
            _ => None,
        };
        let prepared = matches!(input, Input::LogPrepared { .. });
        let taken = self.input(input);
        if prepared && !taken {
            self.compaction_refused();
        }
        if let Some(sid) = opened {
            self.catch_up(sid);
        }
        self.settle();
        true
    }

    /// Takes the next items of the stream: a batch, as large as it happens to be.
    pub fn take_items(&mut self, count: usize) -> bool {
        let mut any = false;
        for _ in 0..count {
            let Some(process) = &mut self.process else { break };
            let Some((generation, item)) = process.batches.pop_front() else { break };
            any = true;
            match item {
                Item::Stream(StreamItem::Transaction(txn)) => self.transaction(generation, txn),
                Item::Stream(StreamItem::Relation(relation)) => {
                    let affected = process.router.announce(&relation);
                    let (oid, schema) = (relation.oid, relation.schema_hash());
                    self.input(Input::RelationAnnounced { oid, schema, affected });
                }
                Item::Stream(StreamItem::Keepalive { wal_end, .. }) => {
                    self.input(Input::Keepalive { generation, wal_end });
                }
                Item::Stopped => {
                    let cause = StopCause::Connection;
                    self.input(Input::StreamStopped { generation, cause });
                }
            }
        }
        self.settle();
        any
    }

    fn transaction(&mut self, generation: Generation, txn: Arc<Transaction>) {
        let Some(process) = &mut self.process else { return };
        let state = process.core.engine().state();
        match self.mutation {
            Mutation::GlobalDuplicateSkipping if txn.lsn <= state.stream.routed => return,
            Mutation::AckOfReceived => self.postgres.confirm(txn.end_lsn),
            _ => {}
        }
        let routing = match process.router.route(Arc::clone(&txn)) {
            Ok(routing) => routing,
            Err(error) => return self.fail(format!("a transaction is not routed: {error}")),
        };
        let commit = Commit {
            generation,
            lsn: txn.lsn,
            xid: txn.xid,
            committed_at: txn.committed_at,
            changes: txn.changes,
            bytes: txn.bytes,
            set: routing.set,
            tables: txn.relations.clone(),
            truncated: txn.truncated.clone(),
            old_row_missing: routing.old_row_missing,
        };
        let Ok(persist) = process.core.input(self.now, Input::Commit(commit)) else { return };
        let body = Arc::new(routing.routed);
        for recorded in &persist.events {
            if let Event::Stream(
                StreamEvent::TxnRouted { seq, .. } | StreamEvent::TxnRedelivered { seq, .. },
            ) = &recorded.event
            {
                process.bodies.insert(*seq, Arc::clone(&body));
            }
        }
        self.follow(persist);
        if self.mutation == Mutation::AckOfReceived {
            self.check_acknowledged();
        }
    }

    pub fn tick(&mut self) {
        let now = self.now;
        let Some(process) = &mut self.process else { return };
        if process.drains_until.is_some_and(|until| now >= until) {
            // A drain that takes too long is cut short.
            self.dies_with_the_machine = false;
            return self.crash();
        }
        self.input(Input::Tick);
        self.settle();
    }

    pub fn ask_for_live_writers(&mut self) {
        let Some(process) = &mut self.process else { return };
        if !process.core.is_settled() {
            return;
        }
        let asked = process.core.engine().state().last;
        if process.audit.as_ref().is_some_and(|audit| audit.0 == asked) {
            return;
        }
        for pool in &mut process.pools {
            pool.commands.push_back(Command::Audit { asked });
        }
        process.audit = Some((asked, process.pools.len(), Vec::new()));
    }

    pub fn audit_views(&mut self) {
        let Some(process) = &mut self.process else { return };
        // As the driver does: a part at a time, and the rest of the world may go on in between.
        let (persist, last) = process.core.audit_part(self.now, process.audited, AUDITED_AT_ONCE);
        process.audited = last;
        if !persist.events.is_empty() {
            self.fail("J2: a view drifted");
        }
    }

    pub fn drain(&mut self) {
        let until = self.now.plus(DRAIN_MAX);
        let Some(process) = &mut self.process else { return };
        process.drains_until = Some(until);
        self.input(Input::Drain { cause: events::DrainCause::Operator });
        self.settle();
    }

    pub fn invalidate(&mut self, sid: Sid) {
        self.input(Input::Invalidate { sid, cause: InvalidationCause::Deleted });
        self.settle();
    }

    /// What `find_or_create` of the driver does: the shape of a definition that the driver knows, or a
    /// new one.
    pub fn create(&mut self, kind: usize) {
        let definition = Arc::clone(&self.definitions[kind]);
        let Some(process) = &mut self.process else { return };
        let hash = definition.hash();
        let known = process.core.engine().projections().shape_index.by_definition(hash).any(|sid| {
            process.shapes.get(&sid).is_some_and(|shape| shape.definition.same_shape(&definition))
        });
        if known || process.core.engine().state().owner.phase != OwnerPhase::Active {
            return;
        }
        let predicate = definition
            .where_sql
            .as_ref()
            .map(|sql| Predicate::from_canonical(sql, &definition.relation).expect("its own canonical form"));
        let newest = process.core.engine().state().last_handle_micros;
        let micros = (self.now.0 as u64).max(newest + 1);
        let handle = Handle { hash: hash.0, micros };
        let input = Input::CreateShape { handle, definition: hash, oid: definition.relation.oid };
        let Ok(persist) = process.core.input(self.now, input) else { return };
        let sid = process.core.engine().state().last_sid;
        let files = ShapeFiles::open(Arc::clone(&process.files), World::data(), handle);
        let reader = ShapeReader::new(&files);
        process.install(sid, handle, &definition, predicate, reader, Phase::Opening);
        self.shapes.insert(handle, Known { kind, contains: None });
        self.follow(persist);
        self.settle();
    }
}

impl super::world::Process {
    /// Makes a shape known to router and readers.
    pub fn install(
        &mut self,
        sid: Sid,
        handle: Handle,
        definition: &Arc<shapefold::domain::ShapeDefinition>,
        predicate: Option<Predicate>,
        reader: Arc<ShapeReader>,
        phase: Phase,
    ) -> Arc<LiveShape> {
        let published = Arc::clone(&self.pools[pool_of(sid)].published);
        let shape = Arc::new(LiveShape::new(sid, handle, Arc::clone(definition), reader, phase, published));
        self.router.insert(sid, Arc::clone(definition), predicate);
        self.shapes.insert(sid, Arc::clone(&shape));
        shape
    }
}

pub fn pool_of(sid: Sid) -> usize {
    sid.0 as usize % super::world::POOLS
}

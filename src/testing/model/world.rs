//! The world: what is running, what is on its way, and what comes of an input.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use crate::domain::{
    DefinitionHash, Epoch, EventId, Generation, Handle, Incarnation, Lsn, Oid, Seq, Sid, Timestamp,
};
use crate::engine::{Boot, Effect, Engine, Input, Policy, Step};
use crate::events::{
    ConsumerEvent, Event, IntentId, OwnershipEvent, PreviousEnd, ProcessInfo, ShapeEvent, StreamEvent,
};
use crate::projections::forensics::Checker;
use crate::state::{Allowance, State};

use crate::testing::model::choices::Choices;
use crate::testing::model::disk::Disk;
use crate::testing::model::postgres::{Committed, Postgres};
use crate::testing::model::tasks::{SnapshotTask, Writer};

/// A world that breaks one of the rules that the engine relies on. The checkers must notice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutation {
    None,
    /// Effects are performed before their events are durable.
    PerformBeforePersist,
    /// Postgres is told that a transaction is flushed when it is received.
    AcknowledgeOnReceive,
    /// Writers report what they have written and not synced.
    ReportBeforeSync,
    /// A transaction at or below the newest received one is dropped, whoever owes it.
    SkipReceived,
    /// A writer applies what its log already holds.
    ApplyTwice,
    /// Nobody tells that a writer has ended; the audit finds out, so nothing breaks.
    SwallowExits,
    /// The audit finds nothing, either.
    SwallowExitsAndAudits,
}

impl Mutation {
    pub const CAUGHT: [Mutation; 6] = [
        Mutation::PerformBeforePersist,
        Mutation::AcknowledgeOnReceive,
        Mutation::ReportBeforeSync,
        Mutation::SkipReceived,
        Mutation::ApplyTwice,
        Mutation::SwallowExitsAndAudits,
    ];

    pub fn swallows_exits(self) -> bool {
        matches!(self, Mutation::SwallowExits | Mutation::SwallowExitsAndAudits)
    }
}

pub struct World {
    pub choices: Choices,
    pub mutation: Mutation,
    pub policy: Policy,
    pub now: Timestamp,
    pub postgres: Postgres,
    pub disk: Disk,
    pub epoch: Epoch,
    /// What the next process to start tells of itself: its build's layout of the directory.
    pub layout: u32,
    pub process: Option<Process>,
    pub checker: Checker,
    /// Handles that a client was given, and handles that a client was told are gone.
    pub told: BTreeSet<Handle>,
    pub rotated: BTreeSet<Handle>,
    pub last_micros: u64,
    /// Somebody moved the slot, or the slot went back with a crash of Postgres.
    pub slot_meddled: bool,
    /// Another backend holds the advisory lock: whoever connects waits.
    pub locked_elsewhere: bool,
    pub stats: Stats,
    pub failure: Option<String>,
    /// Tells what is done: for looking into one seed.
    pub trace: bool,
    /// The writers of some shapes panic whenever they are handed something.
    pub cursed: bool,
    /// Only one fault in so many happens; 0 for all of them.
    pub calm: usize,
}

#[derive(Default)]
pub struct Stats {
    pub events: u64,
    pub inputs: u64,
    pub refusals: BTreeMap<String, u64>,
    pub names: BTreeMap<String, u64>,
    pub crashes: u64,
    /// Living shapes whose log was compared at the end, and the transactions in them.
    pub compared_shapes: u64,
    pub compared_txns: u64,
}

/// What dies in a crash.
pub struct Process {
    pub engine: Engine,
    /// Follows the recorded events one by one, as a replay does.
    pub mirror: Engine,
    pub effects: VecDeque<(Effect, EventId)>,
    pub statuses: VecDeque<(Effect, EventId)>,
    pub barrier: EventId,
    pub inbox: VecDeque<Message>,
    pub bodies: BTreeMap<Seq, Committed>,
    pub router: BTreeMap<Sid, DefinitionHash>,
    pub definitions: BTreeMap<Sid, (DefinitionHash, u64)>,
    pub writers: BTreeMap<(Sid, Incarnation), Writer>,
    pub snapshots: BTreeMap<Sid, SnapshotTask>,
    pub trashing: Vec<(Sid, IntentId)>,
    pub connection: Connection,
    /// The newest transaction handed over; only a mutation looks at it.
    pub received: Lsn,
    /// Writers of the registry that were not there when it was last compared.
    pub missing: Vec<(Sid, Incarnation)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Connection {
    None,
    Asked,
    /// Ready, and whether it still lives when the stream is to start.
    Ready {
        alive: bool,
    },
    Streaming {
        generation: Generation,
        at: Lsn,
    },
}

/// Something on its way to the engine.
pub enum Message {
    Input(Input),
    /// Matched against the shapes when it arrives.
    Commit(Generation, Committed),
}

impl World {
    pub fn new(mut choices: Choices, mutation: Mutation) -> World {
        let policy = Policy {
            ack_interval: Duration::from_millis([0, 250][choices.below(2)]),
            snapshot_backlog_max: [100, 2][choices.below(2)],
            snapshot_attempts_max: [10, 2][choices.below(2)],
            writer_attempts_max: [3, 1][choices.below(2)],
            stall_grace: Duration::from_millis([60_000, 2_000, 300][choices.below(3)]),
            // Every fourth shape may be beyond help, and the quiet end must come.
            give_up: Allowance { shapes_max: 1_000, percent_max: 50, window: Duration::from_secs(2) },
            ..Policy::default()
        };
        let cursed = choices.below(4) == 3;
        let calm = [0, 3, 10, 40][choices.below(4)];
        World {
            choices,
            mutation,
            policy,
            now: Timestamp(1_800_000_000_000_000),
            postgres: Postgres::new(),
            disk: Disk::default(),
            epoch: Epoch(0),
            layout: 1,
            process: None,
            checker: Checker::new(),
            told: BTreeSet::new(),
            rotated: BTreeSet::new(),
            last_micros: 0,
            slot_meddled: false,
            locked_elsewhere: false,
            stats: Stats::default(),
            failure: None,
            trace: false,
            cursed,
            calm,
        }
    }

    pub fn fail(&mut self, why: impl Into<String>) {
        self.failure.get_or_insert(why.into());
    }

    /// Starts a process on what is on disk: by folding the journal, or a checkpoint and its tail.
    pub fn boot(&mut self) {
        // The ring of recent commits dies with a process: the model lets no commit stay invisible
        // across a restart. See the limits in the module documentation of `engine_histories`.
        self.postgres.reveal_before(Timestamp(i64::MAX));
        let (policy, history) = (self.policy.clone(), &self.disk.history);
        let engine = if self.choices.chance(50) {
            let at = self.choices.below(history.len() + 1);
            let mut state = State::default();
            history[..at].iter().for_each(|recorded| state.apply(recorded));
            let state = State::from_bytes(&state.to_bytes()).expect("a checkpoint reads back");
            let mut engine = Engine::from_state(state, policy.clone());
            history[at..].iter().for_each(|recorded| engine.follow(recorded));
            engine
        } else {
            Engine::replay(history.iter().cloned(), policy.clone())
        };
        let mirror = Engine::replay(history.iter().cloned(), policy);
        self.process = Some(Process {
            engine,
            mirror,
            effects: VecDeque::new(),
            statuses: VecDeque::new(),
            barrier: EventId(0),
            inbox: VecDeque::new(),
            bodies: BTreeMap::new(),
            router: BTreeMap::new(),
            definitions: BTreeMap::new(),
            writers: BTreeMap::new(),
            snapshots: BTreeMap::new(),
            trashing: Vec::new(),
            connection: Connection::None,
            received: Lsn(0),
            missing: Vec::new(),
        });
        self.check_replay();
        let released = history_end_released(&self.disk);
        self.epoch = self.epoch.next();
        let previous_end = match (self.epoch, released) {
            (Epoch(1), _) => PreviousEnd::None,
            (_, true) => PreviousEnd::Released,
            (_, false) => PreviousEnd::Crashed,
        };
        let torn_values = if self.choices.chance(20) { 1 } else { 0 };
        let process = ProcessInfo { pid: self.epoch.0 as u32, format: self.layout, ..ProcessInfo::default() };
        let boot = Boot {
            process,
            epoch: self.epoch,
            previous_end,
            device: 1,
            inode: 1,
            waited_ms: 0,
            torn_values,
            missing_upto: None,
        };
        self.input(Input::Boot(boot));
    }

    /// The process dies. Of what is not synced, whole steps survive, in the journal, and single
    /// transactions, in the shape logs.
    pub fn crash(&mut self) {
        let Some(mut process) = self.process.take() else { return };
        self.stats.crashes += 1;
        let survivable = self.disk.survivable();
        let kept = survivable[self.choices.below(survivable.len())];
        for ((sid, _), writer) in std::mem::take(&mut process.writers) {
            self.abandon(sid, writer);
        }
        self.cut(kept);
    }

    /// The process ends in order: the journal is synced and closed.
    pub fn exit(&mut self) {
        let Some(process) = self.process.take() else { return };
        if !process.writers.is_empty() {
            self.fail("O4: the process exits and leaves writers");
        }
        self.cut(self.disk.history.len());
    }

    fn cut(&mut self, kept: usize) {
        self.check_violations();
        self.disk.cut(kept);
        let mut checker = Checker::new();
        self.disk.history.iter().for_each(|recorded| checker.observe(recorded));
        self.checker = checker;
        self.check_promises();
        self.check_acknowledged();
    }

    /// Sends a message to the engine; it arrives after those that were sent before.
    pub fn send(&mut self, input: Input) {
        if let Some(process) = &mut self.process {
            process.inbox.push_back(Message::Input(input));
        }
    }

    /// Sends messages on a way of their own, on which they may overtake the others, but not each other.
    pub fn send_aside(&mut self, inputs: impl IntoIterator<Item = Input, IntoIter: DoubleEndedIterator>) {
        let overtake = self.choices.chance(30);
        let Some(process) = &mut self.process else { return };
        let messages = inputs.into_iter().map(Message::Input);
        if overtake {
            messages.rev().for_each(|message| process.inbox.push_front(message));
        } else {
            process.inbox.extend(messages);
        }
    }

    /// Hands an input to the engine. True where it was acted upon.
    pub fn input(&mut self, input: Input) -> bool {
        let Some(process) = &mut self.process else { return false };
        let before = process.engine.state().clone();
        let sampled = self.stats.inputs.is_multiple_of(16);
        let before_text = if sampled { format!("{:?}", process.engine) } else { String::new() };
        self.stats.inputs += 1;
        match process.engine.step(self.now, input) {
            Ok(step) => {
                self.took(step);
                true
            }
            Err(refusal) => {
                let same = process.engine.state() == &before
                    && (!sampled || format!("{:?}", process.engine) == before_text);
                *self.stats.refusals.entry(format!("{refusal:?}")).or_default() += 1;
                if !same {
                    self.fail(format!("the refusal {refusal:?} changed the engine"));
                }
                false
            }
        }
    }

    pub fn took(&mut self, step: Step) {
        let Some(process) = &mut self.process else { return };
        for recorded in &step.events {
            process.mirror.follow(recorded);
            self.checker.observe(recorded);
            *self.stats.names.entry(name(&recorded.event)).or_default() += 1;
        }
        self.stats.events += step.events.len() as u64;
        self.disk.append(&step.events);
        process.barrier = process.barrier.max(step.barrier.unwrap_or(EventId(0)));
        let last = step.events.last().map_or(EventId(0), |recorded| recorded.id);
        for effect in step.effects {
            match effect {
                Effect::SendStatus { .. } => process.statuses.push_back((effect, last)),
                effect => process.effects.push_back((effect, process.barrier)),
            }
        }
        self.check_step(&step.events);
    }

    /// Takes the next message out of the inbox.
    pub fn take_message(&mut self) -> bool {
        let Some(process) = &mut self.process else { return false };
        match process.inbox.pop_front() {
            None => return false,
            Some(Message::Input(input)) => {
                self.input(input);
            }
            Some(Message::Commit(generation, committed)) => self.take_commit(generation, committed),
        }
        true
    }

    pub fn create_shape(&mut self, hash: DefinitionHash, oid: Oid) {
        let micros = if self.choices.chance(5) { self.last_micros } else { self.last_micros + 1 };
        let handle = Handle { hash: hash.0, micros };
        if self.input(Input::CreateShape { handle, definition: hash, oid })
            && let Some(process) = &mut self.process
        {
            let sid = process.engine.state().last_sid;
            process.router.insert(sid, hash);
            let stream = &process.engine.state().stream;
            let same = stream.system_id.is_none()
                || (stream.system_id == Some(self.postgres.system_id)
                    && stream.timeline == self.postgres.timeline);
            let history = if same { self.postgres.history } else { 0 };
            process.definitions.insert(sid, (hash, history));
            // A handle that no client was told may come again after a crash; this world never tries.
            self.last_micros = self.last_micros.max(micros);
        }
    }
}

/// The name of an event, with the cause of what has one: each must have been seen.
fn name(event: &Event) -> String {
    match event {
        Event::Shape(ShapeEvent::Invalidated { cause, .. }) => format!("ShapeInvalidated {cause:?}"),
        Event::Shape(ShapeEvent::SnapshotFailed { failure, .. }) => format!("SnapshotFailed {failure:?}"),
        Event::Stream(StreamEvent::HistoryBroken { cause }) => format!("HistoryBroken {cause:?}"),
        Event::Consumer(ConsumerEvent::Exited { cause, pending, .. }) => {
            format!("ConsumerExited {cause:?} {}", if *pending > 0 { "owing" } else { "even" })
        }
        other => other.name().to_owned(),
    }
}

fn history_end_released(disk: &Disk) -> bool {
    disk.history
        .last()
        .is_some_and(|last| matches!(last.event, Event::Ownership(OwnershipEvent::Released { .. })))
}

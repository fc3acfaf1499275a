//! The small world as one value: it can be copied, compared by a digest, and taken a step further.
//!
//! Time stands still, so that worlds which went different ways can meet again: nothing stalls, and
//! every delay is nought.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write as _;
use std::hash::{Hash, Hasher};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use shapefold::domain::{
    DefinitionHash, Epoch, EventId, Generation, Handle, Incarnation, Lsn, Oid, PgSnapshot, Seq, Sid,
    Timestamp, Xid,
};
use shapefold::engine::{Boot, Effect, Engine, Input, Policy, Step};
use shapefold::events::{ExitCause, IntentId, PreviousEnd, ProcessInfo, Recorded, encode};
use shapefold::projections::forensics::Checker;
use shapefold::state::{Allowance, OwnerPhase, State, Tombstones};

/// Both shapes are on one table.
pub const TABLE: Oid = Oid(100);
pub const NOW: Timestamp = Timestamp(1_800_000_000_000_000);

/// Which of the shapes each transaction concerns: both, the first, the second.
const CONCERNS: [&[u64]; 3] = [&[0, 1], &[0], &[1]];

/// A protocol that is known to be wrong. The search must refute each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// What we do.
    Ours,
    /// Incident 0: a starting instance that finds no shapes which it can read clears the directory,
    /// lock or no lock.
    WipeOnZeroShapes,
    /// Incident 0: the directory has no lock.
    NoLock,
    /// Incident 2, option A: a reader looks at the watermark once more, then reads the tail.
    RecheckThenRead,
    /// Incident 4, fix 2: a replacement that knows nothing of a transaction considers it flushed.
    ConsideredFlushed,
    /// Incident 4, fix 3: what cannot be delivered is taken off the flush tracker.
    UndeliverableForgotten,
}

/// How the journal keeps up with the world around.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// Anything may happen while events wait to be synced.
    Free,
    /// Messages may be taken meanwhile, and things may go wrong; else the world waits.
    JournalFirst,
}

/// How large the world is, and what may go wrong in it.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    pub protocol: Protocol,
    pub pace: Pace,
    pub shapes: u64,
    pub transactions: u8,
    /// Crashes and faults, together.
    pub disturbances: u8,
    /// A second instance may start at any time, and the first is drained once it waits.
    pub deploy: bool,
}

#[derive(Clone)]
pub struct World {
    pub bounds: Bounds,
    pub disturbances: u8,
    pub created: u64,
    pub starts: u8,
    pub postgres: Postgres,
    pub disk: Arc<Disk>,
    pub instances: [Instance; 2],
    pub reader: Reader,
    pub checker: Arc<Checker>,
    pub failure: Option<String>,
}

#[derive(Clone, Default, Hash)]
pub struct Postgres {
    pub committed: u8,
    /// What the slot has been told.
    pub slot: Option<Lsn>,
    /// Who holds the advisory lock.
    pub lock: Option<usize>,
}

/// What outlives processes.
#[derive(Clone, Default)]
pub struct Disk {
    /// The fold of the journal as far as it is synced.
    pub state: Arc<State>,
    /// Of that state, once somebody asked.
    state_digest: OnceLock<u128>,
    /// Steps that are appended and not synced: each survives a crash as a whole or not at all.
    pub unsynced: Vec<Vec<Recorded>>,
    pub shapes: BTreeMap<Sid, Files>,
    pub flock: Option<usize>,
    pub epoch: Epoch,
}

#[derive(Clone, Debug, PartialEq, Hash)]
pub struct Files {
    pub handle: Handle,
    pub definition: u64,
    /// So many transactions are in the initial rows; known from when they are copied.
    pub initial: Option<u8>,
    pub complete: bool,
    /// Transactions in the log, synced.
    pub log: Vec<u8>,
}

#[derive(Clone)]
pub enum Instance {
    Down,
    /// Runs without the lock.
    Waiting,
    Owner(Arc<Process>),
}

/// What dies in a crash.
#[derive(Clone)]
pub struct Process {
    pub engine: Arc<Engine>,
    pub effects: VecDeque<(Effect, EventId)>,
    pub statuses: VecDeque<(Effect, EventId)>,
    pub barrier: EventId,
    pub inbox: VecDeque<Message>,
    pub bodies: BTreeMap<Seq, u8>,
    /// The shapes that transactions are matched against and that are served.
    pub router: BTreeMap<Sid, u64>,
    /// The definitions of shapes that are not opened yet.
    pub definitions: BTreeMap<Sid, u64>,
    pub writers: BTreeMap<Sid, Writer>,
    pub snapshots: BTreeMap<Sid, (u32, Snapshot)>,
    pub trashing: Vec<(Sid, IntentId)>,
    pub connection: Connection,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Message {
    Input(Input),
    Commit(Generation, u8),
}

#[derive(Clone, Debug, PartialEq)]
pub struct Writer {
    pub incarnation: Incarnation,
    pub ready: bool,
    pub queue: VecDeque<(Seq, u8)>,
    pub handled: Option<Seq>,
    /// In memory only: the tail that readers see.
    pub tail: Vec<u8>,
    pub stopping: Option<ExitCause>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Snapshot {
    Wanted,
    /// With so many transactions in it.
    Opened(u8),
    Copying(u8),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Connection {
    None,
    Asked,
    Ready,
    /// So many transactions have been sent.
    Streaming(Generation, u8),
}

/// A client of the first shape.
#[derive(Clone, Default, Debug, PartialEq, Hash)]
pub struct Reader {
    pub shape: Option<Sid>,
    pub initial: u8,
    /// The transactions that it was sent.
    pub seen: Vec<u8>,
    /// How far it was told to be.
    pub offset: usize,
    /// Only in a wrong protocol: it has looked at the watermark and will read the tail.
    pub decided: bool,
    /// The shapes that it was told are gone.
    pub gone: Vec<Sid>,
}

/// LSN of the commit record of a transaction.
pub fn lsn(txn: u8) -> Lsn {
    Lsn(1_000 + 10 * u64::from(txn))
}

/// Where the WAL ends after so many transactions.
pub fn insert(committed: u8) -> Lsn {
    Lsn(995 + 10 * u64::from(committed))
}

pub fn xid(txn: u8) -> Xid {
    Xid(100 + u32::from(txn))
}

/// What a snapshot says that contains so many transactions.
pub fn visible(committed: u8) -> PgSnapshot {
    let next = 100 + u64::from(committed);
    PgSnapshot { xmin: next, xmax: next, xip: Vec::new() }
}

pub fn concerns(txn: u8, definition: u64) -> bool {
    CONCERNS[usize::from(txn)].contains(&definition)
}

pub fn policy() -> Policy {
    Policy {
        ack_interval: Duration::ZERO,
        writer_backoff: Duration::ZERO,
        writer_attempts_max: 2,
        snapshot_attempts_max: 2,
        // Time stands still here: a window never passes.
        give_up: Allowance { shapes_max: 2, percent_max: 100, window: Duration::ZERO },
        ..Policy::default()
    }
}

impl World {
    pub fn new(bounds: Bounds) -> World {
        World {
            bounds,
            disturbances: bounds.disturbances,
            created: 0,
            starts: 0,
            postgres: Postgres::default(),
            disk: Arc::default(),
            instances: [Instance::Down, Instance::Down],
            reader: Reader::default(),
            checker: Arc::new(Checker::new()),
            failure: None,
        }
    }

    pub fn fail(&mut self, why: impl Into<String>) {
        self.failure.get_or_insert(why.into());
    }

    pub fn process(&self, who: usize) -> Option<&Process> {
        match &self.instances[who] {
            Instance::Owner(process) => Some(process),
            Instance::Down | Instance::Waiting => None,
        }
    }

    pub fn process_mut(&mut self, who: usize) -> Option<&mut Process> {
        match &mut self.instances[who] {
            Instance::Owner(process) => Some(Arc::make_mut(process)),
            Instance::Down | Instance::Waiting => None,
        }
    }

    pub fn disk_mut(&mut self) -> &mut Disk {
        Arc::make_mut(&mut self.disk)
    }

    /// Takes the lock, folds the journal, and begins.
    pub fn boot(&mut self, who: usize) {
        let disk = self.disk_mut();
        disk.sync();
        disk.flock = Some(who);
        disk.epoch = disk.epoch.next();
        let (epoch, state) = (disk.epoch, State::clone(&disk.state));
        let released = state.owner.phase == OwnerPhase::Released;
        let previous_end = match (epoch, released) {
            (Epoch(1), _) => PreviousEnd::None,
            (_, true) => PreviousEnd::Released,
            (_, false) => PreviousEnd::Crashed,
        };
        self.instances[who] = Instance::Owner(Arc::new(Process {
            engine: Arc::new(Engine::from_state(state, policy())),
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
        }));
        let process = ProcessInfo::default();
        self.input(
            who,
            Input::Boot(Boot {
                process,
                epoch,
                previous_end,
                device: 1,
                inode: 1,
                waited_ms: 0,
                torn_values: 0,
                missing_upto: None,
            }),
        );
    }

    /// The process is no more: its locks are free. `kept` of the steps that were not synced are found
    /// again, and with `tails` what its writers had written and not synced.
    pub fn end(&mut self, who: usize, kept: usize, tails: bool) {
        let Instance::Owner(process) = std::mem::replace(&mut self.instances[who], Instance::Down) else {
            return;
        };
        if self.postgres.lock == Some(who) {
            self.postgres.lock = None;
        }
        let disk = self.disk_mut();
        if disk.flock == Some(who) {
            disk.flock = None;
        }
        let lost = disk.unsynced.len() > kept;
        disk.unsynced.truncate(kept);
        disk.sync();
        if tails {
            for (sid, writer) in &process.writers {
                if let Some(files) = disk.shapes.get_mut(sid) {
                    files.log.extend_from_slice(&writer.tail);
                }
            }
        }
        if lost {
            // What the checker has seen and no disk remembers has not happened.
            self.checker = Arc::new(Checker::from_state(State::clone(&self.disk.state)));
        }
    }

    pub fn send(&mut self, who: usize, input: Input) {
        if let Some(process) = self.process_mut(who) {
            process.inbox.push_back(Message::Input(input));
        }
    }

    /// Hands an input to the engine; what was recorded, or nothing where it was refused.
    pub fn input(&mut self, who: usize, input: Input) -> Vec<Recorded> {
        let Some(process) = self.process_mut(who) else { return Vec::new() };
        match Arc::make_mut(&mut process.engine).step(NOW, input) {
            Ok(step) => self.took(who, step),
            Err(_) => Vec::new(),
        }
    }

    fn took(&mut self, who: usize, step: Step) -> Vec<Recorded> {
        let Some(process) = self.process_mut(who) else { return Vec::new() };
        process.barrier = process.barrier.max(step.barrier.unwrap_or_default());
        let last = step.events.last().map_or(EventId(0), |recorded| recorded.id);
        for effect in step.effects {
            match effect {
                Effect::SendStatus { .. } => process.statuses.push_back((effect, last)),
                effect => process.effects.push_back((effect, process.barrier)),
            }
        }
        if step.events.is_empty() {
            return step.events;
        }
        let drifted = process.engine.projections().drifted(process.engine.state());
        if !drifted.is_empty() {
            self.fail(format!("J2: {drifted:?} drifted"));
        }
        let checker = Arc::make_mut(&mut self.checker);
        step.events.iter().for_each(|recorded| checker.observe(recorded));
        if let Some(violation) = checker.violations().first() {
            let why = violation.to_string();
            self.fail(why);
        }
        self.disk_mut().unsynced.push(step.events.clone());
        step.events
    }

    /// What the next steps depend on. Events are numbered from what is synced: worlds in which the
    /// same came about in another order are the same world from then on. Nor does it matter which of the
    /// two instances is which: both run the same program, and what one holds is counted with it.
    pub fn digest(&self) -> u128 {
        let mut hasher = Digest::default();
        (self.disturbances, self.created, self.starts).hash(&mut hasher);
        (self.postgres.committed, self.postgres.slot, &self.reader).hash(&mut hasher);
        self.disk.digest(&mut hasher);
        let mut instances = [0, 1].map(|who| self.digest_instance(who));
        instances.sort_unstable();
        instances.hash(&mut hasher);
        hasher.finish_wide()
    }

    fn digest_instance(&self, who: usize) -> u128 {
        let mut hasher = Digest::default();
        (self.disk.flock == Some(who), self.postgres.lock == Some(who)).hash(&mut hasher);
        match &self.instances[who] {
            Instance::Down => 0.hash(&mut hasher),
            Instance::Waiting => 1.hash(&mut hasher),
            Instance::Owner(process) => {
                // One owner's state is what the journal folds to, synced and not, which is counted with the
                // disk.
                if self.bounds.protocol != Protocol::Ours {
                    digest_state(process.engine.state(), &mut hasher);
                }
                process.digest(self.disk.durable(), &mut hasher);
            }
        }
        hasher.finish_wide()
    }
}

impl Disk {
    pub fn durable(&self) -> EventId {
        self.state.last
    }

    pub fn sync(&mut self) {
        if self.unsynced.is_empty() {
            return;
        }
        self.state_digest = OnceLock::new();
        let state = Arc::make_mut(&mut self.state);
        for step in std::mem::take(&mut self.unsynced) {
            step.iter().for_each(|recorded| state.apply(recorded));
        }
    }
}

/// The state without what only tells when something happened.
fn digest_state(state: &State, into: &mut Digest) {
    let mut state = state.clone();
    state.last = EventId(0);
    // Tombstones answer questions and decide nothing.
    state.tombstones = Tombstones::default();
    for shape in state.shapes.values_mut() {
        shape.created = EventId(0);
        if let Some(invalidation) = &mut shape.invalidated {
            invalidation.event = EventId(0);
        }
    }
    into.write(&state.to_bytes());
}

impl Disk {
    fn digest(&self, into: &mut Digest) {
        let of_state = self.state_digest.get_or_init(|| {
            let mut hasher = Digest::default();
            digest_state(&self.state, &mut hasher);
            hasher.finish_wide()
        });
        of_state.hash(into);
        for step in &self.unsynced {
            for recorded in step {
                let numberless = Recorded { id: EventId(0), because: None, ..recorded.clone() };
                into.write(&encode(&numberless));
            }
            into.write_u8(0xFF);
        }
        (&self.shapes, self.epoch).hash(into);
    }
}

impl Process {
    fn digest(&self, durable: EventId, into: &mut Digest) {
        self.engine.digest_scratch(into);
        let from = |id: &EventId| id.0.saturating_sub(durable.0);
        // Effects and inputs have no hash of their own; their text says all that they hold.
        for (effect, barrier) in self.effects.iter().chain(&self.statuses) {
            into.text(format_args!("{effect:?}"));
            from(barrier).hash(into);
        }
        into.text(format_args!("{:?} {:?} {:?}", self.inbox, self.writers, self.trashing));
        (from(&self.barrier), &self.bodies, &self.router, &self.definitions).hash(into);
        (&self.snapshots, self.connection).hash(into);
    }
}

/// Two multiplicative hashes side by side: that two of some millions of worlds meet by accident is
/// less likely than that the machine errs.
struct Digest([u64; 2]);

impl Default for Digest {
    fn default() -> Digest {
        Digest([0x9E37_79B9_7F4A_7C15, 0xC2B2_AE3D_27D4_EB4F])
    }
}

impl Digest {
    fn word(&mut self, word: u64) {
        let [first, second] = &mut self.0;
        *first = (first.rotate_left(5) ^ word).wrapping_mul(0xFF51_AFD7_ED55_8CCD);
        *second = (second.rotate_left(23) ^ word).wrapping_mul(0xC4CE_B9FE_1A85_EC53);
    }

    /// What something prints, without keeping it.
    fn text(&mut self, text: std::fmt::Arguments<'_>) {
        self.write_fmt(text).expect("a digest takes any text");
        self.word(u64::MAX);
    }

    fn finish_wide(&self) -> u128 {
        let [first, second] = self.0.map(|half| (half ^ (half >> 32)).wrapping_mul(0x9FB2_1C65_1E98_DF25));
        u128::from(first) << 64 | u128::from(second)
    }
}

impl std::fmt::Write for Digest {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        self.write(text.as_bytes());
        Ok(())
    }
}

impl Hasher for Digest {
    fn finish(&self) -> u64 {
        self.finish_wide() as u64
    }

    fn write(&mut self, bytes: &[u8]) {
        self.word(bytes.len() as u64);
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.word(u64::from_le_bytes(word));
        }
    }
}

/// The definition as the engine knows it.
pub fn definition_hash(definition: u64) -> DefinitionHash {
    DefinitionHash(definition + 1)
}

//! The world: one process at a time, what outlives it, and how it dies.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use shapefold::domain::{
    DefinitionHash, Epoch, EventId, Generation, Handle, Incarnation, Lsn, Oid, Seq, ShapeDefinition, Sid,
    Timestamp,
};
use shapefold::engine::{Boot, Engine, Input, Policy};
use shapefold::events::{
    Event, IntentId, InvalidationCause, OwnershipEvent, PreviousEnd, ProcessInfo, Recorded, ShapeEvent,
    decode,
};
use shapefold::journal::{Entry, Journal, MemoryJournal};
use shapefold::projections::forensics::Checker;
use shapefold::replication::{Assembler, StreamItem};
use shapefold::runtime::core::Core;
use shapefold::runtime::handle::LiveShape;
use shapefold::runtime::replay;
use shapefold::runtime::router::{RoutedTransaction, Router};
use shapefold::runtime::writers::{Command, PoolSettings, Report, WriterPool};
use shapefold::shape_log::{CompactionPolicy, Disk, PackedDisk, SimDisk};
use shapefold::state::{Allowance, State};

use super::clients::{Client, Mark, Served};
use super::compaction::Compactor;
use super::disk::ProcessDisk;
use super::postgres::{KINDS, Postgres, Snapshot};
use super::tasks::SnapshotTask;
use shapefold::testing::model::Choices;

pub const DATA: &str = "/data";
pub const POOLS: usize = 2;
const CLIENTS: usize = 4;

/// A world that breaks a rule which the service relies on, or its driver follows. The checks must
/// notice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutation {
    None,
    /// Effects are performed before their events are durable.
    EffectsBeforePersist,
    /// Postgres is told that a transaction is flushed when it is received.
    AckOfReceived,
    /// A transaction at or below the newest routed one is dropped, whoever owes it.
    GlobalDuplicateSkipping,
    /// A sync of a shape log does nothing and says that it did.
    SyncsThatLie,
    /// Readers take the view first and the mark, up to which they say it is complete, later.
    ViewBeforeMark,
    /// Readers are told that the shape is up to date with all that was received, delivered or not.
    MarkBeforeDelivery,
}

pub struct World {
    pub choices: Choices,
    pub mutation: Mutation,
    pub mode: Mode,
    pub policy: Policy,
    pub chunk_bytes: u64,
    pub compaction: Option<CompactionPolicy>,
    pub now: Timestamp,
    pub postgres: Postgres,

    // What outlives a process.
    pub journal: MemoryJournal,
    pub disk: SimDisk,
    pub epoch: Epoch,

    pub process: Option<Process>,
    /// Crash points until the process dies; zero for never.
    pub fuse: u32,
    pub dies_with_the_machine: bool,

    pub clients: Vec<Client>,
    pub definitions: Vec<Arc<ShapeDefinition>>,

    // What the world knows and nobody in it.
    /// Everything that was decided and has not been lost.
    pub history: Vec<Recorded>,
    pub checker: Checker,
    /// The fold of what no crash can take.
    pub durable: State,
    pub shapes: BTreeMap<Handle, Known>,
    pub served: BTreeMap<Handle, Served>,
    /// Handles that a client was told are gone.
    pub gone: BTreeSet<Handle>,
    /// Logs that were rewritten, if the crash after that has not undone it, and up to where.
    pub compacted: BTreeMap<Handle, Lsn>,
    /// What clients had at some offsets that they had come to.
    pub marks: Vec<Mark>,
    /// Up to here the logs of the shapes were seen to be durable, since the last crash.
    pub verified: BTreeMap<Handle, Lsn>,
    pub appends: u64,
    pub syncs: u64,
    pub checkpointings: u64,
    pub stats: Stats,
    pub failure: Option<String>,
    pub trace: bool,
    /// Only one fault in so many happens.
    pub calm: usize,
    /// The writers of some shapes panic whenever they are handed something.
    pub cursed: bool,
    /// Panics that a shape has had.
    pub panics: BTreeMap<Sid, u32>,
}

/// What goes wrong in a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Everything,
    /// Only writers that panic.
    PanicsOnly,
    /// Only crashes and lost connections: no shape is lost once its snapshot is complete.
    CrashesOnly,
    Nothing,
}

/// A shape, as the world knows it.
#[derive(Clone, Debug)]
pub struct Known {
    pub kind: usize,
    /// The commits that its initial rows contain, once that is determined.
    pub contains: Option<BTreeSet<Lsn>>,
}

#[derive(Clone, Debug, Default)]
pub struct Stats {
    pub counts: BTreeMap<String, u64>,
    pub events: u64,
    pub actions: u64,
}

impl Stats {
    pub fn count(&mut self, what: impl Into<String>) {
        *self.counts.entry(what.into()).or_default() += 1;
    }
}

/// Bytes of a segment: so few that there are many.
const SEGMENT_BYTES: u32 = 16 << 10;

/// The disk as a process finds it that starts, with the default: new shapes have files of their own. A start
/// that a failing disk ends is tried again.
fn packed(disk: &ProcessDisk) -> Arc<dyn Disk> {
    loop {
        let inner = Arc::new(disk.clone());
        if let Ok(packed) = PackedDisk::with_segments_of(inner, World::data(), SEGMENT_BYTES) {
            return Arc::new(packed.without_new_ones());
        }
    }
}

/// What dies in a crash.
pub struct Process {
    pub core: Core,
    pub router: Router,
    pub bodies: BTreeMap<Seq, Arc<RoutedTransaction>>,
    pub disk: ProcessDisk,
    /// Reads shapes that share files, too.
    pub files: Arc<dyn Disk>,
    pub pools: Vec<Pool>,
    pub shapes: BTreeMap<Sid, Arc<LiveShape>>,
    /// The shapes that requests find.
    pub service: BTreeMap<Handle, Arc<LiveShape>>,
    /// Shapes in memory have been restored: requests are answered.
    pub ready: bool,
    pub progress: Lsn,

    // Events of this turn, and the queue of the journal thread.
    pub entries: Vec<Entry>,
    pub sync: bool,
    pub requests: VecDeque<Request>,
    pub unsynced: bool,
    pub checkpointing: bool,

    // What is on its way to the driver.
    pub notices: VecDeque<Notice>,
    pub reports: VecDeque<Report>,
    pub messages: VecDeque<Input>,
    pub batches: VecDeque<(Generation, Item)>,

    pub connection: Connection,
    pub snapshots: BTreeMap<Sid, SnapshotTask>,
    pub trashing: Vec<(Sid, Handle, IntentId)>,
    pub compactor: Compactor,
    pub audit: Option<Audit>,
    /// Views were compared with the fold up to this shape.
    pub audited: Option<Sid>,
    pub drains_until: Option<Timestamp>,
}

/// A question for the writers that live: when it was asked, how many answers are missing, and those that
/// have come.
pub type Audit = (EventId, usize, Vec<(Sid, Incarnation)>);

/// The writers of one thread and the queue before them.
pub struct Pool {
    pub pool: WriterPool,
    pub commands: VecDeque<Command>,
    pub published: Arc<AtomicU64>,
}

/// What the driver asks of the journal thread.
pub enum Request {
    Append { entries: Vec<Entry>, now: bool },
    Checkpoint { upto: EventId, state: Vec<u8> },
    Trim { before: EventId },
}

pub enum Notice {
    Durable(EventId),
    Checkpointed { upto: EventId, state: Vec<u8> },
}

/// What the stream brings.
pub enum Item {
    Stream(StreamItem),
    Stopped,
}

#[expect(clippy::large_enum_variant, reason = "there is one")]
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
        assembler: Assembler,
        announced: BTreeSet<Oid>,
    },
}

impl World {
    pub fn new(mut choices: Choices, mutation: Mutation, mode: Mode) -> World {
        let policy = Policy {
            ack_interval: Duration::from_millis([0, 250][choices.below(2)]),
            snapshot_backlog_max: [100, 3][choices.below(2)],
            // Every third shape may be beyond help, and the quiet end must come.
            give_up: Allowance { shapes_max: 1_000, percent_max: 50, window: Duration::from_secs(1) },
            ..Policy::default()
        };
        let calm = [1, 4, 16][choices.below(3)];
        let cursed = mode == Mode::Everything && choices.below(6) == 5;
        let chunk_bytes = [1 << 20, 200, 2_000][choices.below(3)];
        let compaction = match choices.below(3) {
            0 => None,
            1 => Some(CompactionPolicy { bytes_min: 500, ratio: 2 }),
            _ => Some(CompactionPolicy { bytes_min: 3_000, ratio: 2 }),
        };
        World {
            choices,
            mutation,
            mode,
            policy,
            chunk_bytes,
            compaction,
            now: Timestamp(1_800_000_000_000_000),
            postgres: Postgres::new(),
            journal: MemoryJournal::new(),
            disk: SimDisk::new(),
            epoch: Epoch(0),
            process: None,
            fuse: 0,
            dies_with_the_machine: false,
            clients: (0..CLIENTS).map(|number| Client::new(number % KINDS.len())).collect(),
            definitions: KINDS.iter().map(super::postgres::Kind::definition).collect(),
            history: Vec::new(),
            checker: Checker::new(),
            durable: State::default(),
            shapes: BTreeMap::new(),
            served: BTreeMap::new(),
            gone: BTreeSet::new(),
            compacted: BTreeMap::new(),
            marks: Vec::new(),
            verified: BTreeMap::new(),
            appends: 0,
            syncs: 0,
            checkpointings: 0,
            stats: Stats::default(),
            failure: None,
            trace: false,
            calm,
            cursed,
            panics: BTreeMap::new(),
        }
    }

    pub fn fail(&mut self, why: impl Into<String>) {
        let why = why.into();
        if self.trace {
            eprintln!("FAILURE {why}");
        }
        self.failure.get_or_insert(why);
    }

    pub fn tell(&self, what: impl FnOnce() -> String) {
        if self.trace {
            eprintln!("{}", what());
        }
    }

    /// The files of this process's disk.
    pub fn shared_disk(&self) -> Option<Arc<dyn Disk>> {
        Some(Arc::clone(&self.process.as_ref()?.files))
    }

    /// Starts a process on what is left: the real fold of the newest checkpoint and what came after.
    pub fn boot(&mut self) {
        // The ring of recent commits dies with a process: see `engine_histories`.
        self.postgres.reveal_before(Timestamp(i64::MAX));
        let first = match self.journal.read(EventId(0)).next() {
            Some(Ok(entry)) => entry.id,
            _ => self.journal.last().next(),
        };
        let engine = match replay(&self.journal, first, self.policy.clone()) {
            Ok((engine, _)) => engine,
            Err(error) => return self.fail(format!("the journal does not open: {error}")),
        };
        if engine.state() != &self.durable {
            return self.fail("a start folds the journal to another state");
        }
        let released = self
            .history
            .last()
            .is_some_and(|last| matches!(last.event, Event::Ownership(OwnershipEvent::Released { .. })));
        self.epoch = self.epoch.next();
        let previous_end = match (self.epoch, released) {
            (Epoch(1), _) => PreviousEnd::None,
            (_, true) => PreviousEnd::Released,
            (_, false) => PreviousEnd::Crashed,
        };
        self.tell(|| format!("--- process {} starts", self.epoch));
        self.process = Some(self.new_process(engine));
        self.light_fuse();
        let process = ProcessInfo { pid: self.epoch.0 as u32, ..ProcessInfo::default() };
        self.input(Input::Boot(Boot {
            process,
            epoch: self.epoch,
            previous_end,
            device: 1,
            inode: 1,
            waited_ms: 0,
            torn_values: 0,
            missing_upto: None,
        }));
        self.settle();
    }

    fn new_process(&self, engine: Engine) -> Process {
        let disk = ProcessDisk::new(self.disk.clone(), self.mutation == Mutation::SyncsThatLie);
        let files = packed(&disk);
        let settings = PoolSettings {
            chunk_bytes: self.chunk_bytes,
            idle_after: Duration::from_secs(1),
            compaction: self.compaction,
        };
        let pool = |_| {
            let published = Arc::new(AtomicU64::new(0));
            let pool = WriterPool::new(settings.clone(), Arc::clone(&files), Arc::clone(&published));
            Pool { pool, commands: VecDeque::new(), published }
        };
        Process {
            core: Core::new(engine),
            router: Router::default(),
            bodies: BTreeMap::new(),
            pools: (0..POOLS).map(pool).collect(),
            disk,
            files,
            shapes: BTreeMap::new(),
            service: BTreeMap::new(),
            ready: false,
            progress: Lsn(0),
            entries: Vec::new(),
            sync: false,
            requests: VecDeque::new(),
            unsynced: false,
            checkpointing: false,
            notices: VecDeque::new(),
            reports: VecDeque::new(),
            messages: VecDeque::new(),
            batches: VecDeque::new(),
            connection: Connection::None,
            snapshots: BTreeMap::new(),
            trashing: Vec::new(),
            compactor: Compactor::default(),
            audit: None,
            audited: None,
            drains_until: None,
        }
    }

    /// Decides when this process dies: at one of the points between two things that it does, at a
    /// call of the disk, or when chance has it.
    fn light_fuse(&mut self) {
        self.fuse = 0;
        if !matches!(self.mode, Mode::Everything | Mode::CrashesOnly) {
            return;
        }
        self.dies_with_the_machine = self.choices.chance(50);
        // Short ones die in the recovery.
        let long = [12, 60, 400][self.choices.below(3)] * self.calm;
        let points = 1 + self.choices.below(long);
        match self.choices.below(6) {
            0 | 1 => {}
            2 | 3 => {
                let calls = points as u64;
                if let Some(process) = &self.process {
                    process.disk.die_in(calls);
                }
            }
            _ => self.fuse = points as u32,
        }
    }

    /// A place where the process may die. True where it is dead.
    pub fn point(&mut self, place: &str) -> bool {
        if self.process.is_none() {
            return true;
        }
        if self.fuse == 0 {
            return false;
        }
        self.fuse -= 1;
        if self.fuse > 0 {
            return false;
        }
        self.stats.count(format!("died {place}"));
        self.crash();
        true
    }

    /// True where the process died in what it did to the disk.
    pub fn died_on_disk(&mut self) -> bool {
        let dead = self.process.as_ref().is_none_or(|process| process.disk.is_dead());
        if dead && self.process.is_some() {
            self.stats.count("died in a call of the disk");
            self.crash();
        }
        dead
    }

    /// The process dies, alone or with the machine.
    pub fn crash(&mut self) {
        let Some(process) = self.process.take() else { return };
        process.disk.die();
        drop(process);
        let machine = self.dies_with_the_machine;
        self.tell(|| format!("--- dies {}", if machine { "with the machine" } else { "alone" }));
        self.stats.count(if machine { "power losses" } else { "kills" });
        // Batches that were not synced may be found or not, whichever of the two it is: sled keeps
        // them in memory of its own for a while.
        let keep = self.choices.below(40);
        self.journal.crash(keep);
        if machine {
            let seed = self.choices.below(1 << 30) as u64;
            self.disk.crash(seed);
        }
        self.after_death();
    }

    /// The process ends in order, as `Driver::close` does: the writers end, the journal is synced.
    pub fn exit(&mut self) {
        let Some(mut process) = self.process.take() else { return };
        let state = process.core.engine().state().clone();
        process.disk.die();
        for request in std::mem::take(&mut process.requests) {
            let Request::Append { entries, .. } = request else { continue };
            if self.journal.append(&entries).is_err() {
                self.fail("the last events could not be appended");
            }
        }
        if self.journal.checkpoint(state.last, &state.to_bytes()).is_err() {
            self.fail("no last checkpoint");
        }
        drop(process);
        self.stats.count("exits in order");
        self.after_death();
    }

    fn after_death(&mut self) {
        // No fault that was planned for the dead one strikes the next.
        self.disk.fail_call(0, shapefold::shape_log::SimFault::Errno(5));
        let last = self.journal.last();
        self.history.retain(|recorded| recorded.id <= last);
        let mut expected = self.history.iter().filter(|recorded| {
            self.journal.read(EventId(0)).next().is_none_or(|first| first.is_ok_and(|f| f.id <= recorded.id))
        });
        let read = self.journal.read(EventId(0)).all(|entry| {
            let recorded = entry.ok().and_then(|entry| decode(&entry.bytes).ok());
            recorded.as_ref() == expected.next()
        });
        let whole = read && expected.next().is_none();
        self.checker = Checker::new();
        self.history.iter().for_each(|recorded| self.checker.observe(recorded));
        self.advance_durable();
        self.verified.clear();
        // The generation before may be there again.
        for handle in self.compacted.keys() {
            self.served.remove(handle);
        }
        for client in &mut self.clients {
            client.disconnect();
        }
        if !whole {
            self.fail("the journal holds other events than were appended to it");
        }
        self.check_acknowledged();
    }

    /// Follows the journal with the fold of what is durable.
    pub fn advance_durable(&mut self) {
        let upto = self.journal.durable();
        if self.durable.last < upto {
            let from = self.history.partition_point(|recorded| recorded.id <= self.durable.last);
            for recorded in self.history[from..].iter().take_while(|recorded| recorded.id <= upto) {
                self.durable.apply(recorded);
            }
        }
    }

    /// Why the shape of this handle has been invalidated, as the journal says durably.
    pub fn explained(&self, handle: Handle) -> Option<InvalidationCause> {
        let durable = self.journal.durable();
        let recorded = || self.history.iter().take_while(|recorded| recorded.id <= durable);
        let sid = recorded().find_map(|recorded| match &recorded.event {
            Event::Shape(ShapeEvent::Created { sid, handle: own, .. }) if *own == handle => Some(*sid),
            _ => None,
        })?;
        recorded().find_map(|recorded| match &recorded.event {
            Event::Shape(ShapeEvent::Invalidated { sid: own, cause }) if *own == sid => Some(*cause),
            _ => None,
        })
    }

    pub fn kind_of(&self, hash: DefinitionHash) -> usize {
        self.definitions.iter().position(|definition| definition.hash() == hash).expect("a known definition")
    }

    pub fn data() -> &'static Path {
        Path::new(DATA)
    }

    pub fn remember_snapshot(&mut self, handle: Handle, snapshot: &Snapshot) {
        if let Some(known) = self.shapes.get_mut(&handle) {
            known.contains = Some(snapshot.contains.clone());
        }
    }
}

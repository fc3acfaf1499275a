//! Shapes with inner queries in a model of everything around them: a database that is a list of
//! transactions, what the engine remembers of who owes what, writers on a disk in memory, clients that object.
//! The router, what is decided here, the logs and their recovery are the real ones. Every history comes from
//! a seed; the process is killed at any point, with and without the machine.

mod clauses;
mod client;
mod database;
mod making;
mod process;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use self::clauses::{Clause, Row};
use self::client::Client;
use self::database::Database;
use self::process::Process;
use crate::domain::{Handle, Lsn, PgSnapshot, Seq, ShapeDefinition, Sid};
use crate::filter::subquery;
use crate::shape_log::{ShapeFiles, ShapeReader, SimDisk, SnapshotWriter};

/// The histories of one test, of [`PARTS`]: always the same. Others can be asked for in the environment.
const HISTORIES: u64 = 100;
const PARTS: u64 = 4;
/// Steps of one history.
const STEPS: usize = 400;
/// Shapes with inner queries that have clients: those made while nothing is there, and all in the end.
const SHAPES: usize = 3;
const SHAPES_MAX: usize = 6;
/// States of the engine that a crash may bring back.
const STATES_MAX: usize = 20;

/// A shape of the model, an inner query or one with a client.
#[derive(Clone, Debug)]
struct Spec {
    sid: Sid,
    handle: Handle,
    definition: Arc<ShapeDefinition>,
    dependencies: Vec<Sid>,
    /// What its snapshot contains.
    visible: (PgSnapshot, Lsn),
}

/// One that has a client: what SQL says about its rows.
#[derive(Debug)]
struct Followed {
    sid: Sid,
    table: usize,
    clause: Clause,
    client: Client,
    /// The earliest state of the database that the client's rows may be those of.
    state: usize,
}

/// What the engine remembers, as far as it matters here: who owes which transaction.
#[derive(Clone, Debug, Default)]
struct Memory {
    received: Lsn,
    last: Seq,
    window: BTreeMap<Lsn, Seq>,
    pending: BTreeMap<Sid, BTreeSet<Seq>>,
    flushed: BTreeMap<Sid, Seq>,
}

impl Memory {
    /// Everything before has been dealt with.
    fn from(&self) -> Lsn {
        let owed = self.pending.values().filter_map(|seqs| seqs.first()).min();
        let lsn = owed.and_then(|seq| self.window.iter().find(|(_, known)| *known == seq));
        lsn.map_or(Lsn(self.received.0 + 1), |(lsn, _)| *lsn)
    }

    fn take_flush(&mut self, sid: Sid, upto: Seq) {
        if let Some(seqs) = self.pending.get_mut(&sid) {
            *seqs = seqs.split_off(&upto.next());
        }
        let flushed = self.flushed.entry(sid).or_default();
        *flushed = upto.max(*flushed);
    }
}

struct World {
    random: StdRng,
    disk: SimDisk,
    database: Database,
    specs: Vec<Spec>,
    followed: Vec<Followed>,
    memory: Memory,
    /// What the journal may have at a crash, oldest first.
    states: Vec<Memory>,
    process: Process,
    starts: u32,
    story: Vec<String>,
}

fn data() -> &'static Path {
    Path::new("/data")
}

impl World {
    fn new(seed: u64) -> World {
        let mut random = StdRng::seed_from_u64(seed);
        let disk = SimDisk::new();
        let database = Database::new();
        let (mut specs, mut followed) = (Vec::new(), Vec::new());
        let nothing = (database::before_all(), Lsn(10));
        while followed.len() < SHAPES {
            let Some(one) = some_shape(&mut random, &database, &mut specs, &nothing) else { continue };
            followed.push(one);
        }
        specs.iter().for_each(|spec| lay_out(spec, &disk));
        let memory = Memory { received: Lsn(10), ..Memory::default() };
        let process = Process::start(&specs, &disk, &memory, 1);
        let (states, story) = (vec![memory.clone()], Vec::new());
        World { random, disk, database, specs, followed, memory, states, process, starts: 1, story }
    }

    fn step(&mut self) -> Result<(), String> {
        match self.random.random_range(0..100) {
            0..22 => {
                let told = self.database.commit(&mut self.random);
                self.story.push(told);
            }
            22..50 => self.receive(),
            50..58 => {
                let Some(number) = self.some_query() else { return Ok(()) };
                let lagging = self.random.random_bool(0.2);
                self.process.look(number, &mut self.database, lagging);
                self.story.push(format!("query {:?} looks", self.process.queries[number].0));
            }
            58..68 => {
                let Some(number) = self.some_query() else { return Ok(()) };
                if let Some(sid) = self.process.answer(number) {
                    self.story.push(format!("query of {sid} is answered"));
                    self.perform();
                }
            }
            68..76 => self.flush(),
            76..80 if self.process.next == self.database.len() => {
                self.process.reach(self.database.end());
                self.story.push("the stream says where it is".to_owned());
                self.perform();
            }
            80..96 => {
                let number = self.random.random_range(0..self.followed.len());
                self.read(number)?;
            }
            96..98 => {
                self.states = vec![self.memory.clone()];
            }
            98 => self.crash(),
            99 if self.followed.len() < SHAPES_MAX => self.make(),
            _ => {}
        }
        if let Some(ended) = self.process.ended.first() {
            return Err(ended.clone());
        }
        if self.states.len() < STATES_MAX && self.random.random_bool(0.3) {
            self.states.push(self.memory.clone());
        }
        Ok(())
    }

    fn some_query(&mut self) -> Option<usize> {
        let count = self.process.queries.len();
        (count > 0).then(|| self.random.random_range(0..count))
    }

    fn receive(&mut self) {
        if let Some((lsn, told)) = self.process.receive(&self.database, &mut self.memory) {
            self.story.push(format!("received {lsn}: {told}"));
            self.perform();
        }
    }

    fn perform(&mut self) {
        self.process.perform();
    }

    fn flush(&mut self) {
        for (sid, upto) in self.process.flush() {
            self.story.push(format!("{sid} is durable to {upto}"));
            self.memory.take_flush(sid, upto);
            let flushed = self.memory.flushed[&sid];
            self.process.flushed(sid, flushed);
        }
        self.perform();
    }

    fn read(&mut self, number: usize) -> Result<(), String> {
        let followed = &mut self.followed[number];
        let view = self.process.view(followed.sid);
        let complete = followed.client.read(&view)?;
        if !complete {
            return Ok(());
        }
        let rows = followed.client.sorted();
        let of = |state: &usize| self.database.rows(*state, followed.table, &followed.clause) == rows;
        match (followed.state..=self.database.len()).find(of) {
            Some(state) => followed.state = state,
            None => return Err(format!("{} is up to date with rows of no state: {rows:?}", followed.sid)),
        }
        Ok(())
    }

    /// A client comes for another shape.
    fn make(&mut self) {
        let lagging = self.random.random_bool(0.2);
        // Who was not visible yet when the shape was made known is waited for.
        let from = self.database.first_from(Lsn(self.memory.received.0 + 1)).max(self.process.next);
        let look = self.database.look(lagging.then_some(from));
        let (known, visible) = (self.specs.len(), (look.snapshot.clone(), look.lsn));
        let made = some_shape(&mut self.random, &self.database, &mut self.specs, &visible);
        let Some(mut one) = made else { return };
        if self.followed.iter().any(|known| known.sid == one.sid) {
            return;
        }
        for spec in &self.specs[known..] {
            self.process.make(spec, &self.disk, &look);
            self.story.push(format!("{} is made with what is visible at {}", spec.sid, look.lsn));
        }
        one.state = self.database.len();
        self.followed.push(one);
        // The journal has it, and so all that was before.
        self.states = vec![self.memory.clone()];
    }

    /// The process ends, and perhaps the machine. What the journal has of the latest is up to chance.
    fn crash(&mut self) {
        self.states.push(self.memory.clone());
        let state = self.random.random_range(0..self.states.len());
        self.memory = self.states[state].clone();
        self.states = vec![self.memory.clone()];
        let power = self.random.random_bool(0.4);
        self.story.push(format!("the {} stops", if power { "machine" } else { "process" }));
        if power {
            self.disk.crash(self.random.random());
        }
        self.starts += 1;
        self.process = Process::start(&self.specs, &self.disk, &self.memory, self.starts);
        self.process.first = self.database.first_from(self.memory.from());
        self.process.next = self.process.first;
        if self.process.ended.is_empty() {
            self.perform();
        }
    }

    /// Everything that can happen happens, but for writes; then every client has the rows of SQL.
    fn settle(&mut self) -> Result<(), String> {
        while self.process.next < self.database.len() {
            self.receive();
        }
        for _ in 0..1_000 {
            self.process.reach(self.database.end());
            self.perform();
            while !self.process.queries.is_empty() {
                self.process.look(0, &mut self.database, false);
                self.process.answer(0);
                self.perform();
            }
            self.flush();
            if self.process.is_settled() {
                break;
            }
        }
        if let Some(ended) = self.process.ended.first() {
            return Err(ended.clone());
        }
        for spec in self.specs.iter().filter(|spec| !spec.dependencies.is_empty()) {
            let mut client = Client::new();
            if let Err(what) = client.read(&self.process.view(spec.sid)) {
                return Err(format!("{}: {what}\n  {}", spec.sid, client.seen.join("\n  ")));
            }
        }
        for number in 0..self.followed.len() {
            self.read(number)?;
            let followed = &self.followed[number];
            let rows: Vec<Row> = followed.client.sorted();
            let expected = self.database.rows(self.database.len(), followed.table, &followed.clause);
            if rows != expected {
                let waiting = self.process.waiting();
                return Err(format!("{} has {rows:?}, SQL says {expected:?} ({waiting})", followed.sid));
            }
        }
        Ok(())
    }

    fn explain(&self, what: &str) -> String {
        let shapes: Vec<String> = self
            .specs
            .iter()
            .map(|spec| {
                let definition = &spec.definition;
                format!(
                    "{}: {:?} {} WHERE {:?}, needs {:?}",
                    spec.sid,
                    definition.selects,
                    definition.relation.name,
                    definition.where_sql,
                    spec.dependencies
                )
            })
            .collect();
        let seen: Vec<String> = self
            .followed
            .iter()
            .map(|followed| format!("client of {}:\n  {}", followed.sid, followed.client.seen.join("\n  ")))
            .collect();
        format!("{what}\n{}\n{}\n{}", shapes.join("\n"), self.story.join("\n"), seen.join("\n"))
    }
}

/// A random shape with inner queries, if the service accepts its clause.
fn some_shape(
    random: &mut StdRng,
    database: &Database,
    specs: &mut Vec<Spec>,
    visible: &(PgSnapshot, Lsn),
) -> Option<Followed> {
    let clause = Clause::random(random, 2);
    let table = random.random_range(0..clauses::TABLES);
    let definition = database.definition(table, &clause)?;
    let sid = add(specs, definition, visible);
    Some(Followed { sid, table, clause, client: Client::new(), state: 0 })
}

/// Adds a shape after the inner queries that it needs.
fn add(specs: &mut Vec<Spec>, definition: ShapeDefinition, visible: &(PgSnapshot, Lsn)) -> Sid {
    let dependencies: Vec<Sid> =
        definition.dependencies.iter().map(|inner| add(specs, inner.clone(), visible)).collect();
    if let Some(known) = specs.iter().find(|spec| spec.definition.same_shape(&definition)) {
        return known.sid;
    }
    let sid = Sid(specs.len() as u32 + 1);
    let handle = Handle { hash: definition.hash().0, micros: u64::from(sid.0) };
    let definition = Arc::new(definition);
    specs.push(Spec { sid, handle, definition, dependencies, visible: visible.clone() });
    sid
}

/// Files without rows.
fn lay_out(spec: &Spec, disk: &SimDisk) {
    let Spec { handle, definition, .. } = spec;
    let files = ShapeFiles::create(Arc::new(disk.clone()), data(), *handle, definition).expect("files");
    let reader = ShapeReader::new(&files);
    let snapshot = SnapshotWriter::create(&files, definition, reader, u64::MAX).expect("a snapshot");
    snapshot.finish(&database::before_all()).expect("a snapshot without rows");
}

fn run(seed: u64) -> Result<(), String> {
    let mut world = World::new(seed);
    for _ in 0..STEPS {
        if let Err(what) = world.step() {
            return Err(world.explain(&what));
        }
    }
    world.settle().map_err(|what| world.explain(&what))
}

/// Runs a part of the histories, or in the first part those that are asked for.
fn run_part(part: u64) {
    assert!(part < PARTS);
    let variable = |name: &str| std::env::var(name).ok().and_then(|value| value.parse::<u64>().ok());
    let asked = variable("SHAPEFOLD_SUBQUERY_SEED");
    let count = variable("SHAPEFOLD_SUBQUERY_HISTORIES").unwrap_or(HISTORIES);
    let first = match (asked, part) {
        (Some(seed), 0) => seed,
        (Some(_), _) => return,
        (None, _) => part * count,
    };
    for seed in first..first + count {
        if let Err(what) = run(seed) {
            panic!("SHAPEFOLD_SUBQUERY_SEED={seed} SHAPEFOLD_SUBQUERY_HISTORIES=1\n{what}");
        }
    }
}

/// No client is told what cannot be, each is only told to be up to date with rows that some state of the
/// database has, and ends with those of the last.
#[test]
fn clients_are_told_the_truth_over_kills_and_power_cuts() {
    run_part(0);
}

#[test]
fn clients_are_told_the_truth_over_kills_and_power_cuts_second_part() {
    run_part(1);
}

#[test]
fn clients_are_told_the_truth_over_kills_and_power_cuts_third_part() {
    run_part(2);
}

#[test]
fn clients_are_told_the_truth_over_kills_and_power_cuts_fourth_part() {
    run_part(3);
}

/// What the clauses of the model are made of is what the service accepts.
#[test]
fn most_random_clauses_are_accepted() {
    let (mut random, database) = (StdRng::seed_from_u64(1), Database::new());
    let (mut accepted, mut refused) = (0, Vec::new());
    while accepted < 300 {
        let clause = Clause::random(&mut random, 2);
        let sql = clause.sql();
        match database.parse(0, &clause) {
            Ok(_) => accepted += 1,
            Err(subquery::ClauseError { message, .. }) => refused.push(format!("{sql}: {message}")),
        }
    }
    let polarity = |text: &&String| !text.contains("polarity") && !text.contains("too complex");
    assert_eq!(refused.iter().filter(polarity).collect::<Vec<_>>(), [] as [&String; 0]);
    assert!(refused.len() < accepted);
}

//! The process of the model: what the driver, the executor and the writer threads do, in one thread.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use super::database::{self, Database};
use super::{Memory, Spec, data};
use crate::domain::{Incarnation, Lsn, Seq, ShapeDefinition, Sid, SidSet, Timestamp, Value};
use crate::engine::Input;
use crate::filter::Predicate;
use crate::filter::subquery::Selection;
use crate::runtime::handle::{LiveShape, Phase};
use crate::runtime::router::{RoutedTransaction, Router};
use crate::runtime::subquery::moving::Moved;
use crate::runtime::subquery::{Action, Restored, RowTagger, task};
use crate::runtime::writers::{Command, PoolSettings, Report, WriterPool};
use crate::shape_log::{
    Encoder, ShapeFiles, ShapeReader, ShapeView, SimDisk, Verify, make_durable, open_read_only,
};

const BUFFER_MAX: usize = 1_000;

type Run = Vec<(Seq, Arc<RoutedTransaction>)>;

/// What a shape is, what clients read, and how its rows are tagged.
type Served = (Spec, Arc<LiveShape>, Option<Arc<RowTagger>>);

/// See the module.
pub struct Process {
    pub router: Router,
    pool: WriterPool,
    incarnation: Incarnation,
    shapes: BTreeMap<Sid, Served>,
    bodies: BTreeMap<Seq, Arc<RoutedTransaction>>,
    runs: BTreeMap<Sid, Vec<(Run, Option<Seq>)>>,
    /// The transaction that the stream brings next, and the one that it began with.
    pub next: usize,
    pub first: usize,
    /// What is asked of the database, and the answers that are on their way.
    pub queries: Vec<(Sid, u64, Option<Moved>)>,
    /// Shapes that were given up: there is no reason for any.
    pub ended: Vec<String>,
}

impl Process {
    /// Carries on with what is on the disk.
    pub fn start(specs: &[Spec], disk: &SimDisk, memory: &Memory, start: u32) -> Process {
        let (from, received) = (memory.from(), memory.received);
        let mut router = Router::new(BUFFER_MAX);
        Database::new().wire().iter().for_each(|relation| drop(router.announce(relation)));
        router.subqueries.begin_at(from);
        let settings = PoolSettings { chunk_bytes: u64::MAX, idle_after: Duration::MAX, compaction: None };
        let published = Arc::new(AtomicU64::new(0));
        let pool = WriterPool::new(settings, Arc::new(disk.clone()), Arc::clone(&published));
        let mut process = Process {
            router,
            pool,
            incarnation: Incarnation(start),
            shapes: BTreeMap::new(),
            bodies: BTreeMap::new(),
            runs: BTreeMap::new(),
            next: 0,
            first: 0,
            queries: Vec::new(),
            ended: Vec::new(),
        };
        for spec in specs {
            let owes = memory.pending.get(&spec.sid).and_then(|seqs| seqs.first());
            let oldest = owes.and_then(|seq| memory.window.iter().find(|(_, known)| *known == seq));
            let restored = Restored {
                dependencies: spec.dependencies.clone(),
                from: oldest.map_or(Lsn(received.0 + 1), |(lsn, _)| *lsn),
                visible: Some(spec.visible.clone()),
            };
            process.restore(spec, disk, (received, restored), &published);
            if !process.ended.is_empty() {
                return process;
            }
        }
        process.perform();
        process
    }

    fn restore(
        &mut self,
        spec: &Spec,
        disk: &SimDisk,
        (received, restored): (Lsn, Restored),
        published: &Arc<AtomicU64>,
    ) {
        let Spec { sid, handle, definition, dependencies, .. } = spec;
        let (sid, subqueries) = (*sid, &mut self.router.subqueries);
        let files = ShapeFiles::open(Arc::new(disk.clone()), data(), *handle);
        let reader = ShapeReader::open(&files).expect("a snapshot");
        if !dependencies.is_empty() {
            make_durable(&files).expect("the disk works");
        }
        open_read_only(&files, &reader, Verify::Everything).expect("a log");
        let view = reader.view();
        let tagger = RowTagger::of(definition, "single_stack", *handle).map(|tagger| tagger.map(Arc::new));
        let tagger = tagger.unwrap_or_else(|error| panic!("{error} in {:?}", definition.where_sql));
        if definition.is_inner() {
            let clause = tagger.as_ref().map(|tagger| Arc::new(tagger.clause().clone()));
            if let Err(error) =
                subqueries.restore_inner(sid, Arc::clone(definition), clause, &view, &restored)
            {
                return self.ended.push(format!("the log of {sid} cannot be folded: {error}"));
            }
        }
        if let Some(tagger) = &tagger {
            let (definition, tagger) = (Arc::clone(definition), Arc::clone(tagger));
            subqueries
                .restore_outer(sid, definition, tagger, &view, (received, &restored))
                .expect("a log that can be folded");
        }
        self.match_against(sid, definition, tagger.as_deref());
        let (definition, published) = (Arc::clone(definition), Arc::clone(published));
        let shape = Arc::new(LiveShape::new(sid, *handle, definition, reader, Phase::Readable, published));
        self.begin_writing(spec, shape, files, tagger);
    }

    /// Every transaction is matched against it from the next on.
    pub fn match_against(&mut self, sid: Sid, definition: &Arc<ShapeDefinition>, tagger: Option<&RowTagger>) {
        match tagger {
            Some(tagger) => {
                self.router.insert_outer(sid, Arc::clone(definition), tagger.clause().columns());
            }
            None => {
                let predicate = definition.where_sql.as_ref().map(|sql| {
                    Predicate::from_canonical(sql, &definition.relation).expect("its own canonical form")
                });
                self.router.insert(sid, Arc::clone(definition), predicate);
            }
        }
    }

    pub fn begin_writing(
        &mut self,
        spec: &Spec,
        shape: Arc<LiveShape>,
        files: ShapeFiles,
        tagger: Option<Arc<RowTagger>>,
    ) {
        let start = Command::Start {
            sid: spec.sid,
            incarnation: self.incarnation,
            shape: Arc::clone(&shape),
            files,
            replay: Vec::new(),
            complete: true,
            owes_from: None,
        };
        self.pool.perform(Timestamp(0), start);
        self.shapes.insert(spec.sid, (spec.clone(), shape, tagger));
    }

    /// Takes the next transaction in; tells who is to have it.
    pub fn receive(&mut self, database: &Database, memory: &mut Memory) -> Option<(Lsn, String)> {
        if self.next >= database.len() {
            return None;
        }
        let txn = Arc::clone(database.transaction(self.next));
        self.next += 1;
        let lsn = txn.lsn;
        let routing = self.router.route(txn).expect("in memory");
        let body = Arc::new(routing.routed);
        let (seq, set) = if lsn <= memory.received {
            let Some(seq) = memory.window.get(&lsn).copied() else { return Some((lsn, "again".to_owned())) };
            let owes = |sid: &Sid| memory.pending.get(sid).is_some_and(|seqs| seqs.contains(&seq));
            (seq, self.shapes.keys().copied().filter(owes).collect())
        } else {
            memory.received = lsn;
            let lacks = |sid: &Sid| {
                let (snapshot, bound) = &self.shapes[sid].0.visible;
                lsn >= *bound || !snapshot.sees(body.txn.xid)
            };
            let set: SidSet = routing.set.iter().filter(lacks).collect();
            if set.is_empty() {
                return Some((lsn, "for nobody".to_owned()));
            }
            memory.last = memory.last.next();
            memory.window.insert(lsn, memory.last);
            for sid in set.iter() {
                memory.pending.entry(sid).or_default().insert(memory.last);
            }
            (memory.last, set)
        };
        self.bodies.insert(seq, Arc::clone(&body));
        self.router.subqueries.note(seq, &body, &set);
        let told = format!("{seq} for {:?}", set.iter().map(|sid| sid.0).collect::<BTreeSet<_>>());
        self.take_actions();
        self.deliver(seq, &set);
        Some((lsn, told))
    }

    fn deliver(&mut self, seq: Seq, set: &SidSet) {
        let body = Arc::clone(&self.bodies[&seq]);
        let mut to = Vec::new();
        for sid in set.iter() {
            self.hand_out(sid, Some(seq));
            let waiting = self.runs.get(&sid).into_iter().flatten().flat_map(|(run, _)| run);
            let in_run = waiting.into_iter().any(|(other, _)| *other == seq);
            if !in_run && !self.router.subqueries.holds(sid, seq, &body) {
                to.push((sid, self.incarnation));
            }
        }
        self.pool.perform(Timestamp(0), Command::Deliver { seq, routed: body, to });
    }

    fn hand_out(&mut self, sid: Sid, before: Option<Seq>) {
        let runs = self.runs.remove(&sid).unwrap_or_default();
        let due = |run: &Run| before.is_none_or(|seq| run.first().is_some_and(|(first, _)| *first < seq));
        let (due, later): (Vec<_>, Vec<_>) = runs.into_iter().partition(|(run, _)| due(run));
        for (run, owes_from) in due {
            let incarnation = self.incarnation;
            self.pool.perform(Timestamp(0), Command::Run { sid, incarnation, run, owes_from });
        }
        if !later.is_empty() {
            self.runs.insert(sid, later);
        }
    }

    fn take_actions(&mut self) {
        for action in self.router.subqueries.take_actions() {
            match action {
                Action::Query { sid, id, condition, .. } => {
                    // Postgres refuses that.
                    if condition.is_some_and(|sql| sql.is_empty()) {
                        self.ended.push(format!("{sid} asks with a condition of no words"));
                    }
                    self.queries.push((sid, id, None));
                }
                Action::Run { sid, run, owes_from } => {
                    self.runs.entry(sid).or_default().push((run, owes_from));
                }
                Action::HoldBack { sid, held_back } => self.shapes[&sid].1.reader.hold_back(held_back),
                Action::End { sid, cause } => self.ended.push(format!("{sid} ends: {cause:?}")),
                Action::Ask => {}
            }
        }
    }

    /// Does what was decided.
    pub fn perform(&mut self) {
        self.take_actions();
        let sids: Vec<Sid> = self.runs.keys().copied().collect();
        sids.into_iter().for_each(|sid| self.hand_out(sid, None));
    }

    /// The snapshot of a query is taken: all rows of its table, which are more than it asks for.
    pub fn look(&mut self, number: usize, database: &mut Database, lagging: bool) {
        let (sid, _, answer) = &mut self.queries[number];
        let (spec, _, tagger) = &self.shapes[sid];
        let definition = &spec.definition;
        let look = database.look(lagging.then_some(self.first));
        let (encoder, selection) = (Encoder::new(definition), Selection::of(definition));
        let table = definition.relation.oid.0 as usize - 1;
        let names = super::clauses::COLUMNS;
        let wanted: Vec<usize> = (definition.columns.iter())
            .chain(tagger.as_ref().expect("it moves").extra_columns())
            .map(|name| names.iter().position(|known| known == name).expect("a column"))
            .collect();
        let rows = look.tables[table].values().map(|row| {
            let all = database::tuple(row);
            let cells: Vec<Value<'_>> = wanted.iter().map(|at| all.get(*at)).collect();
            task::row(&cells, definition, &encoder, &selection).expect("a row")
        });
        *answer = Some(Moved { visible: look.snapshot, lsn: look.lsn, rows: rows.collect() });
    }

    /// Hands an answer over, if it is there.
    pub fn answer(&mut self, number: usize) -> Option<Sid> {
        self.queries[number].2.as_ref()?;
        let (sid, id, moved) = self.queries.remove(number);
        self.router.subqueries.moved(sid, id, moved);
        Some(sid)
    }

    pub fn reach(&mut self, lsn: Lsn) {
        self.router.subqueries.reach(lsn);
    }

    /// Makes everything durable; who is, up to where.
    pub fn flush(&mut self) -> Vec<(Sid, Seq)> {
        self.pool.flush();
        let mut flushed = Vec::new();
        for report in self.pool.take_reports() {
            match report {
                Report::Input(Input::Flushed { reports }) => {
                    flushed.extend(reports.iter().map(|report| (report.sid, report.upto)));
                }
                Report::Input(Input::WriterReady { .. }) => {}
                other => panic!("{other:?}"),
            }
        }
        flushed
    }

    pub fn flushed(&mut self, sid: Sid, upto: Seq) {
        self.router.subqueries.flushed(sid, upto);
    }

    pub fn view(&self, sid: Sid) -> Arc<ShapeView> {
        self.shapes[&sid].1.reader.view()
    }

    pub fn is_settled(&self) -> bool {
        self.router.subqueries.unsettled() == 0 && self.queries.is_empty()
    }

    pub fn waiting(&self) -> String {
        format!("{:?}", self.router.subqueries.waiting().collect::<Vec<_>>())
    }
}

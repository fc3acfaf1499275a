//! Logs that are rewritten: whatever a client has, and whatever answers of whichever generation it is given
//! next, it comes to the rows of the table.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;

use proptest::prelude::*;

use super::*;
use crate::domain::PgSnapshot;
use crate::shape_log::rewrite::prepare_within;
use crate::shape_log::{
    Body, CompactionPolicy, Preparation, Prepared, SimFault, SnapshotWriter, Switched, is_compactable,
};

const POLICY: CompactionPolicy = CompactionPolicy { bytes_min: 400, ratio: 2 };
/// Rows that are there from the beginning.
const INITIAL: usize = 3;

type Rows = BTreeMap<String, BTreeMap<String, String>>;

/// What a transaction does, to which row.
#[derive(Clone, Debug)]
enum Write {
    /// Inserts the row, or sets its texts where it is there.
    Set(usize, usize),
    /// Sets one column.
    Touch(usize, bool),
    Delete(usize),
    /// Gives a row the key of another, if that is free.
    Rekey(usize, usize),
}

#[derive(Clone, Debug)]
enum Step {
    Transaction(Vec<Write>),
    Flush,
    Prepare(usize),
    Switch,
    /// Begins to answer a client; the answer is read to its end with the next step of that client.
    Ask(usize),
    /// Answers it from a cache, if that has something.
    AskCache(usize, usize),
    StartOver(usize),
    Crash(u64),
}

fn write() -> impl Strategy<Value = Write> {
    prop_oneof![
        3 => (0..6_usize, 0..40_usize).prop_map(|(id, len)| Write::Set(id, len)),
        4 => (0..6_usize, any::<bool>()).prop_map(|(id, value)| Write::Touch(id, value)),
        2 => (0..6_usize).prop_map(Write::Delete),
        1 => (0..6_usize, 0..6_usize).prop_map(|(from, to)| Write::Rekey(from, to)),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        12 => proptest::collection::vec(write(), 1..5).prop_map(Step::Transaction),
        5 => Just(Step::Flush),
        3 => prop_oneof![Just(usize::MAX), Just(900_usize)].prop_map(Step::Prepare),
        3 => Just(Step::Switch),
        8 => (0..4_usize).prop_map(Step::Ask),
        4 => (0..4_usize, any::<usize>()).prop_map(|(client, which)| Step::AskCache(client, which)),
        1 => (0..4_usize).prop_map(Step::StartOver),
        1 => any::<u64>().prop_map(Step::Crash),
    ]
}

#[derive(Debug)]
struct Client {
    from: Offset,
    rows: Rows,
    begun: Option<(Offset, bool, Body)>,
}

#[derive(Clone, Debug)]
struct Answer {
    from: Offset,
    end: Offset,
    body: Vec<u8>,
}

struct History {
    shape: Shape,
    chunk: u64,
    table: BTreeMap<usize, (usize, bool)>,
    /// As Postgres would send them again.
    sent: Vec<(u64, Vec<(Change, Op)>)>,
    flushed: Offset,
    prepared: Option<Prepared>,
    clients: Vec<Client>,
    answers: Vec<Answer>,
    /// What a client has that has read up to an offset that was the end of the log once.
    states: Vec<(Offset, Rows)>,
    compactions: u32,
}

fn values(id: usize, (len, flag): (usize, bool)) -> [String; 3] {
    [id.to_string(), text(len), if flag { "t" } else { "f" }.to_owned()]
}

impl History {
    fn new(chunk: u64) -> History {
        let shape = Shape::new(chunk);
        let mut writer = SnapshotWriter::create(&shape.files, &definition(), Arc::clone(&shape.reader), 60)
            .expect("begins");
        let mut table = BTreeMap::new();
        for id in 0..INITIAL {
            table.insert(id, (id, false));
            let [id, a, b] = values(id, (id, false));
            let row = [Value::Text(a.as_bytes()), Value::Text(b.as_bytes()), Value::Text(id.as_bytes())];
            writer.push_row(&row).expect("a row");
        }
        writer.finish(&PgSnapshot { xmin: 7, xmax: 9, xip: vec![] }).expect("done");
        let client = || Client { from: Offset::BeforeAll, rows: Rows::new(), begun: None };
        History {
            shape,
            chunk,
            table,
            sent: Vec::new(),
            flushed: Offset::SNAPSHOT_END,
            prepared: None,
            clients: (0..4).map(|_| client()).collect(),
            answers: Vec::new(),
            states: Vec::new(),
            compactions: 0,
        }
    }

    fn run(&mut self, step: &Step) {
        match step {
            Step::Transaction(writes) => self.transaction(writes),
            Step::Flush => self.flushed = self.shape.flush(),
            Step::Prepare(bytes_max) => self.prepare(*bytes_max),
            Step::Switch => self.switch(),
            Step::Ask(client) => self.ask(*client),
            Step::AskCache(client, which) => self.ask_cache(*client, *which),
            Step::StartOver(client) => {
                self.clients[*client] = Client { from: Offset::BeforeAll, rows: Rows::new(), begun: None };
            }
            Step::Crash(seed) => self.crash(*seed),
        }
    }

    fn transaction(&mut self, writes: &[Write]) {
        let tx = self.sent.len() as u64 * 8 + 8;
        let mut changes = Vec::new();
        for (index, write) in writes.iter().enumerate() {
            changes.extend(self.change(index as u64 * 2, write));
        }
        self.send(tx, &changes);
        self.sent.push((tx, changes));
        let rows = self.expected();
        self.states.push((self.shape.writer.last(), rows));
    }

    fn change(&mut self, op: u64, write: &Write) -> Option<(Change, Op)> {
        let relation = Arc::clone(&self.shape.relation);
        let row = |id: usize, value: (usize, bool)| tuple(&values(id, value).each_ref().map(String::as_str));
        let (id, new_id, new) = match *write {
            Write::Set(id, len) => (id, id, Some((len, self.table.get(&id).is_some_and(|row| row.1)))),
            Write::Touch(id, flag) => (id, id, Some((self.table.get(&id)?.0, flag))),
            Write::Delete(id) => (id, id, None),
            Write::Rekey(id, to) if self.table.contains_key(&to) => {
                return self.change(op, &Write::Delete(id));
            }
            Write::Rekey(id, to) => (id, to, Some(*self.table.get(&id)?)),
        };
        let old = self.table.remove(&id);
        if let Some(new) = new {
            self.table.insert(new_id, new);
        }
        match (old, new) {
            (None, None) => None,
            (None, Some(new)) => Some((Change::Insert { op, relation, new: row(new_id, new) }, Op::Insert)),
            (Some(old), None) => Some((Change::Delete { op, relation, old: row(id, old) }, Op::Delete)),
            (Some(old), Some(new)) => {
                let (old, new) = (Some(row(id, old)), row(new_id, new));
                Some((Change::Update { op, relation, old, new }, Op::Update))
            }
        }
    }

    fn send(&mut self, tx: u64, changes: &[(Change, Op)]) {
        let writer = &mut self.shape.writer;
        writer.begin(Lsn(tx), Xid(tx as u32)).expect("begins");
        for (change, op) in changes {
            writer.push(change, *op).expect("a change");
        }
        writer.commit().expect("commits");
    }

    fn prepare(&mut self, bytes_max: usize) {
        let view = self.shape.reader.view();
        let how = (POLICY, self.chunk, bytes_max);
        let stop = AtomicBool::new(false);
        match prepare_within(&self.shape.files, &definition(), &view, how, &stop).expect("the disk works") {
            Preparation::Prepared(prepared) => self.prepared = Some(*prepared),
            Preparation::Nothing => self.prepared = None,
            other => panic!("{other:?}"),
        }
    }

    fn switch(&mut self) {
        let Some(prepared) = self.prepared.take() else { return };
        let last = self.shape.writer.last();
        match self.shape.writer.switch(&self.shape.files, prepared).expect("the disk works") {
            Switched::Done { before, .. } => assert!(before > 0),
            Switched::Abandoned(fault) => panic!("{fault}"),
        }
        self.compactions += 1;
        assert_eq!((self.shape.writer.last(), self.shape.reader.view().last()), (last, last));
        assert!(!self.shape.writer.is_dirty(), "it was synced");
        self.flushed = last;
    }

    /// What was begun is read to its end first: from a view that may be of a generation that is gone.
    fn ask(&mut self, number: usize) {
        let client = &mut self.clients[number];
        if let Some((end, _, body)) = client.begun.take() {
            let mut bytes = Vec::new();
            for piece in body {
                bytes.extend_from_slice(&piece.expect("the log is sound"));
            }
            self.answers.push(Answer { from: client.from, end, body: bytes.clone() });
            apply(client, end, &bytes, self.compactions > 0);
            return;
        }
        match self.shape.reader.view().read(client.from).expect("the log is sound") {
            Read::Range(range) => client.begun = Some((range.end, range.up_to_date, range.body)),
            // It has read what a crash took; it comes again.
            Read::Beyond => {}
            Read::Pending { .. } => panic!("the snapshot is complete"),
        }
    }

    fn ask_cache(&mut self, number: usize, which: usize) {
        let client = &mut self.clients[number];
        let fitting: Vec<&Answer> = self.answers.iter().filter(|answer| answer.from == client.from).collect();
        if client.begun.is_none() && !fitting.is_empty() {
            let answer = fitting[which % fitting.len()].clone();
            apply(client, answer.end, &answer.body, self.compactions > 0);
        }
    }

    fn crash(&mut self, seed: u64) {
        self.shape.disk.crash(seed);
        self.take_over();
    }

    fn take_over(&mut self) {
        self.prepared = None;
        for client in &mut self.clients {
            client.begun = None;
        }
        self.shape = self.shape.reopen();
        assert!(self.shape.recovered.last >= self.flushed, "flushed to {}", self.flushed);
        for (tx, changes) in self.sent.clone() {
            self.send(tx, &changes);
        }
    }

    fn expected(&self) -> Rows {
        let row = |(id, value): (&usize, &(usize, bool))| {
            let [id, a, b] = values(*id, *value);
            let b = if b == "t" { "true" } else { "false" }.to_owned();
            let key = format!("\"public\".\"items\"/\"{id}\"");
            (key, [("id".to_owned(), id), ("a".to_owned(), a), ("b".to_owned(), b)].into())
        };
        self.table.iter().map(row).collect()
    }

    /// Every client, and one at every offset that ever was the end of the log, comes to the table's rows.
    fn check(&mut self) {
        let expected = self.expected();
        let states = std::mem::take(&mut self.states);
        let fresh = (Offset::BeforeAll, Rows::new());
        for (from, rows) in states.into_iter().chain([fresh]) {
            self.clients.push(Client { from, rows, begun: None });
        }
        for number in 0..self.clients.len() {
            let last = self.shape.reader.view().last();
            while self.clients[number].from < last || self.clients[number].begun.is_some() {
                self.ask(number);
            }
            assert_eq!(self.clients[number].rows, expected, "client {number}");
        }
    }
}

/// Takes an answer as a client does that complains about a row that is inserted twice, and about an update
/// of one that it does not have.
fn apply(client: &mut Client, end: Offset, body: &[u8], compacted: bool) {
    for message in messages(body) {
        let message: serde_json::Value = serde_json::from_slice(message).expect("a message is JSON");
        let Some(operation) = message["headers"]["operation"].as_str() else { continue };
        let key = message["key"].as_str().expect("a key").to_owned();
        let values = message["value"].as_object().expect("values").iter();
        let values = values.map(|(name, value)| (name.clone(), value.as_str().unwrap_or("NULL").to_owned()));
        match (operation, client.rows.get_mut(&key)) {
            ("insert", None) => {
                client.rows.insert(key, values.collect());
            }
            ("update", Some(row)) => row.extend(values),
            ("delete", Some(_)) => {
                client.rows.remove(&key);
            }
            ("delete", None) if compacted => {}
            (operation, row) => panic!("{operation} of {key} at {}, which is {row:?}", client.from),
        }
    }
    assert!(end >= client.from);
    client.from = end;
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn every_client_comes_to_the_rows_of_the_table(
        chunk in prop_oneof![Just(1_u64), Just(300), Just(1_500)],
        steps in proptest::collection::vec(step(), 1..90),
    ) {
        let mut history = History::new(chunk);
        for step in &steps {
            history.run(step);
        }
        history.check();
        history.shape.flush();
        history.flushed = history.shape.writer.last();
        history.crash(1);
        history.check();
    }
}

/// Updates of few rows, again and again.
fn busy(transactions: usize) -> History {
    let mut history = History::new(2_000);
    for number in 0..transactions {
        history
            .transaction(&[Write::Set(number % INITIAL, 30 + number % 7), Write::Touch(1, number % 2 == 0)]);
        history.flushed = history.shape.flush();
    }
    history
}

#[test]
fn a_log_stays_as_small_as_its_rows() {
    let mut history = busy(0);
    let mut largest = 0;
    for number in 0..2_000 {
        history.transaction(&[Write::Set(number % INITIAL, 30 + number % 7)]);
        history.flushed = history.shape.flush();
        if history.shape.writer.compaction_due(POLICY) {
            history.prepare(usize::MAX);
            history.switch();
        }
        largest = largest.max(history.shape.writer.size());
    }
    assert!(history.compactions > 10, "{}", history.compactions);
    let bound = POLICY.ratio * 3 * (INITIAL as u64) * 400;
    assert!(largest < bound, "{largest} bytes of log, of {INITIAL} rows; {bound} may be");
    history.check();
}

/// The disk fails at any call of making a generation and of the switch to it; afterwards the machine stops.
#[test]
fn any_call_may_fail_and_nothing_is_lost() {
    let calls = |work: &mut dyn FnMut(&mut History)| {
        let mut history = busy(40);
        let before = history.shape.disk.calls();
        work(&mut history);
        history.shape.disk.calls() - before
    };
    let all = calls(&mut |history| {
        history.prepare(usize::MAX);
        history.switch();
    });
    let (mut abandoned, mut failed, mut done) = (0, 0, 0);
    for call in 1..=all {
        for fault in [SimFault::Errno(28), SimFault::Errno(5), SimFault::Short(9)] {
            for seed in 0..4 {
                let mut history = busy(40);
                let reading = history.shape.reader.view();
                history.shape.disk.fail_call(history.shape.disk.calls() + call, fault);
                let how = (POLICY, history.chunk, usize::MAX);
                let (files, stop) = (history.shape.files.clone(), AtomicBool::new(false));
                let prepared = prepare_within(&files, &definition(), &reading, how, &stop);
                match prepared {
                    Err(_) => abandoned += 1,
                    Ok(Preparation::Prepared(prepared)) => {
                        match history.shape.writer.switch(&files, *prepared) {
                            Ok(Switched::Done { .. }) => done += 1,
                            Ok(Switched::Abandoned(_)) => abandoned += 1,
                            Err(_) => failed += 1,
                        }
                    }
                    Ok(other) => panic!("call {call}: {other:?}"),
                }
                // The view from before is whole, whatever has become of the files.
                assert_eq!(walk(&reading, Offset::BeforeAll).0.len(), walk_of(40), "call {call} {fault:?}");
                if history.shape.writer.fault().is_none() {
                    history.transaction(&[Write::Set(0, 3)]);
                    history.flushed = history.shape.flush();
                    history.clone_check();
                }
                history.compactions = 1;
                history.crash(seed);
                history.check();
            }
        }
    }
    assert!(abandoned > 0 && failed > 0 && done > 0, "{abandoned} abandoned, {failed} failed, {done} done");
}

/// Messages of [`busy`] from the beginning.
fn walk_of(transactions: usize) -> usize {
    walk(&busy(transactions).shape.reader.view(), Offset::BeforeAll).0.len()
}

impl History {
    /// As `check`, of a log that goes on.
    fn clone_check(&mut self) {
        self.compactions = 1;
        let states = self.states.clone();
        self.check();
        self.states = states;
        self.clients.truncate(4);
    }
}

/// One that holds an old view reads the old file, also where its descriptor had been closed.
#[test]
fn an_old_view_outlives_the_switch() {
    let mut history = busy(60);
    let old = history.shape.reader.view();
    let expected = walk(&old, Offset::BeforeAll);
    history.shape.writer.release();
    history.prepare(usize::MAX);
    history.shape.writer.release();
    history.switch();
    history.shape.writer.release();
    assert_eq!(walk(&old, Offset::BeforeAll), expected);
    assert!(history.shape.reader.view().log_size() < old.log_size() / 4);
    history.check();
}

/// What cannot be told again with fewer messages is left alone.
#[test]
fn only_plain_shapes_are_compacted() {
    let plain = definition();
    assert!(is_compactable(&plain));
    let full = ShapeDefinition { replica: Replica::Full, ..plain.clone() };
    let changes = ShapeDefinition { log: LogMode::ChangesOnly, ..plain.clone() };
    let outer = ShapeDefinition { dependencies: vec![plain.clone()], ..plain.clone() };
    let inner = ShapeDefinition { selects: vec!["id".to_owned()], ..plain };
    for other in [full, changes, outer, inner] {
        assert!(!is_compactable(&other), "{other:?}");
    }
}

#[test]
fn a_thread_that_is_told_to_stop_makes_nothing() {
    let history = busy(40);
    let view = history.shape.reader.view();
    let stop = AtomicBool::new(true);
    let how = (POLICY, history.chunk, usize::MAX);
    let prepared = prepare_within(&history.shape.files, &definition(), &view, how, &stop);
    assert!(matches!(prepared, Ok(Preparation::Stopped)), "{prepared:?}");
}

/// Damage in what is to be rewritten is found, and never copied.
#[test]
fn damage_is_not_compacted() {
    let history = busy(40);
    history.shape.disk.damage(&history.shape.files.path("log"), 700, 1).expect("a byte");
    let view = history.shape.reader.view();
    let how = (POLICY, history.chunk, usize::MAX);
    let stop = AtomicBool::new(false);
    let prepared = prepare_within(&history.shape.files, &definition(), &view, how, &stop);
    let Err(ShapeLogError::Storage(fault)) = prepared else { panic!("{prepared:?}") };
    assert!(matches!(fault.class, crate::shape_log::FaultClass::Corrupt { .. }), "{fault}");
}

/// Another process follows the files. What it reads is of the old log or of the new one, never of both: a
/// view of the old one whose file it has closed finds that its file is gone.
#[test]
fn who_follows_the_files_meets_the_switch() {
    let folder = tempfile::tempdir().expect("a directory");
    let data = folder.path();
    let disk: Arc<dyn Disk> = Arc::new(crate::shape_log::RealDisk::new(data).expect("a disk"));
    let files = ShapeFiles::create(Arc::clone(&disk), data, HANDLE, &definition()).expect("a shape is made");
    let reader = ShapeReader::new(&files);
    let mut snapshot =
        SnapshotWriter::create(&files, &definition(), Arc::clone(&reader), 200).expect("begins");
    snapshot.push_row(&[Value::Text(b"a"), Value::Text(b"f"), Value::Text(b"1")]).expect("a row");
    snapshot.finish(&PgSnapshot { xmin: 7, xmax: 9, xip: vec![] }).expect("done");
    let how = (Incarnation(1), 2_000, Verify::Tail);
    let recovered =
        LogWriter::recover(&files, &definition(), Arc::clone(&reader), how.0, how.1, how.2).expect("empty");
    let (mut writer, relation) = (recovered.0, wire(&definition()));
    let update = |writer: &mut LogWriter, tx: u64| {
        let row = |tx: u64| tuple(&["1", &text((tx % 50) as usize), "f"]);
        let change =
            Change::Update { op: 0, relation: Arc::clone(&relation), old: Some(row(tx - 1)), new: row(tx) };
        writer.begin(Lsn(tx), Xid(1)).expect("begins");
        writer.push(&change, Op::Update).expect("a change");
        writer.commit().expect("commits");
        crate::shape_log::flush_all(disk.as_ref(), [writer]).remove(0).expect("the disk works");
    };
    (100..300).for_each(|tx| update(&mut writer, tx));
    let (_, mut follower) =
        crate::shape_log::Follower::open(&crate::shape_log::followed_disk(data), data, HANDLE)
            .expect("it opens")
            .expect("it is complete");
    let old = follower.reader().view();
    let expected = walk(&old, Offset::BeforeAll);
    for round in 0..2 {
        let stop = AtomicBool::new(false);
        let made = prepare_within(&files, &definition(), &reader.view(), (POLICY, 2_000, usize::MAX), &stop);
        let Ok(Preparation::Prepared(prepared)) = made else { panic!("{made:?}") };
        assert!(matches!(writer.switch(&files, *prepared), Ok(Switched::Done { .. })));
        if round == 0 {
            assert_eq!(walk(&old, Offset::BeforeAll), expected, "its file is still open");
        }
        (400 + 100 * round..450 + 100 * round).for_each(|tx| update(&mut writer, tx));
    }
    follower.reader().release_files();
    let reread = match old.read(Offset::SNAPSHOT_END) {
        Ok(Read::Range(range)) => range.body.collect::<Result<Vec<_>, _>>(),
        Ok(other) => panic!("{other:?}"),
        Err(error) => Err(error),
    };
    let Err(ShapeLogError::Storage(fault)) = reread else { panic!("{reread:?}") };
    assert_eq!(fault.class, crate::shape_log::FaultClass::Vanished);
    assert_eq!(follower.follow(), Ok(crate::shape_log::Followed::Changed));
    let seen = walk(&follower.reader().view(), Offset::BeforeAll);
    assert_eq!(seen, walk(&reader.view(), Offset::BeforeAll));
    assert!(seen.0.len() < expected.0.len() / 2, "{} of {}", seen.0.len(), expected.0.len());
    update(&mut writer, 700);
    assert_eq!(follower.follow(), Ok(crate::shape_log::Followed::Changed));
    assert_eq!(walk(&follower.reader().view(), Offset::BeforeAll), walk(&reader.view(), Offset::BeforeAll));
}

/// An answer of one generation leads to where no answer of another begins, but for places where both stand
/// for the same rows: the end of the compacted part and what comes after it.
#[test]
fn no_two_generations_end_a_chunk_at_the_same_offset() {
    let mut history = History::new(200);
    let mut begun: std::collections::BTreeSet<Offset> = std::collections::BTreeSet::new();
    let mut inside = 0;
    for generation in 0..4_usize {
        for number in 0..40 {
            let id = number % 6;
            let writes = [Write::Set(id, 10 + number), Write::Touch((id + 1) % 6, number % 2 == 0)];
            history.transaction(&writes);
            if number % 9 == generation {
                history.transaction(&[Write::Delete(id), Write::Set(id, 5)]);
            }
            history.flushed = history.shape.flush();
            begun.extend(history.states.last().map(|(end, _)| *end));
        }
        begun.extend(walk(&history.shape.reader.view(), Offset::BeforeAll).1.iter().map(|(from, _)| *from));
        history.prepare(usize::MAX);
        history.switch();
        let view = history.shape.reader.view();
        let end = crate::shape_log::rewrite::compacted_end(&view.log.marks);
        let mark = view.log.marks.iter_from(0).find(|mark| mark.end == end).expect("it is compacted");
        for (from, _) in walk(&view, Offset::SNAPSHOT_END).1.into_iter().skip(1) {
            if from < mark.last_offset() {
                inside += 1;
                assert!(
                    begun.insert(from),
                    "a chunk of generation {generation} ends at {from}, as one before"
                );
            }
        }
    }
    assert!(inside > 10, "{inside}");
    history.check();
}

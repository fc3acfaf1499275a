//! A model of Postgres with rows: two tables, transactions that commit and become visible later, one
//! slot, one publication, and the bytes that pgoutput would send.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use shapefold::domain::{
    Column, LogMode, Lsn, Oid, PgSnapshot, Relation, RelationName, Replica, ShapeDefinition, Timestamp,
};
use shapefold::filter::Predicate;

use shapefold::testing::model::Choices;

pub const TABLES: [Oid; 2] = [Oid(100), Oid(101)];
const KEYS: usize = 6;
const GROUPS: usize = 3;
/// Rows of this size make a writer write before it is told to flush.
const LARGE_BYTES: usize = 30_000;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    pub id: usize,
    pub grp: usize,
    pub v: String,
}

#[derive(Clone, Debug)]
pub enum Op {
    Insert(Row),
    Update { old: Row, new: Row },
    Delete(Row),
    Truncate,
}

#[derive(Clone, Debug)]
pub struct Committed {
    pub xid: u64,
    pub lsn: Lsn,
    pub at: Timestamp,
    pub visible: bool,
    /// What it did to which table, and whether that was published.
    pub ops: Vec<(Oid, Op, bool)>,
}

/// What a shape is of.
#[derive(Clone, Copy, Debug)]
pub struct Kind {
    pub table: Oid,
    pub clause: Option<&'static str>,
    pub wants: fn(&Row) -> bool,
    pub columns: &'static [&'static str],
}

const ALL: &[&str] = &["grp", "id", "v"];

pub const KINDS: [Kind; 6] = [
    Kind { table: TABLES[0], clause: None, wants: |_| true, columns: ALL },
    Kind { table: TABLES[0], clause: Some("grp = 1"), wants: |row| row.grp == 1, columns: ALL },
    Kind {
        table: TABLES[0],
        clause: Some("grp >= 1 AND id < 4"),
        wants: |row| row.grp >= 1 && row.id < 4,
        columns: ALL,
    },
    Kind { table: TABLES[1], clause: None, wants: |_| true, columns: &["id", "v"] },
    Kind { table: TABLES[1], clause: Some("grp IN (0, 2)"), wants: |row| row.grp != 1, columns: ALL },
    Kind { table: TABLES[1], clause: Some("NOT grp = 0"), wants: |row| row.grp != 0, columns: &["id", "v"] },
];

impl Kind {
    pub fn definition(&self) -> Arc<ShapeDefinition> {
        let relation = relation(self.table);
        let where_sql = self.clause.map(|clause| {
            let predicate = Predicate::parse(clause, &BTreeMap::new(), &relation).expect("a valid clause");
            predicate.sql().to_owned()
        });
        Arc::new(ShapeDefinition {
            relation: Arc::new(relation),
            where_sql,
            columns: self.columns.iter().map(|name| (*name).to_owned()).collect(),
            columns_named: self.columns.len() < ALL.len(),
            replica: Replica::Default,
            log: LogMode::Full,
            dependencies: Vec::new(),
            selects: Vec::new(),
        })
    }

    /// Whether the shape gets a message of it.
    pub fn concerned_by(&self, (table, op, _): &(Oid, Op, bool)) -> bool {
        *table == self.table
            && match op {
                Op::Insert(row) | Op::Delete(row) => (self.wants)(row),
                Op::Update { old, new } => (self.wants)(old) || (self.wants)(new),
                Op::Truncate => false,
            }
    }

    /// A row as a client of the shape has it.
    pub fn project(&self, row: &Row) -> BTreeMap<String, String> {
        self.columns.iter().map(|name| ((*name).to_owned(), row.value(name))).collect()
    }
}

impl Row {
    pub fn value(&self, column: &str) -> String {
        match column {
            "id" => self.id.to_string(),
            "grp" => self.grp.to_string(),
            _ => self.v.clone(),
        }
    }
}

fn relation(table: Oid) -> Relation {
    let column = |name: &str, type_oid, type_name: &str| Column {
        name: name.to_owned(),
        type_oid: Oid(type_oid),
        type_name: type_name.to_owned(),
        element_oid: Oid(0),
        type_modifier: -1,
        dimensions: 0,
        not_null: name == "id",
        pk_position: (name == "id").then_some(0),
        generated: false,
        type_kind: 'b',
        base: None,
    };
    Relation {
        oid: table,
        name: RelationName { schema: "public".to_owned(), table: format!("t{}", table.0) },
        columns: vec![column("id", 23, "int4"), column("grp", 23, "int4"), column("v", 25, "text")],
        partitioned: false,
        storage: None,
    }
}

/// What a snapshot says, and what it really contains.
#[derive(Clone, Debug)]
pub struct Snapshot {
    pub snapshot: PgSnapshot,
    pub lsn: Lsn,
    pub contains: BTreeSet<Lsn>,
}

#[derive(Debug)]
pub struct Postgres {
    next_xid: u64,
    latest_completed: u64,
    pub insert: Lsn,
    pub running: Vec<u64>,
    pub wal: Vec<Committed>,
    /// Where the slot was confirmed; nothing where there is none.
    pub slot: Option<Lsn>,
    /// Published tables, and the commits that had written to each before and were not visible.
    published: BTreeMap<Oid, Vec<Lsn>>,
    rows: BTreeMap<(Oid, usize), Row>,
    writes: usize,
}

impl Postgres {
    /// Transaction ids begin a little before they wrap around 32 bits.
    pub fn new() -> Postgres {
        let next_xid = (2 << 32) - 20;
        Postgres {
            next_xid,
            latest_completed: next_xid - 1,
            insert: Lsn(1_000),
            running: Vec::new(),
            wal: Vec::new(),
            slot: None,
            published: BTreeMap::new(),
            rows: BTreeMap::new(),
            writes: 0,
        }
    }

    pub fn begin(&mut self) {
        self.running.push(self.next_xid);
        self.next_xid += 1;
    }

    pub fn abort(&mut self, index: usize) {
        let xid = self.running.remove(index);
        self.latest_completed = self.latest_completed.max(xid);
    }

    /// Writes and commits: the writes of a transaction that is not committed concern nobody.
    pub fn commit(&mut self, index: usize, now: Timestamp, truncates: bool, choices: &mut Choices) {
        let xid = self.running.remove(index);
        let mut ops = Vec::new();
        for _ in 0..choices.below(5) {
            let table = TABLES[choices.below(TABLES.len())];
            let op = self.write(table, choices);
            self.wait_for_locks(table, &op);
            ops.push((table, op, self.published.contains_key(&table)));
        }
        if truncates && choices.below(60) == 59 {
            let table = TABLES[choices.below(TABLES.len())];
            self.wait_for_locks(table, &Op::Truncate);
            self.rows.retain(|(oid, _), _| *oid != table);
            ops.push((table, Op::Truncate, self.published.contains_key(&table)));
        }
        let lsn = Lsn(self.insert.0 + 1 + choices.below(8) as u64);
        self.insert = Lsn(lsn.0 + 2);
        self.wal.push(Committed { xid, lsn, at: now, visible: false, ops });
    }

    fn write(&mut self, table: Oid, choices: &mut Choices) -> Op {
        self.writes += 1;
        let id = choices.below(KEYS);
        let large = if choices.below(60) == 59 { LARGE_BYTES } else { 0 };
        let v = format!("{}{}\"\\ü", "x".repeat(large), self.writes);
        let new = Row { id, grp: choices.below(GROUPS), v };
        let Some(old) = self.rows.get(&(table, id)).cloned() else {
            self.rows.insert((table, id), new.clone());
            return Op::Insert(new);
        };
        self.rows.remove(&(table, id));
        if choices.below(4) == 3 {
            return Op::Delete(old);
        }
        // The key changes where the new one is free.
        let free = choices.below(KEYS);
        let id = if choices.below(4) == 3 && !self.rows.contains_key(&(table, free)) { free } else { id };
        let new = Row { id, ..new };
        self.rows.insert((table, id), new.clone());
        Op::Update { old, new }
    }

    /// Who writes to a row waits until those who wrote to it before are visible.
    fn wait_for_locks(&mut self, table: Oid, op: &Op) {
        let ids = |op: &Op| match op {
            Op::Insert(row) | Op::Delete(row) => vec![row.id],
            Op::Update { old, new } => vec![old.id, new.id],
            Op::Truncate => (0..KEYS).collect(),
        };
        let wanted = ids(op);
        for index in self.invisible() {
            let clash = |(other, op, _): &(Oid, Op, bool)| {
                *other == table && ids(op).iter().any(|id| wanted.contains(id))
            };
            if self.wal[index].ops.iter().any(clash) {
                self.reveal(index);
            }
        }
    }

    pub fn reveal(&mut self, index: usize) {
        self.wal[index].visible = true;
        self.latest_completed = self.latest_completed.max(self.wal[index].xid);
    }

    pub fn reveal_before(&mut self, time: Timestamp) {
        for index in self.invisible() {
            if self.wal[index].at <= time {
                self.reveal(index);
            }
        }
    }

    pub fn invisible(&self) -> Vec<usize> {
        (0..self.wal.len()).filter(|index| !self.wal[*index].visible).collect()
    }

    pub fn snapshot(&self) -> Snapshot {
        let xmax = self.latest_completed + 1;
        let committing = self.wal.iter().filter(|txn| !txn.visible).map(|txn| txn.xid);
        let unfinished = self.running.iter().copied().chain(committing);
        let mut xip: Vec<u64> = unfinished.filter(|xid| *xid < xmax).collect();
        xip.sort_unstable();
        let xmin = xip.first().copied().unwrap_or(xmax);
        Snapshot {
            snapshot: PgSnapshot { xmin, xmax, xip },
            lsn: self.insert,
            contains: self.wal.iter().filter(|txn| txn.visible).map(|txn| txn.lsn).collect(),
        }
    }

    /// The rows of a table after some of the commits, and no others.
    pub fn rows_after(&self, table: Oid, counts: impl Fn(Lsn) -> bool) -> BTreeMap<usize, Row> {
        let mut rows = BTreeMap::new();
        for txn in self.wal.iter().filter(|txn| counts(txn.lsn)) {
            for (_, op, _) in txn.ops.iter().filter(|(oid, ..)| *oid == table) {
                match op {
                    Op::Insert(row) => {
                        rows.insert(row.id, row.clone());
                    }
                    Op::Update { old, new } => {
                        rows.remove(&old.id);
                        rows.insert(new.id, new.clone());
                    }
                    Op::Delete(row) => {
                        rows.remove(&row.id);
                    }
                    Op::Truncate => rows.clear(),
                }
            }
        }
        rows
    }

    pub fn publish(&mut self, table: Oid) {
        let wrote = |txn: &&Committed| !txn.visible && txn.ops.iter().any(|(oid, ..)| *oid == table);
        let fence = self.wal.iter().filter(wrote).map(|txn| txn.lsn).collect();
        self.published.entry(table).or_insert(fence);
    }

    /// Ascending.
    pub fn published_tables(&self) -> Vec<Oid> {
        self.published.keys().copied().collect()
    }

    pub fn unpublish(&mut self, table: Oid) {
        self.published.remove(&table);
    }

    /// Whether every transaction that wrote to the table before it was published has ended (N3).
    pub fn fence_passed(&self, table: Oid) -> bool {
        let waiting = |lsn: &Lsn| self.wal.iter().any(|txn| txn.lsn == *lsn && !txn.visible);
        self.published.get(&table).is_some_and(|fence| !fence.iter().any(waiting))
    }

    /// The next commit that a stream which has sent everything before `at` sends.
    pub fn decode(&self, at: Lsn) -> Option<&Committed> {
        self.wal.iter().find(|txn| txn.lsn >= at && txn.ops.iter().any(|(.., published)| *published))
    }

    pub fn confirm(&mut self, lsn: Lsn) {
        if let Some(confirmed) = &mut self.slot {
            *confirmed = (*confirmed).max(lsn);
        }
    }
}

/// The messages of pgoutput for a commit; `announced` are the tables that this stream has described.
pub fn messages(txn: &Committed, announced: &mut BTreeSet<Oid>) -> Vec<Vec<u8>> {
    let (lsn, end) = (txn.lsn.0.to_be_bytes(), (txn.lsn.0 + 2).to_be_bytes());
    let (xid, time) = ((txn.xid as u32).to_be_bytes(), 1_i64.to_be_bytes());
    let mut messages = vec![[b"B", &lsn[..], &time, &xid].concat()];
    for (table, op, _) in txn.ops.iter().filter(|(.., published)| *published) {
        if announced.insert(*table) {
            messages.push(describe(*table));
        }
        let oid = table.0.to_be_bytes();
        messages.push(match op {
            Op::Insert(row) => [b"I", &oid[..], b"N", &tuple(row)].concat(),
            Op::Update { old, new } => [b"U", &oid[..], b"O", &tuple(old), b"N", &tuple(new)].concat(),
            Op::Delete(row) => [b"D", &oid[..], b"O", &tuple(row)].concat(),
            Op::Truncate => [b"T", &1_u32.to_be_bytes()[..], &[0], &oid].concat(),
        });
    }
    messages.push([b"C", &[0][..], &lsn, &end, &time].concat());
    messages
}

fn describe(table: Oid) -> Vec<u8> {
    let relation = relation(table);
    let mut out = [b"R", &table.0.to_be_bytes()[..], b"public\0"].concat();
    out.extend_from_slice(relation.name.table.as_bytes());
    out.extend_from_slice(b"\0f");
    out.extend_from_slice(&(relation.columns.len() as u16).to_be_bytes());
    for column in relation.columns {
        out.push(1);
        out.extend_from_slice(column.name.as_bytes());
        out.push(0);
        out.extend_from_slice(&column.type_oid.0.to_be_bytes());
        out.extend_from_slice(&(-1_i32).to_be_bytes());
    }
    out
}

fn tuple(row: &Row) -> Vec<u8> {
    let mut out = 3_u16.to_be_bytes().to_vec();
    for column in ["id", "grp", "v"] {
        let value = row.value(column);
        out.push(b't');
        out.extend_from_slice(&(value.len() as u32).to_be_bytes());
        out.extend_from_slice(value.as_bytes());
    }
    out
}

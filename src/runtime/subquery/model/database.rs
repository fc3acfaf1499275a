//! The database of the model: tables as they were after each transaction.

use std::collections::BTreeMap;
use std::sync::Arc;

use rand::Rng;
use rand::rngs::StdRng;

use super::clauses::{COLUMNS, Clause, Row, TABLES, Tables};
use crate::domain::{
    Change, Column, LogMode, Lsn, Oid, PgSnapshot, Relation, RelationName, Replica, ShapeDefinition, Tuple,
    Value, WireColumn, WireRelation, Xid,
};
use crate::filter::subquery::{self, ClauseError};
use crate::replication::Transaction;

/// Ids that rows have.
const IDS: i64 = 6;
/// Bytes of log between two transactions.
const STRIDE: u64 = 100;

/// See the module.
#[derive(Debug)]
pub struct Database {
    /// Before the first transaction, and after each.
    states: Vec<Tables>,
    transactions: Vec<Arc<Transaction>>,
    /// The rows that each transaction wrote to.
    written: Vec<Vec<(usize, i64)>>,
    /// How many have been seen, but for one.
    seen: usize,
    unseen: Option<usize>,
    relations: Vec<Relation>,
    wire: Vec<Arc<WireRelation>>,
}

/// The snapshot of shapes that were made when nothing was there.
pub fn before_all() -> PgSnapshot {
    PgSnapshot { xmin: 1, xmax: 1, xip: Vec::new() }
}

/// What somebody who looks at the database sees.
pub struct Look {
    pub snapshot: PgSnapshot,
    pub lsn: Lsn,
    pub tables: Tables,
}

impl Database {
    pub fn new() -> Database {
        let relations: Vec<Relation> = (0..TABLES).map(relation).collect();
        let wire = relations.iter().map(wire).collect();
        let states = vec![Tables::default()];
        let (transactions, written) = (Vec::new(), Vec::new());
        Database { states, transactions, written, seen: 0, unseen: None, relations, wire }
    }

    pub fn wire(&self) -> &[Arc<WireRelation>] {
        &self.wire
    }

    pub fn len(&self) -> usize {
        self.transactions.len()
    }

    pub fn transaction(&self, number: usize) -> &Arc<Transaction> {
        &self.transactions[number]
    }

    /// The first transaction at or after a position.
    pub fn first_from(&self, from: Lsn) -> usize {
        self.transactions.partition_point(|txn| txn.lsn < from)
    }

    /// Behind everything that is committed.
    pub fn end(&self) -> Lsn {
        Lsn((self.len() as u64 + 1) * STRIDE + STRIDE / 2)
    }

    pub fn parse(&self, table: usize, clause: &Clause) -> Result<subquery::Clause, ClauseError> {
        let inner = self.relations.iter().map(|relation| (relation.name.clone(), relation.clone())).collect();
        subquery::Clause::parse(&clause.sql(), &BTreeMap::new(), &self.relations[table], &inner)
    }

    /// A shape of all columns; `None` where the clause is refused or has no inner query.
    pub fn definition(&self, table: usize, clause: &Clause) -> Option<ShapeDefinition> {
        let clause = self.parse(table, clause).ok()?;
        let dependencies = clause.dependencies().to_vec();
        (!dependencies.is_empty()).then(|| ShapeDefinition {
            relation: Arc::new(self.relations[table].clone()),
            where_sql: Some(clause.sql().to_owned()),
            columns: COLUMNS.map(str::to_owned).to_vec(),
            columns_named: false,
            replica: Replica::Default,
            log: LogMode::Full,
            dependencies,
            selects: Vec::new(),
        })
    }

    /// The rows of a shape in a state, as SQL has them.
    pub fn rows(&self, state: usize, table: usize, clause: &Clause) -> Vec<Row> {
        let tables = &self.states[state];
        let wanted = |row: &&Row| clause.holds(row, tables) == Some(true);
        let mut rows: Vec<Row> = tables[table].values().filter(wanted).copied().collect();
        rows.sort_unstable();
        rows
    }

    /// Commits a random transaction, and tells of it.
    pub fn commit(&mut self, random: &mut StdRng) -> String {
        let mut tables = self.states.last().expect("a first state").clone();
        let (mut changes, mut written) = (Vec::new(), Vec::new());
        let mut told = format!("{}:", (self.len() as u64 + 1) * STRIDE);
        for _ in 0..random.random_range(1..=3) {
            let (table, id) = (random.random_range(0..TABLES), random.random_range(0..IDS));
            let (rows, relation) = (&mut tables[table], Arc::clone(&self.wire[table]));
            let op = changes.len() as u64 * 2;
            let old = rows.remove(&id);
            if let Some(old) = old
                && random.random_bool(0.3)
            {
                told.push_str(&format!(" t{table} {id} deleted;"));
                changes.push(Change::Delete { op, relation, old: tuple(&old) });
            } else {
                let new = row(random, old.unwrap_or([Some(id), None, None]));
                rows.insert(id, new);
                told.push_str(&format!(" t{table} {new:?};"));
                let new = tuple(&new);
                changes.push(match old {
                    Some(old) => Change::Update { op, relation, old: Some(tuple(&old)), new },
                    None => Change::Insert { op, relation, new },
                });
            }
            written.push((table, id));
        }
        let number = self.len() as u64 + 1;
        let (xid, lsn) = (Xid(number as u32), Lsn(number * STRIDE));
        self.transactions.push(Arc::new(Transaction::of_changes(xid, lsn, changes)));
        self.states.push(tables);
        self.written.push(written);
        told
    }

    /// The latest state. Or, as it is for a moment in Postgres, without a transaction that is in the log
    /// already: the one before the last, where the last does not depend on it. Never one from before `from`,
    /// nor one that somebody has seen.
    pub fn look(&mut self, lagging_from: Option<usize>) -> Look {
        let (count, lsn) = (self.len(), Lsn(self.end().0 - 1));
        let next = count as u64 + 1;
        let hidden = count.saturating_sub(2);
        let independent = || {
            let [earlier, later] = &self.written[hidden..] else { return false };
            earlier.iter().all(|row| !later.contains(row))
        };
        let unseen = hidden >= self.seen || self.unseen == Some(hidden);
        let lags = lagging_from.is_some_and(|from| hidden >= from) && count >= 2 && unseen && independent();
        (self.seen, self.unseen) = (count, lags.then_some(hidden));
        let mut tables = self.states[count].clone();
        if !lags {
            let snapshot = PgSnapshot { xmin: next, xmax: next, xip: Vec::new() };
            return Look { snapshot, lsn, tables };
        }
        for (table, id) in &self.written[hidden] {
            match self.states[hidden][*table].get(id) {
                Some(row) => drop(tables[*table].insert(*id, *row)),
                None => drop(tables[*table].remove(id)),
            }
        }
        let xmin = hidden as u64 + 1;
        Look { snapshot: PgSnapshot { xmin, xmax: next, xip: vec![xmin] }, lsn, tables }
    }
}

/// Half of the cells stay.
fn row(random: &mut StdRng, before: Row) -> Row {
    let mut row = before;
    for cell in &mut row[1..] {
        match random.random_range(0..8) {
            0 => *cell = None,
            1..=4 => *cell = Some(random.random_range(0..6)),
            _ => {}
        }
    }
    row
}

pub fn tuple(row: &Row) -> Tuple {
    let texts = row.map(|cell| cell.map(|number| number.to_string()));
    let values: Vec<Value<'_>> = texts
        .iter()
        .map(|text| text.as_ref().map_or(Value::Null, |text| Value::Text(text.as_bytes())))
        .collect();
    Tuple::from_values(&values)
}

fn relation(table: usize) -> Relation {
    let column = |(index, name): (usize, &&str)| Column {
        name: (*name).to_owned(),
        type_oid: Oid(20),
        type_name: "int8".to_owned(),
        element_oid: Oid(0),
        type_modifier: -1,
        dimensions: 0,
        not_null: index == 0,
        pk_position: (index == 0).then_some(0),
        generated: false,
        type_kind: 'b',
        base: None,
    };
    Relation {
        oid: Oid(table as u32 + 1),
        name: RelationName { schema: "public".to_owned(), table: format!("t{table}") },
        columns: COLUMNS.iter().enumerate().map(column).collect(),
        partitioned: false,
        storage: None,
    }
}

pub fn wire(relation: &Relation) -> Arc<WireRelation> {
    let column = |column: &Column| WireColumn {
        name: column.name.clone(),
        type_oid: column.type_oid,
        type_modifier: -1,
        in_identity: true,
    };
    Arc::new(WireRelation {
        oid: relation.oid,
        name: relation.name.clone(),
        replica_identity: 'f',
        columns: relation.columns.iter().map(column).collect(),
    })
}

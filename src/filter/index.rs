//! All shapes by table, and which of them a row change concerns.
//!
//! A shape whose clause holds only where an expression has one of some values, lies in a range or
//! begins with a text, or where an array has an element, is found by the value of that expression: the
//! cost of a change does not grow with the number of such shapes. The same for an AND with one such
//! part, and for an OR of nothing else. All other clauses are asked, each once for all shapes that
//! have it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::delegated::Verdicts;
use super::predicate::Predicate;
use super::table::{Seen, Table};
use crate::domain::{Change, Oid, Sid, WireRelation};

/// What a row change means to a shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RowMove {
    /// The row enters the shape.
    Insert,
    /// The row was in the shape and stays.
    Update,
    /// The row leaves the shape.
    Delete,
}

/// A change that cannot be routed. Nothing was added to the results.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RouteError {
    /// The table lost REPLICA IDENTITY FULL: which shapes the row was in is unknown, so all shapes
    /// of the table have to be invalidated.
    #[error("a change of relation {oid} came without its old row")]
    MissingOldTuple { oid: Oid },
    /// A bug in the stream: a change before the announcement of its relation.
    #[error("relation {oid} was not announced")]
    NotAnnounced { oid: Oid },
}

/// The shapes of all tables.
#[derive(Debug, Default)]
pub struct ShapeIndex {
    tables: BTreeMap<Oid, Table>,
    /// Tables whose columns are known, and whether old rows come with all of them.
    announced: BTreeMap<Oid, bool>,
    /// Invariant: holds a shape exactly as long as its table does. Moved by insert and remove.
    homes: BTreeMap<Sid, Oid>,
    /// Evaluations that ended in a value that could not be decoded.
    undecodable: AtomicU64,
}

impl ShapeIndex {
    #[must_use]
    pub fn new() -> ShapeIndex {
        ShapeIndex::default()
    }

    /// Adds a shape over the relation `oid`. Panics where the shape is already in the index.
    pub fn insert(&mut self, sid: Sid, oid: Oid, predicate: Option<Predicate>) {
        let before = self.homes.insert(sid, oid);
        assert!(before.is_none(), "shape {sid} is already in the index");
        let table = self.tables.entry(oid).or_default();
        match predicate {
            Some(predicate) => table.insert_filtered(sid, &predicate),
            None => {
                table.everything.insert(sid);
            }
        }
    }

    /// Takes a shape out; whether it was in.
    pub fn remove(&mut self, sid: Sid) -> bool {
        let Some(oid) = self.homes.remove(&sid) else { return false };
        let table = self.tables.get_mut(&oid).expect("a shape's table is kept as long as the shape");
        table.remove(sid);
        if table.is_empty() && !self.announced.contains_key(&oid) {
            self.tables.remove(&oid);
        }
        true
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.homes.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.homes.is_empty()
    }

    /// Evaluations since the start that met a value that could not be decoded; the row was treated
    /// as not in the shape.
    #[must_use]
    pub fn undecodable(&self) -> u64 {
        self.undecodable.load(Ordering::Relaxed)
    }

    /// Learns where the columns of a relation are in its tuples from now on.
    pub fn announce(&mut self, wire: &Arc<WireRelation>) {
        let table = self.tables.entry(wire.oid).or_default();
        let full_identity =
            wire.replica_identity == 'f' || wire.columns.iter().all(|column| column.in_identity);
        table.announce(wire);
        self.announced.insert(wire.oid, full_identity);
    }

    /// Appends the shapes that a row change concerns, ascending. A truncate concerns none here.
    ///
    /// # Errors
    /// The old row is needed and missing, or the relation is unknown; then nothing is appended.
    pub fn route(&self, change: &Change, moves: &mut Vec<(Sid, RowMove)>) -> Result<(), RouteError> {
        self.route_with(change, None, moves)
    }

    /// The same with what Postgres has said about rows. Where a verdict is missing the result is not
    /// to be used: [`Verdicts::take_misses`].
    ///
    /// # Errors
    /// As above.
    pub fn route_with(
        &self,
        change: &Change,
        verdicts: Option<&Verdicts>,
        moves: &mut Vec<(Sid, RowMove)>,
    ) -> Result<(), RouteError> {
        let Some(relation) = change.relation() else { return Ok(()) };
        self.route_as(relation.oid, change, verdicts, moves)
    }

    /// As [`Self::route_with`], with the shapes of the relation `oid`, announced with columns in the same
    /// places: a change of a partition is one of the tables above it.
    ///
    /// # Errors
    /// See [`Self::route`].
    pub fn route_as(
        &self,
        oid: Oid,
        change: &Change,
        verdicts: Option<&Verdicts>,
        moves: &mut Vec<(Sid, RowMove)>,
    ) -> Result<(), RouteError> {
        let Some(table) = self.tables.get(&oid).filter(|table| !table.is_empty()) else { return Ok(()) };
        let Some(full_identity) = self.announced.get(&oid) else {
            return Err(RouteError::NotAnnounced { oid });
        };
        let missing = Err(RouteError::MissingOldTuple { oid });
        let start = moves.len();
        let seen = |tuple, before| Seen { tuple, before, verdicts };
        match change {
            Change::Insert { new, .. } => self.append(table, &seen(new, None), RowMove::Insert, moves),
            Change::Delete { .. } | Change::Update { .. } if !full_identity => return missing,
            Change::Delete { old, .. } => self.append(table, &seen(old, None), RowMove::Delete, moves),
            Change::Update { old: None, .. } => return missing,
            Change::Update { old: Some(old), new, .. } => {
                self.append(table, &seen(old, None), RowMove::Delete, moves);
                self.append(table, &seen(new, Some(old)), RowMove::Insert, moves);
                join_updates(start, moves);
            }
            Change::Truncate { .. } => {}
        }
        let all = match change {
            Change::Insert { .. } => RowMove::Insert,
            Change::Delete { .. } => RowMove::Delete,
            Change::Update { .. } | Change::Truncate { .. } => RowMove::Update,
        };
        moves.extend(table.everything.iter().map(|sid| (*sid, all)));
        moves[start..].sort_unstable();
        Ok(())
    }

    /// Appends the filtered shapes that hold a row, in no particular order, each once.
    fn append(&self, table: &Table, seen: &Seen<'_>, row_move: RowMove, moves: &mut Vec<(Sid, RowMove)>) {
        let mut found = Vec::new();
        let failures = table.find(seen, &mut found);
        // Two branches of an OR may have found the same shape.
        found.sort_unstable();
        found.dedup();
        moves.extend(found.into_iter().map(|sid| (sid, row_move)));
        if failures > 0 {
            self.undecodable.fetch_add(failures, Ordering::Relaxed);
        }
    }
}

/// A shape that held the row before (Delete) and holds it now (Insert) sees an update.
fn join_updates(start: usize, moves: &mut Vec<(Sid, RowMove)>) {
    moves[start..].sort_unstable();
    let mut kept = start;
    for index in start..moves.len() {
        let (sid, row_move) = moves[index];
        if kept > start && moves[kept - 1].0 == sid {
            moves[kept - 1].1 = RowMove::Update;
        } else {
            moves[kept] = (sid, row_move);
            kept += 1;
        }
    }
    moves.truncate(kept);
}

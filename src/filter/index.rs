//! All shapes by table, and which of them a row change concerns.
//!
//! A shape whose clause holds only where a column equals one of some constants (`a = 1`,
//! `a IN (1, 2)`, either of them in an AND, an OR of such) is found by the value of that column:
//! the cost of a change does not grow with the number of such shapes. All others are asked in turn.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::datum::Datum;
use super::decode::decode;
use super::expr::Comparison;
use super::predicate::Predicate;
use super::program::{Condition, Operand, Row};
use super::types::{Form, Type};
use crate::domain::{Change, Oid, Sid, Tuple, WireRelation};

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
    /// Invariant: holds a shape exactly as long as its table does. Moved by insert and remove.
    homes: BTreeMap<Sid, Oid>,
    /// Evaluations that ended in a value that could not be decoded.
    undecodable: AtomicU64,
}

#[derive(Debug, Default)]
struct Table {
    announced: Option<Binding>,
    /// Shapes without a where clause.
    everything: BTreeSet<Sid>,
    filtered: BTreeMap<Sid, Filtered>,
    fields: BTreeMap<Arc<FieldName>, Field>,
    /// Filtered shapes that no field finds.
    linear: BTreeSet<Sid>,
}

#[derive(Debug)]
struct Binding {
    wire: Arc<WireRelation>,
    /// Old rows come with all their columns.
    full_identity: bool,
}

#[derive(Debug)]
struct Filtered {
    /// What is left to check once a field, or nothing, has found the shape. None for most shapes,
    /// so it is kept out of line: there may be a million of them.
    residual: Option<Box<Residual>>,
    keys: Box<[(Arc<FieldName>, Key)]>,
}

#[derive(Debug)]
struct Residual {
    condition: Condition,
    columns: Vec<String>,
    /// Where `columns` are in a tuple. Moved by insert and announce.
    positions: Vec<Option<usize>>,
}

/// A column, compared in one form.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct FieldName {
    column: String,
    ty: Type,
    form: Form,
}

#[derive(Debug, Default)]
struct Field {
    position: Option<usize>,
    /// Values that are one number: integers, bools, dates, floats by their bits.
    numbers: BTreeMap<i64, BTreeSet<Sid>>,
    /// All others, one spelling per value.
    texts: BTreeMap<Box<[u8]>, BTreeSet<Sid>>,
}

/// A value as a key: equal exactly where Postgres' `=` says so.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    Number(i64),
    Text(Box<[u8]>),
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
            Some(predicate) => table.insert_filtered(sid, predicate),
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
        if table.is_empty() && table.announced.is_none() {
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
        for residual in table.filtered.values_mut().filter_map(|filtered| filtered.residual.as_mut()) {
            residual.positions = residual.columns.iter().map(|name| wire.position(name)).collect();
        }
        for (name, field) in &mut table.fields {
            field.position = wire.position(&name.column);
        }
        table.announced = Some(Binding { wire: Arc::clone(wire), full_identity });
    }

    /// Appends the shapes that a row change concerns, ascending. A truncate concerns none here.
    ///
    /// # Errors
    /// The old row is needed and missing, or the relation is unknown; then nothing is appended.
    pub fn route(&self, change: &Change, moves: &mut Vec<(Sid, RowMove)>) -> Result<(), RouteError> {
        let Some(relation) = change.relation() else { return Ok(()) };
        let oid = relation.oid;
        let Some(table) = self.tables.get(&oid).filter(|table| !table.is_empty()) else { return Ok(()) };
        let Some(binding) = &table.announced else { return Err(RouteError::NotAnnounced { oid }) };
        let missing = Err(RouteError::MissingOldTuple { oid });
        let start = moves.len();
        match change {
            Change::Insert { new, .. } => self.append(table, new, None, RowMove::Insert, moves),
            Change::Delete { .. } | Change::Update { .. } if !binding.full_identity => return missing,
            Change::Delete { old, .. } => self.append(table, old, None, RowMove::Delete, moves),
            Change::Update { old: None, .. } => return missing,
            Change::Update { old: Some(old), new, .. } => {
                self.append(table, old, None, RowMove::Delete, moves);
                self.append(table, new, Some(old), RowMove::Insert, moves);
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
    fn append(
        &self,
        table: &Table,
        tuple: &Tuple,
        before: Option<&Tuple>,
        row_move: RowMove,
        moves: &mut Vec<(Sid, RowMove)>,
    ) {
        let start = moves.len();
        let mut failures = 0;
        for (name, field) in &table.fields {
            let positions = [field.position];
            let row = Row { tuple, before, positions: &positions };
            let operand = row.cell(0).map(|cell| cell.map(|text| decode(text, &name.ty, name.form)));
            match operand {
                Ok(None) => {}
                Ok(Some(Some(value))) => {
                    let sids = field.find(&value).into_iter().flatten();
                    moves.extend(sids.map(|sid| (*sid, row_move)));
                }
                Ok(Some(None)) | Err(_) => failures += 1,
            }
        }
        moves.extend(table.linear.iter().map(|sid| (*sid, row_move)));
        // Two branches of an OR may have found the same shape.
        moves[start..].sort_unstable();
        let mut kept = start;
        for index in start..moves.len() {
            let (sid, _) = moves[index];
            let repeated = kept > start && moves[kept - 1].0 == sid;
            let holds = !repeated
                && table.filtered[&sid].holds(tuple, before).unwrap_or_else(|| {
                    failures += 1;
                    false
                });
            if holds {
                moves[kept] = moves[index];
                kept += 1;
            }
        }
        moves.truncate(kept);
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

impl Table {
    fn is_empty(&self) -> bool {
        self.everything.is_empty() && self.filtered.is_empty()
    }

    fn insert_filtered(&mut self, sid: Sid, predicate: Predicate) {
        let wire = self.announced.as_ref().map(|binding| &binding.wire);
        let columns = predicate.columns();
        let positions = wire.map_or_else(|| vec![None; columns.len()], |wire| predicate.positions(wire));
        let columns = columns.to_vec();
        let (found, condition) = match access(&predicate.condition, &columns) {
            Some(access) => (access.keys, access.residual),
            None => (Vec::new(), Some(predicate.condition)),
        };
        if found.is_empty() {
            self.linear.insert(sid);
        }
        let mut keys = Vec::with_capacity(found.len());
        for (name, key) in found {
            let name = match self.fields.get_key_value(&name) {
                Some((name, _)) => Arc::clone(name),
                None => Arc::new(name),
            };
            let field = self.fields.entry(Arc::clone(&name)).or_insert_with(|| Field {
                position: wire.and_then(|wire| wire.position(&name.column)),
                ..Field::default()
            });
            field.insert(&key, sid);
            keys.push((name, key));
        }
        let residual = condition.map(|condition| Box::new(Residual { condition, columns, positions }));
        self.filtered.insert(sid, Filtered { residual, keys: keys.into_boxed_slice() });
    }

    fn remove(&mut self, sid: Sid) {
        self.everything.remove(&sid);
        self.linear.remove(&sid);
        let Some(filtered) = self.filtered.remove(&sid) else { return };
        for (name, key) in filtered.keys {
            if let Some(field) = self.fields.get_mut(&name) {
                field.remove(&key, sid);
                if field.numbers.is_empty() && field.texts.is_empty() {
                    self.fields.remove(&name);
                }
            }
        }
    }
}

impl Filtered {
    /// None where a value could not be decoded.
    fn holds(&self, tuple: &Tuple, before: Option<&Tuple>) -> Option<bool> {
        let Some(residual) = &self.residual else { return Some(true) };
        let row = Row { tuple, before, positions: &residual.positions };
        residual.condition.evaluate(&row).ok().map(|value| value == Some(true))
    }
}

impl Field {
    fn insert(&mut self, key: &Key, sid: Sid) {
        let sids = match key {
            Key::Number(number) => self.numbers.entry(*number).or_default(),
            Key::Text(text) => self.texts.entry(text.clone()).or_default(),
        };
        sids.insert(sid);
    }

    fn remove(&mut self, key: &Key, sid: Sid) {
        let left = match key {
            Key::Number(number) => self.numbers.get_mut(number),
            Key::Text(text) => self.texts.get_mut(text),
        };
        let Some(left) = left else { return };
        left.remove(&sid);
        if left.is_empty() {
            match key {
                Key::Number(number) => self.numbers.remove(number),
                Key::Text(text) => self.texts.remove(text),
            };
        }
    }

    fn find(&self, value: &Datum<'_>) -> Option<&BTreeSet<Sid>> {
        match value {
            Datum::Text(text) => self.texts.get(text.as_ref()),
            Datum::Uuid(uuid) => self.texts.get(uuid.as_slice()),
            Datum::Numeric(decimal) => {
                let mut spelled = Vec::new();
                decimal.write_canonical(&mut spelled);
                self.texts.get(spelled.as_slice())
            }
            Datum::Interval(_) | Datum::Array(_) | Datum::Json(_) => None,
            Datum::Bool(_) | Datum::Integer(_) | Datum::Float(_) | Datum::Moment(_) => {
                self.numbers.get(&number_key(value)?)
            }
        }
    }
}

fn number_key(value: &Datum<'_>) -> Option<i64> {
    match value {
        Datum::Bool(value) => Some(i64::from(*value)),
        Datum::Integer(value) | Datum::Moment(value) => Some(*value),
        Datum::Float(value) => {
            // One pattern for both zeros, and one for every NaN.
            let canonical = if *value == 0.0 {
                0.0
            } else if value.is_nan() {
                f64::NAN
            } else {
                *value
            };
            Some(canonical.to_bits().cast_signed())
        }
        _ => None,
    }
}

fn key(value: &Datum<'_>) -> Key {
    match value {
        Datum::Text(text) => Key::Text(text.as_ref().into()),
        Datum::Uuid(uuid) => Key::Text(uuid.as_slice().into()),
        Datum::Numeric(decimal) => {
            let mut spelled = Vec::new();
            decimal.write_canonical(&mut spelled);
            Key::Text(spelled.into())
        }
        number => Key::Number(number_key(number).expect("what is no text is a number")),
    }
}

/// How the index finds a shape: a row has to have one of the keys, and to satisfy the residual.
struct Access {
    keys: Vec<(FieldName, Key)>,
    residual: Option<Condition>,
}

/// The access of a condition. None where it has none, or where no key could make it true: such a
/// shape is in the linear list.
fn access(condition: &Condition, columns: &[String]) -> Option<Access> {
    match condition {
        Condition::Compare { op: Comparison::Equal, left, right } => {
            let (column, constant) = match (left, right) {
                (column @ Operand::Column { .. }, Operand::Const(Some(constant)))
                | (Operand::Const(Some(constant)), column @ Operand::Column { .. }) => (column, constant),
                _ => return None,
            };
            let keys = vec![(field_name(column, columns)?, key(constant))];
            Some(Access { keys, residual: None })
        }
        Condition::InConstants { arg, constants, .. } if !constants.is_empty() => {
            let name = field_name(arg, columns)?;
            let keys = constants.iter().map(|constant| (name.clone(), key(constant))).collect();
            Some(Access { keys, residual: None })
        }
        Condition::And(args) => {
            let (chosen, found) =
                args.iter().enumerate().find_map(|(index, arg)| Some((index, access(arg, columns)?)))?;
            let rest =
                args.iter().enumerate().filter(|(index, _)| *index != chosen).map(|(_, arg)| arg.clone());
            let residual: Vec<Condition> = found.residual.into_iter().chain(rest).collect();
            let residual = (!residual.is_empty()).then_some(Condition::And(residual));
            Some(Access { keys: found.keys, residual })
        }
        Condition::Or(args) => {
            let branches: Vec<Access> = args.iter().map(|arg| access(arg, columns)).collect::<Option<_>>()?;
            let whole = branches.iter().all(|branch| branch.residual.is_none());
            let keys: BTreeSet<(FieldName, Key)> =
                branches.into_iter().flat_map(|branch| branch.keys).collect();
            let one_field = keys.iter().all(|(name, _)| Some(name) == keys.first().map(|(first, _)| first));
            // A key of one branch says nothing about the residual of another, nor whether the
            // column of another can be decoded.
            let residual = (!(whole && one_field)).then(|| condition.clone());
            Some(Access { keys: keys.into_iter().collect(), residual })
        }
        _ => None,
    }
}

fn field_name(operand: &Operand, columns: &[String]) -> Option<FieldName> {
    let Operand::Column { slot, ty, form: Some(form) } = operand else { return None };
    if matches!(form, Form::Interval | Form::Array | Form::Json) {
        return None;
    }
    Some(FieldName { column: columns.get(*slot)?.clone(), ty: ty.clone(), form: *form })
}

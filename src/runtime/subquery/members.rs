//! What an inner query gives: how often each value is selected, and, where it has inner queries itself,
//! which of its rows are in.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::domain::{Lsn, PgSnapshot, ShapeDefinition, Tuple, Value, WireRelation, Xid};
use crate::filter::subquery::{Clause, Digest, Selection, Values};
use crate::shape_log::Op;

/// Changes that may wait until the rows of an inner query are known.
pub const STASH_MAX: usize = 1_000_000;

/// The texts of the key columns of a row.
pub type RowKey = Box<[Option<Box<[u8]>>]>;

/// A row of an inner query.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InnerRow {
    pub values: Values,
    /// By position: the hash that is looked up there. Empty where the query has no inner queries.
    pub slots: Vec<Option<Digest>>,
    pub active: Vec<bool>,
}

/// A change of the rows of an inner query.
#[derive(Clone, Debug)]
pub enum RowChange {
    /// Of a query without inner queries: so many more or fewer rows with these values.
    Count(Values, i64),
    Put(RowKey, InnerRow),
    Remove(RowKey),
    /// These hashes become true (or false) at these positions.
    Turn(BTreeSet<(usize, Digest)>, bool),
}

/// A value has come to be selected, or no longer is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flip {
    pub values: Values,
    pub selected: bool,
}

/// The members of one inner query.
#[derive(Debug)]
pub struct Members {
    pub definition: Arc<ShapeDefinition>,
    selection: Selection,
    /// For a query with inner queries.
    clause: Option<Arc<Clause>>,
    counts: BTreeMap<Values, u64>,
    /// The selected values with a NULL in them.
    partial: BTreeSet<Values>,
    rows: BTreeMap<RowKey, InnerRow>,
    /// The rows that have a hash at a position: those that a move of it concerns.
    slots: BTreeMap<(usize, Digest), BTreeSet<RowKey>>,
    /// Whether its initial rows are in; what comes before waits.
    loaded: bool,
    stash: Vec<(Lsn, Xid, RowChange)>,
    pub visible: Option<(PgSnapshot, Lsn)>,
    /// The log that it was folded from reaches up to here: what comes again is in it.
    pub folded: Lsn,
}

/// Where the columns of an inner query are in the tuples of a relation.
#[derive(Debug)]
pub struct Places {
    selects: Vec<usize>,
    key: Vec<(usize, bool)>,
}

impl Members {
    #[must_use]
    pub fn new(definition: Arc<ShapeDefinition>, clause: Option<Arc<Clause>>) -> Members {
        Members {
            selection: Selection::of(&definition),
            definition,
            clause,
            counts: BTreeMap::new(),
            partial: BTreeSet::new(),
            rows: BTreeMap::new(),
            slots: BTreeMap::new(),
            loaded: false,
            stash: Vec::new(),
            visible: None,
            folded: Lsn(0),
        }
    }

    #[must_use]
    pub fn is_loaded(&self) -> bool {
        self.loaded
    }

    #[must_use]
    pub fn selection(&self) -> &Selection {
        &self.selection
    }

    /// Whether the initial rows contain a transaction, or the folded log does.
    #[must_use]
    pub fn has_already(&self, lsn: Lsn, xid: Xid) -> bool {
        lsn <= self.folded
            || self.visible.as_ref().is_some_and(|(snapshot, bound)| lsn < *bound && snapshot.sees(xid))
    }

    #[must_use]
    pub fn is_selected(&self, values: &Values) -> bool {
        self.counts.contains_key(values)
    }

    /// Number of distinct values.
    #[must_use]
    pub fn distinct(&self) -> usize {
        self.counts.len()
    }

    /// All values that are selected.
    pub fn values(&self) -> impl Iterator<Item = &Values> {
        self.counts.keys()
    }

    /// Those with a NULL in them.
    pub fn partial(&self) -> impl Iterator<Item = &Values> {
        self.partial.iter()
    }

    /// The row of a key, while keys are known.
    #[must_use]
    pub fn row(&self, key: &RowKey) -> Option<&InnerRow> {
        self.rows.get(key)
    }

    /// Begins with no rows.
    pub fn load_nothing(&mut self) {
        self.loaded = true;
    }

    /// Without inner queries the counts are enough: the stream says what a row was.
    pub fn forget_keys(&mut self) {
        if self.clause.is_none() {
            self.rows = BTreeMap::new();
            self.slots = BTreeMap::new();
        }
    }

    /// Takes over the initial rows, and then whatever waited for them.
    pub fn adopt(&mut self, loaded: Members) {
        (self.counts, self.partial) = (loaded.counts, loaded.partial);
        (self.rows, self.slots) = (loaded.rows, loaded.slots);
        self.loaded = true;
        let mut ignored = Vec::new();
        for (lsn, xid, change) in std::mem::take(&mut self.stash) {
            if !self.has_already(lsn, xid) {
                self.perform(change, &mut ignored);
                ignored.clear();
            }
        }
    }

    /// Takes in a change of a transaction; `false` where too much waits for the initial rows.
    pub fn change(&mut self, lsn: Lsn, xid: Xid, change: RowChange, flips: &mut Vec<Flip>) -> bool {
        if !self.loaded {
            self.stash.push((lsn, xid, change));
            return self.stash.len() <= STASH_MAX;
        }
        self.perform(change, flips);
        true
    }

    /// Takes in what a move does; it is in no snapshot.
    pub fn perform_or_wait(&mut self, change: RowChange, flips: &mut Vec<Flip>) {
        let _fits = self.change(Lsn(u64::MAX), Xid(0), change, flips);
    }

    /// Takes in what a log says, or what has been decided. Appends the values whose membership it turned.
    pub fn perform(&mut self, change: RowChange, flips: &mut Vec<Flip>) {
        match change {
            RowChange::Count(values, by) => self.count(values, by, flips),
            RowChange::Put(key, row) => {
                let values = row.values.clone();
                let before = self.take_row(&key);
                for (position, digest) in row.slots.iter().enumerate() {
                    if let Some(digest) = digest {
                        self.slots.entry((position, *digest)).or_default().insert(key.clone());
                    }
                }
                self.rows.insert(key, row);
                if let Some(before) = before {
                    self.count(before.values, -1, flips);
                }
                self.count(values, 1, flips);
            }
            RowChange::Remove(key) => {
                if let Some(before) = self.take_row(&key) {
                    self.count(before.values, -1, flips);
                }
            }
            RowChange::Turn(patterns, to) => self.turn(&patterns, to, flips),
        }
    }

    fn turn(&mut self, patterns: &BTreeSet<(usize, Digest)>, to: bool, flips: &mut Vec<Flip>) {
        let Some(clause) = self.clause.clone() else { return };
        let mut gone = BTreeSet::new();
        for pattern in patterns {
            for key in self.slots.get(pattern).into_iter().flatten() {
                let Some(row) = self.rows.get_mut(key) else { continue };
                row.active[pattern.0] = to;
                if !clause.holds(&row.active) {
                    gone.insert(key.clone());
                }
            }
        }
        for key in gone {
            self.perform(RowChange::Remove(key), flips);
        }
    }

    fn take_row(&mut self, key: &RowKey) -> Option<InnerRow> {
        let row = self.rows.remove(key)?;
        for (position, digest) in row.slots.iter().enumerate() {
            let Some(place) = digest.map(|digest| (position, digest)) else { continue };
            if let Some(keys) = self.slots.get_mut(&place) {
                keys.remove(key);
                if keys.is_empty() {
                    self.slots.remove(&place);
                }
            }
        }
        Some(row)
    }

    fn count(&mut self, values: Values, by: i64, flips: &mut Vec<Flip>) {
        let before = self.counts.get(&values).copied().unwrap_or(0);
        let after = before.saturating_add_signed(by);
        if after == 0 {
            self.counts.remove(&values);
        } else {
            self.counts.insert(values.clone(), after);
        }
        if (before == 0) == (after == 0) {
            return;
        }
        let selected = after > 0;
        if values.iter().any(Option::is_none) {
            if selected {
                self.partial.insert(values.clone());
            } else {
                self.partial.remove(&values);
            }
        }
        // Away and back within one transaction is no move.
        match flips.iter().position(|flip| flip.values == values) {
            Some(index) => drop(flips.swap_remove(index)),
            None => flips.push(Flip { values, selected }),
        }
    }

    /// `None` where the relation lacks a column: the shape is about to end.
    #[must_use]
    pub fn places(&self, relation: &WireRelation) -> Option<Places> {
        let place = |name: &str| relation.position(name);
        let selects = self.selection.names().map(place).collect::<Option<Vec<_>>>()?;
        let key = self.definition.relation.key_columns();
        let key = key.iter().map(|column| Some((place(&column.name)?, column.type_name == "bool")));
        Some(Places { selects, key: key.collect::<Option<Vec<_>>>()? })
    }

    /// The values that a row of the stream selects.
    #[must_use]
    pub fn values_of(&self, places: &Places, tuple: &Tuple, before: Option<&Tuple>) -> Option<Values> {
        self.selection.of_tuple(&places.selects, tuple, before)
    }

    /// The change of counts that a row change means.
    pub fn counted(
        &self,
        places: &Places,
        op: Op,
        (old, new): (Option<&Tuple>, Option<&Tuple>),
    ) -> Vec<RowChange> {
        let mut changes = Vec::new();
        let mut add = |tuple: Option<&Tuple>, before: Option<&Tuple>, by: i64| {
            if let Some(values) = tuple.and_then(|tuple| self.values_of(places, tuple, before)) {
                changes.push(RowChange::Count(values, by));
            }
        };
        if matches!(op, Op::Insert | Op::Update) {
            add(new, old, 1);
        }
        if matches!(op, Op::Delete | Op::Update) {
            add(old, None, -1);
        }
        changes
    }

    /// The key of a row of the stream.
    #[must_use]
    pub fn key_of(places: &Places, tuple: &Tuple, before: Option<&Tuple>) -> RowKey {
        let cell = |(place, boolean): &(usize, bool)| {
            let value = match (tuple.get(*place), before) {
                (Value::Unchanged, Some(before)) => before.get(*place),
                (value, _) => value,
            };
            match value {
                Value::Text(text) => Some(key_text(text, *boolean)),
                Value::Null | Value::Unchanged => None,
            }
        };
        places.key.iter().map(cell).collect()
    }
}

/// One text for the two that Postgres has for booleans.
#[must_use]
pub fn key_text(text: &[u8], boolean: bool) -> Box<[u8]> {
    match (boolean, text) {
        (true, b"t") => b"true"[..].into(),
        (true, b"f") => b"false"[..].into(),
        _ => text.into(),
    }
}

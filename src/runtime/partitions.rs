//! Changes of partitions, as changes of the tables above them.
//!
//! The stream names the partition that holds a row. A shape of a partitioned table, on whatever level,
//! wants the changes of everything below it. Columns are found by name, since partitions may have them
//! in another order than the table above.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use crate::domain::{Change, Oid, Sid, WireRelation};
use crate::filter::{Predicate, RouteError, RowMove, ShapeIndex};

/// The partitioned tables that have shapes, and what is below them.
#[derive(Debug, Default)]
pub struct Partitions {
    /// By table: the oids whose changes are its own, ascending; itself among them.
    members: BTreeMap<Oid, Arc<[Oid]>>,
    /// The other way round, without the table itself.
    above: BTreeMap<Oid, BTreeSet<Oid>>,
    /// The shapes with a where clause.
    filtered: BTreeMap<Sid, (Oid, Predicate)>,
    /// One index for each table and each order of columns below it.
    views: BTreeMap<(Oid, u64), ShapeIndex>,
    /// The order of columns of what was announced.
    layouts: BTreeMap<Oid, u64>,
}

impl Partitions {
    /// The oids whose changes are changes of that table.
    #[must_use]
    pub fn members(&self, table: Oid) -> Arc<[Oid]> {
        self.members.get(&table).cloned().unwrap_or_else(|| Arc::new([table]))
    }

    /// Whether it is a partitioned table that has, or had, shapes.
    #[must_use]
    pub fn is_followed(&self, table: Oid) -> bool {
        self.members.contains_key(&table)
    }

    /// The tables above that relation which have, or had, shapes.
    pub fn above(&self, oid: Oid) -> impl Iterator<Item = Oid> + '_ {
        self.above.get(&oid).into_iter().flatten().copied()
    }

    /// Adds what is above these relations, for which something happened to a part of them.
    #[must_use]
    pub fn with_above(&self, oids: &[Oid]) -> Vec<Oid> {
        if self.members.is_empty() {
            return oids.to_vec();
        }
        let all: BTreeSet<Oid> =
            oids.iter().flat_map(|oid| self.above(*oid)).chain(oids.iter().copied()).collect();
        all.into_iter().collect()
    }

    /// Adds a shape of a partitioned table that has a where clause.
    pub fn insert(&mut self, sid: Sid, table: Oid, predicate: Predicate) {
        for ((_, _), view) in self.views.range_mut((table, 0)..=(table, u64::MAX)) {
            view.insert(sid, table, Some(predicate.clone()));
        }
        self.filtered.insert(sid, (table, predicate));
    }

    pub fn remove(&mut self, sid: Sid) {
        let Some((table, _)) = self.filtered.remove(&sid) else { return };
        for (_, view) in self.views.range_mut((table, 0)..=(table, u64::MAX)) {
            view.remove(sid);
        }
    }

    /// Takes note of what is below a table. `announced` are the relations that the stream has announced.
    pub fn set_members(&mut self, table: Oid, members: &[Oid], announced: &BTreeMap<Oid, Arc<WireRelation>>) {
        for tables in self.above.values_mut() {
            tables.remove(&table);
        }
        for member in members.iter().filter(|member| **member != table) {
            self.above.entry(*member).or_default().insert(table);
        }
        self.above.retain(|_, tables| !tables.is_empty());
        let with_itself: BTreeSet<Oid> = members.iter().copied().chain([table]).collect();
        self.members.insert(table, with_itself.into_iter().collect());
        for member in members {
            if let Some(relation) = announced.get(member) {
                self.announce(relation);
            }
        }
    }

    /// Takes note of the columns of a relation.
    pub fn announce(&mut self, relation: &WireRelation) {
        let tables: Vec<Oid> = self.above(relation.oid).collect();
        if tables.is_empty() {
            return;
        }
        let layout = layout(relation);
        self.layouts.insert(relation.oid, layout);
        for table in tables {
            if self.views.contains_key(&(table, layout)) {
                continue;
            }
            let mut view = ShapeIndex::new();
            // Whether a row came with its old values is asked of the partition that it is in.
            view.announce(&Arc::new(WireRelation { oid: table, replica_identity: 'f', ..relation.clone() }));
            for (sid, (_, predicate)) in self.filtered.iter().filter(|(_, (of, _))| *of == table) {
                view.insert(*sid, table, Some(predicate.clone()));
            }
            self.views.insert((table, layout), view);
        }
    }

    /// Appends the shapes with a where clause, of the tables above, that a change concerns.
    ///
    /// # Errors
    /// See [`ShapeIndex::route`].
    pub fn route(&self, change: &Change, moves: &mut Vec<(Sid, RowMove)>) -> Result<(), RouteError> {
        let Some(oid) = change.relation().map(|relation| relation.oid) else { return Ok(()) };
        for table in self.above(oid) {
            let view = self.layouts.get(&oid).and_then(|layout| self.views.get(&(table, *layout)));
            view.ok_or(RouteError::NotAnnounced { oid })?.route_as(table, change, moves)?;
        }
        Ok(())
    }
}

/// Tells whether two relations have the same columns in the same places. Only within the process.
fn layout(relation: &WireRelation) -> u64 {
    let mut hasher = DefaultHasher::new();
    for column in &relation.columns {
        (&column.name, column.type_oid, column.type_modifier).hash(&mut hasher);
    }
    hasher.finish()
}

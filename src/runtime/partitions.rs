//! Changes of partitions, as changes of the tables above them.
//!
//! The stream names the partition that holds a row. A shape of a partitioned table, on whatever level,
//! wants the changes of everything below it. Columns are found by name, since partitions may have them
//! in another order than the table above.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use crate::domain::{Change, Oid, Sid, WireRelation};
use crate::filter::{Predicate, RouteError, RowMove, ShapeIndex, Verdicts};

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
    /// See [`ShapeIndex::route_with`].
    pub fn route(
        &self,
        change: &Change,
        verdicts: &Verdicts,
        moves: &mut Vec<(Sid, RowMove)>,
    ) -> Result<(), RouteError> {
        let Some(oid) = change.relation().map(|relation| relation.oid) else { return Ok(()) };
        for table in self.above(oid) {
            let view = self.layouts.get(&oid).and_then(|layout| self.views.get(&(table, *layout)));
            view.ok_or(RouteError::NotAnnounced { oid })?.route_as(table, change, Some(verdicts), moves)?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{Column, Relation, RelationName, Tuple, Value, WireColumn};

    const TABLE: Oid = Oid(1);
    const LEAF: Oid = Oid(10);

    fn wire(oid: Oid, columns: &[&str]) -> Arc<WireRelation> {
        let column = |name: &&str| WireColumn {
            name: (*name).to_owned(),
            type_oid: Oid(23),
            type_modifier: -1,
            in_identity: true,
        };
        Arc::new(WireRelation {
            oid,
            name: RelationName { schema: "public".to_owned(), table: format!("t{}", oid.0) },
            replica_identity: 'f',
            columns: columns.iter().map(column).collect(),
        })
    }

    fn predicate(sql: &str) -> Predicate {
        let column = |name: &str, pk_position| Column {
            name: name.to_owned(),
            type_oid: Oid(23),
            type_name: "int4".to_owned(),
            element_oid: Oid(0),
            type_modifier: -1,
            dimensions: 0,
            not_null: false,
            pk_position,
            generated: false,
            type_kind: 'b',
            base: None,
        };
        let relation = Relation {
            oid: TABLE,
            name: RelationName { schema: "public".to_owned(), table: "t1".to_owned() },
            columns: vec![column("id", Some(0)), column("n", None)],
            partitioned: true,
            storage: None,
        };
        Predicate::parse(sql, &BTreeMap::new(), &relation).expect("a valid clause")
    }

    fn insert(relation: &Arc<WireRelation>, values: [&str; 2]) -> Change {
        let new = Tuple::from_values(&values.map(|value| Value::Text(value.as_bytes())));
        Change::Insert { op: 0, relation: Arc::clone(relation), new }
    }

    fn routed(partitions: &Partitions, change: &Change) -> Vec<u32> {
        let mut moves = Vec::new();
        partitions.route(change, &Verdicts::new(), &mut moves).expect("known relations");
        moves.into_iter().map(|(sid, _)| sid.0).collect()
    }

    #[test]
    fn columns_are_found_by_name_whatever_their_order() {
        let (straight, swapped) = (wire(LEAF, &["id", "n"]), wire(Oid(11), &["n", "id"]));
        let mut partitions = Partitions::default();
        partitions.insert(Sid(1), TABLE, predicate("n = 7"));
        // Announced before and after it is known to be a partition.
        let announced = BTreeMap::from([(LEAF, Arc::clone(&straight))]);
        partitions.set_members(TABLE, &[TABLE, LEAF, Oid(11)], &announced);
        partitions.announce(&swapped);
        partitions.insert(Sid(2), TABLE, predicate("n > 0"));
        assert_eq!(routed(&partitions, &insert(&straight, ["1", "7"])), [1, 2]);
        assert_eq!(routed(&partitions, &insert(&straight, ["7", "1"])), [2]);
        assert_eq!(routed(&partitions, &insert(&swapped, ["7", "1"])), [1, 2]);
        assert_eq!(routed(&partitions, &insert(&swapped, ["0", "7"])), Vec::<u32>::new());
        partitions.remove(Sid(2));
        assert_eq!(routed(&partitions, &insert(&swapped, ["7", "1"])), [1]);
        assert_eq!(routed(&partitions, &insert(&wire(Oid(12), &["id", "n"]), ["1", "7"])), Vec::<u32>::new());
    }

    #[test]
    fn what_is_below_may_change() {
        let mut partitions = Partitions::default();
        let none = BTreeMap::new();
        partitions.set_members(TABLE, &[TABLE, LEAF], &none);
        partitions.set_members(Oid(2), &[Oid(2), LEAF, Oid(11)], &none);
        assert_eq!(partitions.with_above(&[LEAF]), [TABLE, Oid(2), LEAF]);
        assert_eq!(partitions.with_above(&[Oid(11), Oid(99)]), [Oid(2), Oid(11), Oid(99)]);
        partitions.set_members(TABLE, &[TABLE], &none);
        assert_eq!(partitions.with_above(&[LEAF]), [Oid(2), LEAF]);
        assert_eq!(*partitions.members(Oid(2)), [Oid(2), LEAF, Oid(11)]);
        assert_eq!(*partitions.members(Oid(50)), [Oid(50)]);
    }
}

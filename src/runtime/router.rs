//! Which shapes want what of a transaction: the compiled filters of all routed shapes.
//!
//! Lives beside the engine on the driver thread, so that a shape is routed to exactly from the commit
//! after its creation on.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::domain::{Change, Oid, ShapeDefinition, Sid, SidSet, WireRelation};
use crate::filter::{Predicate, RowMove, ShapeIndex};
use crate::replication::{ReplicationError, Transaction};
use crate::runtime::subquery::{Late, Subqueries};
use crate::shape_log::{Annotation, Op};

/// The filters of the routed shapes.
#[derive(Debug, Default)]
pub struct Router {
    /// Shapes with a where clause.
    predicates: ShapeIndex,
    filtered: BTreeMap<Oid, BTreeSet<Sid>>,
    /// Shapes of whole tables: no change of them needs to be looked at.
    whole: BTreeMap<Oid, BTreeSet<Sid>>,
    /// Shapes with inner queries, by their own table.
    outers: BTreeMap<Oid, BTreeSet<Sid>>,
    shapes: BTreeMap<Sid, Routed>,
    relations: BTreeMap<Oid, Arc<WireRelation>>,
    /// Decides for the shapes with inner queries.
    pub subqueries: Subqueries,
}

#[derive(Debug)]
struct Routed {
    definition: Arc<ShapeDefinition>,
    /// Columns whose loss or change of type ends the shape.
    columns: BTreeSet<String>,
}

/// A transaction and what each shape wants of it.
#[derive(Debug)]
pub struct RoutedTransaction {
    pub txn: Arc<Transaction>,
    wants: BTreeMap<Sid, Wants>,
}

/// What one shape wants of a transaction.
#[derive(Debug)]
pub enum Wants {
    /// Every row change of the table.
    Table(Oid),
    /// These changes, by their position in the transaction, ascending.
    Changes(Vec<(u32, Op)>),
    /// What is decided for a shape with inner queries, maybe later.
    Late(Arc<Late>),
}

/// What routing found.
#[derive(Debug)]
pub struct Routing {
    pub routed: RoutedTransaction,
    pub set: SidSet,
    /// Tables of which a row was changed without its old values.
    pub old_row_missing: Vec<Oid>,
}

impl RoutedTransaction {
    /// What a shape wants; nothing where it was not matched.
    #[must_use]
    pub fn wants(&self, sid: Sid) -> Option<&Wants> {
        self.wants.get(&sid)
    }

    /// Whether it is known what a shape wants.
    #[must_use]
    pub fn is_decided(&self, sid: Sid) -> bool {
        !matches!(self.wants.get(&sid), Some(Wants::Late(late)) if late.decided().is_none())
    }

    /// What shapes with inner queries want.
    pub fn late(&self) -> impl Iterator<Item = (Sid, &Arc<Late>)> {
        self.wants.iter().filter_map(|(sid, wants)| match wants {
            Wants::Late(late) => Some((*sid, late)),
            Wants::Table(_) | Wants::Changes(_) => None,
        })
    }

    /// Notes what a shape with inner queries wants.
    pub fn want_late(&mut self, sid: Sid, late: Arc<Late>) {
        self.wants.insert(sid, Wants::Late(late));
    }

    /// Hands the changes that a shape wants to `visit`, in order, until it fails; none where that is not
    /// decided yet.
    ///
    /// # Errors
    /// Of reading a spilled transaction, or the first of `visit`.
    pub fn for_each<E: From<ReplicationError>>(
        &self,
        sid: Sid,
        mut visit: impl FnMut(&Change, Op, Option<&Annotation>) -> Result<(), E>,
    ) -> Result<(), E> {
        let Some(wants) = self.wants.get(&sid) else { return Ok(()) };
        // A message about values has no changes, and a spilled transaction costs a file to look through.
        if matches!(wants, Wants::Late(late) if late.decided().is_none_or(|it| it.changes.is_empty())) {
            return Ok(());
        }
        let mut failed = None;
        let mut position = 0_u32;
        let mut cursor = 0;
        self.txn.for_each_chunk(&mut |chunk| {
            for change in chunk {
                let index = position;
                position = position.saturating_add(1);
                let wanted = match wants {
                    Wants::Table(oid) => whole_table_op(change, *oid).map(|op| (op, None)),
                    Wants::Changes(wanted) => match wanted.get(cursor) {
                        Some((at, op)) if *at == index => {
                            cursor += 1;
                            Some((*op, None))
                        }
                        _ => None,
                    },
                    Wants::Late(late) => match late.decided().and_then(|it| it.changes.get(cursor)) {
                        Some((at, op, note)) if *at == index => {
                            cursor += 1;
                            Some((*op, Some(note)))
                        }
                        _ => None,
                    },
                };
                if let Some((op, note)) = wanted
                    && failed.is_none()
                    && let Err(error) = visit(change, op, note)
                {
                    failed = Some(error);
                }
            }
        })?;
        failed.map_or(Ok(()), Err)
    }
}

fn whole_table_op(change: &Change, oid: Oid) -> Option<Op> {
    if change.relation()?.oid != oid {
        return None;
    }
    match change {
        Change::Insert { .. } => Some(Op::Insert),
        Change::Update { .. } => Some(Op::Update),
        Change::Delete { .. } => Some(Op::Delete),
        Change::Truncate { .. } => None,
    }
}

impl Router {
    /// An empty router. `buffer_max` transactions may wait while rows move into a shape.
    #[must_use]
    pub fn new(buffer_max: usize) -> Router {
        Router { subqueries: Subqueries::new(buffer_max), ..Router::default() }
    }

    /// Routes to a shape from the next transaction on.
    pub fn insert(&mut self, sid: Sid, definition: Arc<ShapeDefinition>, predicate: Option<Predicate>) {
        let oid = definition.relation.oid;
        let mut columns: BTreeSet<String> = definition.columns.iter().cloned().collect();
        columns.extend(definition.key_columns().into_iter().map(str::to_owned));
        match predicate {
            Some(predicate) => {
                columns.extend(predicate.columns().iter().cloned());
                if let Some(relation) = self.relations.get(&oid) {
                    self.predicates.announce(relation);
                }
                self.predicates.insert(sid, oid, Some(predicate));
                self.filtered.entry(oid).or_default().insert(sid);
            }
            None => {
                self.whole.entry(oid).or_default().insert(sid);
            }
        }
        self.shapes.insert(sid, Routed { definition, columns });
    }

    /// Routes to a shape with inner queries, once [`Subqueries::begin`] says so.
    pub fn insert_outer(&mut self, sid: Sid, definition: Arc<ShapeDefinition>, clause_columns: &[String]) {
        let oid = definition.relation.oid;
        let mut columns: BTreeSet<String> = definition.columns.iter().cloned().collect();
        columns.extend(definition.key_columns().into_iter().map(str::to_owned));
        columns.extend(clause_columns.iter().cloned());
        self.outers.entry(oid).or_default().insert(sid);
        self.shapes.insert(sid, Routed { definition, columns });
    }

    pub fn remove(&mut self, sid: Sid) {
        self.subqueries.remove(sid);
        let Some(shape) = self.shapes.remove(&sid) else { return };
        let oid = shape.definition.relation.oid;
        self.predicates.remove(sid);
        for tables in [&mut self.whole, &mut self.filtered, &mut self.outers] {
            if let Some(sids) = tables.get_mut(&oid) {
                sids.remove(&sid);
                if sids.is_empty() {
                    tables.remove(&oid);
                }
            }
        }
    }

    /// Takes note of how rows of a table look from here on. The shapes that cannot live with it.
    pub fn announce(&mut self, relation: &Arc<WireRelation>) -> SidSet {
        self.predicates.announce(relation);
        self.relations.insert(relation.oid, Arc::clone(relation));
        let on_table = [&self.whole, &self.filtered, &self.outers]
            .into_iter()
            .filter_map(|tables| tables.get(&relation.oid));
        on_table
            .flatten()
            .copied()
            .filter(|sid| self.shapes.get(sid).is_some_and(|shape| !still_fits(shape, relation)))
            .collect()
    }

    /// Finds the shapes that want something of a transaction.
    ///
    /// # Errors
    /// Of reading a spilled transaction.
    pub fn route(&mut self, txn: Arc<Transaction>) -> Result<Routing, ReplicationError> {
        let mut wants: BTreeMap<Sid, Wants> = BTreeMap::new();
        let mut old_row_missing = BTreeSet::new();
        let mut look = false;
        for oid in &txn.relations {
            if let Some(sids) = self.whole.get(oid) {
                wants.extend(sids.iter().map(|sid| (*sid, Wants::Table(*oid))));
            }
            let full = self.relations.get(oid).is_some_and(|relation| relation.replica_identity == 'f');
            let has_shapes =
                [&self.whole, &self.filtered, &self.outers].iter().any(|on| on.contains_key(oid));
            look |= self.filtered.contains_key(oid) || (has_shapes && !full);
        }
        if look {
            self.match_changes(&txn, &mut wants, &mut old_row_missing)?;
        }
        let mut routed = RoutedTransaction { txn, wants };
        self.subqueries.route(&mut routed)?;
        let set = routed.wants.keys().copied().collect();
        Ok(Routing { routed, set, old_row_missing: old_row_missing.into_iter().collect() })
    }

    fn match_changes(
        &self,
        txn: &Transaction,
        wants: &mut BTreeMap<Sid, Wants>,
        old_row_missing: &mut BTreeSet<Oid>,
    ) -> Result<(), ReplicationError> {
        let mut position = 0_u32;
        let mut moves: Vec<(Sid, RowMove)> = Vec::new();
        txn.for_each_chunk(&mut |chunk| {
            for change in chunk {
                let index = position;
                position = position.saturating_add(1);
                moves.clear();
                if lacks_old_row(change) || self.predicates.route(change, &mut moves).is_err() {
                    old_row_missing.extend(change.relation().map(|relation| relation.oid));
                    continue;
                }
                for (sid, row_move) in &moves {
                    let op = match row_move {
                        RowMove::Insert => Op::Insert,
                        RowMove::Update => Op::Update,
                        RowMove::Delete => Op::Delete,
                    };
                    match wants.entry(*sid).or_insert_with(|| Wants::Changes(Vec::new())) {
                        Wants::Changes(list) => list.push((index, op)),
                        Wants::Table(_) | Wants::Late(_) => {}
                    }
                }
            }
        })
    }
}

/// Without REPLICA IDENTITY FULL an update may come without the old row, and both it and a delete with
/// nothing but the key.
fn lacks_old_row(change: &Change) -> bool {
    match change {
        Change::Update { relation, old, .. } => old.is_none() || relation.replica_identity != 'f',
        Change::Delete { relation, .. } => relation.replica_identity != 'f',
        Change::Insert { .. } | Change::Truncate { .. } => false,
    }
}

/// Whether a shape can live with the relation as it is now: contract 4.6.
fn still_fits(shape: &Routed, relation: &WireRelation) -> bool {
    let definition = &shape.definition;
    if definition.relation.name != relation.name {
        return false;
    }
    let same = |name: &str| {
        let known = definition.relation.column(name);
        let now = relation.columns.iter().find(|column| column.name == name);
        match (known, now) {
            (Some(known), Some(now)) => known.type_oid == now.type_oid,
            // Not in the stream before Postgres 18.
            (Some(known), None) => known.generated,
            (None, _) => false,
        }
    };
    if definition.columns_named {
        return shape.columns.iter().all(|name| same(name));
    }
    let streamed = |columns: usize| columns == relation.columns.len();
    let known = &definition.relation.columns;
    let plain = known.iter().filter(|column| !column.generated).count();
    (streamed(known.len()) || streamed(plain)) && known.iter().all(|column| same(&column.name))
}

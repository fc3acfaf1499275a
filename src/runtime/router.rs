//! Which shapes want what of a transaction: the compiled filters of all routed shapes.
//!
//! Lives beside the engine on the driver thread, so that a shape is routed to exactly from the commit
//! after its creation on.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::sync::Arc;

use crate::domain::{Change, Oid, Relation, ShapeDefinition, Sid, SidSet, WireColumn, WireRelation};
use crate::events::InvalidationCause;
use crate::filter::{Delegated, Predicate, RowMove, ShapeIndex, Verdicts};
use crate::replication::{ReplicationError, Transaction};
use crate::runtime::partitions::Partitions;
use crate::runtime::reconciler::CatalogLook;
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
    /// The columns that the newest shape of a table needs: mostly those that the others need, too.
    columns: BTreeMap<Oid, Arc<BTreeSet<String>>>,
    relations: BTreeMap<Oid, Arc<WireRelation>>,
    partitions: Partitions,
    /// Tables as the catalog had them when it was last looked at.
    looked_at: BTreeMap<Oid, Relation>,
    /// Expressions that Postgres evaluates, and the shapes that have them.
    delegated: BTreeMap<Arc<Delegated>, BTreeSet<Sid>>,
    /// Decides for the shapes with inner queries.
    pub subqueries: Subqueries,
}

#[derive(Debug)]
struct Routed {
    definition: Arc<ShapeDefinition>,
    /// Columns whose loss or change of type ends the shape.
    columns: Arc<BTreeSet<String>>,
    delegated: Box<[Arc<Delegated>]>,
}

/// A transaction that is being matched: as far as no verdict of Postgres is missing.
#[derive(Debug)]
pub struct Matching {
    txn: Arc<Transaction>,
    wants: BTreeMap<Sid, Wants>,
    old_row_missing: BTreeSet<Oid>,
    /// The changes before this one have been matched.
    position: u32,
    look: bool,
}

impl Matching {
    /// Number of changes that have been matched.
    #[must_use]
    pub fn position(&self) -> u32 {
        self.position
    }
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
    /// Every row change of these relations, ascending: a table, or one and its partitions.
    Tables(Arc<[Oid]>),
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
            Wants::Tables(_) | Wants::Changes(_) => None,
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
        // What one of many shapes wants of a large transaction is found without looking at all of it.
        if let (Wants::Changes(wanted), Some(changes)) = (wants, self.txn.in_memory()) {
            return wanted.iter().try_for_each(|(at, op)| match changes.get(*at as usize) {
                Some(change) => visit(change, *op, None),
                None => Ok(()),
            });
        }
        let mut failed = None;
        let mut position = 0_u32;
        let mut cursor = 0;
        self.txn.for_each_chunk(&mut |chunk| {
            for change in chunk {
                let index = position;
                position = position.saturating_add(1);
                let wanted = match wants {
                    Wants::Tables(oids) => whole_table_op(change, oids).map(|op| (op, None)),
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

fn whole_table_op(change: &Change, oids: &[Oid]) -> Option<Op> {
    if oids.binary_search(&change.relation()?.oid).is_err() {
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
        let delegated =
            predicate.as_ref().map_or_else(Box::default, |predicate| predicate.delegated().into());
        for part in &delegated {
            self.delegated.entry(Arc::clone(part)).or_default().insert(sid);
        }
        match predicate {
            Some(predicate) => {
                columns.extend(predicate.columns().iter().cloned());
                if let Some(relation) = self.relations.get(&oid) {
                    self.predicates.announce(relation);
                }
                if definition.relation.partitioned {
                    self.partitions.insert(sid, oid, predicate.clone());
                }
                self.predicates.insert(sid, oid, Some(predicate));
                self.filtered.entry(oid).or_default().insert(sid);
            }
            None => {
                self.whole.entry(oid).or_default().insert(sid);
            }
        }
        let columns = self.shared_columns(oid, columns);
        self.shapes.insert(sid, Routed { definition, columns, delegated });
    }

    fn shared_columns(&mut self, oid: Oid, columns: BTreeSet<String>) -> Arc<BTreeSet<String>> {
        let known = self.columns.entry(oid).or_default();
        if **known != columns {
            *known = Arc::new(columns);
        }
        Arc::clone(known)
    }

    /// Routes to a shape with inner queries, once [`Subqueries::begin`] says so.
    pub fn insert_outer(&mut self, sid: Sid, definition: Arc<ShapeDefinition>, clause_columns: &[String]) {
        let oid = definition.relation.oid;
        let mut columns: BTreeSet<String> = definition.columns.iter().cloned().collect();
        columns.extend(definition.key_columns().into_iter().map(str::to_owned));
        columns.extend(clause_columns.iter().cloned());
        self.outers.entry(oid).or_default().insert(sid);
        let columns = self.shared_columns(oid, columns);
        self.shapes.insert(sid, Routed { definition, columns, delegated: Box::default() });
    }

    pub fn remove(&mut self, sid: Sid) {
        self.subqueries.remove(sid);
        let Some(shape) = self.shapes.remove(&sid) else { return };
        let oid = shape.definition.relation.oid;
        self.predicates.remove(sid);
        self.partitions.remove(sid);
        for part in &shape.delegated {
            if let Some(sids) = self.delegated.get_mut(part) {
                sids.remove(&sid);
                if sids.is_empty() {
                    self.delegated.remove(part);
                }
            }
        }
        let mut used = false;
        for tables in [&mut self.whole, &mut self.filtered, &mut self.outers] {
            if let Some(sids) = tables.get_mut(&oid) {
                sids.remove(&sid);
                if sids.is_empty() {
                    tables.remove(&oid);
                }
            }
            used |= tables.contains_key(&oid);
        }
        if !used {
            self.columns.remove(&oid);
        }
    }

    /// Takes note of how rows of a table look from here on. The shapes that cannot live with it.
    pub fn announce(&mut self, relation: &Arc<WireRelation>) -> SidSet {
        self.predicates.announce(relation);
        self.partitions.announce(relation);
        self.relations.insert(relation.oid, Arc::clone(relation));
        let tables = self.partitions.with_above(&[relation.oid]);
        let concerned = tables
            .iter()
            .flat_map(|oid| {
                [&self.whole, &self.filtered, &self.outers].into_iter().filter_map(move |of| of.get(oid))
            })
            .flatten();
        concerned
            .copied()
            .filter(|sid| self.shapes.get(sid).is_some_and(|shape| !still_fits(shape, relation)))
            .collect()
    }

    /// Takes note of what is below a partitioned table, for the transactions from here on.
    pub fn set_members(&mut self, table: Oid, members: &[Oid]) {
        self.partitions.set_members(table, members, &self.relations);
    }

    /// Why a shape cannot go on with its table as the catalog has it; `None` where it can, or is gone.
    #[must_use]
    pub fn judge(&self, sid: Sid, look: &CatalogLook) -> Option<InvalidationCause> {
        let shape = self.shapes.get(&sid)?;
        let known = &shape.definition.relation;
        let Some(now) = look.relations.get(&known.oid) else { return Some(InvalidationCause::SchemaChanged) };
        let same_key =
            shape.definition.key_columns().into_iter().eq(now.key_columns().into_iter().map(|c| &c.name));
        let needed = |name: &str| !shape.definition.columns_named || shape.columns.contains(name);
        // Where it is not certain from the catalog, both has to have happened since the last look.
        let lately = |name: &str| {
            let before = self.looked_at.get(&known.oid);
            before.is_some_and(|before| before.rewritten(now).any(|(column, _)| column == name))
        };
        let rewritten = known.rewritten(now).any(|(name, at_once)| needed(name) && (at_once || lately(name)));
        if now.name != known.name || !same_key || rewritten || !still_fits(shape, &streamed(now)) {
            Some(InvalidationCause::SchemaChanged)
        } else if !look.streamed.contains(&known.oid) {
            Some(InvalidationCause::Unpublished)
        } else {
            None
        }
    }

    /// Remembers how the tables were when they were looked at.
    pub fn looked(&mut self, look: &CatalogLook) {
        self.looked_at.extend(look.relations.iter().map(|(oid, relation)| (*oid, relation.clone())));
        let Router { looked_at, filtered, whole, outers, .. } = self;
        looked_at
            .retain(|oid, _| [&*filtered, &*whole, &*outers].iter().any(|shapes| shapes.contains_key(oid)));
    }

    #[must_use]
    pub fn partitions(&self) -> &Partitions {
        &self.partitions
    }

    /// The shapes that have an expression that Postgres evaluates.
    #[must_use]
    pub fn delegating(&self, part: &Arc<Delegated>) -> Vec<Sid> {
        self.delegated.get(part).map_or_else(Vec::new, |sids| sids.iter().copied().collect())
    }

    /// Finds the shapes that want something of a transaction, where none of them needs Postgres.
    ///
    /// # Errors
    /// Of reading a spilled transaction.
    pub fn route(&mut self, txn: Arc<Transaction>) -> Result<Routing, ReplicationError> {
        let mut matching = self.begin(txn);
        self.proceed(&mut matching, &Verdicts::new())?;
        self.finish(matching)
    }

    /// What was found, once [`Router::proceed`] has come to the end. What the shapes with inner queries
    /// want is decided here, so it must be called once for each transaction, in their order.
    ///
    /// # Errors
    /// Of reading a spilled transaction.
    pub fn finish(&mut self, matching: Matching) -> Result<Routing, ReplicationError> {
        let Matching { txn, wants, old_row_missing, .. } = matching;
        let mut routed = RoutedTransaction { txn, wants };
        self.subqueries.route(&mut routed)?;
        let set = routed.wants.keys().copied().collect();
        Ok(Routing { routed, set, old_row_missing: old_row_missing.into_iter().collect() })
    }

    /// Begins to match a transaction. No shape may be inserted before it is matched.
    #[must_use]
    pub fn begin(&self, txn: Arc<Transaction>) -> Matching {
        let mut wants: BTreeMap<Sid, Wants> = BTreeMap::new();
        let mut look = false;
        for oid in &txn.relations {
            let full = self.relations.get(oid).is_some_and(|relation| relation.replica_identity == 'f');
            for table in self.partitions.above(*oid).chain([*oid]) {
                if let Some(sids) = self.whole.get(&table) {
                    let members = self.partitions.members(table);
                    wants.extend(sids.iter().map(|sid| (*sid, Wants::Tables(Arc::clone(&members)))));
                }
                let has_shapes =
                    [&self.whole, &self.filtered, &self.outers].iter().any(|on| on.contains_key(&table));
                look |= self.filtered.contains_key(&table) || (has_shapes && !full);
            }
        }
        Matching { txn, wants, old_row_missing: BTreeSet::new(), position: 0, look }
    }

    /// Matches on, up to the first change that lacks a verdict; what the changes after it lack is noted,
    /// too, as much as is asked at once. Whether the transaction is matched.
    ///
    /// # Errors
    /// Of reading a spilled transaction.
    pub fn proceed(&self, matching: &mut Matching, verdicts: &Verdicts) -> Result<bool, ReplicationError> {
        if !matching.look {
            return Ok(true);
        }
        let Matching { txn, wants, old_row_missing, position, .. } = matching;
        let mut moves: Vec<(Sid, RowMove)> = Vec::new();
        let mut lacking = false;
        let start = u64::from(*position);
        txn.for_each_from(start, &mut |first, chunk| {
            for (change, number) in chunk.iter().zip(first..) {
                moves.clear();
                let routed = !lacks_old_row(change)
                    && self.predicates.route_with(change, Some(verdicts), &mut moves).is_ok()
                    && self.partitions.route(change, verdicts, &mut moves).is_ok();
                lacking |= verdicts.take_misses() > 0;
                if lacking {
                    if verdicts.is_full() {
                        return ControlFlow::Break(());
                    }
                    continue;
                }
                let index = u32::try_from(number).unwrap_or(u32::MAX);
                *position = index.saturating_add(1);
                if !routed {
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
                        Wants::Tables(_) | Wants::Late(_) => {}
                    }
                }
            }
            ControlFlow::Continue(())
        })?;
        Ok(!lacking)
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
    // What is below a partitioned table has names of its own.
    let itself = definition.relation.oid == relation.oid;
    if itself && definition.relation.name != relation.name {
        return false;
    }
    let same = |name: &str| {
        let known = definition.relation.column(name);
        let now = relation.columns.iter().find(|column| column.name == name);
        match (known, now) {
            (Some(known), Some(now)) => {
                known.type_oid == now.type_oid
                    && keeps_text(known.type_oid, known.type_modifier, now.type_modifier)
            }
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

/// A table as the stream would announce it.
fn streamed(relation: &Relation) -> WireRelation {
    let columns = relation.columns.iter().filter(|column| !column.generated).map(|column| WireColumn {
        name: column.name.clone(),
        type_oid: column.type_oid,
        type_modifier: column.type_modifier,
        in_identity: true,
    });
    WireRelation {
        oid: relation.oid,
        name: relation.name.clone(),
        replica_identity: 'f',
        columns: columns.collect(),
    }
}

/// Whether the values of a column keep their text when its type gets another modifier. Where they do
/// not, Postgres writes the table anew, and no row of that is in the stream.
fn keeps_text(type_oid: Oid, from: i32, to: i32) -> bool {
    const BPCHAR: u32 = 1042;
    const NUMERIC: u32 = 1700;
    // varchar, varbit, date and times: more room changes nothing that is there.
    const WIDENED: [u32; 6] = [1043, 1562, 1083, 1266, 1114, 1184];
    let scale = |modifier: i32| (modifier - 4) & 0x7FF;
    if from == to {
        return true;
    }
    match type_oid.0 {
        BPCHAR => false,
        _ if to == -1 => true,
        _ if from == -1 => false,
        NUMERIC => to > from && scale(from) == scale(to),
        other => WIDENED.contains(&other) && to > from,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_modifier_that_leaves_the_texts_alone() {
        let numeric = |precision: i32, scale: i32| (precision << 16 | (scale & 0x7FF)) + 4;
        for (type_oid, from, to, keeps) in [
            (1043, 14, 14, true),
            (1043, 14, 24, true),
            (1043, 24, 14, false),
            (1043, 14, -1, true),
            (1043, -1, 14, false),
            (1042, 7, 9, false),
            (1700, numeric(10, 2), numeric(12, 2), true),
            (1700, numeric(10, 2), numeric(10, 4), false),
            (1700, numeric(12, 2), numeric(10, 2), false),
            (1700, numeric(10, 2), -1, true),
            (1114, 3, 6, true),
            (1114, 6, 3, false),
            (1186, 5, 9, false),
        ] {
            assert_eq!(keeps_text(Oid(type_oid), from, to), keeps, "{type_oid} {from} {to}");
        }
    }
}

//! One shape with inner queries: what it was made with, and what it makes of transactions.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use crate::domain::{
    Change, Lsn, Oid, PgSnapshot, Seq, ShapeDefinition, Sid, Timestamp, Tuple, WireRelation, Xid,
};
use crate::filter::subquery::{Clause, Digest, MemberPosition, Membership, Positions, RowPositions, Values};
use crate::replication::{ReplicationError, Transaction};
use crate::runtime::router::RoutedTransaction;
use crate::runtime::subquery::differing::{Differing, Entry};
use crate::runtime::subquery::late::Decided;
use crate::runtime::subquery::members::{InnerRow, Members, Places, RowChange};
use crate::runtime::subquery::moving::{Moved, Query};
use crate::runtime::subquery::tagger::RowTagger;
use crate::shape_log::{Annotation, Op, RowTags};

/// The members of all inner queries.
pub type AllMembers = BTreeMap<Sid, Members>;

/// A shape with inner queries.
#[derive(Debug)]
pub struct Outer {
    pub sid: Sid,
    pub definition: Arc<ShapeDefinition>,
    pub tagger: Arc<RowTagger>,
    pub dependencies: Vec<Sid>,
    /// Its own table and those of its inner queries, nested ones included.
    pub tables: BTreeSet<Oid>,
    pub visible: Option<(PgSnapshot, Lsn)>,
    /// By dependency.
    pub differing: Vec<Differing>,
    pub phase: Phase,
    /// When Postgres was asked, and how many transactions were committed since that had to wait.
    pub asked_at: Timestamp,
    pub waited: usize,
    /// Transactions that wait for a decision, oldest first.
    pub held: VecDeque<Held>,
    /// Transactions that are decided and in the log, and owed until what they moved is there, too.
    pub owed: VecDeque<Held>,
    pub owes_from: Option<Seq>,
    /// The newest transaction with which something moved, until the log is durable up to there. Meanwhile
    /// every transaction that changes rows of the shape's table is owed: after a crash that which moved may
    /// move later, or not at all, and then what was not wanted may be.
    pub unsafe_until: Option<Seq>,
    /// It was found in the directory: all that its snapshot contains, it was made with.
    pub restored: bool,
    /// The dependencies of which it is known, without their logs, what they gave in the snapshot.
    pub based: BTreeSet<usize>,
    /// By dependency: the values of which its log tells, until it has come to where it had been before.
    pub told: Vec<BTreeSet<Digest>>,
    /// Until the log is durable up to here its end is no state of Postgres.
    pub release: Option<Seq>,
    pub held_back: bool,
    /// Where an inner query is asked for first.
    first: Vec<Option<MemberPosition>>,
}

/// What a shape is waiting for.
#[derive(Debug)]
pub enum Phase {
    /// For the rows of its inner queries.
    Waiting,
    /// For its snapshot.
    Opening,
    /// For the stream to have come this far, and for its inner queries to have settled.
    Catching { until: Lsn },
    /// For rows that move in.
    Querying { query: Query },
    /// For the stream to have come as far as those rows.
    Opened { query: Query, moved: Box<Moved> },
    /// Nothing: its rows follow from what its inner queries give.
    Settled,
}

/// A transaction that waits.
#[derive(Clone, Debug)]
pub struct Held {
    pub seq: Seq,
    pub lsn: Lsn,
    pub xid: Xid,
    pub body: Arc<RoutedTransaction>,
}

/// What a shape was made with, beside what its inner queries give now.
pub struct MadeWith<'a> {
    outer: &'a Outer,
    members: &'a AllMembers,
}

impl Outer {
    #[must_use]
    pub fn new(
        sid: Sid,
        definition: Arc<ShapeDefinition>,
        tagger: Arc<RowTagger>,
        dependencies: Vec<Sid>,
    ) -> Outer {
        let tables = definition.tables().into_iter().collect();
        let first = (0..dependencies.len())
            .map(|dependency| tagger.clause().member_positions().find(|at| at.dependency == dependency))
            .collect();
        Outer {
            sid,
            definition,
            differing: dependencies.iter().map(|_| Differing::default()).collect(),
            tagger,
            dependencies,
            tables,
            visible: None,
            phase: Phase::Waiting,
            asked_at: Timestamp(i64::MAX),
            waited: 0,
            held: VecDeque::new(),
            owed: VecDeque::new(),
            owes_from: None,
            unsafe_until: None,
            restored: false,
            based: BTreeSet::new(),
            told: Vec::new(),
            release: None,
            held_back: false,
            first,
        }
    }

    #[must_use]
    pub fn clause(&self) -> &Clause {
        self.tagger.clause()
    }

    #[must_use]
    pub fn is_settled(&self) -> bool {
        matches!(self.phase, Phase::Settled)
    }

    /// Whether what its inner queries give has to be followed.
    #[must_use]
    pub fn is_made(&self) -> bool {
        !matches!(self.phase, Phase::Waiting | Phase::Opening)
    }

    #[must_use]
    pub fn contains(&self, lsn: Lsn, xid: Xid) -> bool {
        self.visible.as_ref().is_some_and(|(snapshot, bound)| lsn < *bound && snapshot.sees(xid))
    }

    /// What these transactions turn in an inner query, the shape was made with from the beginning: it was found in
    /// the directory, its snapshot contains them all, and does not say what the query gave. Of a shape that was
    /// made by this process that is known.
    #[must_use]
    pub fn began_with(&self, dependency: usize, lsn: Lsn, xids: &BTreeSet<u32>) -> bool {
        let unknown = self.restored && !self.based.contains(&dependency);
        unknown && !xids.is_empty() && xids.iter().all(|xid| self.contains(lsn, Xid(*xid)))
    }

    /// Whether its log tells of a value: then that is what it is made with, whatever it began with.
    #[must_use]
    pub fn tells_of(&self, dependency: usize, digest: &Digest) -> bool {
        self.told.get(dependency).is_some_and(|told| told.contains(digest))
    }

    /// Whether an inner query is asked for what is *not* in it.
    #[must_use]
    pub fn is_negated(&self, dependency: usize) -> bool {
        self.first[dependency].as_ref().is_some_and(|at| at.negated)
    }

    /// Columns that are looked up in an inner query.
    #[must_use]
    pub fn width(&self, dependency: usize) -> usize {
        self.first[dependency].as_ref().map_or(0, |at| at.columns.len())
    }

    /// The first position that asks an inner query.
    #[must_use]
    pub fn position(&self, dependency: usize) -> usize {
        self.first[dependency].as_ref().map_or(0, |at| at.position)
    }

    /// The hash by which a value of an inner query is known here.
    #[must_use]
    pub fn digest(&self, dependency: usize, values: &Values) -> Digest {
        self.clause().digest(self.position(dependency), values, self.tagger.scope())
    }

    #[must_use]
    pub fn made_with<'a>(&'a self, members: &'a AllMembers) -> MadeWith<'a> {
        MadeWith { outer: self, members }
    }

    /// The inner query of a dependency. A shape ends with its inner queries, so there is one.
    #[must_use]
    pub fn members<'a>(&self, dependency: usize, members: &'a AllMembers) -> Option<&'a Members> {
        members.get(&self.dependencies[dependency])
    }

    /// Under NOT with a NULL among what is given, and among what the shape was made with: no row is in by this
    /// query, whatever else is given. Nothing is followed until the NULL is gone, and nothing owed for it.
    #[must_use]
    pub fn is_indifferent(&self, dependency: usize, members: &AllMembers) -> bool {
        let null: Values = Box::new([None]);
        self.is_negated(dependency)
            && self.width(dependency) == 1
            && !self.differing[dependency].contains(&self.digest(dependency, &null))
            && self.members(dependency, members).is_some_and(|inner| inner.is_selected(&null))
    }

    /// Where its rows do not follow from what its inner queries give, and that matters.
    pub fn to_follow<'a>(&'a self, members: &'a AllMembers) -> impl Iterator<Item = &'a Entry> {
        let matters = |dependency: &usize| {
            !self.differing[*dependency].is_empty() && !self.is_indifferent(*dependency, members)
        };
        (0..self.differing.len())
            .filter(move |dependency| matters(dependency))
            .flat_map(|dependency| self.differing[dependency].iter().map(|(_, entry)| entry))
    }

    /// Tags of a row, of which these positions are true.
    #[must_use]
    pub fn row_tags(&self, seen: &RowPositions, active: Vec<bool>) -> RowTags {
        RowTags { tags: self.clause().tags(seen, self.tagger.scope()), active }
    }

    /// The hash at each position that looks something up.
    #[must_use]
    pub fn slots(&self, seen: &RowPositions) -> Vec<Option<Digest>> {
        let slot = |(position, values): (usize, &Option<Values>)| {
            let values = values.as_ref()?;
            Some(self.clause().digest(position, values, self.tagger.scope()))
        };
        seen.values.iter().enumerate().map(slot).collect()
    }

    /// What it makes of a transaction, being made with what it is. Also the changes of its rows, where it
    /// is an inner query itself.
    ///
    /// # Errors
    /// Of reading a spilled transaction.
    pub fn decide(
        &self,
        txn: &Transaction,
        members: &AllMembers,
    ) -> Result<(Decided, Vec<RowChange>), ReplicationError> {
        let mut decided = Decided::default();
        let mut rows = Vec::new();
        let oid = self.definition.relation.oid;
        let mut index = 0_u32;
        let mut bound: Option<(Arc<WireRelation>, Positions, Option<Places>)> = None;
        let own = members.get(&self.sid);
        txn.for_each_chunk(&mut |chunk| {
            for change in chunk {
                let at = index;
                index = index.saturating_add(1);
                let Some(relation) = change.relation().filter(|relation| relation.oid == oid) else {
                    continue;
                };
                if bound.as_ref().is_none_or(|(known, ..)| !Arc::ptr_eq(known, relation)) {
                    let places = own.and_then(|own| own.places(relation));
                    bound = Some((Arc::clone(relation), self.clause().bind(relation), places));
                }
                let Some((_, positions, places)) = &bound else { continue };
                let seen = Seen::of(self, change, positions, members);
                if let Some((op, note)) = seen.note(self) {
                    decided.changes.push((at, op, note));
                }
                if let (Some(own), Some(places)) = (own, places) {
                    seen.row_changes(self, own, places, &mut rows);
                }
            }
        })?;
        Ok((decided, rows))
    }
}

/// A row change as the clause sees it.
struct Seen<'c> {
    old: Option<(&'c Tuple, RowPositions, Vec<bool>)>,
    new: Option<(&'c Tuple, RowPositions, Vec<bool>)>,
    before: Option<&'c Tuple>,
    was_in: bool,
    is_in: bool,
}

impl<'c> Seen<'c> {
    fn of(outer: &Outer, change: &'c Change, positions: &Positions, members: &AllMembers) -> Seen<'c> {
        let (old, new) = match change {
            Change::Insert { new, .. } => (None, Some(new)),
            Change::Update { old, new, .. } => (old.as_ref(), Some(new)),
            Change::Delete { old, .. } => (Some(old), None),
            Change::Truncate { .. } => (None, None),
        };
        let made_with = outer.made_with(members);
        let look = |tuple: &'c Tuple, before: Option<&Tuple>| {
            let seen = outer.clause().look(positions, tuple, before);
            let active = outer.clause().active(&seen, &made_with);
            (tuple, seen, active)
        };
        let before = new.and(old);
        let old = old.map(|tuple| look(tuple, None));
        let new = new.map(|tuple| look(tuple, before));
        let holds = |side: &Option<(&Tuple, RowPositions, Vec<bool>)>| {
            side.as_ref().is_some_and(|(_, _, active)| outer.clause().holds(active))
        };
        let (was_in, is_in) = (holds(&old), holds(&new));
        Seen { old, new, before, was_in, is_in }
    }

    fn note(&self, outer: &Outer) -> Option<(Op, Annotation)> {
        let op = match (self.was_in, self.is_in) {
            (false, false) => return None,
            (false, true) => Op::Insert,
            (true, true) => Op::Update,
            (true, false) => Op::Delete,
        };
        let tags = |side: &Option<(&Tuple, RowPositions, Vec<bool>)>| {
            side.as_ref().map(|(_, seen, active)| outer.row_tags(seen, active.clone()))
        };
        let note = match op {
            Op::Insert => Annotation { old: None, new: tags(&self.new) },
            Op::Update => Annotation { old: tags(&self.old), new: tags(&self.new) },
            Op::Delete => Annotation { old: tags(&self.old), new: None },
        };
        Some((op, note))
    }

    fn row_changes(&self, outer: &Outer, own: &Members, places: &Places, out: &mut Vec<RowChange>) {
        let old_key = self.old.as_ref().map(|(tuple, ..)| Members::key_of(places, tuple, None));
        let new_key = self.new.as_ref().map(|(tuple, ..)| Members::key_of(places, tuple, self.before));
        if let Some(old_key) = old_key
            && (!self.is_in || new_key.as_ref() != Some(&old_key))
        {
            out.push(RowChange::Remove(old_key));
        }
        if let (true, Some((tuple, seen, active)), Some(key)) = (self.is_in, &self.new, new_key)
            && let Some(values) = own.values_of(places, tuple, self.before)
        {
            out.push(RowChange::Put(
                key,
                InnerRow { values, slots: outer.slots(seen), active: active.clone() },
            ));
        }
    }
}

impl MadeWith<'_> {
    fn includes(&self, dependency: usize, members: &Members, values: &Values) -> bool {
        let differing = &self.outer.differing[dependency];
        let differs = !differing.is_empty() && differing.contains(&self.outer.digest(dependency, values));
        members.is_selected(values) != differs
    }

    /// Whether the shape was made with nothing in that inner query.
    #[must_use]
    pub fn is_empty(&self, dependency: usize) -> bool {
        let Some(members) = self.outer.members(dependency, self.members) else { return true };
        let entries = self.outer.differing[dependency].iter().map(|(_, entry)| entry);
        let (lacking, extra): (Vec<_>, Vec<_>) = entries.partition(|entry| entry.is_selected(members));
        members.distinct() + extra.len() == lacking.len()
    }

    /// Whether the shape was made with a NULL in that inner query.
    #[must_use]
    pub fn contains_null(&self, dependency: usize) -> bool {
        let null: Values = Box::new([None]);
        let members = self.outer.members(dependency, self.members);
        members.is_some_and(|members| self.includes(dependency, members, &null))
    }

    /// Whether a value with NULLs in it may equal another, as far as both are known.
    fn is_compatible(&self, dependency: usize, members: &Members, values: &Values) -> bool {
        let may_equal = |other: &Values| {
            values.iter().zip(other.iter()).all(|(a, b)| match (a, b) {
                (Some(a), Some(b)) => a == b,
                _ => true,
            })
        };
        let complete = values.iter().all(Option::is_some);
        let selected: &mut dyn Iterator<Item = &Values> =
            if complete { &mut members.partial() } else { &mut members.values() };
        let extra = self.outer.differing[dependency].iter().filter_map(|(_, entry)| entry.values.as_ref());
        selected.chain(extra).any(|other| may_equal(other) && self.includes(dependency, members, other))
    }
}

impl Membership for MadeWith<'_> {
    fn contains(&self, dependency: usize, values: &Values) -> Option<bool> {
        let members = self.outer.members(dependency, self.members)?;
        let complete = values.iter().all(Option::is_some);
        if complete && self.includes(dependency, members, values) {
            return Some(true);
        }
        // Whether it is false or unknown only matters under NOT.
        if !self.outer.is_negated(dependency) {
            return Some(false);
        }
        if values.len() > 1 {
            return (!self.is_compatible(dependency, members, values)).then_some(false);
        }
        let null: Values = Box::new([None]);
        let unknown =
            if complete { self.includes(dependency, members, &null) } else { !self.is_empty(dependency) };
        (!unknown).then_some(false)
    }
}

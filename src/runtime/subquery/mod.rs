//! Shapes with inner queries (contract 1.16): which rows move in and out when what the inner queries give
//! changes, and when clients are told.
//!
//! Every distinct inner query is a shape of its own, with a log of its own. Its members are folded from
//! that log at a start (`fold`) and kept up to date by the stream from then on (`members`). An outer
//! shape is *made with* what its inner queries gave at some time; where that is not what they give now,
//! the values are kept apart (`differing`) until the shape has followed:
//!
//! * Where rows only leave, by a message after the changes of the transaction that caused it.
//! * Where rows may come in, by a query (`moving`). Until it is answered and the stream has come as far
//!   as its snapshot, transactions wait (`outer::Held`): those that the snapshot contains are decided as
//!   before the move, then comes the move, then the others. The query names the values, and rows are
//!   looked at here, so that nothing depends on what the inner tables hold by then.
//!
//! A transaction stays owed until all that it moves is durable in the log. The files of a shape say exactly what
//! it is made with at their end (`base`, `note`). What differs then from what the inner queries give is followed as
//! ever, once the stream has come to where it had come before (`restore`): no shape starts over.
//!
//! Everything here is told by the driver, on its thread, in the order of the stream.

mod base;
mod differing;
mod fold;
mod late;
mod members;
mod moving;
mod note;
mod outer;
mod progress;
mod recent;
mod restore;
mod routing;
mod tagger;
mod task;

#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

pub use base::{GIVEN_VALUES_MAX, base_note};
use fold::Turning;
pub use fold::{FoldError, load_snapshot};
pub use late::{Decided, Late};
pub use members::{InnerRow, Members, RowKey};
pub use moving::{Moved, MovedRow};
pub use restore::{Restored, Resumed};
pub use tagger::RowTagger;
pub use task::{AGAIN_AFTER, fetch, given};

use outer::{AllMembers, Held, Outer, Phase};
use recent::Recent;

use crate::domain::{Lsn, Oid, PgSnapshot, Seq, ShapeDefinition, Sid, Timestamp};
use crate::events::InvalidationCause;
use crate::filter::subquery::{Clause, Values};
use crate::runtime::router::{RoutedTransaction, Wants};

/// Default of `ELECTRIC_SUBQUERY_BUFFER_MAX_TRANSACTIONS`.
pub const BUFFER_MAX_DEFAULT: usize = 1_000;

/// What the driver has to do.
#[derive(Debug)]
pub enum Action {
    /// Ask for rows; the answer goes to [`Subqueries::moved`].
    Query {
        sid: Sid,
        id: u64,
        condition: Option<String>,
        again: bool,
    },
    /// Hand these transactions to the writer, together; from `owes_from` on they stay owed.
    Run {
        sid: Sid,
        run: Vec<(Seq, Arc<RoutedTransaction>)>,
        owes_from: Option<Seq>,
    },
    /// The end of the log is (not) a state that clients may be told of.
    HoldBack {
        sid: Sid,
        held_back: bool,
    },
    End {
        sid: Sid,
        cause: InvalidationCause,
    },
    /// Somebody waits for the stream to come further, and perhaps nothing more comes: ask where it is.
    Ask,
}

/// All inner queries, and all shapes with inner queries.
#[derive(Debug)]
pub struct Subqueries {
    members: AllMembers,
    outers: BTreeMap<Sid, Outer>,
    /// The shapes with inner queries that a table concerns: as theirs, or as one of an inner query.
    by_table: BTreeMap<Oid, BTreeSet<Sid>>,
    /// The shapes that depend on an inner query, and as which of their dependencies.
    dependents: BTreeMap<Sid, BTreeSet<(Sid, usize)>>,
    /// Those that are not settled, ascending: inner ones come first.
    unsettled: BTreeSet<Sid>,
    /// The newest commit that was taken in.
    processed: Lsn,
    /// The last of those.
    recent: Recent,
    /// Everything below has come.
    reached: Lsn,
    buffer_max: usize,
    last_query: u64,
    /// While shapes are restored: what each log turns after the stream begins again.
    turned: BTreeMap<Sid, Vec<Turning>>,
    actions: Vec<Action>,
}

impl Default for Subqueries {
    fn default() -> Subqueries {
        Subqueries {
            members: BTreeMap::new(),
            outers: BTreeMap::new(),
            by_table: BTreeMap::new(),
            dependents: BTreeMap::new(),
            unsettled: BTreeSet::new(),
            processed: Lsn(0),
            recent: Recent::default(),
            reached: Lsn(0),
            buffer_max: BUFFER_MAX_DEFAULT,
            last_query: 0,
            turned: BTreeMap::new(),
            actions: Vec::new(),
        }
    }
}

impl Subqueries {
    #[must_use]
    pub fn new(buffer_max: usize) -> Subqueries {
        Subqueries { buffer_max: buffer_max.max(1), ..Subqueries::default() }
    }

    /// The stream begins again at this position: what comes from before has been dealt with.
    pub fn begin_at(&mut self, from: Lsn) {
        self.processed = Lsn(from.0.saturating_sub(1));
        self.reached = self.processed;
    }

    /// What was above this position in the stream is another stream's now.
    pub fn rewind(&mut self, to: Lsn) {
        self.processed = self.processed.min(to);
        self.reached = self.reached.min(to);
    }

    /// A new inner query; its rows are not known yet.
    pub fn insert_inner(&mut self, sid: Sid, definition: Arc<ShapeDefinition>, clause: Option<Arc<Clause>>) {
        self.members.insert(sid, Members::new(definition, clause));
    }

    /// A new shape with inner queries, which are here already.
    pub fn insert_outer(
        &mut self,
        sid: Sid,
        definition: Arc<ShapeDefinition>,
        tagger: Arc<RowTagger>,
        dependencies: Vec<Sid>,
    ) {
        for (index, dependency) in dependencies.iter().enumerate() {
            self.dependents.entry(*dependency).or_default().insert((sid, index));
        }
        let outer = Outer::new(sid, definition, tagger, dependencies);
        for table in &outer.tables {
            self.by_table.entry(*table).or_default().insert(sid);
        }
        self.outers.insert(sid, outer);
        self.unsettled.insert(sid);
    }

    pub fn remove(&mut self, sid: Sid) {
        self.members.remove(&sid);
        self.unsettled.remove(&sid);
        self.dependents.remove(&sid);
        if let Some(outer) = self.outers.remove(&sid) {
            for table in &outer.tables {
                if let Some(sids) = self.by_table.get_mut(table) {
                    sids.remove(&sid);
                }
            }
            for (index, dependency) in outer.dependencies.iter().enumerate() {
                if let Some(dependents) = self.dependents.get_mut(dependency) {
                    dependents.remove(&(sid, index));
                }
            }
        }
    }

    #[must_use]
    pub fn is_inner(&self, sid: Sid) -> bool {
        self.members.contains_key(&sid)
    }

    #[must_use]
    pub fn is_outer(&self, sid: Sid) -> bool {
        self.outers.contains_key(&sid)
    }

    /// The shapes that depend on an inner query.
    pub fn dependents(&self, sid: Sid) -> impl Iterator<Item = Sid> + '_ {
        self.dependents.get(&sid).into_iter().flatten().map(|(sid, _)| *sid)
    }

    /// Transactions go to this shape from the next on.
    pub fn begin(&mut self, sid: Sid) {
        if let Some(outer) = self.outers.get_mut(&sid) {
            outer.phase = Phase::Opening;
        }
    }

    /// What the snapshot of a shape contains.
    pub fn visible(&mut self, sid: Sid, snapshot: &PgSnapshot, lsn: Lsn) {
        if let Some(members) = self.members.get_mut(&sid) {
            members.visible = Some((snapshot.clone(), lsn));
        }
        if let Some(outer) = self.outers.get_mut(&sid) {
            outer.visible = Some((snapshot.clone(), lsn));
            let visible = |held: &Held| lsn > held.lsn && snapshot.sees(held.xid);
            outer.held.retain(|held| !visible(held));
        }
    }

    /// What the inner queries of a shape gave in the snapshot of its initial rows, which contains
    /// everything visible below `lsn`.
    pub fn opened(&mut self, sid: Sid, lsn: Lsn, gave: &[BTreeSet<Values>]) {
        let Some(outer) = self.outers.get_mut(&sid) else { return };
        for (dependency, gave) in gave.iter().enumerate() {
            let Some(members) = self.members.get(&outer.dependencies[dependency]) else { continue };
            let lacking = gave.iter().filter(|values| !members.is_selected(values));
            let extra = members.values().filter(|values| !gave.contains(*values));
            let differing: Vec<Values> = lacking.chain(extra).cloned().collect();
            for values in differing {
                let digest = outer.digest(dependency, &values);
                outer.differing[dependency].insert(digest, Some(values), Lsn(0), BTreeSet::new());
            }
        }
        outer.phase = Phase::Catching { until: lsn };
        self.hold_back(sid, true);
        self.advance();
        self.actions.push(Action::Ask);
    }

    /// The initial rows of an inner query.
    pub fn loaded(&mut self, sid: Sid, loaded: Members) {
        if let Some(members) = self.members.get_mut(&sid) {
            members.adopt(loaded);
        }
    }

    /// The stream has come this far.
    pub fn reach(&mut self, lsn: Lsn) {
        if lsn > self.reached {
            self.reached = lsn;
            self.advance();
        }
    }

    /// Postgres is asked now.
    pub fn asked(&mut self, sid: Sid, now: Timestamp) {
        if let Some(outer) = self.outers.get_mut(&sid) {
            outer.asked_at = now;
        }
    }

    /// The answer to a query; none where there will be no answer.
    pub fn moved(&mut self, sid: Sid, id: u64, moved: Option<Moved>) {
        let Some(outer) = self.outers.get_mut(&sid) else { return };
        let Phase::Querying { query } = &outer.phase else { return };
        if query.id != id {
            return;
        }
        match moved {
            Some(moved) => {
                let visible = moved.visible.clone();
                outer.phase = Phase::Opened { query: query.clone(), moved: Box::new(moved) };
                self.forget_recent(sid, &visible);
                self.advance();
                if self.outers.get(&sid).is_some_and(|outer| matches!(outer.phase, Phase::Opened { .. })) {
                    self.actions.push(Action::Ask);
                }
            }
            None => self.actions.push(Action::End { sid, cause: InvalidationCause::MoveFailed }),
        }
    }

    /// Forgets the transactions that the snapshot of a shape's rows sees, unless another may be older.
    fn forget_recent(&mut self, sid: Sid, visible: &PgSnapshot) {
        let mut others = self.unsettled.iter().filter(|other| **other != sid);
        let asks = |phase: &Phase| matches!(phase, Phase::Querying { .. } | Phase::Opened { .. });
        if !others.any(|other| self.outers.get(other).is_some_and(|outer| asks(&outer.phase))) {
            self.recent.forget(visible);
        }
    }

    /// Whether somebody waits for the stream.
    #[must_use]
    pub fn waits_for_stream(&self) -> bool {
        let reached = self.reached;
        self.unsettled.iter().filter_map(|sid| self.outers.get(sid)).any(|outer| match &outer.phase {
            Phase::Catching { until } => *until > reached,
            Phase::Opened { moved, .. } => moved.lsn > reached,
            Phase::Waiting | Phase::Opening | Phase::Querying { .. } | Phase::Settled => false,
        })
    }

    /// Whether a shape holds a transaction back from its writer: undecided, or to stay owed.
    #[must_use]
    pub fn holds(&self, sid: Sid, seq: Seq, routed: &RoutedTransaction) -> bool {
        let Some(Wants::Late(late)) = routed.wants(sid) else { return false };
        late.decided().is_none() || self.owes_from(sid).is_some_and(|from| seq >= from)
    }

    /// From which transaction on a shape stays in debt although its log has them.
    #[must_use]
    pub fn owes_from(&self, sid: Sid) -> Option<Seq> {
        self.outers.get(&sid).and_then(|outer| outer.owes_from)
    }

    /// Shapes that hold transactions while rows move in.
    #[must_use]
    pub fn is_moving(&self, sid: Sid) -> bool {
        self.outers.get(&sid).is_some_and(|outer| outer.is_made() && !outer.is_settled())
    }

    /// The log of a shape is durable up to a transaction.
    pub fn flushed(&mut self, sid: Sid, upto: Seq) {
        let due = self.outers.get_mut(&sid).is_some_and(|outer| {
            outer.unsafe_until = outer.unsafe_until.filter(|seq| upto < *seq);
            let due = outer.is_settled() && outer.release.is_some_and(|release| upto >= release);
            if due {
                outer.release = None;
            }
            due
        });
        if due {
            self.hold_back(sid, false);
        }
    }

    /// What is to be done.
    pub fn take_actions(&mut self) -> Vec<Action> {
        std::mem::take(&mut self.actions)
    }

    pub(super) fn hold_back(&mut self, sid: Sid, held_back: bool) {
        if let Some(outer) = self.outers.get_mut(&sid)
            && outer.held_back != held_back
        {
            outer.held_back = held_back;
            self.actions.push(Action::HoldBack { sid, held_back });
        }
    }

    /// Number of shapes with inner queries that are not settled.
    #[must_use]
    pub fn unsettled(&self) -> usize {
        self.unsettled.len()
    }
}

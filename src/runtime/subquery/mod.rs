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
//! A transaction stays owed until all that it moves is durable in the log. So when the stream begins again
//! after a crash, every shape was made with what its inner queries gave before that position, and its own
//! log tells what has moved since. What differs then is followed as ever: no shape starts over.
//!
//! Everything here is told by the driver, on its thread, in the order of the stream.

mod differing;
mod fold;
mod late;
mod members;
mod moving;
mod outer;
mod restore;
mod tagger;
mod task;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

pub use fold::{FoldError, load_snapshot};
pub use late::{Decided, Late};
pub use members::{InnerRow, Members, RowKey};
pub use moving::{Moved, MovedRow};
pub use restore::{Restored, Resumed};
pub use tagger::RowTagger;
pub use task::{AGAIN_AFTER, fetch, given};

use differing::only;
use members::{Flip, RowChange};
use moving::{Need, Outcome};
use outer::{AllMembers, Held, Outer, Phase};

use crate::domain::{Change, Lsn, Oid, PgSnapshot, Seq, ShapeDefinition, Sid, SidSet, Tuple};
use crate::events::InvalidationCause;
use crate::filter::subquery::{Clause, Values};
use crate::replication::{ReplicationError, Transaction};
use crate::runtime::router::{RoutedTransaction, Wants};
use crate::shape_log::Unit;

/// Default of `ELECTRIC_SUBQUERY_BUFFER_MAX_TRANSACTIONS`.
pub const BUFFER_MAX_DEFAULT: usize = 1_000;

/// What the driver has to do.
#[derive(Debug)]
pub enum Action {
    /// Ask for rows; the answer goes to [`Subqueries::moved`].
    Query { sid: Sid, id: u64, condition: Option<String>, again: bool },
    /// Hand these transactions to the writer, together; from `owes_from` on they stay owed.
    Run { sid: Sid, run: Vec<(Seq, Arc<RoutedTransaction>)>, owes_from: Option<Seq> },
    /// The end of the log is (not) a state that clients may be told of.
    HoldBack { sid: Sid, held_back: bool },
    End { sid: Sid, cause: InvalidationCause },
    /// Somebody waits for the stream to come further, and perhaps nothing more comes: ask where it is.
    Ask,
}

/// All inner queries, and all shapes with inner queries.
#[derive(Debug)]
pub struct Subqueries {
    members: AllMembers,
    outers: BTreeMap<Sid, Outer>,
    /// The shapes that depend on an inner query, and as which of their dependencies.
    dependents: BTreeMap<Sid, BTreeSet<(Sid, usize)>>,
    /// Those that are not settled, ascending: inner ones come first.
    unsettled: BTreeSet<Sid>,
    /// The newest commit that was taken in.
    processed: Lsn,
    /// Everything below has come.
    reached: Lsn,
    buffer_max: usize,
    last_query: u64,
    /// While shapes are restored: the values that each log turns after the stream begins again.
    turned: BTreeMap<Sid, BTreeSet<Values>>,
    actions: Vec<Action>,
}

impl Default for Subqueries {
    fn default() -> Subqueries {
        Subqueries {
            members: BTreeMap::new(),
            outers: BTreeMap::new(),
            dependents: BTreeMap::new(),
            unsettled: BTreeSet::new(),
            processed: Lsn(0),
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
        self.outers.insert(sid, Outer::new(sid, definition, tagger, dependencies));
        self.unsettled.insert(sid);
    }

    pub fn remove(&mut self, sid: Sid) {
        self.members.remove(&sid);
        self.unsettled.remove(&sid);
        self.dependents.remove(&sid);
        if let Some(outer) = self.outers.remove(&sid) {
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
                outer.differing[dependency].insert(digest, Some(values), Lsn(0));
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

    /// The answer to a query; none where there will be no answer.
    pub fn moved(&mut self, sid: Sid, id: u64, moved: Option<Moved>) {
        let Some(outer) = self.outers.get_mut(&sid) else { return };
        let Phase::Querying { query } = &outer.phase else { return };
        if query.id != id {
            return;
        }
        match moved {
            Some(moved) => {
                outer.phase = Phase::Opened { query: query.clone(), moved: Box::new(moved) };
                self.advance();
                if self.outers.get(&sid).is_some_and(|outer| matches!(outer.phase, Phase::Opened { .. })) {
                    self.actions.push(Action::Ask);
                }
            }
            None => self.actions.push(Action::End { sid, cause: InvalidationCause::MoveFailed }),
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

    /// Finds what shapes with inner queries want of a transaction, and takes in what it does to the inner
    /// queries. To be called once for each, in order, when all others have said what they want; one that
    /// comes again is passed over: who owes it has it.
    ///
    /// # Errors
    /// Of reading a spilled transaction.
    pub fn route(&mut self, routed: &mut RoutedTransaction) -> Result<(), ReplicationError> {
        let txn = Arc::clone(&routed.txn);
        if txn.lsn <= self.processed {
            return Ok(());
        }
        let touches = |tables: &BTreeSet<Oid>| txn.relations.iter().any(|oid| tables.contains(oid));
        let concerned: Vec<Sid> =
            self.outers.values().filter(|outer| touches(&outer.tables)).map(|outer| outer.sid).collect();
        let counted = self.counted(routed)?;
        let mut decided = BTreeMap::new();
        for sid in &concerned {
            let outer = &self.outers[sid];
            if outer.is_settled() {
                decided.insert(*sid, outer.decide(&txn, &self.members)?);
            }
        }
        // From here on nothing fails: it is taken in as a whole or not at all.
        self.processed = txn.lsn;
        self.turned.clear();
        self.reached = self.reached.max(txn.lsn);
        for (sid, changes) in counted {
            self.change_members(sid, &txn, changes);
        }
        for sid in concerned {
            if let Some(late) = self.take_in(sid, &txn, decided.remove(&sid)) {
                routed.want_late(sid, Arc::new(late));
            }
        }
        Ok(())
    }

    /// What a transaction does to the inner queries that have none themselves.
    fn counted(&self, routed: &RoutedTransaction) -> Result<Vec<(Sid, Vec<RowChange>)>, ReplicationError> {
        let mut all = Vec::new();
        for (sid, members) in &self.members {
            let wanted = routed.wants(*sid).is_some() && !self.outers.contains_key(sid);
            if !wanted || members.has_already(routed.txn.lsn, routed.txn.xid) {
                continue;
            }
            let mut changes = Vec::new();
            let mut places = None;
            routed.for_each(*sid, |change, op, _| {
                if let Some(relation) = change.relation() {
                    let stale = places.as_ref().is_none_or(|(known, _)| !Arc::ptr_eq(known, relation));
                    if stale {
                        places = Some((Arc::clone(relation), members.places(relation)));
                    }
                    if let Some((_, Some(places))) = &places {
                        changes.extend(members.counted(places, op, sides(change)));
                    }
                }
                Ok::<(), ReplicationError>(())
            })?;
            all.push((*sid, changes));
        }
        Ok(all)
    }

    fn change_members(&mut self, sid: Sid, txn: &Transaction, changes: Vec<RowChange>) {
        let Some(members) = self.members.get_mut(&sid) else { return };
        if members.has_already(txn.lsn, txn.xid) {
            return;
        }
        let mut flips = Vec::new();
        let mut fits = true;
        for change in changes {
            fits &= members.change(txn.lsn, txn.xid, change, &mut flips);
        }
        if !fits {
            self.actions.push(Action::End { sid, cause: InvalidationCause::Backlog });
        }
        self.turn(sid, &flips, txn.lsn, &only(txn.xid));
    }

    /// Tells the shapes that depend on an inner query what it gives now.
    fn turn(&mut self, sid: Sid, flips: &[Flip], cause: Lsn, xids: &BTreeSet<u32>) {
        if flips.is_empty() {
            return;
        }
        for (dependent, dependency) in self.dependents.get(&sid).cloned().unwrap_or_default() {
            let Some(outer) = self.outers.get_mut(&dependent).filter(|outer| outer.is_made()) else { continue };
            for flip in flips {
                let digest = outer.digest(dependency, &flip.values);
                outer.differing[dependency].turn(digest, flip, cause, xids);
            }
        }
    }

    /// What one shape makes of a transaction. `None` where it wants nothing of it.
    fn take_in(
        &mut self,
        sid: Sid,
        txn: &Transaction,
        decided: Option<(Decided, Vec<RowChange>)>,
    ) -> Option<Late> {
        let outer = self.outers.get(&sid)?;
        if matches!(outer.phase, Phase::Waiting) || outer.contains(txn.lsn, txn.xid) {
            return None;
        }
        let Some((mut decided, changes)) = decided else { return Some(Late::new()) };
        let ready = !outer.dependencies.iter().any(|dependency| self.unsettled.contains(dependency));
        let need = outer.need(&self.members);
        if !ready || need == Need::Query {
            let outer = self.outers.get_mut(&sid)?;
            outer.phase = Phase::Catching { until: Lsn(0) };
            self.unsettled.insert(sid);
            self.hold_back(sid, true);
            return Some(Late::new());
        }
        self.change_members(sid, txn, changes);
        let members = &self.members;
        let outcome = self.outers.get_mut(&sid)?.follow(members, None);
        self.change_members(sid, txn, outcome.rows);
        decided.event = outcome.messages.into_iter().next();
        let wanted = !decided.changes.is_empty() || decided.event.is_some();
        wanted.then(|| Late::of(decided))
    }

    /// A transaction has got its number; these shapes owe it.
    pub fn note(&mut self, seq: Seq, body: &Arc<RoutedTransaction>, set: &SidSet) {
        let (lsn, xid) = (body.txn.lsn, body.txn.xid);
        let mut changed = false;
        for (sid, late) in body.late() {
            let Some(outer) = self.outers.get_mut(&sid) else { continue };
            if !set.contains(sid) {
                // It has it, or its snapshot does. Only a message about values would be lacking.
                if late.decided().is_some_and(|decided| decided.event.is_some()) {
                    tracing::error!(%sid, %seq, "values moved in a transaction that the shape does not owe");
                    self.actions.push(Action::End { sid, cause: InvalidationCause::MoveFailed });
                }
                continue;
            }
            if late.decided().is_none() {
                outer.held.push_back(Held { seq, lsn, xid, body: Arc::clone(body) });
                changed = true;
                if outer.is_made() && outer.held.len() > self.buffer_max {
                    self.actions.push(Action::End { sid, cause: InvalidationCause::MoveBacklog });
                }
            }
        }
        if changed || !self.unsettled.is_empty() {
            self.advance();
        }
    }

    /// Takes every shape as far as it can come.
    pub fn advance(&mut self) {
        let sids: Vec<Sid> = self.unsettled.iter().copied().collect();
        for sid in sids {
            while self.advance_one(sid) {}
        }
    }

    /// One step of one shape; whether there may be another.
    fn advance_one(&mut self, sid: Sid) -> bool {
        let Some(outer) = self.outers.get(&sid) else { return false };
        match &outer.phase {
            Phase::Catching { until } => {
                let unready = outer.dependencies.iter().any(|inner| self.unsettled.contains(inner));
                if *until > self.reached || unready {
                    return false;
                }
                match outer.need(&self.members) {
                    Need::Query => self.ask(sid, false),
                    // After a start: the transaction that caused it is yet to come again.
                    Need::Event if outer.held.is_empty() && outer.owed.is_empty() => {}
                    Need::Event | Need::Nothing => self.settle(sid),
                }
                false
            }
            Phase::Opened { moved, .. } if moved.lsn <= self.reached => {
                let sees = |held: &Held| held.lsn < moved.lsn && moved.visible.sees(held.xid);
                if outer.held.front().is_some_and(|held| !sees(held)) && outer.owed.is_empty() {
                    // Decoded before it became visible: the rows would be those before it.
                    self.ask(sid, true);
                    return false;
                }
                let visible = outer.held.iter().take_while(|held| sees(held)).count();
                self.move_in(sid, visible)
            }
            Phase::Waiting
            | Phase::Opening
            | Phase::Querying { .. }
            | Phase::Opened { .. }
            | Phase::Settled => false,
        }
    }

    fn ask(&mut self, sid: Sid, again: bool) {
        self.last_query += 1;
        let (id, members) = (self.last_query, &self.members);
        let Some(outer) = self.outers.get_mut(&sid) else { return };
        let query = outer.query(id, members);
        self.actions.push(Action::Query { sid, id, condition: query.condition.clone(), again });
        outer.phase = Phase::Querying { query };
        self.hold_back(sid, true);
    }

    /// Decides on the first `count` of the transactions that wait.
    fn decide(&mut self, sid: Sid, count: usize) -> Vec<Held> {
        let mut run = Vec::with_capacity(count);
        for _ in 0..count {
            let Some(outer) = self.outers.get_mut(&sid) else { break };
            let Some(held) = outer.held.pop_front() else { break };
            match self.outers[&sid].decide(&held.body.txn, &self.members) {
                Ok((decided, changes)) => {
                    if let Some(Wants::Late(late)) = held.body.wants(sid) {
                        late.decide(decided);
                    }
                    self.change_members(sid, &held.body.txn, changes);
                }
                Err(error) => {
                    tracing::error!(%sid, %error, "a transaction that waited could not be read back");
                    self.actions.push(Action::End { sid, cause: InvalidationCause::MoveFailed });
                }
            }
            run.push(held);
        }
        run
    }

    /// The rows have come: what their snapshot contains, the move, and so on.
    fn move_in(&mut self, sid: Sid, visible: usize) -> bool {
        let run = self.decide(sid, visible);
        let Some(outer) = self.outers.get_mut(&sid) else { return false };
        let phase = std::mem::replace(&mut outer.phase, Phase::Catching { until: Lsn(0) });
        let Phase::Opened { query, moved } = phase else { return false };
        let (cause, xids) = self.causes(sid);
        let members = &self.members;
        let Some(outer) = self.outers.get_mut(&sid) else { return false };
        let outcome = outer.follow(members, Some((&query, *moved)));
        self.finish(sid, run, outcome, cause, &xids);
        true
    }

    /// Nothing has to be asked: the rest that waits, and what leaves.
    fn settle(&mut self, sid: Sid) {
        let waiting = self.outers.get(&sid).map_or(0, |outer| outer.held.len());
        let run = self.decide(sid, waiting);
        let (cause, xids) = self.causes(sid);
        let members = &self.members;
        let Some(outer) = self.outers.get_mut(&sid) else { return };
        let outcome = outer.follow(members, None);
        outer.phase = Phase::Settled;
        self.unsettled.remove(&sid);
        self.finish(sid, run, outcome, cause, &xids);
    }

    /// What a move of an inner query is caused by, for those that depend on it.
    fn causes(&self, sid: Sid) -> (Lsn, BTreeSet<u32>) {
        let Some(outer) = self.outers.get(&sid) else { return (Lsn(0), BTreeSet::new()) };
        let entries = outer.differing.iter().flat_map(|differing| differing.iter()).map(|(_, entry)| entry);
        let xids = entries.flat_map(|entry| entry.xids.iter().copied()).collect();
        (self.owes(sid).unwrap_or(Lsn(0)), xids)
    }

    /// The earliest transaction of which something has not been followed yet.
    fn owes(&self, sid: Sid) -> Option<Lsn> {
        let outer = self.outers.get(&sid)?;
        if outer.resync {
            return Some(Lsn(0));
        }
        let own = outer.differing.iter().filter_map(differing::Differing::cause);
        let inner = outer.dependencies.iter().filter_map(|inner| self.owes(*inner));
        own.chain(inner).min()
    }

    fn finish(
        &mut self,
        sid: Sid,
        run: Vec<Held>,
        outcome: Outcome,
        cause: Lsn,
        xids: &BTreeSet<u32>,
    ) {
        let mut flips = Vec::new();
        if let Some(members) = self.members.get_mut(&sid) {
            for change in outcome.rows {
                members.perform_or_wait(change, &mut flips);
            }
        }
        self.turn(sid, &flips, cause, xids);
        let owes = self.owes(sid);
        let Some(outer) = self.outers.get_mut(&sid) else { return };
        if !outcome.messages.is_empty() {
            let unit = Arc::new(Unit::new(outcome.messages));
            match run.last().or(outer.owed.back()) {
                Some(held) => {
                    if let Some(Wants::Late(late)) = held.body.wants(sid) {
                        late.add_unit(unit);
                    }
                }
                None => {
                    tracing::error!(%sid, "values moved and no transaction is owed for it");
                    self.actions.push(Action::End { sid, cause: InvalidationCause::MoveFailed });
                    return;
                }
            }
        }
        // What carries the move again, and everything that is new.
        let first = run.len();
        let carrier = if first == 0 { outer.owed.back().cloned() } else { None };
        let handed: Vec<(Seq, Arc<RoutedTransaction>)> =
            carrier.iter().chain(&run).map(|held| (held.seq, Arc::clone(&held.body))).collect();
        outer.owed.extend(run);
        let last = outer.owed.back().map(|held| held.seq);
        match owes {
            Some(lsn) => {
                while outer.owed.front().is_some_and(|held| held.lsn < lsn) && outer.owed.len() > 1 {
                    outer.owed.pop_front();
                }
                outer.owes_from = outer.owed.front().map(|held| held.seq);
            }
            None => {
                outer.owed.clear();
                outer.owes_from = None;
            }
        }
        let (settled, owes_from) = (outer.is_settled(), outer.owes_from);
        if settled {
            outer.release = last;
        }
        if handed.is_empty() {
            if settled {
                self.hold_back(sid, false);
            }
        } else {
            self.actions.push(Action::Run { sid, run: handed, owes_from });
        }
    }

    fn hold_back(&mut self, sid: Sid, held_back: bool) {
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

/// The row before and after a change.
fn sides(change: &Change) -> (Option<&Tuple>, Option<&Tuple>) {
    match change {
        Change::Insert { new, .. } => (None, Some(new)),
        Change::Update { old, new, .. } => (old.as_ref(), Some(new)),
        Change::Delete { old, .. } => (Some(old), None),
        Change::Truncate { .. } => (None, None),
    }
}


//! Transactions as they come: what each shape makes of them, or that it has to wait.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::differing::only;
use super::late::{Decided, Late};
use super::members::{Flip, RowChange};
use super::moving::Need;
use super::outer::{Held, Phase};
use super::{Action, Subqueries};
use crate::domain::{Change, Lsn, Oid, Seq, Sid, SidSet, Tuple};
use crate::events::InvalidationCause;
use crate::replication::{ReplicationError, Transaction};
use crate::runtime::router::RoutedTransaction;

impl Subqueries {
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
        let concerned: BTreeSet<Sid> =
            txn.relations.iter().filter_map(|oid| self.by_table.get(oid)).flatten().copied().collect();
        let counted = self.counted(routed)?;
        let mut decided = BTreeMap::new();
        for sid in &concerned {
            let outer = &self.outers[sid];
            let writes = txn.relations.contains(&outer.definition.relation.oid);
            if outer.is_settled() {
                let made = if writes { outer.decide(&txn, &self.members)? } else { Default::default() };
                decided.insert(*sid, made);
            }
        }
        // From here on nothing fails: it is taken in as a whole or not at all.
        self.processed = txn.lsn;
        let own = |oid: &&Oid| self.by_table.get(oid).is_some_and(|sids| !sids.is_empty());
        self.recent.note(txn.lsn, txn.xid, txn.relations.iter().filter(own).copied());
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

    pub(super) fn change_members(&mut self, sid: Sid, txn: &Transaction, changes: Vec<RowChange>) {
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
    pub(super) fn turn(&mut self, sid: Sid, flips: &[Flip], cause: Lsn, xids: &BTreeSet<u32>) {
        if flips.is_empty() {
            return;
        }
        for (dependent, dependency) in self.dependents.get(&sid).cloned().unwrap_or_default() {
            let Some(outer) = self.outers.get_mut(&dependent).filter(|outer| outer.is_made()) else {
                continue;
            };
            let began_with = outer.began_with(dependency, cause, xids);
            for flip in flips {
                let digest = outer.digest(dependency, &flip.values);
                if began_with && !outer.tells_of(dependency, &digest) {
                    continue;
                }
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
        debug_assert!(outcome.messages.len() <= 1, "without rows there is one message, about what leaves");
        decided.event = outcome.messages.into_iter().next();
        let outer = self.outers.get(&sid)?;
        let unsafe_yet =
            outer.unsafe_until.is_some() && txn.relations.contains(&outer.definition.relation.oid);
        let wanted = !decided.changes.is_empty() || decided.event.is_some() || unsafe_yet;
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
            if late.decided().is_some_and(|decided| decided.event.is_some()) {
                outer.unsafe_until = Some(seq);
            }
            if late.decided().is_none() {
                outer.held.push_back(Held { seq, lsn, xid, body: Arc::clone(body) });
                changed = true;
                // What was committed before Postgres was asked waits for the stream, not for Postgres: after
                // a start that may be any number.
                let asks = matches!(outer.phase, Phase::Querying { .. } | Phase::Opened { .. });
                outer.waited += usize::from(asks && body.txn.committed_at > outer.asked_at);
                if outer.waited > self.buffer_max {
                    self.actions.push(Action::End { sid, cause: InvalidationCause::MoveBacklog });
                }
            }
        }
        if changed || !self.unsettled.is_empty() {
            self.advance();
        }
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

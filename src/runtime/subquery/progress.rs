//! How shapes come from a difference to its end: waiting, asking, moving, settling.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::moving::{Need, Outcome};
use super::outer::{Held, Phase};
use super::{Action, Subqueries};
use crate::domain::{Lsn, Seq, Sid, Timestamp};
use crate::events::InvalidationCause;
use crate::runtime::router::{RoutedTransaction, Wants};
use crate::shape_log::Unit;

impl Subqueries {
    /// The shapes that are not settled, and what each of them waits for.
    pub fn waiting(&self) -> impl Iterator<Item = (Sid, &'static str, usize)> + '_ {
        self.unsettled.iter().filter_map(|sid| {
            let outer = self.outers.get(sid)?;
            let waits_for = match &outer.phase {
                Phase::Waiting => "the rows of its inner queries",
                Phase::Opening => "its snapshot",
                Phase::Catching { until } if *until > self.reached => "the stream",
                Phase::Catching { .. } => "its inner queries",
                Phase::Querying { .. } => "rows that move in",
                Phase::Opened { .. } => "the stream to come to these rows",
                Phase::Settled => "nothing",
            };
            Some((*sid, waits_for, outer.held.len()))
        })
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
                let visible = outer.held.iter().take_while(|held| sees(held)).count();
                // Transactions become visible in another order than they commit in. Of one that is decoded
                // before it is visible the rows would be those before it.
                let too_early = visible == 0 && visible < outer.held.len() && outer.owed.is_empty();
                let from = outer.held.front().map_or(Lsn(u64::MAX), |held| held.lsn);
                let lacks = self.recent.lacks(&moved.visible, outer.definition.relation.oid, from);
                if too_early || lacks || outer.held.iter().skip(visible).any(sees) {
                    self.ask(sid, true);
                    return false;
                }
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
        (outer.asked_at, outer.waited) = (Timestamp(i64::MAX), 0);
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
        outer.told = Vec::new();
        self.unsettled.remove(&sid);
        self.finish(sid, run, outcome, cause, &xids);
    }

    /// What a move of an inner query is caused by, for those that depend on it.
    fn causes(&self, sid: Sid) -> (Lsn, BTreeSet<u32>) {
        let Some(outer) = self.outers.get(&sid) else { return (Lsn(0), BTreeSet::new()) };
        let xids = outer.to_follow(&self.members).flat_map(|entry| entry.xids.iter().copied()).collect();
        (self.owes(sid).unwrap_or(Lsn(0)), xids)
    }

    /// The earliest transaction of which something has not been followed yet: a difference that is known, or
    /// what an inner query is yet to make of transactions that wait there.
    fn owes(&self, sid: Sid) -> Option<Lsn> {
        let outer = self.outers.get(&sid)?;
        let own = outer.to_follow(&self.members).map(|entry| entry.cause);
        let inner = outer.dependencies.iter().filter_map(|inner| {
            let waits = self.outers.get(inner)?.held.front().map(|held| held.lsn);
            waits.into_iter().chain(self.owes(*inner)).min()
        });
        own.chain(inner).min()
    }

    fn finish(&mut self, sid: Sid, run: Vec<Held>, outcome: Outcome, cause: Lsn, xids: &BTreeSet<u32>) {
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
            let unit = Arc::new(Unit::new(outcome.messages, outcome.note));
            outer.unsafe_until = run.last().or(outer.owed.back()).map(|held| held.seq);
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
}

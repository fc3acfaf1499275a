//! Who owes something and has nobody to pay (F2): told once, by what made it so.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::Finding;
use crate::domain::{EventId, Seq, Sid, Timestamp};
use crate::events::{ConsumerEvent, Event, Recorded, ShapeEvent, StreamEvent};
use crate::projections::Projections;
use crate::projections::forensics::Invariant;
use crate::state::{OwnerPhase, State, StreamPhase, Writer};

#[derive(Clone, Debug, Default)]
pub(super) struct Orphans {
    /// The last exit of each shape that left something owed: what an orphan is told to begin with.
    exits: BTreeMap<Sid, (EventId, Timestamp)>,
    /// With which event each transaction in the window was handed out, ascending: an orphan whose writer
    /// was gone before begins there.
    routed: VecDeque<(Seq, EventId, Timestamp)>,
    /// The exit that the event before told of; what follows from it comes right behind it.
    after_exit: Option<Sid>,
    /// Orphans that have been told of.
    told: BTreeSet<Sid>,
}

impl Orphans {
    /// Follows an event that has been folded in.
    pub(super) fn follow(&mut self, state: &State, recorded: &Recorded, findings: &mut Vec<Finding>) {
        if let Some(sid) = self.after_exit.take() {
            self.check_one(state, sid, recorded.id, findings);
        }
        match &recorded.event {
            Event::Consumer(ConsumerEvent::Exited { sid, pending, .. }) if *pending > 0 => {
                self.exits.insert(*sid, (recorded.id, recorded.at));
                self.after_exit = Some(*sid);
            }
            Event::Consumer(ConsumerEvent::Started { sid, .. }) | Event::Shape(ShapeEvent::Gone { sid }) => {
                self.exits.remove(sid);
                self.told.remove(sid);
            }
            Event::Stream(StreamEvent::TxnRouted { seq, .. }) => {
                self.routed.push_back((*seq, recorded.id, recorded.at));
            }
            Event::Consumer(_)
            | Event::Shape(_)
            | Event::Ownership(_)
            | Event::Stream(_)
            | Event::Flush(_)
            | Event::Journal(_) => {}
        }
        let oldest = state.window.oldest().map(|(oldest, _)| oldest);
        while self.routed.front().is_some_and(|(seq, ..)| oldest.is_none_or(|oldest| *seq < oldest)) {
            self.routed.pop_front();
        }
    }

    /// Looks at everybody who owes something.
    pub(super) fn check(
        &mut self,
        state: &State,
        projections: &Projections,
        event: EventId,
        findings: &mut Vec<Finding>,
    ) {
        for (_, sid) in projections.flush_tracker.blockers() {
            self.check_one(state, sid, event, findings);
        }
    }

    fn check_one(&mut self, state: &State, sid: Sid, event: EventId, findings: &mut Vec<Finding>) {
        let oldest = state.shape(sid).and_then(|shape| shape.pending.front().copied());
        let Some(oldest) = oldest.filter(|oldest| is_orphan(state, *oldest, sid)) else { return };
        if self.told.insert(sid) {
            let delivered = self.routed.binary_search_by_key(&oldest, |(seq, ..)| *seq).ok();
            let delivered = delivered.and_then(|at| self.routed.get(at)).map(|(_, event, at)| (*event, *at));
            let exited = self.exits.get(&sid).copied();
            let since = exited.or(delivered).unwrap_or((event, state.at));
            let detail = format!("shape {sid} owes transaction {oldest} and nobody is there to pay");
            findings.push((Invariant::F2, Some(sid), Some(since), detail));
        }
    }
}

pub(super) fn is_orphan(state: &State, oldest: Seq, sid: Sid) -> bool {
    let Some(shape) = state.shape(sid) else { return true };
    let arrived = state.stream.phase == StreamPhase::Streaming
        && state.window.get(oldest).is_some_and(|txn| txn.lsn <= state.stream.received);
    let active = state.owner.phase == OwnerPhase::Active;
    let restarting = shape.retry.is_some_and(|retry| retry.due.is_some());
    active && arrived && shape.visible.is_some() && shape.writer == Writer::Absent && !restarting
}

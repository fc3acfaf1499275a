//! What a decision has to lead to before the next one: shapes that have to end with something else, and
//! shapes that have to be handed what was routed to them.

use std::collections::BTreeMap;

use super::Finding;
use super::orphans::is_orphan;
use crate::domain::{EventId, Sid, Timestamp};
use crate::events::{ConsumerEvent, Event, JournalEvent, OwnershipEvent, Recorded, ShapeEvent, StreamEvent};
use crate::projections::Projections;
use crate::projections::forensics::Invariant;
use crate::state::{Life, Shape, State, Writer};

/// A decision is one step of the engine, and a step is in the journal as a whole or not at all. The next
/// event of the stream or of a flush is of another step for certain: whatever had to follow has followed by
/// then.
#[derive(Clone, Debug, Default)]
pub(super) struct Duties {
    /// Shapes that have to end, by which rule and because of which event.
    must_end: BTreeMap<Sid, (Invariant, EventId, Timestamp)>,
    /// Shapes that were routed something and have nobody to take it, and with which event.
    undelivered: BTreeMap<Sid, (EventId, Timestamp)>,
}

impl Duties {
    pub(super) fn before(
        &mut self,
        state: &State,
        projections: &Projections,
        recorded: &Recorded,
        findings: &mut Vec<Finding>,
    ) {
        if matches!(recorded.event, Event::Stream(_) | Event::Flush(_)) {
            self.due(state, findings);
        }
        let since = (recorded.id, recorded.at);
        let living = |least: Life, most: Life| {
            let shapes = state.shapes.iter().filter(move |(_, shape)| (least..=most).contains(&shape.life));
            shapes.map(|(sid, _)| *sid)
        };
        match &recorded.event {
            Event::Shape(ShapeEvent::Invalidated { sid, .. }) => {
                self.must_end.remove(sid);
                let outers = projections.shape_index.dependents(*sid);
                self.require(Invariant::L5, outers, since);
            }
            // What was owed was of the old history, and is owed by nobody now.
            Event::Stream(StreamEvent::HistoryBroken { .. }) => {
                self.require(Invariant::S4, living(Life::Registered, Life::Live), since);
            }
            Event::Stream(StreamEvent::Started { from, .. }) => {
                let lost = projections.flush_tracker.blockers();
                let before = |seq| state.window.get(seq).is_some_and(|txn| txn.lsn < *from);
                let lost = lost.take_while(|(seq, _)| before(*seq)).map(|(_, sid)| sid);
                self.require(Invariant::S4, lost, since);
            }
            Event::Ownership(OwnershipEvent::Acquired { .. }) => {
                self.undelivered.clear();
                self.require(Invariant::L7, living(Life::Registered, Life::Snapshotting), since);
            }
            Event::Journal(JournalEvent::TornTail { missing_upto: Some(_), .. }) => {
                self.require(Invariant::L3, living(Life::Live, Life::Live), since);
            }
            Event::Shape(_)
            | Event::Stream(_)
            | Event::Ownership(_)
            | Event::Journal(_)
            | Event::Consumer(_)
            | Event::Flush(_) => {}
        }
    }

    pub(super) fn after(&mut self, state: &State, recorded: &Recorded) {
        match &recorded.event {
            Event::Stream(StreamEvent::TxnRouted { set, .. } | StreamEvent::TxnRedelivered { set, .. }) => {
                let nobody = set.iter().filter(|sid| state.shape(*sid).is_some_and(has_nobody));
                self.undelivered.extend(nobody.map(|sid| (sid, (recorded.id, recorded.at))));
            }
            Event::Consumer(
                ConsumerEvent::Started { sid, .. } | ConsumerEvent::RestartScheduled { sid, .. },
            )
            | Event::Shape(ShapeEvent::Invalidated { sid, .. } | ShapeEvent::Gone { sid }) => {
                self.undelivered.remove(sid);
            }
            Event::Stream(_)
            | Event::Consumer(_)
            | Event::Shape(_)
            | Event::Ownership(_)
            | Event::Journal(_)
            | Event::Flush(_) => {}
        }
    }

    fn require(
        &mut self,
        invariant: Invariant,
        sids: impl Iterator<Item = Sid>,
        since: (EventId, Timestamp),
    ) {
        for sid in sids {
            self.must_end.entry(sid).or_insert((invariant, since.0, since.1));
        }
    }

    /// The decision is over.
    fn due(&mut self, state: &State, findings: &mut Vec<Finding>) {
        for (sid, (invariant, event, at)) in std::mem::take(&mut self.must_end) {
            if state.shape(sid).is_some_and(|shape| shape.life < Life::Invalidated) {
                let detail = format!("shape {sid} had to end with it and has not");
                findings.push((invariant, Some(sid), Some((event, at)), detail));
            }
        }
        for (sid, since) in std::mem::take(&mut self.undelivered) {
            let Some(shape) = state.shape(sid).filter(|shape| has_nobody(shape)) else { continue };
            // An orphan is told of as such (F2), by the delivery that made it one.
            if shape.pending.front().is_some_and(|oldest| !is_orphan(state, *oldest, sid)) {
                let detail = format!("shape {sid} is routed to, and nobody takes it or is to");
                findings.push((Invariant::R3, Some(sid), Some(since), detail));
            }
        }
    }
}

/// Neither a writer, nor one to come, nor a snapshot to wait for.
fn has_nobody(shape: &Shape) -> bool {
    let restarting = shape.retry.is_some_and(|retry| retry.due.is_some());
    shape.writer == Writer::Absent && shape.visible.is_some() && !restarting
}

//! Who holds the log of Postgres, and whether that comes to an end (F3, F4, F5, F7, F10).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::Finding;
use crate::domain::{Seq, Sid, Timestamp};
use crate::events::{ConsumerEvent, Event, OwnershipEvent, Recorded, StreamEvent};
use crate::projections::Projections;
use crate::projections::forensics::Invariant;
use crate::state::{OwnerPhase, Shape, State, StreamPhase, Writer};

/// A suspicion is resolved in this time, or in so many times as long as it took to have it. The setting
/// behind it is not in the journal.
const RESOLVED_WITHIN: Duration = Duration::from_secs(15 * 60);
const RESOLVED_TIMES: u32 = 10;
/// What a shape with a writer owes for longer, while the stream runs, it does not owe without being
/// suspected; or for longer than so many times the grace period that the owner has set, where that is more.
const NAMED_WITHIN: Duration = Duration::from_secs(60 * 60);
const NAMED_TIMES: u32 = 2;

#[derive(Clone, Debug, Default)]
pub(super) struct Stalls {
    /// `ELECTRIC_FLUSH_STALL_GRACE_PERIOD`, where it is known.
    grace: Duration,
    /// Shapes under suspicion: since when, and how long they may be.
    suspected: BTreeMap<Sid, (Timestamp, Duration)>,
    /// Shapes that have been told of, until they get on.
    told: BTreeSet<Sid>,
    /// When the present stream began.
    streaming_since: Timestamp,
}

impl Stalls {
    pub(super) fn with_grace(grace: Duration) -> Stalls {
        Stalls { grace, ..Stalls::default() }
    }

    pub(super) fn before(&mut self, state: &State, recorded: &Recorded, findings: &mut Vec<Finding>) {
        match &recorded.event {
            Event::Consumer(ConsumerEvent::StallSuspected { sid, oldest, age_ms }) => {
                let shape = state.shape(*sid);
                check_owed(shape, *sid, *oldest, findings);
                let within = Duration::from_millis(*age_ms).saturating_mul(RESOLVED_TIMES);
                self.suspected.insert(*sid, (recorded.at, within.max(RESOLVED_WITHIN)));
            }
            Event::Consumer(ConsumerEvent::Exited { sid, incarnation, pending_oldest, pending, .. }) => {
                let Some(shape) = state.shape(*sid) else { return };
                if shape.writer.incarnation() != Some(*incarnation) {
                    return;
                }
                if shape.pending.front() != pending_oldest.as_ref() || shape.pending.len() as u64 != *pending
                {
                    let owed = shape.pending.len();
                    let detail = format!("the end of a writer tells of {pending} owed, the fold of {owed}");
                    findings.push((Invariant::F4, Some(*sid), None, detail));
                    check_flushed(shape, *sid, *pending_oldest, findings);
                }
            }
            // A process that begins, or a stream, has its own time.
            Event::Ownership(OwnershipEvent::Acquired { .. })
            | Event::Stream(StreamEvent::Started { .. }) => {
                self.suspected.values_mut().for_each(|(since, _)| *since = recorded.at);
                self.streaming_since = recorded.at;
            }
            Event::Consumer(_)
            | Event::Ownership(_)
            | Event::Stream(_)
            | Event::Shape(_)
            | Event::Flush(_)
            | Event::Journal(_) => {}
        }
    }

    pub(super) fn after(
        &mut self,
        state: &State,
        projections: &Projections,
        recorded: &Recorded,
        findings: &mut Vec<Finding>,
    ) {
        let Event::Stream(event) = &recorded.event else { return };
        match event {
            StreamEvent::AckSent { .. } => {
                let by_window = state.window.oldest().map(|(oldest, _)| oldest);
                let by_shape = projections.flush_tracker.blockers().next().map(|(oldest, _)| oldest);
                if by_window != by_shape {
                    let detail = format!("{by_window:?} is owed first, and by shape {by_shape:?}");
                    findings.push((Invariant::F5, None, None, detail));
                }
            }
            StreamEvent::TxnRouted { .. } | StreamEvent::RoutedNothing { .. } => {}
            StreamEvent::Identified { .. }
            | StreamEvent::LockAcquired { .. }
            | StreamEvent::LockLost { .. }
            | StreamEvent::SlotObserved { .. }
            | StreamEvent::HistoryBroken { .. }
            | StreamEvent::TimelineFollowed { .. }
            | StreamEvent::Queried { .. }
            | StreamEvent::Started { .. }
            | StreamEvent::Stopped { .. }
            | StreamEvent::RelationChanged { .. }
            | StreamEvent::TxnRedelivered { .. } => return,
        }
        if state.owner.phase == OwnerPhase::Active && state.stream.phase == StreamPhase::Streaming {
            self.look(state, projections, recorded.at, findings);
        }
    }

    fn look(
        &mut self,
        state: &State,
        projections: &Projections,
        now: Timestamp,
        findings: &mut Vec<Finding>,
    ) {
        let stands =
            |sid: &Sid| state.shape(*sid).is_some_and(|shape| shape.suspected && !shape.pending.is_empty());
        self.suspected.retain(|sid, _| stands(sid));
        for (sid, (since, within)) in &self.suspected {
            if now.since(*since) > *within && self.told.insert(*sid) {
                let detail = format!("shape {sid} is suspected since {since} and neither gets on nor ends");
                findings.push((Invariant::F3, Some(*sid), None, detail));
            }
        }
        let Some((oldest, sid)) = projections.flush_tracker.blockers().next() else {
            self.told.clear();
            return;
        };
        let Some(shape) = state.shape(sid) else { return };
        let arrived = state.window.get(oldest).is_some_and(|txn| txn.lsn <= state.stream.received);
        let at_work = matches!(shape.writer, Writer::Live { .. }) && shape.visible.is_some();
        let since = shape.progressed_at.max(self.streaming_since);
        let named_within = self.grace.saturating_mul(NAMED_TIMES).max(NAMED_WITHIN);
        let silent = !shape.suspected && now.since(since) > named_within;
        if arrived && at_work && silent && self.told.insert(sid) {
            let detail = format!("shape {sid} holds the log at {oldest} since {since}, and nobody says so");
            findings.push((Invariant::F10, Some(sid), None, detail));
        }
    }
}

/// F3: a suspicion is about what the shape owes first.
fn check_owed(shape: Option<&Shape>, sid: Sid, oldest: Seq, findings: &mut Vec<Finding>) {
    let Some(shape) = shape else { return };
    if shape.pending.front() != Some(&oldest) {
        check_flushed(shape, sid, Some(oldest), findings);
        let detail = format!("shape {sid} is suspected for {oldest}, which is not what it owes first");
        findings.push((Invariant::F3, Some(sid), None, detail));
    }
}

/// F7: what has been flushed, by however much more, is not owed.
fn check_flushed(shape: &Shape, sid: Sid, oldest: Option<Seq>, findings: &mut Vec<Finding>) {
    if let Some(oldest) = oldest.filter(|oldest| *oldest <= shape.flushed) {
        let detail = format!("shape {sid} is held to owe {oldest}, and has flushed up to {}", shape.flushed);
        findings.push((Invariant::F7, Some(sid), None, detail));
    }
}

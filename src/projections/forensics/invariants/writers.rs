//! For whom a flush counts: a writer that has begun (S3), that was handed what it is said to have flushed
//! (S4), and whose files have not failed (F8).

use std::collections::{BTreeMap, BTreeSet};

use super::Finding;
use crate::domain::{Seq, Sid};
use crate::events::{
    ConsumerEvent, Event, FileKind, FlushEvent, OwnershipEvent, Recorded, ShapeEvent, Stage, StreamEvent,
};
use crate::projections::Projections;
use crate::projections::forensics::Invariant;
use crate::state::{State, Writer};

#[derive(Clone, Debug, Default)]
pub(super) struct Writers {
    /// What a living writer owes and was not handed: it was on its way to end, or the stream has yet to
    /// bring it again.
    withheld: BTreeMap<Sid, BTreeSet<Seq>>,
    /// Shapes whose log could not be written or synced, until their next writer.
    faulted: BTreeSet<Sid>,
}

impl Writers {
    pub(super) fn before(
        &mut self,
        state: &State,
        projections: &Projections,
        recorded: &Recorded,
        findings: &mut Vec<Finding>,
    ) {
        match &recorded.event {
            Event::Flush(FlushEvent::Flushed { shapes }) => {
                for (sid, upto) in shapes {
                    self.flushed(state, *sid, *upto, findings);
                }
            }
            Event::Flush(FlushEvent::Watermark { upto, except }) => {
                let owing = projections.flush_tracker.blockers().take_while(|(oldest, _)| oldest <= upto);
                for (_, sid) in owing {
                    let upto = match except.binary_search_by_key(&sid, |(sid, _)| *sid) {
                        Ok(index) => except[index].1,
                        Err(_) => *upto,
                    };
                    self.flushed(state, sid, upto, findings);
                }
            }
            Event::Stream(StreamEvent::TxnRedelivered { seq, set, .. }) => {
                let settled = |sid: &Sid| {
                    let shape = state.shape(*sid);
                    shape.is_none_or(|shape| shape.pending.binary_search(seq).is_err())
                };
                if let Some(sid) = set.iter().find(settled) {
                    let detail = format!("{seq} is handed out again to shape {sid}, which does not owe it");
                    findings.push((Invariant::S2, Some(sid), None, detail));
                }
            }
            Event::Shape(ShapeEvent::Gone { sid }) => {
                let owed = state.shape(*sid).and_then(|shape| shape.pending.front());
                if let Some(owed) = owed {
                    let detail = format!("shape {sid} goes and owes {owed}");
                    findings.push((Invariant::S2, Some(*sid), None, detail));
                }
            }
            Event::Ownership(OwnershipEvent::StorageFault {
                stage: Stage::Write | Stage::Sync,
                file: FileKind::ShapeLog | FileKind::Index,
                sid: Some(sid),
                ..
            }) => {
                self.faulted.insert(*sid);
            }
            Event::Ownership(OwnershipEvent::Acquired { .. }) => *self = Writers::default(),
            Event::Ownership(_)
            | Event::Stream(_)
            | Event::Shape(_)
            | Event::Consumer(_)
            | Event::Flush(_)
            | Event::Journal(_) => {}
        }
    }

    pub(super) fn after(&mut self, state: &State, recorded: &Recorded) {
        match &recorded.event {
            Event::Stream(StreamEvent::TxnRouted { seq, set, .. }) => {
                let ending = |sid: &Sid| {
                    state.shape(*sid).is_some_and(|s| matches!(s.writer, Writer::Stopping { .. }))
                };
                for sid in set.iter().filter(ending) {
                    self.withheld.entry(sid).or_default().insert(*seq);
                }
            }
            Event::Stream(StreamEvent::TxnRedelivered { seq, set, .. }) => {
                let alive =
                    |sid: &Sid| state.shape(*sid).is_some_and(|s| matches!(s.writer, Writer::Live { .. }));
                for sid in set.iter().filter(alive) {
                    if let Some(withheld) = self.withheld.get_mut(&sid) {
                        withheld.remove(seq);
                    }
                }
            }
            Event::Consumer(ConsumerEvent::Started { sid, .. }) => {
                self.faulted.remove(sid);
                let to_come =
                    |seq: &&Seq| state.window.get(**seq).is_none_or(|txn| txn.lsn > state.stream.received);
                let pending = state.shape(*sid).map(|shape| &shape.pending);
                let withheld: BTreeSet<Seq> =
                    pending.into_iter().flatten().filter(to_come).copied().collect();
                self.withheld.remove(sid);
                if !withheld.is_empty() {
                    self.withheld.insert(*sid, withheld);
                }
            }
            Event::Consumer(ConsumerEvent::Exited { sid, .. })
            | Event::Shape(ShapeEvent::Invalidated { sid, .. }) => {
                self.withheld.remove(sid);
                self.faulted.remove(sid);
            }
            Event::Stream(_)
            | Event::Consumer(_)
            | Event::Shape(_)
            | Event::Ownership(_)
            | Event::Flush(_)
            | Event::Journal(_) => {}
        }
    }

    /// A flush says that the shape holds all up to `upto`.
    fn flushed(&self, state: &State, sid: Sid, upto: Seq, findings: &mut Vec<Finding>) {
        let Some(shape) = state.shape(sid) else { return };
        let Some(oldest) = shape.pending.front().filter(|oldest| **oldest <= upto) else { return };
        let mut broken = |invariant, detail: &str| {
            let detail = format!("shape {sid} is said to have flushed {oldest}, {detail}");
            findings.push((invariant, Some(sid), None, detail));
        };
        if shape.visible.is_none() {
            broken(Invariant::N1, "and what its snapshot contains is not known yet");
        }
        match shape.writer {
            Writer::Absent => broken(Invariant::S3, "and has no writer"),
            Writer::Live { ready: false, .. } => broken(Invariant::S3, "and its writer has not begun"),
            Writer::Live { .. } | Writer::Stopping { .. } => {}
        }
        if self.faulted.contains(&sid) {
            broken(Invariant::F8, "and its log could not be written");
        }
        if let Some(seq) = self.withheld.get(&sid).and_then(|withheld| withheld.range(..=upto).next()) {
            broken(Invariant::S4, &format!("and its writer was not handed {seq}"));
        }
    }
}

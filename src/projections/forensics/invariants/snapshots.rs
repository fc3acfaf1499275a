//! What a snapshot rests on: its table was published (N3), it has what was decoded before (N4), what waits
//! for it is bounded (N5), and its files were written (N6).

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use super::Finding;
use crate::domain::{Lsn, Oid, PgSnapshot, Sid, Timestamp, Xid};
use crate::events::{Event, FileKind, OwnershipEvent, Recorded, ShapeEvent, Stage, StreamEvent};
use crate::projections::forensics::Invariant;
use crate::state::State;

/// Transactions that may wait for one snapshot: the default of the engine, which no setting changes.
const WAITING_MAX: usize = 100_000;
/// Commits that are remembered, and for how long: a commit that takes longer to become visible is beyond
/// what is promised.
const RECENT_MAX: usize = 4_096;
const RECENT_FOR: Duration = Duration::from_secs(60);

#[derive(Clone, Debug, Default)]
pub(super) struct Snapshots {
    /// Shapes whose table was said to be published since their last attempt failed.
    published: BTreeSet<Sid>,
    /// Shapes whose snapshot could not be written since the last attempt began.
    faulted: BTreeSet<Sid>,
    /// Commits that some shape wanted, with the tables of those shapes.
    recent: VecDeque<Recent>,
}

#[derive(Clone, Debug)]
struct Recent {
    at: Timestamp,
    lsn: Lsn,
    xid: Xid,
    tables: Vec<Oid>,
}

impl Snapshots {
    pub(super) fn before(&mut self, state: &State, recorded: &Recorded, findings: &mut Vec<Finding>) {
        match &recorded.event {
            Event::Shape(event) => self.shape(state, recorded, event, findings),
            Event::Stream(StreamEvent::TxnRouted { lsn, xid, set, .. }) => {
                let mut tables: Vec<Oid> =
                    set.iter().filter_map(|sid| state.shape(sid).map(|shape| shape.oid)).collect();
                tables.sort_unstable();
                tables.dedup();
                self.remember(Recent { at: recorded.at, lsn: *lsn, xid: *xid, tables });
                for sid in set.iter() {
                    let waiting = state.shape(sid).filter(|shape| shape.visible.is_none());
                    let waiting = waiting.map_or(0, |shape| shape.pending.len());
                    if waiting > WAITING_MAX {
                        let detail = format!("{waiting} transactions wait for the snapshot of shape {sid}");
                        findings.push((Invariant::N5, Some(sid), None, detail));
                    }
                }
            }
            // Positions and ids of another history say nothing; of a process before, nothing is promised.
            Event::Stream(StreamEvent::HistoryBroken { .. })
            | Event::Ownership(OwnershipEvent::Acquired { .. }) => *self = Snapshots::default(),
            Event::Ownership(OwnershipEvent::StorageFault {
                stage: Stage::Write | Stage::Sync | Stage::Rename,
                file: FileKind::Snapshot,
                sid: Some(sid),
                ..
            }) => {
                self.faulted.insert(*sid);
            }
            Event::Stream(_)
            | Event::Ownership(_)
            | Event::Consumer(_)
            | Event::Flush(_)
            | Event::Journal(_) => {}
        }
    }

    fn shape(&mut self, state: &State, recorded: &Recorded, event: &ShapeEvent, findings: &mut Vec<Finding>) {
        let sid = event.sid();
        match event {
            ShapeEvent::PublicationReady { oid, .. } => {
                if state.shape(sid).is_some_and(|shape| shape.oid != *oid) {
                    let detail = format!("table {oid} is published for shape {sid}, which is on another");
                    findings.push((Invariant::N3, Some(sid), None, detail));
                }
                self.published.insert(sid);
            }
            ShapeEvent::SnapshotVisible { snapshot, lsn, .. } => {
                if !self.published.contains(&sid) {
                    let detail = format!("the table of shape {sid} was not said to be published");
                    findings.push((Invariant::N3, Some(sid), None, detail));
                }
                if let Some(lacking) = self.lacking(state, sid, (snapshot, *lsn), recorded.at) {
                    let detail = format!("shape {sid} has {lacking} neither in its snapshot nor to come");
                    findings.push((Invariant::N4, Some(sid), None, detail));
                }
            }
            ShapeEvent::SnapshotStarted { .. } => {
                self.faulted.remove(&sid);
            }
            ShapeEvent::SnapshotFailed { .. } => {
                self.published.remove(&sid);
            }
            ShapeEvent::SnapshotCompleted { .. } => {
                if self.faulted.contains(&sid) {
                    let detail = format!("the snapshot of shape {sid} could not be written");
                    findings.push((Invariant::N6, Some(sid), None, detail));
                }
            }
            ShapeEvent::Invalidated { .. } | ShapeEvent::Gone { .. } => {
                self.published.remove(&sid);
                self.faulted.remove(&sid);
            }
            ShapeEvent::Created { .. }
            | ShapeEvent::Depends { .. }
            | ShapeEvent::Routed { .. }
            | ShapeEvent::Unrouted { .. }
            | ShapeEvent::Compacted { .. }
            | ShapeEvent::StepDone { .. } => {}
        }
    }

    /// A commit to the table of the shape that came before it was routed to, and that its snapshot lacks.
    /// One at or above the position of the snapshot is of another history: that is told of otherwise.
    fn lacking(
        &self,
        state: &State,
        sid: Sid,
        (snapshot, bound): (&PgSnapshot, Lsn),
        now: Timestamp,
    ) -> Option<Lsn> {
        let shape = state.shape(sid)?;
        let (_, after) = shape.routed_after?;
        let concerns = |recent: &&Recent| {
            let known = now.since(recent.at) <= RECENT_FOR && recent.lsn < bound;
            known && recent.lsn <= after && recent.tables.binary_search(&shape.oid).is_ok()
        };
        let mut before = self.recent.iter().filter(concerns);
        before.find(|recent| !snapshot.sees(recent.xid)).map(|recent| recent.lsn)
    }

    fn remember(&mut self, recent: Recent) {
        if self.recent.len() == RECENT_MAX {
            self.recent.pop_front();
        }
        self.recent.push_back(recent);
    }
}

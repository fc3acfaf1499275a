//! Who holds the write-ahead log, and how far Postgres may be told that all is flushed.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;

use crate::domain::{Lsn, Seq, Sid};
use crate::events::{Event, FlushEvent, ProjectionName, Recorded, ShapeEvent, StreamEvent};
use crate::projections::Projection;
use crate::state::State;

/// The shapes that owe something, by the oldest transaction that each owes.
///
/// A shape blocks exactly its oldest pending transaction; the acknowledgement stands at the oldest
/// that is blocked by any.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct FlushTracker {
    by_oldest: BTreeMap<Seq, BTreeSet<Sid>>,
    oldest: BTreeMap<Sid, Seq>,
    candidate: Lsn,
}

impl FlushTracker {
    /// The position up to which, exclusively, everything is flushed by every shape: a transaction
    /// boundary (F5, F9). Postgres may be told this much, once it is durable in the journal.
    #[must_use]
    pub fn candidate(&self) -> Lsn {
        self.candidate
    }

    /// Shapes that owe something, the longest-owing first.
    pub fn blockers(&self) -> impl Iterator<Item = (Seq, Sid)> + '_ {
        self.by_oldest.iter().flat_map(|(seq, sids)| sids.iter().map(|sid| (*seq, *sid)))
    }

    /// Number of shapes that owe something.
    #[must_use]
    pub fn pending_shapes(&self) -> usize {
        self.oldest.len()
    }

    /// Whether a part of it, and where the acknowledgement may stand, is what the state says.
    pub(super) fn agrees(&self, state: &State, part: RangeInclusive<Sid>) -> bool {
        let whole = *part.end() >= Sid(u32::MAX - 1);
        let owing = super::part_of(state, part.clone())
            .filter_map(|(sid, shape)| Some((sid, shape.pending.front().copied()?)));
        let filed = |(sid, seq): (Sid, Seq)| self.by_oldest.get(&seq).is_some_and(|sids| sids.contains(&sid));
        owing.clone().all(filed)
            && owing.eq(self.oldest.range(part).map(|(sid, seq)| (*sid, *seq)))
            && self.candidate == candidate(state)
            // Nothing is filed that is not owed: there are as many of both.
            && (!whole || self.by_oldest.values().map(BTreeSet::len).sum::<usize>() == self.oldest.len())
    }

    #[cfg(any(test, feature = "test-hooks"))]
    pub(super) fn meddle(&mut self) {
        self.candidate = Lsn(self.candidate.0.saturating_sub(1));
        self.by_oldest.entry(Seq(1)).or_default().insert(Sid(u32::MAX - 1));
    }

    fn follow(&mut self, state: &State, sid: Sid) {
        let now = state.shape(sid).and_then(|shape| shape.pending.front().copied());
        let before = self.oldest.get(&sid).copied();
        if now == before {
            return;
        }
        if let Some(seq) = before {
            let emptied = self.by_oldest.get_mut(&seq).is_some_and(|sids| {
                sids.remove(&sid);
                sids.is_empty()
            });
            if emptied {
                self.by_oldest.remove(&seq);
            }
        }
        match now {
            Some(seq) => {
                self.oldest.insert(sid, seq);
                self.by_oldest.entry(seq).or_default().insert(sid);
            }
            None => {
                self.oldest.remove(&sid);
            }
        }
    }
}

/// Everything before is flushed: one past the newest commit that precedes what is owed.
fn candidate(state: &State) -> Lsn {
    if !state.window.is_empty() {
        return state.window.boundary();
    }
    match state.stream.routed {
        Lsn(0) => Lsn(0),
        routed => Lsn(routed.0.saturating_add(1)),
    }
}

impl Projection for FlushTracker {
    const NAME: ProjectionName = ProjectionName::FlushTracker;

    fn apply(&mut self, state: &State, recorded: &Recorded) {
        match &recorded.event {
            Event::Stream(StreamEvent::TxnRouted { set, .. }) => {
                for sid in set.iter() {
                    self.follow(state, sid);
                }
            }
            Event::Flush(FlushEvent::Flushed { shapes }) => {
                for (sid, _) in shapes {
                    self.follow(state, *sid);
                }
            }
            Event::Flush(FlushEvent::Watermark { upto, .. }) => {
                let moved: Vec<Sid> =
                    self.by_oldest.range(..=*upto).flat_map(|(_, sids)| sids).copied().collect();
                for sid in moved {
                    self.follow(state, sid);
                }
            }
            Event::Shape(
                ShapeEvent::SnapshotVisible { sid, .. }
                | ShapeEvent::Invalidated { sid, .. }
                | ShapeEvent::Gone { sid },
            ) => self.follow(state, *sid),
            Event::Shape(_)
            | Event::Stream(_)
            | Event::Flush(_)
            | Event::Ownership(_)
            | Event::Consumer(_)
            | Event::Journal(_) => {}
        }
        self.candidate = candidate(state);
    }

    fn recompute(state: &State) -> FlushTracker {
        let mut tracker = FlushTracker::default();
        for sid in state.shapes.keys() {
            tracker.follow(state, *sid);
        }
        tracker.candidate = candidate(state);
        tracker
    }
}

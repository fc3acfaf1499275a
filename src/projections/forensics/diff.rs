//! What is different between two moments.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::domain::{EventId, Handle, Lsn, Seq, Sid, Timestamp};
use crate::projections::forensics::holding::{Payer, gap, payer};
use crate::state::{Life, State};

/// How a shape stands at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Standing {
    /// Owes this transaction, and nobody is there to pay.
    Stuck { oldest: Seq },
    /// Owes something that somebody works on.
    Owing,
    /// Owes nothing.
    Settled,
}

/// One of the two moments.
#[derive(Clone, Debug, PartialEq)]
pub struct Moment {
    pub at: EventId,
    pub time: Timestamp,
    pub received: Lsn,
    pub boundary: Lsn,
    pub acked: Lsn,
    pub gap_bytes: u64,
    pub shapes: usize,
    pub owing: usize,
    pub epoch: u64,
}

/// One group of shapes over time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GroupChange {
    pub before: usize,
    pub after: usize,
    /// Shapes that stand as they stood.
    pub stayed: usize,
    /// Shapes that do not exist any more, or are being removed.
    pub removed: usize,
    /// Shapes that stand otherwise now.
    pub moved: usize,
    /// Shapes that are in the group now and existed before, outside of it.
    pub joined: usize,
    /// Shapes that did not exist before.
    pub created: usize,
}

/// The answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Diff {
    pub before: Moment,
    pub after: Moment,
    pub elapsed: Duration,
    /// By transaction.
    pub stuck: BTreeMap<Seq, (Lsn, GroupChange)>,
    pub owing: GroupChange,
    pub settled: GroupChange,
    pub removed: Vec<Handle>,
    pub created: Vec<Handle>,
}

impl Diff {
    #[must_use]
    pub fn between(before: &State, after: &State) -> Diff {
        let (old, new) = (standings(before), standings(after));
        let mut stuck: BTreeMap<Seq, (Lsn, GroupChange)> = BTreeMap::new();
        for (state, standings) in [(before, &old), (after, &new)] {
            for standing in standings.values() {
                if let Standing::Stuck { oldest } = standing {
                    let lsn = state.window.get(*oldest).map_or(Lsn(0), |txn| txn.lsn);
                    stuck.entry(*oldest).or_insert((lsn, GroupChange::default()));
                }
            }
        }
        for (seq, (_, change)) in &mut stuck {
            *change = group(&old, &new, |standing| standing == Standing::Stuck { oldest: *seq });
        }
        let handle = |state: &State, sid: &Sid| state.shapes.get(sid).map(|shape| shape.handle);
        Diff {
            elapsed: after.at.since(before.at),
            stuck,
            owing: group(&old, &new, |standing| standing == Standing::Owing),
            settled: group(&old, &new, |standing| standing == Standing::Settled),
            removed: old
                .keys()
                .filter(|sid| !new.contains_key(sid))
                .filter_map(|sid| handle(before, sid))
                .collect(),
            created: new
                .keys()
                .filter(|sid| !old.contains_key(sid))
                .filter_map(|sid| handle(after, sid))
                .collect(),
            before: moment(before, &old),
            after: moment(after, &new),
        }
    }

    /// How much faster Postgres writes than we let go, in bytes.
    #[must_use]
    pub fn gap_delta(&self) -> i128 {
        i128::from(self.after.gap_bytes) - i128::from(self.before.gap_bytes)
    }

    /// Bytes a second; `None` where no time has passed.
    #[must_use]
    pub fn gap_rate(&self) -> Option<f64> {
        let seconds = self.elapsed.as_secs_f64();
        (seconds > 0.0).then(|| self.gap_delta() as f64 / seconds)
    }

    /// How long until the gap is `limit` bytes wide, if it goes on as between the two moments.
    #[must_use]
    pub fn time_to(&self, limit: u64) -> Option<Duration> {
        let rate = self.gap_rate().filter(|rate| *rate > 0.0)?;
        let left = limit.saturating_sub(self.after.gap_bytes) as f64;
        Duration::try_from_secs_f64(left / rate).ok()
    }
}

fn moment(state: &State, standings: &BTreeMap<Sid, Standing>) -> Moment {
    let (received, boundary, gap_bytes) = gap(state);
    Moment {
        at: state.last,
        time: state.at,
        received,
        boundary,
        acked: state.stream.acked,
        gap_bytes,
        shapes: standings.len(),
        owing: standings.values().filter(|standing| **standing != Standing::Settled).count(),
        epoch: state.owner.epoch.0,
    }
}

fn standings(state: &State) -> BTreeMap<Sid, Standing> {
    let living = state.shapes.iter().filter(|(_, shape)| shape.life != Life::Invalidated);
    living
        .map(|(sid, shape)| {
            let standing = match shape.pending.front().copied() {
                None => Standing::Settled,
                Some(oldest) if payer(state, shape, oldest) == Payer::Nobody => Standing::Stuck { oldest },
                Some(_) => Standing::Owing,
            };
            (*sid, standing)
        })
        .collect()
}

fn group(
    old: &BTreeMap<Sid, Standing>,
    new: &BTreeMap<Sid, Standing>,
    belongs: impl Fn(Standing) -> bool,
) -> GroupChange {
    let mut change = GroupChange::default();
    for (sid, standing) in old.iter().filter(|(_, standing)| belongs(**standing)) {
        change.before += 1;
        match new.get(sid) {
            None => change.removed += 1,
            Some(now) if now == standing => change.stayed += 1,
            Some(_) => change.moved += 1,
        }
    }
    for (sid, _) in new.iter().filter(|(_, standing)| belongs(**standing)) {
        change.after += 1;
        match old.get(sid) {
            None => change.created += 1,
            Some(before) if !belongs(*before) => change.joined += 1,
            Some(_) => {}
        }
    }
    change
}

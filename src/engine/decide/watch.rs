//! Deciding about shapes that do not get on. Alive is not progress, slow is not dead, and what happens to
//! all of them is not the fault of any.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::domain::{Lsn, Seq, Sid};
use crate::engine::{Decision, Refusal};
use crate::events::{ConsumerEvent, FlushEvent, InvalidationCause, Part};
use crate::state::{Life, StreamPhase};

/// Shapes that are suspected one by one at a time; of more, only their number matters.
const SUSPECTED_MAX: usize = 1_000;
/// Longest time between two looks.
const LOOK_INTERVAL_MAX: Duration = Duration::from_secs(1);

/// A shape that owes, could have got on, and has not for longer than the grace.
#[derive(Clone, Copy, Debug)]
struct Late {
    sid: Sid,
    oldest: Seq,
    age: Duration,
}

/// What would have to be given up, against what may be.
#[derive(Clone, Copy, Debug)]
struct Weighed {
    due: usize,
    spent: usize,
    allowed: usize,
    allows: bool,
}

impl Decision<'_> {
    /// A shape that owes and does not get on is named, and after as long again given up; unless a part of
    /// the pipeline stands still, which is no shape's fault, or more of them would have to be given up than
    /// may be, which tells the same.
    pub(super) fn watch_progress(&mut self) {
        if self.state().stream.phase != StreamPhase::Streaming {
            return;
        }
        let (now, grace) = (self.now, self.engine.policy.stall_grace);
        let interval = (grace / 16).min(LOOK_INTERVAL_MAX);
        if now.since(self.engine.scratch.watch.looked_at) < interval {
            return;
        }
        self.engine.scratch.watch.looked_at = now;
        let late = self.late();
        self.suspect(&late);
        let suspected = &self.engine.scratch.watch.suspected;
        let due: Vec<Sid> = late
            .iter()
            .filter(|late| late.age > grace.saturating_mul(2))
            .filter(|late| suspected.get(&late.sid).is_none_or(|since| now.since(*since) >= grace))
            .map(|late| late.sid)
            .collect();
        if self.defer(due.len()) || !self.budget_allows(due.len()) {
            return;
        }
        let named = |sid: &Sid| self.state().shape(*sid).is_some_and(|shape| shape.suspected);
        let given_up: Vec<Sid> =
            due.into_iter().filter(named).take(self.engine.policy.stall_invalidations_max).collect();
        for sid in given_up {
            let because = self.last_event();
            let running = self.state().shapes[&sid].life < Life::Live;
            self.invalidate(sid, InvalidationCause::Stalled, Some(because), running);
        }
    }

    /// The shapes that could have got on and have not, the longest-owing first. One whose transaction has
    /// not come yet, or waits in the queue of its thread, or whose snapshot is not open, could not.
    fn late(&self) -> Vec<Late> {
        let (now, grace) = (self.now, self.engine.policy.stall_grace);
        let received = self.state().stream.received;
        let reached = self.engine.scratch.watch.handed.map_or(received, |handed| handed.min(received));
        self.engine
            .projections
            .flush_tracker
            .blockers()
            .filter_map(|(oldest, sid)| {
                let shape = self.state().shape(sid)?;
                let age = now.since(shape.progressed_at);
                let late = age > grace && shape.visible.is_some() && self.has_reached(oldest, reached);
                late.then_some(Late { sid, oldest, age })
            })
            .collect()
    }

    fn has_reached(&self, seq: Seq, reached: Lsn) -> bool {
        self.state().window.get(seq).is_some_and(|txn| txn.lsn <= reached)
    }

    /// Names those that are late, and forgets those that are not any more.
    fn suspect(&mut self, late: &[Late]) {
        let now = self.now;
        let mut known = std::mem::take(&mut self.engine.scratch.watch.suspected);
        let mut suspected = BTreeMap::new();
        for Late { sid, oldest, age } in late.iter().take(SUSPECTED_MAX) {
            let since = known.remove(sid).unwrap_or(now);
            suspected.insert(*sid, since);
            if !self.state().shape(*sid).is_some_and(|shape| shape.suspected) {
                let age_ms = millis(*age);
                self.record(None, ConsumerEvent::StallSuspected { sid: *sid, oldest: *oldest, age_ms });
            }
        }
        self.engine.scratch.watch.suspected = suspected;
    }

    /// Whether nothing is to be given up for now because a part of the pipeline stands still. Not for ever.
    fn defer(&mut self, due: usize) -> bool {
        let (now, grace) = (self.now, self.engine.policy.stall_grace);
        let watch = &mut self.engine.scratch.watch;
        if watch.still.is_empty() {
            watch.deferrals = 0;
            return false;
        }
        if due == 0 || now < watch.deferred_until {
            return due > 0;
        }
        if watch.deferrals >= self.engine.policy.deferrals_max {
            return false;
        }
        watch.deferrals += 1;
        watch.deferred_until = now.plus(grace);
        let (deferral, until) = (watch.deferrals, watch.deferred_until);
        self.record(None, FlushEvent::StallsDeferred { shapes: due as u64, deferral, until });
        true
    }

    /// Whether all that would have to be given up may be: `stalled` shapes that do not get on, and those
    /// whose writers keep failing. Tells when that changes.
    fn budget_allows(&mut self, stalled: usize) -> bool {
        let attempts_max = self.engine.policy.writer_attempts_max;
        let mut worn_out = std::mem::take(&mut self.engine.scratch.watch.worn_out);
        worn_out.retain(|sid| {
            let retry = self.state().shape(*sid).and_then(|shape| shape.retry);
            retry.is_some_and(|retry| retry.attempts > attempts_max)
        });
        let due = stalled + worn_out.len();
        self.engine.scratch.watch.worn_out = worn_out;
        let weighed = self.weigh(due);
        self.tell_budget(weighed);
        weighed.allows
    }

    fn weigh(&self, due: usize) -> Weighed {
        let allowance = self.engine.policy.give_up;
        let allowed = allowance.of(self.state().shapes.len());
        let spent = self.state().owner.budget.spent(self.now, allowance.window);
        Weighed { due, spent, allowed, allows: due == 0 || due + spent <= allowed }
    }

    fn tell_budget(&mut self, weighed: Weighed) {
        match (weighed.allows, self.state().owner.budget.exhausted) {
            (false, None) => {
                let Weighed { due, spent, allowed, .. } = weighed;
                let (due, spent, allowed) = (due as u64, spent as u64, allowed as u64);
                self.record(None, FlushEvent::BudgetExhausted { due, spent, allowed });
            }
            (true, Some((event, since))) => {
                let frozen_ms = millis(self.now.since(since));
                self.record(Some(event), FlushEvent::BudgetRestored { frozen_ms });
            }
            (true, None) | (false, Some(_)) => {}
        }
    }

    /// Whether a shape may be given up whose writer has failed as often as it may. Where not, it is tried
    /// further; see [`Decision::tell_worn_out`].
    pub(super) fn may_give_up_worn_out(&mut self, sid: Sid) -> bool {
        self.engine.scratch.watch.worn_out.remove(&sid);
        let allows = self.weigh(1 + self.engine.scratch.watch.worn_out.len()).allows;
        if !allows {
            self.engine.scratch.watch.worn_out.insert(sid);
        }
        allows
    }

    /// Tells that shapes with worn out writers are kept. After what was decided upon them: what follows an
    /// exit in the journal is the decision upon it (F2).
    pub(super) fn tell_worn_out(&mut self) {
        let weighed = self.weigh(self.engine.scratch.watch.worn_out.len());
        if !weighed.allows {
            self.tell_budget(weighed);
        }
    }

    pub(super) fn stood_still(&mut self, part: Part, still: Duration) -> Result<(), Refusal> {
        self.require_owned()?;
        if self.engine.scratch.watch.still.insert(part) {
            self.record(None, FlushEvent::ProgressStopped { part, still_ms: millis(still) });
        }
        Ok(())
    }

    pub(super) fn went_on(&mut self, part: Part, still: Duration) -> Result<(), Refusal> {
        self.require_owned()?;
        if self.engine.scratch.watch.still.remove(&part) {
            self.record(None, FlushEvent::ProgressResumed { part, still_ms: millis(still) });
        }
        Ok(())
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

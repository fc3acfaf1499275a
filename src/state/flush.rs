//! The fold of flush events.

use crate::domain::{Seq, Sid};
use crate::events::{FlushEvent, Recorded};
use crate::state::State;

impl State {
    pub(super) fn apply_flush(&mut self, recorded: &Recorded, event: &FlushEvent) {
        match event {
            FlushEvent::BudgetExhausted { .. } => {
                self.owner.budget.exhausted = Some((recorded.id, recorded.at));
            }
            FlushEvent::BudgetSpent { .. } => self.owner.budget.spend(recorded.at),
            FlushEvent::BudgetRestored { .. } => self.owner.budget.exhausted = None,
            // What they lead to is in other events.
            FlushEvent::StallsDeferred { .. }
            | FlushEvent::ProgressStopped { .. }
            | FlushEvent::ProgressResumed { .. } => {}
            FlushEvent::Flushed { shapes } => {
                for (sid, upto) in shapes {
                    self.flushed(recorded, *sid, *upto);
                }
            }
            FlushEvent::Watermark { upto, except } => {
                // Only shapes with something pending at or below the mark can be moved by it; each
                // pair is visited once, when it is discharged.
                let mut shapes: Vec<Sid> = Vec::new();
                for (_, txn) in self.window.iter().take_while(|(seq, _)| seq <= upto) {
                    if txn.owed > 0 {
                        shapes.extend(txn.set.iter());
                    }
                }
                for sid in shapes {
                    let upto = match except.binary_search_by_key(&sid, |(sid, _)| *sid) {
                        Ok(index) => except[index].1,
                        Err(_) => *upto,
                    };
                    self.flushed(recorded, sid, upto);
                }
            }
        }
        self.window.trim();
    }

    fn flushed(&mut self, recorded: &Recorded, sid: Sid, upto: Seq) {
        let Some(shape) = self.shapes.get_mut(&sid) else { return };
        while let Some(seq) = shape.pending.front().copied()
            && seq <= upto
        {
            shape.pending.pop_front();
            shape.progressed_at = recorded.at;
            shape.suspected = false;
            // The transaction that it kept failing on is behind it.
            if shape.retry.is_some_and(|retry| retry.seq <= seq) {
                shape.retry = None;
            }
            self.window.discharge(seq);
        }
        shape.flushed = shape.flushed.max(upto);
    }
}

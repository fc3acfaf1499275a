//! Deciding what a group flush means.

use std::collections::BTreeMap;

use crate::domain::{Seq, Sid};
use crate::engine::{Decision, FlushReport, Refusal};
use crate::events::FlushEvent;

impl Decision<'_> {
    pub(super) fn flushed(&mut self, reports: &[FlushReport]) -> Result<(), Refusal> {
        self.require_owned()?;
        let mut flushed: BTreeMap<Sid, Seq> = BTreeMap::new();
        for report in reports {
            // A replaced writer may still have reports on the way; its successor reports for itself.
            let current = self.engine.projections.registry.get(report.sid) == Some(report.incarnation);
            if current {
                let upto = flushed.entry(report.sid).or_insert(report.upto);
                *upto = (*upto).max(report.upto);
            }
        }
        let Some(newest) = flushed.values().max().copied() else {
            return if reports.is_empty() { Ok(()) } else { Err(Refusal::StaleIncarnation) };
        };
        let event = self.watermark(newest, &flushed).unwrap_or_else(|| FlushEvent::Flushed {
            shapes: flushed.iter().map(|(sid, upto)| (*sid, *upto)).collect(),
        });
        self.record(None, event);
        Ok(())
    }

    /// The flush as a mark with exceptions, where that is the shorter way to say it.
    fn watermark(&self, upto: Seq, flushed: &BTreeMap<Sid, Seq>) -> Option<FlushEvent> {
        let mut except = Vec::new();
        for (oldest, sid) in self.engine.projections.flush_tracker.blockers() {
            if oldest > upto {
                break;
            }
            match flushed.get(&sid) {
                Some(own) if *own >= upto => {}
                Some(own) => except.push((sid, *own)),
                None => except.push((sid, self.state().shape(sid)?.flushed)),
            }
            if except.len() >= flushed.len() {
                return None;
            }
        }
        except.sort_unstable();
        Some(FlushEvent::Watermark { upto, except })
    }
}

//! How much of what there is, and how fast it came.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::domain::{EventId, Timestamp};
use crate::events::{Event, Recorded, StreamEvent};

/// Totals over a history.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Stats {
    pub events: u64,
    pub bytes: u64,
    pub first: Option<(EventId, Timestamp)>,
    pub last: Option<(EventId, Timestamp)>,
    /// Events and bytes by kind.
    pub kinds: BTreeMap<&'static str, (u64, u64)>,
    /// Most events in one second of the wall clock, and the second.
    pub peak: (u64, Timestamp),
    pub transactions: u64,
    pub changes: u64,
    /// Pairs of a transaction and a shape that must hold it.
    pub deliveries: u64,
    second: (u64, i64),
}

impl Stats {
    /// `bytes`: of the record.
    pub fn add(&mut self, recorded: &Recorded, bytes: usize) {
        self.events += 1;
        self.bytes += bytes as u64;
        self.first.get_or_insert((recorded.id, recorded.at));
        self.last = Some((recorded.id, recorded.at));
        let kind = self.kinds.entry(recorded.event.name()).or_default();
        kind.0 += 1;
        kind.1 += bytes as u64;
        let second = recorded.at.0.div_euclid(1_000_000);
        if self.second.1 != second {
            self.second = (0, second);
        }
        self.second.0 += 1;
        if self.second.0 > self.peak.0 {
            self.peak = (self.second.0, Timestamp(second * 1_000_000));
        }
        match &recorded.event {
            Event::Stream(StreamEvent::TxnRouted { changes, set, .. }) => {
                self.transactions += 1;
                self.changes += changes;
                self.deliveries += set.len() as u64;
            }
            Event::Stream(StreamEvent::RoutedNothing { txns, .. }) => self.transactions += txns,
            Event::Stream(_)
            | Event::Ownership(_)
            | Event::Shape(_)
            | Event::Consumer(_)
            | Event::Flush(_)
            | Event::Journal(_) => {}
        }
    }

    /// From the first to the last event.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        match (self.first, self.last) {
            (Some((_, first)), Some((_, last))) => last.since(first),
            _ => Duration::ZERO,
        }
    }
}

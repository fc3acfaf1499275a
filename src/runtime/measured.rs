//! A journal whose work is timed.

use std::sync::Arc;
use std::time::Instant;

use crate::domain::EventId;
use crate::journal::{Checkpoint, Entry, Journal, JournalError};
use crate::runtime::watchdog::Pulse;
use crate::telemetry::Metrics;

/// Does what the journal in it does, and counts it.
pub(super) struct Measured<J> {
    pub journal: J,
    pub metrics: Arc<Metrics>,
    /// Beats while it works.
    pub pulse: Arc<Pulse>,
}

impl<J: Journal> Journal for Measured<J> {
    fn append(&mut self, batch: &[Entry]) -> Result<(), JournalError> {
        let begun = Instant::now();
        self.pulse.begin();
        let result = self.journal.append(batch);
        self.pulse.end();
        self.metrics.journal_append_seconds.observe(begun.elapsed().as_secs_f64());
        self.metrics.journal_entries.inc_by(batch.len() as u64);
        result
    }

    fn sync(&mut self) -> Result<EventId, JournalError> {
        let begun = Instant::now();
        self.pulse.begin();
        let result = self.journal.sync();
        self.pulse.end();
        self.metrics.journal_sync_seconds.observe(begun.elapsed().as_secs_f64());
        result
    }

    fn read(&self, from: EventId) -> Box<dyn Iterator<Item = Result<Entry, JournalError>> + '_> {
        self.journal.read(from)
    }

    fn last(&self) -> EventId {
        self.journal.last()
    }

    fn checkpoint(&mut self, upto: EventId, state: &[u8]) -> Result<(), JournalError> {
        self.pulse.begin();
        let result = self.journal.checkpoint(upto, state);
        self.pulse.end();
        result
    }

    fn checkpoints(&self) -> Result<Vec<Checkpoint>, JournalError> {
        self.journal.checkpoints()
    }

    fn trim(&mut self, before: EventId) -> Result<EventId, JournalError> {
        self.journal.trim(before)
    }
}

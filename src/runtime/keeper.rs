//! When the state is saved, and what becomes of the journal before it.

use std::time::{Duration, Instant};

use crate::domain::EventId;
use crate::events::JournalEvent;
use crate::runtime::settings::Settings;
use crate::state::State;

/// Watches over checkpoints.
#[derive(Debug)]
pub struct Keeper {
    every_events: u64,
    interval: Duration,
    saved: EventId,
    saved_at: Instant,
    /// Asked for and not confirmed yet: position, checksum and length of the state.
    asked: Option<(EventId, u32, u64)>,
}

impl Keeper {
    /// A keeper of a journal whose newest checkpoint is at `saved`.
    #[must_use]
    pub fn new(settings: &Settings, saved: EventId) -> Keeper {
        Keeper {
            every_events: settings.checkpoint_events,
            interval: settings.checkpoint_interval,
            saved,
            saved_at: Instant::now(),
            asked: None,
        }
    }

    /// The state to save, if it is time.
    pub fn due(&mut self, state: &State) -> Option<(EventId, Vec<u8>)> {
        let events = state.last.0.saturating_sub(self.saved.0);
        // Its own note is one event: it alone is no reason for the next.
        let late = events > 1 && self.saved_at.elapsed() >= self.interval;
        if self.asked.is_some() || (events < self.every_events && !late) {
            return None;
        }
        let bytes = state.to_bytes();
        self.asked = Some((state.last, crc32c::crc32c(&bytes), bytes.len() as u64));
        Some((state.last, bytes))
    }

    /// A checkpoint is saved: the note of it for the journal.
    pub fn checkpointed(&mut self, upto: EventId) -> Option<JournalEvent> {
        let (asked, checksum, bytes) = self.asked.take_if(|(asked, ..)| *asked == upto)?;
        self.saved = asked;
        self.saved_at = Instant::now();
        Some(JournalEvent::StateSnapshot { upto, checksum, bytes })
    }
}

//! The journal of the simulator: what is durable and what is not are two things, and a crash tells them
//! apart.

use crate::domain::EventId;

use super::error::{JournalError, Stage};
use super::{Checkpoint, Entry, Journal, check_batch, check_checkpoint};

/// The `nth` call (from 1, counted over the whole life of the journal) of one operation fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FailPoint {
    /// Only [`Stage::Append`], [`Stage::Sync`] and [`Stage::Checkpoint`] have fail points.
    pub stage: Stage,
    pub nth: u64,
}

#[derive(Clone, Debug, Default)]
pub struct MemoryJournal {
    /// Everything appended and kept; the first `durable` of them are on "disk".
    entries: Vec<Entry>,
    durable: usize,
    /// Ends (as an index into `entries`) of the batches that are not durable, ascending: sled may persist a
    /// prefix of them, never a part of one.
    volatile_ends: Vec<usize>,
    /// Id before `entries[0]`.
    base: EventId,
    /// Oldest first, at most two; durable when written.
    checkpoints: Vec<Checkpoint>,
    fail_points: Vec<FailPoint>,
    appends: u64,
    syncs: u64,
    checkpointings: u64,
    poisoned: bool,
}

impl MemoryJournal {
    #[must_use]
    pub fn new() -> MemoryJournal {
        MemoryJournal::default()
    }

    pub fn fail_at(&mut self, point: FailPoint) {
        self.fail_points.push(point);
    }

    /// Last id that a crash cannot take away.
    #[must_use]
    pub fn durable(&self) -> EventId {
        EventId(self.base.0 + self.durable as u64)
    }

    /// The process dies and another opens what is left: all that was synced and, of what was not, the
    /// longest run of whole batches within `keep_volatile` entries. Poison and the fail points that struck
    /// are gone, those ahead stay.
    pub fn crash(&mut self, keep_volatile: usize) {
        let limit = self.durable.saturating_add(keep_volatile);
        let kept = self.volatile_ends.iter().copied().take_while(|end| *end <= limit).last();
        self.entries.truncate(kept.unwrap_or(self.durable));
        self.durable = self.entries.len();
        self.volatile_ends.clear();
        self.poisoned = false;
    }

    /// Counts a call and fails it where a fail point says so.
    fn enter(&mut self, stage: Stage) -> Result<(), JournalError> {
        if self.poisoned {
            return Err(JournalError::Poisoned);
        }
        let count = match stage {
            Stage::Append => &mut self.appends,
            Stage::Sync => &mut self.syncs,
            Stage::Checkpoint => &mut self.checkpointings,
            Stage::Open
            | Stage::Read
            | Stage::Trim
            | Stage::Seal
            | Stage::Retain
            | Stage::Reserve
            | Stage::Copy => return Ok(()),
        };
        *count += 1;
        let nth = *count;
        if self.fail_points.contains(&FailPoint { stage, nth }) {
            self.poisoned = true;
            return Err(JournalError::Injected { stage });
        }
        Ok(())
    }

    fn make_durable(&mut self) {
        self.durable = self.entries.len();
        self.volatile_ends.clear();
    }
}

impl Journal for MemoryJournal {
    fn append(&mut self, batch: &[Entry]) -> Result<(), JournalError> {
        if self.poisoned {
            return Err(JournalError::Poisoned);
        }
        check_batch(self.last(), batch)?;
        if batch.is_empty() {
            return Ok(());
        }
        self.enter(Stage::Append)?;
        self.entries.extend_from_slice(batch);
        self.volatile_ends.push(self.entries.len());
        Ok(())
    }

    fn sync(&mut self) -> Result<EventId, JournalError> {
        self.enter(Stage::Sync)?;
        self.make_durable();
        Ok(self.last())
    }

    fn read(&self, from: EventId) -> Box<dyn Iterator<Item = Result<Entry, JournalError>> + '_> {
        Box::new(self.entries.iter().filter(move |entry| entry.id >= from).cloned().map(Ok))
    }

    fn last(&self) -> EventId {
        EventId(self.base.0 + self.entries.len() as u64)
    }

    fn checkpoint(&mut self, upto: EventId, state: &[u8]) -> Result<(), JournalError> {
        if self.poisoned {
            return Err(JournalError::Poisoned);
        }
        let newest = self.checkpoints.last().map_or(EventId(0), |saved| saved.upto);
        check_checkpoint(newest, upto, self.last(), state)?;
        // As in the real one: the entries are synced first, and a failure may come after that.
        self.make_durable();
        self.enter(Stage::Checkpoint)?;
        self.checkpoints.push(Checkpoint { upto, state: state.to_vec() });
        if self.checkpoints.len() > super::checkpoint::CHECKPOINTS_KEPT {
            self.checkpoints.remove(0);
        }
        Ok(())
    }

    fn checkpoints(&self) -> Result<Vec<Checkpoint>, JournalError> {
        Ok(self.checkpoints.iter().rev().cloned().collect())
    }

    fn trim(&mut self, before: EventId) -> Result<EventId, JournalError> {
        if self.poisoned {
            return Err(JournalError::Poisoned);
        }
        let kept = match self.checkpoints.as_slice() {
            [older, _] => before.min(older.upto.next()).min(self.last()),
            _ => self.base.next(),
        };
        // Only durable entries go: what is not durable is not archived either.
        let dropped = usize::try_from(kept.0.saturating_sub(self.base.0 + 1)).unwrap_or(usize::MAX);
        let dropped = dropped.min(self.durable);
        self.entries.drain(..dropped);
        self.durable -= dropped;
        for end in &mut self.volatile_ends {
            *end -= dropped;
        }
        self.base = EventId(self.base.0 + dropped as u64);
        Ok(self.base.next())
    }
}

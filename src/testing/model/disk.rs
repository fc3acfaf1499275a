//! What outlives the process: the journal with its durable prefix, and the shape logs.

use std::collections::BTreeMap;

use crate::domain::{DefinitionHash, EventId, Handle, Lsn, Sid};
use crate::events::Recorded;
use crate::state::State;

use crate::testing::model::postgres::Snapshot;

#[derive(Default)]
pub struct Disk {
    pub history: Vec<Recorded>,
    /// One past the last event of each step: an append is all or nothing.
    pub steps: Vec<usize>,
    /// So many events are synced.
    pub durable: usize,
    /// The fold of the durable ones.
    pub state: State,
    pub shapes: BTreeMap<Sid, ShapeFiles>,
}

pub struct ShapeFiles {
    pub handle: Handle,
    pub definition: DefinitionHash,
    /// The history that the stream was of when it was created.
    pub history: u64,
    /// What the initial rows contain: known from when they are copied.
    pub initial: Option<Snapshot>,
    pub initial_complete: bool,
    /// Commits in the log, in its order, all synced.
    pub log: Vec<Lsn>,
}

impl Disk {
    pub fn append(&mut self, events: &[Recorded]) {
        if !events.is_empty() {
            self.history.extend_from_slice(events);
            self.steps.push(self.history.len());
        }
    }

    pub fn durable_id(&self) -> EventId {
        self.history[..self.durable].last().map_or(EventId(0), |recorded| recorded.id)
    }

    pub fn sync_to(&mut self, count: usize) {
        for recorded in &self.history[self.durable..count] {
            self.state.apply(recorded);
        }
        self.durable = count;
    }

    /// How much of the journal may be found after a crash: whole steps from the synced ones on.
    pub fn survivable(&self) -> Vec<usize> {
        let unsynced = self.steps.iter().copied().filter(|end| *end > self.durable);
        std::iter::once(self.durable).chain(unsynced).collect()
    }

    /// Leaves the first events and takes them for durable: what is read back at a start is synced.
    pub fn cut(&mut self, count: usize) {
        self.sync_to(count);
        self.history.truncate(count);
        self.steps.retain(|end| *end <= count);
    }
}

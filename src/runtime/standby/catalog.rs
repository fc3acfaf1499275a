//! The living shapes, as a journal says that belongs to another process.

use std::collections::HashMap;
use std::path::Path;

use crate::domain::{DefinitionHash, EventId, Handle, Sid};
use crate::events::{self, CodecError};
use crate::journal::{Finding, JournalError, OfflineJournal, Reading};
use crate::state::{Life, State};

/// Why the journal says nothing clear now. A copy that is taken while the owner writes may be torn; the
/// next one may not.
#[derive(Debug, thiserror::Error)]
pub enum CatalogError {
    #[error("the owner's journal cannot be read: {0}")]
    Journal(#[from] JournalError),
    #[error("event {id} of the owner's journal cannot be read: {error}")]
    Event { id: EventId, error: CodecError },
    #[error("the copy of the owner's journal is not whole: {0:?}")]
    Finding(Finding),
    #[error("the copy of the owner's journal ends at event {last}, an earlier one at {before}")]
    Shorter { last: EventId, before: EventId },
    #[error("the owner's journal begins at event {first} and no checkpoint says what was before")]
    NoBeginning { first: EventId },
}

/// What is needed to open a shape.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    pub sid: Sid,
}

/// Shapes whose initial rows are complete and that have not ended.
#[derive(Debug, Default)]
pub struct Catalog {
    last: EventId,
    shapes: HashMap<Handle, Entry>,
    by_definition: HashMap<DefinitionHash, Vec<Handle>>,
}

impl Catalog {
    /// Folds the journal of `data_dir`, from a copy: nothing there is locked or written. `before` is where
    /// an earlier catalog ended.
    ///
    /// # Errors
    /// [`CatalogError`]; better none than one that lacks something.
    pub fn read(data_dir: &Path, before: EventId) -> Result<Catalog, CatalogError> {
        let journal = OfflineJournal::open(data_dir)?;
        let (checkpoints, _) = journal.checkpoints();
        let newest = checkpoints.iter().find_map(|checkpoint| {
            State::from_bytes(&checkpoint.state).filter(|state| state.last == checkpoint.upto)
        });
        let mut state = newest.unwrap_or_default();
        for reading in journal.read(state.last.next()) {
            match reading {
                Reading::Entry(entry) => {
                    if entry.id != state.last.next() {
                        return Err(CatalogError::NoBeginning { first: entry.id });
                    }
                    let recorded = events::decode(&entry.bytes)
                        .map_err(|error| CatalogError::Event { id: entry.id, error })?;
                    state.apply(&recorded);
                }
                // What was being written when the copy was taken.
                Reading::Finding(Finding::TornTail { .. }) => {}
                Reading::Finding(finding) => return Err(CatalogError::Finding(finding)),
            }
        }
        if state.last < before {
            return Err(CatalogError::Shorter { last: state.last, before });
        }
        Ok(Catalog::of(&state))
    }

    fn of(state: &State) -> Catalog {
        let mut catalog = Catalog { last: state.last, ..Catalog::default() };
        for (sid, shape) in &state.shapes {
            if shape.life == Life::Live {
                catalog.shapes.insert(shape.handle, Entry { sid: *sid });
                catalog.by_definition.entry(shape.definition).or_default().push(shape.handle);
            }
        }
        catalog
    }

    #[must_use]
    pub fn last(&self) -> EventId {
        self.last
    }

    #[must_use]
    pub fn get(&self, handle: Handle) -> Option<Entry> {
        self.shapes.get(&handle).copied()
    }

    /// The newest first: where there are two, the older is on its way out.
    pub fn of_definition(&self, definition: DefinitionHash) -> impl Iterator<Item = Handle> + '_ {
        let handles = self.by_definition.get(&definition).map_or(&[][..], Vec::as_slice);
        handles.iter().rev().copied()
    }
}

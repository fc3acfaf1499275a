//! Shapes that are read from their files after a start, while those that have been read are served.
//!
//! Threads read; the driver makes known what they have read, in the order of the shapes, and performs
//! nothing else that was decided: the stream begins when every shape is matched against.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::mpsc;

use crate::domain::{Handle, ShapeDefinition, Sid};
use crate::filter::Predicate;
use crate::runtime::driver::Message;
use crate::runtime::inspector::Inspector;
use crate::runtime::subquery::RowTagger;
use crate::shape_log::{Disk, ShapeFiles, ShapeLogError, ShapeReader, Verify, make_durable, open_read_only};

/// Threads that read. More would wait for the same disk.
const READERS_MAX: usize = 4;
/// Shapes that are handed over at once.
const SHAPES_AT_ONCE: usize = 64;

/// How rows are chosen.
#[derive(Debug)]
pub enum Filter {
    Everything,
    Plain(Box<Predicate>),
    /// With inner queries.
    Tagged(Arc<RowTagger>),
}

/// What the files of a shape say.
pub type Restored = (Arc<ShapeDefinition>, Filter, Arc<ShapeReader>);

/// Why a shape that the journal knows cannot be served.
#[derive(Debug)]
pub enum Unrestored {
    Files(ShapeLogError),
    /// Its canonical where clause is not one to this version.
    Clause,
}

impl From<ShapeLogError> for Unrestored {
    fn from(error: ShapeLogError) -> Unrestored {
        Unrestored::Files(error)
    }
}

/// A shape that was read, or was not.
pub type Loaded = (Sid, Handle, Result<Restored, Unrestored>);

/// Reads the files of shapes.
#[derive(Clone, Debug)]
pub struct Loader {
    pub disk: Arc<dyn Disk>,
    pub data_dir: PathBuf,
    /// `ELECTRIC_DATABASE_ID`.
    pub stack: String,
    pub inspector: Inspector,
}

impl Loader {
    /// The filter of a definition.
    ///
    /// # Errors
    /// None where the canonical clause is not one to this version.
    pub fn filter(&self, definition: &ShapeDefinition, handle: Handle) -> Option<Filter> {
        if let Some(tagger) = RowTagger::of(definition, &self.stack, handle).ok()? {
            return Some(Filter::Tagged(Arc::new(tagger)));
        }
        match &definition.where_sql {
            Some(sql) => {
                Predicate::from_canonical(sql, &definition.relation).ok().map(Box::new).map(Filter::Plain)
            }
            None => Some(Filter::Everything),
        }
    }

    pub fn files(&self, handle: Handle) -> ShapeFiles {
        ShapeFiles::open(Arc::clone(&self.disk), &self.data_dir, handle)
    }

    fn read(&self, handle: Handle) -> Result<Restored, Unrestored> {
        let files = self.files(handle);
        let mut definition = files.read_definition()?;
        self.inspector.remember(&definition.relation);
        definition.relation = self.inspector.shared(definition.relation);
        let definition = Arc::new(definition);
        let filter = self.filter(&definition, handle).ok_or(Unrestored::Clause)?;
        let reader = ShapeReader::open(&files)?;
        if !definition.dependencies.is_empty() {
            make_durable(&files)?;
        }
        open_read_only(&files, &reader, Verify::Tail)?;
        Ok((definition, filter, reader))
    }
}

/// The shapes that are to be restored.
#[derive(Debug, Default)]
pub struct Restoring {
    /// Asked for, and not begun with.
    wanted: Vec<(Sid, Handle)>,
    /// Parts that were read before an earlier one: at most one for each reader.
    early: BTreeMap<usize, Vec<Loaded>>,
    next: usize,
    parts: usize,
}

impl Restoring {
    /// Ascending.
    pub fn want(&mut self, sid: Sid, handle: Handle) {
        self.wanted.push((sid, handle));
    }

    /// Some are asked for, and nobody reads them yet.
    #[must_use]
    pub fn is_asked(&self) -> bool {
        !self.wanted.is_empty()
    }

    /// Some are being read.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.next < self.parts
    }

    /// Has the shapes read that were asked for: they come as [`Message::Restored`]. How many.
    pub fn begin(
        &mut self,
        loader: &Loader,
        runtime: &tokio::runtime::Handle,
        driver: &mpsc::Sender<Message>,
    ) -> usize {
        let wanted: Arc<[(Sid, Handle)]> = std::mem::take(&mut self.wanted).into();
        (self.next, self.parts) = (0, wanted.len().div_ceil(SHAPES_AT_ONCE));
        let readers = std::thread::available_parallelism().map_or(1, usize::from).min(READERS_MAX);
        let next = Arc::new(AtomicUsize::new(0));
        for _ in 0..readers.min(self.parts) {
            let (loader, driver) = (loader.clone(), driver.clone());
            let (wanted, next) = (Arc::clone(&wanted), Arc::clone(&next));
            runtime.spawn_blocking(move || {
                loop {
                    let part = next.fetch_add(1, Ordering::Relaxed);
                    let Some(shapes) = wanted.chunks(SHAPES_AT_ONCE).nth(part) else { return };
                    let loaded =
                        shapes.iter().map(|(sid, handle)| (*sid, *handle, loader.read(*handle))).collect();
                    // The driver is gone at shutdown.
                    if driver.blocking_send(Message::Restored { part, loaded }).is_err() {
                        return;
                    }
                }
            });
        }
        wanted.len()
    }

    /// Takes a part; what can be made known now, in order.
    pub fn take(&mut self, part: usize, loaded: Vec<Loaded>) -> Vec<Loaded> {
        self.early.insert(part, loaded);
        let mut due = Vec::new();
        while let Some(loaded) = self.early.remove(&self.next) {
            self.next += 1;
            due.extend(loaded);
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_are_made_known_in_their_order_however_they_come() {
        let mut restoring = Restoring { parts: 3, ..Restoring::default() };
        let part = |sids: [u32; 2]| {
            let unread = |sid| (Sid(sid), Handle { hash: 1, micros: 1 }, Err(Unrestored::Clause));
            sids.map(unread).into_iter().collect::<Vec<Loaded>>()
        };
        let mut known = Vec::new();
        for (number, sids) in [(2, [5, 6]), (0, [1, 2]), (1, [3, 4])] {
            assert!(restoring.is_running());
            known.extend(restoring.take(number, part(sids)).into_iter().map(|(sid, ..)| sid.0));
        }
        assert_eq!(known, [1, 2, 3, 4, 5, 6]);
        assert!(!restoring.is_running() && !restoring.is_asked());
    }
}

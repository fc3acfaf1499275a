//! One journal and what is remembered of it between questions.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use tempfile::TempPath;

use crate::domain::EventId;
use crate::journal::{JournalPaths, JournalReader, OfflineJournal};
use crate::projections::forensics::{Holding, LastExits, Position};
use crate::state::State;

use super::{AskError, Source, Track};

/// Moments that are remembered: one in front of somebody, the two of a comparison, and one more.
const MOMENTS_MAX: usize = 4;

/// Where the events are.
enum Origin {
    /// Opened once: what is there does not change, or a copy was made. A file that was handed in goes with
    /// it.
    Opened { journal: Arc<OfflineJournal>, _handed_in: Option<TempPath> },
    /// The journal of this process, which grows.
    Own(Arc<OwnJournal>),
}

/// The journal that this process writes, as long as it may be read: whoever owns the directory next must
/// find nobody reading its store.
pub struct OwnJournal {
    paths: JournalPaths,
    reader: RwLock<Option<JournalReader>>,
    closing: Arc<AtomicBool>,
}

impl OwnJournal {
    #[must_use]
    pub fn new(data_dir: &Path, reader: JournalReader) -> OwnJournal {
        let reader = RwLock::new(Some(reader));
        OwnJournal { paths: JournalPaths::new(data_dir), reader, closing: Arc::default() }
    }

    pub(super) fn reader(&self) -> Option<JournalReader> {
        self.reader.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Asks a question; the journal is not closed before it has its answer, or was cut short.
    ///
    /// # Errors
    /// [`AskError::Closed`], or the journal cannot be read.
    pub fn ask<T>(
        &self,
        cancelled: Option<Arc<AtomicBool>>,
        question: impl FnOnce(&Source) -> T,
    ) -> Result<T, AskError> {
        let reader = self.reader.read().unwrap_or_else(PoisonError::into_inner);
        let reader = reader.as_ref().ok_or(AskError::Closed)?;
        let journal = Arc::new(OfflineJournal::of_owner(&self.paths, reader)?);
        let flags = cancelled.into_iter().chain([Arc::clone(&self.closing)]).collect();
        Ok(question(&Source::over(journal, flags)))
    }

    /// Cuts short what is being asked, waits for it, and answers nothing more.
    pub fn close(&self) {
        self.closing.store(true, Ordering::Relaxed);
        *self.reader.write().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// A journal to be asked many questions. The questions of several askers take turns only where one of
/// them has to read the whole.
pub struct History {
    name: String,
    origin: Origin,
    track: Mutex<Option<Track>>,
    moments: Mutex<VecDeque<Arc<Moment>>>,
    how_far: HowFar,
}

/// How far the pass over the whole history is, for those who wait for it.
#[derive(Debug, Default)]
struct HowFar {
    at: AtomicU64,
    last: AtomicU64,
}

/// A place in a history, folded.
#[derive(Debug)]
pub struct Moment {
    pub state: State,
    pub exits: LastExits,
    pub holding: Holding,
}

impl History {
    /// What lies at a path.
    ///
    /// # Errors
    /// Those of [`OfflineJournal::open`].
    pub fn open(path: &Path) -> Result<History, AskError> {
        let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
        let journal = Arc::new(OfflineJournal::open(path)?);
        Ok(History::of(name, Origin::Opened { journal, _handed_in: None }))
    }

    /// An exported file that somebody handed in; it goes with the history.
    ///
    /// # Errors
    /// Those of [`OfflineJournal::open`].
    pub fn handed_in(name: String, file: TempPath) -> Result<History, AskError> {
        let journal = Arc::new(OfflineJournal::open(&file)?);
        Ok(History::of(name, Origin::Opened { journal, _handed_in: Some(file) }))
    }

    /// The journal of this process.
    #[must_use]
    pub fn own(own: Arc<OwnJournal>) -> History {
        History::of("this service".to_owned(), Origin::Own(own))
    }

    fn of(name: String, origin: Origin) -> History {
        let (track, moments, how_far) = (Mutex::default(), Mutex::default(), HowFar::default());
        History { name, origin, track, moments, how_far }
    }

    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether it grows.
    #[must_use]
    pub fn is_live(&self) -> bool {
        match self.origin {
            Origin::Own(_) => true,
            Origin::Opened { .. } => false,
        }
    }

    /// Asks a question of the events as they are now. Reading ends early once `cancelled` is set.
    ///
    /// # Errors
    /// Those of [`OwnJournal::ask`].
    pub fn ask<T>(
        &self,
        cancelled: Option<Arc<AtomicBool>>,
        question: impl FnOnce(&Source) -> T,
    ) -> Result<T, AskError> {
        match &self.origin {
            Origin::Opened { journal, .. } => {
                Ok(question(&Source::over(Arc::clone(journal), cancelled.into_iter().collect())))
            }
            Origin::Own(own) => own.ask(cancelled, question),
        }
    }

    /// The track up to the newest event. The first time it reads everything.
    pub fn track<T>(&self, source: &Source, question: impl FnOnce(&Track) -> T) -> T {
        let mut track: MutexGuard<'_, Option<Track>> =
            self.track.lock().unwrap_or_else(PoisonError::into_inner);
        let track = track.get_or_insert_with(|| Track::begin(source));
        self.how_far.last.store(source.journal().last().0, Ordering::Relaxed);
        track.carry_on(source, |at| self.how_far.at.store(at.0, Ordering::Relaxed));
        // The numbers of what was retired are not read.
        self.how_far.last.store(track.state().last.0, Ordering::Relaxed);
        question(track)
    }

    /// The last event that the pass over the whole history has come to, and where it ends. Waits for nobody.
    #[must_use]
    pub fn how_far(&self) -> (EventId, EventId) {
        let load = |number: &AtomicU64| EventId(number.load(Ordering::Relaxed));
        (load(&self.how_far.at), load(&self.how_far.last))
    }

    /// The state at a place, with who holds the log there.
    #[must_use]
    pub fn moment(&self, source: &Source, position: Position) -> Arc<Moment> {
        let end = || self.track(source, |track| track.state().last);
        let wanted = match position {
            Position::Event(id) => Some(id),
            Position::End => Some(end()),
            Position::Time(_) | Position::TimeOfDay(_) | Position::Lsn(_) => None,
        };
        if let Some(known) = wanted.and_then(|id| self.remembered(id)) {
            return known;
        }
        let moment = self.track(source, |track| {
            let state = track.fold(source, position);
            let exits = track.exits(source, &state);
            let holding = Holding::of(&state, &exits);
            Arc::new(Moment { state, exits, holding })
        });
        let mut moments = self.moments.lock().unwrap_or_else(PoisonError::into_inner);
        if moments.len() == MOMENTS_MAX {
            moments.pop_front();
        }
        moments.push_back(Arc::clone(&moment));
        moment
    }

    fn remembered(&self, id: EventId) -> Option<Arc<Moment>> {
        let moments = self.moments.lock().unwrap_or_else(PoisonError::into_inner);
        moments.iter().find(|moment| moment.state.last == id).cloned()
    }
}

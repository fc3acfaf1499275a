//! Where a history is read from, and the fold up to a place in it.

use std::cell::Cell;
use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use crate::domain::{EventId, Handle, Sid, Timestamp};
use crate::events::{self, Event, KindSearch, Recorded, ShapeEvent};
use crate::journal::{ArchivedState, OfflineJournal, Reading};
use crate::projections::forensics::{LastExits, Names, Position, commas};
use crate::state::State;

use super::AskError;

/// Work that takes longer than this says how far it is, and again after as long.
const PROGRESS_AFTER: Duration = Duration::from_secs(1);
/// A reading of at least so many events is worth a thread.
const AHEAD_FROM: u64 = 50_000;
const AHEAD_BATCH: usize = 512;
const AHEAD_BATCHES_MAX: usize = 16;
/// Events between two looks at the clock.
const PROGRESS_EVERY: u64 = 16_384;

/// An opened journal. Reads only.
pub struct Source {
    journal: Arc<OfflineJournal>,
    reported: Cell<bool>,
    /// Says how far long work is, also where nobody sits at a terminal.
    progress: bool,
    /// Damage and progress are told on stderr.
    tells: bool,
    /// Somebody elsewhere who is told how far long work is.
    listener: Option<Listener>,
    /// Whoever asked has gone: reading ends early.
    cancelled: Vec<Arc<AtomicBool>>,
}

/// Is told how far long work is, in words.
pub type Listener = Arc<dyn Fn(&str) + Send + Sync>;

/// One step of reading: an event; or what is wrong with bytes that are none, or which are not there.
pub type Found = Result<Recorded, String>;

impl Source {
    /// Whether to say how far long work is, also where stderr is no terminal.
    #[must_use]
    pub fn with_progress(mut self, progress: bool) -> Source {
        self.progress = progress;
        self
    }

    /// Opens what is at `path`, and tells on stderr of damage and of how far it is.
    ///
    /// # Errors
    /// Those of [`OfflineJournal::open`].
    pub fn open(path: &Path) -> Result<Source, AskError> {
        let journal = Arc::new(OfflineJournal::open(path)?);
        Ok(Source {
            journal,
            reported: Cell::new(false),
            progress: false,
            tells: true,
            listener: None,
            cancelled: Vec::new(),
        })
    }

    /// Tells somebody else how far long work is.
    #[must_use]
    pub fn with_listener(mut self, listener: Listener) -> Source {
        self.listener = Some(listener);
        self
    }

    /// A journal that is open already, for a process with other things on its stderr. Reading ends early
    /// once one of `cancelled` is set.
    #[must_use]
    pub fn over(journal: Arc<OfflineJournal>, cancelled: Vec<Arc<AtomicBool>>) -> Source {
        let (reported, progress, tells, listener) = (Cell::new(true), false, false, None);
        Source { journal, reported, progress, tells, listener, cancelled }
    }

    /// Another source over the same events, for a part of the same question.
    #[must_use]
    pub fn again(&self) -> Source {
        Source {
            journal: Arc::clone(&self.journal),
            reported: Cell::new(true),
            progress: self.progress,
            tells: self.tells,
            listener: self.listener.clone(),
            cancelled: self.cancelled.clone(),
        }
    }

    /// Whether nobody waits for the answer any more.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.cancelled.iter().any(|flag| flag.load(Ordering::Relaxed))
    }

    #[must_use]
    pub fn journal(&self) -> &OfflineJournal {
        &self.journal
    }

    /// Everything from an event on, damage in its place.
    pub fn readings(&self, from: EventId) -> impl Iterator<Item = Found> + '_ {
        let mut progress = self.progress(from);
        // An owner's store must not be read on by a thread that nobody waits for.
        let long = self.tells && self.journal.last().0.saturating_sub(from.0) >= AHEAD_FROM;
        let found: Box<dyn Iterator<Item = Found>> = if long {
            Box::new(self.read_ahead(from))
        } else {
            Box::new(self.journal.read(from).map(decode))
        };
        found.take_while(move |_| !self.is_cancelled()).inspect(move |found| {
            if let (Ok(recorded), Some(progress)) = (found, &mut progress) {
                progress.passed(recorded.id);
            }
        })
    }

    /// The records from an event on as they are, damage in its place.
    pub fn records(&self, from: EventId) -> impl Iterator<Item = Reading> + '_ {
        let mut progress = self.progress(from);
        self.journal.read(from).take_while(move |_| !self.is_cancelled()).inspect(move |reading| {
            if let (Reading::Entry(entry), Some(progress)) = (reading, &mut progress) {
                progress.passed(entry.id);
            }
        })
    }

    fn progress(&self, from: EventId) -> Option<Progress> {
        let told = match &self.listener {
            Some(listener) => Audience::Listener(Arc::clone(listener)),
            None if self.tells && io::stderr().is_terminal() => Audience::Terminal,
            None if self.tells && self.progress => Audience::Lines,
            None => return None,
        };
        Some(Progress::new(from, self.journal.last(), told))
    }

    /// Reads and decodes on a thread of its own, a few batches ahead; it ends with the iterator.
    fn read_ahead(&self, from: EventId) -> impl Iterator<Item = Found> + use<> {
        let (sender, receiver) = mpsc::sync_channel::<Vec<Found>>(AHEAD_BATCHES_MAX);
        let journal = Arc::clone(&self.journal);
        std::thread::spawn(move || {
            let mut readings = journal.read(from).map(decode);
            loop {
                let batch: Vec<Found> = readings.by_ref().take(AHEAD_BATCH).collect();
                if batch.is_empty() || sender.send(batch).is_err() {
                    return;
                }
            }
        });
        receiver.into_iter().flatten()
    }

    /// Reports on stderr what was noticed while opening; whether it had not been before.
    pub fn report(&self) -> bool {
        let first_time = !self.reported.replace(true);
        if first_time {
            for finding in self.journal.findings() {
                eprintln!("damage: {finding}");
            }
        }
        first_time
    }

    /// The events; what is damaged is reported on stderr, once, and passed over.
    pub fn events(&self, from: EventId) -> impl Iterator<Item = Recorded> + '_ {
        let first_time = self.report();
        self.readings(from).filter_map(move |found| match found {
            Ok(recorded) => Some(recorded),
            Err(damage) => {
                if first_time {
                    eprintln!("damage: {damage}");
                }
                None
            }
        })
    }

    /// The events, and how many bytes the record of each has; what is damaged is reported as by `events`.
    pub fn sized_events(&self, from: EventId) -> impl Iterator<Item = (Recorded, usize)> + '_ {
        let tells = self.report() && self.tells;
        self.records(from).filter_map(move |reading| {
            let bytes = match &reading {
                Reading::Entry(entry) => entry.bytes.len(),
                Reading::Finding(_) => 0,
            };
            match decode(reading) {
                Ok(recorded) => Some((recorded, bytes)),
                Err(damage) => {
                    if tells {
                        eprintln!("damage: {damage}");
                    }
                    None
                }
            }
        })
    }

    /// Events of one kind, without decoding the others.
    pub fn events_like(&self, from: EventId, kind: &Event) -> impl Iterator<Item = Recorded> + '_ {
        let search = KindSearch::like(kind);
        self.records(from).filter_map(move |reading| match reading {
            Reading::Entry(entry) if search.may_match(&entry.bytes) => events::decode(&entry.bytes).ok(),
            Reading::Entry(_) | Reading::Finding(_) => None,
        })
    }

    /// One event.
    #[must_use]
    pub fn event(&self, id: EventId) -> Option<Recorded> {
        self.events(id).next().filter(|recorded| recorded.id == id)
    }

    /// The newest event's time, without folding the whole.
    fn newest_at(&self) -> Timestamp {
        let near_end = EventId(self.journal.last().0.saturating_sub(8));
        self.events(near_end).map(|recorded| recorded.at).max().unwrap_or_default()
    }

    /// A time of day made a moment.
    #[must_use]
    pub fn resolve(&self, position: Position) -> Position {
        match position {
            Position::TimeOfDay(_) => position.resolve(self.newest_at()),
            Position::End | Position::Event(_) | Position::Time(_) | Position::Lsn(_) => position,
        }
    }

    /// The newest checkpoint from which the fold may be carried on to `position`, or nothing at all.
    #[must_use]
    pub fn start(&self, position: Position) -> State {
        let (near, beyond): (Vec<_>, Vec<_>) =
            self.journal.states().iter().partition(|state| {
                position.is_ahead_of_fold(state.mark.upto, state.mark.at, state.mark.routed)
            });
        // What lies behind a state that is too new is too new itself: it need not be read to know.
        let too_new = beyond.first().map(|state| state.mark.upto);
        let (checkpoints, _) = self.journal.checkpoints();
        let fits = |upto: EventId| {
            too_new.is_none_or(|too_new| upto < too_new)
                && !matches!(position, Position::Event(id) if upto > id)
        };
        let states = checkpoints
            .iter()
            .filter(|checkpoint| fits(checkpoint.upto))
            .filter_map(|checkpoint| State::from_bytes(&checkpoint.state));
        let newest = states.into_iter().find(|state| position.is_ahead_of(state)).unwrap_or_default();
        let mut archived = near.into_iter().rev().take_while(|state| state.mark.upto > newest.last);
        archived.find_map(archived_state).unwrap_or(newest)
    }

    /// The oldest state that is needed to fold everything that is kept: the empty one, or where the
    /// beginning is gone, the oldest checkpoint.
    #[must_use]
    pub fn beginning(&self) -> State {
        let first = self.events(EventId(1)).next().map_or(EventId(1), |recorded| recorded.id);
        if first <= EventId(1) {
            return State::default();
        }
        let leads_on = |upto: EventId| upto.next() >= first;
        let (checkpoints, _) = self.journal.checkpoints();
        let oldest = checkpoints
            .iter()
            .rev()
            .filter(|checkpoint| leads_on(checkpoint.upto))
            .filter_map(|checkpoint| State::from_bytes(&checkpoint.state))
            .min_by_key(|state| state.last);
        let before = |upto: EventId| oldest.as_ref().is_none_or(|oldest| upto < oldest.last);
        let mut archived = self.journal.states().iter().filter(|state| leads_on(state.mark.upto));
        let archived = archived.find(|state| before(state.mark.upto)).and_then(archived_state);
        archived.or(oldest).unwrap_or_default()
    }

    /// The state at a place.
    #[must_use]
    pub fn fold(&self, position: Position) -> State {
        let position = self.resolve(position);
        self.carry_on(self.start(position), position)
    }

    /// Carries a state on to a place.
    #[must_use]
    pub fn carry_on(&self, mut state: State, position: Position) -> State {
        for recorded in self.events(state.last.next()) {
            if position.is_passed_by(&recorded) {
                break;
            }
            state.apply(&recorded);
        }
        state
    }

    /// How the writers of the shapes that owe something and have none ended, as of `state`.
    #[must_use]
    pub fn exits(&self, state: &State) -> LastExits {
        super::exits::exits(self, state)
    }

    /// The shape that somebody calls by its number or its handle.
    ///
    /// # Errors
    /// [`AskError::UnknownShape`].
    pub fn shape(&self, text: &str) -> Result<Sid, AskError> {
        let unknown = || AskError::UnknownShape(text.to_owned());
        if let Some(number) = text.trim_start_matches('#').parse().ok().filter(|_| !text.contains('-')) {
            return Ok(Sid(number));
        }
        let handle: Handle = text.parse().map_err(|_| unknown())?;
        if let Some(sid) = Names::of(&self.start(Position::End)).find(handle) {
            return Ok(sid);
        }
        let created =
            self.events_like(EventId(1), &sample_created(handle)).find_map(|recorded| match recorded.event {
                Event::Shape(ShapeEvent::Created { sid, handle: own, .. }) if own == handle => Some(sid),
                _ => None,
            });
        created.ok_or_else(unknown)
    }
}

/// A state of the archive; one that is damaged or of another version is as good as none (`verify` says so).
pub fn archived_state(archived: &ArchivedState) -> Option<State> {
    State::from_bytes(&archived.load().ok()?.state)
}

fn decode(reading: Reading) -> Found {
    match reading {
        Reading::Entry(entry) => match events::decode(&entry.bytes) {
            Ok(recorded) => Ok(recorded),
            Err(error) => Err(format!("event {}: {error}", entry.id)),
        },
        Reading::Finding(finding) => Err(finding.to_string()),
    }
}

/// What an exit looks like: only its kind matters.
pub fn sample_exit() -> Event {
    Event::Consumer(events::ConsumerEvent::Exited {
        sid: Sid(0),
        incarnation: crate::domain::Incarnation(0),
        cause: events::ExitCause::Ended,
        pending_oldest: None,
        pending: 0,
    })
}

fn sample_created(handle: Handle) -> Event {
    let (definition, oid) = (crate::domain::DefinitionHash(0), crate::domain::Oid(0));
    Event::Shape(ShapeEvent::Created { sid: Sid(0), handle, definition, oid })
}

/// Who is told how far a long reading is.
enum Audience {
    /// Somebody at a terminal: one line, written over and over.
    Terminal,
    /// Whoever reads stderr: line by line.
    Lines,
    Listener(Listener),
}

/// Says how far a long reading is.
struct Progress {
    from: EventId,
    last: EventId,
    events: u64,
    started: Instant,
    said: Instant,
    told: Audience,
    shown: bool,
}

impl Progress {
    fn new(from: EventId, last: EventId, told: Audience) -> Progress {
        let now = Instant::now();
        Progress { from, last, events: 0, started: now, said: now, told, shown: false }
    }

    fn passed(&mut self, id: EventId) {
        self.events += 1;
        if !self.events.is_multiple_of(PROGRESS_EVERY) || self.said.elapsed() < PROGRESS_AFTER {
            return;
        }
        self.said = Instant::now();
        self.shown = true;
        let rate = self.events as f64 / self.started.elapsed().as_secs_f64();
        let (done, all) = (id.0.saturating_sub(self.from.0), self.last.0.saturating_sub(self.from.0));
        let percent = done.saturating_mul(100).checked_div(all).unwrap_or(0).min(100);
        let left = (all.saturating_sub(done) as f64 / rate.max(1.0)).ceil();
        let line = format!(
            "event {} of {} ({percent} %), {} events/s, about {left} s more",
            commas(id.0),
            commas(self.last.0),
            commas(rate as u64)
        );
        // Whoever reads stderr may be gone; that is no reason to stop.
        let _ = match &self.told {
            Audience::Terminal => write!(io::stderr(), "\r{line}\x1b[K"),
            Audience::Lines => writeln!(io::stderr(), "{line}"),
            Audience::Listener(listener) => {
                listener(&line);
                Ok(())
            }
        };
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.shown && matches!(self.told, Audience::Terminal) {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}

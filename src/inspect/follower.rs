//! A second fold of a running service's journal, on a thread of its own: what people look at.
//!
//! The driver is asked nothing and waits for nothing. The journal's thread says that there is more; the
//! follower reads it from the store as anybody else would, and folds it. Whoever looks holds up the
//! follower at most, and the follower holds up nobody.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::watch;

use crate::domain::{EventId, Lsn, Oid, Sid, Timestamp};
use crate::events::{self, ConsumerEvent, Event, OwnershipEvent, Recorded, ShapeEvent, StreamEvent};
use crate::journal::JournalReader;
use crate::projections::forensics::{LastExits, Names, Series, gap, sentence, subject};
use crate::projections::{FlushTracker, Projection};
use crate::state::{Life, Shape, State, Writer};

use super::AskError;
use super::history::OwnJournal;

/// Newest events that are kept in words.
pub const EVENTS_KEPT_MAX: usize = 4_096;
/// Events folded before those who look have a turn.
const TURN_EVENTS_MAX: usize = 256;

/// Shapes and writers, counted: moved by every event, so that nobody has to count.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Census {
    /// By [`Life`] in its order: registered, snapshotting, live, invalidated.
    pub lives: [usize; 4],
    /// Live and ready, live and starting, ending, absent.
    pub writers: [usize; 4],
    pub tables: BTreeMap<Oid, usize>,
}

impl Census {
    /// Counts a state.
    #[must_use]
    pub fn of(state: &State) -> Census {
        let mut census = Census::default();
        state.shapes.values().for_each(|shape| census.count(shape, 1));
        census
    }

    fn count(&mut self, shape: &Shape, by: isize) {
        let life = match shape.life {
            Life::Registered => 0,
            Life::Snapshotting => 1,
            Life::Live => 2,
            Life::Invalidated => 3,
        };
        let writer = match shape.writer {
            Writer::Live { ready: true, .. } => 0,
            Writer::Live { ready: false, .. } => 1,
            Writer::Stopping { .. } => 2,
            Writer::Absent => 3,
        };
        let add = |count: &mut usize| *count = count.saturating_add_signed(by);
        add(&mut self.lives[life]);
        add(&mut self.writers[writer]);
        let of_table = self.tables.entry(shape.oid).or_default();
        add(of_table);
        if *of_table == 0 {
            self.tables.remove(&shape.oid);
        }
    }
}

/// An event in words, with what is needed to show it.
#[derive(Clone, Debug)]
pub struct Told {
    pub id: EventId,
    pub at: Timestamp,
    pub epoch: u64,
    pub because: Option<EventId>,
    pub kind: &'static str,
    pub shape: Option<String>,
    pub text: String,
}

/// What an engine says of itself at an event, to be compared with the journal's fold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Figures {
    pub event: EventId,
    pub shapes: usize,
    pub owing: usize,
    pub window: usize,
    pub routed: Lsn,
    pub acked: Lsn,
    /// Everything before is flushed by every shape.
    pub candidate: Lsn,
    pub last_sid: Sid,
}

impl Figures {
    #[must_use]
    pub fn of(state: &State, tracker: &FlushTracker) -> Figures {
        Figures {
            event: state.last,
            shapes: state.shapes.len(),
            owing: tracker.pending_shapes(),
            window: state.window.len(),
            routed: state.stream.routed,
            acked: state.stream.acked,
            candidate: tracker.candidate(),
            last_sid: state.last_sid,
        }
    }
}

/// What is known now.
#[derive(Debug)]
pub struct View {
    pub state: State,
    pub tracker: FlushTracker,
    pub census: Census,
    pub exits: LastExits,
    /// Since this process began.
    pub series: Series,
    /// Name, confirmed and restart LSN of the slot, and when they were seen.
    pub slot: Option<(String, Lsn, Lsn, Timestamp)>,
    /// From the commit of the newest routed transaction to its being routed, both clocks as they are.
    pub routing_lag: Option<Duration>,
    /// When who holds the log began to hold it, and since when the flushed position stands still.
    pub still_since: Option<Timestamp>,
    boundary: Lsn,
    recent: VecDeque<Told>,
    /// The next comparison asked for, and the fold's figures once they are known.
    figures: VecDeque<Figures>,
}

/// Figures of the newest events, to be compared with what the engine said at one of them.
const FIGURES_KEPT_MAX: usize = 4_096;

/// Entry for those who look.
#[derive(Clone, Debug)]
pub struct Live {
    view: Arc<RwLock<View>>,
    newest: watch::Receiver<EventId>,
    appended: Arc<AtomicU64>,
}

impl Live {
    /// Holds up the follower, and nobody else, until it is dropped.
    pub fn view(&self) -> RwLockReadGuard<'_, View> {
        self.view.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Follows the number of the newest event in view.
    #[must_use]
    pub fn newest(&self) -> watch::Receiver<EventId> {
        self.newest.clone()
    }

    /// The newest event that the journal says is durable.
    #[must_use]
    pub fn durable(&self) -> EventId {
        EventId(self.appended.load(Ordering::Acquire))
    }
}

/// For the journal's thread: there is more.
#[derive(Clone, Debug)]
pub struct Wake {
    appended: Arc<AtomicU64>,
    wake: SyncSender<()>,
}

impl Wake {
    /// Never waits.
    pub fn durable(&self, upto: EventId) {
        self.appended.store(upto.0, Ordering::Release);
        // A full queue wakes it all the same, and without a follower nobody wants to know.
        let _full = self.wake.try_send(());
    }
}

/// The thread. It ends when the last [`Wake`] is dropped; drop that first.
#[derive(Debug)]
pub struct Follower {
    thread: Option<JoinHandle<()>>,
}

impl Follower {
    /// Follows from a state on, which is the fold of what `own` has up to there.
    ///
    /// # Errors
    /// The journal is closed already, or the thread cannot be started.
    pub fn start(own: &Arc<OwnJournal>, state: State) -> Result<(Follower, Live, Wake), AskError> {
        let reader = own.reader().ok_or(AskError::Closed)?;
        let last = state.last;
        let view = Arc::new(RwLock::new(View::of(state)));
        let (newest, seen) = watch::channel(last);
        let (wake, woken) = sync_channel(1);
        let appended = Arc::new(AtomicU64::new(last.0));
        let live = Live { view: Arc::clone(&view), newest: seen, appended: Arc::clone(&appended) };
        let own = Arc::clone(own);
        let run = move || {
            remember_exits(&own, &view);
            follow(&reader, &view, &woken, &newest);
        };
        let thread = std::thread::Builder::new().name("follower".to_owned()).spawn(run)?;
        Ok((Follower { thread: Some(thread) }, live, Wake { appended, wake }))
    }
}

/// How the writers ended that are gone since before this process.
fn remember_exits(own: &Arc<OwnJournal>, view: &RwLock<View>) {
    let state = view.read().unwrap_or_else(PoisonError::into_inner).state.clone();
    match own.ask(None, |source| source.exits(&state)) {
        Ok(exits) => view.write().unwrap_or_else(PoisonError::into_inner).exits = exits,
        Err(error) => tracing::warn!(%error, "how former writers ended is not known"),
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take() {
            // It reads the store, which must outlive it. It was told to end: the wake is gone.
            let _panicked = thread.join();
        }
    }
}

fn follow(
    reader: &JournalReader,
    view: &RwLock<View>,
    woken: &Receiver<()>,
    newest: &watch::Sender<EventId>,
) {
    while woken.recv().is_ok() {
        let from = view.read().unwrap_or_else(PoisonError::into_inner).state.last.next();
        let mut entries = reader.read(from).map_while(Result::ok).peekable();
        while entries.peek().is_some() {
            let turn = entries.by_ref().take(TURN_EVENTS_MAX);
            let decoded: Vec<Recorded> = turn.map_while(|entry| events::decode(&entry.bytes).ok()).collect();
            if decoded.is_empty() {
                tracing::warn!(%from, "an event of this process's journal cannot be read back");
                return;
            }
            let mut view = view.write().unwrap_or_else(PoisonError::into_inner);
            decoded.iter().for_each(|recorded| view.apply(recorded));
            newest.send_replace(view.state.last);
        }
    }
}

impl View {
    fn of(state: State) -> View {
        let (series, tracker, census) =
            (Series::new(&state), FlushTracker::recompute(&state), Census::of(&state));
        View {
            series,
            tracker,
            census,
            exits: LastExits::default(),
            slot: None,
            routing_lag: None,
            still_since: None,
            boundary: gap(&state).1,
            recent: VecDeque::new(),
            figures: VecDeque::new(),
            state,
        }
    }

    fn apply(&mut self, recorded: &Recorded) {
        // Before the event: what ends is known by its name for the last time.
        let mut names = Names::around(&self.state, &recorded.event);
        names.learn(recorded);
        let sid = match &recorded.event {
            Event::Shape(event) => Some(event.sid()),
            Event::Consumer(event) => Some(event.sid()),
            Event::Ownership(_) | Event::Stream(_) | Event::Flush(_) | Event::Journal(_) => None,
        };
        if let Some(shape) = sid.and_then(|sid| self.state.shape(sid)) {
            self.census.count(shape, -1);
        }
        self.state.apply(recorded);
        if let Some(shape) = sid.and_then(|sid| self.state.shape(sid)) {
            self.census.count(shape, 1);
        }
        self.tracker.apply(&self.state, recorded);
        self.series.observe(&self.state, recorded, true);
        self.note(recorded);
        let (_, boundary, bytes) = gap(&self.state);
        if boundary != self.boundary || bytes == 0 {
            self.boundary = boundary;
            self.still_since = (bytes > 0).then_some(recorded.at);
        } else if self.still_since.is_none() {
            self.still_since = Some(recorded.at);
        }
        keep(&mut self.figures, FIGURES_KEPT_MAX, Figures::of(&self.state, &self.tracker));
        let told = Told {
            id: recorded.id,
            at: recorded.at,
            epoch: recorded.epoch.0,
            because: recorded.because,
            kind: recorded.event.name(),
            shape: subject(&recorded.event).and_then(|sid| names.handle(sid)).map(|name| name.to_string()),
            text: sentence(&recorded.event, &names),
        };
        keep(&mut self.recent, EVENTS_KEPT_MAX, told);
    }

    /// What is not in the state.
    fn note(&mut self, recorded: &Recorded) {
        match &recorded.event {
            Event::Stream(StreamEvent::SlotObserved { name, confirmed, restart, .. }) => {
                self.slot = Some((name.clone(), *confirmed, *restart, recorded.at));
            }
            Event::Stream(StreamEvent::TxnRouted { committed_at, .. }) => {
                self.routing_lag = Some(recorded.at.since(*committed_at));
            }
            Event::Consumer(ConsumerEvent::Exited { .. }) => self.exits.observe(recorded),
            Event::Shape(ShapeEvent::Gone { sid }) => self.exits.forget(*sid),
            // Every writer of the process before has ended: all are counted anew.
            Event::Ownership(OwnershipEvent::Acquired { .. }) => self.census = Census::of(&self.state),
            Event::Stream(_)
            | Event::Consumer(_)
            | Event::Shape(_)
            | Event::Ownership(_)
            | Event::Flush(_)
            | Event::Journal(_) => {}
        }
    }

    /// Events after one, oldest first; and how many between it and the first of them are not kept.
    pub fn recent(&self, after: EventId) -> (u64, impl Iterator<Item = &Told>) {
        let first = self.recent.front().map_or(self.state.last.next(), |told| told.id);
        let missed = first.0.saturating_sub(after.0.saturating_add(1));
        let skip = usize::try_from(after.0.saturating_add(1).saturating_sub(first.0)).unwrap_or(usize::MAX);
        (missed, self.recent.iter().skip(skip))
    }

    /// The fold's figures after that event, while they are kept.
    #[must_use]
    pub fn figures(&self, event: EventId) -> Option<Figures> {
        let at = self.figures.binary_search_by_key(&event, |figures| figures.event).ok()?;
        Some(self.figures[at])
    }
}

fn keep<T>(kept: &mut VecDeque<T>, max: usize, next: T) {
    if kept.len() == max {
        kept.pop_front();
    }
    kept.push_back(next);
}

//! A fleet of shapes whose writers die at random, over the real engine, the real journal and the real order of
//! persisting and performing. Postgres and the writers are simulated: a writer takes transactions in, reports
//! them as flushed every 50 ms, and may die without a word, which only the audit can find.
//!
//! What must hold: those that the audit flags are those that died, nobody else is touched, and what Postgres
//! has to keep stays bounded. In the end the table is truncated: every shape ends in one step.

mod report;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use shapefold::domain::{
    DefinitionHash, Epoch, EventId, Handle, Incarnation, Lsn, Oid, PgSnapshot, Seq, Sid, SidSet, Timestamp,
    Xid,
};
use shapefold::engine::{Boot, Commit, Effect, Engine, FlushReport, Input, Policy, PostgresReady, Refusal};
use shapefold::events::{
    ConsumerEvent, DestructionResult, Event, ExitCause, PreviousEnd, ProcessInfo, Recorded, ShapeEvent,
    decode, encode,
};
use shapefold::journal::{
    Durability, Entry, Journal, JournalError, JournalHandle, JournalThread, Notice, SledJournal, Stopped,
};
use shapefold::runtime::core::{Core, Persist};
use shapefold::state::State;

pub use report::{FleetReport, FleetSettings};

const TABLE: Oid = Oid(100);
/// The world moves in steps of this length.
const SLICE: Duration = Duration::from_millis(10);
/// As the service: how often writers flush, and how often the engine is told that time passes.
const FLUSH_EVERY: Duration = Duration::from_millis(50);
const TICK_EVERY: Duration = Duration::from_millis(50);
/// Events between two checkpoints, as the service has them.
const CHECKPOINT_EVENTS: u64 = 200_000;
/// Shapes that are made before the journal is waited for.
const MADE_AT_ONCE: u32 = 10_000;
/// Longest wait for the journal.
const JOURNAL_WAIT_MAX: Duration = Duration::from_secs(60);
/// Longest time that the end may take, of the fleet's own time.
const END_MAX: Duration = Duration::from_secs(120);

/// Why a run came to no end.
#[derive(Debug, thiserror::Error)]
pub enum FleetError {
    #[error("the journal failed: {0}")]
    Journal(#[from] JournalError),
    #[error("the journal has ended")]
    JournalGone,
    #[error("the engine refused what the fleet did: {0}")]
    Refused(#[from] Refusal),
    #[error("the engine ended the process")]
    Ended,
    #[error("something is still owed {0} s after the last transaction")]
    NoEnd(u64),
    #[error("the journal holds what cannot be read: {0}")]
    Undecoded(String),
}

impl From<Stopped> for FleetError {
    fn from(_: Stopped) -> FleetError {
        FleetError::JournalGone
    }
}

/// How much of what was decided is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wait {
    Nothing,
    /// That it is performed.
    Effects,
    /// That it is durable.
    Everything,
}

/// Runs a fleet on a journal in `directory`, which must be empty. `tell` is called once a second of its time,
/// with what is known so far.
///
/// # Errors
/// [`FleetError`].
pub fn run(
    directory: &Path,
    settings: &FleetSettings,
    mut tell: impl FnMut(Duration, &FleetReport),
) -> Result<FleetReport, FleetError> {
    let (journal, _) = SledJournal::open(directory, EventId(0))?;
    let (notify, notices) = channel();
    let tell_notice = Box::new(move |notice| {
        let _gone = notify.send(notice);
    });
    let (journal, journal_thread) = JournalThread::spawn(journal, tell_notice)?;
    let mut fleet = Fleet::new(settings.clone(), journal, notices);
    let begun = Instant::now();
    fleet.boot()?;
    fleet.make()?;
    fleet.report.making = begun.elapsed();
    fleet.report.living_at_start = fleet.live.len();
    let begun = Instant::now();
    fleet.live_and_die(&mut tell)?;
    fleet.come_to_an_end()?;
    fleet.report.running = begun.elapsed();
    fleet.end_all()?;
    let state = fleet.core.engine().state().clone();
    let mut report = fleet.finish();
    journal_thread.join();
    report.journal_differs = folded(directory)? != state;
    Ok(report)
}

struct Fleet {
    settings: FleetSettings,
    random: StdRng,
    core: Core,
    journal: JournalHandle,
    notices: Receiver<Notice>,
    now: Timestamp,
    lsn: Lsn,
    acked: Lsn,
    /// Writers that run.
    live: BTreeMap<Sid, Incarnation>,
    /// What they have taken in and not flushed.
    dirty: BTreeMap<Sid, Seq>,
    killed: BTreeSet<(Sid, Incarnation)>,
    flagged: BTreeSet<(Sid, Incarnation)>,
    entries: Vec<Entry>,
    sync: bool,
    checkpointed: u64,
    report: FleetReport,
}

impl Fleet {
    fn new(settings: FleetSettings, journal: JournalHandle, notices: Receiver<Notice>) -> Fleet {
        Fleet {
            random: StdRng::seed_from_u64(settings.seed),
            settings,
            core: Core::new(Engine::new(Policy::default())),
            journal,
            notices,
            now: Timestamp(1_800_000_000_000_000),
            lsn: Lsn(1_000_000),
            acked: Lsn(1_000_000),
            live: BTreeMap::new(),
            dirty: BTreeMap::new(),
            killed: BTreeSet::new(),
            flagged: BTreeSet::new(),
            entries: Vec::new(),
            sync: false,
            checkpointed: 0,
            report: FleetReport::default(),
        }
    }

    fn boot(&mut self) -> Result<(), FleetError> {
        self.input(Input::Boot(Boot {
            process: ProcessInfo::default(),
            epoch: Epoch(1),
            previous_end: PreviousEnd::None,
            device: 1,
            inode: 1,
            waited_ms: 0,
            torn_values: 0,
            missing_upto: None,
        }))?;
        self.settle(Wait::Effects)
    }

    /// Makes the shapes, and gives each a writer.
    fn make(&mut self) -> Result<(), FleetError> {
        for number in 1..=self.settings.shapes {
            let micros = u64::from(number);
            let handle = Handle { hash: micros, micros };
            self.input(Input::CreateShape { handle, definition: DefinitionHash(micros), oid: TABLE })?;
            if number % MADE_AT_ONCE == 0 {
                self.settle(Wait::Effects)?;
            }
        }
        self.settle(Wait::Effects)?;
        // One transaction that all want: its events are one append.
        self.commit((1..=self.settings.shapes).map(Sid).collect())?;
        self.settle(Wait::Effects)?;
        self.flush()?;
        self.settle(Wait::Effects)
    }

    fn live_and_die(&mut self, tell: &mut impl FnMut(Duration, &FleetReport)) -> Result<(), FleetError> {
        let begun = Instant::now();
        let slices = self.settings.duration.as_millis() / SLICE.as_millis();
        for slice in 1..=u32::try_from(slices).unwrap_or(u32::MAX) {
            let own = SLICE * slice;
            if self.settings.real_time {
                let elapsed = begun.elapsed();
                self.report.longest_lag = self.report.longest_lag.max(elapsed.saturating_sub(own));
                thread::sleep(own.saturating_sub(elapsed));
            }
            let working = Instant::now();
            let due =
                |rate: u32, upto: u32| u64::from(rate) * u64::from(upto) * SLICE.as_millis() as u64 / 1_000;
            for _ in due(self.settings.txns_per_second, slice - 1)..due(self.settings.txns_per_second, slice)
            {
                let set = (0..self.settings.fan_out)
                    .map(|_| Sid(self.random.random_range(1..=self.settings.shapes)))
                    .collect();
                self.commit(set)?;
            }
            self.pass(slice, true)?;
            self.report.longest_slice = self.report.longest_slice.max(working.elapsed());
            if is_due(slice, Duration::from_secs(1)) {
                self.report.killed = self.killed.len();
                self.report.flagged = self.flagged.len();
                self.report.retained_at_end = self.retained();
                tell(own, &self.report);
            }
        }
        Ok(())
    }

    /// Nobody dies any more, and nothing is written: everything is to be acknowledged.
    fn come_to_an_end(&mut self) -> Result<(), FleetError> {
        let slices = u32::try_from(END_MAX.as_millis() / SLICE.as_millis()).unwrap_or(u32::MAX);
        for slice in 1..=slices {
            self.pass(slice, false)?;
            if self.killed.len() > self.flagged.len() || !self.core.engine().state().window.is_empty() {
                continue;
            }
            self.settle(Wait::Everything)?;
            if self.retained() == 0 {
                return Ok(());
            }
        }
        Err(FleetError::NoEnd(END_MAX.as_secs()))
    }

    /// The table is truncated: one step ends all shapes, and its events belong together.
    fn end_all(&mut self) -> Result<(), FleetError> {
        self.report.ended_before = self.report.others_touched;
        let begun = Instant::now();
        self.lsn.0 += self.settings.wal_bytes;
        let truncate = self.transaction(SidSet::new(), vec![TABLE]);
        let before = self.report.events;
        self.input(Input::Commit(truncate))?;
        self.report.end_events = self.report.events - before;
        self.report.end_bytes = self.entries.iter().map(|entry| entry.bytes.len() as u64).sum();
        self.report.end_step = begun.elapsed();
        self.settle(Wait::Everything)?;
        self.report.ending = begun.elapsed();
        self.report.left = self.core.engine().state().shapes.len();
        Ok(())
    }

    /// A slice of time, with everything that is due at its end.
    fn pass(&mut self, slice: u32, killing: bool) -> Result<(), FleetError> {
        self.now = self.now.plus(SLICE);
        if is_due(slice, FLUSH_EVERY) {
            self.flush()?;
        }
        if killing && is_due(slice, Duration::from_secs(1)) {
            self.kill();
        }
        if is_due(slice, self.settings.audit_every) {
            self.audit()?;
        }
        if is_due(slice, TICK_EVERY) {
            self.input(Input::Tick)?;
            self.checkpoint()?;
        }
        self.settle(if self.settings.real_time { Wait::Nothing } else { Wait::Effects })?;
        self.report.retained_max = self.report.retained_max.max(self.retained());
        Ok(())
    }

    fn commit(&mut self, set: SidSet) -> Result<(), FleetError> {
        self.lsn.0 += self.settings.wal_bytes;
        self.report.transactions += 1;
        self.input(Input::Commit(self.transaction(set, Vec::new())))
    }

    fn transaction(&self, set: SidSet, truncated: Vec<Oid>) -> Commit {
        Commit {
            generation: self.core.engine().state().stream.generation,
            lsn: self.lsn,
            xid: Xid(20),
            committed_at: self.now,
            changes: 1,
            bytes: 100,
            set,
            tables: vec![TABLE],
            truncated,
            old_row_missing: Vec::new(),
        }
    }

    fn flush(&mut self) -> Result<(), FleetError> {
        let dirty = std::mem::take(&mut self.dirty);
        let report =
            |(sid, upto): (Sid, Seq)| Some(FlushReport { sid, incarnation: *self.live.get(&sid)?, upto });
        let reports: Vec<FlushReport> = dirty.into_iter().filter_map(report).collect();
        if reports.is_empty() { Ok(()) } else { self.input(Input::Flushed { reports }) }
    }

    /// Some writers are gone, with what they had not flushed, and nobody says so.
    fn kill(&mut self) {
        let chance = (self.settings.killed_percent / 100.0).clamp(0.0, 1.0);
        let random = &mut self.random;
        let dead: Vec<(Sid, Incarnation)> = self
            .live
            .iter()
            .map(|(sid, incarnation)| (*sid, *incarnation))
            .filter(|_| random.random_bool(chance))
            .collect();
        for (sid, incarnation) in dead {
            self.live.remove(&sid);
            self.dirty.remove(&sid);
            self.killed.insert((sid, incarnation));
        }
    }

    fn audit(&mut self) -> Result<(), FleetError> {
        let begun = Instant::now();
        let asked = self.core.performed_upto();
        let live = self.live.iter().map(|(sid, incarnation)| (*sid, *incarnation)).collect();
        self.input(Input::LiveWriters { asked, live })?;
        self.report.audits += 1;
        self.report.longest_audit = self.report.longest_audit.max(begun.elapsed());
        Ok(())
    }

    fn checkpoint(&mut self) -> Result<(), FleetError> {
        let last = self.core.engine().state().last;
        if last.0 - self.checkpointed >= CHECKPOINT_EVENTS {
            self.persist()?;
            self.checkpointed = last.0;
            self.report.checkpoints += 1;
            self.journal.checkpoint(last, self.core.engine().state().to_bytes())?;
        }
        Ok(())
    }

    /// Log that Postgres keeps: from what it was told to be flushed to the newest commit.
    fn retained(&self) -> u64 {
        (self.lsn.0 + 1).saturating_sub(self.acked.0)
    }

    fn input(&mut self, input: Input) -> Result<(), FleetError> {
        match self.core.input(self.now, input) {
            Ok(persist) => {
                self.follow(persist);
                Ok(())
            }
            // The world has moved on meanwhile.
            Err(Refusal::StaleIncarnation | Refusal::UnknownShape) => Ok(()),
            Err(refusal) => Err(refusal.into()),
        }
    }

    fn follow(&mut self, persist: Persist) {
        for recorded in &persist.events {
            self.note(recorded);
        }
        let entry = |recorded: &Recorded| Entry { id: recorded.id, bytes: encode(recorded) };
        self.entries.extend(persist.events.iter().map(entry));
        self.sync |= persist.sync;
    }

    fn note(&mut self, recorded: &Recorded) {
        self.report.events += 1;
        match &recorded.event {
            Event::Consumer(ConsumerEvent::Exited { sid, incarnation, cause, .. }) => {
                let writer = (*sid, *incarnation);
                if *cause == ExitCause::Vanished {
                    self.flagged.insert(writer);
                } else {
                    self.report.others_touched += 1;
                }
            }
            Event::Consumer(ConsumerEvent::StallSuspected { .. })
            | Event::Shape(ShapeEvent::Invalidated { .. }) => self.report.others_touched += 1,
            Event::Consumer(_)
            | Event::Shape(_)
            | Event::Ownership(_)
            | Event::Stream(_)
            | Event::Flush(_)
            | Event::Journal(_) => {}
        }
    }

    fn persist(&mut self) -> Result<(), FleetError> {
        if self.entries.is_empty() {
            return Ok(());
        }
        let entries = std::mem::take(&mut self.entries);
        let durability = if std::mem::take(&mut self.sync) { Durability::Now } else { Durability::Lazy };
        match self.journal.append(entries, durability) {
            Ok(()) => Ok(()),
            Err(Stopped) => Err(self.journal_failed()),
        }
    }

    /// Why the journal has ended.
    fn journal_failed(&self) -> FleetError {
        self.notices
            .iter()
            .find_map(|notice| match notice {
                Notice::Failed(error) => Some(error.into()),
                Notice::Durable(_) | Notice::Checkpointed(_) | Notice::Trimmed(_) => None,
            })
            .unwrap_or(FleetError::JournalGone)
    }

    /// Persists what was decided and performs what may be performed, until what is waited for is reached.
    fn settle(&mut self, wait: Wait) -> Result<(), FleetError> {
        loop {
            self.persist()?;
            while let Ok(notice) = self.notices.try_recv() {
                self.notice(notice)?;
            }
            let mut performed = false;
            while let Some(effect) = self.core.next_effect() {
                performed = true;
                self.perform(effect)?;
            }
            if performed || !self.entries.is_empty() {
                continue;
            }
            let reached = match wait {
                Wait::Nothing => true,
                Wait::Effects => self.core.is_settled(),
                Wait::Everything => self.core.durable_upto() >= self.core.engine().state().last,
            };
            if reached {
                return Ok(());
            }
            match self.notices.recv_timeout(JOURNAL_WAIT_MAX) {
                Ok(notice) => self.notice(notice)?,
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                    return Err(FleetError::JournalGone);
                }
            }
        }
    }

    fn notice(&mut self, notice: Notice) -> Result<(), FleetError> {
        match notice {
            Notice::Durable(upto) => self.core.durable(upto),
            Notice::Checkpointed(_) | Notice::Trimmed(_) => {}
            Notice::Failed(error) => return Err(error.into()),
        }
        Ok(())
    }

    fn perform(&mut self, effect: Effect) -> Result<(), FleetError> {
        match effect {
            Effect::ConnectPostgres => self.input(Input::PostgresReady(self.postgres())),
            Effect::SendStatus { lsn, .. } => {
                self.acked = self.acked.max(lsn);
                Ok(())
            }
            Effect::StartSnapshot { sid, attempt } => {
                let snapshot = PgSnapshot { xmin: 10, xmax: 10, xip: Vec::new() };
                self.input(Input::SnapshotOpened { sid, attempt, snapshot, lsn: Lsn(1) })
            }
            Effect::CopyRows { sid, attempt } => {
                self.input(Input::SnapshotCompleted { sid, attempt, rows: 0, bytes: 0 })
            }
            Effect::AbortSnapshot { sid } => self.input(Input::SnapshotStopped { sid }),
            Effect::StartWriter { sid, incarnation, replay, .. } => {
                self.live.insert(sid, incarnation);
                if let Some(newest) = replay.last() {
                    self.dirty.insert(sid, *newest);
                }
                self.input(Input::WriterReady { sid, incarnation, recovered: Lsn(0), trimmed_bytes: 0 })
            }
            Effect::StopWriter { sid, incarnation, cause } => {
                if self.live.get(&sid) == Some(&incarnation) {
                    self.live.remove(&sid);
                    self.dirty.remove(&sid);
                    return self.input(Input::WriterExited { sid, incarnation, cause });
                }
                Ok(())
            }
            Effect::Deliver { seq, to } => {
                for (sid, incarnation) in to {
                    if self.live.get(&sid) == Some(&incarnation) {
                        self.dirty.insert(sid, seq);
                    }
                }
                Ok(())
            }
            Effect::TrashFiles { sid, intent, .. } => {
                self.input(Input::FilesTrashed { sid, intent, result: DestructionResult::Done })
            }
            Effect::Exit | Effect::Abort => Err(FleetError::Ended),
            Effect::StartStream { .. }
            | Effect::StopStream
            | Effect::RestoreShape { .. }
            | Effect::OpenShape { .. }
            | Effect::SwitchLog { .. }
            | Effect::ForgetBefore { .. }
            | Effect::RotateReaders { .. }
            | Effect::QuarantineFiles { .. }
            | Effect::PurgeQuarantined { .. }
            | Effect::ReleasePublication { .. } => Ok(()),
        }
    }

    fn postgres(&self) -> PostgresReady {
        PostgresReady {
            system_id: 1,
            timeline: 1,
            server_version: 170_000,
            database: Oid(5),
            backend_pid: 9,
            slot: "slot".to_owned(),
            confirmed: self.acked,
            restart: self.acked,
            slot_created: true,
            slot_lost: false,
            published: vec![TABLE],
            publication_created: false,
            lineage: shapefold::domain::Lineage::default(),
        }
    }

    fn finish(self) -> FleetReport {
        let mut report = self.report;
        report.killed = self.killed.len();
        report.flagged = self.flagged.len();
        report.flagged_alive = self.flagged.difference(&self.killed).count();
        report.missed = self.killed.difference(&self.flagged).count();
        report
    }
}

/// What the journal on disk folds to.
fn folded(directory: &Path) -> Result<State, FleetError> {
    let (journal, report) = SledJournal::open(directory, EventId(0))?;
    let mut state = State::default();
    for entry in journal.read(report.first) {
        let recorded = decode(&entry?.bytes).map_err(|error| FleetError::Undecoded(error.to_string()))?;
        state.apply(&recorded);
    }
    Ok(state)
}

/// Whether something that is done once in `every` is due at the end of this slice.
fn is_due(slice: u32, every: Duration) -> bool {
    u128::from(slice) % (every.as_millis() / SLICE.as_millis()).max(1) == 0
}

//! Rewriting logs that have grown far beyond their rows: one at a time, on a thread of its own, since it
//! reads and writes a lot. What it makes lies beside the log; putting it in its place is announced in the
//! journal and done by the writer.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;

use crate::domain::{Incarnation, Sid};
use crate::engine::Input;
use crate::events::IntentId;
use crate::runtime::driver::Message;
use crate::runtime::executor::{Executor, Outcome};
use crate::runtime::faults;
use crate::runtime::handle::LiveShape;
use crate::runtime::writers::Command;
use crate::shape_log::{
    CompactionPolicy, Preparation, Prepared, ShapeFiles, ShapeLogError, ShapeView, is_compactable, prepare,
};

/// Logs that wait to be rewritten, at most; the others ask again when they have grown.
const WAITING_MAX: usize = 1_024;
/// Free space that is left to the others: with less of it after the new generation is made, none is made.
const SPARE_BYTES: u64 = 64 << 20;

/// Priority of the thread: the lowest.
const NICE: i32 = 19;
/// Between two tries to tell a driver whose queue is full.
const QUEUE_PAUSE: Duration = Duration::from_millis(20);

/// The thread, and what waits for it. Dropping it stops what it is doing and waits for that: afterwards
/// nothing is written to the directory any more.
#[derive(Debug)]
pub struct Compactor {
    jobs: Option<Sender<Job>>,
    thread: Option<JoinHandle<()>>,
    stop: Arc<AtomicBool>,
    waiting: VecDeque<(Sid, Incarnation)>,
    /// The shape whose log is being rewritten, or replaced.
    busy: Option<Sid>,
    /// What has been made, until the writer gets it.
    done: Slot,
}

type Slot = Arc<Mutex<Option<Box<Prepared>>>>;

#[derive(Debug)]
struct Job {
    sid: Sid,
    incarnation: Incarnation,
    files: ShapeFiles,
    shape: Arc<LiveShape>,
    view: Arc<ShapeView>,
}

/// What the thread works by.
#[derive(Clone, Debug)]
pub struct CompactionSettings {
    pub policy: CompactionPolicy,
    pub chunk_bytes: u64,
    pub data_dir: PathBuf,
}

impl Compactor {
    /// Starts the thread; it tells the driver when it is done with a log.
    ///
    /// # Errors
    /// The operating system gives no thread.
    pub fn spawn(settings: CompactionSettings, driver: mpsc::Sender<Message>) -> std::io::Result<Compactor> {
        let (jobs, queue) = channel();
        let (stop, done) = (Arc::new(AtomicBool::new(false)), Slot::default());
        let (stopped, slot) = (Arc::clone(&stop), Arc::clone(&done));
        let thread = thread::Builder::new().name("compactor".to_owned()).spawn(move || {
            // Nobody waits for it, and it reads whole logs: it takes what the others leave. (On Linux this
            // is about the thread, not the process.) Where that is refused it is only less polite.
            let _refused = rustix::process::nice(NICE);
            run(&settings, &queue, &stopped, &slot, &driver);
        })?;
        Ok(Compactor {
            jobs: Some(jobs),
            thread: Some(thread),
            stop,
            waiting: VecDeque::new(),
            busy: None,
            done,
        })
    }

    /// The log of a shape has grown.
    pub fn ask(&mut self, sid: Sid, incarnation: Incarnation) {
        self.waiting.retain(|(other, _)| *other != sid);
        if self.waiting.len() < WAITING_MAX {
            self.waiting.push_back((sid, incarnation));
        }
    }

    /// Begins with the next log, if none is being rewritten. `find` gives the shape and its files.
    pub fn go_on(&mut self, find: impl Fn(Sid) -> Option<(Arc<LiveShape>, ShapeFiles)>) {
        while self.busy.is_none()
            && let Some((sid, incarnation)) = self.waiting.pop_front()
        {
            let Some((shape, files)) = find(sid) else { continue };
            let view = shape.reader.view();
            // Another writer has a log of its own, which may end elsewhere.
            if view.incarnation() != incarnation || !is_compactable(&shape.definition) {
                continue;
            }
            let job = Job { sid, incarnation, files, shape, view };
            if self.jobs.as_ref().is_some_and(|jobs| jobs.send(job).is_ok()) {
                self.busy = Some(sid);
            }
        }
    }

    /// What was made, for its writer.
    pub fn take(&mut self) -> Option<Box<Prepared>> {
        self.done.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// The log of this shape is done with, replaced or not.
    pub fn finished(&mut self, sid: Sid) {
        if self.busy == Some(sid) {
            self.busy = None;
            drop(self.take());
        }
    }
}

impl Drop for Compactor {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.jobs = None;
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the compactor panicked");
        }
    }
}

fn run(
    settings: &CompactionSettings,
    queue: &Receiver<Job>,
    stop: &AtomicBool,
    slot: &Slot,
    driver: &mpsc::Sender<Message>,
) {
    while let Ok(job) = queue.recv() {
        let (sid, incarnation) = (job.sid, job.incarnation);
        let prepared = make(settings, &job, stop, driver);
        drop(job);
        let done = prepared.is_some();
        *slot.lock().unwrap_or_else(PoisonError::into_inner) = prepared;
        if !tell(driver, Message::LogPrepared { sid, incarnation, done }, stop) {
            return;
        }
    }
}

fn make(
    settings: &CompactionSettings,
    job: &Job,
    stop: &AtomicBool,
    driver: &mpsc::Sender<Message>,
) -> Option<Box<Prepared>> {
    let (sid, definition) = (job.sid, &job.shape.definition);
    if !has_room(&settings.data_dir, job.view.log_size()) {
        tracing::warn!(%sid, "a log is not compacted: there is no room for a second one beside it");
        return None;
    }
    let how = (settings.policy, settings.chunk_bytes);
    match prepare(&job.files, definition, &job.view, how, stop) {
        Ok(Preparation::Prepared(prepared)) => Some(prepared),
        Ok(Preparation::Nothing | Preparation::Stopped) => None,
        Ok(Preparation::Unreadable) => {
            tracing::error!(%sid, "a log has a message that cannot be compacted; it stays as it is");
            None
        }
        Err(error) => {
            tracing::warn!(%sid, %error, "a log could not be compacted; it stays as it is");
            if let ShapeLogError::Storage(fault) = error {
                // Damage is of the log that was read; anything else is of the one that was to be made.
                let whose = faults::is_damage(&fault).then_some(sid);
                tell(driver, Message::Input(faults::input(fault, whose)), stop);
            }
            None
        }
    }
}

/// Tells the driver, unless that waits for this thread to end. Whether it was told.
fn tell(driver: &mpsc::Sender<Message>, mut message: Message, stop: &AtomicBool) -> bool {
    while !stop.load(Ordering::Relaxed) {
        match driver.try_send(message) {
            Ok(()) => return true,
            Err(TrySendError::Closed(_)) => return false,
            Err(TrySendError::Full(back)) => message = back,
        }
        thread::sleep(QUEUE_PAUSE);
    }
    false
}

/// Whether a second log of that size fits, with something to spare. What is not known forbids nothing: a
/// disk that is full says so by itself.
fn has_room(data_dir: &Path, bytes: u64) -> bool {
    fs4::available_space(data_dir).map_or(true, |free| free >= bytes.saturating_add(SPARE_BYTES))
}

impl Executor {
    /// The log of a shape has grown far beyond its rows.
    pub fn compaction_due(&mut self, sid: Sid, incarnation: Incarnation) {
        if let Some(compactor) = &mut self.compactor {
            compactor.ask(sid, incarnation);
            self.compact_next();
        }
    }

    /// What had been made of the log of a shape is in its place, or of no use.
    pub fn compaction_over(&mut self, sid: Sid) {
        if let Some(compactor) = &mut self.compactor {
            compactor.finished(sid);
            self.compact_next();
        }
    }

    fn compact_next(&mut self) {
        let (shapes, disk, data_dir) = (&self.shapes, &self.disk, &self.data_dir);
        if let Some(compactor) = &mut self.compactor {
            compactor.go_on(|sid| {
                let shape = shapes.get(&sid)?;
                Some((Arc::clone(shape), ShapeFiles::open(Arc::clone(disk), data_dir, shape.handle)))
            });
        }
    }

    pub(super) fn switch_log(&mut self, sid: Sid, incarnation: Incarnation, intent: IntentId) -> Outcome {
        let prepared = self.compactor.as_mut().and_then(Compactor::take);
        let (Some(prepared), Some(shape)) = (prepared, self.shapes.get(&sid)) else {
            self.compaction_over(sid);
            return Outcome::Answer(Input::LogSwitched { sid, intent, outcome: None });
        };
        let files = self.files(shape.handle);
        self.writers.send(sid, Command::Switch { sid, incarnation, intent, files, prepared });
        Outcome::Done
    }

    /// Reads all rows of shapes that somebody could not read. Where that fails, too, the bytes are wrong.
    pub fn look_into_suspects(&self) {
        for shape in self.suspects.take().iter().filter_map(|sid| self.shapes.get(sid)).cloned() {
            let driver = self.context.driver.clone();
            self.runtime.spawn_blocking(move || match shape.reader.view().verify() {
                Err(ShapeLogError::Storage(fault)) if faults::is_damage(&fault) => {
                    tracing::error!(sid = %shape.sid, shape_handle = %shape.handle, %fault, "the files of a shape are damaged");
                    let input = faults::input(fault, Some(shape.sid));
                    let _closed = driver.blocking_send(Message::Input(input));
                }
                Ok(()) | Err(_) => {
                    tracing::warn!(sid = %shape.sid, "rows that could not be read once can be read now");
                }
            });
        }
    }
}

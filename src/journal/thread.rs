//! The journal's own thread: group commit. It owns the store; everyone else holds a [`JournalHandle`].
//!
//! Requests wait in one bounded queue. The thread takes what is queued, appends it as one batch, syncs once
//! for all of it, and reports the durable id. After the first failure it reports the error once and ends:
//! an fsync that failed must not be tried again, since it would succeed without the data.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::domain::EventId;

use super::error::{JournalError, Stage};
use super::walk::panic_message;
use super::{Entry, Journal, WRITE_BYTES_MAX};

/// Requests that wait; a sender beyond that waits too.
pub const QUEUE_REQUESTS_MAX: usize = 1024;
/// Record bytes after which a group takes no more requests.
const GROUP_BYTES_MAX: usize = 4 * 1024 * 1024;
/// How long entries that nobody waits for may wait for more before they are appended, all as one batch: each batch
/// costs the store a rewritten page and the waking of all its threads. Until they are appended they are lost with
/// the process, as they are before a sync.
const LINGER_MAX: Duration = Duration::from_millis(10);
/// Longest time that entries nobody waits for stay without a sync.
const LAZY_SYNC_AFTER_MAX: Duration = Duration::from_millis(500);

/// When appended entries have to be durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// With the next group commit.
    Now,
    /// With the next sync for whatever reason, at the latest after [`LAZY_SYNC_AFTER_MAX`].
    Lazy,
}

/// What the thread reports, in order, on itself: the callback must be quick and must not block on a sender
/// of requests.
#[derive(Debug)]
pub enum Notice {
    /// Everything up to here survives a crash. Rises strictly.
    Durable(EventId),
    /// A checkpoint is saved (and everything up to the journal's end is durable).
    Checkpointed(EventId),
    /// The first entry kept after a trim.
    Trimmed(EventId),
    /// The last notice: the journal takes nothing more.
    Failed(JournalError),
}

/// The journal thread has ended; why was reported as [`Notice::Failed`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the journal has stopped")]
pub struct Stopped;

enum Request {
    Append { entries: Vec<Entry>, durability: Durability },
    Checkpoint { upto: EventId, state: Vec<u8> },
    Trim { before: EventId },
}

/// Sends requests to the thread. Requests of one handle are performed in their order; entries of one request
/// are atomic.
#[derive(Clone)]
pub struct JournalHandle {
    requests: SyncSender<Request>,
}

impl JournalHandle {
    /// Waits while the queue is full.
    ///
    /// # Errors
    /// The thread has ended.
    pub fn append(&self, entries: Vec<Entry>, durability: Durability) -> Result<(), Stopped> {
        self.send(Request::Append { entries, durability })
    }

    /// # Errors
    /// The thread has ended.
    pub fn checkpoint(&self, upto: EventId, state: Vec<u8>) -> Result<(), Stopped> {
        self.send(Request::Checkpoint { upto, state })
    }

    /// # Errors
    /// The thread has ended.
    pub fn trim(&self, before: EventId) -> Result<(), Stopped> {
        self.send(Request::Trim { before })
    }

    fn send(&self, request: Request) -> Result<(), Stopped> {
        self.requests.send(request).map_err(|_| Stopped)
    }
}

/// The thread itself.
pub struct JournalThread {
    thread: JoinHandle<()>,
}

impl JournalThread {
    /// Starts the thread. It ends, after a last sync, when the last handle is dropped.
    ///
    /// # Errors
    /// The operating system gives no thread.
    pub fn spawn<J: Journal + Send + 'static>(
        journal: J,
        notify: Box<dyn FnMut(Notice) + Send>,
    ) -> Result<(JournalHandle, JournalThread), JournalError> {
        let (requests, queue) = sync_channel(QUEUE_REQUESTS_MAX);
        let thread = thread::Builder::new()
            .name("journal".to_owned())
            .spawn(move || supervise(journal, &queue, notify))
            .map_err(JournalError::io(Stage::Open))?;
        Ok((JournalHandle { requests }, JournalThread { thread }))
    }

    /// Waits for the end of the thread: drop every handle first. The store is closed afterwards.
    pub fn join(self) {
        if self.thread.join().is_err() {
            tracing::error!("the journal thread panicked in its callback");
        }
    }
}

fn supervise<J: Journal>(journal: J, queue: &Receiver<Request>, mut notify: Box<dyn FnMut(Notice) + Send>) {
    let mut committer = Committer { durable: journal.last(), journal, lazy_since: None };
    let run = AssertUnwindSafe(|| committer.run(queue, &mut notify));
    let error = match catch_unwind(run) {
        Ok(Ok(())) => return,
        Ok(Err(error)) => error,
        Err(panic) => JournalError::Panicked { stage: Stage::Append, message: panic_message(panic.as_ref()) },
    };
    notify(Notice::Failed(error));
}

struct Committer<J> {
    journal: J,
    durable: EventId,
    /// Since when entries are there that nobody waits for.
    lazy_since: Option<Instant>,
}

impl<J: Journal> Committer<J> {
    fn run(&mut self, queue: &Receiver<Request>, notify: &mut dyn FnMut(Notice)) -> Result<(), JournalError> {
        loop {
            let first = match self.lazy_since {
                None => queue.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(since) => queue.recv_timeout(LAZY_SYNC_AFTER_MAX.saturating_sub(since.elapsed())),
            };
            match first {
                Ok(request) => self.commit_group(request, queue, notify)?,
                Err(RecvTimeoutError::Timeout) => self.sync(notify)?,
                Err(RecvTimeoutError::Disconnected) => return self.sync(notify),
            }
        }
    }

    /// One batch of everything that is queued, one sync if anyone waits for it.
    fn commit_group(
        &mut self,
        first: Request,
        queue: &Receiver<Request>,
        notify: &mut dyn FnMut(Notice),
    ) -> Result<(), JournalError> {
        let mut batch: Vec<Entry> = Vec::new();
        let mut bytes = 0;
        let mut wanted = false;
        let mut next = Some(first);
        let until = Instant::now() + LINGER_MAX;
        for _ in 0..QUEUE_REQUESTS_MAX {
            let queued = next.take().or_else(|| queue.try_recv().ok());
            let lingers = !wanted && !batch.is_empty();
            let more = || queue.recv_timeout(until.saturating_duration_since(Instant::now())).ok();
            let Some(request) = queued.or_else(|| if lingers { more() } else { None }) else { break };
            match request {
                Request::Append { entries, durability } => {
                    let more: usize = entries.iter().map(|entry| entry.bytes.len()).sum();
                    // What belongs together with nothing goes in a write of its own.
                    if bytes + more > WRITE_BYTES_MAX {
                        self.append(&std::mem::take(&mut batch))?;
                        bytes = 0;
                    }
                    bytes += more;
                    batch.extend(entries);
                    wanted |= durability == Durability::Now;
                }
                Request::Checkpoint { upto, state } => {
                    self.append(&std::mem::take(&mut batch))?;
                    self.journal.checkpoint(upto, &state)?;
                    self.settled(self.journal.last(), notify);
                    notify(Notice::Checkpointed(upto));
                    (bytes, wanted) = (0, false);
                }
                Request::Trim { before } => {
                    self.append(&std::mem::take(&mut batch))?;
                    bytes = 0;
                    notify(Notice::Trimmed(self.journal.trim(before)?));
                }
            }
            if bytes >= GROUP_BYTES_MAX {
                break;
            }
        }
        self.append(&batch)?;
        let overdue = self.lazy_since.is_some_and(|since| since.elapsed() >= LAZY_SYNC_AFTER_MAX);
        if wanted || overdue { self.sync(notify) } else { Ok(()) }
    }

    fn append(&mut self, batch: &[Entry]) -> Result<(), JournalError> {
        if batch.is_empty() {
            return Ok(());
        }
        self.journal.append(batch)?;
        self.lazy_since.get_or_insert_with(Instant::now);
        Ok(())
    }

    fn sync(&mut self, notify: &mut dyn FnMut(Notice)) -> Result<(), JournalError> {
        let durable = self.journal.sync()?;
        self.settled(durable, notify);
        Ok(())
    }

    fn settled(&mut self, durable: EventId, notify: &mut dyn FnMut(Notice)) {
        self.lazy_since = None;
        if durable > self.durable {
            self.durable = durable;
            notify(Notice::Durable(durable));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, channel};

    use super::*;
    use crate::journal::{FailPoint, MemoryJournal, SledJournal};

    fn entries(first: u64, count: u64) -> Vec<Entry> {
        (first..first + count).map(|id| Entry { id: EventId(id), bytes: vec![1; 40] }).collect()
    }

    fn spawn<J: Journal + Send + 'static>(journal: J) -> (JournalHandle, JournalThread, Receiver<Notice>) {
        let (sender, notices) = channel();
        let notify = Box::new(move |notice| {
            let _ = sender.send(notice);
        });
        let (handle, thread) = JournalThread::spawn(journal, notify).unwrap();
        (handle, thread, notices)
    }

    #[test]
    fn every_id_becomes_durable_once_and_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let (journal, _) = SledJournal::open(dir.path(), EventId(0)).unwrap();
        let (handle, thread, notices) = spawn(journal);
        for first in (1..2000).step_by(2) {
            let durability = if first % 3 == 0 { Durability::Now } else { Durability::Lazy };
            handle.append(entries(first, 2), durability).unwrap();
        }
        drop(handle);
        thread.join();
        let mut last = EventId(0);
        let mut syncs = 0;
        for notice in notices {
            let Notice::Durable(id) = notice else { panic!("{notice:?}") };
            assert!(id > last);
            last = id;
            syncs += 1;
        }
        assert_eq!(last, EventId(2000));
        assert!(syncs <= 334, "no more syncs than were asked for: {syncs}");
        assert_eq!(SledJournal::open(dir.path(), EventId(0)).unwrap().1.last, EventId(2000));
    }

    #[test]
    fn a_lazy_entry_becomes_durable_without_any_further_request() {
        let (handle, _thread, notices) = spawn(MemoryJournal::new());
        handle.append(entries(1, 3), Durability::Lazy).unwrap();
        assert!(matches!(notices.recv(), Ok(Notice::Durable(EventId(3)))));
    }

    #[test]
    fn a_group_is_synced_exactly_if_someone_waits_for_it() {
        let check = |durabilities: &[Durability]| {
            let (requests, queue) = sync_channel(QUEUE_REQUESTS_MAX);
            for (first, durability) in (1..).zip(durabilities) {
                let entries = entries(first, 1);
                requests.send(Request::Append { entries, durability: *durability }).unwrap();
            }
            let journal = MemoryJournal::new();
            let mut committer = Committer { durable: EventId(0), journal, lazy_since: None };
            let mut notices = Vec::new();
            let first = queue.recv().unwrap();
            committer.commit_group(first, &queue, &mut |notice| notices.push(notice)).unwrap();
            let text = format!("{notices:?} of {}", committer.journal.last());
            text
        };
        assert_eq!(check(&[Durability::Now]), "[Durable(1)] of 1");
        assert_eq!(check(&[Durability::Lazy; 3]), "[] of 3");
        let mixed = [Durability::Lazy, Durability::Now, Durability::Lazy, Durability::Now];
        assert_eq!(check(&mixed), "[Durable(4)] of 4");
    }

    #[test]
    fn checkpoint_and_trim_keep_their_place_in_the_queue() {
        let (handle, thread, notices) = spawn(MemoryJournal::new());
        handle.append(entries(1, 10), Durability::Lazy).unwrap();
        handle.checkpoint(EventId(4), b"four".to_vec()).unwrap();
        handle.checkpoint(EventId(10), b"ten".to_vec()).unwrap();
        handle.trim(EventId(8)).unwrap();
        drop(handle);
        thread.join();
        let notices: Vec<Notice> = notices.into_iter().collect();
        assert!(
            matches!(
                notices[..],
                [
                    Notice::Durable(EventId(10)),
                    Notice::Checkpointed(EventId(4)),
                    Notice::Checkpointed(EventId(10)),
                    Notice::Trimmed(EventId(5)),
                ]
            ),
            "{notices:?}"
        );
    }

    #[test]
    fn a_failure_is_reported_once_and_ends_everything() {
        for stage in [Stage::Append, Stage::Sync] {
            let mut journal = MemoryJournal::new();
            journal.fail_at(FailPoint { stage, nth: 2 });
            let (handle, thread, notices) = spawn(journal);
            handle.append(entries(1, 1), Durability::Now).unwrap();
            assert!(matches!(notices.recv(), Ok(Notice::Durable(EventId(1)))));
            handle.append(entries(2, 1), Durability::Now).unwrap();
            thread.join();
            assert_eq!(handle.append(entries(3, 1), Durability::Now), Err(Stopped));
            let rest: Vec<Notice> = notices.into_iter().collect();
            let [Notice::Failed(JournalError::Injected { stage: struck })] = rest[..] else {
                panic!("{rest:?}")
            };
            assert_eq!(struck, stage);
        }
    }

    #[test]
    fn an_entry_out_of_order_ends_everything_too() {
        let (handle, thread, notices) = spawn(MemoryJournal::new());
        handle.append(entries(2, 1), Durability::Now).unwrap();
        thread.join();
        let rest: Vec<Notice> = notices.into_iter().collect();
        assert!(matches!(rest[..], [Notice::Failed(JournalError::NotDense { .. })]), "{rest:?}");
    }
}

//! Sealing: copying what a checkpoint covers out of the journal into plain files, and removing those
//! that are past their retention. On a thread of its own, since it reads and writes a lot.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};

use tokio::sync::mpsc::UnboundedSender;

use crate::domain::{Epoch, EventId};
use crate::events;
use crate::journal::{
    Archive, ArchiveSegment, JournalError, JournalPaths, JournalReader, Retention, SealSpan,
};
use crate::runtime::clock;

/// Events in one segment: a segment is read from its start, so it must not be too long.
const SEGMENT_EVENTS_MAX: u64 = 500_000;

/// The sealing thread. Dropping it waits for what it is doing.
#[derive(Debug)]
pub struct Archiver {
    requests: Option<Sender<Request>>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
enum Request {
    Seal { epoch: Epoch, upto: EventId },
    Remove(Vec<ArchiveSegment>),
}

/// What was archived. At most one for each checkpoint.
#[derive(Debug)]
pub struct Archived {
    pub sealed: Vec<ArchiveSegment>,
    /// Past their retention: to be removed once that is journaled.
    pub expired: Vec<ArchiveSegment>,
}

impl Archiver {
    /// Starts the thread.
    ///
    /// # Errors
    /// The archive's directory cannot be used, or there is no thread to be had.
    pub fn spawn(
        paths: &JournalPaths,
        reader: JournalReader,
        retention: Retention,
        tell: UnboundedSender<Archived>,
    ) -> Result<Archiver, JournalError> {
        let archive = Archive::open(paths)?;
        let sealed_upto = archive.segments()?.last().map_or(EventId(0), |segment| segment.last);
        let (requests, queue) = channel();
        let mut sealer = Sealer { archive, reader, retention, sealed_upto };
        let thread = thread::Builder::new()
            .name("archiver".to_owned())
            .spawn(move || sealer.run(&queue, &tell))
            .map_err(JournalError::io(crate::journal::Stage::Open))?;
        Ok(Archiver { requests: Some(requests), thread: Some(thread) })
    }

    /// Seals everything up to `upto` that is not sealed yet; it must be durable in the journal.
    pub fn seal(&self, epoch: Epoch, upto: EventId) {
        self.send(Request::Seal { epoch, upto });
    }

    /// Removes segments; their removal must be in the journal.
    pub fn remove(&self, segments: Vec<ArchiveSegment>) {
        self.send(Request::Remove(segments));
    }

    fn send(&self, request: Request) {
        let sent = self.requests.as_ref().is_some_and(|requests| requests.send(request).is_ok());
        if !sent {
            tracing::error!("the archiver is gone");
        }
    }
}

impl Drop for Archiver {
    fn drop(&mut self) {
        self.requests = None;
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the archiver panicked");
        }
    }
}

struct Sealer {
    archive: Archive,
    reader: JournalReader,
    retention: Retention,
    sealed_upto: EventId,
}

impl Sealer {
    fn run(&mut self, queue: &Receiver<Request>, tell: &UnboundedSender<Archived>) {
        while let Ok(request) = queue.recv() {
            // Forensics must not stop the service: what could not be sealed stays in the journal, and
            // the next checkpoint tries again.
            match request {
                Request::Seal { epoch, upto } => match self.seal(epoch, upto) {
                    Ok(archived) => {
                        let _closed = tell.send(archived);
                    }
                    Err(error) => tracing::error!(%error, "the journal could not be archived"),
                },
                Request::Remove(segments) => {
                    for segment in segments {
                        if let Err(error) = self.archive.remove(&segment) {
                            tracing::error!(%error, first = %segment.first, "a segment could not be removed");
                        }
                    }
                }
            }
        }
    }

    fn seal(&mut self, epoch: Epoch, upto: EventId) -> Result<Archived, JournalError> {
        let mut sealed = Vec::new();
        while self.sealed_upto < upto {
            let first = self.first_kept(self.sealed_upto.next())?;
            let last = EventId(upto.0.min(first.0 + SEGMENT_EVENTS_MAX - 1));
            let span = SealSpan {
                epoch,
                first,
                last,
                oldest_at: self.time_of(first)?,
                newest_at: self.time_of(last)?,
            };
            sealed.push(self.archive.seal(&span, self.reader.read(first))?);
            self.sealed_upto = last;
        }
        let segments = self.archive.segments()?;
        let expired = self.retention.expired(clock::now(), &segments, &[]).into_iter().cloned().collect();
        Ok(Archived { sealed, expired })
    }

    /// The journal may begin later than the archive ends, where a segment was lost.
    fn first_kept(&self, wanted: EventId) -> Result<EventId, JournalError> {
        match self.reader.read(wanted).next() {
            Some(entry) => Ok(entry?.id),
            None => Ok(wanted),
        }
    }

    fn time_of(&self, id: EventId) -> Result<crate::domain::Timestamp, JournalError> {
        let entry = self.reader.read(id).next().transpose()?;
        let recorded = entry.and_then(|entry| events::decode(&entry.bytes).ok());
        Ok(recorded.map_or_else(clock::now, |recorded| recorded.at))
    }
}

//! Sealing: copying what a checkpoint covers out of the journal into plain files, and removing those
//! that are past their retention. On a thread of its own, since it reads and writes a lot.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};

use tokio::sync::mpsc::UnboundedSender;

use crate::domain::{Epoch, EventId};
use crate::events;
use crate::journal::{
    Archive, ArchiveSegment, JournalError, JournalPaths, JournalReader, Retention, SealSpan, StateMark,
};
use crate::runtime::clock;
use crate::state::State;

/// Events in one segment: a segment is read from its start, so it must not be too long.
const SEGMENT_EVENTS_MAX: u64 = 500_000;

/// A state is saved with the segments at least every so many events: so many are folded at most to answer for
/// any moment.
const STATE_EVENTS: u64 = 200_000;
/// … and earlier where it is small beside the segments since the last one: bytes of state for a byte of
/// segment. States shrink about as much, so they take no more room than what they stand for.
const STATE_BYTES_EACH: u64 = 4;

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
        let segments = archive.segments()?;
        let sealed_upto = segments.last().map_or(EventId(0), |segment| segment.last);
        let saved_upto = archive.states()?.last().map_or(EventId(0), |state| state.mark.upto);
        let unsaved_bytes =
            segments.iter().filter(|segment| segment.last > saved_upto).map(|segment| segment.bytes).sum();
        let (requests, queue) = channel();
        let mut sealer = Sealer { archive, reader, retention, sealed_upto, saved_upto, unsaved_bytes };
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
    /// The newest state in the archive, and the size of the segments behind it.
    saved_upto: EventId,
    unsaved_bytes: u64,
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
            let segment = self.archive.seal(&span, self.reader.read(first))?;
            self.unsaved_bytes += segment.bytes;
            sealed.push(segment);
            self.sealed_upto = last;
        }
        // Without a state the archive is complete all the same: folding takes longer.
        if let Err(error) = self.save_state(epoch, upto) {
            tracing::error!(%error, "a state could not be archived");
        }
        let segments = self.archive.segments()?;
        let expired = self.retention.expired(clock::now(), &segments, &[]).into_iter().cloned().collect();
        Ok(Archived { sealed, expired })
    }

    /// Keeps the checkpoint at `upto` with the segments, where one is due.
    fn save_state(&mut self, epoch: Epoch, upto: EventId) -> Result<(), JournalError> {
        if upto != self.sealed_upto || upto <= self.saved_upto {
            return Ok(());
        }
        // Replaced by newer ones already, where sealing took long: the next will do.
        let Some(checkpoint) = self.reader.checkpoint(upto)? else { return Ok(()) };
        let size = checkpoint.state.len() as u64;
        let due = upto.0 - self.saved_upto.0 >= STATE_EVENTS
            || size <= self.unsaved_bytes.saturating_mul(STATE_BYTES_EACH);
        let state = if due { State::from_bytes(&checkpoint.state) } else { None };
        let Some(state) = state else { return Ok(()) };
        let mark = StateMark { epoch, upto, at: state.at, routed: state.stream.routed };
        self.archive.save_state(&mark, &checkpoint.state)?;
        self.saved_upto = upto;
        self.unsaved_bytes = 0;
        Ok(())
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{Lsn, Sid, Timestamp};
    use crate::events::{AckCause, Recorded, StreamEvent};
    use crate::journal::{Entry, Journal, SledJournal};

    fn recorded(id: u64) -> Recorded {
        let event = StreamEvent::AckSent { lsn: Lsn(id * 10), cause: AckCause::Commit }.into();
        Recorded { id: EventId(id), at: Timestamp(id as i64), epoch: Epoch(1), because: None, event }
    }

    /// Appends up to `upto`, saves a checkpoint whose state has so many shapes, and seals.
    fn grow(dir: &std::path::Path, journal: &mut SledJournal, upto: u64, relations: u32) -> Vec<u64> {
        let (mut state, from) = (State::default(), journal.last().0 + 1);
        (1..=upto).for_each(|id| state.apply(&recorded(id)));
        state.relations = (0..relations).map(|oid| (crate::domain::Oid(oid), u64::from(oid))).collect();
        state.last_sid = Sid(relations);
        let entries: Vec<Entry> =
            (from..=upto).map(|id| Entry { id: EventId(id), bytes: events::encode(&recorded(id)) }).collect();
        journal.append(&entries).unwrap();
        journal.checkpoint(EventId(upto), &state.to_bytes()).unwrap();
        let paths = JournalPaths::new(dir);
        let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
        let archiver = Archiver::spawn(&paths, journal.reader(), Retention::default(), tell).unwrap();
        archiver.seal(Epoch(1), EventId(upto));
        drop(archiver);
        assert_eq!(told.try_recv().unwrap().sealed.len(), 1);
        let states = Archive::open(&paths).unwrap().states().unwrap();
        if let Some(newest) = states.last().filter(|state| state.mark.upto == EventId(upto)) {
            assert_eq!(newest.mark.at, Timestamp(upto as i64));
            assert_eq!(State::from_bytes(&newest.load().unwrap().state), Some(state));
        }
        states.iter().map(|state| state.mark.upto.0).collect()
    }

    /// Small beside its segments, a state is saved; large, not before enough events have come.
    #[test]
    fn states_are_saved_where_they_are_worth_their_room() {
        let dir = tempfile::tempdir().unwrap();
        let (mut journal, _) = SledJournal::open(dir.path(), EventId(0)).unwrap();
        assert_eq!(grow(dir.path(), &mut journal, 500, 0), [500]);
        assert_eq!(grow(dir.path(), &mut journal, 520, 100_000), [500]);
        assert_eq!(grow(dir.path(), &mut journal, 1_000, 0), [500, 1_000], "counted over a restart, too");
        assert_eq!(grow(dir.path(), &mut journal, 1_000 + STATE_EVENTS, 100_000), [500, 1_000, 201_000]);
    }
}

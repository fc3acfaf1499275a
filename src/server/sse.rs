//! Server-sent events: contract 1.13.
//!
//! A stream begins at the client's offset and goes on to the end of the log, over the ends of chunks,
//! then waits for more. Whatever it sends ends with `up-to-date`, of the view that the rows are from:
//! the client asks for `<lsn>_0` next, so that the LSN never passes a change that was not sent (P3).
//! The offset in the headers is the one that was asked for: a client whose stream breaks before
//! `up-to-date` throws the rows away and asks from there again.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use futures_util::stream;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::domain::Offset;
use crate::runtime::handle::LiveShape;
use crate::shape_log::{Range, Read, ShapeLogError, SnapshotFollow, messages};

use super::admission::Permit;
use super::body::{Rows, is_small, next_piece};
use super::live::{News, set, wait};
use super::response::up_to_date;

/// How long a stream lasts; the client comes back.
pub(super) const LIFETIME: Duration = Duration::from_secs(60);
/// A stream that caught up ends, but not before this. To the official client a stream of less than a
/// second is a broken one: it waits before the next, after three it goes back to long-poll, and, asked
/// for a subset while it waits, it reads the log twice at once and may keep rows that were deleted
/// (`it::client::subsets::a_short_stream_and_a_subset_make_the_client_read_twice`). Longer than that
/// second by what a timer may be early.
const CAUGHT_UP_LIFETIME: Duration = Duration::from_millis(1_200);
/// How long nothing is sent before a sign of life is.
const KEEP_ALIVE_AFTER: Duration = Duration::from_secs(21);
const KEEP_ALIVE: Bytes = Bytes::from_static(b": keep-alive\n\n");
/// Pieces from this size on are made events once for all streams that send them now.
const SHARED_BYTES_MIN: usize = 4 << 10;

/// The events of a shape after `from`. The permit is held until the stream ends.
pub(super) fn event_stream(
    shape: Arc<LiveShape>,
    closing: watch::Receiver<bool>,
    from: Offset,
    permit: Permit,
) -> Body {
    let now = Instant::now();
    let events = Events {
        shape,
        closing,
        from,
        at: from,
        passed: 0,
        next: Next::Look,
        waited: false,
        begun_at: now,
        owes_end: false,
        ends_at: now + LIFETIME,
        spoke_at: now,
        _permit: permit,
    };
    Body::from_stream(stream::unfold(events, Events::next))
}

struct Events {
    shape: Arc<LiveShape>,
    closing: watch::Receiver<bool>,
    from: Offset,
    /// Everything up to here was sent.
    at: Offset,
    /// Bytes after that which were sent.
    passed: usize,
    next: Next,
    /// The client has been at the end of the log once, while connected.
    waited: bool,
    begun_at: Instant,
    /// Rows were sent, and no `up-to-date` after them.
    owes_end: bool,
    ends_at: Instant,
    spoke_at: Instant,
    _permit: Permit,
}

/// What comes next.
enum Next {
    /// See what there is.
    Look,
    /// Rows up to `end`, and then, at the end of the log, `up-to-date`.
    Rows { rows: Rows, end: Offset, up_to_date: bool },
    /// Nothing, until there is more.
    Wait,
    /// The end of the stream.
    Close,
}

/// A piece of the stream, or `None` at its end.
type Step = Result<Option<Bytes>, ShapeLogError>;

impl Events {
    async fn next(mut self) -> Option<(Result<Bytes, ShapeLogError>, Events)> {
        match self.step().await {
            Ok(Some(events)) => {
                self.spoke_at = Instant::now();
                Some((Ok(events), self))
            }
            Ok(None) => None,
            // The client comes back, and is told why there is nothing.
            Err(ShapeLogError::SnapshotFailed) => None,
            Err(error) => {
                self.shape.unreadable(&error);
                tracing::warn!(shape_handle = %self.shape.handle, %error, "a stream was cut off: its rows cannot be read");
                self.next = Next::Close;
                Some((Err(error), self))
            }
        }
    }

    async fn step(&mut self) -> Step {
        loop {
            match std::mem::replace(&mut self.next, Next::Close) {
                Next::Close => return Ok(None),
                Next::Look => self.next = self.look()?,
                Next::Wait => {
                    self.waited = true;
                    let (at, owes_end) = (self.at, self.owes_end);
                    match self.wait(move |view| view.last() > at || (owes_end && !view.is_held_back())).await
                    {
                        Waited::News => self.next = Next::Look,
                        Waited::Quiet => {
                            self.next = Next::Wait;
                            return Ok(Some(KEEP_ALIVE));
                        }
                        Waited::Over => return Ok(None),
                    }
                }
                Next::Rows { rows, end, up_to_date } => {
                    let (rows, piece) = tokio::select! {
                        biased;
                        () = set(&mut self.closing) => return Ok(None),
                        read = next_piece(rows) => read,
                    };
                    if let Some(piece) = piece? {
                        self.owes_end = true;
                        self.next = Next::Rows { rows, end, up_to_date };
                        return Ok(Some(self.events(&piece)));
                    }
                    self.at = end;
                    self.passed = 0;
                    self.next = Next::Look;
                    if up_to_date {
                        self.owes_end = false;
                        return Ok(Some(self.up_to_date(end)));
                    }
                }
            }
        }
    }

    /// The next piece, which all streams at this place send.
    fn events(&mut self, piece: &[u8]) -> Bytes {
        let (at, len) = (self.passed, piece.len());
        self.passed += len;
        if len < SHARED_BYTES_MIN {
            return Bytes::from(events(piece));
        }
        self.shape.reader.shared().events.get(self.at, at, len, || events(piece))
    }

    /// What there is after what was sent.
    fn look(&self) -> Result<Next, ShapeLogError> {
        let view = self.shape.reader.view();
        if let Some(rows) = self.shape.reader.recent(self.at, &view) {
            return Ok(Next::Rows { rows: Rows::Whole(rows), end: view.last(), up_to_date: true });
        }
        match view.read(self.at)? {
            Read::Range(range) if range.end == self.at && !(self.owes_end && range.up_to_date) => {
                Ok(Next::Wait)
            }
            Read::Range(Range { end, up_to_date, mut body }) => {
                if !(up_to_date && body.in_memory() && is_small(&body)) {
                    return Ok(Next::Rows { rows: Rows::Range(body), end, up_to_date });
                }
                let mut rows = Vec::new();
                for piece in body.by_ref() {
                    rows.extend_from_slice(&piece?);
                }
                // The others want the same rows now.
                let rows = Bytes::from(rows);
                self.shape.reader.remember(self.at, end, &rows);
                Ok(Next::Rows { rows: Rows::Whole(rows), end, up_to_date })
            }
            Read::Pending { chunk } => Ok(Next::Rows {
                rows: Rows::Follow(SnapshotFollow::new(Arc::clone(&self.shape.reader), chunk)),
                end: Offset::snapshot_chunk(chunk),
                up_to_date: false,
            }),
            // Offsets only grow under one handle: what was sent is in every later view.
            Read::Beyond => Ok(Next::Close),
        }
    }

    /// The log was sent to its end. A client that came with an old offset has caught up and is soon
    /// sent away, to come back to the end of the log; one that came for the rest of the last transaction
    /// would come back with the same offset, so it stays.
    fn up_to_date(&mut self, end: Offset) -> Bytes {
        let caught_up = !self.waited && self.from.tx() != end.tx();
        if caught_up {
            self.ends_at = self.ends_at.min(self.begun_at + CAUGHT_UP_LIFETIME);
        }
        if Instant::now() >= self.ends_at {
            self.next = Next::Close;
        }
        event(up_to_date(end.tx()).as_bytes())
    }

    async fn wait(&mut self, wanted: impl Fn(&crate::shape_log::ShapeView) -> bool) -> Waited {
        let deadline = self.ends_at.min(self.spoke_at + KEEP_ALIVE_AFTER);
        match wait(&self.shape, &mut self.closing, deadline, wanted).await {
            News::Changed => Waited::News,
            News::TimedOut if deadline < self.ends_at => Waited::Quiet,
            News::TimedOut | News::Over | News::Closing => Waited::Over,
        }
    }
}

enum Waited {
    News,
    /// For long enough to show a sign of life.
    Quiet,
    Over,
}

const BEFORE: &[u8] = b"data: ";
const AFTER: &[u8] = b"\n\n";

fn event(message: &[u8]) -> Bytes {
    Bytes::from([BEFORE, message, AFTER].concat())
}

/// Whole messages, with commas between them, as events. JSON has no raw line breaks.
fn events(piece: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(piece.len() + piece.len() / 16);
    for message in messages(piece) {
        out.extend_from_slice(BEFORE);
        out.extend_from_slice(message);
        out.extend_from_slice(AFTER);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_event_for_each_message() {
        let piece = br#"{"a":"},{"},{"b":"\n"},"#;
        let expected = "data: {\"a\":\"},{\"}\n\ndata: {\"b\":\"\\n\"}\n\n";
        assert_eq!(events(piece), expected.as_bytes());
        assert_eq!(events(b""), b"");
    }
}

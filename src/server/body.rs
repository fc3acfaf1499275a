//! Bodies of log responses: a JSON array, streamed.
//!
//! What is small and in memory goes out whole; everything else as pieces of about 256 KiB, each read
//! when the client has taken the one before. After a read error the connection is cut: a client must
//! never take the beginning of a body for all of it.

use std::collections::VecDeque;
use std::sync::Arc;

use axum::body::Body;
use bytes::Bytes;
use futures_util::stream;

use crate::runtime::handle::LiveShape;
use crate::shape_log::{Body as Range, RECENT_BYTES_MAX, ShapeLogError, SnapshotFollow};

use super::admission::Permit;
use super::error::Failure;

/// So much is taken from memory before the first byte is sent.
const WHOLE_BYTES_MAX: usize = 256 << 10;
/// A body from this size on is sent in the pieces that it is in memory: thousands of live clients wait for
/// the same rows, and share them. A smaller one is copied, and sent with its length.
const SHARED_BYTES_MIN: usize = 16 << 10;

/// Where the rows come from.
#[derive(Debug)]
pub(super) enum Rows {
    Range(Range),
    /// Some, in memory.
    Whole(Bytes),
    /// A snapshot chunk that is still being written.
    Follow(SnapshotFollow),
}

/// The array of these rows; `last` is its last message, where it is not one of the rows. The permit is
/// held until all of it was taken, or the client went away.
///
/// # Errors
/// [`Failure::LogUnreadable`] where reading fails before the first byte is sent.
pub(super) fn log_body(
    shape: &Arc<LiveShape>,
    rows: Rows,
    last: Option<String>,
    permit: Permit,
) -> Result<Body, Failure> {
    let mut begun = VecDeque::from([Bytes::from_static(b"[")]);
    let mut len = 0;
    let rows = match rows {
        Rows::Follow(follow) => Rows::Follow(follow),
        Rows::Whole(rows) => {
            let separator = if rows.is_empty() { "" } else { "," };
            let ending = ending(separator, last.as_deref());
            return Ok(Body::from([&b"["[..], &rows, ending.as_bytes()].concat()));
        }
        Rows::Range(mut range) => {
            while range.in_memory()
                && len < WHOLE_BYTES_MAX
                && let Some(piece) = range.next()
            {
                let piece = piece.map_err(|error| Failure::LogUnreadable(error.to_string()))?;
                len += piece.len();
                begun.push_back(piece);
            }
            if range.is_empty() && len < SHARED_BYTES_MIN {
                let ending = ending(if len > 0 { "," } else { "" }, last.as_deref());
                begun.push_back(Bytes::from(ending));
                return Ok(Body::from(begun.make_contiguous().concat()));
            }
            Rows::Range(range)
        }
    };
    // Rows were sent or follow in either case.
    let ending = ending(",", last.as_deref());
    let shape = Arc::clone(shape);
    let pieces = Pieces { shape, begun, rows: Some(rows), ending, _permit: permit };
    Ok(Body::from_stream(stream::unfold(pieces, Pieces::next)))
}

fn ending(separator: &str, last: Option<&str>) -> String {
    last.map_or_else(|| "]".to_owned(), |last| format!("{separator}{last}]"))
}

struct Pieces {
    shape: Arc<LiveShape>,
    /// Pieces that are there.
    begun: VecDeque<Bytes>,
    /// `None` once there are no more.
    rows: Option<Rows>,
    /// Empty once it was sent.
    ending: String,
    _permit: Permit,
}

impl Pieces {
    async fn next(mut self) -> Option<(Result<Bytes, ShapeLogError>, Pieces)> {
        if let Some(begun) = self.begun.pop_front() {
            return Some((Ok(begun), self));
        }
        if let Some(rows) = self.rows.take() {
            let (rows, piece) = next_piece(rows).await;
            match piece {
                Ok(Some(piece)) => {
                    self.rows = Some(rows);
                    return Some((Ok(piece), self));
                }
                Ok(None) => {}
                Err(error) => {
                    self.shape.unreadable(&error);
                    tracing::warn!(shape_handle = %self.shape.handle, %error, "a response was cut off: its rows cannot be read");
                    self.ending.clear();
                    return Some((Err(error), self));
                }
            }
        }
        let ending = std::mem::take(&mut self.ending);
        (!ending.is_empty()).then(|| (Ok(Bytes::from(ending)), self))
    }
}

/// Whether a range is worth keeping for others who want it, too.
pub(super) fn is_small(range: &Range) -> bool {
    range.len_max().is_some_and(|len| len <= RECENT_BYTES_MAX as u64)
}

/// All of a small range, in one piece.
pub(super) async fn whole(range: Range) -> Result<Bytes, ShapeLogError> {
    let mut rows = Rows::Range(range);
    let mut all = Vec::new();
    loop {
        let (rest, piece) = next_piece(rows).await;
        let Some(piece) = piece? else { return Ok(Bytes::from(all)) };
        all.extend_from_slice(&piece);
        rows = rest;
    }
}

/// File reads block, so they are done where blocking is allowed.
pub(super) async fn next_piece(rows: Rows) -> (Rows, Result<Option<Bytes>, ShapeLogError>) {
    match rows {
        Rows::Follow(mut follow) => {
            let piece = follow.next().await;
            (Rows::Follow(follow), piece)
        }
        Rows::Whole(rows) => {
            let piece = (!rows.is_empty()).then_some(rows);
            (Rows::Whole(Bytes::new()), Ok(piece))
        }
        Rows::Range(mut range) if range.in_memory() => {
            let piece = range.next().transpose();
            (Rows::Range(range), piece)
        }
        Rows::Range(mut range) => {
            let read = tokio::task::spawn_blocking(move || {
                let piece = range.next().transpose();
                (Rows::Range(range), piece)
            });
            // The task is never aborted, so it can only have panicked: carry that on.
            read.await.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
        }
    }
}

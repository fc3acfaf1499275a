//! Pieces of bodies in memory because a client has not taken them, counted over all connections.
//!
//! Ten thousand clients that do not read, each with a quarter of a megabyte of another shape, would be
//! gigabytes. So pieces are large only while few bytes are held; from then on everybody, also who holds
//! nothing yet, gets small ones. Nobody waits for the bytes of somebody else, and nobody is cut off for
//! them: a small piece only costs more calls.

use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;

use super::frame::READ_WINDOW;

/// Bytes held from which on pieces are small. In all, no more is held than this, what those take who
/// read at this moment, and [`PIECE_BYTES_SMALL`] (or one message that is larger) for each connection.
pub const HELD_BYTES_MAX: usize = 128 << 20;
/// Of a large piece. A block of a snapshot ends with the message that takes it to the window that is read at once:
/// it is to be one piece with that message. Else each is searched for its messages, copied, and read twice.
const PIECE_BYTES_LARGE: usize = READ_WINDOW + READ_WINDOW / 4;
/// Of a small piece.
pub const PIECE_BYTES_SMALL: usize = 16 << 10;
/// Less than this is not worth counting: what goes with a connection takes more.
const COUNTED_BYTES_MIN: usize = 4 << 10;

/// Bytes that somebody holds.
#[derive(Debug, Default)]
struct Count(AtomicUsize);

/// Of the process.
static HELD: Count = Count(AtomicUsize::new(0));

impl Count {
    fn bytes(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    fn piece_bytes_max(&self) -> usize {
        if self.bytes() < HELD_BYTES_MAX { PIECE_BYTES_LARGE } else { PIECE_BYTES_SMALL }
    }

    fn hold(&'static self, bytes: Vec<u8>) -> Held {
        self.0.fetch_add(bytes.capacity(), Ordering::Relaxed);
        Held { bytes, count: self }
    }
}

/// Bytes that are held now.
#[must_use]
pub fn held_bytes() -> usize {
    HELD.bytes()
}

/// How large a piece may be now.
#[must_use]
pub(crate) fn piece_bytes_max() -> usize {
    HELD.piece_bytes_max()
}

/// Bytes that count for as long as somebody has them.
#[must_use]
pub fn held(bytes: Vec<u8>) -> Bytes {
    if bytes.len() < COUNTED_BYTES_MIN { Bytes::from(bytes) } else { Bytes::from_owner(Held::new(bytes)) }
}

#[derive(Debug)]
pub(crate) struct Held {
    bytes: Vec<u8>,
    count: &'static Count,
}

impl Held {
    pub fn new(bytes: Vec<u8>) -> Held {
        HELD.hold(bytes)
    }
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.count.0.fetch_sub(self.bytes.capacity(), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_makes_pieces_small() {
        // Not that of the process: other tests look at the size of pieces.
        static COUNT: Count = Count(AtomicUsize::new(0));
        assert_eq!(COUNT.piece_bytes_max(), PIECE_BYTES_LARGE);
        let all = Bytes::from_owner(COUNT.hold(vec![0; HELD_BYTES_MAX]));
        assert_eq!((COUNT.bytes(), COUNT.piece_bytes_max()), (HELD_BYTES_MAX, PIECE_BYTES_SMALL));
        let part = all.slice(5..);
        drop(all);
        assert_eq!(COUNT.piece_bytes_max(), PIECE_BYTES_SMALL, "a part holds all of it");
        drop(part);
        assert_eq!((COUNT.bytes(), COUNT.piece_bytes_max()), (0, PIECE_BYTES_LARGE));
    }
}

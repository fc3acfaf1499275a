//! Blocks of a snapshot that are in memory because somebody is being sent them.
//!
//! Many clients that begin at the same time, or that do not read what they asked for, hold the same
//! bytes once, not once each. Nothing is kept that nobody holds: this is no cache.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use bytes::Bytes;

use crate::domain::Offset;

use super::held::Held;

/// Positions that are remembered, at most; from then on those go that nobody holds any more.
const HELD_MAX: usize = 1_024;

/// Which bytes of a log: they follow `after`, begin so many bytes later, and are so many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    after: Offset,
    at: usize,
    len: usize,
}

/// A piece of a log in another form: thousands of clients that follow the log want the same one at the
/// same time, and share it. The last one that was made, for as long as somebody holds it.
#[derive(Debug, Default)]
pub struct SharedPiece {
    last: Mutex<Option<(Place, Weak<Held>)>>,
}

impl SharedPiece {
    /// What `make` makes of the `len` bytes that begin `at` bytes after the message at `after`. (Those are
    /// always the same: offsets are never used again.)
    pub fn get(&self, after: Offset, at: usize, len: usize, make: impl FnOnce() -> Vec<u8>) -> Bytes {
        let place = Place { after, at, len };
        let lock = || self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let held = lock().as_ref().filter(|(of, _)| *of == place).and_then(|(_, bytes)| bytes.upgrade());
        let bytes = held.unwrap_or_else(|| {
            // Two may make it at the same time: nobody waits.
            let bytes = Arc::new(Held::new(make()));
            *lock() = Some((place, Arc::downgrade(&bytes)));
            bytes
        });
        Bytes::from_owner(Shared(bytes))
    }
}

/// What those who follow one log share.
#[derive(Debug, Default)]
pub struct SharedRows {
    /// The last rows as events.
    pub events: SharedPiece,
    recent: Mutex<Option<Recent>>,
}

/// The newest rows of a log.
#[derive(Debug)]
struct Recent {
    from: Offset,
    end: Offset,
    rows: Bytes,
}

impl SharedRows {
    /// The rows after `from` up to `end`, if somebody has just read them.
    pub(crate) fn recent(&self, from: Offset, end: Offset) -> Option<Bytes> {
        let recent = self.lock();
        recent.as_ref().filter(|recent| recent.from == from && recent.end == end).map(|r| r.rows.clone())
    }

    pub(crate) fn remember(&self, from: Offset, end: Offset, rows: Bytes) {
        *self.lock() = Some(Recent { from, end, rows });
    }

    pub(crate) fn forget(&self) {
        *self.lock() = None;
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Recent>> {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The blocks of one snapshot file by their position.
#[derive(Debug, Default)]
pub(crate) struct SharedBlocks {
    held: Mutex<BTreeMap<u64, Weak<Held>>>,
}

struct Shared(Arc<Held>);

impl AsRef<[u8]> for Shared {
    fn as_ref(&self) -> &[u8] {
        self.0.as_ref().as_ref()
    }
}

impl SharedBlocks {
    /// The block, or the part of one, at that position: the one that somebody holds, or the one that `read` brings. Two may
    /// read at the same time; nobody waits for another one's disk.
    pub fn get<E>(&self, at: u64, read: impl FnOnce() -> Result<Vec<u8>, E>) -> Result<Bytes, E> {
        let held = self.lock().get(&at).and_then(Weak::upgrade);
        let bytes = match held {
            Some(bytes) => bytes,
            None => {
                let bytes = Arc::new(Held::new(read()?));
                let mut held = self.lock();
                if held.len() >= HELD_MAX {
                    held.retain(|_, bytes| bytes.strong_count() > 0);
                }
                if held.len() < HELD_MAX {
                    held.insert(at, Arc::downgrade(&bytes));
                }
                bytes
            }
        };
        Ok(Bytes::from_owner(Shared(bytes)))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<u64, Weak<Held>>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &[u8]) -> Result<Vec<u8>, ()> {
        Ok(bytes.to_vec())
    }

    #[test]
    fn what_somebody_holds_is_not_read_again() {
        let shared = SharedBlocks::default();
        let first = shared.get(0, || read(b"one")).expect("read");
        let again = shared.get(0, || -> Result<Vec<u8>, ()> { panic!("it is held") }).expect("held");
        assert_eq!((first.as_ptr(), &again[..]), (again.as_ptr(), &b"one"[..]));
        assert_eq!(shared.get(3, || read(b"other")).expect("read"), "other");
        drop((first, again));
        assert_eq!(shared.get(0, || read(b"anew")).expect("read"), "anew", "nobody held it");
        assert_eq!(shared.get(9, || Err("a fault")), Err("a fault"));
    }

    #[test]
    fn the_newest_rows_are_found_by_both_their_ends() {
        let (shared, from) = (SharedRows::default(), Offset::SNAPSHOT_END);
        let end = |tx| Offset::new(crate::domain::Lsn(tx), 0);
        assert_eq!(shared.recent(from, end(1)), None);
        shared.remember(from, end(1), Bytes::from_static(b"one"));
        assert_eq!(shared.recent(from, end(1)).expect("remembered"), "one");
        assert_eq!((shared.recent(from, end(2)), shared.recent(end(1), end(1))), (None, None));
        shared.remember(end(1), end(2), Bytes::from_static(b"two"));
        assert_eq!(shared.recent(from, end(1)), None);
        shared.forget();
        assert_eq!(shared.recent(end(1), end(2)), None);
    }

    #[test]
    fn a_piece_is_made_once_for_all_who_want_it_now() {
        let (shared, after) = (SharedPiece::default(), Offset::SNAPSHOT_END);
        let first = shared.get(after, 0, 9, || b"one".to_vec());
        let again = shared.get(after, 0, 9, || panic!("it is held"));
        assert_eq!((first.as_ptr(), &again[..]), (again.as_ptr(), &b"one"[..]));
        assert_eq!(shared.get(after, 9, 9, || b"next".to_vec()), "next");
        assert_eq!(shared.get(after, 0, 9, || b"anew".to_vec()), "anew", "the last one only");
        assert_eq!(shared.get(after, 0, 8, || b"shorter".to_vec()), "shorter");
        assert_eq!(first, "one");
        let last = shared.last.lock().expect("a lock").as_ref().and_then(|(_, bytes)| bytes.upgrade());
        assert!(last.is_none(), "nobody holds it");
    }

    #[test]
    fn what_nobody_holds_is_forgotten() {
        let shared = SharedBlocks::default();
        let kept = shared.get(7, || read(b"kept")).expect("read");
        for at in 100..100 + 2 * HELD_MAX as u64 {
            drop(shared.get(at, || read(b"gone")).expect("read"));
        }
        assert!(shared.lock().len() <= HELD_MAX);
        assert_eq!(shared.get(7, || read(b"other")).expect("held"), kept);
    }
}

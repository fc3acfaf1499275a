//! Blocks of a snapshot that are in memory because somebody is being sent them.
//!
//! Many clients that begin at the same time, or that do not read what they asked for, hold the same
//! bytes once, not once each. Nothing is kept that nobody holds: this is no cache.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use bytes::Bytes;

/// Positions that are remembered, at most; from then on those go that nobody holds any more.
const HELD_MAX: usize = 1_024;

/// The blocks of one snapshot file by their position.
#[derive(Debug, Default)]
pub(crate) struct SharedBlocks {
    held: Mutex<BTreeMap<u64, Weak<Vec<u8>>>>,
}

struct Held(Arc<Vec<u8>>);

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl SharedBlocks {
    /// The block at that position: the one that somebody holds, or the one that `read` brings. Two may
    /// read at the same time; nobody waits for another one's disk.
    pub fn get<E>(&self, at: u64, read: impl FnOnce() -> Result<Vec<u8>, E>) -> Result<Bytes, E> {
        let held = self.lock().get(&at).and_then(Weak::upgrade);
        let bytes = match held {
            Some(bytes) => bytes,
            None => {
                let bytes = Arc::new(read()?);
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
        Ok(Bytes::from_owner(Held(bytes)))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<u64, Weak<Vec<u8>>>> {
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

//! Who may change a data directory: one process at a time, by a file lock, with an epoch that only rises.
//!
//! The lock is `flock` on `<data dir>/LOCK`, which is opened read and write, never truncated and never
//! unlinked. It holds across containers and mount namespaces of one host, because it is on the inode; the
//! kernel drops it when the process dies, however it dies. It is not a fence: a paused process does not
//! know that it lost the directory, so [`FsLock::still_held`] compares inodes and epochs at each commit.
//! `flock` is not seen through overlayfs (opening for writing copies the file up): the data directory has
//! to be a volume or a bind mount.
//!
//! A file system may grant locks that mean nothing. So each lock is tried once more through a second
//! descriptor, which must not get it, and a mount whose options keep locks on this host is refused
//! (mounts.rs). [`Trust::Unconditional`] waives both.
//!
//! Creating the data directory and an empty `LOCK` is all that may be done before the lock is held.
//!
//! # `LOCK`, format version 1
//!
//! | Line | Content |
//! |---|---|
//! | 1 | JSON object: `format` (1), `epoch`, `state` (`held` or `released`), `pid`, `host`, `boot_id`, `started_at` (microseconds since 1970, UTC), `version`, `layout` (0 where it is missing) |
//! | 2 | `crc32c=` and 8 hex digits: CRC-32C over line 1 without its newline |
//!
//! Written in place and fsynced, only under the lock; a torn write shows in the checksum, and the epoch then
//! follows from the journal. Unknown JSON fields are ignored; a higher `format` is refused and left alone.

mod error;
mod fs_lock;
mod mounts;
mod record;

pub use error::{NotHeld, OwnershipError, OwnershipStage};
pub use fs_lock::{Attempt, FsLock, Inode, LockedDirectory, PrevEnd, Previous, Trust, read_record};
pub use record::{Contents, Identity, LockRecord, LockState};

#[cfg(test)]
mod tests;

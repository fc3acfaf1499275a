//! Disk space kept for the end: when the disk is full, it is given up, so that the facts about the full disk
//! and the drain can still be written.
//!
//! sled cannot go on after a write that failed, so the reserve has to be given up *before* the disk is
//! quite full: the runtime calls [`Reserve::watch`] regularly and drains on [`ReserveState::Released`].

use std::fs::{File, OpenOptions};
use std::io;
use std::path::PathBuf;

use super::error::{JournalError, Stage};
use super::files::{self, JournalPaths};

/// Enough for a few thousand events, a checkpoint of a small state and sled's segments of 512 KiB.
pub const RESERVE_BYTES: u64 = 2 * 1024 * 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReserveState {
    /// The space is set aside.
    Kept,
    /// The disk ran full and the space was given up: take nothing new, acknowledge nothing, drain.
    Released,
}

/// The file `journal/reserve`. Only under the ownership lock.
pub struct Reserve {
    file: File,
    dir: PathBuf,
    state: ReserveState,
}

impl Reserve {
    /// Sets the space aside; on a full disk the result is [`ReserveState::Released`] and no error.
    ///
    /// # Errors
    /// Anything but a full disk.
    pub fn open(paths: &JournalPaths) -> Result<Reserve, JournalError> {
        let open = || {
            std::fs::create_dir_all(paths.root())?;
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .open(paths.reserve())?;
            files::sync_dir(paths.root())?;
            Ok(file)
        };
        let file = open().map_err(JournalError::io(Stage::Reserve))?;
        let mut reserve = Reserve { file, dir: paths.root().to_owned(), state: ReserveState::Released };
        reserve.restore()?;
        Ok(reserve)
    }

    #[must_use]
    pub fn state(&self) -> ReserveState {
        self.state
    }

    /// Sets the space aside (again), for instance after the operator has made room.
    ///
    /// # Errors
    /// Anything but a full disk.
    pub fn restore(&mut self) -> Result<ReserveState, JournalError> {
        let allocated = fs4::FileExt::allocate(&self.file, RESERVE_BYTES)
            .and_then(|()| self.file.set_len(RESERVE_BYTES))
            .and_then(|()| self.file.sync_all());
        self.state = match allocated {
            Ok(()) => ReserveState::Kept,
            Err(error) if is_full(&error) => ReserveState::Released,
            Err(error) => return Err(JournalError::io(Stage::Reserve)(error)),
        };
        Ok(self.state)
    }

    /// Gives the space up if less than the reserve is left besides it.
    ///
    /// # Errors
    /// The file system does not answer.
    pub fn watch(&mut self) -> Result<ReserveState, JournalError> {
        let free = fs4::available_space(&self.dir).map_err(JournalError::io(Stage::Reserve))?;
        self.decide(free)
    }

    fn decide(&mut self, free_bytes: u64) -> Result<ReserveState, JournalError> {
        if self.state == ReserveState::Kept && free_bytes < RESERVE_BYTES {
            self.release()?;
        }
        Ok(self.state)
    }

    /// Gives the space up now: something else met a full disk.
    ///
    /// # Errors
    /// The file cannot be cut.
    pub fn release(&mut self) -> Result<(), JournalError> {
        // Cut, not unlinked: an unlinked file that is still open frees nothing.
        self.file.set_len(0).and_then(|()| self.file.sync_all()).map_err(JournalError::io(Stage::Reserve))?;
        self.state = ReserveState::Released;
        Ok(())
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn the_space_is_really_set_aside_and_really_given_up() {
        let dir = tempfile::tempdir().unwrap();
        let paths = JournalPaths::new(dir.path());
        let allocated = || std::fs::metadata(paths.reserve()).unwrap().blocks() * 512;
        let mut reserve = Reserve::open(&paths).unwrap();
        assert_eq!(reserve.state(), ReserveState::Kept);
        assert!(allocated() >= RESERVE_BYTES);
        assert_eq!(reserve.decide(RESERVE_BYTES).unwrap(), ReserveState::Kept);
        assert_eq!(reserve.decide(RESERVE_BYTES - 1).unwrap(), ReserveState::Released);
        assert_eq!(allocated(), 0);
        assert_eq!(reserve.decide(u64::MAX).unwrap(), ReserveState::Released, "not taken back by itself");
        assert_eq!(reserve.restore().unwrap(), ReserveState::Kept);
        drop(reserve);
        assert_eq!(Reserve::open(&paths).unwrap().state(), ReserveState::Kept);
    }
}

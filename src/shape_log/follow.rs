//! Reading the files of a shape while another process writes them.
//!
//! What can be relied on: the definition and a complete snapshot never change; the log grows by whole
//! frames at its end, and is only ever cut back to the end of a commit, or replaced by another that
//! brings every client to the same rows (rewrite.rs); a shape that has ended is renamed away as a whole. So a reader that believes nothing but frames that verify, up to the last
//! that carries a commit, sees a state that the shape has really had. What lies behind that commit is
//! still being written, or the rest of a crash; it is looked at again next time.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use crate::domain::{Handle, Incarnation, ShapeDefinition};

use super::disk::{Disk, DiskFile, FileIdentity, FileSlot};
use super::error::{FaultClass, FileKind, Named, ShapeLogError, Stage, StorageFault};
use super::files::ShapeFiles;
use super::pack::PackedDisk;
use super::read_only::ReadOnlyDisk;
use super::recovery::{Scan, Verify, scan};
use super::snapshot::SnapshotState;
use super::view::ShapeReader;

/// Looks at a log that is replaced while it is looked at.
const LOOKS_MAX: u32 = 4;

/// What a look at the files has found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Followed {
    Unchanged,
    /// A new view was published.
    Changed,
    /// The directory is not there any more: the shape has ended.
    Gone,
}

/// A shape whose files belong to another process. Never writes.
#[derive(Debug)]
pub struct Follower {
    files: ShapeFiles,
    reader: Arc<ShapeReader>,
    /// The log as it was at the last look, and what was found in it.
    seen: Option<(LogIdentity, Scan)>,
}

/// Differs wherever the content of the log file may differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct LogIdentity {
    file: FileIdentity,
    len: u64,
    /// Seconds and nanoseconds.
    changed: (i64, i64),
}

impl Follower {
    /// Opens a shape for reading. `None` where there are no files of it, or its snapshot is not
    /// complete.
    ///
    /// # Errors
    /// A [`StorageFault`], or [`ShapeLogError::DefinitionVersion`] of a newer release.
    pub fn open(
        disk: &Arc<dyn Disk>,
        data: &Path,
        handle: Handle,
    ) -> Result<Option<(ShapeDefinition, Follower)>, ShapeLogError> {
        let files = ShapeFiles::open(Arc::clone(disk), data, handle);
        let definition = match files.read_definition() {
            Ok(definition) => definition,
            Err(ShapeLogError::Storage(fault)) if fault.class == FaultClass::Vanished => return Ok(None),
            Err(error) => return Err(error),
        };
        let reader = ShapeReader::open(&files)?;
        if reader.view().snapshot_state() != SnapshotState::Complete {
            return Ok(None);
        }
        let mut follower = Follower { files, reader, seen: None };
        match follower.follow()? {
            Followed::Gone => Ok(None),
            Followed::Unchanged | Followed::Changed => Ok(Some((definition, follower))),
        }
    }

    /// Whether there is anything of that handle, complete or not.
    ///
    /// # Errors
    /// The file system does not say.
    pub fn exists(disk: &Arc<dyn Disk>, data: &Path, handle: Handle) -> io::Result<bool> {
        let files = ShapeFiles::open(Arc::clone(disk), data, handle);
        Ok(files.dir.try_exists()? || is_there(disk.open(&files.path("definition")))?)
    }

    #[must_use]
    pub fn reader(&self) -> &Arc<ShapeReader> {
        &self.reader
    }

    /// Looks at the files and publishes what is new. One `stat` where nothing is.
    ///
    /// # Errors
    /// A [`StorageFault`]: what was published before stays and may be out of date. `Corrupt` may pass: a
    /// new owner may be cutting off what a crash left behind.
    pub fn follow(&mut self) -> Result<Followed, ShapeLogError> {
        for _ in 0..LOOKS_MAX {
            let Some(found) = self.look()? else { return self.without_log() };
            if self.seen.as_ref().is_some_and(|(seen, _)| *seen == found) {
                return Ok(Followed::Unchanged);
            }
            let log = Arc::new(self.files.slot(FileKind::Log));
            let read = self.read_on(&log, found);
            // Replaced meanwhile: the index that was read may be that of the other log.
            if !self.look()?.is_some_and(|now| now.file == found.file) {
                continue;
            }
            return self.take(found, log, read);
        }
        // It is replaced once in a long while, not again and again.
        Err(StorageFault { class: FaultClass::Vanished, stage: Stage::Open, file: FileKind::Log }.into())
    }

    /// The log as it is at this moment; `None` where there is none.
    fn look(&self) -> Result<Option<LogIdentity>, StorageFault> {
        match fs::metadata(self.files.path("log")) {
            Ok(found) if self.is_moved()? => Ok(Some(LogIdentity {
                file: FileIdentity::of(&found),
                len: found.len(),
                changed: (found.mtime(), found.mtime_nsec()),
            })),
            Ok(_) => self.look_into_pack(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => self.look_into_pack(),
            Err(error) => Err(StorageFault::new(&error, Stage::Read, FileKind::Log)),
        }
    }

    /// Whether the directory is more than the beginning of one that a packed shape moves into.
    fn is_moved(&self) -> Result<bool, StorageFault> {
        self.files.path("definition").try_exists().named(Stage::Read, FileKind::Definition)
    }

    /// As [`Follower::look`], for a log that is kept with others in one file.
    fn look_into_pack(&self) -> Result<Option<LogIdentity>, StorageFault> {
        let kind = FileKind::Log;
        let file = match self.files.disk.open(&self.files.path("log")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file.named(Stage::Read, kind)?,
        };
        let upto = file.packed_upto().unwrap_or(0);
        Ok(Some(LogIdentity {
            file: file.identity().named(Stage::Read, kind)?,
            len: file.size().named(Stage::Read, kind)?,
            changed: (i64::try_from(upto).unwrap_or(i64::MAX), 0),
        }))
    }

    fn take(
        &mut self,
        found: LogIdentity,
        log: Arc<FileSlot>,
        read: Result<Scan, StorageFault>,
    ) -> Result<Followed, ShapeLogError> {
        match read {
            Ok(scan) => {
                let changed = self
                    .seen
                    .as_ref()
                    .is_none_or(|(seen, before)| before.end != scan.end || seen.file != found.file);
                if changed {
                    scan.publish(log, &self.reader, Incarnation(0));
                }
                self.seen = Some((found, scan));
                Ok(if changed { Followed::Changed } else { Followed::Unchanged })
            }
            // Renamed away since the look at it.
            Err(fault) if fault.class == FaultClass::Vanished => self.without_log(),
            Err(fault) => Err(fault.into()),
        }
    }

    /// From the last commit that was seen, where this is still the same file; otherwise from the start.
    fn read_on(&self, log: &FileSlot, found: LogIdentity) -> Result<Scan, StorageFault> {
        // Before the index, which is removed before its log is replaced.
        let file = log.open()?.identity().named(Stage::Open, FileKind::Log)?;
        let before = self
            .seen
            .as_ref()
            .filter(|(seen, scan)| seen.file == file && file == found.file && found.len >= scan.end);
        match before {
            Some((_, scan)) => scan.carry_on(log),
            None => scan(log, &self.files.slot(FileKind::Index), Verify::Tail),
        }
    }

    /// There is no log: nothing has changed since the snapshot, or the shape has ended.
    fn without_log(&self) -> Result<Followed, ShapeLogError> {
        match is_there(self.files.disk.open(&self.files.path("definition"))) {
            Ok(false) => Ok(Followed::Gone),
            Ok(true) if self.seen.is_none() => Ok(Followed::Unchanged),
            Ok(true) => {
                let class = FaultClass::Vanished;
                Err(StorageFault { class, stage: Stage::Open, file: FileKind::Log }.into())
            }
            Err(error) => Err(StorageFault::new(&error, Stage::Read, FileKind::Definition).into()),
        }
    }
}

/// The disk for the files of another process below a directory; for all of its shapes, since it knows where
/// those are that share files.
#[must_use]
pub fn followed_disk(data: &Path) -> Arc<dyn Disk> {
    Arc::new(PackedDisk::follow(Arc::new(ReadOnlyDisk), data))
}

fn is_there(opened: io::Result<Arc<dyn DiskFile>>) -> io::Result<bool> {
    match opened {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        opened => opened.map(|_| true),
    }
}

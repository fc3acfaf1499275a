//! Directories that no shape has: found now and then, set aside, and removed when nobody has come for them.
//!
//! That the journal does not know a directory proves nothing about it: the journal may be the one that
//! lost something. So nothing is removed at once, each step is announced in the journal, and whoever puts a
//! directory back within the time finds it as it was. Names that are no handles are left where they are.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use crate::domain::{Handle, Timestamp};
use crate::events::DestructionResult;
use crate::runtime::clock;
use crate::shape_log::{
    Disk, FaultClass, ShapeFiles, ShapeLogError, list_quarantined, list_shapes, purge_quarantined,
};

/// Directories that are set aside after one look, at most: each is an entry of the journal.
pub const STRANGERS_MAX: usize = 64;

/// When to look, and how long to keep.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// Between two looks; the first comes this long after the start, too.
    pub every: Duration,
    /// What was set aside is kept this long.
    pub kept: Duration,
}

impl Timing {
    /// The one of this service; tests cannot wait as long.
    #[must_use]
    pub fn current() -> Timing {
        #[cfg(feature = "test-hooks")]
        if let Some(timing) = test_hooks::timing() {
            return timing;
        }
        Timing { every: Duration::from_secs(600), kept: Duration::from_secs(7 * 24 * 3600) }
    }
}

/// What a look has found. Which of the handles belong to a shape is for the fold to say.
#[derive(Debug)]
pub struct Found {
    pub directories: Vec<Handle>,
    pub expired: BTreeSet<Handle>,
}

/// Lists directories and changes nothing.
///
/// # Errors
/// The directory cannot be read.
pub fn survey(disk: &dyn Disk, data_dir: &Path, timing: Timing) -> Result<Found, ShapeLogError> {
    let now = clock::now();
    let directories = list_shapes(disk, data_dir)?;
    let quarantined = list_quarantined(disk, data_dir)?;
    let due = |since: Timestamp| now.since(since) >= timing.kept;
    let expired = quarantined.iter().filter(|entry| due(entry.since)).map(|entry| entry.handle).collect();
    Ok(Found { directories, expired })
}

/// Sets the directory of a handle aside.
///
/// # Errors
/// A fault other than that it is not there.
pub fn set_aside(files: &ShapeFiles, data_dir: &Path) -> Result<DestructionResult, ShapeLogError> {
    done(files.quarantine(data_dir, clock::now()))
}

/// Removes what was set aside under a handle for long enough.
///
/// # Errors
/// A fault other than that it is not there.
pub fn purge(
    disk: &dyn Disk,
    data_dir: &Path,
    handle: Handle,
    timing: Timing,
) -> Result<DestructionResult, ShapeLogError> {
    let now = clock::now();
    let mut result = DestructionResult::AlreadyDone;
    for entry in list_quarantined(disk, data_dir)? {
        if entry.handle == handle && now.since(entry.since) >= timing.kept {
            result = done(purge_quarantined(disk, data_dir, entry))?;
        }
    }
    Ok(result)
}

fn done(result: Result<(), ShapeLogError>) -> Result<DestructionResult, ShapeLogError> {
    match result {
        Ok(()) => Ok(DestructionResult::Done),
        // By an attempt before a crash, or by somebody else.
        Err(ShapeLogError::Storage(fault)) if fault.class == FaultClass::Vanished => {
            Ok(DestructionResult::AlreadyDone)
        }
        Err(error) => Err(error),
    }
}

#[cfg(feature = "test-hooks")]
mod test_hooks {
    use std::time::Duration;

    use super::Timing;

    /// Milliseconds between two looks, and milliseconds to keep, with a comma between them.
    const TIMING: &str = "SHAPEFOLD_TEST_QUARANTINE";

    pub fn timing() -> Option<Timing> {
        let text = std::env::var(TIMING).ok()?;
        let (every, kept) = text.split_once(',')?;
        let time = |text: &str| text.parse().ok().map(Duration::from_millis);
        Some(Timing { every: time(every)?, kept: time(kept)? })
    }
}

//! The version of a data directory as a whole, and how an older one is brought up to date.
//!
//! Every file of ours has a version of its own, older ones are read, newer ones refused. This number is
//! raised with any of them, so that a program that is too old for one file touches none: it is in the
//! lock file from before the first newer byte is written, and in the journal with each start.
//!
//! A step is run under the lock, once the lock file says that the directory is on its way there: from then
//! on an older program refuses it. The journal tells of the new layout only when all steps are done, so
//! after a crash they are run again: a step must not mind having been run, in part or as a whole.

use std::io;
use std::path::Path;

use crate::ownership::Previous;
use crate::runtime::boot::BootError;

/// The layout that this program writes.
///
/// 2: small shapes share files, `shapes/pack/`. Shapes of layout 1 are read as they are.
const LAYOUT_VERSION: u32 = 2;

/// Brings a directory from the layout before `to` to `to`.
struct Step {
    to: u32,
    run: fn(&Path) -> io::Result<()>,
}

#[cfg(not(feature = "test-hooks"))]
const STEPS: [Step; 0] = [];

/// A layout that only tests know: what a newer build would do.
#[cfg(feature = "test-hooks")]
const STEPS: [Step; 1] = [Step { to: 3, run: test_hooks::to_the_next }];

/// The layout that this program writes; tests may have it pass for a newer one.
pub fn supported() -> u32 {
    #[cfg(feature = "test-hooks")]
    if let Some(version) = test_hooks::pretended() {
        return version;
    }
    LAYOUT_VERSION
}

/// # Errors
/// [`BootError::NewerLayout`]: a newer program has been here, as the lock file says.
pub fn check_lock(previous: &Previous) -> Result<(), BootError> {
    match &previous.record {
        Some(record) => check(record.owner.layout, &record.owner.version),
        None => Ok(()),
    }
}

/// # Errors
/// [`BootError::NewerLayout`]: `by`, a newer program, has been here.
pub fn check(found: u32, by: &str) -> Result<(), BootError> {
    let supported = supported();
    if found > supported {
        return Err(BootError::NewerLayout { found, supported, by: by.to_owned() });
    }
    Ok(())
}

/// Runs the steps from a layout to this program's. A directory without a journal (0) has nothing old.
///
/// # Errors
/// Those of a step: the next start runs them again.
pub fn migrate(data_dir: &Path, from: u32) -> Result<(), BootError> {
    let supported = supported();
    if from == 0 || from == supported {
        return Ok(());
    }
    for step in STEPS.iter().filter(|step| step.to > from && step.to <= supported) {
        tracing::info!(to = step.to, "bringing the data directory to a newer layout");
        (step.run)(data_dir).map_err(|error| BootError::Migration { to: step.to, error })?;
    }
    Ok(())
}

#[cfg(feature = "test-hooks")]
mod test_hooks {
    use std::io;
    use std::path::Path;

    /// The layout to pretend to.
    const LAYOUT: &str = "SHAPEFOLD_TEST_LAYOUT";
    /// Set: the step fails half-way.
    const FAILS: &str = "SHAPEFOLD_TEST_MIGRATION_FAILS";

    pub fn pretended() -> Option<u32> {
        std::env::var(LAYOUT).ok()?.parse().ok()
    }

    /// Leaves a trace, and minds nothing.
    pub fn to_the_next(data_dir: &Path) -> io::Result<()> {
        std::fs::write(data_dir.join("layout-3"), "begun")?;
        if std::env::var_os(FAILS).is_some() {
            return Err(io::Error::other("a test asked for this"));
        }
        std::fs::write(data_dir.join("layout-3"), "done")
    }
}

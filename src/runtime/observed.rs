//! What people and programs may look at while the service runs, and the comparison of the engine's views
//! with the fold. Nobody who looks is waited for.

use std::sync::Arc;

use tokio::sync::oneshot;

use crate::domain::Sid;
use crate::events::ProjectionName;
use crate::inspect::{Figures, Follower, History, Live, OwnJournal};

/// Shapes compared with the fold in one turn of the driver.
pub const CHECKED_AT_ONCE_MAX: usize = 4_096;
/// Askers that wait for one round of comparison.
pub const CHECKS_WAITING_MAX: usize = 64;

/// What a running service can be asked without its noticing.
#[derive(Clone)]
pub struct Observed {
    pub live: Live,
    pub history: Arc<History>,
}

impl std::fmt::Debug for Observed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Observed").finish_non_exhaustive()
    }
}

/// The driver's end of it. When it is dropped, nobody reads the store any more; the journal's thread must
/// have ended, or be about to.
pub struct Observer {
    own: Arc<OwnJournal>,
    // After the journal is closed to those who ask.
    _follower: Follower,
}

impl Observer {
    #[must_use]
    pub fn new(own: Arc<OwnJournal>, follower: Follower) -> Observer {
        Observer { own, _follower: follower }
    }
}

impl Drop for Observer {
    fn drop(&mut self) {
        self.own.close();
    }
}

/// What one round of comparison found.
#[derive(Clone, Debug)]
pub struct CheckReport {
    /// Shapes that were compared.
    pub shapes: usize,
    /// Views that differ, found now or earlier in this process.
    pub drifted: Vec<ProjectionName>,
    /// The engine's own figures when the round was over.
    pub engine: Figures,
}

/// A round of comparison under way.
#[derive(Debug, Default)]
pub(super) struct Round {
    /// The last shape compared.
    pub after: Option<Sid>,
    pub shapes: usize,
    pub askers: Vec<oneshot::Sender<CheckReport>>,
}

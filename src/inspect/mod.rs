//! Questions about a history, wherever it lies: a directory, a copy, a file, or the journal of this very
//! process. The command line, the admin API and the page ask here, so that all show the same figures.
//!
//! [`Source`] reads and folds; [`History`] keeps what makes the second question about one journal cheap;
//! [`Live`] follows the journal of a running service. `answers` has the JSON. Nothing here writes.

mod acks;
pub mod answers;
mod exits;
mod follower;
mod history;
mod saved;
mod source;
mod track;
mod verify;
mod why;

pub use acks::acks;
pub use follower::{Census, EVENTS_KEPT_MAX, Figures, Follower, Live, Told, View, Wake};
pub use history::{History, Moment, OwnJournal};
pub use saved::{Saved, observe};
pub use source::{Found, Listener, Source, archived_state, sample_exit};
pub use track::Track;
pub use verify::{DAMAGES_KEPT_MAX, Findings, check};
pub use why::{Chain, ChainEnd, Link, Owing, Reason, WhyAck, chain, why, why_ack};

pub use crate::journal::OfflineJournal;
pub use crate::projections::forensics::{Choice, Diff, Filter, Position, Stats};
pub use crate::state::{Shape, State};

/// Why a question has no answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    #[error(transparent)]
    Journal(#[from] crate::journal::JournalError),
    #[error("no shape of the journal is called {0:?}")]
    UnknownShape(String),
    #[error("the journal is closed: this process no longer owns the directory")]
    Closed,
    #[error("no thread can be started: {0}")]
    Thread(#[from] std::io::Error),
}

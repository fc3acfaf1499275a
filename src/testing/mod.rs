//! For tests of your own, behind the feature `testing`: histories that the engine could have written, and
//! journals that it did write, to fold, to check and to make small.
//!
//! * [`histories`] is a proptest strategy. Each value is a whole history of the real engine in a model of the
//!   world (transactions, slow snapshots, writers that die, crashes of the process and of Postgres), so it is
//!   legal by construction, and it shrinks.
//! * [`History::open`] reads a journal: a data directory, an archive, or a file that
//!   `shapefold journal export` made of an incident.
//! * [`History::fold`], [`History::violations`] and [`History::shrink`] are what tests say something with.
//!
//! An incident becomes a regression test in three lines, and stays one over every later version:
//!
//! ```no_run
//! # use shapefold::testing::History;
//! let incident = History::open("tests/incidents/2026-03-20.sfx").unwrap();
//! let state = incident.fold();
//! assert_eq!(incident.violations(), [], "fixed in 0.2, see the runbook");
//! ```
//!
//! See `docs/testing.md`, and `examples/incident_test.rs`, which a test runs.

mod history;
pub mod model;

use proptest::collection::vec;
use proptest::prelude::{Strategy, any};

pub use history::{History, HistoryError};

/// Bytes that the choices of one history are taken from, at most: a few hundred events.
const CHOICES_BYTES_MAX: usize = 1_500;

/// Histories of the real engine, from its first event until everything owed is paid. They shrink to fewer and
/// less eventful choices.
///
/// # Panics
/// If the engine breaks a promise of its own: a bug of Shapefold, please report it with the seed.
pub fn histories() -> impl Strategy<Value = History> {
    vec(any::<u8>(), 0..CHOICES_BYTES_MAX).prop_map(|bytes| History::chosen(model::Choices::bytes(bytes)))
}

//! Answers about the past, for people on call and for checkers.

mod invariants;

pub use invariants::{Checker, Invariant, Violation};

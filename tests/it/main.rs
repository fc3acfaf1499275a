//! Tests against the outside world, in one binary.

mod filter_differential;
mod postgres;
mod support;

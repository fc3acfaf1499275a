//! Tests against the outside world, in one binary.

mod postgres;
mod support;

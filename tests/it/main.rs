//! Tests against a real Postgres.

mod filter_differential;
mod support;

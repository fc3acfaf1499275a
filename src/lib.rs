//! Shapefold: a Postgres sync engine whose whole lifecycle is one journal.
//!
//! See ARCHITECTURE.md for the map. The pure core is [`domain`].

pub mod domain;
pub mod filter;

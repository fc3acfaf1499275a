//! Shapefold: a Postgres sync engine whose whole lifecycle is one journal.
//!
//! See ARCHITECTURE.md for the map. The pure core is [`domain`], [`filter`], [`events`], [`state`],
//! [`projections`] and [`engine`].

pub mod cli;
pub mod domain;
pub mod engine;
pub mod events;
pub mod filter;
pub mod inspect;
pub mod journal;
pub mod ownership;
pub mod postgres;
pub mod projections;
pub mod replication;
pub mod runtime;
pub mod server;
pub mod shape_log;
pub mod snapshot;
pub mod state;
pub mod telemetry;
#[cfg(feature = "testing")]
pub mod testing;

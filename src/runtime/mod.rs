//! The running service: the only place where the pure core meets the io modules.

mod archiver;
mod boot;
pub mod clock;
mod connections;
pub mod core;
pub mod driver;
pub mod evaluation;
mod executor;
pub mod faults;
pub mod handle;
mod inspector;
mod keeper;
mod layout;
mod measured;
pub mod observed;
mod partitions;
mod probe;
pub mod progress;
mod publishing;
mod quarantine;
mod reconciler;
mod removal;
pub mod router;
pub mod settings;
mod single_flight;
mod snapshots;
pub mod standby;
mod start;
mod story;
mod stream;
pub mod subquery;
pub mod subset;
mod watchdog;
pub mod writers;

pub use boot::{BootError, replay};
pub use start::{Running, Stopped, start};

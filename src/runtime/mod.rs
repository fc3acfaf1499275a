//! The running service: the only place where the pure core meets the io modules.

mod archiver;
mod boot;
pub mod clock;
mod connections;
pub mod core;
pub mod driver;
mod executor;
pub mod faults;
pub mod handle;
mod inspector;
mod keeper;
mod publishing;
pub mod router;
pub mod settings;
mod snapshots;
mod start;
mod story;
mod stream;
pub mod subquery;
pub mod subset;
pub mod writers;

pub use boot::{BootError, replay};
pub use start::{Running, Stopped, start};

//! The running service: the only place where the pure core meets the io modules.

pub mod core;
pub mod handle;

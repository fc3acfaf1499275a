//! The HTTP server: the wire contract of the Electric sync service, over what the runtime gives it.
//!
//! A request goes through these files in this order: `accept` (connections), `router` (route, secret,
//! common headers), `shape` (the order of contract 1.2) with `admission`, `fields`, `params` and
//! `definition`, then `live` where it has to wait, `body` for the rows and `response` for the headers;
//! `error` has every refusal. Responses are built as data, so that each message and each header rule
//! is checked without a connection.
//!
//! Not here yet: server-sent events and subset snapshots. `shape::get` refuses both at the place where
//! they belong.

mod accept;
mod admission;
mod body;
mod cursor;
mod definition;
mod delete;
mod error;
mod fields;
mod health;
mod live;
mod params;
mod post;
mod response;
mod router;
mod schema;
mod settings;
mod shape;
#[cfg(feature = "test-hooks")]
mod test_hooks;

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

use std::sync::atomic::AtomicU64;
use std::time::{SystemTime, UNIX_EPOCH};

use tokio::sync::watch;

use crate::runtime::handle::Service;

use admission::Admission;

pub use accept::{CONNECTIONS_MAX, serve};
pub use settings::Settings;

/// What all requests share.
#[derive(Debug)]
struct App {
    service: Service,
    settings: Settings,
    admission: Admission,
    /// Shutdown began: answer what waits.
    closing: watch::Sender<bool>,
    /// Shutdown took too long: drop the rest.
    cut: watch::Sender<bool>,
    /// Makes tags unique, also over restarts: begins at the microseconds since the Unix epoch.
    unique: AtomicU64,
}

impl App {
    fn new(service: Service, settings: Settings) -> App {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        App {
            service,
            admission: Admission::new(&settings),
            settings,
            closing: watch::Sender::new(false),
            cut: watch::Sender::new(false),
            unique: AtomicU64::new(u64::try_from(now.as_micros()).unwrap_or(0)),
        }
    }
}

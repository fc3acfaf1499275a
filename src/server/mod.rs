//! The HTTP server: the wire contract of the Electric sync service, over what the runtime gives it.
//!
//! A request goes through these files in this order: `accept` (connections), `http1` or, where it is no
//! plain one, `foreign` (the wire), `router` (route, secret,
//! common headers), `shape` (the order of contract 1.2) with `admission`, `fields`, `params` and
//! `definition`, then `live` where it has to wait, `body` or `sse` for the rows, `subset` for
//! rows that are read anew, and `response` for the headers; `error` has every refusal. Responses are built as data, so that each message and each header rule
//! is checked without a connection. `health` tells how the service is, `prometheus` what it counts.
//! `admin` is a second server, on a port of its own, for people and
//! programs that look after the service.

mod accept;
pub mod admin;
mod admission;
mod body;
mod cursor;
mod definition;
mod delete;
mod encoding;
mod error;
mod fields;
mod foreign;
mod health;
mod http1;
mod known;
mod live;
mod params;
mod post;
mod prometheus;
mod response;
mod router;
mod schema;
mod settings;
mod shape;
mod sse;
mod subset;
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
use known::Known;

pub use accept::{CONNECTIONS_MAX, serve};
pub use prometheus::serve_metrics;
pub use settings::Settings;
#[cfg(feature = "test-hooks")]
pub use test_hooks::read_request;

/// What all requests share.
#[derive(Debug)]
struct App {
    service: Service,
    settings: Settings,
    admission: Admission,
    known: Known,
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
            admission: Admission::new(&settings, service.metrics()),
            known: Known::default(),
            service,
            settings,
            closing: watch::Sender::new(false),
            cut: watch::Sender::new(false),
            unique: AtomicU64::new(u64::try_from(now.as_micros()).unwrap_or(0)),
        }
    }
}

//! What replication and snapshots share: the address of a database, TLS, connections, errors, and
//! the catalog.

mod catalog;
mod channel_binding;
mod client;
mod error;
mod tls;
mod transport;
mod url;

pub use catalog::{inspect, inspect_oids};
pub use client::{ConnectOptions, SqlClient, connect};
pub(crate) use client::{SESSION_SETTINGS, sql_literal};
pub use error::{PgError, PgErrorKind};
pub use tls::{SslMode, Tls};
pub use transport::TcpOptions;
pub(crate) use transport::{Encryption, Transport, dial, encryption_attempts};
pub use url::{DatabaseUrl, UrlError};

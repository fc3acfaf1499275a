//! SQL connections: catalog, publication, snapshots.

use std::ops::Deref;
use std::time::Duration;

use rustls::ClientConfig;
use tokio::net::TcpStream;
use tokio_postgres::tls::MakeTlsConnect;
use tokio_postgres::{CancelToken, Client, SimpleQueryMessage};
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::postgres::transport::{Encryption, dial, encryption_attempts};
use crate::postgres::{DatabaseUrl, PgError, PgErrorKind, TcpOptions, Tls};

/// Authentication and the first round trips take at most this long.
const STARTUP_WAIT_MAX: Duration = Duration::from_secs(20);

/// Settings under which the text of a value is the same on every connection: contract 3.1.
pub(crate) const SESSION_SETTINGS: [(&str, &str); 5] = [
    ("bytea_output", "hex"),
    ("DateStyle", "ISO, DMY"),
    ("TimeZone", "UTC"),
    ("extra_float_digits", "1"),
    ("IntervalStyle", "iso_8601"),
];

/// How to connect, apart from where to.
#[derive(Clone, Debug)]
pub struct ConnectOptions {
    pub tls: Tls,
    pub tcp: TcpOptions,
}

/// A SQL connection. Dropping it closes the connection.
#[derive(Debug)]
pub struct SqlClient {
    client: Client,
    tls: Tls,
    host: String,
    encryption: Encryption,
    tcp: TcpOptions,
    url: DatabaseUrl,
    server_version: u32,
}

/// Connects and applies the session settings.
///
/// # Errors
/// See [`PgErrorKind`].
pub async fn connect(url: &DatabaseUrl, options: &ConnectOptions) -> Result<SqlClient, PgError> {
    let mut refused = None;
    for &encryption in encryption_attempts(url.ssl_mode(), &options.tls) {
        match connect_once(url, options, encryption).await {
            Err(error) if may_retry_plain(&error) => refused = refused.or(Some(error)),
            // The first refusal names the reason; that the plain attempt failed too is a consequence.
            Err(error) => return Err(refused.unwrap_or(error)),
            Ok(client) => return Ok(client),
        }
    }
    Err(refused.unwrap_or_else(|| PgError::new(PgErrorKind::Unreachable, "no attempt was made")))
}

/// Whether an attempt with optional TLS failed in a way that a plain connection may not.
pub(crate) fn may_retry_plain(error: &PgError) -> bool {
    matches!(error.kind(), PgErrorKind::Rejected | PgErrorKind::Tls)
}

async fn connect_once(
    url: &DatabaseUrl,
    options: &ConnectOptions,
    encryption: Encryption,
) -> Result<SqlClient, PgError> {
    let stream = dial(url, &options.tcp).await?;
    let mut config = url.to_config();
    config.ssl_mode(ssl_mode(encryption));
    let connector = tls_connect(options.tls.config(), url.host())?;
    let startup = async {
        let (client, connection) = config.connect_raw(stream, connector).await?;
        // Ends when the client is dropped or the connection breaks; every caller then sees
        // "connection closed", so that its result needs no other way.
        tokio::spawn(connection);
        let settings: String =
            SESSION_SETTINGS.iter().map(|(name, value)| format!("SET {name} = '{value}';")).collect();
        client.batch_execute(&settings).await?;
        // Not as a prepared statement: a pooler may have another server connection execute it.
        let answer = client.simple_query("SELECT current_setting('server_version_num')").await?;
        let version = answer.iter().find_map(|message| match message {
            SimpleQueryMessage::Row(row) => row.get(0)?.parse().ok(),
            _ => None,
        });
        Ok::<_, tokio_postgres::Error>((client, version.unwrap_or(0)))
    };
    let (client, server_version) = match tokio::time::timeout(STARTUP_WAIT_MAX, startup).await {
        Ok(result) => result?,
        Err(_) => return Err(PgError::new(PgErrorKind::Unreachable, "the server did not answer in time")),
    };
    Ok(SqlClient {
        client,
        tls: options.tls.clone(),
        host: url.host().to_owned(),
        encryption,
        tcp: options.tcp,
        url: url.clone(),
        server_version,
    })
}

impl SqlClient {
    /// `server_version_num`: 150018 for 15.18.
    #[must_use]
    pub fn server_version(&self) -> u32 {
        self.server_version
    }

    /// Asks the server to cancel the statement that runs on this connection. Best effort: over
    /// another connection, and the statement may end first.
    ///
    /// # Errors
    /// See [`PgErrorKind`].
    pub async fn cancel(&self) -> Result<(), PgError> {
        let token: CancelToken = self.client.cancel_token();
        let stream = dial(&self.url, &self.tcp).await?;
        let connector = tls_connect(self.tls.config(), &self.host)?;
        let cancel = async {
            match self.encryption {
                Encryption::Plain => token.cancel_query_raw(stream, tokio_postgres::NoTls).await,
                Encryption::Offered | Encryption::Required => token.cancel_query_raw(stream, connector).await,
            }
        };
        match tokio::time::timeout(STARTUP_WAIT_MAX, cancel).await {
            Ok(result) => result.map_err(PgError::from),
            Err(_) => Err(PgError::new(PgErrorKind::Unreachable, "the server did not answer in time")),
        }
    }
}

impl Deref for SqlClient {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

/// A string as a SQL literal, whatever `standard_conforming_strings` says.
pub(crate) fn sql_literal(text: &str) -> String {
    postgres_protocol::escape::escape_literal(text)
}

fn ssl_mode(encryption: Encryption) -> tokio_postgres::config::SslMode {
    match encryption {
        Encryption::Plain => tokio_postgres::config::SslMode::Disable,
        Encryption::Offered => tokio_postgres::config::SslMode::Prefer,
        Encryption::Required => tokio_postgres::config::SslMode::Require,
    }
}

type Connector = <MakeRustlsConnect as MakeTlsConnect<TcpStream>>::TlsConnect;

fn tls_connect(config: std::sync::Arc<ClientConfig>, host: &str) -> Result<Connector, PgError> {
    let mut make = MakeRustlsConnect::new(ClientConfig::clone(&config));
    MakeTlsConnect::<TcpStream>::make_tls_connect(&mut make, host)
        .map_err(|_| PgError::new(PgErrorKind::Tls, "the host is no valid server name"))
}

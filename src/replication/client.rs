//! The connection to the walsender: start-up, authentication, simple queries, START_REPLICATION.

use std::time::Duration;

use bytes::{Buf, BytesMut};
use postgres_protocol::authentication::md5_hash;
use postgres_protocol::authentication::sasl::{
    ChannelBinding, SCRAM_SHA_256, SCRAM_SHA_256_PLUS, ScramSha256,
};
use postgres_protocol::message::backend::{DataRowBody, Message};
use postgres_protocol::message::frontend;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::Instant;
use tokio_postgres::fallible_iterator::FallibleIterator;

use crate::domain::{Lsn, quote_identifier};
use crate::postgres::{
    ConnectOptions, DatabaseUrl, Encryption, PgError, PgErrorKind, SESSION_SETTINGS, Transport, dial,
    encryption_attempts, sql_literal,
};
use crate::replication::{ReplicationStream, StreamOptions};

/// Authentication takes at most this long.
const STARTUP_WAIT_MAX: Duration = Duration::from_secs(20);

/// No answer before the stream begins is longer; a longer one is not from Postgres.
const ANSWER_BYTES_MAX: usize = 16 << 20;

/// After a connection broke, its walsender may hold the slot for a moment.
const SLOT_BUSY_WAIT_MAX: Duration = Duration::from_secs(5);
const SLOT_BUSY_POLL: Duration = Duration::from_millis(50);

/// A connection in replication mode, before it streams.
#[derive(Debug)]
pub struct ReplicationClient {
    transport: Transport,
    buffer: BytesMut,
    backend_pid: u32,
}

/// Answer to IDENTIFY_SYSTEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SystemIdentity {
    /// Differs between any two clusters.
    pub system_id: u64,
    /// Grows with each failover and point-in-time recovery.
    pub timeline: u32,
    pub flushed: Lsn,
}

/// One row of a simple query, as text.
pub type TextRow = Vec<Option<String>>;

impl ReplicationClient {
    /// Connects in replication mode, under the session settings of contract 3.1.
    ///
    /// # Errors
    /// See [`PgErrorKind`].
    pub async fn connect(url: &DatabaseUrl, options: &ConnectOptions) -> Result<ReplicationClient, PgError> {
        let mut refused = None;
        for &encryption in encryption_attempts(url.ssl_mode(), &options.tls) {
            let attempt = ReplicationClient::connect_once(url, options, encryption);
            match tokio::time::timeout(STARTUP_WAIT_MAX, attempt).await {
                Ok(Ok(client)) => return Ok(client),
                Ok(Err(error)) if matches!(error.kind(), PgErrorKind::Rejected | PgErrorKind::Tls) => {
                    refused = refused.or(Some(error));
                }
                Ok(Err(error)) => return Err(refused.unwrap_or(error)),
                Err(_) => {
                    return Err(PgError::new(PgErrorKind::Unreachable, "the server did not answer in time"));
                }
            }
        }
        Err(refused.unwrap_or_else(|| PgError::new(PgErrorKind::Unreachable, "no attempt was made")))
    }

    async fn connect_once(
        url: &DatabaseUrl,
        options: &ConnectOptions,
        encryption: Encryption,
    ) -> Result<ReplicationClient, PgError> {
        let stream = dial(url, &options.tcp).await?;
        let transport = Transport::negotiate(stream, url.host(), encryption, &options.tls).await?;
        let mut client = ReplicationClient { transport, buffer: BytesMut::new(), backend_pid: 0 };
        let mut parameters = vec![
            ("user", url.user()),
            ("database", url.database()),
            ("replication", "database"),
            ("application_name", "shapefold"),
            ("client_encoding", "UTF8"),
        ];
        parameters.extend(SESSION_SETTINGS);
        client.send(|out| frontend::startup_message(parameters.iter().copied(), out)).await?;
        client.authenticate(url).await?;
        loop {
            match client.message().await? {
                Message::ReadyForQuery(_) => return Ok(client),
                Message::BackendKeyData(body) => client.backend_pid = body.process_id().unsigned_abs(),
                Message::ErrorResponse(body) => return Err(PgError::from_fields(body.fields())),
                _ => {}
            }
        }
    }

    async fn authenticate(&mut self, url: &DatabaseUrl) -> Result<(), PgError> {
        let password = || {
            url.password().ok_or_else(|| PgError::new(PgErrorKind::WrongPassword, "the URL has no password"))
        };
        loop {
            match self.message().await? {
                Message::AuthenticationOk => return Ok(()),
                Message::AuthenticationCleartextPassword => {
                    let password = password()?;
                    self.send(|out| frontend::password_message(password.as_bytes(), out)).await?;
                }
                Message::AuthenticationMd5Password(body) => {
                    let hash = md5_hash(url.user().as_bytes(), password()?.as_bytes(), body.salt());
                    self.send(|out| frontend::password_message(hash.as_bytes(), out)).await?;
                }
                Message::AuthenticationSasl(body) => {
                    let mechanisms: Vec<String> = body
                        .mechanisms()
                        .map(|name| Ok(name.to_owned()))
                        .collect()
                        .map_err(|_| PgError::malformed("a malformed message"))?;
                    self.scram(&mechanisms, password()?).await?;
                }
                Message::ErrorResponse(body) => return Err(PgError::from_fields(body.fields())),
                Message::NoticeResponse(_) => {}
                _ => return Err(PgError::malformed("an unknown way of authentication")),
            }
        }
    }

    /// SCRAM-SHA-256, bound to the TLS connection where both sides can:
    /// <https://www.postgresql.org/docs/current/sasl-authentication.html>.
    async fn scram(&mut self, mechanisms: &[String], password: &str) -> Result<(), PgError> {
        let offers = |mechanism| mechanisms.iter().any(|offered| offered == mechanism);
        let (mechanism, binding) = match self.transport.channel_binding() {
            Some(hash) if offers(SCRAM_SHA_256_PLUS) => {
                (SCRAM_SHA_256_PLUS, ChannelBinding::tls_server_end_point(hash))
            }
            // Says that we could: a server that could too then knows that somebody took its offer out.
            Some(_) => (SCRAM_SHA_256, ChannelBinding::unrequested()),
            None => (SCRAM_SHA_256, ChannelBinding::unsupported()),
        };
        if !offers(mechanism) {
            return Err(PgError::malformed("no known SASL mechanism is offered"));
        }
        let mut scram = ScramSha256::new(password.as_bytes(), binding);
        self.send(|out| frontend::sasl_initial_response(mechanism, scram.message(), out)).await?;
        match self.message().await? {
            Message::AuthenticationSaslContinue(body) => {
                scram.update(body.data()).map_err(|_| PgError::malformed("a malformed SCRAM message"))?;
            }
            Message::ErrorResponse(body) => return Err(PgError::from_fields(body.fields())),
            _ => return Err(PgError::malformed("unexpected message during authentication")),
        }
        self.send(|out| frontend::sasl_response(scram.message(), out)).await?;
        match self.message().await? {
            Message::AuthenticationSaslFinal(body) => scram
                .finish(body.data())
                .map_err(|_| PgError::malformed("the server could not prove that it knows the password")),
            Message::ErrorResponse(body) => Err(PgError::from_fields(body.fields())),
            _ => Err(PgError::malformed("unexpected message during authentication")),
        }
    }

    /// Process id of the walsender.
    #[must_use]
    pub fn backend_pid(&self) -> u32 {
        self.backend_pid
    }

    /// Runs statements and returns the rows of the last one that had any. Cancelling it leaves the
    /// connection unusable: drop it then.
    ///
    /// # Errors
    /// See [`PgErrorKind`]; after an error of the server the connection remains usable.
    pub async fn simple_query(&mut self, sql: &str) -> Result<Vec<TextRow>, PgError> {
        self.send(|out| frontend::query(sql, out)).await?;
        let mut rows = Vec::new();
        let mut failed = None;
        loop {
            match self.message().await? {
                Message::RowDescription(_) => rows.clear(),
                Message::DataRow(body) => rows.push(text_row(&body)?),
                Message::ErrorResponse(body) => failed = Some(PgError::from_fields(body.fields())),
                Message::ReadyForQuery(_) => return failed.map_or(Ok(rows), Err),
                Message::CopyInResponse(_) | Message::CopyOutResponse(_) => {
                    return Err(PgError::malformed("unexpected COPY"));
                }
                _ => {}
            }
        }
    }

    /// # Errors
    /// See [`PgErrorKind`].
    pub async fn identify_system(&mut self) -> Result<SystemIdentity, PgError> {
        let rows = self.simple_query("IDENTIFY_SYSTEM").await?;
        let field = |index: usize| rows.first().and_then(|row| row.get(index)).and_then(Option::as_deref);
        let identity = || {
            Some(SystemIdentity {
                system_id: field(0)?.parse().ok()?,
                timeline: field(1)?.parse().ok()?,
                flushed: field(2)?.parse().ok()?,
            })
        };
        identity().ok_or_else(|| PgError::malformed("IDENTIFY_SYSTEM answered in another form"))
    }

    /// The history file of a timeline; that of the first one does not exist.
    ///
    /// # Errors
    /// See [`PgErrorKind`].
    pub async fn timeline_history(&mut self, timeline: u32) -> Result<String, PgError> {
        let rows = self.simple_query(&format!("TIMELINE_HISTORY {timeline}")).await?;
        let content = rows.into_iter().next().and_then(|row| row.into_iter().nth(1)?);
        content.ok_or_else(|| PgError::malformed("TIMELINE_HISTORY answered in another form"))
    }

    /// Takes the advisory lock of a slot on this connection; waits as long as another one holds it.
    ///
    /// # Errors
    /// See [`PgErrorKind`].
    pub async fn take_lock(&mut self, slot: &str) -> Result<(), PgError> {
        self.simple_query(&format!("SELECT pg_advisory_lock(hashtext({}))", sql_literal(slot))).await?;
        Ok(())
    }

    /// Begins to stream. `lsn` 0 begins at the slot's own position, which is never later than what was
    /// acknowledged.
    ///
    /// # Errors
    /// See [`PgErrorKind`]; `SlotInUse` only where it stays so for some seconds.
    pub async fn start(
        mut self,
        slot: &str,
        publication: &str,
        lsn: Lsn,
    ) -> Result<ReplicationStream, PgError> {
        let timeout = self
            .simple_query("SELECT setting FROM pg_catalog.pg_settings WHERE name = 'wal_sender_timeout'")
            .await?;
        let millis = timeout.first().and_then(|row| row.first()?.as_deref()?.parse().ok()).unwrap_or(0);
        let options = StreamOptions::for_wal_sender_timeout(Duration::from_millis(millis));
        let sql = format!(
            "START_REPLICATION SLOT {} LOGICAL {lsn} (proto_version '1', publication_names {})",
            quote_identifier(slot),
            replication_literal(&quote_identifier(publication)),
        );
        let give_up = Instant::now() + SLOT_BUSY_WAIT_MAX;
        loop {
            match self.start_once(&sql).await {
                Ok(()) => break,
                Err(error) if error.kind() == PgErrorKind::SlotInUse && Instant::now() < give_up => {
                    tokio::time::sleep(SLOT_BUSY_POLL).await;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(ReplicationStream::new(self.transport, self.buffer, options, lsn))
    }

    async fn start_once(&mut self, sql: &str) -> Result<(), PgError> {
        self.send(|out| frontend::query(sql, out)).await?;
        let mut failed = None;
        loop {
            let len = self.wait_for_message().await?;
            // CopyBothResponse, which the message parser does not know. What follows is the stream.
            if self.buffer[0] == b'W' {
                self.buffer.advance(len);
                return Ok(());
            }
            match self.parse()? {
                Message::ErrorResponse(body) => failed = Some(PgError::from_fields(body.fields())),
                Message::ReadyForQuery(_) => {
                    return Err(failed
                        .unwrap_or_else(|| PgError::malformed("START_REPLICATION did not start a stream")));
                }
                _ => {}
            }
        }
    }

    async fn send(
        &mut self,
        encode: impl FnOnce(&mut BytesMut) -> std::io::Result<()>,
    ) -> Result<(), PgError> {
        let mut message = BytesMut::new();
        encode(&mut message).map_err(|error| PgError::from_io(&error))?;
        let sent = async {
            self.transport.write_all(&message).await?;
            self.transport.flush().await
        };
        sent.await.map_err(|error| PgError::from_io(&error))
    }

    async fn message(&mut self) -> Result<Message, PgError> {
        self.wait_for_message().await?;
        self.parse()
    }

    fn parse(&mut self) -> Result<Message, PgError> {
        match Message::parse(&mut self.buffer) {
            Ok(Some(message)) => Ok(message),
            Ok(None) => Err(PgError::malformed("an incomplete message")),
            Err(_) => Err(PgError::malformed("a malformed message")),
        }
    }

    /// Reads until a whole message is at the front of the buffer; returns its length.
    async fn wait_for_message(&mut self) -> Result<usize, PgError> {
        loop {
            if let Some([_, len @ ..]) = self.buffer.first_chunk::<5>() {
                let len = (u32::from_be_bytes(*len) as usize).saturating_add(1);
                if !(5..=ANSWER_BYTES_MAX).contains(&len) {
                    return Err(PgError::malformed("a message of impossible length"));
                }
                if self.buffer.len() >= len {
                    return Ok(len);
                }
            }
            match self.transport.read_buf(&mut self.buffer).await {
                Ok(0) => {
                    return Err(PgError::new(PgErrorKind::Unreachable, "the server closed the connection"));
                }
                Ok(_) => {}
                Err(error) => return Err(PgError::from_io(&error)),
            }
        }
    }
}

/// A string of the replication grammar, which knows doubled quotes and no escapes.
pub(super) fn replication_literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

fn text_row(body: &DataRowBody) -> Result<TextRow, PgError> {
    let buffer = body.buffer();
    body.ranges()
        .map(|range| Ok(range.map(|range| String::from_utf8_lossy(&buffer[range]).into_owned())))
        .collect()
        .map_err(|_| PgError::malformed("a malformed row"))
}

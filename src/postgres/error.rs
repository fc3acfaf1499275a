//! One error for everything that Postgres, or the way to it, can refuse.
//!
//! A message of Postgres may quote data (`invalid input syntax for type integer: "…"`), so it is kept
//! only for conditions whose messages name objects and roles at most; of all others the SQLSTATE
//! remains. Detail, hint, context and statement are never kept.

use std::fmt;
use std::io;

use postgres_protocol::message::backend::ErrorFields;
use tokio_postgres::error::DbError;
use tokio_postgres::fallible_iterator::FallibleIterator;

/// What went wrong, as far as somebody can act on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PgErrorKind {
    /// Refused, reset, timed out, or silent for too long.
    Unreachable,
    /// The host name does not exist.
    UnknownHost,
    /// The server is starting, stopping, or in recovery.
    NotReady,
    WrongPassword,
    /// `pg_hba.conf` has no entry for this client, or demands TLS.
    Rejected,
    /// TLS was required and is not offered, or the certificate was not signed by the given CA.
    Tls,
    NoSuchDatabase,
    /// The role may not start a walsender.
    NotReplicationRole,
    WalLevelNotLogical,
    MissingPrivilege,
    /// The slot is active for another connection.
    SlotInUse,
    /// The slot was invalidated: the log it needs is gone.
    SlotLost,
    /// No replication slot is free (`max_replication_slots`).
    TooManySlots,
    TooManyConnections,
    DiskFull,
    /// A hosted database has used up what its plan includes.
    QuotaExceeded,
    /// `lock_timeout` ran out.
    LockTimeout,
    /// `statement_timeout`, or cancelled by somebody.
    Cancelled,
    /// A table, schema, column, function, publication or slot is gone.
    UndefinedObject,
    /// All connections that this process may have are in use.
    PoolQueueTimeout,
    /// The bytes received are not the protocol.
    Protocol,
    /// Everything else; see [`PgError::sqlstate`].
    Other,
}

/// An error of a Postgres connection. Its text holds no row value, SQL text or password.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PgError {
    kind: PgErrorKind,
    sqlstate: Option<String>,
    message: Option<String>,
}

impl PgError {
    pub(crate) fn new(kind: PgErrorKind, message: impl Into<String>) -> PgError {
        PgError { kind, sqlstate: None, message: Some(message.into()) }
    }

    /// From the fields of an ErrorResponse.
    pub(crate) fn from_sqlstate(sqlstate: &str, message: &str) -> PgError {
        let kind = classify(sqlstate, message);
        let message = message_is_safe(sqlstate).then(|| message.to_owned());
        PgError { kind, sqlstate: Some(sqlstate.to_owned()), message }
    }

    pub(crate) fn from_fields(mut fields: ErrorFields<'_>) -> PgError {
        let (mut sqlstate, mut message) = (String::new(), String::new());
        // A malformed field ends the list: what was read until then still says what happened.
        while let Ok(Some(field)) = fields.next() {
            let value = String::from_utf8_lossy(field.value_bytes()).into_owned();
            match field.type_() {
                b'C' => sqlstate = value,
                b'M' => message = value,
                _ => {}
            }
        }
        PgError::from_sqlstate(&sqlstate, &message)
    }

    #[must_use]
    pub fn kind(&self) -> PgErrorKind {
        self.kind
    }

    /// The five characters of <https://www.postgresql.org/docs/current/errcodes-appendix.html>, where
    /// the error came from the server.
    #[must_use]
    pub fn sqlstate(&self) -> Option<&str> {
        self.sqlstate.as_deref()
    }

    /// Postgres' own message, where it cannot hold data.
    #[must_use]
    pub fn message(&self) -> Option<&str> {
        self.message.as_deref()
    }

    /// Trying again cannot help before somebody changes something (contract 6.9).
    #[must_use]
    pub fn fatal(&self) -> bool {
        match self.kind {
            PgErrorKind::UnknownHost
            | PgErrorKind::WrongPassword
            | PgErrorKind::Rejected
            | PgErrorKind::Tls
            | PgErrorKind::NoSuchDatabase
            | PgErrorKind::NotReplicationRole
            | PgErrorKind::WalLevelNotLogical
            | PgErrorKind::MissingPrivilege
            | PgErrorKind::QuotaExceeded => true,
            PgErrorKind::Unreachable
            | PgErrorKind::NotReady
            | PgErrorKind::SlotInUse
            | PgErrorKind::SlotLost
            | PgErrorKind::TooManySlots
            | PgErrorKind::TooManyConnections
            | PgErrorKind::DiskFull
            | PgErrorKind::LockTimeout
            | PgErrorKind::Cancelled
            | PgErrorKind::UndefinedObject
            | PgErrorKind::PoolQueueTimeout
            | PgErrorKind::Protocol
            | PgErrorKind::Other => false,
        }
    }

    /// What to do about it, in one sentence.
    #[must_use]
    pub fn remedy(&self) -> &'static str {
        match self.kind {
            PgErrorKind::Unreachable => {
                "Check that the database is running and that its host and port can be reached from here."
            }
            PgErrorKind::UnknownHost => "Correct the host name in DATABASE_URL.",
            PgErrorKind::NotReady => "Wait: the server accepts connections once it has started.",
            PgErrorKind::WrongPassword => "Correct the user name or the password in DATABASE_URL.",
            PgErrorKind::Rejected => {
                "Add an entry for this client to pg_hba.conf, or set sslmode=require where the server demands TLS."
            }
            PgErrorKind::Tls => {
                "Turn on TLS in the server and give the CA that signed its certificate, or choose another sslmode."
            }
            PgErrorKind::NoSuchDatabase => "Create the database, or correct its name in DATABASE_URL.",
            PgErrorKind::NotReplicationRole => {
                "Run ALTER ROLE <user> WITH REPLICATION for the user in DATABASE_URL."
            }
            PgErrorKind::WalLevelNotLogical => "Set wal_level = logical and restart Postgres.",
            PgErrorKind::MissingPrivilege => {
                "Grant the user in DATABASE_URL the privilege that the message names, or make it the owner of the object."
            }
            PgErrorKind::SlotInUse => {
                "Stop the other process that streams from this slot, or choose another ELECTRIC_REPLICATION_STREAM_ID."
            }
            PgErrorKind::SlotLost => {
                "Raise max_slot_wal_keep_size; the slot is made anew and clients fetch their shapes again."
            }
            PgErrorKind::TooManySlots => {
                "Drop replication slots that nobody uses, or raise max_replication_slots."
            }
            PgErrorKind::TooManyConnections => {
                "Raise max_connections or max_wal_senders, or lower ELECTRIC_DB_POOL_SIZE."
            }
            PgErrorKind::DiskFull => "Free disk space on the database server.",
            PgErrorKind::QuotaExceeded => "Raise the quota of the database at its provider.",
            PgErrorKind::LockTimeout => "End the transaction that holds a lock on the table.",
            PgErrorKind::Cancelled => {
                "Raise statement_timeout of the role, or find out who cancels its queries."
            }
            PgErrorKind::PoolQueueTimeout => {
                "Raise ELECTRIC_DB_POOL_SIZE, or find out which queries hold the connections."
            }
            PgErrorKind::UndefinedObject => "Create the object again, or correct its name.",
            PgErrorKind::Protocol => {
                "Check that DATABASE_URL points to Postgres itself and not to a pooler or proxy."
            }
            PgErrorKind::Other => "See the log of the database server.",
        }
    }
}

impl fmt::Display for PgError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let headline = match self.kind {
            PgErrorKind::WalLevelNotLogical => {
                return f.write_str("Electric requires wal_level >= logical. See https://www.postgresql.org/docs/current/runtime-config-wal.html#GUC-WAL-LEVEL");
            }
            PgErrorKind::SlotInUse => {
                return f.write_str("Replication slot already in use by another database connection, possibly external to Electric.");
            }
            PgErrorKind::Unreachable => "the database cannot be reached",
            PgErrorKind::UnknownHost => "the database host is unknown",
            PgErrorKind::NotReady => "the database is not ready",
            PgErrorKind::WrongPassword => "the database refused the password",
            PgErrorKind::Rejected => "the database refused the connection",
            PgErrorKind::Tls => "no trusted TLS connection to the database",
            PgErrorKind::NoSuchDatabase => "the database does not exist",
            PgErrorKind::NotReplicationRole => "the role lacks REPLICATION",
            PgErrorKind::MissingPrivilege => "a privilege is missing",
            PgErrorKind::SlotLost => "the replication slot was invalidated",
            PgErrorKind::TooManySlots => "no replication slot is free",
            PgErrorKind::TooManyConnections => "the database has no connection left",
            PgErrorKind::DiskFull => "the disk of the database is full",
            PgErrorKind::QuotaExceeded => "a quota of the database is used up",
            PgErrorKind::LockTimeout => "waited too long for a lock",
            PgErrorKind::Cancelled => "the query was cancelled",
            PgErrorKind::PoolQueueTimeout => "waited too long for a connection",
            PgErrorKind::UndefinedObject => "an object does not exist",
            PgErrorKind::Protocol => "the server does not speak the Postgres protocol as expected",
            PgErrorKind::Other => "the database reported an error",
        };
        f.write_str(headline)?;
        if let Some(message) = &self.message {
            write!(f, ": {message}")?;
        }
        if let Some(sqlstate) = &self.sqlstate {
            write!(f, " (SQLSTATE {sqlstate})")?;
        }
        Ok(())
    }
}

impl std::error::Error for PgError {}

impl From<&DbError> for PgError {
    fn from(error: &DbError) -> PgError {
        PgError::from_sqlstate(error.code().code(), error.message())
    }
}

impl From<tokio_postgres::Error> for PgError {
    fn from(error: tokio_postgres::Error) -> PgError {
        if let Some(db) = error.as_db_error() {
            return PgError::from(db);
        }
        if error.is_closed() {
            return PgError::new(PgErrorKind::Unreachable, "connection closed");
        }
        match std::error::Error::source(&error).and_then(|source| source.downcast_ref::<io::Error>()) {
            Some(source) => PgError::from_io(source),
            // Its Display names the step that failed, without values.
            None if error.to_string().contains("TLS") => PgError::new(PgErrorKind::Tls, error.to_string()),
            None => PgError::new(PgErrorKind::Protocol, error.to_string()),
        }
    }
}

impl PgError {
    pub(crate) fn from_io(error: &io::Error) -> PgError {
        let tls = error.get_ref().is_some_and(|inner| inner.downcast_ref::<rustls::Error>().is_some());
        if tls {
            return PgError::new(PgErrorKind::Tls, error.to_string());
        }
        match error.kind() {
            io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput => {
                PgError::new(PgErrorKind::Protocol, "malformed message")
            }
            kind => PgError::new(PgErrorKind::Unreachable, kind.to_string()),
        }
    }

    pub(crate) fn malformed(what: &str) -> PgError {
        PgError::new(PgErrorKind::Protocol, what)
    }
}

fn classify(sqlstate: &str, message: &str) -> PgErrorKind {
    let says = |text: &str| message.contains(text);
    match sqlstate {
        "28P01" => PgErrorKind::WrongPassword,
        // With some methods of authentication this is how an unknown role is refused.
        "28000" if says("password authentication failed") || says("does not exist") => {
            PgErrorKind::WrongPassword
        }
        "28000" => PgErrorKind::Rejected,
        "3D000" => PgErrorKind::NoSuchDatabase,
        "42501" if says("replication role") || says("start WAL sender") || says("REPLICATION") => {
            PgErrorKind::NotReplicationRole
        }
        "42501" => PgErrorKind::MissingPrivilege,
        "55000" if says("wal_level") => PgErrorKind::WalLevelNotLogical,
        // The words of Postgres 16 to 18, and those of 13 to 15.
        "55000" if says("can no longer") || says("cannot read from logical replication slot") => {
            PgErrorKind::SlotLost
        }
        "58P01" if says("requested WAL segment") => PgErrorKind::SlotLost,
        "55006" => PgErrorKind::SlotInUse,
        "53400" if says("replication slots") => PgErrorKind::TooManySlots,
        "53300" => PgErrorKind::TooManyConnections,
        "53100" => PgErrorKind::DiskFull,
        "55P03" => PgErrorKind::LockTimeout,
        "57014" => PgErrorKind::Cancelled,
        "57P01" | "57P02" | "57P03" | "57P05" => PgErrorKind::NotReady,
        "42P01" | "42703" | "42704" | "42883" | "3F000" => PgErrorKind::UndefinedObject,
        "XX000" if says("quota") => PgErrorKind::QuotaExceeded,
        _ if sqlstate.starts_with("08") => PgErrorKind::Unreachable,
        _ => PgErrorKind::Other,
    }
}

/// Conditions whose messages name roles, objects and settings, never data.
fn message_is_safe(sqlstate: &str) -> bool {
    const CLASSES: [&str; 6] = ["08", "28", "3D", "3F", "53", "55"];
    // Division by zero is the one data exception whose message is always the same.
    const CODES: [&str; 9] =
        ["22012", "42501", "42P01", "42703", "42704", "42883", "57014", "57P01", "57P03"];
    CLASSES.iter().any(|class| sqlstate.starts_with(class)) || CODES.contains(&sqlstate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classifies_what_postgres_says() {
        for (sqlstate, message, kind, fatal) in [
            ("28P01", "password authentication failed for user \"u\"", PgErrorKind::WrongPassword, true),
            ("28000", "no pg_hba.conf entry for host", PgErrorKind::Rejected, true),
            ("3D000", "database \"x\" does not exist", PgErrorKind::NoSuchDatabase, true),
            (
                "42501",
                "must be superuser or replication role to start walsender",
                PgErrorKind::NotReplicationRole,
                true,
            ),
            ("42501", "permission denied for table items", PgErrorKind::MissingPrivilege, true),
            (
                "55000",
                "logical decoding requires wal_level >= logical",
                PgErrorKind::WalLevelNotLogical,
                true,
            ),
            ("55000", "can no longer get changes from replication slot", PgErrorKind::SlotLost, false),
            ("55000", "cannot read from logical replication slot \"s\"", PgErrorKind::SlotLost, false),
            ("55006", "replication slot is active for PID 1", PgErrorKind::SlotInUse, false),
            ("53300", "sorry, too many clients already", PgErrorKind::TooManyConnections, false),
            ("57P03", "the database system is starting up", PgErrorKind::NotReady, false),
            ("55P03", "canceling statement due to lock timeout", PgErrorKind::LockTimeout, false),
            ("08006", "connection failure", PgErrorKind::Unreachable, false),
            ("42P01", "relation \"x\" does not exist", PgErrorKind::UndefinedObject, false),
        ] {
            let error = PgError::from_sqlstate(sqlstate, message);
            assert_eq!((error.kind(), error.fatal()), (kind, fatal), "{sqlstate} {message}");
            assert!(error.remedy().ends_with('.') && error.remedy().len() > 20);
        }
    }

    #[test]
    fn a_message_that_may_quote_data_is_not_kept() {
        let error = PgError::from_sqlstate("22P02", "invalid input syntax for type integer: \"secret\"");
        assert_eq!(error.message(), None);
        assert_eq!(error.to_string(), "the database reported an error (SQLSTATE 22P02)");
        let kept = PgError::from_sqlstate("42501", "permission denied for table items");
        assert_eq!(kept.message(), Some("permission denied for table items"));
    }
}

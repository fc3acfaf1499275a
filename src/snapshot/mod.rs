//! The initial rows of a shape: a REPEATABLE READ transaction that tells what it sees, and a COPY of
//! the rows (contract 4.4).

mod rows;
mod subset;

use std::time::Duration;

use tokio_postgres::SimpleQueryMessage;

use crate::domain::{Lsn, PgSnapshot, ShapeDefinition, quote_identifier};
use crate::postgres::{PgError, PgErrorKind, SESSION_SETTINGS, SqlClient};

pub use rows::{RowBatch, RowStream};
pub use subset::{SubsetQuery, open_subset};

/// Longest time until the first row, or the end of none (contract 4.4).
pub const FIRST_DATA_WAIT_MAX: Duration = Duration::from_secs(30);

/// Longest time until the transaction has begun.
const OPEN_WAIT_MAX: Duration = Duration::from_secs(30);

/// Why there are no initial rows. The texts are those of contract 4.4.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SnapshotError {
    /// A table, column or function is gone: clients get a 409.
    #[error("the table or one of its columns has been dropped or renamed")]
    MustRefetch,
    /// Postgres' own words, which name the table.
    #[error("Unable to create initial snapshot: {0}")]
    PermissionDenied(String),
    #[error("Snapshot timed out while waiting for a table lock")]
    LockTimeout,
    #[error(
        "Snapshot query took too long to return data (cancelled after {0}ms). Please ensure snapshot queries are using an index to avoid taking up all database connections."
    )]
    FirstDataTimeout(u128),
    #[error("Snapshot query took too long to start reading from the database")]
    StartTimeout,
    #[error("Database connection not available")]
    Unavailable,
    #[error("Snapshot creation failed because of a connection pool queue timeout")]
    PoolQueueTimeout,
    /// A `statement_timeout`, or somebody's cancel request.
    #[error("Unexpected error while creating snapshot: the query was cancelled")]
    Cancelled,
    #[error("Unexpected error while creating snapshot: {0}")]
    Unexpected(PgError),
    /// A literal that Postgres does not take, such as a label that its enum lacks. In its own words,
    /// which quote the request: for the client, not for logs.
    #[error("{0}")]
    InvalidLiteral(String),
    #[error("Unexpected error while creating snapshot: the rows are not in the form of COPY")]
    Malformed,
}

impl From<PgError> for SnapshotError {
    fn from(error: PgError) -> SnapshotError {
        match error.kind() {
            PgErrorKind::UndefinedObject => SnapshotError::MustRefetch,
            PgErrorKind::MissingPrivilege => {
                SnapshotError::PermissionDenied(error.message().unwrap_or("permission denied").to_owned())
            }
            PgErrorKind::LockTimeout => SnapshotError::LockTimeout,
            PgErrorKind::Cancelled => SnapshotError::Cancelled,
            PgErrorKind::PoolQueueTimeout => SnapshotError::PoolQueueTimeout,
            PgErrorKind::Unreachable | PgErrorKind::NotReady | PgErrorKind::TooManyConnections => {
                SnapshotError::Unavailable
            }
            _ => SnapshotError::Unexpected(error),
        }
    }
}

/// A transaction that sees one state of the database.
#[derive(Debug)]
pub struct OpenSnapshot {
    client: SqlClient,
    sql: String,
    columns: usize,
    /// The transactions whose commits are among its rows.
    pub visible: PgSnapshot,
    /// Insert position of the log, read after the snapshot was taken: a commit at or above it is not
    /// visible. (Not the write position: an asynchronous commit is visible before it is written.)
    pub lsn: Lsn,
}

/// Begins the transaction and learns what it sees. The connection is the snapshot's own until
/// [`RowStream::finish`] gives it back.
///
/// # Errors
/// See [`SnapshotError`].
pub async fn open(client: SqlClient, definition: &ShapeDefinition) -> Result<OpenSnapshot, SnapshotError> {
    open_with_extra(client, definition, &[]).await
}

/// As [`open`], with further expressions after the columns of each row.
///
/// # Errors
/// See [`SnapshotError`].
pub async fn open_with_extra(
    client: SqlClient,
    definition: &ShapeDefinition,
    extra: &[String],
) -> Result<OpenSnapshot, SnapshotError> {
    open_with(client, definition.columns.len() + extra.len(), copy_sql(definition, extra)).await
}

/// Rows of the table of a shape that satisfy another condition than its own, or all; with these columns
/// after its own.
///
/// # Errors
/// See [`SnapshotError`].
pub async fn open_rows(
    client: SqlClient,
    definition: &ShapeDefinition,
    columns: &[String],
    condition: Option<&str>,
) -> Result<OpenSnapshot, SnapshotError> {
    let columns: Vec<String> =
        definition.columns.iter().chain(columns).map(|name| quote_identifier(name)).collect();
    open_with(client, columns.len(), select_sql(&columns, definition, condition)).await
}

async fn open_with(client: SqlClient, columns: usize, sql: String) -> Result<OpenSnapshot, SnapshotError> {
    match tokio::time::timeout(OPEN_WAIT_MAX, begin(&client)).await {
        Ok(begun) => {
            let (visible, lsn) = begun?;
            Ok(OpenSnapshot { client, sql, columns, visible, lsn })
        }
        Err(_) => Err(SnapshotError::StartTimeout),
    }
}

impl OpenSnapshot {
    /// The distinct values that an inner query gives in this snapshot, in the order of its select list.
    ///
    /// # Errors
    /// See [`SnapshotError`].
    pub async fn distinct(&self, inner: &ShapeDefinition) -> Result<Vec<RowBatch>, SnapshotError> {
        let columns: Vec<String> = inner.selects.iter().map(|name| quote_identifier(name)).collect();
        let sql = select_sql(&columns, inner, inner.where_sql.as_deref());
        let sql = sql.replacen("COPY (SELECT ", "COPY (SELECT DISTINCT ", 1);
        rows::read_all(&self.client, &sql, columns.len()).await
    }

    /// Starts to read the rows, in the order of `definition.columns`.
    ///
    /// # Errors
    /// See [`SnapshotError`]; `FirstDataTimeout` after [`FIRST_DATA_WAIT_MAX`].
    pub async fn rows(self) -> Result<RowStream, SnapshotError> {
        self.rows_within(FIRST_DATA_WAIT_MAX).await
    }

    /// Ends the transaction without reading a row, and gives the connection back.
    ///
    /// # Errors
    /// See [`SnapshotError`].
    pub async fn leave(self) -> Result<SqlClient, SnapshotError> {
        self.client.batch_execute("ROLLBACK").await.map_err(PgError::from)?;
        Ok(self.client)
    }

    /// As [`Self::rows`], with another limit for the first row.
    ///
    /// # Errors
    /// See [`SnapshotError`].
    pub async fn rows_within(self, first_data_max: Duration) -> Result<RowStream, SnapshotError> {
        RowStream::start(self.client, &self.sql, self.columns, first_data_max).await
    }
}

/// The settings are repeated inside the transaction: a pooler may have given us another server
/// connection than the one on which they were made.
async fn begin(client: &SqlClient) -> Result<(PgSnapshot, Lsn), SnapshotError> {
    let mut sql = String::from("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY;");
    for (name, value) in SESSION_SETTINGS {
        sql.push_str(&format!("SET LOCAL {name} = '{value}';"));
    }
    sql.push_str("SELECT pg_current_snapshot(), pg_current_wal_insert_lsn()");
    let messages = client.simple_query(&sql).await.map_err(PgError::from)?;
    let row = messages.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some(row),
        _ => None,
    });
    let visible = row.and_then(|row| row.get(0)).and_then(PgSnapshot::parse);
    let lsn = row.and_then(|row| row.get(1)).and_then(|text| text.parse().ok());
    visible.zip(lsn).ok_or(SnapshotError::Malformed)
}

/// The where clause has been parsed and printed by us; the parentheses keep its `OR` inside. They end
/// on a line of their own, should it end in a comment.
fn copy_sql(definition: &ShapeDefinition, extra: &[String]) -> String {
    let mut columns: Vec<String> = definition.columns.iter().map(|name| quote_identifier(name)).collect();
    columns.extend_from_slice(extra);
    select_sql(&columns, definition, definition.where_sql.as_deref())
}

fn select_sql(columns: &[String], definition: &ShapeDefinition, condition: Option<&str>) -> String {
    let filter = match condition {
        Some(condition) => format!(" WHERE ({condition}\n)"),
        None => String::new(),
    };
    format!(
        "COPY (SELECT {} FROM {}{filter}) TO STDOUT",
        columns.join(", "),
        definition.relation.name.to_sql()
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    use crate::domain::{LogMode, Oid, Relation, RelationName, Replica};

    #[test]
    fn quotes_names_and_encloses_the_condition() {
        let mut definition = ShapeDefinition {
            relation: Arc::new(Relation {
                oid: Oid(1),
                name: RelationName { schema: "public".to_owned(), table: "a\"b".to_owned() },
                columns: Vec::new(),
                partitioned: false,
                storage: None,
            }),
            where_sql: None,
            columns: vec!["Id".to_owned(), "v".to_owned()],
            columns_named: false,
            replica: Replica::Default,
            log: LogMode::Full,
            dependencies: Vec::new(),
            selects: Vec::new(),
        };
        assert_eq!(copy_sql(&definition, &[]), r#"COPY (SELECT "Id", "v" FROM "public"."a""b") TO STDOUT"#);
        definition.where_sql = Some("a OR b".to_owned());
        assert!(copy_sql(&definition, &[]).ends_with("WHERE (a OR b\n)) TO STDOUT"));
    }

    #[test]
    fn maps_what_postgres_says_to_the_contract() {
        let of = |sqlstate, message| SnapshotError::from(PgError::from_sqlstate(sqlstate, message));
        assert_eq!(of("42P01", "relation \"x\" does not exist"), SnapshotError::MustRefetch);
        assert_eq!(of("42703", "column \"x\" does not exist"), SnapshotError::MustRefetch);
        assert_eq!(
            of("42501", "permission denied for table items").to_string(),
            "Unable to create initial snapshot: permission denied for table items"
        );
        assert_eq!(of("55P03", "canceling statement due to lock timeout"), SnapshotError::LockTimeout);
        assert_eq!(of("57P01", "terminating connection"), SnapshotError::Unavailable);
        let queue = SnapshotError::from(PgError::new(PgErrorKind::PoolQueueTimeout, "all are in use"));
        assert_eq!(queue.to_string(), "Snapshot creation failed because of a connection pool queue timeout");
        assert!(!of("22P02", "invalid input syntax for type integer: 42 ").to_string().contains("42 "));
    }
}

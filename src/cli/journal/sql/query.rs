//! One query, which can do nothing but read.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use rusqlite::hooks::{AuthAction, AuthContext, Authorization};
use rusqlite::types::Value;
use rusqlite::{Connection, OpenFlags};

use super::super::Failure;
use super::SqlError;
use super::tables::Table;

/// What a query may do: look at tables, call functions, recur. Files cannot be attached, no setting changed.
fn judge(context: &AuthContext<'_>) -> Authorization {
    match context.action {
        // Whether it is there at all depends on how the library was built.
        AuthAction::Function { function_name } if function_name.eq_ignore_ascii_case("load_extension") => {
            Authorization::Deny
        }
        AuthAction::Select
        | AuthAction::Read { .. }
        | AuthAction::Function { .. }
        | AuthAction::Recursive => Authorization::Allow,
        _ => Authorization::Deny,
    }
}

/// The tables that a query reads; it is compiled for that, against empty ones.
pub fn tables_of(query: &str) -> Result<Vec<Table>, SqlError> {
    let mut connection = Connection::open_in_memory().map_err(SqlError::Query)?;
    for table in Table::ALL {
        connection.execute_batch(&table.create()).map_err(SqlError::Query)?;
    }
    let read: Arc<Mutex<BTreeSet<String>>> = Arc::default();
    let seen = Arc::clone(&read);
    let hook = move |context: AuthContext<'_>| {
        if let AuthAction::Read { table_name, .. } = context.action {
            seen.lock().unwrap_or_else(PoisonError::into_inner).insert(table_name.to_owned());
        }
        judge(&context)
    };
    connection.authorizer(Some(hook)).map_err(SqlError::Query)?;
    let reads = connection.prepare(query).map_err(SqlError::Query)?.readonly();
    if !reads {
        return Err(SqlError::NotReading);
    }
    let read = read.lock().unwrap_or_else(PoisonError::into_inner);
    Ok(Table::ALL.into_iter().filter(|table| read.contains(table.name())).collect())
}

/// Runs the query over a database that is opened for reading only; returns the names of the columns.
pub fn run(
    path: &Path,
    query: &str,
    mut take: impl FnMut(&[String], Vec<Value>) -> Result<(), Failure>,
) -> Result<Vec<String>, Failure> {
    let mut connection =
        Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY).map_err(SqlError::Query)?;
    let hook = |context: AuthContext<'_>| judge(&context);
    connection.authorizer(Some(hook)).map_err(SqlError::Query)?;
    let mut statement = connection.prepare(query).map_err(SqlError::Query)?;
    let columns: Vec<String> = statement.column_names().map(str::to_owned).collect();
    let mut rows = statement.query([]).map_err(SqlError::Query)?;
    while let Some(row) = rows.next().map_err(SqlError::Query)? {
        let values: Result<Vec<Value>, rusqlite::Error> = (0..columns.len()).map(|at| row.get(at)).collect();
        take(&columns, values.map_err(SqlError::Query)?)?;
    }
    Ok(columns)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_query_names_is_read() {
        let of = |query: &str| tables_of(query).unwrap();
        assert_eq!(of("SELECT count(*) FROM shapes"), [Table::Shapes]);
        assert_eq!(
            of("WITH late AS (SELECT * FROM flush) SELECT * FROM late JOIN events e ON e.sid = late.sid"),
            [Table::Flush, Table::Events]
        );
        assert_eq!(of("SELECT 1 -- shapes"), []);
    }

    #[test]
    fn whatever_does_more_than_read_is_refused() {
        for query in [
            "DELETE FROM shapes",
            "INSERT INTO shapes (sid) VALUES (1)",
            "CREATE TABLE mine (a)",
            "CREATE TEMP TABLE mine (a)",
            "ATTACH '/tmp/x.sqlite' AS x",
            "PRAGMA journal_mode = WAL",
            "VACUUM INTO '/tmp/x.sqlite'",
            "SELECT load_extension('x')",
            "SELECT 1; DROP TABLE shapes",
            "SELECT nothing FROM shapes",
            "SELEC 1",
            "BEGIN",
        ] {
            assert!(tables_of(query).is_err(), "{query}");
        }
    }
}

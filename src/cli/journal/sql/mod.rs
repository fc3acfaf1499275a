//! Questions that nobody foresaw: the journal as tables of SQLite, asked in this process or written to a file.

mod fill;
mod query;
mod tables;

use std::io::Write;
use std::path::{Path, PathBuf};

use rusqlite::types::Value;

use crate::inspect::Source;
use crate::projections::forensics::{Position, commas};

use super::{Failure, Where};

use tables::Table;

/// A query over the journal: `SELECT`, read-only, in SQLite's SQL.
///
/// Tables: `events`, `acks`, `owners` hold what happened up to the place; `moment`, `shapes`, `flush`,
/// `consumers`, `transactions` the state there, ages included. Without a query, the tables and their columns.
/// Only tables that the query names are filled.
#[derive(Debug, clap::Args)]
pub struct Sql {
    #[command(flatten)]
    pub journal: Where,
    /// Such as "SELECT table_oid, count(*) FROM flush GROUP BY 1".
    query: Option<String>,
    /// The place; the end if nothing is said.
    #[arg(long, default_value = "end")]
    at: Position,
    /// Comma-separated values with a header, as in RFC 4180.
    #[arg(long, conflicts_with = "json")]
    csv: bool,
    /// One JSON object a line.
    #[arg(long)]
    json: bool,
}

/// What went wrong with a query or a database.
#[derive(Debug, thiserror::Error)]
pub enum SqlError {
    #[error("the query is refused: {0}")]
    Query(rusqlite::Error),
    #[error("only one statement that reads is allowed")]
    NotReading,
    #[error("the database cannot be written: {0}")]
    Write(rusqlite::Error),
    #[error("{0} exists already")]
    Exists(PathBuf),
    #[error("the database cannot be made: {0}")]
    Io(#[from] std::io::Error),
}

impl Sql {
    pub fn run(&self, out: &mut impl Write) -> Result<(), Failure> {
        let Some(query) = &self.query else { return Ok(tables::describe(out)?) };
        let wanted = query::tables_of(query)?;
        let source = self.journal.open()?;
        let directory = tempfile::Builder::new().prefix("shapefold-sql-").tempdir()?;
        let path = directory.path().join("journal.sqlite");
        fill::write(&source, self.at, &wanted, &path)?;
        let mut rows = if self.json {
            Rows::Json
        } else if self.csv {
            Rows::Csv { headed: false }
        } else {
            Rows::Table(Vec::new())
        };
        let columns = query::run(&path, query, |columns, row| rows.take(columns, row, out))?;
        rows.finish(&columns, out)
    }
}

/// Writes every table to a file of its own; returns how many events are in it.
pub fn export(source: &Source, at: Position, from: Position, path: &Path) -> Result<String, Failure> {
    if path.try_exists()? {
        return Err(SqlError::Exists(path.to_owned()).into());
    }
    let events = fill::write_from(source, at, from, &Table::ALL, path)?;
    let bytes = std::fs::metadata(path)?.len();
    Ok(format!("{} events in {} bytes: {}", commas(events), commas(bytes), path.display()))
}

/// How an answer is shown.
enum Rows {
    Json,
    Csv {
        /// The names of the columns have been written.
        headed: bool,
    },
    /// Kept, so that columns can be made as wide as what is in them.
    Table(Vec<Vec<String>>),
}

/// Rows that a table is measured by; an answer of more is shown in parts, each with its own widths.
const MEASURED_ROWS_MAX: usize = 10_000;

impl Rows {
    fn take(&mut self, columns: &[String], row: Vec<Value>, out: &mut impl Write) -> Result<(), Failure> {
        match self {
            Rows::Json => {
                let object: serde_json::Map<String, serde_json::Value> =
                    columns.iter().cloned().zip(row.into_iter().map(json)).collect();
                writeln!(out, "{}", serde_json::Value::Object(object))?;
            }
            Rows::Csv { headed } => {
                if !std::mem::replace(headed, true) {
                    writeln!(out, "{}", header(columns))?;
                }
                let fields: Vec<String> = row.into_iter().map(|value| quoted(&text(value))).collect();
                writeln!(out, "{}", fields.join(","))?;
            }
            Rows::Table(rows) => {
                rows.push(row.into_iter().map(text).collect());
                if rows.len() >= MEASURED_ROWS_MAX {
                    table(columns, rows, out)?;
                    rows.clear();
                }
            }
        }
        Ok(())
    }

    fn finish(self, columns: &[String], out: &mut impl Write) -> Result<(), Failure> {
        match self {
            Rows::Json => Ok(()),
            Rows::Csv { headed: true } => Ok(()),
            Rows::Csv { headed: false } => Ok(writeln!(out, "{}", header(columns))?),
            Rows::Table(rows) if rows.is_empty() => Ok(writeln!(out, "{}", columns.join("  "))?),
            Rows::Table(rows) => table(columns, &rows, out),
        }
    }
}

fn header(columns: &[String]) -> String {
    columns.iter().map(|name| quoted(name)).collect::<Vec<_>>().join(",")
}

fn table(columns: &[String], rows: &[Vec<String>], out: &mut impl Write) -> Result<(), Failure> {
    let wide = |text: &String| text.chars().count();
    let widths: Vec<usize> = columns
        .iter()
        .enumerate()
        .map(|(at, name)| rows.iter().map(|row| wide(&row[at])).max().unwrap_or(0).max(wide(name)))
        .collect();
    for row in std::iter::once(columns).chain(rows.iter().map(Vec::as_slice)) {
        let cells: Vec<String> =
            row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        writeln!(out, "{}", cells.join("  ").trim_end())?;
    }
    Ok(())
}

fn text(value: Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::Integer(number) => number.to_string(),
        Value::Real(number) => number.to_string(),
        Value::Text(text) => text,
        Value::Blob(bytes) => bytes.iter().map(|byte| format!("{byte:02x}")).collect(),
    }
}

fn json(value: Value) -> serde_json::Value {
    match value {
        Value::Null => serde_json::Value::Null,
        Value::Integer(number) => number.into(),
        Value::Real(number) => number.into(),
        other @ (Value::Text(_) | Value::Blob(_)) => text(other).into(),
    }
}

fn quoted(field: &str) -> String {
    if field.contains(['"', ',', '\n', '\r']) {
        format!("\"{}\"", field.replace('"', "\"\""))
    } else {
        field.to_owned()
    }
}

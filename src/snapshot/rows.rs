//! Rows in the text form of COPY: <https://www.postgresql.org/docs/current/sql-copy.html>.
//!
//! One line per row, columns separated by tabs, `\N` for NULL, and backslash escapes for what would
//! break that. The text of a value is the same as in the replication stream.

use std::pin::Pin;
use std::time::Duration;

use futures_util::StreamExt;
use tokio::time::Instant;
use tokio_postgres::CopyOutStream;
use tokio_postgres::error::SqlState;

use crate::domain::Value;
use crate::postgres::{PgError, SqlClient};
use crate::snapshot::SnapshotError;

/// A batch is full when it holds this much text.
pub const BATCH_BYTES_MAX: usize = 256 << 10;

/// A batch is full when it holds this many rows.
pub const BATCH_ROWS_MAX: usize = 8192;

/// Rows as they come. Dropping it ends the connection.
pub struct RowStream {
    client: SqlClient,
    copy: Pin<Box<CopyOutStream>>,
    columns: usize,
    /// Until the first row has come: when to give up, and after how long that is.
    first_data: Option<(Instant, Duration)>,
    done: bool,
}

impl RowStream {
    pub(super) async fn start(
        client: SqlClient,
        sql: &str,
        columns: usize,
        first_data_max: Duration,
    ) -> Result<RowStream, SnapshotError> {
        let deadline = Instant::now() + first_data_max;
        match tokio::time::timeout_at(deadline, client.copy_out(sql)).await {
            Ok(copy) => {
                let copy = Box::pin(copy.map_err(refused)?);
                let first_data = Some((deadline, first_data_max));
                Ok(RowStream { client, copy, columns, first_data, done: false })
            }
            Err(_) => Err(give_up(&client, first_data_max).await),
        }
    }

    /// Fills `batch` anew. `false` once there are no rows left; the batch is then empty.
    ///
    /// # Errors
    /// See [`SnapshotError`]. After an error the stream is of no more use.
    pub async fn next_batch(&mut self, batch: &mut RowBatch) -> Result<bool, SnapshotError> {
        batch.clear(self.columns);
        while !self.done && !batch.is_full() {
            match self.next_line().await? {
                Some(line) => batch.push(&line)?,
                None => self.done = true,
            }
        }
        Ok(!batch.is_empty())
    }

    /// Ends the transaction and gives the connection back. To be called after the last batch.
    ///
    /// # Errors
    /// See [`SnapshotError`].
    pub async fn finish(self) -> Result<SqlClient, SnapshotError> {
        drop(self.copy);
        self.client.batch_execute("COMMIT").await.map_err(PgError::from)?;
        Ok(self.client)
    }

    /// Stops early: has the server end the query, then drops the connection.
    pub async fn cancel(self) {
        // Best effort: without it the query ends at its next write to the closed socket.
        let _unreachable = self.client.cancel().await;
    }

    async fn next_line(&mut self) -> Result<Option<bytes::Bytes>, SnapshotError> {
        let line = match self.first_data {
            None => self.copy.next().await,
            Some((deadline, waited)) => match tokio::time::timeout_at(deadline, self.copy.next()).await {
                Ok(line) => line,
                Err(_) => return Err(give_up(&self.client, waited).await),
            },
        };
        self.first_data = None;
        Ok(line.transpose().map_err(PgError::from)?)
    }
}

/// All rows of a query, in a transaction that goes on.
pub(super) async fn read_all(
    client: &SqlClient,
    sql: &str,
    columns: usize,
) -> Result<Vec<RowBatch>, SnapshotError> {
    let mut copy = Box::pin(client.copy_out(sql).await.map_err(refused)?);
    let mut batches = Vec::new();
    let mut batch = RowBatch::new();
    batch.clear(columns);
    while let Some(line) = copy.next().await {
        batch.push(&line.map_err(PgError::from)?)?;
        if batch.is_full() {
            batches.push(std::mem::take(&mut batch));
            batch.clear(columns);
        }
    }
    batches.push(batch);
    Ok(batches)
}

/// Postgres checks the literals of a query before it begins to send rows.
fn refused(error: tokio_postgres::Error) -> SnapshotError {
    match error.as_db_error() {
        Some(told) if *told.code() == SqlState::INVALID_TEXT_REPRESENTATION => {
            SnapshotError::InvalidLiteral(told.message().to_owned())
        }
        _ => PgError::from(error).into(),
    }
}

async fn give_up(client: &SqlClient, waited: Duration) -> SnapshotError {
    // The connection is dropped in any case; the request spares the server the rest of the query.
    let _unreachable = client.cancel().await;
    SnapshotError::FirstDataTimeout(waited.as_millis())
}

/// Many rows in one buffer, to be used again for the next ones: no allocation per row or column.
#[derive(Debug, Default)]
pub struct RowBatch {
    columns: usize,
    text: Vec<u8>,
    /// Place of each column in `text`, row after row. Invariant: a multiple of `columns`.
    cells: Vec<Cell>,
}

#[derive(Clone, Copy, Debug)]
struct Cell {
    start: u32,
    len: u32,
}

/// Length of a column that is NULL.
const NULL_LEN: u32 = u32::MAX;

impl RowBatch {
    #[must_use]
    pub fn new() -> RowBatch {
        RowBatch::default()
    }

    /// Number of rows.
    #[must_use]
    pub fn len(&self) -> usize {
        self.cells.len().checked_div(self.columns).unwrap_or(0)
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.cells.is_empty()
    }

    /// Bytes of text in all rows.
    #[must_use]
    pub fn text_bytes(&self) -> usize {
        self.text.len()
    }

    /// Hands each row to `visit`, in order.
    pub fn for_each(&self, visit: &mut dyn FnMut(&[Value<'_>])) {
        let mut row = Vec::with_capacity(self.columns);
        for cells in self.cells.chunks_exact(self.columns.max(1)) {
            row.clear();
            row.extend(cells.iter().map(|cell| match cell.len {
                NULL_LEN => Value::Null,
                len => Value::Text(&self.text[cell.start as usize..(cell.start + len) as usize]),
            }));
            visit(&row);
        }
    }

    fn clear(&mut self, columns: usize) {
        self.columns = columns;
        self.text.clear();
        self.cells.clear();
        // One enormous row must not stay around for the rest of the table.
        self.text.shrink_to(BATCH_BYTES_MAX * 2);
    }

    fn is_full(&self) -> bool {
        self.text.len() >= BATCH_BYTES_MAX || self.cells.len() >= BATCH_ROWS_MAX * self.columns.max(1)
    }

    /// Adds one line of COPY.
    fn push(&mut self, line: &[u8]) -> Result<(), SnapshotError> {
        let line = line.strip_suffix(b"\n").ok_or(SnapshotError::Malformed)?;
        let before = self.cells.len();
        if memchr::memchr(b'\\', line).is_none() {
            self.push_plain(line)?;
        } else {
            self.push_escaped(line)?;
        }
        if self.cells.len() - before == self.columns {
            Ok(())
        } else {
            self.cells.truncate(before);
            Err(SnapshotError::Malformed)
        }
    }

    /// A line without NULL and escapes: one copy for all columns.
    fn push_plain(&mut self, line: &[u8]) -> Result<(), SnapshotError> {
        let mut start = place(self.text.len())?;
        let end = place(self.text.len() + line.len())?;
        self.text.extend_from_slice(line);
        let base = start;
        for tab in memchr::memchr_iter(b'\t', line) {
            // Within the line, whose end fits.
            let at = base + tab as u32;
            self.cells.push(Cell { start, len: at - start });
            start = at + 1;
        }
        self.cells.push(Cell { start, len: end - start });
        Ok(())
    }

    fn push_escaped(&mut self, line: &[u8]) -> Result<(), SnapshotError> {
        for field in line.split(|&byte| byte == b'\t') {
            let start = place(self.text.len())?;
            if field == b"\\N" {
                self.cells.push(Cell { start, len: NULL_LEN });
                continue;
            }
            let mut rest = field;
            while let Some(at) = memchr::memchr(b'\\', rest) {
                self.text.extend_from_slice(&rest[..at]);
                let escaped = rest.get(at + 1).ok_or(SnapshotError::Malformed)?;
                self.text.push(match escaped {
                    b'b' => 0x08,
                    b'f' => 0x0c,
                    b'n' => b'\n',
                    b'r' => b'\r',
                    b't' => b'\t',
                    b'v' => 0x0b,
                    b'\\' => b'\\',
                    _ => return Err(SnapshotError::Malformed),
                });
                rest = &rest[at + 2..];
            }
            self.text.extend_from_slice(rest);
            self.cells.push(Cell { start, len: place(self.text.len())? - start });
        }
        Ok(())
    }
}

/// A place in a batch. Postgres sends rows of at most 1 GiB, so that none is beyond 32 bits.
fn place(at: usize) -> Result<u32, SnapshotError> {
    u32::try_from(at).ok().filter(|&at| at < NULL_LEN).ok_or(SnapshotError::Malformed)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rows(batch: &RowBatch) -> Vec<Vec<Option<Vec<u8>>>> {
        let mut rows = Vec::new();
        batch.for_each(&mut |row| {
            rows.push(
                row.iter()
                    .map(|value| match value {
                        Value::Text(text) => Some(text.to_vec()),
                        Value::Null | Value::Unchanged => None,
                    })
                    .collect(),
            );
        });
        rows
    }

    fn batch(columns: usize, lines: &[&[u8]]) -> Result<RowBatch, SnapshotError> {
        let mut batch = RowBatch::new();
        batch.clear(columns);
        for line in lines {
            batch.push(line)?;
        }
        Ok(batch)
    }

    #[test]
    fn decodes_lines() {
        let batch = batch(3, &[b"a\tbc\t\n", b"\\N\t\\\\N\tx\\ty\\nz\n", b"\t\t\n"]).expect("valid lines");
        let text = |bytes: &[u8]| Some(bytes.to_vec());
        assert_eq!(
            rows(&batch),
            [
                vec![text(b"a"), text(b"bc"), text(b"")],
                vec![None, text(b"\\N"), text(b"x\ty\nz")],
                vec![text(b""), text(b""), text(b"")],
            ]
        );
        assert_eq!(batch.len(), 3);
    }

    #[test]
    fn refuses_other_lines() {
        for line in [&b"a\tb"[..], b"a\n", b"a\tb\tc\n", b"a\tb\\\n", b"a\t\\x\n", b""] {
            assert_eq!(batch(2, &[line]).err(), Some(SnapshotError::Malformed), "{line:?}");
        }
    }

    /// As Postgres escapes a value for COPY.
    fn escape(value: &[u8], line: &mut Vec<u8>) {
        for &byte in value {
            let escaped = match byte {
                0x08 => b'b',
                0x0c => b'f',
                b'\n' => b'n',
                b'\r' => b'r',
                b'\t' => b't',
                0x0b => b'v',
                b'\\' => b'\\',
                plain => {
                    line.push(plain);
                    continue;
                }
            };
            line.extend_from_slice(&[b'\\', escaped]);
        }
    }

    proptest! {
        #[test]
        fn what_was_escaped_comes_back(
            values in proptest::collection::vec(proptest::option::of(proptest::collection::vec(0_u8..128, 0..12)), 1..6),
        ) {
            let mut line = Vec::new();
            for (index, value) in values.iter().enumerate() {
                if index > 0 {
                    line.push(b'\t');
                }
                match value {
                    Some(value) => escape(value, &mut line),
                    None => line.extend_from_slice(b"\\N"),
                }
            }
            line.push(b'\n');
            let batch = batch(values.len(), &[&line]).expect("a valid line");
            prop_assert_eq!(rows(&batch), vec![values]);
        }

        #[test]
        fn garbage_never_panics(line in proptest::collection::vec(any::<u8>(), 0..60), columns in 1_usize..5) {
            let mut batch = RowBatch::new();
            batch.clear(columns);
            let _ = batch.push(&line);
            batch.for_each(&mut |row| assert_eq!(row.len(), columns));
        }
    }
}

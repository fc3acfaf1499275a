//! Asking Postgres for rows: those that may move in, and what inner queries give.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::domain::{ShapeDefinition, Tuple, Value};
use crate::filter::subquery::{Selection, Values};
use crate::runtime::connections::Connections;
use crate::runtime::subquery::members::{RowKey, key_text};
use crate::runtime::subquery::moving::{Moved, MovedRow};
use crate::runtime::subquery::tagger::RowTagger;
use crate::shape_log::Encoder;
use crate::snapshot::{self, OpenSnapshot, RowBatch, SnapshotError};

/// Bytes of rows of one move that are held in memory; above, the shape starts over.
pub const MOVE_BYTES_MAX: usize = 256 << 20;
/// Tries of one query, unless Postgres cannot be reached.
const TRIES_MAX: u32 = 10;
/// Between two tries.
const RETRY_AFTER: Duration = Duration::from_millis(200);
/// Before the same is asked again because a transaction was not visible yet.
pub const AGAIN_AFTER: Duration = Duration::from_millis(20);

/// The rows of a table that satisfy a condition, in one snapshot. `None` where they cannot be had.
pub async fn fetch(
    connections: &Connections,
    definition: &ShapeDefinition,
    tagger: &RowTagger,
    condition: Option<&str>,
) -> Option<Moved> {
    let mut tries = 0;
    loop {
        match read(connections, definition, tagger, condition).await {
            Ok(moved) => return Some(moved),
            Err(Problem::TooMuch) => {
                tracing::error!(max = MOVE_BYTES_MAX, "more rows move in at once than may be held");
                return None;
            }
            Err(Problem::Snapshot(error)) => {
                let away = matches!(error, SnapshotError::Unavailable);
                tries += u32::from(!away);
                tracing::warn!(tries, "rows that are to move in could not be read");
                if tries >= TRIES_MAX {
                    return None;
                }
            }
        }
        tokio::time::sleep(RETRY_AFTER).await;
    }
}

enum Problem {
    Snapshot(SnapshotError),
    TooMuch,
}

impl From<SnapshotError> for Problem {
    fn from(error: SnapshotError) -> Problem {
        Problem::Snapshot(error)
    }
}

async fn read(
    connections: &Connections,
    definition: &ShapeDefinition,
    tagger: &RowTagger,
    condition: Option<&str>,
) -> Result<Moved, Problem> {
    let loan = connections.get().await.map_err(SnapshotError::from)?;
    let (client, place) = loan.split();
    let opened = snapshot::open_rows(client, definition, tagger.extra_columns(), condition).await?;
    let (visible, lsn) = (opened.visible.clone(), opened.lsn);
    let (encoder, selection) = (Encoder::new(definition), Selection::of(definition));
    let mut stream = opened.rows().await?;
    let (mut batch, mut rows, mut bytes) = (RowBatch::new(), Vec::new(), 0);
    while stream.next_batch(&mut batch).await? {
        let mut malformed = false;
        batch.for_each(&mut |cells| match row(cells, definition, &encoder, &selection) {
            Some(row) => {
                bytes += row.json.len() + row.cells.buffer_len();
                rows.push(row);
            }
            None => malformed = true,
        });
        if malformed {
            return Err(SnapshotError::Malformed.into());
        }
        if bytes > MOVE_BYTES_MAX {
            stream.cancel().await;
            return Err(Problem::TooMuch);
        }
    }
    place.keep(stream.finish().await?);
    Ok(Moved { visible, lsn, rows })
}

pub(super) fn row(
    cells: &[Value<'_>],
    definition: &ShapeDefinition,
    encoder: &Encoder,
    selection: &Selection,
) -> Option<MovedRow> {
    let own = cells.get(..definition.columns.len())?;
    let mut json = Vec::new();
    encoder.encode_row(own, &mut json).ok()?;
    let text = |name: &str| {
        let index = definition.columns.iter().position(|column| column == name)?;
        Some(match own[index] {
            Value::Text(text) => Some(text),
            Value::Null | Value::Unchanged => None,
        })
    };
    let member = if definition.is_inner() {
        let keys = definition.relation.key_columns();
        let key = keys
            .iter()
            .map(|column| Some(text(&column.name)?.map(|text| key_text(text, column.type_name == "bool"))));
        let key = key.collect::<Option<RowKey>>()?;
        let texts = selection.names().map(text).collect::<Option<Vec<_>>>()?;
        Some((key, selection.values(texts)?))
    } else {
        None
    };
    Some(MovedRow { cells: Tuple::from_values(cells), json, member })
}

/// What the inner queries of a shape give in its snapshot.
///
/// # Errors
/// See [`SnapshotError`].
pub async fn given(
    opened: &OpenSnapshot,
    definition: &ShapeDefinition,
) -> Result<Vec<BTreeSet<Values>>, SnapshotError> {
    let mut all = Vec::with_capacity(definition.dependencies.len());
    for dependency in &definition.dependencies {
        let selection = Selection::of(dependency);
        let (mut given, mut malformed) = (BTreeSet::new(), false);
        for batch in opened.distinct(dependency).await? {
            batch.for_each(&mut |cells| {
                let texts = cells.iter().map(|cell| match cell {
                    Value::Text(text) => Some(*text),
                    Value::Null | Value::Unchanged => None,
                });
                match selection.values(texts) {
                    Some(values) => drop(given.insert(values)),
                    None => malformed = true,
                }
            });
        }
        if malformed {
            return Err(SnapshotError::Malformed);
        }
        all.push(given);
    }
    Ok(all)
}

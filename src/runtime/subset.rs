//! Subset snapshots: a part of a shape's rows, while its log goes on (contract 1.14).
//!
//! What the client is promised: every transaction that the snapshot has not seen comes on the log after
//! the offset that it is given. The log of a readable shape has all that its own, earlier snapshot has
//! not seen; what is left are commits that were decoded before they became visible (N4), and those are
//! waited for.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rand::Rng;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::{Instant, sleep, timeout};

use crate::domain::{Lsn, PgSnapshot};
use crate::postgres::PgError;
use crate::runtime::connections::{Connections, Place};
use crate::runtime::handle::{LiveShape, Request, Service, Status};
use crate::runtime::subquery::RowTagger;
use crate::shape_log::{Encoder, ShapeLogError};
use crate::snapshot::{OpenSnapshot, RowBatch, RowStream, open_subset};

pub use crate::snapshot::{SnapshotError, SubsetQuery};

/// Longest wait for a turn.
const TURN_WAIT_MAX: Duration = Duration::from_secs(10);
/// Longest wait for commits to become visible that are on the log already.
const VISIBLE_WAIT_MAX: Duration = Duration::from_secs(10);
/// Time between two looks at that.
const VISIBLE_POLL: Duration = Duration::from_millis(20);
/// Marks are below this, contract 1.14.
const MARKS: u32 = 1 << 31;

/// What subsets are read with. A part of the connections only: new shapes need some, too.
#[derive(Clone, Debug)]
pub struct Subsets {
    connections: Connections,
    turns: Arc<Semaphore>,
}

/// Why there is no subset.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubsetError {
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// A commit that the client has seen, or will never be sent, has not become visible.
    #[error("a transaction on the log is not visible yet")]
    NotVisible,
    #[error("the service is shutting down")]
    Closing,
}

/// Rows of a subset, as they come. Holds a connection; dropped early, it closes it.
pub struct Subset {
    pub visible: PgSnapshot,
    /// Above every commit that is visible.
    pub lsn: Lsn,
    /// Tells the rows of this snapshot from others.
    pub mark: u32,
    rows: Option<RowStream>,
    batch: RowBatch,
    encoder: Encoder,
    tagger: Option<Arc<RowTagger>>,
    place: Option<Place>,
    begun: bool,
    _turn: OwnedSemaphorePermit,
}

impl std::fmt::Debug for Subset {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Subset").field("mark", &self.mark).field("lsn", &self.lsn).finish_non_exhaustive()
    }
}

impl Subsets {
    /// At most `turns` at once.
    #[must_use]
    pub fn new(connections: Connections, turns: usize) -> Subsets {
        Subsets { connections, turns: Arc::new(Semaphore::new(turns.max(1))) }
    }
}

impl Service {
    /// Reads a part of the rows of a shape, which must be readable. `upto` is where the client is, or
    /// will be sent to: the snapshot has everything that the log has up to there.
    ///
    /// # Errors
    /// See [`SubsetError`].
    pub async fn subset(
        &self,
        shape: &LiveShape,
        upto: Lsn,
        query: &SubsetQuery,
    ) -> Result<Subset, SubsetError> {
        let subsets = self.subsets();
        let turn = timeout(TURN_WAIT_MAX, Arc::clone(&subsets.turns).acquire_owned()).await;
        let turn = turn.map_err(|_| SnapshotError::PoolQueueTimeout)?.map_err(|_| SubsetError::Closing)?;
        let (opened, place) = self.open(&subsets.connections, shape, upto, query).await?;
        let (visible, lsn) = (opened.visible.clone(), opened.lsn);
        self.progress().note_query(lsn);
        // Noted too late for the journal to know: nobody may see it.
        if self.status() == Status::Draining {
            return Err(SubsetError::Closing);
        }
        let rows = opened.rows().await?;
        Ok(Subset {
            visible,
            lsn,
            mark: rand::rng().random_range(0..MARKS),
            rows: Some(rows),
            batch: RowBatch::new(),
            encoder: Encoder::new(&shape.definition),
            tagger: shape.tagger.clone(),
            place: Some(place),
            begun: false,
            _turn: turn,
        })
    }

    async fn open(
        &self,
        connections: &Connections,
        shape: &LiveShape,
        upto: Lsn,
        query: &SubsetQuery,
    ) -> Result<(OpenSnapshot, Place), SubsetError> {
        let begun = Instant::now();
        let loan = match timeout(TURN_WAIT_MAX, connections.get()).await {
            Ok(loan) => loan.map_err(SnapshotError::from)?,
            Err(_) => return Err(SnapshotError::PoolQueueTimeout.into()),
        };
        let (mut client, place) = loan.split();
        loop {
            let extra = shape.tagger.as_ref().map_or_else(Vec::new, |tagger| tagger.extra_sql());
            let opened = open_subset(client, &shape.definition, &extra, query).await?;
            if upto == Lsn(0) || !self.lacks(shape, opened.visible.clone(), upto).await? {
                return Ok((opened, place));
            }
            client = opened.leave().await?;
            if begun.elapsed() > VISIBLE_WAIT_MAX {
                place.keep(client);
                return Err(SubsetError::NotVisible);
            }
            sleep(VISIBLE_POLL).await;
        }
    }

    /// Whether the snapshot lacks a commit to one of the shape's tables at or before `upto`.
    async fn lacks(&self, shape: &LiveShape, snapshot: PgSnapshot, upto: Lsn) -> Result<bool, SubsetError> {
        let (reply, answer) = oneshot::channel();
        let tables = shape.definition.tables();
        self.ask(Request::Lacks { tables, snapshot, upto, reply }).await.map_err(|_| SubsetError::Closing)?;
        answer.await.map_err(|_| SubsetError::Closing)
    }
}

impl Subset {
    /// The next rows as JSON messages with commas between them, also before the first of all but the
    /// first piece; `None` after the last.
    ///
    /// # Errors
    /// See [`SnapshotError`]; the answer must then be cut off.
    pub async fn next_piece(&mut self) -> Result<Option<Bytes>, SnapshotError> {
        let Some(rows) = self.rows.as_mut() else { return Ok(None) };
        if rows.next_batch(&mut self.batch).await? {
            return self.encode().map(Some).map_err(|_| SnapshotError::Malformed);
        }
        if let (Some(rows), Some(place)) = (self.rows.take(), self.place.take()) {
            place.keep(rows.finish().await?);
        }
        Ok(None)
    }

    fn encode(&mut self) -> Result<Bytes, ShapeLogError> {
        // In place of the two braces that end a row.
        let end = format!(",\"snapshot_mark\":{}}}}}", self.mark);
        let mut out = Vec::with_capacity(self.batch.text_bytes() * 2 + self.batch.len() * 128);
        let mut result = Ok(());
        let (encoder, tagger, begun) = (&self.encoder, &self.tagger, &mut self.begun);
        self.batch.for_each(&mut |row| {
            if result.is_err() {
                return;
            }
            if std::mem::replace(begun, true) {
                out.push(b',');
            }
            let tagged = tagger.as_ref().map(|tagger| tagger.tags(row));
            result = encoder.encode_row(tagged.as_ref().map_or(row, |(own, _)| own), &mut out);
            if let Some((_, tags)) = tagged {
                tags.append_to_row(false, &mut out);
            }
            out.truncate(out.len().saturating_sub(2));
            out.extend_from_slice(end.as_bytes());
        });
        result?;
        Ok(Bytes::from(out))
    }
}

impl From<PgError> for SubsetError {
    fn from(error: PgError) -> SubsetError {
        SubsetError::Snapshot(error.into())
    }
}

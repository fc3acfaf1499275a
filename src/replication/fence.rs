//! Waiting for those who wrote to a table before it was published (N3).

use std::time::Duration;

use tokio::time::Instant;

use crate::domain::Oid;
use crate::postgres::{PgError, SqlClient};
use crate::replication::ReplicationError;

/// How often a fence is looked at: at first, and at most.
const FENCE_POLL_MIN: Duration = Duration::from_millis(20);
const FENCE_POLL_MAX: Duration = Duration::from_millis(500);

/// The transactions that could have written to a table before it was published.
///
/// `ALTER PUBLICATION … ADD TABLE` does not wait for them: what such a transaction wrote before is not
/// in the stream, and a snapshot that is taken before it commits does not see it either. So a snapshot
/// must wait until they have ended. Nobody is held up meanwhile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fence {
    pub table: Oid,
    /// As `pg_locks.virtualtransaction`: one for each transaction, but a new one once it is prepared.
    virtual_xids: Vec<String>,
    /// Their transaction ids, which stay the same when they are prepared. One that has none yet has
    /// not written yet.
    xids: Vec<String>,
}

impl Fence {
    /// The self-join must see one state of the lock table, hence the materialised expression.
    pub(super) async fn raise(client: &SqlClient, table: Oid, oids: &[u32]) -> Result<Fence, PgError> {
        const SQL: &str = "
WITH locks AS MATERIALIZED (SELECT * FROM pg_catalog.pg_locks WHERE granted)
SELECT DISTINCT w.virtualtransaction, x.transactionid::text
FROM locks w
LEFT JOIN locks x ON x.virtualtransaction = w.virtualtransaction
      AND x.locktype = 'transactionid' AND x.mode = 'ExclusiveLock'
WHERE w.locktype = 'relation' AND w.relation = ANY($1)
  AND w.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database())
  AND w.mode IN ('RowExclusiveLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock')
  AND w.pid IS DISTINCT FROM pg_backend_pid()";
        let mut fence = Fence { table, virtual_xids: Vec::new(), xids: Vec::new() };
        for row in client.query(SQL, &[&oids]).await? {
            fence.virtual_xids.push(row.try_get(0)?);
            fence.xids.extend(row.try_get::<_, Option<String>>(1)?);
        }
        fence.virtual_xids.sort_unstable();
        fence.virtual_xids.dedup();
        Ok(fence)
    }

    /// Number of transactions that were open when it was raised.
    #[must_use]
    pub fn writers(&self) -> usize {
        self.virtual_xids.len()
    }

    /// Whether all of them have ended.
    ///
    /// # Errors
    /// See [`crate::postgres::PgErrorKind`].
    pub async fn passed(&self, client: &SqlClient) -> Result<bool, PgError> {
        if self.virtual_xids.is_empty() {
            return Ok(true);
        }
        const SQL: &str = "
SELECT NOT EXISTS (
    SELECT FROM pg_catalog.pg_locks
    WHERE virtualtransaction = ANY($1)
       OR (locktype = 'transactionid' AND mode = 'ExclusiveLock' AND transactionid::text = ANY($2)))";
        Ok(client.query_one(SQL, &[&self.virtual_xids, &self.xids]).await?.try_get(0)?)
    }

    /// Waits until all of them have ended.
    ///
    /// # Errors
    /// `FenceTimeout` after `wait_max`.
    pub async fn wait(&self, client: &SqlClient, wait_max: Duration) -> Result<(), ReplicationError> {
        let give_up = Instant::now() + wait_max;
        let mut pause = FENCE_POLL_MIN;
        while !self.passed(client).await? {
            if Instant::now() >= give_up {
                return Err(ReplicationError::FenceTimeout(wait_max.as_secs()));
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(FENCE_POLL_MAX);
        }
        Ok(())
    }
}

//! Publishing tables: who may change what about which table, and which of them are past their fence.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::OwnedMutexGuard;
use tokio::time::Instant;

use crate::domain::{Oid, Relation, RelationName};
use crate::replication::{self, ReplicationError};
use crate::runtime::connections::Connections;

/// Longest wait for transactions that wrote to a table before it was published.
const FENCE_WAIT_MAX: Duration = Duration::from_secs(45);
/// How often is looked whether they have ended: at first, and at most.
const FENCE_POLL_MIN: Duration = Duration::from_millis(20);
const FENCE_POLL_MAX: Duration = Duration::from_millis(500);

/// The tables of one publication.
///
/// Publishing and un-publishing one table take turns: what is dropped must not be what was just added.
/// Different tables do not wait for each other: a lock on one may take long to come.
#[derive(Debug)]
pub struct Publishing {
    admin: Connections,
    publication: String,
    manual: bool,
    /// One small entry for each table that has had a shape.
    tables: Mutex<BTreeMap<Oid, Arc<tokio::sync::Mutex<Table>>>>,
}

/// How a table stands, as far as this process has brought it about.
#[derive(Debug, Default)]
struct Table {
    /// Counts what was changed about its publication.
    changes: u64,
    /// The change after which every transaction has ended that was open at the time. Invariant: 0, which
    /// is none, or at most `changes`.
    passed: u64,
}

impl Publishing {
    #[must_use]
    pub fn new(admin: Connections, publication: String, manual: bool) -> Publishing {
        Publishing { admin, publication, manual, tables: Mutex::default() }
    }

    async fn turn(&self, oid: Oid) -> OwnedMutexGuard<Table> {
        let table = {
            let mut tables = self.tables.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(tables.entry(oid).or_default())
        };
        table.lock_owned().await
    }

    /// Sees to it that a table is published, and waits for those who wrote to it before (N3). No
    /// connection is held while there is nothing to do but to wait.
    ///
    /// # Errors
    /// Those of contract 4.4, and `FenceTimeout`.
    pub async fn publish(&self, relation: &Relation) -> Result<(), ReplicationError> {
        // The turn first: who waits for it needs no connection.
        let mut turn = self.turn(relation.oid).await;
        let loan = self.admin.get().await?;
        let ensured =
            replication::ensure_table(loan.client(), &self.publication, relation, self.manual).await?;
        loan.give_back();
        // Who has changed something before this process began did not say when.
        if ensured.added || !ensured.identities_set.is_empty() || turn.changes == 0 {
            turn.changes += 1;
        }
        if turn.passed == turn.changes {
            return Ok(());
        }
        let change = turn.changes;
        drop(turn);
        self.wait(&ensured.fence).await?;
        let mut turn = self.turn(relation.oid).await;
        turn.passed = turn.passed.max(change);
        Ok(())
    }

    async fn wait(&self, fence: &replication::Fence) -> Result<(), ReplicationError> {
        let give_up = Instant::now() + FENCE_WAIT_MAX;
        let mut pause = FENCE_POLL_MIN;
        loop {
            let loan = self.admin.get().await?;
            let passed = fence.passed(loan.client()).await?;
            loan.give_back();
            if passed {
                return Ok(());
            }
            if Instant::now() >= give_up {
                return Err(ReplicationError::FenceTimeout(FENCE_WAIT_MAX.as_secs()));
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(FENCE_POLL_MAX);
        }
    }

    /// Takes a table out of the publication, unless it is in use when its turn has come.
    ///
    /// # Errors
    /// Those of [`replication::drop_table`]. A table that stays published costs decoding, nothing else.
    pub async fn release(
        &self,
        oid: Oid,
        name: &RelationName,
        in_use: impl Fn() -> bool,
    ) -> Result<(), ReplicationError> {
        if self.manual {
            return Ok(());
        }
        let mut turn = self.turn(oid).await;
        if in_use() {
            return Ok(());
        }
        // Before the attempt: one that fails may have been carried out.
        turn.changes += 1;
        let loan = self.admin.get().await?;
        replication::drop_table(loan.client(), &self.publication, name).await?;
        loan.give_back();
        Ok(())
    }
}

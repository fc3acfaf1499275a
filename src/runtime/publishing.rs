//! Publishing tables: who may change what about which table, and which of them are past their fence.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedMutexGuard, mpsc};
use tokio::time::Instant;

use crate::domain::{Oid, PartitionTree, RelationName, ShapeDefinition};
use crate::postgres::{PgErrorKind, SqlClient};
use crate::replication::{self, ReplicationError};
use crate::runtime::connections::Connections;
use crate::runtime::driver::Message;
use crate::runtime::single_flight::SingleFlight;

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
    driver: mpsc::Sender<Message>,
    /// What was below partitioned tables when the process began: a hash.
    trees: BTreeMap<Oid, u64>,
    /// One small entry for each table that has had a shape.
    tables: Mutex<BTreeMap<Oid, Arc<tokio::sync::Mutex<Table>>>>,
    /// Looks at the catalog that have not begun.
    looks: SingleFlight<Wanted, Result<(), Arc<ReplicationError>>>,
}

/// What a shape needs of the publication.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Wanted {
    oid: Oid,
    name: RelationName,
    partitioned: bool,
    columns: Vec<String>,
}

/// How a table stands, as far as this process has brought it about.
#[derive(Debug, Default)]
struct Table {
    /// Counts what was changed about its publication.
    changes: u64,
    /// The change after which every transaction has ended that was open at the time. Invariant: 0, which
    /// is none, or at most `changes`.
    passed: u64,
    /// What is below it, where it is partitioned: the hash that the driver was told last.
    tree: Option<u64>,
}

/// What is below a partitioned table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Below {
    pub table: Oid,
    /// Ascending; itself among them.
    pub members: Vec<Oid>,
    pub tree: u64,
    /// See [`crate::engine::Input::PartitionsSeen`].
    pub grown: bool,
}

/// How sure one must be that a new partition brought no rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Newcomers {
    /// It is enough that it is empty.
    Empty,
    /// A snapshot that is open may see rows that are gone: only one that was made as a partition.
    MadeAsPartition,
}

impl Publishing {
    #[must_use]
    pub fn new(
        admin: Connections,
        publication: String,
        manual: bool,
        driver: mpsc::Sender<Message>,
        trees: BTreeMap<Oid, u64>,
    ) -> Publishing {
        let (tables, looks) = (Mutex::default(), SingleFlight::default());
        Publishing { admin, publication, manual, driver, trees, tables, looks }
    }

    #[must_use]
    pub fn publication(&self) -> &str {
        &self.publication
    }

    #[must_use]
    pub fn is_manual(&self) -> bool {
        self.manual
    }

    async fn turn(&self, oid: Oid) -> OwnedMutexGuard<Table> {
        let table = {
            let mut tables = self.tables.lock().unwrap_or_else(PoisonError::into_inner);
            let unknown = || Arc::new(tokio::sync::Mutex::new(self.table(oid)));
            Arc::clone(tables.entry(oid).or_insert_with(unknown))
        };
        table.lock_owned().await
    }

    fn table(&self, oid: Oid) -> Table {
        Table { tree: self.trees.get(&oid).copied(), ..Table::default() }
    }

    /// Sees to it that a table is published, and waits for those who wrote to it before (N3). No
    /// connection is held while there is nothing to do but to wait. Those who ask for the same before a
    /// look at the catalog begins share that look: a thousand new shapes of a table cost a few.
    ///
    /// # Errors
    /// Those of contract 4.4, and `FenceTimeout`.
    pub async fn publish(
        self: &Arc<Self>,
        definition: &ShapeDefinition,
    ) -> Result<(), Arc<ReplicationError>> {
        let (relation, columns) = (&definition.relation, &definition.columns);
        let wanted = Wanted {
            oid: relation.oid,
            name: relation.name.clone(),
            partitioned: relation.partitioned,
            columns: columns.clone(),
        };
        let (publishing, definition) = (Arc::clone(self), definition.clone());
        let published = self.looks.join(wanted, |landing| async move {
            // The turn first: who waits for it needs no connection.
            let turn = publishing.turn(definition.relation.oid).await;
            // Who comes from now on may have been told of something that this look does not see.
            drop(landing);
            publishing.publish_now(turn, &definition).await.map_err(Arc::new)
        });
        published.await.unwrap_or_else(|| Err(Arc::new(ReplicationError::Ended)))
    }

    async fn publish_now(
        &self,
        mut turn: OwnedMutexGuard<Table>,
        definition: &ShapeDefinition,
    ) -> Result<(), ReplicationError> {
        let relation = &definition.relation;
        let loan = self.admin.get().await?;
        let (client, publication) = (loan.client(), &self.publication);
        replication::check_generated(client, publication, relation, &definition.columns).await?;
        let ensured = replication::ensure_table(client, publication, relation, self.manual).await?;
        if relation.partitioned {
            self.tell_below(&mut turn, client, relation.oid, Newcomers::Empty).await?;
        }
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
        replication::drop_table(loan.client(), &self.publication, oid, name).await?;
        loan.give_back();
        Ok(())
    }

    /// Takes out of the publication what no shape uses: it may have been locked when its last shape went,
    /// or the process may have ended before.
    ///
    /// # Errors
    /// Where Postgres cannot be asked.
    pub async fn release_unused(&self, in_use: impl Fn(Oid) -> bool) -> Result<(), ReplicationError> {
        if self.manual {
            return Ok(());
        }
        let loan = self.admin.get().await?;
        let published = replication::published_tables(loan.client(), &self.publication).await?;
        loan.give_back();
        for table in published.into_iter().filter(|table| !in_use(table.oid)) {
            match self.release(table.oid, &table.name, || in_use(table.oid)).await {
                Ok(()) => {
                    tracing::info!(table = %table.name, "taken out of the publication: no shape uses it")
                }
                // Not ours, or in use by somebody: it costs decoding, nothing else.
                Err(error) => {
                    tracing::debug!(table = %table.name, %error, "an unused table stays in the publication")
                }
            }
        }
        Ok(())
    }

    /// Looks at what is below a partitioned table, and tells the driver: it knows before anything that
    /// the stream brings after this. Nothing happens where the table is gone.
    ///
    /// # Errors
    /// Where Postgres cannot be asked.
    pub async fn look_below(&self, table: Oid, newcomers: Newcomers) -> Result<(), ReplicationError> {
        let mut turn = self.turn(table).await;
        let loan = self.admin.get().await?;
        self.tell_below(&mut turn, loan.client(), table, newcomers).await?;
        loan.give_back();
        Ok(())
    }

    /// Looks at the tables above relations that the stream has announced, of those that are followed.
    ///
    /// # Errors
    /// Where Postgres cannot be asked.
    pub async fn look_above(
        &self,
        announced: &[Oid],
        followed: &BTreeSet<Oid>,
    ) -> Result<(), ReplicationError> {
        let loan = self.admin.get().await?;
        let above = replication::tables_above(loan.client(), announced).await?;
        loan.give_back();
        for table in above.into_iter().filter(|table| followed.contains(table)) {
            self.look_below(table, Newcomers::Empty).await?;
        }
        Ok(())
    }

    async fn tell_below(
        &self,
        turn: &mut Table,
        client: &SqlClient,
        table: Oid,
        newcomers: Newcomers,
    ) -> Result<(), ReplicationError> {
        let Some(tree) = replication::partition_tree(client, &self.publication, table).await? else {
            return Ok(());
        };
        let grown = self.has_grown(turn.tree, client, &tree, newcomers).await?;
        turn.tree = Some(tree.hash());
        let below = Below { table, members: tree.members(), tree: tree.hash(), grown };
        // The driver is gone only at the end of the process.
        let _gone = self.driver.send(Message::Below(below)).await;
        Ok(())
    }

    /// Whether there are only more partitions than were known, and none that brought rows.
    async fn has_grown(
        &self,
        known: Option<u64>,
        client: &SqlClient,
        tree: &PartitionTree,
        newcomers: Newcomers,
    ) -> Result<bool, ReplicationError> {
        let Some(added) = known.and_then(|known| tree.grown_since(known)) else { return Ok(false) };
        for partition in added {
            // Under the name of the table nobody sees that the old row of a partition is not whole.
            let followed = partition.logged && (partition.identity_full || !tree.as_root);
            let empty_counts = newcomers == Newcomers::Empty;
            if !followed || !replication::came_without_rows(client, partition, empty_counts).await? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Sets REPLICA IDENTITY FULL on what has lost it, or never had it: a new partition.
    ///
    /// # Errors
    /// Where Postgres cannot be asked. What it refuses is left as it is: the shapes end with the first
    /// change whose old row is missing.
    pub async fn restore_identities(&self, tables: &[Oid]) -> Result<(), ReplicationError> {
        let loan = self.admin.get().await?;
        for name in replication::lacking_identity(loan.client(), tables).await? {
            if self.manual {
                tracing::warn!(table = %name, "a table is not REPLICA IDENTITY FULL; its shapes end with its next update or delete");
                continue;
            }
            match replication::set_identity_full(loan.client(), &name).await {
                Ok(()) => tracing::info!(table = %name, "set REPLICA IDENTITY FULL again"),
                Err(error) if error.postgres_kind() == Some(PgErrorKind::Unreachable) => return Err(error),
                Err(error) => tracing::warn!(table = %name, %error, "the replica identity cannot be set"),
            }
        }
        loan.give_back();
        Ok(())
    }
}

//! The publication, the tables in it, their replica identity, and the fence (contract 4.1 to 4.3).

use std::time::Duration;

use tokio::time::Instant;

use crate::domain::{Oid, Relation, RelationName, quote_identifier};
use crate::postgres::{PgError, PgErrorKind, SqlClient};
use crate::replication::ReplicationError;

/// Statements that need a lock on a table wait at most this long; meanwhile they hold up writers that
/// come after them.
const LOCK_TIMEOUT: &str = "SET LOCAL lock_timeout = '5s'";

/// How often a fence is looked at: at first, and at most.
const FENCE_POLL_MIN: Duration = Duration::from_millis(20);
const FENCE_POLL_MAX: Duration = Duration::from_millis(500);

/// First version in which a publication can publish stored generated columns.
const GENERATED_COLUMNS_VERSION: u32 = 180_000;

/// First version in which a publication can publish whole schemas.
const SCHEMA_PUBLICATION_VERSION: u32 = 150_000;

/// The publication as it was found or made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PublicationInfo {
    /// It was made just now: it published nothing before.
    pub created: bool,
    /// The role may add tables to it.
    pub owned: bool,
    /// It publishes stored generated columns (Postgres 18 and later).
    pub generated_columns: bool,
}

/// A table that is published with full replica identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EnsuredTable {
    /// It was added just now.
    pub added: bool,
    /// Tables (it, and its partitions) that got REPLICA IDENTITY FULL just now.
    pub identities_set: Vec<Oid>,
    /// Passed once no transaction is open that may have written before the table was published. To be
    /// waited for unless the table is known to have passed one since it was added.
    pub fence: Fence,
}

/// A table of the publication.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublishedTable {
    pub oid: Oid,
    pub name: RelationName,
    /// It and all its partitions are REPLICA IDENTITY FULL.
    pub identity_full: bool,
}

/// Finds or makes the publication.
///
/// # Errors
/// `PublicationNotFound` where it does not exist and must not be made by this role;
/// `PublicationIncomplete` where it publishes only some operations.
pub async fn ensure_publication(client: &SqlClient, name: &str) -> Result<PublicationInfo, ReplicationError> {
    if let Some(info) = inspect(client, name).await? {
        return Ok(info);
    }
    let with = if client.server_version() >= GENERATED_COLUMNS_VERSION {
        " WITH (publish_generated_columns = stored)"
    } else {
        ""
    };
    let sql = format!("CREATE PUBLICATION {}{with}", quote_identifier(name));
    let created = match client.batch_execute(&sql).await.map_err(PgError::from) {
        Ok(()) => true,
        // Somebody else was faster.
        Err(error) if error.sqlstate() == Some("42710") => false,
        Err(error) if error.kind() == PgErrorKind::MissingPrivilege => {
            return Err(ReplicationError::PublicationNotFound(name.to_owned()));
        }
        Err(error) => return Err(error.into()),
    };
    let info = inspect(client, name).await?;
    let info = info.ok_or_else(|| ReplicationError::PublicationNotFound(name.to_owned()))?;
    Ok(PublicationInfo { created, ..info })
}

async fn inspect(client: &SqlClient, name: &str) -> Result<Option<PublicationInfo>, ReplicationError> {
    let row = client
        .query_opt(
            "SELECT pubinsert AND pubupdate AND pubdelete AND pubtruncate,
                    pg_has_role(pubowner, 'USAGE'),
                    coalesce(to_jsonb(p) ->> 'pubgencols' = 's', false)
             FROM pg_catalog.pg_publication p WHERE pubname = $1",
            &[&name],
        )
        .await
        .map_err(PgError::from)?;
    let Some(row) = row else {
        return Ok(None);
    };
    if !row.try_get::<_, bool>(0).map_err(PgError::from)? {
        return Err(ReplicationError::PublicationIncomplete(name.to_owned()));
    }
    Ok(Some(PublicationInfo {
        created: false,
        owned: row.try_get(1).map_err(PgError::from)?,
        generated_columns: row.try_get(2).map_err(PgError::from)?,
    }))
}

/// The tables that were added to the publication one by one. Ascending by oid.
///
/// # Errors
/// See [`PgErrorKind`].
pub async fn published_tables(client: &SqlClient, publication: &str) -> Result<Vec<PublishedTable>, PgError> {
    const SQL: &str = "
SELECT c.oid, n.nspname, c.relname,
       c.relreplident = 'f' AND NOT EXISTS (
           SELECT FROM pg_catalog.pg_partition_tree(c.oid) t JOIN pg_catalog.pg_class l ON l.oid = t.relid
           WHERE l.relkind IN ('r', 'p') AND l.relreplident <> 'f')
FROM pg_catalog.pg_publication_rel r
JOIN pg_catalog.pg_publication p ON p.oid = r.prpubid AND p.pubname = $1
JOIN pg_catalog.pg_class c ON c.oid = r.prrelid
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
ORDER BY c.oid";
    let mut tables = Vec::new();
    for row in client.query(SQL, &[&publication]).await? {
        tables.push(PublishedTable {
            oid: Oid(row.try_get(0)?),
            name: RelationName { schema: row.try_get(1)?, table: row.try_get(2)? },
            identity_full: row.try_get(3)?,
        });
    }
    Ok(tables)
}

/// Everything whose changes the publication sends, by whatever way it got there: tables added one by
/// one, their partitions, whole schemas, `FOR ALL TABLES`. Ascending.
///
/// # Errors
/// See [`PgErrorKind`].
pub async fn published_relations(client: &SqlClient, publication: &str) -> Result<Vec<Oid>, PgError> {
    const SQL: &str = "
SELECT r.prrelid FROM pg_catalog.pg_publication_rel r
JOIN pg_catalog.pg_publication p ON p.oid = r.prpubid AND p.pubname = $1
UNION
SELECT c.oid FROM pg_catalog.pg_publication_tables t
JOIN pg_catalog.pg_namespace n ON n.nspname = t.schemaname
JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = t.tablename
WHERE t.pubname = $1
ORDER BY 1";
    let mut oids = Vec::new();
    for row in client.query(SQL, &[&publication]).await? {
        oids.push(Oid(row.try_get(0)?));
    }
    Ok(oids)
}

/// Sees to it that a table is published and that it and its partitions are REPLICA IDENTITY FULL, in
/// one transaction; `manual` forbids to change anything. Writers are held up only while an identity is
/// changed, and for 5 s at most.
///
/// # Errors
/// Those of contract 4.4.
pub async fn ensure_table(
    client: &SqlClient,
    publication: &str,
    relation: &Relation,
    manual: bool,
) -> Result<EnsuredTable, ReplicationError> {
    let tree = table_tree(client, relation).await?;
    let published = is_published(client, publication, relation).await?;
    let missing: Vec<&TreeMember> = tree.iter().filter(|member| !member.identity_full).collect();
    if manual && !published {
        return Err(not_published(publication, relation, true));
    }
    if manual && let Some(member) = missing.first() {
        return Err(ReplicationError::IdentityNotFull(member.name.clone()));
    }
    let mut added = !published;
    if added {
        let add = format!(
            "ALTER PUBLICATION {} ADD TABLE {}",
            quote_identifier(publication),
            relation.name.to_sql()
        );
        match execute(client, &add, &missing).await {
            Ok(()) => {}
            // Added by somebody else in between (or at the same time, where the unique index tells); the
            // identities are still to be set.
            Err(error) if matches!(error.sqlstate(), Some("42710" | "23505")) => added = false,
            Err(error) => return Err(add_table_error(error, publication, relation, client, &missing).await),
        }
    }
    if !added && !missing.is_empty() {
        execute(client, "SELECT", &missing)
            .await
            .map_err(|error| identity_error(error, &missing, relation))?;
    }
    let oids: Vec<u32> = tree.iter().map(|member| member.oid.0).collect();
    let fence = Fence::raise(client, relation.oid, &oids).await?;
    Ok(EnsuredTable { added, identities_set: missing.iter().map(|member| member.oid).collect(), fence })
}

/// Sets REPLICA IDENTITY FULL on a table, as needed for a partition that has just been made.
///
/// # Errors
/// Those of contract 4.4.
pub async fn set_identity_full(client: &SqlClient, name: &RelationName) -> Result<(), ReplicationError> {
    let sql = format!("{LOCK_TIMEOUT}; ALTER TABLE {} REPLICA IDENTITY FULL", name.to_sql());
    client.batch_execute(&sql).await.map_err(|error| {
        let error = PgError::from(error);
        match error.kind() {
            PgErrorKind::LockTimeout => ReplicationError::LockTimeout,
            PgErrorKind::UndefinedObject => ReplicationError::TableGone(name.clone()),
            PgErrorKind::MissingPrivilege => ReplicationError::IdentityNotFull(name.clone()),
            _ => error.into(),
        }
    })
}

/// Takes a table out of the publication; nothing happens where it is not in it or does not exist.
///
/// # Errors
/// `LockTimeout`, or see [`PgErrorKind`].
pub async fn drop_table(
    client: &SqlClient,
    publication: &str,
    name: &RelationName,
) -> Result<(), ReplicationError> {
    let sql = format!(
        "{LOCK_TIMEOUT}; ALTER PUBLICATION {} DROP TABLE {}",
        quote_identifier(publication),
        name.to_sql()
    );
    match client.batch_execute(&sql).await.map_err(PgError::from) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == PgErrorKind::UndefinedObject => Ok(()),
        Err(error) if error.kind() == PgErrorKind::LockTimeout => Err(ReplicationError::LockTimeout),
        Err(error) => Err(error.into()),
    }
}

/// A table, or one of its partitions.
#[derive(Debug)]
struct TreeMember {
    oid: Oid,
    name: RelationName,
    identity_full: bool,
}

/// The table first, then its partitions on all levels.
async fn table_tree(client: &SqlClient, relation: &Relation) -> Result<Vec<TreeMember>, ReplicationError> {
    const SQL: &str = "
SELECT c.oid, n.nspname, c.relname, c.relreplident = 'f'
FROM (SELECT $1::oid AS oid, 0 AS level
      UNION ALL SELECT relid, level FROM pg_catalog.pg_partition_tree($1::oid) WHERE level > 0) m
JOIN pg_catalog.pg_class c ON c.oid = m.oid AND c.relkind IN ('r', 'p')
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
ORDER BY m.level, c.oid";
    let mut tree = Vec::new();
    for row in client.query(SQL, &[&relation.oid.0]).await.map_err(PgError::from)? {
        let member = || {
            Ok::<_, tokio_postgres::Error>(TreeMember {
                oid: Oid(row.try_get(0)?),
                name: RelationName { schema: row.try_get(1)?, table: row.try_get(2)? },
                identity_full: row.try_get(3)?,
            })
        };
        tree.push(member().map_err(PgError::from)?);
    }
    match tree.first() {
        Some(first) if first.oid == relation.oid && first.name == relation.name => Ok(tree),
        _ => Err(ReplicationError::TableGone(relation.name.clone())),
    }
}

/// Whether the table is published: itself, by a parent, by its schema, or with all tables.
async fn is_published(
    client: &SqlClient,
    publication: &str,
    relation: &Relation,
) -> Result<bool, ReplicationError> {
    let by_schema = if client.server_version() >= SCHEMA_PUBLICATION_VERSION {
        "OR EXISTS (SELECT FROM pg_catalog.pg_publication_namespace s
                    WHERE s.pnpubid = p.oid AND s.pnnspid = (SELECT relnamespace FROM pg_catalog.pg_class WHERE oid = $2))"
    } else {
        ""
    };
    let sql = format!(
        "SELECT p.puballtables
             OR EXISTS (SELECT FROM pg_catalog.pg_publication_rel r WHERE r.prpubid = p.oid
                        AND (r.prrelid = $2 OR r.prrelid IN (SELECT relid FROM pg_catalog.pg_partition_ancestors($2))))
             {by_schema}
         FROM pg_catalog.pg_publication p WHERE p.pubname = $1"
    );
    let row = client.query_opt(&sql, &[&publication, &relation.oid.0]).await.map_err(PgError::from)?;
    match row {
        Some(row) => Ok(row.try_get(0).map_err(PgError::from)?),
        None => Err(ReplicationError::Postgres(PgError::from_sqlstate(
            "42704",
            &format!("publication \"{publication}\" does not exist"),
        ))),
    }
}

/// One implicit transaction: the identities, then the statement. In this order, since the identities
/// may have to wait for a lock on their table: a transaction that waits while it holds the publication
/// keeps every other table out of it.
async fn execute(client: &SqlClient, statement: &str, missing: &[&TreeMember]) -> Result<(), PgError> {
    let mut sql = LOCK_TIMEOUT.to_owned();
    for member in missing {
        sql.push_str(&format!("; ALTER TABLE {} REPLICA IDENTITY FULL", member.name.to_sql()));
    }
    sql.push_str("; ");
    sql.push_str(statement);
    client.batch_execute(&sql).await.map_err(PgError::from)
}

fn not_published(publication: &str, relation: &Relation, manual: bool) -> ReplicationError {
    ReplicationError::NotPublished {
        table: relation.name.clone(),
        publication: publication.to_owned(),
        manual,
    }
}

/// All statements were one transaction. Where a privilege was missing, the one for the publication is
/// named first.
async fn add_table_error(
    error: PgError,
    publication: &str,
    relation: &Relation,
    client: &SqlClient,
    missing: &[&TreeMember],
) -> ReplicationError {
    match error.kind() {
        PgErrorKind::LockTimeout => ReplicationError::LockTimeout,
        PgErrorKind::MissingPrivilege => match inspect(client, publication).await {
            Ok(Some(info)) if !info.owned => not_published(publication, relation, false),
            // What the table lacks; or the publication is gone, which the next attempt will tell.
            Ok(_) => error.into(),
            Err(other) => other,
        },
        PgErrorKind::UndefinedObject => match table_tree(client, relation).await {
            Err(gone) => gone,
            Ok(_) => error.into(),
        },
        _ if error.sqlstate() == Some("42809") => identity_error(error, missing, relation),
        _ => error.into(),
    }
}

fn identity_error(error: PgError, missing: &[&TreeMember], relation: &Relation) -> ReplicationError {
    match error.kind() {
        PgErrorKind::LockTimeout => ReplicationError::LockTimeout,
        PgErrorKind::UndefinedObject => ReplicationError::TableGone(relation.name.clone()),
        PgErrorKind::MissingPrivilege => {
            let name = missing.first().map_or(&relation.name, |member| &member.name);
            ReplicationError::IdentityNotFull(name.clone())
        }
        _ => error.into(),
    }
}

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
    async fn raise(client: &SqlClient, table: Oid, oids: &[u32]) -> Result<Fence, PgError> {
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
    /// See [`PgErrorKind`].
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

//! The publication, the tables in it, and their replica identity (contract 4.1 to 4.3).

use crate::domain::{Oid, Relation, RelationName, quote_identifier};
use crate::postgres::{PgError, PgErrorKind, SqlClient, sql_literal};
use crate::replication::generated::GENERATED_COLUMNS_VERSION;
use crate::replication::{Fence, ReplicationError, Standing, standings};

/// Statements that need a lock on a table wait at most this long; meanwhile they hold up writers that
/// come after them.
const LOCK_TIMEOUT: &str = "SET LOCAL lock_timeout = '5s'";

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
    if let Some(member) = tree.iter().find(|member| !member.logged) {
        let member = member.name.clone();
        return Err(ReplicationError::NotReplicated { table: relation.name.clone(), member });
    }
    let standing = standing(client, publication, relation, &tree).await?;
    // A partition is published by itself where that is up to us: it may be detached.
    let published = if manual { standing.is_streamed() } else { standing.itself };
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
            Err(error) if error.kind() == PgErrorKind::MissingPrivilege && standing.is_streamed() => {
                added = false;
            }
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

/// How a table stands in the publication, where the stream brings all of it and of what is below it.
async fn standing(
    client: &SqlClient,
    publication: &str,
    relation: &Relation,
    tree: &[TreeMember],
) -> Result<Standing, ReplicationError> {
    let (table, publication) = (relation.name.clone(), publication.to_owned());
    let oids: Vec<Oid> = tree.iter().map(|member| member.oid).collect();
    let standings = standings(client, &publication, &oids).await?;
    if standings.iter().any(|standing| standing.narrowed) {
        return Err(ReplicationError::Narrowed { table, publication });
    }
    match standings.into_iter().find(|standing| standing.oid == relation.oid) {
        Some(standing) if standing.as_root && standing.above.is_some() => {
            Err(ReplicationError::PublishedAsRoot { table, publication })
        }
        Some(standing) => Ok(standing),
        None => Err(ReplicationError::Postgres(PgError::from_sqlstate(
            "42704",
            &format!("publication \"{publication}\" does not exist"),
        ))),
    }
}

/// A table, or one of its partitions.
#[derive(Debug)]
struct TreeMember {
    oid: Oid,
    name: RelationName,
    identity_full: bool,
    /// Its changes are written to the log.
    logged: bool,
}

/// The table first, then its partitions on all levels.
async fn table_tree(client: &SqlClient, relation: &Relation) -> Result<Vec<TreeMember>, ReplicationError> {
    const SQL: &str = "
SELECT c.oid, n.nspname, c.relname, c.relreplident = 'f', c.relkind IN ('r', 'p') AND c.relpersistence = 'p'
FROM (SELECT $1::oid AS oid, 0 AS level
      UNION ALL SELECT relid, level FROM pg_catalog.pg_partition_tree($1::oid) WHERE level > 0) m
JOIN pg_catalog.pg_class c ON c.oid = m.oid AND c.relkind IN ('r', 'p', 'f')
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
ORDER BY m.level, c.oid";
    let mut tree = Vec::new();
    for row in client.query(SQL, &[&relation.oid.0]).await.map_err(PgError::from)? {
        let member = || {
            Ok::<_, tokio_postgres::Error>(TreeMember {
                oid: Oid(row.try_get(0)?),
                name: RelationName { schema: row.try_get(1)?, table: row.try_get(2)? },
                identity_full: row.try_get(3)?,
                logged: row.try_get(4)?,
            })
        };
        tree.push(member().map_err(PgError::from)?);
    }
    match tree.first() {
        Some(first) if first.oid == relation.oid && first.name == relation.name => Ok(tree),
        _ => Err(ReplicationError::TableGone(relation.name.clone())),
    }
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

/// Takes a table out of the publication; nothing happens where it is not in it or does not exist, or
/// where its name is that of another table by now.
///
/// # Errors
/// `LockTimeout`, or see [`PgErrorKind`].
pub async fn drop_table(
    client: &SqlClient,
    publication: &str,
    table: Oid,
    name: &RelationName,
) -> Result<(), ReplicationError> {
    const ANOTHER_TABLE: &str = "22012";
    // One transaction. The statement resolves the name and locks what it finds, so that it cannot mean
    // something else before the division, which undoes the statement where it is not that table.
    let sql = format!(
        "{LOCK_TIMEOUT}; ALTER PUBLICATION {} DROP TABLE {}; SELECT 1 / (to_regclass({})::oid = {})::int",
        quote_identifier(publication),
        name.to_sql(),
        sql_literal(&name.to_sql()),
        table.0,
    );
    match client.batch_execute(&sql).await.map_err(PgError::from) {
        Ok(()) => Ok(()),
        Err(error) if error.sqlstate() == Some(ANOTHER_TABLE) => Ok(()),
        Err(error) if error.kind() == PgErrorKind::UndefinedObject => Ok(()),
        Err(error) if error.kind() == PgErrorKind::LockTimeout => Err(ReplicationError::LockTimeout),
        Err(error) => Err(error.into()),
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

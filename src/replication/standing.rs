//! How tables stand in a publication, by whatever way they got there: added one by one, below a
//! partitioned table that was, with their schema, or with all tables.

use crate::domain::{Oid, RelationName};
use crate::postgres::{PgError, SqlClient};

/// First version in which a publication can publish whole schemas.
const SCHEMA_PUBLICATION_VERSION: u32 = 150_000;

/// What a publication does with a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    pub oid: Oid,
    /// It is published, not only something above it.
    pub itself: bool,
    /// The topmost table above it that is published.
    pub above: Option<Oid>,
    /// Changes come under the name of the topmost published table.
    pub as_root: bool,
    /// By a row filter or a list of columns: the stream does not bring everything.
    pub narrowed: bool,
}

impl Standing {
    /// Its changes are in the stream under its own name, or under those of its partitions.
    #[must_use]
    pub fn is_streamed(&self) -> bool {
        if self.as_root { self.itself && self.above.is_none() } else { self.itself || self.above.is_some() }
    }
}

/// How these tables stand; nothing where there is no such publication. In the order of their oids.
///
/// # Errors
/// See [`crate::postgres::PgErrorKind`].
pub async fn standings(
    client: &SqlClient,
    publication: &str,
    oids: &[Oid],
) -> Result<Vec<Standing>, PgError> {
    let by_schema = if client.server_version() >= SCHEMA_PUBLICATION_VERSION {
        "OR EXISTS (SELECT FROM pg_catalog.pg_publication_namespace s
                    JOIN pg_catalog.pg_class k ON k.relnamespace = s.pnnspid
                    WHERE s.pnpubid = p.oid AND k.oid = line.relid)"
    } else {
        ""
    };
    // Filters and lists of columns are newer than the oldest version that is supported.
    let sql = format!(
        "WITH RECURSIVE p AS (
    SELECT oid, puballtables, pubviaroot FROM pg_catalog.pg_publication WHERE pubname = $1
),
line AS (
    SELECT o AS oid, o AS relid, 0 AS level FROM unnest($2::oid[]) o
    UNION ALL
    SELECT line.oid, i.inhparent, line.level + 1 FROM line
    JOIN pg_catalog.pg_inherits i ON i.inhrelid = line.relid
    JOIN pg_catalog.pg_class c ON c.oid = i.inhparent AND c.relkind = 'p'
),
ways AS (
    SELECT line.oid, line.level, line.relid, p.pubviaroot,
           p.puballtables OR r.oid IS NOT NULL {by_schema} AS published,
           coalesce(to_jsonb(r) ->> 'prqual', to_jsonb(r) ->> 'prattrs') IS NOT NULL AS narrowed
    FROM line CROSS JOIN p
    LEFT JOIN pg_catalog.pg_publication_rel r ON r.prpubid = p.oid AND r.prrelid = line.relid
)
SELECT oid, bool_or(published AND level = 0),
       (array_agg(relid ORDER BY level DESC) FILTER (WHERE published AND level > 0))[1],
       pubviaroot, bool_or(narrowed)
FROM ways GROUP BY oid, pubviaroot ORDER BY oid"
    );
    let oids: Vec<u32> = oids.iter().map(|oid| oid.0).collect();
    let mut standings = Vec::new();
    for row in client.query(&sql, &[&publication, &oids]).await? {
        standings.push(Standing {
            oid: Oid(row.try_get(0)?),
            itself: row.try_get(1)?,
            above: row.try_get::<_, Option<u32>>(2)?.map(Oid),
            as_root: row.try_get(3)?,
            narrowed: row.try_get(4)?,
        });
    }
    Ok(standings)
}

/// Of these tables and what is below them, what is not REPLICA IDENTITY FULL.
///
/// # Errors
/// See [`crate::postgres::PgErrorKind`].
pub async fn lacking_identity(client: &SqlClient, oids: &[Oid]) -> Result<Vec<RelationName>, PgError> {
    const SQL: &str = "
WITH RECURSIVE down AS (
    SELECT o AS oid FROM unnest($1::oid[]) o
    UNION
    SELECT i.inhrelid FROM down JOIN pg_catalog.pg_inherits i ON i.inhparent = down.oid
    JOIN pg_catalog.pg_class c ON c.oid = i.inhparent AND c.relkind = 'p'
)
SELECT n.nspname, c.relname FROM down JOIN pg_catalog.pg_class c ON c.oid = down.oid
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p') AND c.relreplident <> 'f' ORDER BY c.oid";
    let oids: Vec<u32> = oids.iter().map(|oid| oid.0).collect();
    let mut lacking = Vec::new();
    for row in client.query(SQL, &[&oids]).await? {
        lacking.push(RelationName { schema: row.try_get(0)?, table: row.try_get(1)? });
    }
    Ok(lacking)
}

/// Everything whose changes are in the stream, under its own name or those of its partitions.
/// Ascending.
///
/// # Errors
/// See [`crate::postgres::PgErrorKind`].
pub async fn published_relations(client: &SqlClient, publication: &str) -> Result<Vec<Oid>, PgError> {
    const FIRST_USER_OID: u32 = 16_384;
    let by_schema = if client.server_version() >= SCHEMA_PUBLICATION_VERSION {
        "UNION SELECT c.oid FROM pg_catalog.pg_publication_namespace s JOIN p ON p.oid = s.pnpubid
         JOIN pg_catalog.pg_class c ON c.relnamespace = s.pnnspid AND c.relkind IN ('r', 'p')"
    } else {
        ""
    };
    let sql = format!(
        "WITH RECURSIVE p AS (
    SELECT oid, puballtables, pubviaroot FROM pg_catalog.pg_publication WHERE pubname = $1
),
base AS (
    SELECT r.prrelid AS oid FROM pg_catalog.pg_publication_rel r JOIN p ON p.oid = r.prpubid
    UNION SELECT c.oid FROM pg_catalog.pg_class c JOIN p ON p.puballtables
          WHERE c.relkind IN ('r', 'p') AND c.oid >= {FIRST_USER_OID}
    {by_schema}
),
down AS (
    SELECT oid, false AS below FROM base
    UNION
    SELECT i.inhrelid, true FROM down JOIN pg_catalog.pg_inherits i ON i.inhparent = down.oid
    JOIN pg_catalog.pg_class c ON c.oid = i.inhparent AND c.relkind = 'p'
)
SELECT down.oid FROM down CROSS JOIN p
GROUP BY down.oid HAVING NOT (bool_or(down.below) AND bool_or(p.pubviaroot))
ORDER BY down.oid"
    );
    let mut oids = Vec::new();
    for row in client.query(&sql, &[&publication]).await? {
        oids.push(Oid(row.try_get(0)?));
    }
    Ok(oids)
}

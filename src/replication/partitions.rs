//! What is below a partitioned table, and how it got there.

use crate::domain::{Oid, Partition, PartitionTree, RelationName};
use crate::postgres::{PgError, PgErrorKind, SqlClient};

/// The tree below a table that is in a publication; `None` where there is no such partitioned table.
///
/// # Errors
/// See [`PgErrorKind`].
pub async fn partition_tree(
    client: &SqlClient,
    publication: &str,
    table: Oid,
) -> Result<Option<PartitionTree>, PgError> {
    // One that is being detached is in no query any more.
    const SQL: &str = "
WITH RECURSIVE tree AS (
    SELECT oid AS relid, NULL::oid AS parent, NULL::xid AS attached_by FROM pg_catalog.pg_class
    WHERE oid = $2 AND relkind = 'p'
    UNION ALL
    SELECT i.inhrelid, i.inhparent, i.xmin FROM tree
    JOIN pg_catalog.pg_inherits i ON i.inhparent = tree.relid AND NOT i.inhdetachpending
),
as_root AS (
    SELECT coalesce((SELECT pubviaroot FROM pg_catalog.pg_publication WHERE pubname = $1), false) AS yes
)
SELECT c.oid, n.nspname, c.relname, t.parent, t.attached_by::text,
       CASE WHEN as_root.yes THEN coalesce(pg_catalog.pg_relation_filenode(c.oid), 0) ELSE 0 END,
       c.relkind <> 'p', c.relreplident = 'f', c.relkind IN ('r', 'p') AND c.relpersistence = 'p', as_root.yes
FROM as_root JOIN tree root ON root.parent IS NULL
LEFT JOIN (tree t JOIN pg_catalog.pg_class c ON c.oid = t.relid AND t.parent IS NOT NULL
           JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace) ON true
ORDER BY age(t.attached_by) DESC, c.oid";
    let rows = client.query(SQL, &[&publication, &table.0]).await?;
    if rows.is_empty() {
        return Ok(None);
    }
    let mut tree = PartitionTree { table, partitions: Vec::new(), as_root: false };
    for row in &rows {
        tree.as_root = row.try_get(9)?;
        let Some(oid) = row.try_get::<_, Option<u32>>(0)? else { continue };
        let attached_by: String = row.try_get(4)?;
        tree.partitions.push(Partition {
            oid: Oid(oid),
            name: RelationName { schema: row.try_get(1)?, table: row.try_get(2)? },
            parent: Oid(row.try_get(3)?),
            attached_by: attached_by.parse().map_err(|_| PgError::malformed("a transaction id"))?,
            file: row.try_get(5)?,
            holds_rows: row.try_get(6)?,
            identity_full: row.try_get(7)?,
            logged: row.try_get(8)?,
        });
    }
    Ok(Some(tree))
}

/// Whether everything that the partition has held since it was attached has been in the stream as a
/// change of the table above, or will be: it was made as a partition, or, where that counts, it has no
/// row now.
///
/// # Errors
/// See [`PgErrorKind`].
pub async fn came_without_rows(
    client: &SqlClient,
    partition: &Partition,
    empty_counts: bool,
) -> Result<bool, PgError> {
    // CREATE TABLE … PARTITION OF writes all columns at once. ATTACH writes those of the table again,
    // to count the parent: by another transaction or, where it is the same, by a later command.
    const MADE_AS_PARTITION: &str = "
SELECT EXISTS (
    SELECT FROM pg_catalog.pg_attribute s
    JOIN pg_catalog.pg_attribute a
      ON a.attrelid = s.attrelid AND a.attnum > 0 AND a.attinhcount > 0 AND a.xmin = s.xmin AND a.cmin = s.cmin
    JOIN pg_catalog.pg_inherits i ON i.inhrelid = s.attrelid AND i.xmin = s.xmin
    WHERE s.attrelid = $1 AND s.attname = 'tableoid')";
    if !partition.holds_rows || client.query_one(MADE_AS_PARTITION, &[&partition.oid.0]).await?.try_get(0)? {
        return Ok(true);
    }
    if !empty_counts {
        return Ok(false);
    }
    let sql = format!("SELECT NOT EXISTS (SELECT FROM ONLY {})", partition.name.to_sql());
    match client.query_one(&sql, &[]).await.map_err(PgError::from) {
        Ok(row) => Ok(row.try_get(0)?),
        // Not ours to read, or gone by now: nobody knows what was in it.
        Err(error)
            if matches!(error.kind(), PgErrorKind::MissingPrivilege | PgErrorKind::UndefinedObject) =>
        {
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

/// The partitioned tables above these relations, on all levels. Ascending.
///
/// # Errors
/// See [`PgErrorKind`].
pub async fn tables_above(client: &SqlClient, oids: &[Oid]) -> Result<Vec<Oid>, PgError> {
    const SQL: &str = "
WITH RECURSIVE line AS (
    SELECT o AS relid, false AS above FROM unnest($1::oid[]) o
    UNION
    SELECT i.inhparent, true FROM line JOIN pg_catalog.pg_inherits i ON i.inhrelid = line.relid
    JOIN pg_catalog.pg_class c ON c.oid = i.inhparent AND c.relkind = 'p'
)
SELECT DISTINCT relid FROM line WHERE above ORDER BY relid";
    let oids: Vec<u32> = oids.iter().map(|oid| oid.0).collect();
    let mut above = Vec::new();
    for row in client.query(SQL, &[&oids]).await? {
        above.push(Oid(row.try_get(0)?));
    }
    Ok(above)
}

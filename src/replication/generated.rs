//! Generated columns since Postgres 18, where a publication can publish those that are stored.

use crate::domain::Relation;
use crate::postgres::{PgError, SqlClient};
use crate::replication::ReplicationError;

/// First version in which a publication can publish stored generated columns.
pub(super) const GENERATED_COLUMNS_VERSION: u32 = 180_000;

/// Sees to it that the stream brings the generated columns among these, and that REPLICA IDENTITY FULL
/// does no harm: from that version on Postgres refuses to update a row whose identity has a generated
/// column that is not published.
///
/// # Errors
/// `GeneratedNotPublished` and `GeneratedBlocksWrites`, or see [`crate::postgres::PgErrorKind`].
pub async fn check_generated(
    client: &SqlClient,
    publication: &str,
    relation: &Relation,
    columns: &[String],
) -> Result<(), ReplicationError> {
    const SQL: &str = "
SELECT a.attname, a.attgenerated = 's' AND coalesce(to_jsonb(p) ->> 'pubgencols' = 's', false)
FROM pg_catalog.pg_attribute a LEFT JOIN pg_catalog.pg_publication p ON p.pubname = $1
WHERE a.attrelid = $2 AND a.attgenerated <> '' AND NOT a.attisdropped";
    if client.server_version() < GENERATED_COLUMNS_VERSION {
        return Ok(());
    }
    let mut blocks_writes = false;
    for row in client.query(SQL, &[&publication, &relation.oid.0]).await.map_err(PgError::from)? {
        let name: String = row.try_get(0).map_err(PgError::from)?;
        let published: bool = row.try_get(1).map_err(PgError::from)?;
        if !published && columns.contains(&name) {
            return Err(ReplicationError::GeneratedNotPublished(publication.to_owned()));
        }
        blocks_writes |= !published;
    }
    if blocks_writes { Err(ReplicationError::GeneratedBlocksWrites(relation.name.clone())) } else { Ok(()) }
}

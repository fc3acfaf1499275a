//! What the catalog says about a table.

use crate::domain::{BaseType, Column, Oid, Relation, RelationName, Storage};
use crate::postgres::{PgError, SqlClient};

/// One row per column; a table without columns yields one row without a name, so that it can be told
/// from a table that does not exist. A slice of an array counts from 1, whatever the array counts from.
/// From Postgres 18 on a generated column that is stored is as good as any other; see
/// [`Column::generated`].
const INSPECT: &str = "
SELECT c.oid, c.relkind = 'p', a.attname, a.atttypid, e.typname, e.oid, a.atttypmod,
       a.attndims::int4, a.attnotnull, a.attgenerated NOT IN ('', CASE WHEN current_setting('server_version_num')::int4 >= 180000 THEN 's' ELSE '' END), e.typtype,
       array_position((i.indkey::int2[])[0:i.indnkeyatts - 1], a.attnum) - 1,
       d.oid, d.typname, d.typtype, d.is_array, n.nspname, c.relname,
       c.relfilenode, a.xmin::text::int8, c.xmin::text::int8
FROM pg_catalog.pg_class c
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
LEFT JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
LEFT JOIN pg_catalog.pg_type t ON t.oid = a.atttypid
LEFT JOIN pg_catalog.pg_type x ON x.oid = t.typelem AND x.typarray = t.oid
LEFT JOIN pg_catalog.pg_type e ON e.oid = coalesce(x.oid, t.oid)
LEFT JOIN LATERAL (
  WITH RECURSIVE below AS (
    SELECT e.typbasetype AS oid WHERE e.typtype = 'd'
    UNION ALL
    SELECT b.typbasetype FROM below JOIN pg_catalog.pg_type b ON b.oid = below.oid WHERE b.typtype = 'd'
  )
  SELECT f.oid, f.typname, f.typtype, f.oid <> b.oid AS is_array
  FROM below
  JOIN pg_catalog.pg_type b ON b.oid = below.oid AND b.typtype <> 'd'
  LEFT JOIN pg_catalog.pg_type y ON y.oid = b.typelem AND y.typarray = b.oid
  JOIN pg_catalog.pg_type f ON f.oid = coalesce(y.oid, b.oid)
) d ON true
LEFT JOIN pg_catalog.pg_index i ON i.indrelid = c.oid AND i.indisprimary
WHERE c.relkind IN ('r', 'p') AND ";

const BY_NAME: &str = "n.nspname = $1 AND c.relname = $2 ORDER BY a.attnum";

const BY_OID: &str = "c.oid = ANY($1) ORDER BY c.oid, a.attnum";

/// Describes an ordinary or partitioned table; `None` where there is none of this name (a view, a
/// sequence or a foreign table counts as none).
///
/// # Errors
/// See [`crate::postgres::PgErrorKind`].
pub async fn inspect(client: &SqlClient, name: &RelationName) -> Result<Option<Relation>, PgError> {
    let sql = [INSPECT, BY_NAME].concat();
    let rows = client.query(&sql, &[&name.schema, &name.table]).await?;
    Ok(relations(&rows)?.pop())
}

/// Describes the tables with these oids, as far as they exist. Ascending by oid.
///
/// # Errors
/// See [`crate::postgres::PgErrorKind`].
pub async fn inspect_oids(client: &SqlClient, oids: &[Oid]) -> Result<Vec<Relation>, PgError> {
    let oids: Vec<u32> = oids.iter().map(|oid| oid.0).collect();
    relations(&client.query(&[INSPECT, BY_OID].concat(), &[&oids]).await?)
}

fn relations(rows: &[tokio_postgres::Row]) -> Result<Vec<Relation>, PgError> {
    let mut relations: Vec<Relation> = Vec::new();
    for row in rows {
        let oid = Oid(row.try_get(0)?);
        if relations.last().is_none_or(|relation| relation.oid != oid) {
            relations.push(Relation {
                oid,
                name: RelationName { schema: row.try_get(16)?, table: row.try_get(17)? },
                columns: Vec::new(),
                partitioned: row.try_get(1)?,
                storage: Some(Storage {
                    file: row.try_get(18)?,
                    altered: xid(row, 20)?,
                    columns: Vec::new(),
                }),
            });
        }
        if let (Some(column), Some(relation)) = (column(row)?, relations.last_mut()) {
            relation.columns.push(column);
            if let Some(storage) = &mut relation.storage {
                storage.columns.push(xid(row, 19)?);
            }
        }
    }
    Ok(relations)
}

/// Transaction ids have 32 bits, which no integer of Postgres has without a sign.
fn xid(row: &tokio_postgres::Row, index: usize) -> Result<u32, PgError> {
    u32::try_from(row.try_get::<_, i64>(index)?).map_err(|_| PgError::malformed("an id that is none"))
}

fn column(row: &tokio_postgres::Row) -> Result<Option<Column>, PgError> {
    let Some(name) = row.try_get::<_, Option<String>>(2)? else { return Ok(None) };
    let type_oid: u32 = row.try_get(3)?;
    let element_oid: u32 = row.try_get(5)?;
    let is_array = element_oid != type_oid;
    // Postgres does not keep the declared count of dimensions in every place (CREATE TABLE AS, LIKE):
    // an array has one at least.
    let dimensions: i32 = row.try_get(7)?;
    let dimensions = if is_array { dimensions.max(1) } else { 0 };
    let pk_position: Option<i32> = row.try_get(11)?;
    Ok(Some(Column {
        name,
        type_oid: Oid(type_oid),
        type_name: row.try_get(4)?,
        element_oid: Oid(if is_array { element_oid } else { 0 }),
        type_modifier: row.try_get(6)?,
        dimensions: u16::try_from(dimensions).unwrap_or(u16::MAX),
        not_null: row.try_get(8)?,
        pk_position: pk_position.and_then(|position| u16::try_from(position).ok()),
        generated: row.try_get(9)?,
        type_kind: char::from(row.try_get::<_, i8>(10)?.unsigned_abs()),
        base: base_type(row)?,
    }))
}

/// What a domain is a domain over.
fn base_type(row: &tokio_postgres::Row) -> Result<Option<BaseType>, PgError> {
    let Some(oid) = row.try_get::<_, Option<u32>>(12)? else { return Ok(None) };
    Ok(Some(BaseType {
        type_oid: Oid(oid),
        type_name: row.try_get(13)?,
        type_kind: char::from(row.try_get::<_, i8>(14)?.unsigned_abs()),
        is_array: row.try_get(15)?,
    }))
}

//! What collations and the encoding do with texts: found out from the catalog, and by trying.

use std::sync::LazyLock;

use crate::domain::Oid;
use crate::filter::{CaseFolding, TextOrder, Texts, letters_with_case};
use crate::postgres::{PgError, SqlClient};

/// Collations of one table that are tried; with more of them nothing is known of its letters.
const COLLATIONS_MAX: usize = 16;

/// The letters that have a case here, and both cases of them.
static LETTERS: LazyLock<[String; 3]> = LazyLock::new(letters_with_case);

/// The collations of the columns of a table, and that of the database, by provider. Before version 15 the
/// database has no other provider than the C library; "C" and "POSIX" are those of that library that
/// order by bytes, and all of the built-in provider. In the order of bytes two texts are only where the
/// encoding keeps that of UTF-8; in SQL_ASCII characters are bytes.
const QUERY: &str = "
SELECT bool_and(CASE provider WHEN 'c' THEN sorting IN ('C', 'POSIX') ELSE provider = 'b' END)
         AND max(encoding) IN ('UTF8', 'LATIN1', 'SQL_ASCII'),
       bool_and(provider = 'c' AND ctype IN ('C', 'POSIX') OR provider = 'b' AND locale = 'C'),
       max(encoding), bool_and(deterministic),
       array_agg(DISTINCT name) FILTER (WHERE name IS NOT NULL)
FROM (
    SELECT coalesce(to_jsonb(d) ->> 'datlocprovider', 'c') AS provider, d.datcollate::text AS sorting,
           d.datctype::text AS ctype, to_jsonb(d) ->> 'datlocale' AS locale,
           pg_encoding_to_char(d.encoding)::text AS encoding, true AS deterministic, NULL AS name
    FROM pg_catalog.pg_database d WHERE d.datname = current_database()
    UNION ALL
    SELECT c.collprovider::text, c.collcollate::text, c.collctype::text, to_jsonb(c) ->> 'colllocale',
           NULL, c.collisdeterministic, quote_ident(n.nspname) || '.' || quote_ident(c.collname)
    FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_collation c ON c.oid = a.attcollation
    JOIN pg_catalog.pg_namespace n ON n.oid = c.collnamespace
    WHERE a.attrelid = $1 AND a.attnum > 0 AND NOT a.attisdropped AND c.collname <> 'default'
      AND NOT (c.collname = 'C' AND a.atttypid IN ('name'::regtype, 'name[]'::regtype))
) AS used";

/// # Errors
/// See [`crate::postgres::PgErrorKind`].
pub(super) async fn texts(client: &SqlClient, table: Oid) -> Result<Texts, PgError> {
    let row = client.query_one(QUERY, &[&table.0]).await?;
    let by_bytes: bool = row.try_get(0)?;
    // Of a collation that is not of the C library there is nothing to compare with.
    let ascii: bool = row.try_get::<_, Option<bool>>(1)?.unwrap_or_default();
    let (encoding, deterministic): (String, bool) = (row.try_get(2)?, row.try_get(3)?);
    let names: Vec<String> = row.try_get::<_, Option<Vec<String>>>(4)?.unwrap_or_default();
    let case = if ascii {
        CaseFolding::Ascii
    } else if encoding == "UTF8" && names.len() <= COLLATIONS_MAX && fold_alike(client, &names).await? {
        CaseFolding::Letters
    } else {
        CaseFolding::Other
    };
    let order = if by_bytes { TextOrder::Bytes } else { TextOrder::Other };
    Ok(Texts { order, case, opaque: !deterministic || encoding == "SQL_ASCII" })
}

/// Whether Postgres makes of all letters what is made of them here, by the collation of the database and
/// by these.
async fn fold_alike(client: &SqlClient, collations: &[String]) -> Result<bool, PgError> {
    let marks = collations.iter().map(|name| format!(" COLLATE {name}"));
    let tests: Vec<String> = std::iter::once(String::new())
        .chain(marks)
        .map(|mark| {
            // By bytes: under the collation itself other texts may be equal.
            let same =
                |function: &str, result: &str| format!("{function}($1::text{mark}) COLLATE \"C\" = {result}");
            format!("{} AND {}", same("lower", "$2"), same("upper", "$3"))
        })
        .collect();
    let [letters, lower, upper] = &*LETTERS;
    let sql = format!("SELECT ({})", tests.join(") AND ("));
    Ok(client.query_one(&sql, &[letters, lower, upper]).await?.try_get(0)?)
}

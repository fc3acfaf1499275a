//! Whether Postgres takes an expression as the condition of a shape.
//!
//! The question is put as a partial index on an empty temporary copy of the table, in a transaction that
//! is rolled back. Postgres has exactly the rules there that a shape needs: of type bool, all functions,
//! operators and casts immutable once they are resolved and inlined, no subquery, no aggregate, no set.
//! The user in `DATABASE_URL` has to have the TEMPORARY privilege on the database, which everybody has
//! unless it was revoked.

use std::sync::Arc;
use std::time::Instant;

use super::{CHECKED_FOR_MAX, CHECKED_MAX, Evaluation, TABLES_MAX, count, lock};
use crate::domain::Relation;
use crate::filter::{Delegated, TextOrder, WhereError};
use crate::postgres::{PgError, SqlClient};

/// "functions in index predicate must be marked IMMUTABLE".
const NOT_IMMUTABLE: &str = "42P17";

/// Types whose input functions do not look at the clock: bool, bytea, "char", name, int8, int2, int4,
/// text, json, xml, float4, float8, bpchar, varchar, bit, varbit, numeric, uuid, jsonb, jsonpath and
/// text[].
const TIMELESS: [u32; 21] = [
    16, 17, 18, 19, 20, 21, 23, 25, 114, 142, 700, 701, 1042, 1043, 1560, 1562, 1700, 2950, 3802, 4072, 1009,
];

/// Why a shape is not made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CheckError {
    #[error(transparent)]
    Refused(WhereError),
    #[error("Postgres cannot be asked")]
    Unreachable,
}

impl Evaluation {
    /// Checks the parts of a clause over a table.
    ///
    /// # Errors
    /// The refusal of the first part that Postgres does not take, or that it cannot be asked.
    pub async fn check(&self, relation: &Relation, parts: &[Arc<Delegated>]) -> Result<(), CheckError> {
        for part in parts {
            let key = (part.relation(), part.sql().to_owned());
            if lock(&self.shared.checked).get(&key).is_some_and(is_fresh) {
                continue;
            }
            if !self.shared.enabled {
                return Err(CheckError::Refused(part.refusal().clone()));
            }
            count(&self.shared.counters.checks, 1);
            let checked = self.ask(relation, part).await;
            if matches!(checked, Err(CheckError::Refused(_))) {
                count(&self.shared.counters.refusals, 1);
            }
            checked?;
            let mut known = lock(&self.shared.checked);
            if known.len() >= CHECKED_MAX {
                known.clear();
            }
            known.insert(key, Instant::now());
        }
        Ok(())
    }

    /// How the texts of a table are ordered.
    ///
    /// # Errors
    /// Postgres cannot be asked.
    pub async fn text_order(&self, relation: &Relation) -> Result<TextOrder, CheckError> {
        // Before version 15 there was no other provider than the C library; "C" and "POSIX" are those
        // of that library that order by bytes, and all of the built-in provider.
        const QUERY: &str = "
            SELECT bool_and(CASE provider WHEN 'c' THEN locale IN ('C', 'POSIX') ELSE provider = 'b' END)
            FROM (
                SELECT coalesce(to_jsonb(d) ->> 'datlocprovider', 'c') AS provider, d.datcollate::text AS locale
                FROM pg_catalog.pg_database d WHERE d.datname = current_database()
                UNION ALL
                SELECT c.collprovider::text, c.collcollate::text
                FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_collation c ON c.oid = a.attcollation
                WHERE a.attrelid = $1 AND a.attnum > 0 AND NOT a.attisdropped AND c.collname <> 'default'
            ) AS orders";
        if let Some((order, _)) = lock(&self.shared.orders).get(&relation.oid).filter(|(_, at)| is_fresh(at))
        {
            return Ok(*order);
        }
        let unreachable = |_: PgError| CheckError::Unreachable;
        let loan = self.shared.catalog.get().await.map_err(unreachable)?;
        let row = loan.client().query_one(QUERY, &[&relation.oid.0]).await;
        let by_bytes: bool = row.and_then(|row| row.try_get(0)).map_err(|error| unreachable(error.into()))?;
        loan.give_back();
        let order = if by_bytes { TextOrder::Bytes } else { TextOrder::Other };
        let mut orders = lock(&self.shared.orders);
        if orders.len() >= TABLES_MAX {
            orders.clear();
        }
        orders.insert(relation.oid, (order, Instant::now()));
        Ok(order)
    }

    async fn ask(&self, relation: &Relation, part: &Delegated) -> Result<(), CheckError> {
        let unreachable = |error: PgError| {
            tracing::warn!(%error, "an expression could not be checked");
            CheckError::Unreachable
        };
        let loan = self.shared.catalog.get().await.map_err(unreachable)?;
        let client = loan.client();
        let table = relation.name.to_sql();
        let result = index(client, &table, part.sql()).await;
        let checked = match result {
            Ok(()) => match part.probe() {
                Some(probe) => present(client, &table, probe, part).await,
                None => Ok(()),
            },
            Err(error) if error.sqlstate() == Some(NOT_IMMUTABLE) => {
                let names: Vec<&str> = part.uses().collect();
                let names = mutable(client, &names).await.map_err(unreachable)?;
                Err(CheckError::Refused(part.not_immutable(&names)))
            }
            Err(error) => Err(match error.sqlstate() {
                Some(state) if !is_passing(state) => {
                    tracing::debug!(%error, "Postgres does not take an expression");
                    CheckError::Refused(part.refusal().clone())
                }
                _ => unreachable(error),
            }),
        };
        if !matches!(checked, Err(CheckError::Unreachable)) {
            loan.give_back();
        }
        checked
    }
}

fn is_fresh(at: &Instant) -> bool {
    at.elapsed() < CHECKED_FOR_MAX
}

/// Says nothing about the expression: connection, resources, locks, shutdown.
fn is_passing(state: &str) -> bool {
    ["08", "40", "53", "55", "57", "58"].iter().any(|class| state.starts_with(class))
}

/// Leaves no transaction behind.
async fn index(client: &SqlClient, table: &str, sql: &str) -> Result<(), PgError> {
    let statements = format!(
        "BEGIN; SET LOCAL lock_timeout = '5s'; \
         CREATE TEMPORARY TABLE shapefold_check (LIKE {table}) ON COMMIT DROP; \
         CREATE INDEX ON pg_temp.shapefold_check ((1)) WHERE {sql}"
    );
    let result = client.batch_execute(&statements).await;
    client.batch_execute("ROLLBACK").await?;
    Ok(result?)
}

/// Those of some names under which there is a function or an operator that is not immutable.
async fn mutable(client: &SqlClient, names: &[&str]) -> Result<Vec<String>, PgError> {
    const QUERY: &str = "
        SELECT p.proname::text FROM pg_catalog.pg_proc p
        WHERE p.proname = ANY ($1::text[]) AND p.provolatile <> 'i'
        UNION
        SELECT o.oprname::text FROM pg_catalog.pg_operator o JOIN pg_catalog.pg_proc p ON p.oid = o.oprcode
        WHERE o.oprname = ANY ($1::text[]) AND p.provolatile <> 'i'";
    let rows = client.query(QUERY, &[&names]).await?;
    rows.iter().map(|row| Ok(row.try_get(0)?)).collect()
}

/// Refuses texts such as 'now' where they are read as a date or time.
async fn present(client: &SqlClient, table: &str, probe: &str, part: &Delegated) -> Result<(), CheckError> {
    let statement = match client.prepare(&format!("SELECT 1 FROM {table} WHERE {probe}")).await {
        Ok(statement) => statement,
        Err(error) => {
            let error = PgError::from(error);
            return Err(match error.sqlstate() {
                // No type can be told: be careful.
                Some(state) if !is_passing(state) => CheckError::Refused(part.present_refused(0)),
                _ => CheckError::Unreachable,
            });
        }
    };
    match statement.params().iter().position(|ty| !TIMELESS.contains(&ty.oid())) {
        Some(number) => Err(CheckError::Refused(part.present_refused(number))),
        None => Ok(()),
    }
}

//! Whether Postgres takes an expression as the condition of a shape.
//!
//! The question is put as a partial index on an empty temporary copy of the table, in a transaction that
//! is rolled back. Postgres has exactly the rules there that a shape needs: of type bool, all functions,
//! operators and casts immutable once they are resolved and inlined, no subquery, no aggregate, no set.
//! The user in `DATABASE_URL` has to have the TEMPORARY privilege on the database, which everybody has
//! unless it was revoked.

use std::sync::Arc;
use std::time::Instant;

use tokio_postgres::error::SqlState;

use super::{CHECKED_FOR_MAX, CHECKED_MAX, Evaluation, TABLES_MAX, collations, count, lock};
use crate::domain::Relation;
use crate::filter::{Delegated, Texts, WhereError};
use crate::postgres::{PgError, SqlClient};

/// "functions in index predicate must be marked IMMUTABLE".
const NOT_IMMUTABLE: &str = "42P17";

/// Patterns of one expression that are tried out; of one beyond that the snapshot will say so.
const TRIALS_MAX: usize = 64;

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

    /// What the texts of a table are like, as far as that was found out lately.
    #[must_use]
    pub fn known_texts(&self, relation: &Relation) -> Option<Texts> {
        lock(&self.shared.texts).get(&relation.oid).filter(|(_, at)| is_fresh(at)).map(|(texts, _)| *texts)
    }

    /// What the texts of a table are like.
    ///
    /// # Errors
    /// Postgres cannot be asked.
    pub async fn texts(&self, relation: &Relation) -> Result<Texts, CheckError> {
        if let Some(texts) = self.known_texts(relation) {
            return Ok(texts);
        }
        let unreachable = |error: PgError| {
            tracing::warn!(%error, "the collations of a table could not be looked at");
            CheckError::Unreachable
        };
        let loan = self.shared.catalog.get().await.map_err(unreachable)?;
        let texts = collations::texts(loan.client(), relation.oid).await.map_err(unreachable)?;
        loan.give_back();
        let mut known = lock(&self.shared.texts);
        if known.len() >= TABLES_MAX {
            known.clear();
        }
        known.insert(relation.oid, (texts, Instant::now()));
        Ok(texts)
    }

    async fn ask(&self, relation: &Relation, part: &Delegated) -> Result<(), CheckError> {
        let unreachable = |error: PgError| {
            tracing::warn!(%error, "an expression could not be checked");
            CheckError::Unreachable
        };
        let loan = self.shared.catalog.get().await.map_err(unreachable)?;
        let client = loan.client();
        let table = relation.name.to_sql();
        let checked = match index(client, &table, part.sql()).await {
            Ok(()) => self.constants(client, &table, part).await,
            Err(Objection::Constants(words)) => Err(CheckError::Refused(part.constants_refused(&words))),
            Err(Objection::Error(error)) if error.sqlstate() == Some(NOT_IMMUTABLE) => {
                let names: Vec<&str> = part.uses().collect();
                let names = mutable(client, &names).await.map_err(unreachable)?;
                Err(CheckError::Refused(part.not_immutable(&names)))
            }
            Err(Objection::Error(error)) => Err(match error.sqlstate() {
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

    /// What Postgres would find out with the first row.
    async fn constants(&self, client: &SqlClient, table: &str, part: &Delegated) -> Result<(), CheckError> {
        for (number, trial) in part.trials().enumerate().take(TRIALS_MAX) {
            match client.batch_execute(&format!("SELECT {trial}")).await.map_err(Objection::from) {
                // It may be something else than a pattern of texts.
                Ok(()) | Err(Objection::Error(_)) => {}
                Err(Objection::Constants(words)) => {
                    return Err(CheckError::Refused(part.pattern_refused(number, &words)));
                }
            }
        }
        match part.probe() {
            Some(probe) => present(client, table, probe, part).await,
            None => Ok(()),
        }
    }
}

/// What Postgres has against an expression.
enum Objection {
    /// The values of its constants, in words that quote them: for the client, not for logs.
    Constants(String),
    Error(PgError),
}

impl From<tokio_postgres::Error> for Objection {
    fn from(error: tokio_postgres::Error) -> Objection {
        match error.as_db_error() {
            // Data exceptions. That a text is no value of a type is told in words of our own.
            Some(told)
                if told.code().code().starts_with("22")
                    && *told.code() != SqlState::INVALID_TEXT_REPRESENTATION =>
            {
                Objection::Constants(told.message().to_owned())
            }
            _ => Objection::Error(error.into()),
        }
    }
}

fn is_fresh(at: &Instant) -> bool {
    at.elapsed() < CHECKED_FOR_MAX
}

/// Says nothing about the expression: connection, resources, locks, shutdown.
fn is_passing(state: &str) -> bool {
    ["08", "40", "53", "55", "57", "58"].iter().any(|class| state.starts_with(class))
}

/// Leaves no transaction behind. The plan is asked for because its making looks at patterns.
async fn index(client: &SqlClient, table: &str, sql: &str) -> Result<(), Objection> {
    let statements = format!(
        "BEGIN; SET LOCAL lock_timeout = '5s'; \
         CREATE TEMPORARY TABLE shapefold_check (LIKE {table}) ON COMMIT DROP; \
         CREATE INDEX ON pg_temp.shapefold_check ((1)) WHERE {sql}; \
         EXPLAIN SELECT 1 FROM pg_temp.shapefold_check WHERE {sql}"
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

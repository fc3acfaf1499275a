//! Rows as arrays of texts, cast to the types of their columns, and the expressions over them.

use std::collections::HashMap;
use std::sync::Arc;

use futures_util::future::join_all;
use futures_util::{StreamExt, stream};
use tokio_postgres::types::{ToSql, Type};

use super::{Answers, Shared, TABLES_MAX, count, lock};
use crate::domain::{Oid, quote_identifier};
use crate::filter::{Delegated, Question, RowValues, Verdict};
use crate::postgres::{PgError, SqlClient};

/// Expressions in one statement.
const EXPRESSIONS_MAX: usize = 64;
/// Statements on their way at once, where rows are asked about one by one.
const PIPELINED_MAX: usize = 64;

/// For each column of a table the name of its type, and of its collation if it has one.
#[derive(Debug)]
pub(super) struct Types(HashMap<String, (String, Option<String>)>);

/// One round of questions over one connection.
pub(super) struct Asking<'a> {
    pub(super) client: &'a SqlClient,
    pub(super) shared: &'a Shared,
}

/// Expressions over the same rows.
struct Batch<'a> {
    parts: Vec<&'a Arc<Delegated>>,
    rows: Vec<&'a RowValues>,
}

/// What became of a batch.
enum Outcome {
    Answered,
    /// Postgres reported an error of some row, or of some expression.
    Failed {
        broken: bool,
    },
}

/// What an error of Postgres is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// The connection, resources, a shutdown: it will pass.
    Passing,
    /// Something that the expression names is not there any more.
    Broken,
    /// The values.
    Row,
}

impl Fault {
    fn of(error: &PgError) -> Fault {
        match error.sqlstate().map(|state| state.get(..2).unwrap_or_default()) {
            None | Some("08" | "25" | "28" | "3D" | "40" | "53" | "55" | "57" | "58") => Fault::Passing,
            Some("26" | "3F" | "42") => Fault::Broken,
            Some(_) => Fault::Row,
        }
    }
}

impl Asking<'_> {
    /// # Errors
    /// Those that will pass: the questions are to be asked again.
    pub(super) async fn answer(&self, questions: &[Question]) -> Result<Answers, PgError> {
        let mut answers = Answers::default();
        let batches = batches(questions);
        let mut asked = Vec::with_capacity(batches.len());
        for batch in &batches {
            asked.push(self.ask(batch));
        }
        // All at once: the connection carries them one after the other without a pause.
        let results = join_all(asked).await;
        for (batch, result) in batches.iter().zip(results) {
            let (verdicts, outcome) = result?;
            answers.verdicts.extend(verdicts);
            if let Outcome::Failed { .. } = outcome {
                self.apart(batch, &mut answers).await?;
            }
        }
        Ok(answers)
    }

    /// Each expression alone, and then each row alone.
    async fn apart(&self, batch: &Batch<'_>, answers: &mut Answers) -> Result<(), PgError> {
        // What is known of types may be out of date.
        batch.parts.iter().for_each(|part| {
            lock(&self.shared.tables).remove(&part.relation());
        });
        for part in &batch.parts {
            let alone = Batch { parts: vec![part], rows: batch.rows.clone() };
            match self.ask(&alone).await? {
                (verdicts, Outcome::Answered) => answers.verdicts.extend(verdicts),
                (_, Outcome::Failed { broken: true }) => answers.broken.push(Arc::clone(part)),
                (_, Outcome::Failed { broken: false }) => self.row_by_row(&alone, answers).await?,
            }
        }
        Ok(())
    }

    async fn row_by_row(&self, batch: &Batch<'_>, answers: &mut Answers) -> Result<(), PgError> {
        let [part] = batch.parts[..] else { return Ok(()) };
        let rows: Vec<Batch<'_>> =
            batch.rows.iter().map(|row| Batch { parts: vec![part], rows: vec![row] }).collect();
        let mut asked = Vec::with_capacity(rows.len());
        for row in &rows {
            asked.push(self.ask(row));
        }
        let mut results = stream::iter(asked).buffered(PIPELINED_MAX);
        let mut row = batch.rows.iter();
        while let Some(result) = results.next().await {
            let (verdicts, outcome) = result?;
            let Some(values) = row.next() else { break };
            match outcome {
                Outcome::Answered => answers.verdicts.extend(verdicts),
                Outcome::Failed { .. } => {
                    count(&self.shared.counters.row_errors, 1);
                    answers.verdicts.push((Arc::clone(part), (*values).clone(), Verdict::Error));
                }
            }
        }
        Ok(())
    }

    async fn ask(
        &self,
        batch: &Batch<'_>,
    ) -> Result<(Vec<(Arc<Delegated>, RowValues, Verdict)>, Outcome), PgError> {
        let Some(first) = batch.parts.first() else { return Ok((Vec::new(), Outcome::Answered)) };
        let types = self.types(first.relation()).await?;
        let Some(statement) = statement(&batch.parts, &types) else {
            return Ok((Vec::new(), Outcome::Failed { broken: true }));
        };
        let Some(columns) = columns(first.columns().len(), &batch.rows) else {
            // Not UTF-8, which the stream promises. Alone, such a row is an error.
            return Ok((Vec::new(), Outcome::Failed { broken: false }));
        };
        let params: Vec<(&(dyn ToSql + Sync), Type)> =
            columns.iter().map(|column| (column as &(dyn ToSql + Sync), Type::TEXT_ARRAY)).collect();
        count(&self.shared.counters.statements, 1);
        count(&self.shared.counters.rows, (batch.rows.len() * batch.parts.len()) as u64);
        let answered = match self.client.query_typed(&statement, &params).await {
            Ok(rows) => rows,
            Err(error) => {
                let error = PgError::from(error);
                return match Fault::of(&error) {
                    Fault::Passing => Err(error),
                    Fault::Broken => Ok((Vec::new(), Outcome::Failed { broken: true })),
                    Fault::Row => Ok((Vec::new(), Outcome::Failed { broken: false })),
                };
            }
        };
        let mut verdicts = Vec::with_capacity(answered.len() * batch.parts.len());
        for (row, values) in answered.iter().zip(&batch.rows) {
            for (index, part) in batch.parts.iter().enumerate() {
                let verdict = Verdict::Value(row.try_get(index)?);
                verdicts.push((Arc::clone(part), (*values).clone(), verdict));
            }
        }
        Ok((verdicts, Outcome::Answered))
    }

    async fn types(&self, relation: Oid) -> Result<Arc<Types>, PgError> {
        const QUERY: &str = "
            SELECT a.attname::text,
                   quote_ident(tn.nspname) || '.' || quote_ident(t.typname),
                   quote_ident(cn.nspname) || '.' || quote_ident(c.collname)
            FROM pg_catalog.pg_attribute a
            JOIN pg_catalog.pg_type t ON t.oid = a.atttypid
            JOIN pg_catalog.pg_namespace tn ON tn.oid = t.typnamespace
            LEFT JOIN pg_catalog.pg_collation c ON c.oid = a.attcollation AND c.collname <> 'default'
            LEFT JOIN pg_catalog.pg_namespace cn ON cn.oid = c.collnamespace
            WHERE a.attrelid = $1 AND a.attnum > 0 AND NOT a.attisdropped";
        if let Some(types) = lock(&self.shared.tables).get(&relation) {
            return Ok(Arc::clone(types));
        }
        let rows = self.client.query_typed(QUERY, &[(&relation.0, Type::OID)]).await?;
        let mut types = HashMap::with_capacity(rows.len());
        for row in rows {
            types.insert(row.try_get(0)?, (row.try_get(1)?, row.try_get(2)?));
        }
        let types = Arc::new(Types(types));
        let mut tables = lock(&self.shared.tables);
        if tables.len() >= TABLES_MAX {
            tables.clear();
        }
        tables.insert(relation, Arc::clone(&types));
        Ok(types)
    }
}

/// Puts expressions together that are asked about the same rows, so that those are sent once.
fn batches(questions: &[Question]) -> Vec<Batch<'_>> {
    let mut sorted: Vec<&Question> = questions.iter().collect();
    fn over(question: &Question) -> (Oid, &[(String, Oid)], &[RowValues]) {
        (question.delegated.relation(), question.delegated.columns(), &question.rows)
    }
    sorted.sort_by(|a, b| over(a).cmp(&over(b)));
    let mut batches: Vec<Batch<'_>> = Vec::new();
    let mut last: Option<&Question> = None;
    for question in sorted {
        let alike = last.is_some_and(|last| over(last) == over(question));
        match batches.last_mut().filter(|batch| alike && batch.parts.len() < EXPRESSIONS_MAX) {
            Some(batch) => batch.parts.push(&question.delegated),
            None => {
                batches.push(Batch { parts: vec![&question.delegated], rows: question.rows.iter().collect() })
            }
        }
        last = Some(question);
    }
    batches
}

/// The values of each column; a column of NULLs where there is none. None where one is not UTF-8.
fn columns<'a>(count: usize, rows: &[&'a RowValues]) -> Option<Vec<Vec<Option<&'a str>>>> {
    let mut columns = vec![Vec::with_capacity(rows.len()); count.max(1)];
    for row in rows {
        let cells = row.cells();
        for (index, column) in columns.iter_mut().enumerate() {
            column.push(match cells.get(index).copied().flatten() {
                Some(cell) => Some(std::str::from_utf8(cell).ok()?),
                None => None,
            });
        }
    }
    Some(columns)
}

/// One row of results for each row, in their order. The columns have their names, types and collations,
/// as in the table; None where one of them is not there any more.
fn statement(parts: &[&Arc<Delegated>], types: &Types) -> Option<String> {
    let columns = parts.first()?.columns();
    let mut number = "number".to_owned();
    while columns.iter().any(|(name, _)| *name == number) {
        number.push('_');
    }
    let mut typed = Vec::with_capacity(columns.len());
    for (index, (name, _)) in columns.iter().enumerate() {
        let (ty, collation) = types.0.get(name)?;
        let collation = collation.as_ref().map_or_else(String::new, |name| format!(" COLLATE {name}"));
        typed.push(format!(", v.c{index}::{ty}{collation} AS {}", quote_identifier(name)));
    }
    let count = columns.len().max(1);
    let arrays: Vec<String> = (1..=count).map(|index| format!("${index}")).collect();
    let names: Vec<String> = (0..count).map(|index| format!("c{index}")).collect();
    let expressions: Vec<&str> = parts.iter().map(|part| part.sql()).collect();
    Some(format!(
        "SELECT {} FROM (SELECT v.n AS {number}{} FROM unnest({}) WITH ORDINALITY AS v ({}, n)) AS r ORDER BY {number}",
        expressions.join(", "),
        typed.concat(),
        arrays.join(", "),
        names.join(", "),
    ))
}

//! What Postgres evaluates on our behalf: expressions that are immutable there and not native here.
//!
//! Whether an expression may be used is asked once, before a shape is made of it ([`Evaluation::check`]).
//! What it is about the rows of a transaction is asked in batches ([`Evaluation::answer`]), over a
//! connection of its own: snapshots cannot take it away, and it cannot take theirs.

mod check;
mod collations;
mod rows;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::domain::Oid;
use crate::filter::{Delegated, Question, RowValues, Texts, Verdict};
use crate::postgres::{ConnectOptions, DatabaseUrl, PgError};
use crate::runtime::connections::Connections;

pub use check::CheckError;

/// Connections that rows are sent over: batches come one after the other.
const CONNECTIONS: usize = 1;
/// Between two attempts to reach Postgres, and how long there are any. Statements are not cut short.
const BACKOFF_MIN: Duration = Duration::from_millis(20);
const BACKOFF_MAX: Duration = Duration::from_secs(1);
const ATTEMPTS_FOR_MAX: Duration = Duration::from_secs(5);
/// The server shuts down, or starts.
const CANNOT_CONNECT_NOW: &str = "57P03";
/// Expressions remembered as good, and for how long; at this many the memory starts over.
const CHECKED_MAX: usize = 16_384;
const CHECKED_FOR_MAX: Duration = Duration::from_secs(5);
/// Tables whose types are remembered; at this many the memory starts over.
const TABLES_MAX: usize = 4_096;

/// Asks Postgres.
#[derive(Clone, Debug)]
pub struct Evaluation {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    /// `SHAPEFOLD_POSTGRES_EVALUATION`: whether shapes may be made that need it.
    enabled: bool,
    rows: Connections,
    catalog: Connections,
    counters: Counters,
    /// Expressions that Postgres takes, by table, and when it said so.
    checked: Mutex<HashMap<(Oid, String), Instant>>,
    tables: Mutex<HashMap<Oid, Arc<rows::Types>>>,
    /// What the texts of tables are like, and when Postgres said so.
    texts: Mutex<HashMap<Oid, (Texts, Instant)>>,
}

/// Counts since the start.
#[derive(Debug, Default)]
pub struct Counters {
    /// Statements sent, each with a batch of rows.
    pub statements: AtomicU64,
    /// Rows sent, once for each expression.
    pub rows: AtomicU64,
    /// Rows of which Postgres reported an error: they are in no shape.
    pub row_errors: AtomicU64,
    /// Attempts that failed and were made again.
    pub retries: AtomicU64,
    /// Expressions that were asked about when a shape was defined, and those refused.
    pub checks: AtomicU64,
    pub refusals: AtomicU64,
    /// Time that transactions have waited for verdicts, in microseconds.
    pub waited_us: AtomicU64,
}

/// What Postgres said.
#[derive(Debug, Default)]
pub struct Answers {
    pub verdicts: Vec<(Arc<Delegated>, RowValues, Verdict)>,
    /// Expressions that Postgres does not take any more: a function or a column is gone.
    pub broken: Vec<Arc<Delegated>>,
}

impl Evaluation {
    /// Rows go to `database`, which must not be a pooler: texts in expressions may depend on the settings
    /// of the session. Questions to the catalog go to `catalog`. No connection is opened yet.
    #[must_use]
    pub fn new(enabled: bool, database: (DatabaseUrl, ConnectOptions), catalog: Connections) -> Evaluation {
        let (url, options) = database;
        let rows = Connections::new(url, options, CONNECTIONS);
        let (checked, tables, texts) = (Mutex::default(), Mutex::default(), Mutex::default());
        let counters = Counters::default();
        let shared = Shared { enabled, rows, catalog, counters, checked, tables, texts };
        Evaluation { shared: Arc::new(shared) }
    }

    /// Whether new shapes may need Postgres for their changes.
    #[must_use]
    pub fn is_enabled(&self) -> bool {
        self.shared.enabled
    }

    #[must_use]
    pub fn counters(&self) -> &Counters {
        &self.shared.counters
    }

    /// Answers all questions: none is guessed. None where Postgres was away for so long that the stream
    /// had better be started again: as long as it is not read, Postgres cannot shut down in order.
    pub async fn answer(&self, questions: &[Question]) -> Option<Answers> {
        let begun = Instant::now();
        let mut backoff = BACKOFF_MIN;
        loop {
            let error = match self.try_answer(questions).await {
                Ok(answers) => return Some(answers),
                Err(error) => error,
            };
            count(&self.shared.counters.retries, 1);
            self.shared.rows.close();
            let leaving = error.sqlstate() == Some(CANNOT_CONNECT_NOW);
            if leaving || begun.elapsed() > ATTEMPTS_FOR_MAX {
                tracing::warn!(%error, "Postgres does not evaluate rows; the stream is started again");
                return None;
            }
            tracing::debug!(%error, "Postgres does not evaluate rows now; trying again");
            tokio::time::sleep(backoff).await;
            backoff = (backoff * 2).min(BACKOFF_MAX);
        }
    }

    async fn try_answer(&self, questions: &[Question]) -> Result<Answers, PgError> {
        let loan = self.shared.rows.get().await?;
        let answers = rows::Asking { client: loan.client(), shared: &self.shared }.answer(questions).await?;
        loan.give_back();
        let mut checked = lock(&self.shared.checked);
        for part in &answers.broken {
            checked.remove(&(part.relation(), part.sql().to_owned()));
        }
        Ok(answers)
    }
}

fn count(counter: &AtomicU64, by: u64) {
    counter.fetch_add(by, Ordering::Relaxed);
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

//! SQL connections, opened when needed, kept for the next, bounded in number.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use prometheus::{IntCounter, IntGauge};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::postgres::{ConnectOptions, DatabaseUrl, PgError, PgErrorKind, SqlClient, connect};
use crate::telemetry::Metrics;

/// Longest wait for a place, where all are taken: contract 4.4 has a text for it.
const PLACE_WAIT_MAX: Duration = Duration::from_secs(20);

/// Connections to one database.
#[derive(Clone, Debug)]
pub struct Connections {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    url: DatabaseUrl,
    options: ConnectOptions,
    idle: Mutex<Vec<SqlClient>>,
    /// Nothing is kept until somebody asks for a connection again.
    closed: AtomicBool,
    permits: Arc<Semaphore>,
    counts: OnceLock<Counts>,
}

/// What is counted of one pool.
#[derive(Debug)]
struct Counts {
    used: IntGauge,
    timeouts: IntCounter,
}

/// A connection on loan. Dropped without [`Loan::give_back`] it is closed: nobody knows what state it
/// is in.
#[derive(Debug)]
pub struct Loan {
    client: Option<SqlClient>,
    place: Place,
}

/// A place among the connections, while its connection is elsewhere.
#[derive(Debug)]
pub struct Place {
    shared: Arc<Shared>,
    _permit: OwnedSemaphorePermit,
}

impl Connections {
    /// At most `size` at once; none is opened yet.
    #[must_use]
    pub fn new(url: DatabaseUrl, options: ConnectOptions, size: usize) -> Connections {
        let permits = Arc::new(Semaphore::new(size.max(1)));
        Connections {
            shared: Arc::new(Shared {
                url,
                options,
                idle: Mutex::default(),
                closed: AtomicBool::new(false),
                permits,
                counts: OnceLock::new(),
            }),
        }
    }

    /// Counts what is used from now on, under this name.
    pub fn measure(&self, name: &str, metrics: &Metrics) {
        let size = self.shared.permits.available_permits();
        metrics.pool_limit.with_label_values(&[name]).set(i64::try_from(size).unwrap_or(i64::MAX));
        let counts = Counts {
            used: metrics.pool_used.with_label_values(&[name]),
            timeouts: metrics.pool_timeouts.with_label_values(&[name]),
        };
        // The first name stays.
        let _named = self.shared.counts.set(counts);
    }

    /// Waits for a place, then takes an idle connection or opens one.
    ///
    /// # Errors
    /// Those of connecting; `PoolQueueTimeout` after [`PLACE_WAIT_MAX`] without a place.
    pub async fn get(&self) -> Result<Loan, PgError> {
        let place = self.place(PLACE_WAIT_MAX).await?;
        self.shared.closed.store(false, Ordering::Release);
        loop {
            let idle = place.idle().pop();
            match idle {
                Some(client) if client.is_closed() => {}
                Some(client) => return Ok(Loan { client: Some(client), place }),
                None => break,
            }
        }
        let client = connect(&self.shared.url, &self.shared.options).await?;
        Ok(Loan { client: Some(client), place })
    }

    async fn place(&self, wait_max: Duration) -> Result<Place, PgError> {
        let permits = Arc::clone(&self.shared.permits);
        let Ok(permit) = tokio::time::timeout(wait_max, permits.acquire_owned()).await else {
            if let Some(counts) = self.shared.counts.get() {
                counts.timeouts.inc();
            }
            let message = "all connections that ELECTRIC_DB_POOL_SIZE allows are in use";
            return Err(PgError::new(PgErrorKind::PoolQueueTimeout, message));
        };
        let permit = permit.expect("the semaphore is never closed");
        if let Some(counts) = self.shared.counts.get() {
            counts.used.inc();
        }
        Ok(Place { shared: Arc::clone(&self.shared), _permit: permit })
    }

    /// Closes what is idle, and what is in use when it is given back: for want of work, until somebody
    /// asks again.
    pub fn close(&self) {
        self.shared.closed.store(true, Ordering::Release);
        self.shared.idle.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(counts) = self.shared.counts.get() {
            counts.used.dec();
        }
    }
}

impl Place {
    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<SqlClient>> {
        self.shared.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps a connection for the next; it must be outside a transaction.
    pub fn keep(self, client: SqlClient) {
        if self.shared.closed.load(Ordering::Acquire) {
            return;
        }
        self.idle().push(client);
    }
}

impl Loan {
    #[must_use]
    pub fn client(&self) -> &SqlClient {
        self.client.as_ref().expect("a loan has its connection until it is given back")
    }

    /// The connection to keep, and its place.
    #[must_use]
    pub fn split(mut self) -> (SqlClient, Place) {
        (self.client.take().expect("a loan has its connection until it is given back"), self.place)
    }

    /// Keeps the connection for the next; it must be outside a transaction.
    pub fn give_back(self) {
        let (client, place) = self.split();
        place.keep(client);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::{TcpOptions, Tls};

    #[tokio::test]
    async fn a_wait_for_a_place_has_an_end() {
        let url = DatabaseUrl::parse("postgresql://nobody@127.0.0.1:1/none").expect("a valid URL");
        let options = ConnectOptions {
            tls: Tls::unverified().expect("the TLS library works"),
            tcp: TcpOptions::default(),
        };
        let (pool, metrics) = (Connections::new(url, options, 1), Metrics::new());
        pool.measure("snapshot", &metrics);
        let used = || metrics.pool_used.with_label_values(&["snapshot"]).get();
        let first = pool.place(Duration::from_secs(60)).await.expect("it is free");
        assert_eq!(used(), 1);
        let refused = pool.place(Duration::from_millis(1)).await.expect_err("it is taken");
        assert_eq!((refused.kind(), refused.fatal()), (PgErrorKind::PoolQueueTimeout, false));
        assert_eq!(metrics.pool_timeouts.with_label_values(&["snapshot"]).get(), 1);
        drop(first);
        assert_eq!(used(), 0);
        assert!(pool.place(Duration::from_secs(60)).await.is_ok(), "free again");
    }
}

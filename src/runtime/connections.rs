//! SQL connections, opened when needed, kept for the next, bounded in number.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::postgres::{ConnectOptions, DatabaseUrl, PgError, SqlClient, connect};

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
    permits: Arc<Semaphore>,
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
        Connections { shared: Arc::new(Shared { url, options, idle: Mutex::default(), permits }) }
    }

    /// Waits for a place, then takes an idle connection or opens one.
    ///
    /// # Errors
    /// Those of connecting.
    pub async fn get(&self) -> Result<Loan, PgError> {
        let permits = Arc::clone(&self.shared.permits);
        let permit = permits.acquire_owned().await.expect("the semaphore is never closed");
        let place = Place { shared: Arc::clone(&self.shared), _permit: permit };
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

    /// Closes what is idle: after Postgres was away, old connections only cost an error each.
    pub fn clear(&self) {
        self.shared.idle.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

impl Place {
    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<SqlClient>> {
        self.shared.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps a connection for the next; it must be outside a transaction.
    pub fn keep(self, client: SqlClient) {
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

//! Looking tables up in the catalog, with a short memory.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use crate::domain::{Relation, RelationName};
use crate::postgres::{PgError, inspect};
use crate::runtime::connections::Connections;
use crate::runtime::handle::InspectError;
use crate::runtime::single_flight::SingleFlight;

/// How long a look at the catalog is good for: every request validates its table.
const FRESH_FOR: Duration = Duration::from_secs(1);
/// Longest wait for Postgres.
const WAIT_MAX: Duration = Duration::from_secs(5);
/// Tables remembered; at this many the memory starts over.
const TABLES_MAX: usize = 65_536;

/// Looks tables up.
#[derive(Clone, Debug)]
pub struct Inspector {
    connections: Connections,
    tables: Arc<Mutex<HashMap<RelationName, Known>>>,
    /// A name means another table than before, or none.
    changed: Arc<Notify>,
    /// Requests for one table that come at the same time, as after a restart, cost one look.
    looks: SingleFlight<RelationName, Result<Option<Arc<Relation>>, InspectError>>,
}

#[derive(Clone, Debug)]
struct Known {
    relation: Option<Arc<Relation>>,
    /// `None` for what is known from a shape on disk only.
    looked_at: Option<Instant>,
}

impl Inspector {
    #[must_use]
    pub fn new(connections: Connections) -> Inspector {
        Inspector {
            connections,
            tables: Arc::default(),
            changed: Arc::default(),
            looks: SingleFlight::default(),
        }
    }

    /// Woken where a look finds that a table is not what it was.
    #[must_use]
    pub fn changed(&self) -> Arc<Notify> {
        Arc::clone(&self.changed)
    }

    /// The table as it is, or, while Postgres cannot be asked, as it was last seen: existing shapes are
    /// served without Postgres.
    ///
    /// # Errors
    /// [`InspectError::Unreachable`] where it was never seen and Postgres cannot be asked.
    pub async fn inspect(&self, name: RelationName) -> Result<Option<Arc<Relation>>, InspectError> {
        let known = self.known(&name);
        if let Some(known) = &known
            && known.looked_at.is_some_and(|looked_at| looked_at.elapsed() < FRESH_FOR)
        {
            return Ok(known.relation.clone());
        }
        let inspector = self.clone();
        let asked = name.clone();
        let looked = self.looks.run(name, async move {
            match tokio::time::timeout(WAIT_MAX, inspector.look(&asked)).await {
                Ok(Ok(relation)) => Ok(relation),
                Ok(Err(error)) => {
                    tracing::debug!(%error, "a table could not be looked at");
                    Err(InspectError::Unreachable)
                }
                Err(_elapsed) => Err(InspectError::Unreachable),
            }
        });
        match looked.await {
            Some(Ok(relation)) => Ok(relation),
            Some(Err(InspectError::Unreachable)) | None => {
                known.map(|known| known.relation).ok_or(InspectError::Unreachable)
            }
        }
    }

    /// Remembers a table from the definition of a shape on disk.
    pub fn remember(&self, relation: &Relation) {
        let known = Known { relation: Some(Arc::new(relation.clone())), looked_at: None };
        self.lock().entry(relation.name.clone()).or_insert(known);
    }

    /// The next look asks Postgres.
    pub fn forget(&self, name: &RelationName) {
        if let Some(known) = self.lock().get_mut(name) {
            known.looked_at = None;
        }
    }

    async fn look(&self, name: &RelationName) -> Result<Option<Arc<Relation>>, PgError> {
        let loan = self.connections.get().await?;
        let relation = inspect(loan.client(), name).await?.map(Arc::new);
        loan.give_back();
        let known = Known { relation: relation.clone(), looked_at: Some(Instant::now()) };
        let mut tables = self.lock();
        if tables.len() >= TABLES_MAX {
            tables.clear();
        }
        let before = tables.insert(name.clone(), known).and_then(|known| known.relation);
        if before.is_some_and(|before| relation.as_ref() != Some(&before)) {
            self.changed.notify_one();
        }
        Ok(relation)
    }

    fn known(&self, name: &RelationName) -> Option<Known> {
        self.lock().get(name).cloned()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<RelationName, Known>> {
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

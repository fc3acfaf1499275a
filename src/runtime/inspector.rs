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
    pub fn remember(&self, relation: &Arc<Relation>) {
        let mut tables = self.lock();
        if !tables.contains_key(&relation.name) {
            let known = Known { relation: Some(Arc::clone(relation)), looked_at: None };
            tables.insert(relation.name.clone(), known);
        }
    }

    /// The table as it is known, where that is the same: shapes of one table share it.
    #[must_use]
    pub fn shared(&self, relation: Arc<Relation>) -> Arc<Relation> {
        let tables = self.lock();
        let known = tables.get(&relation.name).and_then(|known| known.relation.as_ref());
        known.filter(|known| **known == relation).map_or_else(|| Arc::clone(&relation), Arc::clone)
    }

    /// The next look asks Postgres.
    pub fn forget(&self, name: &RelationName) {
        if let Some(known) = self.lock().get_mut(name) {
            known.looked_at = None;
        }
    }

    async fn look(&self, name: &RelationName) -> Result<Option<Arc<Relation>>, PgError> {
        let loan = self.connections.get().await?;
        let relation = inspect(loan.client(), name).await?;
        loan.give_back();
        let relation = relation.map(|relation| self.shared(Arc::new(relation)));
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

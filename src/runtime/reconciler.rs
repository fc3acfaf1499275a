//! Now and then a look at the catalog, for what the stream does not tell: a table without writes that was
//! renamed, dropped, altered, or taken out of the publication (contract 4.2 and 4.6).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, mpsc};

use crate::domain::{Oid, Relation, Sid};
use crate::postgres::inspect_oids;
use crate::replication::{self, ReplicationError};
use crate::runtime::connections::Connections;
use crate::runtime::driver::Message;
use crate::runtime::handle::{Service, Status};
use crate::runtime::publishing::{Newcomers, Publishing};

/// Between two looks at least, whatever wakes the task.
const PAUSE_MIN: Duration = Duration::from_secs(1);
/// Tables that one query is about.
const TABLES_MAX: usize = 1_000;

/// What the catalog says about the tables of shapes.
#[derive(Clone, Debug, Default)]
pub struct CatalogLook {
    /// The shapes that could be read before the look began: what is newer knows more.
    pub judged: Vec<Sid>,
    /// Their tables, as far as they exist.
    pub relations: BTreeMap<Oid, Relation>,
    /// Those whose changes are in the stream.
    pub streamed: BTreeSet<Oid>,
    pub publication_missing: bool,
}

/// The task.
#[derive(Debug)]
pub struct Reconciler {
    pub admin: Connections,
    pub service: Service,
    pub publishing: Arc<Publishing>,
    pub driver: mpsc::Sender<Message>,
    /// The tables that have shapes.
    pub tables: Arc<Mutex<BTreeSet<Oid>>>,
    pub period: Duration,
    /// Something is known to have changed: look at once.
    pub wake: Arc<Notify>,
}

impl Reconciler {
    /// Runs until the driver is gone.
    pub async fn run(self) {
        while !self.driver.is_closed() {
            // Whether it is time or somebody knows something does not matter.
            let _elapsed = tokio::time::timeout(self.period, self.wake.notified()).await;
            if self.service.status() == Status::Active
                && let Err(error) = self.look().await
            {
                tracing::debug!(%error, "the catalog could not be compared; later again");
            }
            tokio::time::sleep(PAUSE_MIN).await;
        }
    }

    async fn look(&self) -> Result<(), ReplicationError> {
        let shapes = self.service.readable();
        let mut tables: BTreeMap<Oid, (bool, Vec<Sid>)> = BTreeMap::new();
        for shape in &shapes {
            let relation = &shape.definition.relation;
            tables.entry(relation.oid).or_insert((relation.partitioned, Vec::new())).1.push(shape.sid);
        }
        let all: Vec<Oid> = tables.keys().copied().collect();
        for oids in all.chunks(TABLES_MAX) {
            let loan = self.admin.get().await?;
            let publication = self.publishing.publication();
            let relations = inspect_oids(loan.client(), oids).await?;
            let standings = replication::standings(loan.client(), publication, oids).await?;
            loan.give_back();
            let look = CatalogLook {
                judged: oids.iter().flat_map(|oid| tables[oid].1.iter().copied()).collect(),
                relations: relations.into_iter().map(|relation| (relation.oid, relation)).collect(),
                publication_missing: standings.is_empty(),
                streamed: standings
                    .iter()
                    .filter(|standing| standing.is_streamed() && !standing.narrowed)
                    .map(|standing| standing.oid)
                    .collect(),
            };
            // The driver is gone only at the end of the process.
            let _gone = self.driver.send(Message::Catalog(Box::new(look))).await;
            for oid in oids.iter().filter(|oid| tables[*oid].0) {
                self.publishing.look_below(*oid, Newcomers::Empty).await?;
            }
            self.publishing.restore_identities(oids).await?;
        }
        let in_use = |oid: Oid| self.tables.lock().unwrap_or_else(PoisonError::into_inner).contains(&oid);
        self.publishing.release_unused(in_use).await
    }
}

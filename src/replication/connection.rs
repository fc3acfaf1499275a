//! From an address to a connection that is ready to stream: contract 6.7, step 3.

use std::time::Duration;

use crate::domain::{Lineage, Lsn, Oid};
use crate::postgres::{ConnectOptions, DatabaseUrl, PgError, PgErrorKind, SqlClient, connect};
use crate::replication::publication::{PublicationInfo, ensure_publication};
use crate::replication::slot::{self, Failover, SlotInfo};
use crate::replication::{ReplicationClient, ReplicationError, published_relations};

/// How long the lock may take before somebody is told that we wait for it.
const LOCK_NOTICE_AFTER: Duration = Duration::from_millis(250);

/// How often a wait is looked into and reported (contract 6.7).
const NOTICE_INTERVAL: Duration = Duration::from_secs(10);

/// Tests of what happens then do not wait that long.
fn notice_interval() -> Duration {
    let millis =
        cfg!(feature = "test-hooks").then(|| std::env::var("SHAPEFOLD_TEST_NOTICE_MS").ok()).flatten();
    millis.and_then(|millis| millis.parse().ok()).map_or(NOTICE_INTERVAL, Duration::from_millis)
}

/// What to connect to.
#[derive(Clone, Debug)]
pub struct ReplicationSettings {
    pub url: DatabaseUrl,
    pub connect: ConnectOptions,
    pub slot: String,
    pub publication: String,
    /// The slot ends with the connection.
    pub temporary_slot: bool,
    pub failover: Failover,
}

/// What happens while we connect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StartupNotice {
    /// Another process holds the lock; sent once.
    WaitingForLock,
    LockTaken,
    /// The lock's holder did not stream for two looks in a row, so its backend was ended.
    HolderTerminated {
        backend_pid: u32,
    },
    /// Transactions that run keep the slot from being made; sent every 10 s.
    WaitingForSlot,
}

/// Why the shapes of earlier streams cannot go on (contract 6.8). The slot was made anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HistoryBroken {
    /// There was a slot but no publication: changes in between may be missing.
    PublicationCreated,
    /// Postgres had invalidated the slot.
    SlotLost,
}

/// A connection that holds the lock and can stream.
#[derive(Debug)]
pub struct Ready {
    pub client: ReplicationClient,
    /// A SQL connection with the same credentials.
    pub sql: SqlClient,
    pub system_id: u64,
    pub timeline: u32,
    pub server_version: u32,
    pub database_oid: Oid,
    pub backend_pid: u32,
    pub slot: SlotInfo,
    pub publication: PublicationInfo,
    /// Everything whose changes the stream will bring. Ascending.
    pub published: Vec<Oid>,
    pub lineage: Lineage,
    pub history_broken: Option<HistoryBroken>,
}

/// Connects, identifies the server, takes the advisory lock, and sees to the publication and the slot,
/// in this order: nothing is changed before the lock is held.
///
/// # Errors
/// The first step that fails. Dropping the future gives everything back.
pub async fn connect_and_identify(
    settings: &ReplicationSettings,
    notify: &mut (dyn FnMut(StartupNotice) + Send),
) -> Result<Ready, ReplicationError> {
    let sql = connect(&settings.url, &settings.connect).await?;
    let (database_oid, end) = look_at_server(&sql).await?;
    let mut client = ReplicationClient::connect(&settings.url, &settings.connect).await?;
    let identity = client.identify_system().await?;
    let ancestors = ancestors(&mut client, identity.timeline).await?;
    take_lock(&mut client, &sql, &settings.slot, notify).await?;
    let publication = ensure_publication(&sql, &settings.publication).await?;
    let published = published_relations(&sql, &settings.publication).await?;
    let (slot, history_broken) = ensure_slot(&mut client, &sql, settings, publication, notify).await?;
    let lineage = Lineage { ancestors, slot_synced: slot.synced, end, queried: Lsn(0) };
    Ok(Ready {
        system_id: identity.system_id,
        timeline: identity.timeline,
        server_version: sql.server_version(),
        database_oid,
        backend_pid: client.backend_pid(),
        slot,
        publication,
        published,
        lineage,
        history_broken,
        client,
        sql,
    })
}

/// The database, and the end of the log, of a server that can be streamed from.
async fn look_at_server(sql: &SqlClient) -> Result<(Oid, Lsn), ReplicationError> {
    const SQL: &str = "
SELECT current_setting('wal_level'), oid,
       CASE WHEN NOT pg_is_in_recovery() THEN pg_current_wal_insert_lsn()::text END
FROM pg_catalog.pg_database WHERE datname = current_database()";
    let row = sql.query_one(SQL, &[]).await.map_err(PgError::from)?;
    let end: Option<String> = row.try_get(2).map_err(PgError::from)?;
    let Some(end) = end else { return Err(ReplicationError::Standby) };
    let wal_level: String = row.try_get(0).map_err(PgError::from)?;
    if wal_level != "logical" {
        return Err(PgError::new(PgErrorKind::WalLevelNotLogical, wal_level).into());
    }
    let end = end.parse().map_err(|_| PgError::malformed("an LSN in an unknown form"))?;
    Ok((Oid(row.try_get(1).map_err(PgError::from)?), end))
}

async fn ancestors(client: &mut ReplicationClient, timeline: u32) -> Result<Vec<(u32, Lsn)>, PgError> {
    const FIRST_TIMELINE: u32 = 1;
    if timeline <= FIRST_TIMELINE {
        return Ok(Vec::new());
    }
    let history = client.timeline_history(timeline).await?;
    Lineage::parse_history(&history)
        .ok_or_else(|| PgError::malformed("the history of a timeline in an unknown form"))
}

async fn take_lock(
    client: &mut ReplicationClient,
    sql: &SqlClient,
    slot: &str,
    notify: &mut (dyn FnMut(StartupNotice) + Send),
) -> Result<(), PgError> {
    let own_pid = client.backend_pid();
    let mut taken = std::pin::pin!(client.take_lock(slot));
    let mut interval = LOCK_NOTICE_AFTER;
    let mut suspects = Vec::new();
    loop {
        match tokio::time::timeout(interval, &mut taken).await {
            Ok(result) => {
                result?;
                notify(StartupNotice::LockTaken);
                return Ok(());
            }
            Err(_) if interval == LOCK_NOTICE_AFTER => {
                notify(StartupNotice::WaitingForLock);
                interval = notice_interval();
            }
            Err(_) => {
                let idle = idle_holders(sql, slot, own_pid).await?;
                for &pid in idle.iter().filter(|pid| suspects.contains(*pid)) {
                    sql.execute("SELECT pg_terminate_backend($1)", &[&pid]).await?;
                    notify(StartupNotice::HolderTerminated { backend_pid: pid.unsigned_abs() });
                }
                suspects = idle;
            }
        }
    }
}

/// Backends that hold the lock of a slot that nobody streams from. The key of an advisory lock is
/// spread over two columns, its high half first.
async fn idle_holders(sql: &SqlClient, slot: &str, own_pid: u32) -> Result<Vec<i32>, PgError> {
    const SQL: &str = "
SELECT l.pid
FROM pg_catalog.pg_locks l
JOIN pg_catalog.pg_replication_slots s ON s.slot_name = $1 AND NOT s.active
WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1
  AND l.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database())
  AND l.classid = ((hashtext($1)::int8 >> 32) & 4294967295)::oid
  AND l.objid = (hashtext($1)::int8 & 4294967295)::oid
  AND l.pid <> $2";
    let own_pid = i32::try_from(own_pid).unwrap_or_default();
    let mut holders = Vec::new();
    for row in sql.query(SQL, &[&slot, &own_pid]).await? {
        holders.push(row.try_get(0)?);
    }
    Ok(holders)
}

/// Whether somebody holds the advisory lock of a slot: an instance that streams from it, or is about to.
///
/// # Errors
/// Those of the query.
pub async fn is_lock_held(sql: &SqlClient, slot: &str) -> Result<bool, PgError> {
    const SQL: &str = "
SELECT EXISTS (
  SELECT FROM pg_catalog.pg_locks l
  WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1
    AND l.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database())
    AND l.classid = ((hashtext($1)::int8 >> 32) & 4294967295)::oid
    AND l.objid = (hashtext($1)::int8 & 4294967295)::oid)";
    Ok(sql.query_one(SQL, &[&slot]).await?.try_get(0)?)
}

async fn ensure_slot(
    client: &mut ReplicationClient,
    sql: &SqlClient,
    settings: &ReplicationSettings,
    publication: PublicationInfo,
    notify: &mut (dyn FnMut(StartupNotice) + Send),
) -> Result<(SlotInfo, Option<HistoryBroken>), PgError> {
    let name = &settings.slot;
    let broken = match slot::inspect(sql, name).await? {
        Some(info) if info.lost => Some(HistoryBroken::SlotLost),
        Some(_) if publication.created => Some(HistoryBroken::PublicationCreated),
        Some(info) => return Ok((info, None)),
        None => None,
    };
    if broken.is_some() {
        slot::drop_slot(sql, name).await?;
    }
    let mut created = std::pin::pin!(slot::create(
        client,
        name,
        settings.temporary_slot,
        settings.failover,
        sql.server_version(),
    ));
    loop {
        match tokio::time::timeout(notice_interval(), &mut created).await {
            Ok(result) => return Ok((result?, broken)),
            Err(_) => {
                notify(StartupNotice::WaitingForSlot);
                nudge(sql).await?;
            }
        }
    }
}

/// Makes the server write down which transactions run: on an idle one nothing else does, and the slot
/// waits for it. Postgres 16 and later.
async fn nudge(sql: &SqlClient) -> Result<(), PgError> {
    let row = sql
        .query_one("SELECT to_regprocedure('pg_catalog.pg_log_standby_snapshot()') IS NOT NULL", &[])
        .await?;
    if row.try_get(0)? {
        // The role may lack the privilege; then the slot waits for the next checkpoint.
        match sql.execute("SELECT pg_catalog.pg_log_standby_snapshot()", &[]).await.map_err(PgError::from) {
            Err(error) if error.kind() != PgErrorKind::MissingPrivilege => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

//! The replication slot: Postgres keeps the log that it still needs.

use std::time::Duration;

use tokio::time::Instant;

use crate::domain::{Lsn, quote_identifier};
use crate::postgres::{PgError, PgErrorKind, SqlClient};
use crate::replication::ReplicationClient;

/// The walsender of a connection that just broke may hold the slot for a moment.
const DROP_WAIT_MAX: Duration = Duration::from_secs(10);
const DROP_POLL: Duration = Duration::from_millis(100);

/// What Postgres says about a slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotInfo {
    pub name: String,
    /// Transactions whose commit ends at or before this are not sent again.
    pub confirmed_flush: Lsn,
    /// Oldest position of the log that the slot keeps; `None` once it was lost.
    pub restart_lsn: Option<Lsn>,
    /// It was made just now: changes before [`Self::confirmed_flush`] will never come.
    pub created: bool,
    /// Postgres has invalidated it: it can never be streamed from again.
    pub lost: bool,
    /// Some connection streams from it.
    pub active: bool,
    pub temporary: bool,
}

/// Name of the slot of a stream (contract 4.1).
#[must_use]
pub fn slot_name(stream_id: &str) -> String {
    format!("electric_slot_{stream_id}")
}

/// Name of the publication of a stream (contract 4.1).
#[must_use]
pub fn publication_name(stream_id: &str) -> String {
    format!("electric_publication_{stream_id}")
}

/// Columns that differ by version are read by way of JSON: absent ones are NULL.
const INSPECT: &str = "
SELECT s.confirmed_flush_lsn::text, s.restart_lsn::text, s.active, s.temporary,
       coalesce(to_jsonb(s) ->> 'wal_status' = 'lost', false)
         OR to_jsonb(s) ->> 'invalidation_reason' IS NOT NULL
         OR coalesce((to_jsonb(s) ->> 'conflicting')::bool, false)
FROM pg_catalog.pg_replication_slots s
WHERE s.slot_name = $1";

/// # Errors
/// See [`PgErrorKind`].
pub(super) async fn inspect(client: &SqlClient, name: &str) -> Result<Option<SlotInfo>, PgError> {
    let Some(row) = client.query_opt(INSPECT, &[&name]).await? else {
        return Ok(None);
    };
    let lsn = |text: Option<&str>| {
        text.map(str::parse).transpose().map_err(|_| PgError::malformed("an LSN in an unknown form"))
    };
    Ok(Some(SlotInfo {
        name: name.to_owned(),
        confirmed_flush: lsn(row.try_get(0)?)?.unwrap_or_default(),
        restart_lsn: lsn(row.try_get(1)?)?,
        active: row.try_get(2)?,
        temporary: row.try_get(3)?,
        lost: row.try_get(4)?,
        created: false,
    }))
}

/// Makes the slot. Waits until all transactions that run now have ended.
pub(super) async fn create(
    client: &mut ReplicationClient,
    name: &str,
    temporary: bool,
) -> Result<SlotInfo, PgError> {
    let kind = if temporary { " TEMPORARY" } else { "" };
    let sql = format!(
        "CREATE_REPLICATION_SLOT {}{kind} LOGICAL pgoutput NOEXPORT_SNAPSHOT",
        quote_identifier(name)
    );
    let rows = client.simple_query(&sql).await?;
    let consistent_point = rows
        .first()
        .and_then(|row| row.get(1)?.as_deref()?.parse::<Lsn>().ok())
        .ok_or_else(|| PgError::malformed("CREATE_REPLICATION_SLOT answered in another form"))?;
    Ok(SlotInfo {
        name: name.to_owned(),
        confirmed_flush: consistent_point,
        restart_lsn: Some(consistent_point),
        created: true,
        lost: false,
        active: temporary,
        temporary,
    })
}

pub(super) async fn drop_slot(client: &SqlClient, name: &str) -> Result<(), PgError> {
    let give_up = Instant::now() + DROP_WAIT_MAX;
    loop {
        match client.execute("SELECT pg_drop_replication_slot($1)", &[&name]).await.map_err(PgError::from) {
            Ok(_) => return Ok(()),
            Err(error) if error.sqlstate() == Some("42704") => return Ok(()),
            Err(error) if error.kind() == PgErrorKind::SlotInUse && Instant::now() < give_up => {
                tokio::time::sleep(DROP_POLL).await;
            }
            Err(error) => return Err(error),
        }
    }
}

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
    /// It came from another server that this one was a standby of.
    pub synced: bool,
}

/// Whether the slot is made as one that standbys keep in step with, so that the stream goes on after a
/// failover: <https://www.postgresql.org/docs/current/logical-replication-failover.html>.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Failover {
    /// From Postgres 17 on, unless the slot is temporary.
    #[default]
    WherePossible,
    /// Also where Postgres will refuse it.
    Always,
    Never,
}

impl Failover {
    /// `version` is `server_version_num`.
    fn wanted(self, version: u32, temporary: bool) -> bool {
        const FIRST_VERSION: u32 = 170_000;
        match self {
            Failover::WherePossible => version >= FIRST_VERSION && !temporary,
            Failover::Always => true,
            Failover::Never => false,
        }
    }
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
         OR coalesce((to_jsonb(s) ->> 'conflicting')::bool, false),
       coalesce((to_jsonb(s) ->> 'synced')::bool, false)
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
        synced: row.try_get(5)?,
        created: false,
    }))
}

/// A name for a temporary slot that no other process uses (contract 4.1): random.
#[must_use]
pub fn random_slot_name() -> String {
    format!("electric_slot_{:032x}", rand::random::<u128>())
}

/// Makes the slot. Waits until all transactions that run now have ended. `version` is
/// `server_version_num`.
pub(super) async fn create(
    client: &mut ReplicationClient,
    name: &str,
    temporary: bool,
    failover: Failover,
    version: u32,
) -> Result<SlotInfo, PgError> {
    let sql = create_sql(name, temporary, failover.wanted(version, temporary));
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
        synced: false,
    })
}

/// The option of failover needs the syntax in parentheses, which versions before 15 do not know.
fn create_sql(name: &str, temporary: bool, failover: bool) -> String {
    let kind = if temporary { " TEMPORARY" } else { "" };
    let options = if failover { "(SNAPSHOT 'nothing', FAILOVER true)" } else { "NOEXPORT_SNAPSHOT" };
    format!("CREATE_REPLICATION_SLOT {}{kind} LOGICAL pgoutput {options}", quote_identifier(name))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failover_is_asked_for_where_it_exists() {
        for (failover, version, temporary, wanted) in [
            (Failover::WherePossible, 160_009, false, false),
            (Failover::WherePossible, 170_000, false, true),
            (Failover::WherePossible, 180_000, true, false),
            (Failover::Never, 180_000, false, false),
            (Failover::Always, 150_000, false, true),
        ] {
            assert_eq!(failover.wanted(version, temporary), wanted, "{failover:?} {version} {temporary}");
        }
        assert_eq!(
            create_sql("s", false, true),
            "CREATE_REPLICATION_SLOT \"s\" LOGICAL pgoutput (SNAPSHOT 'nothing', FAILOVER true)"
        );
        assert_eq!(
            create_sql("s", true, false),
            "CREATE_REPLICATION_SLOT \"s\" TEMPORARY LOGICAL pgoutput NOEXPORT_SNAPSHOT"
        );
    }

    #[test]
    fn random_names_differ_and_are_names_of_slots() {
        let (one, other) = (random_slot_name(), random_slot_name());
        assert_ne!(one, other);
        assert!(one.len() == "electric_slot_".len() + 32 && one.len() < 64, "{one}");
    }
}

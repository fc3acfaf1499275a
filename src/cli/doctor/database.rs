//! The database: whether it can be reached, what the role may do, and what is set there.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio_postgres::SimpleQueryMessage;

use crate::postgres::{PgError, SqlClient, connect};
use crate::runtime::settings::Settings;

use super::findings::Findings;
use super::slot;

/// `server_version_num` of the oldest version that is supported.
const VERSION_MIN: u32 = 140_000;
/// A difference of the clocks that is worth a word.
const CLOCK_DIFFERENCE_MAX: Duration = Duration::from_secs(2);

/// One row with everything that has one value.
const FACTS: &str = "
SELECT current_setting('wal_level'),
       (SELECT rolreplication OR rolsuper FROM pg_catalog.pg_roles WHERE rolname = current_user)
         OR coalesce((SELECT pg_has_role(current_user, oid, 'member')
                      FROM pg_catalog.pg_roles WHERE rolname = 'rds_replication'), false),
       current_setting('max_replication_slots')::int8,
       (SELECT count(*) FROM pg_catalog.pg_replication_slots),
       current_setting('max_wal_senders')::int8,
       (SELECT count(*) FROM pg_catalog.pg_stat_activity WHERE backend_type = 'walsender'),
       current_setting('max_connections')::int8 - current_setting('superuser_reserved_connections')::int8,
       (SELECT count(*) FROM pg_catalog.pg_stat_activity WHERE backend_type = 'client backend'),
       current_setting('statement_timeout'),
       (extract(epoch FROM clock_timestamp()) * 1000)::int8,
       pg_is_in_recovery(),
       EXISTS (SELECT 1 FROM pg_catalog.pg_stat_ssl WHERE pid = pg_backend_pid() AND ssl)";

/// Looks at all of it; what cannot be asked is a finding, too.
pub(super) async fn look(settings: &Settings, findings: &mut Findings) {
    let client = match connect(&settings.database_url, &settings.connect).await {
        Ok(client) => client,
        Err(error) => {
            findings.problem("connection", error.to_string(), error.remedy());
            return;
        }
    };
    if let Err(error) = facts(settings, &client, findings).await {
        findings.problem("database", error.to_string(), error.remedy());
    }
    if let Err(error) = publication(settings, &client, findings).await {
        findings.problem("publication", error.to_string(), error.remedy());
    }
    if let Err(error) = slot::look(settings, &client, findings).await {
        findings.problem("slot", error.to_string(), error.remedy());
    }
    pooled(settings, &client, findings).await;
}

async fn facts(settings: &Settings, client: &SqlClient, findings: &mut Findings) -> Result<(), PgError> {
    let begun = SystemTime::now();
    let row = client.query_one(FACTS, &[]).await?;
    let took = begun.elapsed().unwrap_or_default();
    let version = client.server_version();
    let encrypted = if row.try_get(11)? { "TLS" } else { "no TLS" };
    let told = format!("Postgres {}.{}, {encrypted}", version / 10_000, version % 10_000);
    if version < VERSION_MIN {
        findings.problem("connection", told, "Use Postgres 14 or later.");
    } else {
        findings.good("connection", told);
    }
    match row.try_get::<_, String>(0)?.as_str() {
        "logical" => findings.good("wal_level", "logical"),
        other => {
            let remedy = "Set wal_level = logical and restart Postgres.";
            findings.problem("wal_level", format!("it is {other}"), remedy);
        }
    }
    if row.try_get(1)? {
        findings.good("role", "it may replicate");
    } else {
        let remedy = format!("Run ALTER ROLE {} WITH REPLICATION.", settings.database_url.user());
        findings.problem("role", "it may not replicate", remedy);
    }
    if row.try_get(10)? {
        let remedy = "Point DATABASE_URL at the primary: publications cannot be changed on a standby.";
        findings.problem("database", "it is a standby", remedy);
    }
    room(&row, settings, findings)?;
    let timeout: String = row.try_get(8)?;
    if timeout != "0" {
        let message = format!("statement_timeout of the role is {timeout}: longer snapshots are cancelled");
        let remedy = format!("Run ALTER ROLE {} SET statement_timeout = 0.", settings.database_url.user());
        findings.warning("role", message, remedy);
    }
    clock(row.try_get(9)?, begun, took, findings);
    Ok(())
}

/// Room for one more slot, walsender and our connections.
fn room(row: &tokio_postgres::Row, settings: &Settings, findings: &mut Findings) -> Result<(), PgError> {
    let number = |index: usize| -> Result<i64, PgError> { Ok(row.try_get(index)?) };
    let slots = number(2)? - number(3)?;
    if slots > 0 {
        findings.good("slots", format!("{slots} of max_replication_slots are free"));
    } else {
        let remedy = "Raise max_replication_slots, unless the slot of this service is among them.";
        findings.warning("slots", "all of max_replication_slots are in use", remedy);
    }
    let senders = number(4)? - number(5)?;
    if senders > 0 {
        findings.good("walsenders", format!("{senders} of max_wal_senders are free"));
    } else {
        let remedy = "Raise max_wal_senders, unless this service is among them.";
        findings.warning("walsenders", "all of max_wal_senders are in use", remedy);
    }
    let (free, wanted) = (number(6)? - number(7)?, i64::try_from(settings.pool_size).unwrap_or(i64::MAX));
    let message = format!("{free} connections are free, ELECTRIC_DB_POOL_SIZE is {wanted}");
    if free >= wanted {
        findings.good("connections", message);
    } else {
        findings.warning("connections", message, "Raise max_connections or lower ELECTRIC_DB_POOL_SIZE.");
    }
    Ok(())
}

/// Theirs was read somewhere between our two.
fn clock(theirs_millis: i64, begun: SystemTime, took: Duration, findings: &mut Findings) {
    let ours = begun.duration_since(UNIX_EPOCH).unwrap_or_default();
    let theirs = Duration::from_millis(u64::try_from(theirs_millis).unwrap_or(0));
    let difference = theirs.abs_diff(ours).saturating_sub(took);
    if difference > CLOCK_DIFFERENCE_MAX {
        let message = format!("it differs from that of Postgres by {} ms", difference.as_millis());
        findings.warning("clock", message, "Run a time service on both hosts: lags are told wrongly.");
    } else {
        findings.good("clock", format!("within {} ms of that of Postgres", CLOCK_DIFFERENCE_MAX.as_millis()));
    }
}

async fn publication(
    settings: &Settings,
    client: &SqlClient,
    findings: &mut Findings,
) -> Result<(), PgError> {
    const SQL: &str = "
SELECT pg_has_role(current_user, pubowner, 'USAGE'), pubinsert AND pubupdate AND pubdelete AND pubtruncate
FROM pg_catalog.pg_publication WHERE pubname = $1";
    let name = settings.publication();
    let Some(row) = client.query_opt(SQL, &[&name]).await? else {
        let may = "SELECT has_database_privilege(current_database(), 'CREATE')";
        if client.query_one(may, &[]).await?.try_get(0)? {
            findings.good("publication", format!("{name} will be made"));
        } else {
            let remedy = format!(
                "Run CREATE PUBLICATION {name}, or grant the role CREATE on the database {}.",
                settings.database_url.database()
            );
            findings.problem("publication", format!("there is no {name} and it cannot be made"), remedy);
        }
        return Ok(());
    };
    let (owned, complete): (bool, bool) = (row.try_get(0)?, row.try_get(1)?);
    if !complete {
        let remedy = format!("ALTER PUBLICATION {name} SET (publish = 'insert, update, delete, truncate').");
        findings.problem("publication", format!("{name} does not publish all operations"), remedy);
    } else if owned || settings.manual_publishing {
        findings.good("publication", format!("{name} is there"));
    } else {
        let remedy =
            "Make the role its owner, or set ELECTRIC_MANUAL_TABLE_PUBLISHING and add tables by hand.";
        findings.warning("publication", format!("{name} belongs to another role"), remedy);
    }
    tables(settings, client, &name, findings).await
}

async fn tables(
    settings: &Settings,
    client: &SqlClient,
    publication: &str,
    findings: &mut Findings,
) -> Result<(), PgError> {
    const SQL: &str = "
SELECT c.oid::regclass::text, c.relreplident = 'f', pg_has_role(current_user, c.relowner, 'USAGE')
FROM pg_catalog.pg_publication p
JOIN pg_catalog.pg_publication_rel r ON r.prpubid = p.oid
JOIN pg_catalog.pg_class c ON c.oid = r.prrelid
WHERE p.pubname = $1 AND (c.relreplident <> 'f' OR NOT pg_has_role(current_user, c.relowner, 'USAGE'))
  AND c.relkind = 'r'
ORDER BY 1 LIMIT 20";
    let rows = client.query(SQL, &[&publication]).await?;
    if rows.is_empty() {
        findings.good("tables", "those that are published have REPLICA IDENTITY FULL and the right owner");
    }
    for row in rows {
        let (table, full, owned): (String, bool, bool) = (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
        if !full {
            let remedy = format!("Run ALTER TABLE {table} REPLICA IDENTITY FULL.");
            let message = format!("{table} is published without REPLICA IDENTITY FULL");
            if owned && !settings.manual_publishing {
                findings.warning("tables", message, format!("{remedy} The first request would do so, too."));
            } else {
                findings.problem("tables", message, remedy);
            }
        } else if !owned && !settings.manual_publishing {
            let remedy = "Make the role its owner, or set ELECTRIC_MANUAL_TABLE_PUBLISHING.";
            findings.warning("tables", format!("{table} belongs to another role"), remedy);
        }
    }
    Ok(())
}

/// The first value of an answer.
fn one(answer: &[SimpleQueryMessage]) -> Option<&str> {
    answer.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0),
        _ => None,
    })
}

/// The connection for rows: the same database, perhaps by way of a pooler.
async fn pooled(settings: &Settings, direct: &SqlClient, findings: &mut Findings) {
    if settings.query_url == settings.database_url {
        return;
    }
    const WHO: &str = "SELECT current_database() || ' ' || (SELECT oid FROM pg_catalog.pg_database
        WHERE datname = current_database())::text || ' ' || current_setting('server_version_num')";
    const SNAPSHOT: &str =
        "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SELECT pg_current_snapshot(); ROLLBACK";
    let remedy = "Point ELECTRIC_POOLED_DATABASE_URL at the database of DATABASE_URL, on a primary.";
    let pooled = async {
        let client = connect(&settings.query_url, &settings.connect).await?;
        client.simple_query(SNAPSHOT).await?;
        // Nothing is prepared: a pooler may have another connection execute it.
        Ok::<bool, PgError>(one(&client.simple_query(WHO).await?) == one(&direct.simple_query(WHO).await?))
    };
    match pooled.await {
        Ok(true) => findings.good("pooled URL", "it leads to the same database"),
        Ok(false) => findings.problem("pooled URL", "it leads to another database", remedy),
        Err(error) => findings.problem("pooled URL", error.to_string(), error.remedy()),
    }
}

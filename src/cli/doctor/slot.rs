//! The replication slot: what Postgres keeps for the service, and how long it still will.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::domain::Timestamp;
use crate::inspect::Source;
use crate::journal::OfflineJournal;
use crate::postgres::{PgError, SqlClient};
use crate::projections::forensics::Position;
use crate::projections::{FlushTracker, Projection};
use crate::runtime::clock;
use crate::runtime::settings::Settings;
use crate::state::State;

use super::findings::{Findings, bytes};

/// How long the log is watched to learn how fast it grows.
const WATCHED: Duration = Duration::from_secs(1);
/// So much kept log is worth a word.
const RETAINED_WANTED: i64 = 1 << 30;
const FAILOVER_VERSION: u32 = 170_000;
/// A shape that has owed for so long is worth a word.
const HELD_WANTED: Duration = Duration::from_secs(10);
/// Shapes that are named.
const HOLDERS_MAX: usize = 5;

/// Columns that differ by version are read by way of JSON: absent ones are NULL.
const SQL: &str = "
SELECT plugin, database = current_database(), active_pid,
       (pg_current_wal_lsn() - restart_lsn)::int8, (pg_current_wal_lsn() - confirmed_flush_lsn)::int8,
       wal_status, safe_wal_size,
       to_jsonb(s) ->> 'invalidation_reason', coalesce((to_jsonb(s) ->> 'failover')::bool, false)
FROM pg_catalog.pg_replication_slots s WHERE slot_name = $1";

struct Slot {
    plugin: String,
    ours: bool,
    active_pid: Option<i32>,
    retained: Option<i64>,
    behind: Option<i64>,
    wal_status: Option<String>,
    safe: Option<i64>,
    invalidated: Option<String>,
    failover: bool,
}

/// Looks at the slot, and at the limit that Postgres has for slots.
pub(super) async fn look(
    settings: &Settings,
    client: &SqlClient,
    findings: &mut Findings,
) -> Result<(), PgError> {
    let limit: String =
        client.query_one("SELECT current_setting('max_slot_wal_keep_size')", &[]).await?.try_get(0)?;
    let unlimited = limit == "-1";
    if unlimited {
        findings.warning(
            "slot limit",
            "max_slot_wal_keep_size is -1: a service that is away for long fills the disk of Postgres",
            "Set max_slot_wal_keep_size to what the disk can spare; shapes start over where it is reached.",
        );
    } else {
        findings.good("slot limit", format!("max_slot_wal_keep_size is {limit}"));
    }
    let idle: Option<String> = client
        .query_one("SELECT nullif(current_setting('idle_replication_slot_timeout', true), '0')", &[])
        .await?
        .try_get(0)?;
    if let Some(idle) = idle.filter(|idle| !idle.is_empty()) {
        findings.warning(
            "slot limit",
            format!("idle_replication_slot_timeout is {idle}: a slot that nobody reads from is invalidated"),
            "Set it to 0, or keep the service running: shapes start over where it strikes.",
        );
    }
    if settings.temporary_slot {
        findings.good("slot", "a temporary one is made for each connection");
        return Ok(());
    }
    let name = settings.slot();
    let Some(row) = client.query_opt(SQL, &[&name]).await? else {
        findings.good("slot", format!("{name} will be made"));
        return Ok(());
    };
    let slot = Slot {
        plugin: row.try_get::<_, Option<String>>(0)?.unwrap_or_default(),
        ours: row.try_get::<_, Option<bool>>(1)?.unwrap_or(false),
        active_pid: row.try_get(2)?,
        retained: row.try_get(3)?,
        behind: row.try_get(4)?,
        wal_status: row.try_get(5)?,
        safe: row.try_get(6)?,
        invalidated: row.try_get(7)?,
        failover: row.try_get(8)?,
    };
    describe(&name, &slot, client.server_version(), findings);
    if let Some(held) = held_by(&settings.data_dir) {
        findings.warning(
            "slot",
            held,
            "See `shapefold journal holding` for each; one that never gets on can be ended with DELETE /v1/shape.",
        );
    }
    if let (false, Some(safe)) = (unlimited, slot.safe) {
        time_left(client, safe, findings).await?;
    }
    Ok(())
}

/// The shapes that hold the log of Postgres, by what the journal says. `None` where none has done so for long, or
/// where no journal can be read: the look at the directory tells about that.
fn held_by(data_dir: &Path) -> Option<String> {
    let journal = Arc::new(OfflineJournal::open(data_dir).ok()?);
    let state = Source::over(journal, Vec::new()).fold(Position::End);
    name_holders(&state, clock::now())
}

fn name_holders(state: &State, now: Timestamp) -> Option<String> {
    let tracker = FlushTracker::recompute(state);
    let mut holders = tracker.blockers().filter_map(|(_, sid)| {
        let shape = state.shape(sid)?;
        let waiting = now.since(shape.progressed_at);
        (waiting >= HELD_WANTED).then(|| format!("{} for {} s", shape.handle, waiting.as_secs()))
    });
    let named: Vec<String> = holders.by_ref().take(HOLDERS_MAX).collect();
    let more = holders.count();
    let others = if more > 0 { format!(" and {more} more") } else { String::new() };
    let named = (!named.is_empty()).then(|| named.join(", "))?;
    Some(format!("its log is held by shapes that owe a transaction: {named}{others}"))
}

fn describe(name: &str, slot: &Slot, version: u32, findings: &mut Findings) {
    if slot.plugin != "pgoutput" || !slot.ours {
        let remedy = "Drop it, or choose another ELECTRIC_REPLICATION_STREAM_ID.";
        findings.problem("slot", format!("{name} is of another database or plugin"), remedy);
        return;
    }
    let lost = slot.wal_status.as_deref() == Some("lost") || slot.invalidated.is_some();
    if lost {
        let reason = slot.invalidated.as_deref().unwrap_or("its log is gone");
        let remedy = "Raise max_slot_wal_keep_size. The service makes it anew, and every shape starts over.";
        findings.warning("slot", format!("{name} was invalidated: {reason}"), remedy);
        return;
    }
    let size = |number: Option<i64>| bytes(u64::try_from(number.unwrap_or(0)).unwrap_or(0));
    let message = format!(
        "{name}: {} kept, {} not flushed, {}",
        size(slot.retained),
        size(slot.behind),
        match slot.active_pid {
            Some(pid) => format!("in use by backend {pid}"),
            None => "in use by nobody".to_owned(),
        }
    );
    if slot.retained.unwrap_or(0) > RETAINED_WANTED {
        let remedy = "Start the service; where it runs, /v1/ready and `shapefold journal` say what holds it.";
        findings.warning("slot", message, remedy);
    } else {
        findings.good("slot", message);
    }
    if version >= FAILOVER_VERSION && !slot.failover {
        let remedy =
            format!("Run ALTER_REPLICATION_SLOT {name} (FAILOVER true) over a replication connection.");
        findings.warning("slot", "standbys do not keep it: a failover makes every shape start over", remedy);
    }
}

/// How long until Postgres may throw away what the slot needs, were the service to stop now.
async fn time_left(client: &SqlClient, safe: i64, findings: &mut Findings) -> Result<(), PgError> {
    const END: &str = "SELECT pg_current_wal_lsn()::text";
    // The difference is small, the positions may be beyond what is signed.
    const GROWTH: &str = "SELECT (pg_current_wal_lsn() - $1::text::pg_lsn)::int8";
    let before: String = client.query_one(END, &[]).await?.try_get(0)?;
    tokio::time::sleep(WATCHED).await;
    let growth: i64 = client.query_one(GROWTH, &[&before]).await?.try_get(0)?;
    let rate = growth as f64 / WATCHED.as_secs_f64();
    let message = format!("{} may come before it is reached", bytes(u64::try_from(safe).unwrap_or(0)));
    if rate <= 0.0 {
        findings.good("slot limit", format!("{message}; nothing is written at the moment"));
        return Ok(());
    }
    let seconds = safe.max(0) as f64 / rate;
    let message = format!("{message}: {:.0} min at the present rate", seconds / 60.0);
    if seconds < 3_600.0 {
        findings.warning(
            "slot limit",
            message,
            "Raise max_slot_wal_keep_size, or see to it that the slot moves.",
        );
    } else {
        findings.good("slot limit", message);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::doctor::findings::Level;

    fn slot() -> Slot {
        Slot {
            plugin: "pgoutput".to_owned(),
            ours: true,
            active_pid: None,
            retained: Some(100),
            behind: Some(0),
            wal_status: Some("reserved".to_owned()),
            safe: None,
            invalidated: None,
            failover: true,
        }
    }

    #[test]
    fn the_shapes_that_hold_the_log_are_named() {
        use crate::domain::{DefinitionHash, Epoch, EventId, Generation, Handle, Lsn, Oid, Seq, Sid, Xid};
        use crate::events::{Event, Recorded, ShapeEvent, StreamEvent};
        let begun = Timestamp(1_000_000_000);
        let mut state = State::default();
        let mut take = |event: Event| {
            let id = state.last.next();
            state.apply(&Recorded { id, at: begun, epoch: Epoch(1), because: None::<EventId>, event });
            state.clone()
        };
        for number in 1..=7 {
            let (sid, handle) = (Sid(number), Handle { hash: 9, micros: u64::from(number) });
            let (definition, oid) = (DefinitionHash(1), Oid(5));
            take(ShapeEvent::Created { sid, handle, definition, oid }.into());
            take(ShapeEvent::Routed { sid, after: Seq(0), after_lsn: Lsn(0) }.into());
        }
        let routed = StreamEvent::TxnRouted {
            seq: Seq(1),
            generation: Generation(1),
            lsn: Lsn(100),
            xid: Xid(7),
            committed_at: begun,
            changes: 1,
            bytes: 1,
            set: (1..=7).map(Sid).collect(),
        };
        let state = take(routed.into());
        assert_eq!(name_holders(&state, begun.plus(Duration::from_secs(9))), None);
        assert_eq!(
            name_holders(&state, begun.plus(Duration::from_secs(61))).as_deref(),
            Some(
                "its log is held by shapes that owe a transaction: 9-1 for 61 s, 9-2 for 61 s, 9-3 for 61 s, \
                 9-4 for 61 s, 9-5 for 61 s and 2 more"
            )
        );
    }

    #[test]
    fn what_is_wrong_with_a_slot_is_said() {
        let check = |slot: Slot, version: u32| {
            let mut findings = Findings::default();
            describe("s", &slot, version, &mut findings);
            (findings.worst(), findings.to_string())
        };
        assert_eq!(check(slot(), 170_000).0, Level::Good);
        assert_eq!(check(Slot { failover: false, ..slot() }, 160_000).0, Level::Good);
        for (slot, level, part) in [
            (Slot { failover: false, ..slot() }, Level::Warning, "a failover makes every shape start over"),
            (Slot { ours: false, ..slot() }, Level::Problem, "another database"),
            (Slot { plugin: "wal2json".to_owned(), ..slot() }, Level::Problem, "plugin"),
            (Slot { wal_status: Some("lost".to_owned()), ..slot() }, Level::Warning, "its log is gone"),
            (
                Slot { invalidated: Some("wal_removed".to_owned()), ..slot() },
                Level::Warning,
                "was invalidated: wal_removed",
            ),
            (Slot { retained: Some(5 << 30), ..slot() }, Level::Warning, "5.0 GiB kept"),
        ] {
            let (worst, text) = check(slot, 170_000);
            assert_eq!(worst, level, "{text}");
            assert!(text.contains(part), "{part}: {text}");
        }
    }
}

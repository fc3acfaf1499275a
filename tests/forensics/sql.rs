//! The journal as tables: the same figures as everywhere, and nothing but reading.

use std::fs;

use crate::figures::{run, text};
use crate::golden;

fn rows(journal: &str, query: &str) -> Vec<serde_json::Value> {
    let lines = text(&["sql", journal, query, "--json"]);
    lines.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

#[test]
fn the_tables_have_the_figures() {
    let moment = rows("edison.sfx", "SELECT * FROM moment");
    assert_eq!(moment[0]["gap_bytes"], 1_574_459_193_u64);
    assert_eq!((&moment[0]["shapes"], &moment[0]["owing"]), (&40.into(), &33.into()));
    let stuck = rows(
        "edison.sfx",
        "SELECT oldest_seq, last_exit_cause, count(*) AS shapes, max(held_bytes) AS held, \
         sum(flushed_nothing) AS silent, min(idle_s) AS idle FROM flush WHERE stuck GROUP BY 1, 2",
    );
    let row = &stuck[0];
    assert_eq!(stuck.len(), 1);
    assert_eq!((&row["oldest_seq"], &row["shapes"], &row["silent"]), (&33.into(), &33.into(), &2.into()));
    assert_eq!(row["held"], 1_574_459_193_u64);
    assert!(row["idle"].as_f64().is_some_and(|idle| idle > 18_000.0), "{row}");
    let exits = "SELECT count(*) AS n FROM events WHERE kind = 'ConsumerExited' AND cause = 'Drained' \
                 AND json_extract(fields, '$.pending_oldest') = 33";
    assert_eq!(rows("edison.sfx", exits)[0]["n"], 33);
    let dead = "SELECT count(*) AS n FROM consumers WHERE NOT live AND pending > 0 AND last_exit_cause = 'Suspended'";
    assert_eq!(rows("faraday.sfx", dead)[0]["n"], 402);
    let acks = "SELECT count(*) AS n, sum(safe) AS safe FROM acks";
    assert_eq!(rows("edison.sfx", acks)[0]["n"], 32);
    assert_eq!(rows("edison.sfx", acks)[0]["safe"], 32);
    let owners =
        rows("ampere.sfx", "SELECT host, ended, events_beside_another AS beside FROM owners ORDER BY epoch");
    assert_eq!((&owners[0]["ended"], &owners[0]["beside"]), (&"overlapped".into(), &6.into()));
    assert_eq!(owners[1]["ended"], serde_json::Value::Null);
    let window = rows("edison.sfx", "SELECT seq, owed_by, routed_to FROM transactions ORDER BY seq LIMIT 1");
    assert_eq!((&window[0]["seq"], &window[0]["owed_by"]), (&33.into(), &33.into()));
}

/// A place is a place here, too: the state there, and nothing that came later.
#[test]
fn a_query_at_an_earlier_place() {
    let gap = |at: &str| {
        let lines = text(&["sql", "faraday.sfx", "SELECT gap_bytes FROM moment", "--at", at]);
        lines.lines().last().expect("a row").to_owned()
    };
    assert_eq!(gap("2026-03-24T09:00:00Z"), "15918220025");
    assert_eq!(gap("end"), "17212350577");
    let events = text(&["sql", "edison.sfx", "SELECT max(id) FROM events", "--at", "1/F827A8C7", "--csv"]);
    assert_eq!(events, "max(id)\n422\n");
}

#[test]
fn three_forms_of_the_same_answer() {
    let query = "SELECT sid, handle || ',\"x\"' AS odd, NULL AS none FROM shapes WHERE sid = 1";
    let handle = "10000019-1773922140000000";
    let table = text(&["sql", "edison.sfx", query]);
    assert_eq!(table, format!("sid  odd                            none\n1    {handle},\"x\"\n"));
    assert_eq!(
        text(&["sql", "edison.sfx", query, "--csv"]),
        format!("sid,odd,none\n1,\"{handle},\"\"x\"\"\",\n")
    );
    assert_eq!(rows("edison.sfx", query)[0]["none"], serde_json::Value::Null);
    assert_eq!(text(&["sql", "edison.sfx", "SELECT sid FROM shapes WHERE sid = 0", "--csv"]), "sid\n");
    let tables = text(&["sql", "edison.sfx"]);
    assert!(tables.lines().count() == 16 && tables.contains("last_exit_cause"), "{tables}");
}

#[test]
fn a_query_cannot_write() {
    let place = tempfile::tempdir().expect("a directory");
    let target = place.path().join("stolen.sqlite");
    let attach = format!("ATTACH '{}' AS x", target.display());
    let vacuum = format!("VACUUM INTO '{}'", target.display());
    for query in [
        attach.as_str(),
        &vacuum,
        "DELETE FROM events",
        "PRAGMA query_only = 0",
        "SELECT 1; DELETE FROM events",
    ] {
        let output = run(&["sql", "edison.sfx", query]);
        assert!(!output.status.success() && output.stdout.is_empty(), "{query}");
    }
    assert!(!target.exists());
}

/// The file is a database for any program that reads SQLite, and nothing that is there is overwritten.
#[test]
fn an_export_is_a_database() {
    let place = tempfile::tempdir().expect("a directory");
    let path = place.path().join("edison.sqlite");
    let target = path.to_str().expect("text");
    let said = text(&["export", "edison.sfx", "--sqlite", target, "--from", "2026-03-20T02:00:00Z"]);
    assert!(said.starts_with("125 events in "), "{said}");
    let database = rusqlite::Connection::open(&path).expect("opens");
    let one = |query: &str| database.query_row(query, [], |row| row.get::<_, i64>(0)).expect("answers");
    assert_eq!(one("SELECT count(*) FROM events"), 125);
    assert_eq!(one("SELECT min(id) FROM events"), 353);
    assert_eq!(one("SELECT count(*) FROM flush WHERE stuck"), 33);
    assert_eq!(one("SELECT count(*) FROM shapes"), 40);
    assert_eq!(one("SELECT count(*) FROM owners"), 1);
    drop(database);
    let before = fs::read(&path).expect("reads");
    assert!(!run(&["export", "edison.sfx", "--sqlite", target]).status.success());
    assert!(fs::read(&path).expect("reads") == before);
    assert!(golden::directory().join("edison.sfx").exists());
}

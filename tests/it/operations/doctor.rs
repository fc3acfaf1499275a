//! `shapefold doctor`: says what is wrong and what to do, and changes nothing.

use serde_json::Value;

use super::{shapefold, text};
use crate::support::{Service, TestDatabase, database};

struct Diagnosis {
    code: Option<i32>,
    report: Value,
}

impl Diagnosis {
    /// The levels and messages of one check.
    fn of(&self, check: &str) -> Vec<(String, String)> {
        let findings = self.report["findings"].as_array().expect("findings");
        let found = findings.iter().filter(|finding| finding["check"] == check);
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        found.map(|finding| (text(&finding["level"]), text(&finding["message"]))).collect()
    }

    fn says(&self, check: &str, level: &str, part: &str) {
        let found = self.of(check);
        assert!(
            found.iter().any(|(told, message)| told == level && message.contains(part)),
            "{check} {level} {part:?} is not in {:#}",
            self.report
        );
    }
}

/// Asks the doctor about a service of this database, as it would be started.
fn diagnose(database: &TestDatabase, url: &str, data_dir: &str, more: &[(&str, &str)]) -> Diagnosis {
    let mut environment = vec![
        ("DATABASE_URL", url),
        ("ELECTRIC_STORAGE_DIR", data_dir),
        ("ELECTRIC_REPLICATION_STREAM_ID", database.name.as_str()),
        ("ELECTRIC_INSECURE", "true"),
    ];
    environment.extend(more);
    let output = shapefold(&["doctor", "--json"], &environment);
    let report =
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {}", text(&output)));
    Diagnosis { code: output.status.code(), report }
}

#[tokio::test]
async fn a_service_that_would_work() {
    let database = database("doctor").await;
    let folder = tempfile::tempdir().expect("a temporary folder");
    let data_dir = folder.path().join("data/deeper");
    let data_dir = data_dir.to_str().expect("a plain name");
    let before = diagnose(&database, &database.url, data_dir, &[]);
    assert!(before.code < Some(2), "{:#}", before.report);
    for (check, part) in [
        ("connection", "Postgres"),
        ("wal_level", "logical"),
        ("role", "may replicate"),
        ("publication", "will be made"),
        ("slot", "will be made"),
        ("directory", "will be made"),
        ("sync", "a sync of 4 KiB"),
        ("clock", "within"),
        ("settings", "every variable"),
    ] {
        before.says(check, "good", part);
    }
    before.says("slot limit", "warning", "max_slot_wal_keep_size is -1");
    assert!(!folder.path().join("data").exists(), "nothing was made");
    let slots = "SELECT count(*) FROM pg_replication_slots WHERE database = current_database()";
    assert_eq!(database.value(slots).await.as_deref(), Some("0"));

    // While a service runs.
    let service = Service::start(&database, |_| {}).await;
    let running = service.data_dir().to_str().expect("a plain name").to_owned();
    let pooled = [("ELECTRIC_POOLED_DATABASE_URL", database.url.replace("postgresql://", "postgres://"))];
    let pooled: Vec<(&str, &str)> = pooled.iter().map(|(name, url)| (*name, url.as_str())).collect();
    let beside = diagnose(&database, &database.url, &running, &pooled);
    beside.says("directory", "warning", "a service runs on it");
    beside.says("slot", "good", "in use by backend");
    beside.says("publication", "good", "is there");
    assert_eq!(service.get("/v1/health").await.status, 200, "it was not disturbed");
}

#[tokio::test]
async fn what_is_wrong_is_named_with_its_remedy() {
    let database = database("sick").await;
    let user = format!("{}_user", database.name);
    database
        .execute(&format!(
            "CREATE ROLE {user} LOGIN PASSWORD 'marker-password';
             ALTER ROLE {user} SET statement_timeout = '10s';
             CREATE TABLE bare (id int PRIMARY KEY); CREATE PUBLICATION electric_publication_{} FOR TABLE bare",
            database.name
        ))
        .await;
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("file");
    std::fs::write(&file, "no directory").expect("the folder is ours");
    let data_dir = file.to_str().expect("a plain name");
    let other = database_url_of_another(&database).await;
    let found = diagnose(
        &database,
        &database.url_as(&user, "marker-password"),
        data_dir,
        &[
            ("ELECTRIC_POOLED_DATABASE_URL", other.url.as_str()),
            ("ELECTRIC_MAX_CONCURRENT_REQUESTS", r#"{"existing":100000000}"#),
        ],
    );
    assert_eq!(found.code, Some(2), "{:#}", found.report);
    found.says("role", "problem", "may not replicate");
    found.says("role", "warning", "statement_timeout of the role is 10s");
    found.says("publication", "warning", "belongs to another role");
    found.says("tables", "problem", "bare is published without REPLICA IDENTITY FULL");
    found.says("pooled URL", "problem", "another database");
    found.says("directory", "problem", "cannot be looked at");
    found.says("open files", "warning", "files can be open at once");
    let findings = found.report["findings"].as_array().expect("findings");
    for finding in findings.iter().filter(|finding| finding["level"] != "good") {
        assert!(finding["remedy"].as_str().is_some_and(|remedy| remedy.ends_with('.')), "{finding}");
    }
    assert!(!found.report.to_string().contains("marker-password"));
    let output = shapefold(
        &["doctor"],
        &[("DATABASE_URL", "postgresql://u:marker-password@127.0.0.1:1/d"), ("ELECTRIC_INSECURE", "true")],
    );
    let lines = text(&output);
    assert_eq!(output.status.code(), Some(2), "{lines}");
    assert!(
        lines.contains("PROBLEM connection") && lines.contains("→ Check that the database is running"),
        "{lines}"
    );
    assert!(!lines.contains("marker-password"), "{lines}");
    let output = shapefold(&["doctor"], &[("DATABASE_URL", "postgresql://u@127.0.0.1:1/d")]);
    assert!(text(&output).contains("PROBLEM settings     set ELECTRIC_SECRET"), "{}", text(&output));
    database.execute(&format!("DROP OWNED BY {user} CASCADE; DROP ROLE {user}")).await;
}

async fn database_url_of_another(_this: &TestDatabase) -> TestDatabase {
    database("otherone").await
}

/// A slot that nobody reads from, with a limit and without.
#[tokio::test]
async fn a_slot_that_waits_is_measured() {
    let database = database("waiting").await;
    let mut service = Service::start(&database, |_| {}).await;
    assert!(service.terminate().await, "{}", service.output());
    let data_dir = service.data_dir().to_str().expect("a plain name").to_owned();
    let found = diagnose(&database, &database.url, &data_dir, &[]);
    found.says("slot", "good", "in use by nobody");
    found.says("directory", "good", "no service runs on it");
    assert!(found.code < Some(2), "{:#}", found.report);
}

//! The service as a whole: what goes wrong around it, how it recovers, what it says.

mod compaction;
mod constructs;
mod evaluation;
mod failing_disk;
mod faults;
mod findings;
mod handover;
mod history;
mod http;
mod http_encoding;
mod http_limits;
mod http_live;
mod http_log;
mod liveness;
mod ownership;
mod partitions;
mod quarantine;
mod restart;
mod schema_changes;
mod slow_readers;
mod snapshot_failures;
mod snapshot_stitching;
mod standby;
mod supervision;
mod values;
mod versions;
mod where_clauses;

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio_postgres::Client;

use crate::support::{
    BINARY, ClientError, Installation, MAJOR_VARIABLE, Process, Response, Server, Service, ShapeClient,
    Table, TestDatabase, WAIT_DURATION_MAX, database_on, difference, rows_in_postgres,
};

/// Between two looks at something that is waited for.
const POLL: Duration = Duration::from_millis(25);

/// Shapes have files of their own from the start, for tests that look for those.
const OWN_FILES: (&str, &str) = ("SHAPEFOLD_PACK_SMALL_SHAPES", "false");
/// Small shapes share files.
const PACKED: (&str, &str) = ("SHAPEFOLD_PACK_SMALL_SHAPES", "true");

pub(crate) const ITEMS: Table = Table { name: "items", primary_key: &["id"] };

/// Asks again and again until there is an answer; fails with what was waited for.
pub(crate) async fn until<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + WAIT_DURATION_MAX;
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(Instant::now() < deadline, "not within {WAIT_DURATION_MAX:?}: {what}");
        tokio::time::sleep(POLL).await;
    }
}

/// Follows the shape until the client's rows equal those of Postgres. The table must be at rest.
pub(crate) async fn catch_up(client: &mut ShapeClient, table: &Table, postgres: &Client) {
    let expected = rows_in_postgres(postgres, table, client.request()).await.expect("rows of the table");
    let deadline = Instant::now() + WAIT_DURATION_MAX;
    loop {
        match client.sync().await {
            Ok(()) | Err(ClientError::Unavailable(_)) => {}
            Err(error) => panic!("{error}"),
        }
        let Some(different) = difference(client.rows(), &expected) else { break };
        assert!(Instant::now() < deadline, "{:?}: {different}", client.request());
        tokio::time::sleep(POLL).await;
    }
    assert_eq!(client.anomaly_count(), 0, "{:?}", client.anomalies());
}

/// Rows of that request right now, by a client that starts from nothing.
pub(crate) async fn fresh(service: &Service, like: &ShapeClient) -> ShapeClient {
    let mut client = service.follow(like.request().clone());
    client.sync().await.expect("a fresh client is served");
    client
}

pub(crate) fn handle(client: &ShapeClient) -> String {
    client.handle().expect("the client has synced").to_owned()
}

/// `shapefold journal tail` on the data of a service that does not run.
pub(crate) fn journal_tail(data_dir: &Path, arguments: &[&str]) -> String {
    let output = Command::new(BINARY).args(["journal", "tail"]).arg(data_dir).args(arguments).output();
    let output = output.expect("the binary runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{}: {}", output.status, String::from_utf8_lossy(&output.stderr));
    text
}

/// `shapefold journal verify` on the data of a service that does not run: no violation, no damage.
pub(crate) fn journal_is_sound(data_dir: &Path) {
    let verified = crate::support::journal::verify(Path::new(BINARY), data_dir);
    verified.unwrap_or_else(|error| panic!("{error}"));
}

/// How far the slot of this test's service has been acknowledged.
async fn acknowledged(database: &TestDatabase, postgres: &Client) -> u64 {
    let slot = format!("electric_slot_{}", database.name);
    let row = postgres
        .query_one(
            "SELECT (confirmed_flush_lsn - '0/0'::pg_lsn)::int8 FROM pg_replication_slots WHERE slot_name = $1",
            &[&slot],
        )
        .await
        .expect("the slot exists");
    row.get::<_, i64>(0).cast_unsigned()
}

async fn current_lsn(postgres: &Client) -> u64 {
    let row = postgres.query_one("SELECT (pg_current_wal_lsn() - '0/0'::pg_lsn)::int8", &[]).await;
    row.expect("Postgres answers").get::<_, i64>(0).cast_unsigned()
}

/// Waits for a health answer that satisfies; its message.
pub(crate) async fn health_message(process: &mut Process, status: &str, part: &str) -> String {
    until(&format!("health is {status} and says {part:?}"), async || {
        let answer = process.health_answer().await?;
        let body = answer.json();
        let message = body["message"].as_str()?.to_owned();
        (answer.status == 202 && body["status"] == *status && message.contains(part)).then_some(message)
    })
    .await
}

fn errors(response: &Response, field: &str) -> Value {
    assert_eq!(response.status, 400, "{}", response.text());
    response.json()["errors"][field].clone()
}

/// A Postgres of the test's own, which can be stopped and reconfigured.
pub(crate) struct PrivatePostgres {
    pub(crate) server: Server,
    pub(crate) folder: tempfile::TempDir,
}

impl PrivatePostgres {
    pub(crate) async fn start() -> Self {
        Self::start_with("initdb").await
    }

    /// Of the major version that is tested; of another one where that has no such program (the npm
    /// package has only the server).
    pub(crate) async fn start_with(program: &str) -> Self {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().expect("a temporary folder");
        // The user that Postgres runs as has to get in.
        let open = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(folder.path(), open).expect("the folder is ours");
        let dev = shapefold_xtask::directory::dev_directory().expect("a development folder");
        let major = std::env::var(MAJOR_VARIABLE).ok().and_then(|major| major.parse().ok());
        let chosen = Installation::find(major, &dev).expect("./dev test has installed Postgres");
        let installation = match chosen.program(program) {
            Ok(_) => chosen,
            Err(_) => Installation::find(None, &dev).expect("./dev test has installed Postgres"),
        };
        let server = Server::create(installation, &folder.path().join("postgres")).await;
        Self { server: server.unwrap_or_else(|error| panic!("{error}")), folder }
    }

    pub(crate) async fn database(&self, hint: &str) -> TestDatabase {
        database_on(self.server.url("postgres"), hint).await
    }

    pub(crate) fn stop(&mut self) {
        self.server.stop();
    }

    pub(crate) async fn start_again(&mut self) {
        self.server.start().await.unwrap_or_else(|error| panic!("{error}"));
    }
}

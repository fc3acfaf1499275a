//! A fresh database for each test.

use std::sync::atomic::{AtomicU32, Ordering};

use shapefold_xtask::postgres::connect;
use tokio_postgres::Client;

static NEXT: AtomicU32 = AtomicU32::new(1);

/// A database that exists for one test. Dropped with its replication slots at the end.
#[derive(Debug)]
pub struct TestDatabase {
    /// Superuser's URL of this database.
    pub url: String,
    /// Also fit to be a replication stream id.
    pub name: String,
    server_url: String,
}

/// Creates a database on the server that `./dev test` has started.
pub async fn database(hint: &str) -> TestDatabase {
    let server_url = std::env::var("SHAPEFOLD_TEST_DATABASE_URL")
        .unwrap_or_else(|_| panic!("SHAPEFOLD_TEST_DATABASE_URL is not set: run ./dev test"));
    database_on(server_url, hint).await
}

/// The same with options of `CREATE DATABASE`: another encoding or locale.
pub async fn database_with(hint: &str, options: &str) -> TestDatabase {
    let server_url = std::env::var("SHAPEFOLD_TEST_DATABASE_URL").expect("./dev test says where Postgres is");
    create(server_url, hint, options).await
}

/// Creates a database on the server of that superuser's URL.
pub async fn database_on(server_url: String, hint: &str) -> TestDatabase {
    create(server_url, hint, "").await
}

async fn create(server_url: String, hint: &str, options: &str) -> TestDatabase {
    let hint: String =
        hint.chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_lowercase()).take(16).collect();
    let name = format!("t_{hint}_{}_{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    let client = connect(&server_url).await.expect("the test server accepts connections");
    client
        .batch_execute(&format!("CREATE DATABASE {name} {options}"))
        .await
        .expect("the database is created");
    let (base, _) = server_url.rsplit_once('/').expect("a URL has a path");
    TestDatabase { url: format!("{base}/{name}"), name, server_url }
}

impl TestDatabase {
    /// A new session.
    pub async fn client(&self) -> Client {
        connect(&self.url).await.expect("the test database accepts connections")
    }

    /// Runs statements in a session of their own.
    pub async fn execute(&self, sql: &str) {
        self.client().await.batch_execute(sql).await.expect("the test's SQL is right");
    }

    /// The one value of a query, as text.
    pub async fn value(&self, sql: &str) -> Option<String> {
        let rows = self.client().await.simple_query(sql).await.expect("the test's SQL is right");
        rows.iter().find_map(|message| match message {
            tokio_postgres::SimpleQueryMessage::Row(row) => Some(row.get(0).map(str::to_owned)),
            _ => None,
        })?
    }

    /// The same database for another user.
    pub fn url_as(&self, user: &str, password: &str) -> String {
        let (_, rest) = self.url.split_once('@').expect("the test server's URL names a user");
        format!("postgresql://{user}:{password}@{rest}")
    }
}

/// Best effort: what stays behind goes with the private server.
async fn remove(server_url: &str, name: &str) -> shapefold_xtask::Outcome<()> {
    let client = connect(server_url).await?;
    client
        .execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1", &[&name])
        .await?;
    client
        .execute(
            "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE database = $1 AND NOT active",
            &[&name],
        )
        .await?;
    client.batch_execute(&format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)")).await?;
    Ok(())
}

impl Drop for TestDatabase {
    fn drop(&mut self) {
        let (server_url, name) = (self.server_url.clone(), self.name.clone());
        // A test may be inside its own runtime here, which cannot be blocked on.
        let removal = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.map(|runtime| runtime.block_on(remove(&server_url, &name)).is_ok())
        });
        let _ = removal.join();
    }
}

//! What every command sets up first: a folder, a private Postgres, a port for the service.

use std::path::{Path, PathBuf};
use std::time::Instant;

use tokio_postgres::Client;

use crate::Outcome;
use crate::directory::{RunDirectory, dev_directory, free_port};
use crate::postgres::{Installation, Server, connect};
use crate::service::{ServiceSettings, default_binary};

/// Everything but the service. Fields are dropped in order: the session, the server, the folder.
pub struct Stage {
    pub sql: Client,
    pub postgres: Server,
    pub binary: PathBuf,
    port: u16,
    directory: RunDirectory,
}

impl Stage {
    /// Claims `<dev>/<name>`, starts Postgres in it and creates the database `app`.
    pub async fn open(name: &str, major: Option<u32>) -> Outcome<Self> {
        let binary = default_binary()?;
        let directory = RunDirectory::claim(name)?;
        let installation = Installation::find(major, &dev_directory()?)?;
        let started = Instant::now();
        let postgres = Server::create(installation, &directory.path().join("postgres")).await?;
        connect(&postgres.url("postgres")).await?.batch_execute("CREATE DATABASE app").await?;
        let sql = connect(&postgres.url("app")).await?;
        println!(
            "postgres: version {} on port {}, started in {:.1} s",
            postgres.installation().major,
            postgres.port(),
            started.elapsed().as_secs_f64()
        );
        Ok(Self { sql, postgres, binary, port: free_port()?, directory })
    }

    #[must_use]
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// URL of the database that the service follows.
    #[must_use]
    pub fn url(&self) -> String {
        self.postgres.url("app")
    }

    /// Another session on the same database.
    pub async fn connect(&self) -> Outcome<Client> {
        connect(&self.url()).await
    }

    /// Settings of a service on that database: a fixed port, so that clients find it again, and its
    /// log beside its data.
    #[must_use]
    pub fn service_settings(&self, stream_id: &str) -> ServiceSettings {
        let mut settings =
            ServiceSettings::new(&self.binary, &self.url(), &self.directory.path().join("data"));
        settings.port = self.port;
        settings.stream_id = stream_id.to_owned();
        settings.log_file = Some(self.service_log());
        settings
    }

    #[must_use]
    pub fn service_log(&self) -> PathBuf {
        self.directory.path().join("service.log")
    }
}

/// One line of a verdict: `ok` or `FAILED`, and what was looked at.
pub fn report(passed: bool, what: &str) -> bool {
    println!("  {}  {what}", if passed { "ok    " } else { "FAILED" });
    passed
}

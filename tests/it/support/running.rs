//! The real service with a data directory of its own.

use std::ops::{Deref, DerefMut};
use std::path::Path;

use shapefold_xtask::service::{Service as Process, ServiceSettings};

use super::{HttpClient, Response, ShapeClient, ShapeRequest, TestDatabase};

/// The service binary under test.
pub const BINARY: &str = env!("CARGO_BIN_EXE_shapefold");

/// A service under test. Everything of [`Process`] (`kill9`, `restart`, `terminate`, `stdout`, …) is
/// available on it; its data directory goes when it is dropped.
#[derive(Debug)]
pub struct Service {
    // Before the folder: the process must be gone when the folder goes.
    process: Process,
    _folder: tempfile::TempDir,
}

impl Service {
    /// Starts the service on that database and waits until it is active. `configure` may change any
    /// setting and add environment variables.
    pub async fn start(database: &TestDatabase, configure: impl FnOnce(&mut ServiceSettings)) -> Self {
        let (settings, folder) = settings(database, configure);
        let process = Process::start(settings).await.unwrap_or_else(|error| panic!("{error}"));
        Self { process, _folder: folder }
    }

    /// Starts the process without waiting, for a service that is not expected to become active.
    pub fn spawn(database: &TestDatabase, configure: impl FnOnce(&mut ServiceSettings)) -> Self {
        let (settings, folder) = settings(database, configure);
        let process = Process::spawn(settings).unwrap_or_else(|error| panic!("{error}"));
        Self { process, _folder: folder }
    }

    /// A second process on the data of another one, not waited for.
    pub fn spawn_beside(
        &self,
        database: &TestDatabase,
        configure: impl FnOnce(&mut ServiceSettings),
    ) -> Process {
        let mut settings = ServiceSettings::new(Path::new(BINARY), &database.url, self.data_dir());
        settings.stream_id = database.name.clone();
        configure(&mut settings);
        Process::spawn(settings).unwrap_or_else(|error| panic!("{error}"))
    }

    pub fn http(&self) -> HttpClient {
        HttpClient::new(self.address())
    }

    /// One `GET`, over a connection of its own.
    pub async fn get(&self, path_and_query: &str) -> Response {
        self.http().get(path_and_query).await.expect("the service answers")
    }

    pub fn follow(&self, request: ShapeRequest) -> ShapeClient {
        ShapeClient::new(self.address(), request)
    }
}

fn settings(
    database: &TestDatabase,
    configure: impl FnOnce(&mut ServiceSettings),
) -> (ServiceSettings, tempfile::TempDir) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut settings = ServiceSettings::new(Path::new(BINARY), &database.url, &folder.path().join("data"));
    settings.stream_id = database.name.clone();
    configure(&mut settings);
    (settings, folder)
}

impl Deref for Service {
    type Target = Process;

    fn deref(&self) -> &Process {
        &self.process
    }
}

impl DerefMut for Service {
    fn deref_mut(&mut self) -> &mut Process {
        &mut self.process
    }
}

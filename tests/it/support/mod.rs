//! What integration tests share: a database of their own, the service binary, clients.
//!
//! The server is the private one that `./dev test` starts; each test gets a fresh database on it
//! and a replication stream of its own, so that tests run side by side.

// Not every module of tests uses every helper.
#![allow(dead_code, unused_imports)]

mod database;
mod running;
mod script;

pub use database::{TestDatabase, database, database_on, database_with};
pub use running::{BINARY, Service};
pub use script::NodeScript;
pub use shapefold_xtask::audit::Audit;
pub use shapefold_xtask::compare::{Table, difference, rows_in_postgres};
pub use shapefold_xtask::http::{HttpClient, Response, encode};
pub use shapefold_xtask::journal;
pub use shapefold_xtask::node::{NodeClient, NodeFollower};
pub use shapefold_xtask::postgres::{Installation, MAJOR_VARIABLE, Server};
pub use shapefold_xtask::service::{Service as Process, ServiceSettings};
pub use shapefold_xtask::shape_client::{ClientError, Row, Rows, ShapeClient, ShapeRequest};

use std::time::{Duration, Instant};

/// How long a test waits for something that should come soon, before it fails with what it saw.
pub const WAIT_DURATION_MAX: Duration = Duration::from_secs(30);

/// Between two looks at a log.
const POLL: Duration = Duration::from_millis(5);

/// What the newest line of the log with this mark says behind it, once there is one: that may be after the
/// service is active.
pub fn said(service: &Process, mark: &str) -> String {
    let deadline = Instant::now() + WAIT_DURATION_MAX;
    loop {
        let output = service.output();
        if let Some(rest) = output.lines().rev().find_map(|line| line.split(mark).nth(1)) {
            return rest.to_owned();
        }
        assert!(Instant::now() < deadline, "it does not say {mark:?}:\n{output}");
        std::thread::sleep(POLL);
    }
}

/// Adds a line such as `properties: 256 cases` to the summary that `./dev test` prints at the end.
pub fn count(what: &str, number: u64, unit: &str) {
    use std::io::Write;
    let Some(path) = std::env::var_os("SHAPEFOLD_TEST_SUMMARY") else { return };
    let mut file = std::fs::File::options().append(true).create(true).open(path).expect("summary file opens");
    // One write, so that lines of tests that run at the same time do not mix.
    file.write_all(format!("{what}: {number} {unit}\n").as_bytes()).expect("summary file is written");
}

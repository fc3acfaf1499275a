//! The official npm client, in a Node process that prints what it sees.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::sync::mpsc::{Receiver, channel};

use crate::service::Service;
use crate::shape_client::Row;

/// How long it is waited for something that a client should show soon.
pub const WAIT_DURATION_MAX: Duration = Duration::from_secs(30);

/// Lines of the Node process that may wait to be looked at.
const LINES_MAX: usize = 65_536;
/// Changes of one client that [`NodeFollower::listen`] keeps.
const CHANGES_KEPT_MAX: usize = 10_000;

/// One client in the Node process.
#[derive(Clone, Debug)]
pub struct NodeClient {
    pub name: String,
    /// `ShapeStream` by itself, or a `Shape` on top of it.
    pub with_shape: bool,
    /// `table`, `where`, `params`, `columns`, as the client's option `params` takes them.
    pub params: Value,
    /// Further options of the client: `liveSse`, `log`, `offset`, …
    pub options: Value,
}

impl NodeClient {
    pub fn stream(name: &str, params: Value) -> Self {
        Self { name: name.to_owned(), with_shape: false, params, options: json!({}) }
    }

    pub fn shape(name: &str, params: Value) -> Self {
        Self { name: name.to_owned(), with_shape: true, params, options: json!({}) }
    }

    #[must_use]
    pub fn with(mut self, options: Value) -> Self {
        self.options = options;
        self
    }
}

/// What one client has shown so far.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// All rows when it was last up to date; sorted.
    pub rows: Option<Vec<Row>>,
    pub handle: String,
    pub offset: String,
    /// Operation and key of each change message, in order (`ShapeStream` only).
    pub changes: Vec<(String, String)>,
    /// The value of each of them.
    pub values: Vec<Row>,
    /// The rows of each part that was asked for.
    pub subsets: Vec<Vec<Row>>,
    pub refetches: usize,
    /// How often it began to read the log while it was reading it (option `noOverlap`).
    pub overlaps: usize,
    pub errors: Vec<String>,
}

/// The Node process with all its clients.
#[derive(Debug)]
pub struct NodeFollower {
    child: Child,
    // Held open: the process ends when it is closed.
    stdin: Option<ChildStdin>,
    lines: Receiver<String>,
    seen: BTreeMap<String, Seen>,
}

impl NodeFollower {
    /// Clients of that service. Panics, as all of this does, where Node or the client is missing.
    pub fn start(service: &Service, clients: &[NodeClient]) -> Self {
        Self::start_at(&format!("{}/v1/shape", service.url()), clients)
    }

    /// Clients of what is at that URL.
    pub fn start_at(url: &str, clients: &[NodeClient]) -> Self {
        let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/clients");
        assert!(folder.join("node_modules").exists(), "the official client is not installed: run ./dev test");
        let clients: Vec<Value> = clients
            .iter()
            .map(|client| {
                let kind = if client.with_shape { "shape" } else { "stream" };
                json!({ "name": client.name, "kind": kind, "params": client.params, "options": client.options })
            })
            .collect();
        let specification = json!({ "url": url, "clients": clients });
        let mut child = Command::new("node")
            .arg("follow.mjs")
            .arg(specification.to_string())
            .current_dir(folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("node is installed");
        let stdout = child.stdout.take().expect("stdout is piped");
        let (sender, lines) = channel(LINES_MAX);
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if sender.blocking_send(line).is_err() {
                    return;
                }
            }
        });
        Self { stdin: child.stdin.take(), child, lines, seen: BTreeMap::new() }
    }

    /// Takes in what the clients show, for as long as it is polled; so that none of them waits to be heard.
    /// What changed in detail is forgotten, for runs of any length.
    pub async fn listen(&mut self) -> std::convert::Infallible {
        loop {
            match self.lines.recv().await {
                Some(line) => self.note(&line),
                None => std::future::pending().await,
            }
            for seen in self.seen.values_mut().filter(|seen| seen.changes.len() > CHANGES_KEPT_MAX) {
                seen.changes.clear();
                seen.values.clear();
            }
        }
    }

    /// Has that client ask for a part of the rows.
    pub fn request_snapshot(&mut self, client: &str, subset: Value) {
        let stdin = self.stdin.as_mut().expect("stdin is piped");
        writeln!(stdin, "{}", json!({ "client": client, "snapshot": subset })).expect("node reads");
    }

    /// What that client has shown up to now.
    pub fn seen(&self, client: &str) -> Seen {
        self.seen.get(client).cloned().unwrap_or_default()
    }

    /// Reads on until that client's rows are the expected ones, and fails with what it has instead.
    pub async fn wait_for_rows(&mut self, client: &str, expected: &[Row]) -> Seen {
        let mut expected = expected.to_vec();
        expected.sort();
        self.wait_until(client, &format!("{expected:?}"), |seen| seen.rows.as_ref() == Some(&expected)).await
    }

    /// Reads on until the condition holds for what that client has shown.
    pub async fn wait_until(&mut self, client: &str, what: &str, holds: impl Fn(&Seen) -> bool) -> Seen {
        match self.wait_at_most(WAIT_DURATION_MAX, client, holds).await {
            Ok(seen) => seen,
            Err(seen) => panic!("{client}: no {what} in {WAIT_DURATION_MAX:?}; it showed {seen:?}"),
        }
    }

    /// As [`NodeFollower::wait_until`].
    ///
    /// # Errors
    /// What the client had shown when the time was over, or Node ended.
    pub async fn wait_at_most(
        &mut self,
        time: Duration,
        client: &str,
        holds: impl Fn(&Seen) -> bool,
    ) -> Result<Seen, Box<Seen>> {
        let deadline = Instant::now() + time;
        loop {
            let seen = self.seen(client);
            if holds(&seen) {
                return Ok(seen);
            }
            let rest = deadline.saturating_duration_since(Instant::now());
            match tokio::time::timeout(rest, self.lines.recv()).await {
                Ok(Some(line)) => self.note(&line),
                Ok(None) | Err(_) => return Err(Box::new(seen)),
            }
        }
    }

    fn note(&mut self, line: &str) {
        let event: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error} in {line}"));
        let text = |name: &str| event[name].as_str().unwrap_or_default().to_owned();
        let seen = self.seen.entry(text("client")).or_default();
        match event["event"].as_str() {
            Some("rows") => {
                let mut rows: Vec<Row> =
                    serde_json::from_value(event["rows"].clone()).expect("rows are objects of text");
                rows.sort();
                seen.rows = Some(rows);
                seen.handle = text("handle");
                seen.offset = text("offset");
            }
            Some("change") => {
                seen.changes.push((text("operation"), text("key")));
                seen.values.push(serde_json::from_value(event["value"].clone()).expect("an object of text"));
            }
            Some("subset") => {
                let rows = serde_json::from_value(event["rows"].clone()).expect("rows are objects of text");
                seen.subsets.push(rows);
            }
            Some("must-refetch") => seen.refetches += 1,
            Some("overlap") => seen.overlaps += 1,
            Some("error") => seen.errors.push(text("message")),
            other => panic!("unknown event {other:?} in {line}"),
        }
    }
}

impl Drop for NodeFollower {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

//! A script of tests/clients in a Node process: lines of JSON in both directions, SQL on its behalf.

use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::Instant;

use serde_json::{Value, json};
use tokio::sync::mpsc::{Receiver, channel};
use tokio_postgres::{Client, SimpleQueryMessage};

use super::{Service, TestDatabase, WAIT_DURATION_MAX};

/// Lines of the Node process that may wait to be looked at.
const LINES_MAX: usize = 65_536;
/// Lines that a failure shows.
const SHOWN_MAX: usize = 40;

#[derive(Debug)]
pub struct NodeScript {
    child: Child,
    // Held open: the process ends when it is closed.
    stdin: Option<ChildStdin>,
    lines: Receiver<String>,
    /// Events that nobody has waited for yet.
    unread: Vec<Value>,
    session: Client,
}

impl NodeScript {
    /// Starts the script; its specification has the URL of the service besides `more`.
    pub async fn start(file: &str, service: &Service, database: &TestDatabase, more: Value) -> Self {
        let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/clients");
        assert!(folder.join("node_modules").exists(), "the npm packages are not installed: run ./dev test");
        let mut specification = more;
        specification["url"] = format!("{}/v1/shape", service.url()).into();
        let mut child = Command::new("node")
            .arg(file)
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
        let session = database.client().await;
        Self { stdin: child.stdin.take(), child, lines, unread: Vec::new(), session }
    }

    pub fn command(&mut self, name: &str, mut rest: Value) {
        rest["command"] = name.into();
        self.send(&rest);
    }

    fn send(&mut self, line: &Value) {
        let stdin = self.stdin.as_mut().expect("stdin is piped");
        writeln!(stdin, "{line}").expect("node reads");
    }

    /// The first event of that name for which `holds` and that was not waited for yet; runs SQL while it
    /// reads on.
    pub async fn wait_for(&mut self, name: &str, holds: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + WAIT_DURATION_MAX;
        let wanted = |event: &Value| event["event"] == name && holds(event);
        if let Some(index) = self.unread.iter().position(wanted) {
            return self.unread.remove(index);
        }
        loop {
            let rest = deadline.saturating_duration_since(Instant::now());
            let line = tokio::time::timeout(rest, self.lines.recv()).await;
            let Ok(Some(line)) = line else {
                let from = self.unread.len().saturating_sub(SHOWN_MAX);
                let shown: Vec<String> = self.unread[from..].iter().map(Value::to_string).collect();
                panic!("no such {name} (ended: {}):\n{}", line.is_ok(), shown.join("\n"));
            };
            let event: Value =
                serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error} in {line}"));
            assert_ne!(event["event"], "unhandled", "{line}");
            if event["event"] == "sql" {
                let value = self.run(event["sql"].as_str().expect("SQL")).await;
                self.send(&json!({ "answer": event["id"], "value": value }));
            } else if wanted(&event) {
                return event;
            } else {
                self.unread.push(event);
            }
        }
    }

    /// What came and was not waited for.
    pub fn unread(&self) -> &[Value] {
        &self.unread
    }

    /// As [`Self::wait_for`], for any event of that name.
    pub async fn next(&mut self, name: &str) -> Value {
        self.wait_for(name, |_| true).await
    }

    /// Runs SQL in one transaction and gives its 32-bit id.
    async fn run(&self, sql: &str) -> String {
        let sql = format!("BEGIN; {sql}; SELECT pg_current_xact_id()::xid::text AS txid; COMMIT");
        let messages = self.session.simple_query(&sql).await.expect("the script's SQL is right");
        let rows = messages.iter().filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
            _ => None,
        });
        rows.last().expect("a transaction id")
    }
}

impl Drop for NodeScript {
    fn drop(&mut self) {
        // It ends by itself, and takes with it what it has started.
        drop(self.stdin.take());
        let deadline = Instant::now() + WAIT_DURATION_MAX;
        while Instant::now() < deadline {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

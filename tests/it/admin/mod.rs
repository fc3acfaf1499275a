//! The admin API and the dashboard.

mod api;
mod browser;
mod live;
mod many;

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;

use crate::support::{BINARY, HttpClient, Response};

const TOKEN: &str = "a-token-for-tests";
const TOKEN_VARIABLE: &str = "SHAPEFOLD_ADMIN_TOKEN";
/// The journals made from incident reports.
const GOLDEN: [&str; 5] = ["edison", "faraday", "ampere", "deploy", "hypotheses"];

fn golden(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("tests/data/forensics/{name}.sfx"))
}

/// `shapefold journal open`, until it is dropped.
struct Opened {
    child: Child,
    address: SocketAddr,
}

impl Opened {
    fn over(journal: &Path) -> Opened {
        let mut child = Command::new(BINARY)
            .args(["journal", "open"])
            .arg(journal)
            .env(TOKEN_VARIABLE, TOKEN)
            .stdout(Stdio::piped())
            .spawn()
            .expect("the binary runs");
        let mut line = String::new();
        let stdout = child.stdout.take().expect("stdout is piped");
        BufReader::new(stdout).read_line(&mut line).expect("it says where it is");
        let address = line.trim().trim_start_matches("open http://").trim_end_matches('/');
        let address = address.parse().unwrap_or_else(|error| panic!("{line:?}: {error}"));
        Opened { child, address }
    }

    fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn send(address: SocketAddr, method: &str, path: &str, body: &[u8]) -> Response {
    let bearer = format!("Bearer {TOKEN}");
    HttpClient::new(address)
        .request(method, path, &[("authorization", &bearer)], body)
        .await
        .unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The answer to a question that has one.
async fn ask(address: SocketAddr, path: &str) -> Value {
    let response = send(address, "GET", path, b"").await;
    assert_eq!(response.status, 200, "{path}: {}", response.text());
    response.json()
}

fn journal(arguments: &[&str]) -> Output {
    let output = Command::new(BINARY).arg("journal").args(arguments).env(TOKEN_VARIABLE, TOKEN).output();
    output.expect("the binary runs")
}

fn printed(arguments: &[&str]) -> String {
    let output = journal(arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

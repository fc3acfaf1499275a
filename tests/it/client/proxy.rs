//! A caching proxy with request collapsing between many clients and the service: nginx.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::json;

use super::{ITEMS, SCHEMA, all};
use crate::support::{HttpClient, NodeClient, NodeFollower, Service, WAIT_DURATION_MAX, database};

const CLIENTS: usize = 200;
/// Transactions that are written; half of them after the shape was deleted.
const ROUNDS: usize = 6;
/// Requests that may reach the service for each state of the log, however many clients there are: the
/// answers to live requests are good for 5 s, and the clients of one window share their URLs.
const PASSED_PER_STATE_MAX: usize = 8;
/// Node processes: what clients know of expired handles is shared within one.
const PROCESSES: usize = 4;

/// nginx without privileges, with everything in one folder.
struct Nginx {
    child: Child,
    port: u16,
    folder: tempfile::TempDir,
}

impl Nginx {
    async fn start(origin: std::net::SocketAddr) -> Nginx {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let port =
            TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a port").port();
        std::fs::write(folder.path().join("nginx.conf"), configuration(port, origin))
            .expect("a configuration");
        let program = if Path::new("/usr/sbin/nginx").exists() { "/usr/sbin/nginx" } else { "nginx" };
        let child = Command::new(program)
            .arg("-p")
            .arg(folder.path())
            .args(["-e", "error.log", "-c", "nginx.conf"])
            .stdin(Stdio::null())
            .spawn()
            .expect("nginx is installed: ./dev setup");
        let nginx = Nginx { child, port, folder };
        let deadline = std::time::Instant::now() + WAIT_DURATION_MAX;
        while HttpClient::new(nginx.address()).get("/v1/health").await.is_err() {
            assert!(
                std::time::Instant::now() < deadline,
                "nginx does not answer: {}",
                nginx.read("error.log")
            );
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        nginx
    }

    fn address(&self) -> std::net::SocketAddr {
        ([127, 0, 0, 1], self.port).into()
    }

    fn read(&self, file: &str) -> String {
        std::fs::read_to_string(self.folder.path().join(file)).unwrap_or_default()
    }

    /// URLs that reached the service, with their number.
    fn passed(&self) -> BTreeMap<String, usize> {
        let mut passed = BTreeMap::new();
        for line in self.read("access.log").lines() {
            let Some((how, url)) = line.split_once(' ') else { continue };
            if !matches!(how, "HIT" | "STALE" | "UPDATING" | "REVALIDATED") && url.starts_with("/v1/shape") {
                *passed.entry(url.to_owned()).or_default() += 1;
            }
        }
        passed
    }

    fn answers(&self) -> usize {
        self.read("access.log").lines().count()
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // The master ends its workers when it is told to, not when it is killed.
        if let Some(pid) = rustix::process::Pid::from_raw(self.child.id().cast_signed()) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        let _ = self.child.wait();
    }
}

/// The whole URL is the key, and one of several equal requests goes on while the others wait.
fn configuration(port: u16, origin: std::net::SocketAddr) -> String {
    format!(
        r#"
        daemon off; pid nginx.pid; worker_processes 1; error_log error.log;
        events {{ worker_connections 2048; }}
        http {{
            log_format passed '$upstream_cache_status $request_uri';
            access_log access.log passed;
            client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi;
            uwsgi_temp_path uwsgi; scgi_temp_path scgi;
            proxy_cache_path cache keys_zone=shapes:10m;
            server {{
                listen 127.0.0.1:{port};
                location / {{
                    proxy_pass http://{origin};
                    proxy_http_version 1.1;
                    proxy_set_header Connection "";
                    proxy_cache shapes;
                    proxy_cache_key $request_method$request_uri;
                    proxy_cache_lock on; proxy_cache_lock_timeout 60s; proxy_cache_lock_age 60s;
                    proxy_cache_use_stale updating;
                }}
            }}
        }}
        "#
    )
}

#[tokio::test]
async fn two_hundred_clients_behind_a_cache_cost_the_service_a_few_requests() {
    let database = database("proxy").await;
    database.execute(SCHEMA).await;
    let service = Service::start(&database, |_| {}).await;
    let nginx = Nginx::start(service.address()).await;
    let url = format!("http://{}/v1/shape", nginx.address());
    let names: Vec<String> = (0..CLIENTS / PROCESSES).map(|number| format!("client {number}")).collect();
    let clients: Vec<NodeClient> =
        names.iter().map(|name| NodeClient::shape(name, json!({ "table": "items" }))).collect();
    let mut nodes: Vec<NodeFollower> =
        (0..PROCESSES).map(|_| NodeFollower::start_at(&url, &clients)).collect();

    let mut before = BTreeMap::new();
    for round in 0..ROUNDS {
        if round == ROUNDS / 2 {
            before = nginx.passed();
            let handle = nodes[0].seen(&names[0]).handle;
            let path = format!("/v1/shape?table=items&handle={handle}");
            let answer = service.http().request("DELETE", &path, &[], b"").await.expect("an answer");
            assert_eq!(answer.status, 202);
        }
        database
            .execute(&format!(
                "UPDATE items SET title = 'round {round}'; INSERT INTO items VALUES ({})",
                100 + round
            ))
            .await;
        let rows = all(&database, &ITEMS).await;
        for node in &mut nodes {
            for name in &names {
                let seen = node.wait_for_rows(name, &rows).await;
                let refetches = usize::from(round >= ROUNDS / 2);
                assert_eq!((seen.refetches, seen.errors.len()), (refetches, 0), "{name}: {seen:?}");
            }
        }
    }

    let passed = nginx.passed();
    let (busters, shared): (Vec<_>, Vec<_>) =
        passed.iter().partition(|(url, _)| url.contains("cache-buster="));
    let (busted, collapsed) = (busters.len(), shared.iter().map(|(_, times)| **times).sum::<usize>());
    let answers = nginx.answers();
    crate::support::count("requests behind the cache", collapsed as u64, "passed on");
    assert!(before.keys().all(|url| !url.contains("cache-buster=")), "{before:?}");
    // After a 409 each client itself goes around the cache, for the first chunk and the one after it.
    assert!(busted <= 2 * CLIENTS, "{busted} requests went around the cache");
    assert!(collapsed <= ROUNDS * PASSED_PER_STATE_MAX, "{collapsed} of {answers} answers: {shared:#?}");
    assert!(answers >= ROUNDS * CLIENTS, "all of {CLIENTS} clients asked the proxy: {answers}");
}

//! The API of a running service.

use std::net::SocketAddr;
use std::time::Instant;

use serde_json::Value;

use super::{TOKEN, TOKEN_VARIABLE, ask, printed, send};
use crate::support::{HttpClient, Service, ShapeRequest, TestDatabase, WAIT_DURATION_MAX, database, said};

/// Where the admin API of that service listens.
pub fn address(service: &Service) -> SocketAddr {
    said(service, "dashboard on http://").trim_end_matches('/').parse().expect("an address")
}

async fn start(database: &TestDatabase, more: &[(&str, &str)]) -> Service {
    let mut service = Service::start(database, |settings| {
        settings.set("SHAPEFOLD_ADMIN_PORT", "0").set(TOKEN_VARIABLE, TOKEN);
        for (name, value) in more {
            settings.set(name, *value);
        }
    })
    .await;
    service.wait_active(WAIT_DURATION_MAX).await.expect("active");
    service
}

async fn until(address: SocketAddr, path: &str, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
    let deadline = Instant::now() + WAIT_DURATION_MAX;
    loop {
        let answer = ask(address, path).await;
        if holds(&answer) {
            return answer;
        }
        assert!(Instant::now() < deadline, "no {what}: {answer}");
    }
}

async fn items(hint: &str) -> TestDatabase {
    let database = database(hint).await;
    database
        .execute("CREATE TABLE items (id int PRIMARY KEY, v text); INSERT INTO items VALUES (1, 'a')")
        .await;
    database
}

#[tokio::test]
async fn what_is_now_is_what_the_command_line_says_of_the_directory() {
    let database = items("admin_now").await;
    let service = start(&database, &[]).await;
    let admin = address(&service);
    let mut client = service.follow(ShapeRequest::table("items"));
    client.sync().await.expect("rows");
    service.follow(ShapeRequest::table("items").filtered("id > 5", &[])).sync().await.expect("no rows");
    database.execute("INSERT INTO items VALUES (2, 'b')").await;
    let settled = |answer: &Value| {
        let now = &answer["now"];
        now["census"]["lives"]["Live"] == 2 && now["owing"] == 0 && now["series"]["gap_bytes"].is_array()
    };
    let answer = until(admin, "/v1/now", "two shapes that owe nothing", settled).await;
    assert_eq!(answer["status"]["is"], "active");
    let now = &answer["now"];
    let event = now["event"].to_string();
    let directory = service.data_dir().to_str().expect("text").to_owned();
    let url = format!("http://{admin}");
    // At the same event, the same answer: from the live service, from its directory, and from what is now.
    for command in ["state", "holding", "consumers"] {
        let there = printed(&[command, &url, "--at", &event]);
        assert_eq!(there, printed(&[command, &directory, "--at", &event]), "{command}");
    }
    let state = ask(admin, &format!("/v1/state?at={event}")).await;
    for key in ["event", "at", "gap_bytes", "owing", "shapes", "window", "census"] {
        assert_eq!(state[key], now[key], "{key}");
    }
    for key in ["boundary", "acked", "received", "routed"] {
        assert_eq!(state["stream"][key], now[key], "{key}");
    }
    let shapes = ask(admin, "/v1/shapes").await;
    assert_eq!(shapes["count"], 2);
    let handle = shapes["shapes"][0]["shape"].as_str().expect("text").to_owned();
    let life = ask(admin, &format!("/v1/shape/{handle}")).await;
    assert!(life["lines"][0]["text"].as_str().is_some_and(|text| text.starts_with("created")), "{life}");
    assert_eq!(ask(admin, "/v1/verify").await["broken"], 0);
    let checked = send(admin, "POST", "/v1/check", b"").await.json();
    assert_eq!((&checked["well"], &checked["equal"]), (&Value::from(true), &Value::from(true)), "{checked}");
}

#[tokio::test]
async fn events_are_told_as_they_come() {
    let database = items("admin_tail").await;
    let service = start(&database, &[]).await;
    let admin = address(&service);
    let bearer = format!("Bearer {TOKEN}");
    let (tell, mut told) = tokio::sync::mpsc::channel(64);
    let reader = tokio::spawn(async move {
        let mut text = String::new();
        let headers = [("authorization", bearer.as_str())];
        let mut client = HttpClient::new(admin);
        let _ended = client
            .request_streaming("GET", "/v1/events/live?after=0", &headers, b"", &mut |piece: &[u8]| {
                text += &String::from_utf8_lossy(piece);
                while let Some((message, rest)) = text.split_once("\n\n") {
                    if let Some(data) = message.strip_prefix("data: ") {
                        let _full = tell.try_send(serde_json::from_str::<Value>(data).expect("JSON"));
                    }
                    text = rest.to_owned();
                }
            })
            .await;
    });
    service.follow(ShapeRequest::table("items")).sync().await.expect("rows");
    let mut expected = None;
    let wanted = async {
        loop {
            let message = told.recv().await.expect("the stream goes on");
            assert_eq!(message["missed"], 0);
            for event in message["events"].as_array().expect("a list") {
                let id = event["id"].as_u64().expect("a number");
                assert_eq!(id, expected.unwrap_or(1), "every event, in order");
                expected = Some(id + 1);
                if event["kind"] == "SnapshotCompleted" {
                    return;
                }
            }
        }
    };
    tokio::time::timeout(WAIT_DURATION_MAX, wanted).await.expect("the shape's events come");
    reader.abort();
}

/// All turns for heavy questions are taken, and the view of what is now is being looked at without end: the
/// service does not notice, and who asks too much is told so.
#[tokio::test]
async fn looking_makes_nobody_wait() {
    /// More than may be answered or wait: see `src/server/admin/heavy.rs`.
    const ASKED_AT_ONCE: usize = 40;
    let database = items("admin_park").await;
    let service = start(&database, &[]).await;
    let admin = address(&service);
    let parked = tokio::spawn(async move { send(admin, "POST", "/v1/test-hooks/park", b"").await });
    let question = move || async move { send(admin, "GET", "/v1/owners", b"").await.status };
    let mut asked = tokio::task::JoinSet::new();
    (0..ASKED_AT_ONCE).for_each(|_| drop(asked.spawn(question())));
    loop {
        let answered = tokio::time::timeout(WAIT_DURATION_MAX, asked.join_next()).await.expect("an answer");
        match answered.expect("some are asked").expect("no panic") {
            503 => break,
            // Before the turns were taken.
            status => assert_eq!(status, 200),
        }
        asked.spawn(question());
    }
    // New shapes, rows, flushes and acknowledgements go their way.
    let postgres = database.client().await;
    let mut client = service.follow(ShapeRequest::table("items"));
    client.sync().await.expect("rows");
    database.execute("INSERT INTO items VALUES (2, 'b')").await;
    let row = postgres.query_one("SELECT pg_current_wal_lsn()::text", &[]).await.expect("an LSN");
    let lsn: String = row.get(0);
    let slot = format!(
        "SELECT count(*)::text FROM pg_replication_slots WHERE slot_name LIKE '%{}%' AND confirmed_flush_lsn >= '{lsn}'::pg_lsn",
        database.name
    );
    let deadline = Instant::now() + WAIT_DURATION_MAX;
    while database.value(&slot).await.as_deref() != Some("1") {
        assert!(Instant::now() < deadline, "acknowledged while somebody looks");
    }
    assert!(!parked.is_finished());
    // Once nobody looks, those who waited are answered.
    parked.abort();
    let mut answered = 0;
    while let Some(status) =
        tokio::time::timeout(WAIT_DURATION_MAX, asked.join_next()).await.expect("an answer")
    {
        answered += usize::from(status.expect("no panic") == 200);
    }
    assert!(answered > 0, "some had waited");
    assert_eq!(ask(admin, "/v1/now").await["status"]["is"], "active");
}

#[tokio::test]
async fn a_view_that_differs_from_the_fold_is_found_and_told_once() {
    let database = items("admin_drift").await;
    let service = start(&database, &[("SHAPEFOLD_PROJECTION_CHECK_INTERVAL", "100ms")]).await;
    let admin = address(&service);
    assert_eq!(send(admin, "POST", "/v1/check", b"").await.json()["well"], true);
    send(admin, "POST", "/v1/test-hooks/meddle", b"").await;
    // By itself, without being asked.
    let found = until(admin, "/v1/events?kind=ProjectionMismatch", "mismatch in the journal", |answer| {
        answer["events"].as_array().is_some_and(|events| !events.is_empty())
    })
    .await;
    assert_eq!(found["events"][0]["event"]["projection"], "ShapeIndex");
    for _ in 0..3 {
        let checked = send(admin, "POST", "/v1/check", b"").await.json();
        assert_eq!(checked["drifted"], serde_json::json!(["ShapeIndex"]));
        assert_eq!(checked["well"], false);
    }
    let again = ask(admin, "/v1/events?kind=ProjectionMismatch").await;
    assert_eq!(again["events"].as_array().map(Vec::len), Some(1), "told once");
}

/// Whoever looks does not keep the directory: the next process opens the journal at once.
#[tokio::test]
async fn a_service_that_is_looked_at_ends_in_order_and_starts_again() {
    let database = items("admin_restart").await;
    let mut service = start(&database, &[]).await;
    for round in 0..3 {
        let admin = address(&service);
        let mut asked = tokio::task::JoinSet::new();
        for path in ["/v1/timeline", "/v1/verify", "/v1/moment", "/v1/events/live", "/v1/export"] {
            asked.spawn(async move {
                let bearer = format!("Bearer {TOKEN}");
                let mut client = HttpClient::new(admin);
                let _cut_off = client.request("GET", path, &[("authorization", &bearer)], b"").await;
            });
        }
        service.follow(ShapeRequest::table("items")).sync().await.expect("rows");
        assert!(service.terminate().await, "round {round}: in order\n{}", service.output());
        service.restart().await.expect("starts again");
        asked.abort_all();
    }
    assert_eq!(ask(address(&service), "/v1/verify").await["broken"], 0);
}

#[tokio::test]
async fn a_port_without_a_token_is_refused() {
    let database = database("admin_token").await;
    let mut service = Service::spawn(&database, |settings| {
        settings.set("SHAPEFOLD_ADMIN_PORT", "0").set(TOKEN_VARIABLE, "");
    });
    let deadline = Instant::now() + WAIT_DURATION_MAX;
    let status = loop {
        if let Some(status) = service.try_wait() {
            break status;
        }
        assert!(Instant::now() < deadline, "it runs");
        tokio::task::yield_now().await;
    };
    assert!(!status.success());
    assert!(service.output().contains("needs SHAPEFOLD_ADMIN_TOKEN"), "{}", service.output());
}

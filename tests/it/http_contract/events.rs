//! Server-sent events: contract 1.13.

use std::time::{Duration, Instant};

use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::{header, started, tail};
use crate::service::until;
use crate::support::{Service, WAIT_DURATION_MAX};

/// An open stream: what comes, with the time at which it came, and the end.
struct Stream {
    parts: UnboundedReceiver<(Instant, String)>,
    opened: Instant,
}

impl Stream {
    fn open(service: &Service, path: &str) -> Stream {
        let (sender, parts) = unbounded_channel();
        let (mut http, path) = (service.http(), path.to_owned());
        tokio::spawn(async move {
            let headers = [("accept", "text/event-stream")];
            let on_body = |part: &[u8]| {
                let _gone = sender.send((Instant::now(), String::from_utf8_lossy(part).into_owned()));
            };
            http.request_streaming("GET", &path, &headers, b"", on_body)
                .await
                .expect("the stream ends cleanly");
        });
        Stream { parts, opened: Instant::now() }
    }

    /// Reads until the text has that in it.
    async fn until(&mut self, wanted: &str) -> (Duration, String) {
        let mut text = String::new();
        loop {
            let part = tokio::time::timeout(2 * WAIT_DURATION_MAX, self.parts.recv()).await;
            let (at, part) = part.ok().flatten().unwrap_or_else(|| panic!("no {wanted} in {text}"));
            text.push_str(&part);
            if text.contains(wanted) {
                return (at - self.opened, text);
            }
        }
    }

    /// Reads to the end.
    async fn rest(&mut self) -> (Duration, String) {
        let mut text = String::new();
        let all = async {
            while let Some((_, part)) = self.parts.recv().await {
                text.push_str(&part);
            }
        };
        tokio::time::timeout(Duration::from_secs(90), all).await.expect("the stream ends");
        (self.opened.elapsed(), text)
    }
}

const SCHEMA: &str = "CREATE TABLE items (id int PRIMARY KEY, v text)";

async fn live_path(service: &Service, more: &str) -> String {
    let (answer, _) = tail(service, "table=items").await;
    let (handle, offset) = (header(&answer, "electric-handle"), header(&answer, "electric-offset"));
    format!("/v1/shape?table=items&handle={handle}&offset={offset}&live=true&live_sse=true{more}")
}

/// One stream over its whole life, since that takes a minute.
#[tokio::test]
async fn a_stream_lives_for_a_minute_and_shows_that_it_does() {
    let (database, service) = started("sse_life", SCHEMA, &[]).await;
    let path = live_path(&service, "").await;
    let mut stream = Stream::open(&service, &path);
    tokio::time::sleep(Duration::from_secs(2)).await;
    database.execute("INSERT INTO items VALUES (1, 'a'), (2, 'b')").await;
    let (at, text) = stream.until("up-to-date").await;
    assert!(at < Duration::from_secs(10), "{at:?}");
    let events: Vec<&str> = text.trim_end().split("\n\n").collect();
    assert_eq!(events.len(), 3, "{text}");
    let event = |index: usize| -> serde_json::Value {
        serde_json::from_str(events[index].strip_prefix("data: ").expect("data")).expect("JSON")
    };
    assert_eq!((event(0)["value"]["id"].as_str(), event(1)["value"]["id"].as_str()), (Some("1"), Some("2")));
    assert_eq!(event(2)["headers"]["global_last_seen_lsn"], event(1)["headers"]["lsn"]);
    let (kept, text) = stream.until("keep-alive").await;
    assert_eq!(text, ": keep-alive\n\n");
    assert!((20..=23).contains(&(kept - at).as_secs()), "{kept:?} after {at:?}");
    let (ended, text) = stream.rest().await;
    assert!((59..=62).contains(&ended.as_secs()), "{ended:?}");
    assert!(text.is_empty() || text == ": keep-alive\n\n", "{text}");
}

#[tokio::test]
async fn headers_backlog_and_errors() {
    let (database, service) =
        started("sse_backlog", SCHEMA, &[("ELECTRIC_SHAPE_CHUNK_BYTES_THRESHOLD", "2000")]).await;
    let path = live_path(&service, "").await;
    database.execute("INSERT INTO items SELECT i, repeat('x', 100) FROM generate_series(1, 100) i").await;
    database.execute("INSERT INTO items VALUES (101, 'last')").await;
    until("everything is in the log", async || {
        let (_, messages) = tail(&service, "table=items").await;
        let changes = messages.iter().filter(|message| message["headers"]["lsn"].is_string());
        (changes.count() == 101).then_some(())
    })
    .await;
    let plain = service.get(&path.replace("&live=true&live_sse=true", "")).await;
    assert_eq!(plain.header("electric-up-to-date"), None, "the backlog has more than one chunk");
    for alias in ["live_sse", "experimental_live_sse"] {
        let answer = service.get(&path.replace("live_sse", alias)).await;
        assert_eq!(answer.status, 200);
        assert_eq!(header(&answer, "content-type"), "text/event-stream");
        assert_eq!(header(&answer, "cache-control"), "public, max-age=59");
        assert_eq!(header(&answer, "connection"), "keep-alive");
        let text = answer.text();
        assert_eq!(text.matches("\"operation\":\"insert\"").count(), 101, "U9: all of it");
        assert_eq!(text.matches("up-to-date").count(), 1);
        assert!(text.trim_end().rsplit("\n\n").next().is_some_and(|event| event.contains("up-to-date")));
    }
    let wrong = service.get("/v1/shape?table=items&handle=1-1&offset=0_0&live=true&live_sse=true").await;
    assert_eq!(wrong.status, 409);
    assert_eq!(header(&wrong, "content-type"), "application/json; charset=utf-8");
    assert_eq!(wrong.text(), r#"[{"headers":{"control":"must-refetch"}}]"#);
}

#[tokio::test]
async fn truncate_and_drain_end_a_stream_at_once() {
    let (database, mut service) = started("sse_end", SCHEMA, &[]).await;
    let path = live_path(&service, "").await;
    let mut stream = Stream::open(&service, &path);
    database.execute("INSERT INTO items VALUES (1, 'a')").await;
    stream.until("up-to-date").await;
    database.execute("TRUNCATE items").await;
    let (ended, text) = stream.rest().await;
    assert!(ended < WAIT_DURATION_MAX, "{ended:?}");
    assert!(!text.contains("must-refetch"), "{text}");
    assert_eq!(service.get(&path).await.status, 409, "the next request is told");

    let path = live_path(&service, "").await;
    let mut stream = Stream::open(&service, &path);
    database.execute("INSERT INTO items VALUES (2, 'b')").await;
    stream.until("up-to-date").await;
    assert!(service.terminate().await, "the service stops by itself:\n{}", service.output());
    let (ended, _) = stream.rest().await;
    assert!(ended < WAIT_DURATION_MAX, "{ended:?}");
}

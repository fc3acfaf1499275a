//! Long-polls, cursors and conditional requests: contract 1.12 and 1.13.

use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::json;

use super::http_log::{header, is_up_to_date, messages, started, tail};
use super::until;

/// 2024-10-09T00:00:00Z.
const CURSOR_EPOCH: u64 = 1_728_432_000;

/// Since then.
fn seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs() - CURSOR_EPOCH
}

#[tokio::test]
async fn a_long_poll_ends_with_news_with_time_or_with_the_shape() {
    let (database, service) = started(
        "live",
        "CREATE TABLE items (id int PRIMARY KEY, v text)",
        &[("ELECTRIC_LONG_POLL_TIMEOUT", "2000")],
    )
    .await;
    let tail = tail(&service, "table=items").await;
    let (handle, offset) = (header(&tail, "electric-handle"), header(&tail, "electric-offset"));
    let live = format!("/v1/shape?table=items&handle={handle}&offset={offset}&live=true");

    let mut timeouts = Vec::new();
    for _ in 0..2 {
        let asked = seconds();
        timeouts.push((service.get(&live).await, asked..=seconds()));
    }
    for (answer, between) in &timeouts {
        let body = messages(answer);
        assert_eq!(body.len(), 1);
        assert!(is_up_to_date(&body[0]), "{body:?}");
        let seen = body[0]["headers"]["global_last_seen_lsn"].as_str().expect("text");
        assert!(seen.parse::<u64>().is_ok(), "{seen}");
        assert_eq!(header(answer, "electric-offset"), offset);
        assert_eq!(header(answer, "electric-has-data"), "false");
        assert_eq!(header(answer, "electric-up-to-date"), "");
        assert_eq!(header(answer, "cache-control"), "public, max-age=5, stale-while-revalidate=5");
        assert_eq!(answer.header("electric-schema"), None);
        assert!(header(answer, "etag").starts_with(&format!("\"{handle}:{offset}:{offset}:")));
        let cursor: u64 = header(answer, "electric-cursor").parse().expect("a number");
        // The end of the interval of two seconds in which it was asked or answered.
        let possible = *between.start()..=*between.end() + 2;
        assert!(cursor.is_multiple_of(2) && possible.contains(&cursor), "{cursor} at {between:?}");
    }
    assert_ne!(header(&timeouts[0].0, "etag"), header(&timeouts[1].0, "etag"), "never valid again");
    let ahead = service.get(&format!("{live}&cursor=99999999999")).await;
    let cursor: u64 = header(&ahead, "electric-cursor").parse().expect("a number");
    assert!((99_999_999_999 + 1..=99_999_999_999 + 3600).contains(&cursor), "{cursor}");

    // News wake everybody who waits.
    let waiting: Vec<_> = (0..3)
        .map(|_| {
            let (mut http, path) = (service.http(), live.clone());
            tokio::spawn(async move { http.get(&path).await.expect("an answer") })
        })
        .collect();
    database.execute("INSERT INTO items VALUES (1, 'news')").await;
    let mut last = None;
    for answer in waiting {
        let answer = answer.await.expect("the request ended");
        let body = messages(&answer);
        assert_eq!(body[0]["value"], json!({ "id": "1", "v": "news" }));
        assert!(is_up_to_date(&body[1]), "{body:?}");
        assert_eq!(header(&answer, "electric-has-data"), "true");
        assert_eq!(body[1]["headers"]["global_last_seen_lsn"], body[0]["headers"]["lsn"]);
        last = Some(answer);
    }
    // The end of the shape does, too.
    let offset = header(&last.expect("three answers"), "electric-offset");
    for end in ["DELETE", "TRUNCATE"] {
        let handle = header(&service.get("/v1/shape?table=items&offset=-1").await, "electric-handle");
        let path = if end == "DELETE" {
            format!("/v1/shape?table=items&handle={handle}&offset={offset}&live=true")
        } else {
            format!("/v1/shape?table=items&handle={handle}&offset=0_inf&live=true")
        };
        let mut http = service.http();
        let waits = tokio::spawn(async move { http.get(&path).await.expect("an answer") });
        if end == "DELETE" {
            let delete = format!("/v1/shape?handle={handle}");
            let answer = service.http().request("DELETE", &delete, &[], b"").await.expect("an answer");
            assert_eq!(answer.status, 202);
        } else {
            database.execute("TRUNCATE items").await;
        }
        let answer = waits.await.expect("the request ended");
        assert_eq!(answer.status, 409, "{end}: {}", answer.text());
        assert_eq!(answer.text(), r#"[{"headers":{"control":"must-refetch"}}]"#);
    }
}

#[tokio::test]
async fn equal_tags_are_304_and_live_requests_never_are() {
    let (database, service) = started(
        "etags",
        "CREATE TABLE items (id int PRIMARY KEY, v text); INSERT INTO items VALUES (1, 'a')",
        &[
            ("ELECTRIC_LONG_POLL_TIMEOUT", "300"),
            ("ELECTRIC_CACHE_MAX_AGE", "7"),
            ("ELECTRIC_CACHE_STALE_AGE", "11"),
        ],
    )
    .await;
    let ask = async |path: &str, tag: &str| {
        let headers = [("if-none-match", tag)];
        service.http().request("GET", path, &headers, b"").await.expect("an answer")
    };
    let path = "/v1/shape?table=items&offset=-1";
    let first = service.get(path).await;
    let (handle, tag) = (header(&first, "electric-handle"), header(&first, "etag"));
    assert_eq!(tag, format!("\"{handle}:-1:0_0\""));
    for list in [tag.clone(), format!("\"x\", {tag}"), tag.trim_matches('"').to_owned()] {
        let same = ask(path, &list).await;
        assert_eq!((same.status, same.body.len()), (304, 0), "{list}");
        for name in ["electric-handle", "electric-offset", "etag", "cache-control"] {
            assert_eq!(same.header(name), first.header(name), "{name}");
        }
        assert_eq!(header(&same, "electric-has-data"), "true");
        assert_eq!(same.header("electric-schema"), None);
    }
    for other in ["\"x\"", "*", &format!("W/{tag}")] {
        assert_eq!(ask(path, other).await.status, 200, "{other}");
    }
    let tail = tail(&service, "table=items").await;
    let (offset, tag) = (header(&tail, "electric-offset"), header(&tail, "etag"));
    assert_eq!(header(&tail, "cache-control"), "public, max-age=7, stale-while-revalidate=11");
    let path = format!("/v1/shape?table=items&handle={handle}&offset={offset}");
    let at_tail = service.get(&path).await;
    assert_eq!(header(&at_tail, "etag"), format!("\"{handle}:{offset}:{offset}\""));
    let same = ask(&path, &header(&at_tail, "etag")).await;
    assert_eq!((same.status, header(&same, "electric-up-to-date")), (304, String::new()));
    assert_eq!(ask(&format!("{path}&live=true"), &header(&at_tail, "etag")).await.status, 200);
    database.execute("INSERT INTO items VALUES (2, 'b')").await;
    until("the tail has moved on", async || (ask(&path, &tag).await.body.len() > 100).then_some(())).await;
    assert_eq!(ask(&path, &header(&at_tail, "etag")).await.status, 200, "the tail has another tag now");
}

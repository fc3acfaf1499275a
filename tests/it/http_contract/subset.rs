//! Subset snapshots: contract 1.14.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};

use super::{header, post, started, tail};
use crate::support::{Response, Service, encode};

const SCHEMA: &str = r#"
    CREATE TYPE mood AS ENUM ('sad', 'happy');
    CREATE TABLE items (id int8 PRIMARY KEY, a int4, b int4, value text, mood mood, ok boolean);
    INSERT INTO items SELECT i, i % 4, i % 3, CASE WHEN i % 5 > 0 THEN 'v' || i END,
        (CASE WHEN i % 2 = 0 THEN 'sad' ELSE 'happy' END)::mood, i % 2 = 0 FROM generate_series(1, 40) i;
"#;
const BASE: &str = "/v1/shape?table=items&log=changes_only&offset=now";

fn ids(answer: &Response) -> Vec<u64> {
    assert_eq!(answer.status, 200, "{}", answer.text());
    let body = answer.json();
    let rows = body["data"].as_array().expect("an array").clone();
    rows.iter().map(|row| row["value"]["id"].as_str().expect("text").parse().expect("a number")).collect()
}

async fn get(service: &Service, more: &str) -> Response {
    service.get(&format!("{BASE}&{more}")).await
}

#[tokio::test]
async fn rows_metadata_and_headers() {
    let (database, service) = started("subset", SCHEMA, &[]).await;
    let before: u64 = lsn(&database).await;
    let answer = get(&service, "subset__order_by=id&subset__limit=2").await;
    assert_eq!(ids(&answer), [1, 2]);
    for (name, value) in [
        ("electric-snapshot", "true"),
        ("electric-offset", "0_inf"),
        ("cache-control", "no-cache"),
        ("content-type", "application/json; charset=utf-8"),
    ] {
        assert_eq!(header(&answer, name), value, "{name}");
    }
    assert!(header(&answer, "electric-schema").contains("\"pk_index\":0"));
    for absent in ["etag", "electric-cursor", "electric-up-to-date", "electric-has-data"] {
        assert_eq!(answer.header(absent), None, "{absent}");
    }
    let body = answer.json();
    let metadata = &body["metadata"];
    let number = |name: &str| metadata[name].as_str().expect("text").parse::<u64>().expect("a number");
    assert!(number("xmin") <= number("xmax"));
    assert!(metadata["xip_list"].as_array().expect("a list").iter().all(Value::is_string));
    assert!(number("database_lsn") >= before);
    let mark = metadata["snapshot_mark"].as_u64().expect("a number");
    assert!(mark < 1 << 31);
    assert_eq!(
        body["data"][1],
        json!({
            "key": "\"public\".\"items\"/\"2\"",
            "value": { "id": "2", "a": "2", "b": "2", "value": "v2", "mood": "sad", "ok": "true" },
            "headers": { "operation": "insert", "relation": ["public", "items"], "snapshot_mark": mark },
        })
    );
    // The shape is the one of the log, and a subset is possible on a full one, too.
    let log = service.get("/v1/shape?table=items&log=changes_only&offset=-1").await;
    assert_eq!(header(&log, "electric-handle"), header(&answer, "electric-handle"));
    let full = service.get("/v1/shape?table=items&offset=-1&subset__order_by=id&subset__limit=1").await;
    assert_eq!((ids(&full), header(&full, "electric-offset")), (vec![1], "0_0".to_owned()));
    let none = get(&service, "subset__where=id%20%3C%200").await;
    assert_eq!(none.json()["data"], json!([]));
}

async fn lsn(database: &crate::support::TestDatabase) -> u64 {
    let lsn = database.value("SELECT (pg_current_wal_lsn() - '0/0'::pg_lsn)::int8").await;
    lsn.expect("a value").parse().expect("a number")
}

#[tokio::test]
async fn a_post_says_the_same_nested_and_flat() {
    let (_database, service) = started("subset_post", SCHEMA, &[]).await;
    let get = get(
        &service,
        "subset__where=a=$1&subset__params[1]=1&subset__order_by=id%20DESC&subset__limit=3&subset__offset=1",
    )
    .await;
    assert_eq!(ids(&get), [33, 29, 25]);
    for body in [
        json!({ "subset": { "where": "a = $1", "params": { "1": "1" }, "order_by": "id DESC", "limit": 3, "offset": 1 } }),
        json!({ "where": "a = $1", "params": { "1": "1" }, "order_by": "id DESC", "limit": 3, "offset": 1,
                "where_expr": { "type": "func" }, "order_by_expr": [] }),
        json!({ "where": "a = $1", "params": { "1": 1 }, "order_by": "id DESC", "limit": "3", "offset": "1" }),
    ] {
        let answer = post(&service, BASE, &body.to_string()).await;
        assert_eq!(answer.json()["data"].as_array().map(Vec::len), Some(3), "{body}: {}", answer.text());
        assert_eq!(ids(&answer), [33, 29, 25], "{body}");
        assert_eq!(header(&answer, "cache-control"), "no-cache");
        for name in ["electric-handle", "electric-offset", "electric-schema"] {
            assert_eq!(header(&answer, name), header(&get, name), "{name}");
        }
    }
    let empty = post(&service, BASE, "").await;
    assert_eq!(empty.json().as_array().map(Vec::len), Some(1), "without a key of a subset it is the log");
}

#[tokio::test]
async fn what_is_wrong_is_told() {
    let (_database, service) = started("subset_errors", SCHEMA, &[]).await;
    let order = "order_by is required when limit or offset is present";
    let node = |at: u32, name: &str| {
        format!("At location {at}: {name} expressions are not allowed in ORDER BY clauses")
    };
    for (query, field, message) in [
        ("subset__limit=1", "order_by", order.to_owned()),
        ("subset__offset=1", "order_by", order.to_owned()),
        ("subset__order_by=id&subset__limit=0", "limit", "must be greater than 0".to_owned()),
        ("subset__order_by=id&subset__offset=-1", "offset", "must be greater than or equal to 0".to_owned()),
        ("subset__order_by=id&subset__limit=x", "limit", "is invalid".to_owned()),
        ("subset__order_by=lower(value)", "order_by", node(18, "FuncCall")),
        ("subset__order_by=(select%201)", "order_by", node(18, "SubLink")),
        ("subset__order_by=id::text", "order_by", node(22, "TypeName")),
        (
            "subset__order_by=$1",
            "order_by",
            "At location 18: parameter $1 is not supported in ORDER BY clauses".to_owned(),
        ),
        ("subset__order_by=id;select%201", "order_by", "Unexpected `;` in order by".to_owned()),
        ("subset__order_by=nope", "order_by", "At location 18: unknown reference nope".to_owned()),
        ("subset__order_by=id%20limit%201", "order_by", "malformed query ending with SQL clauses".to_owned()),
        ("subset__where=id%20IN%20(SELECT%201)", "where", "Subqueries are not allowed in subsets".to_owned()),
        ("subset__where=nope=1", "where", "At location 0: unknown reference nope".to_owned()),
        ("subset__where=id", "where", "WHERE clause must return a boolean".to_owned()),
        ("subset__where=id=$1&subset__params=[]", "params", "params must be a JSON object".to_owned()),
        ("subset__where=id=$1&subset__params=x", "params", "params must be valid JSON".to_owned()),
    ] {
        let answer = get(&service, query).await;
        let expected = json!({ "message": "Invalid request", "errors": { "subset": { field: [message] } } });
        assert_eq!((answer.status, answer.json()), (400, expected), "{query}");
        assert_eq!(header(&answer, "cache-control"), "no-store");
    }
    let hidden = get(&service, "queryable_columns=id&subset__where=a=1").await;
    let expected = json!({ "subset": { "where": ["At location 0: unknown reference a"] } });
    assert_eq!(hidden.json()["errors"], expected);
    // Postgres' words, not in a list.
    let label = get(&service, "subset__where=mood='joyful'").await;
    let expected = json!({ "subset": { "where": "invalid input value for enum mood: \"joyful\"" } });
    assert_eq!((label.status, &label.json()["errors"]), (400, &expected));
    assert_eq!(
        ids(&get(&service, "subset__where=mood='sad'&subset__order_by=id&subset__limit=2").await),
        [2, 4]
    );
    let handle =
        service.get("/v1/shape?table=items&log=changes_only&handle=1-1&offset=0_0&subset__order_by=id").await;
    let known = header(&label_handle(&service).await, "electric-handle");
    assert_eq!((handle.status, header(&handle, "electric-handle")), (409, known));
}

async fn label_handle(service: &Service) -> Response {
    service.get(BASE).await
}

/// U7, and the order that Postgres gives.
#[tokio::test]
async fn subsets_are_those_of_sql() {
    let (database, service) = started("subset_sql", SCHEMA, &[]).await;
    for (base, subset, order, limit) in [
        ("a=1 OR a=2", "b=2", "id", ""),
        ("a=1 OR a=2", "b=2 OR b=1", "id DESC", "LIMIT 5 OFFSET 2"),
        ("", "value > 'v3'", "value, id", ""),
        ("", "value < 'v3' AND a = 1", "value DESC NULLS LAST, id", "LIMIT 4"),
        ("", "", "value NULLS FIRST, a DESC, id", "LIMIT 9"),
        ("", "", "mood DESC, value ASC NULLS LAST, id", "OFFSET 30"),
        ("ok", "value IS NULL", "id", ""),
    ] {
        let condition = |text: &str| if text.is_empty() { "true".to_owned() } else { format!("({text})") };
        let sql = format!(
            "SELECT coalesce(string_agg(id::text, ','), '') FROM (SELECT id FROM items WHERE {} AND {} ORDER BY {order} {limit}) t",
            condition(base),
            condition(subset)
        );
        let expected = database.value(&sql).await.expect("a text");
        let mut query = format!(
            "where={}&subset__where={}&subset__order_by={}",
            encode(base),
            encode(subset),
            encode(order)
        );
        for (word, name) in [("LIMIT ", "limit"), ("OFFSET ", "offset")] {
            if let Some((_, rest)) = limit.split_once(word) {
                let number = rest.split(' ').next().unwrap_or_default();
                query.push_str(&format!("&subset__{name}={number}"));
            }
        }
        let found = ids(&get(&service, &query).await);
        let found = found.iter().map(u64::to_string).collect::<Vec<_>>().join(",");
        assert_eq!(found, expected, "{base} / {subset} / {order} {limit}");
    }
}

/// A transaction that the subset has not seen is on the log after the offset that came with it.
#[tokio::test]
async fn nothing_is_lost_between_subset_and_log() {
    let (database, service) = started("subset_seam", SCHEMA, &[]).await;
    let writer = database.client().await;
    let enough = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&enough);
    let writing = tokio::spawn(async move {
        let mut round = 0_i64;
        while !told.load(Ordering::Acquire) {
            round += 1;
            let insert = format!("INSERT INTO items (id, a) VALUES ({}, 1)", 100 + round);
            let sql = format!("UPDATE items SET a = {round} WHERE id = 1; {insert}");
            writer.batch_execute(&sql).await.expect("the test's SQL is right");
        }
        round
    });
    let mut subsets = Vec::new();
    while subsets.len() < 20 {
        subsets.push(get(&service, "subset__where=id=1").await);
    }
    enough.store(true, Ordering::Release);
    let last = writing.await.expect("all was written");
    // Later than everything: the log has come to it once this row is in.
    database.execute("UPDATE items SET b = -1 WHERE id = 1").await;
    let deadline = std::time::Instant::now() + crate::support::WAIT_DURATION_MAX;
    let messages = loop {
        let (_, messages) = tail(&service, "table=items&log=changes_only").await;
        if messages.iter().any(|message| message["value"]["b"] == "-1") {
            break messages;
        }
        assert!(std::time::Instant::now() < deadline, "the last change did not come");
    };
    for subset in &subsets {
        let body = subset.json();
        let start: u64 =
            header(subset, "electric-offset").split('_').next().and_then(|tx| tx.parse().ok()).unwrap_or(0);
        let mut a: i64 = text(&body["data"][0]["value"]["a"]).parse().expect("a number");
        let seen = |xid: u64| {
            let number = |name: &str| text(&body["metadata"][name]).parse::<u64>().expect("a number");
            let xip = body["metadata"]["xip_list"].as_array().expect("a list");
            xid < number("xmin") || (xid < number("xmax") && !xip.iter().any(|x| text(x) == xid.to_string()))
        };
        for message in &messages {
            let (lsn, xid) = (&message["headers"]["lsn"], &message["headers"]["txids"][0]);
            let (Some(lsn), Some(xid)) = (lsn.as_str().and_then(|lsn| lsn.parse::<u64>().ok()), xid.as_u64())
            else {
                continue;
            };
            if message["value"]["id"] != "1" || message["value"].get("a").is_none() {
                continue;
            }
            let value: i64 = text(&message["value"]["a"]).parse().expect("a number");
            if lsn <= start {
                assert!(seen(xid), "a change at or before the offset is in the subset: {xid} {body}");
            } else if !seen(xid) {
                assert_eq!(value, a + 1, "no change is missing: {body}");
                a = value;
            }
        }
        assert_eq!(a, last);
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("{value} is no text"))
}

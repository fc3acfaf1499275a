//! How the log of a shape is read over HTTP: chunks, offsets, kinds of logs. Contract 1.9 to 1.11, 1.15.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::until;
use crate::support::{Response, Service, TestDatabase, database};

pub(super) async fn started(hint: &str, sql: &str, settings: &[(&str, &str)]) -> (TestDatabase, Service) {
    let database = database(hint).await;
    database.execute(sql).await;
    let service = Service::start(&database, |configured| {
        for (name, value) in settings {
            configured.set(name, *value);
        }
    })
    .await;
    (database, service)
}

pub(super) fn header(answer: &Response, name: &str) -> String {
    answer
        .header(name)
        .unwrap_or_else(|| panic!("no {name}: {} {:?} {}", answer.status, answer.headers, answer.text()))
        .to_owned()
}

pub(super) fn messages(answer: &Response) -> Vec<Value> {
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json().as_array().expect("an array").clone()
}

pub(super) fn is_up_to_date(message: &Value) -> bool {
    message["headers"]["control"] == "up-to-date"
}

/// What follows an offset. Asked for until the log has reached a commit.
async fn following(service: &Service, shape: &str, from: &Response, count: usize) -> Response {
    let (handle, offset) = (header(from, "electric-handle"), header(from, "electric-offset"));
    let path = format!("/v1/shape?{shape}&handle={handle}&offset={offset}");
    until(&format!("{count} messages after {offset}"), async || {
        let answer = service.get(&path).await;
        (messages(&answer).len() == count + 1).then_some(answer)
    })
    .await
}

/// The answer at the tail of a shape.
pub(super) async fn tail(service: &Service, shape: &str) -> Response {
    let mut answer = service.get(&format!("/v1/shape?{shape}&offset=-1")).await;
    while !messages(&answer).last().is_some_and(is_up_to_date) {
        let (handle, offset) = (header(&answer, "electric-handle"), header(&answer, "electric-offset"));
        answer = service.get(&format!("/v1/shape?{shape}&handle={handle}&offset={offset}")).await;
    }
    answer
}

/// All chunks from an offset to the tail, by URL.
async fn chunks(service: &Service, shape: &str, from: (&str, &str)) -> Vec<(String, Response)> {
    let (handle, mut offset) = (from.0.to_owned(), from.1.to_owned());
    let mut chunks = Vec::new();
    loop {
        let path = format!("/v1/shape?{shape}&handle={handle}&offset={offset}");
        let answer = service.get(&path).await;
        let done = messages(&answer).last().is_some_and(is_up_to_date);
        assert_eq!(answer.header("electric-up-to-date"), done.then_some(""), "{path}");
        let next = header(&answer, "electric-offset");
        assert!(done || next != offset, "an offset that does not lead on: {offset}");
        offset = next;
        chunks.push((path, answer));
        if done {
            return chunks;
        }
    }
}

fn keys(answers: &[(String, Response)]) -> BTreeMap<String, usize> {
    let mut keys = BTreeMap::new();
    for message in answers.iter().flat_map(|(_, answer)| messages(answer)) {
        if let Some(key) = message["key"].as_str() {
            *keys.entry(key.to_owned()).or_insert(0) += 1;
        }
    }
    keys
}

#[tokio::test]
async fn chunks_give_each_row_once_and_never_change() {
    let (database, service) = started(
        "chunks",
        "CREATE TABLE items (id int PRIMARY KEY, v text);
         INSERT INTO items SELECT i, repeat('x', 150) FROM generate_series(1, 500) i",
        &[("ELECTRIC_SHAPE_CHUNK_BYTES_THRESHOLD", "10000")],
    )
    .await;
    let first = service.get("/v1/shape?table=items&offset=-1").await;
    let handle = header(&first, "electric-handle");
    assert_eq!(header(&first, "electric-offset"), "0_0");
    assert_eq!(first.header("electric-up-to-date"), None);
    assert_eq!(
        header(&first, "cache-control"),
        "public, max-age=604800, s-maxage=3600, stale-while-revalidate=2629746"
    );
    let mut snapshot = chunks(&service, "table=items", (&handle, "0_0")).await;
    snapshot.insert(0, ("/v1/shape?table=items&offset=-1".to_owned(), first));
    let (tail, complete) = snapshot.split_last().expect("at least the tail");
    assert_eq!(messages(&tail.1).len(), 1, "after the snapshot nothing has happened");
    assert_eq!(header(&tail.1, "electric-offset"), "0_inf");
    assert!(complete.len() > 5, "{}", complete.len());
    for (number, (path, chunk)) in complete.iter().enumerate() {
        assert_eq!(header(chunk, "electric-offset"), format!("0_{number}"), "{path}");
        let last = number + 1 == complete.len();
        assert!(last || (10_000..11_000).contains(&chunk.body.len()), "{path}: {}", chunk.body.len());
        let ends = messages(chunk).last().expect("a message")["headers"]["control"] == "snapshot-end";
        assert_eq!(ends, last, "{path}");
    }
    let rows = keys(&snapshot);
    assert_eq!((rows.len(), rows.values().max()), (500, Some(&1)));

    // Now the log: one transaction that fills several chunks, and single ones.
    database.execute("UPDATE items SET v = repeat('y', 150)").await;
    for id in 1..=20 {
        database.execute(&format!("UPDATE items SET v = 'z' WHERE id = {id}")).await;
    }
    let log = until("all changes are in the log", async || {
        let log = chunks(&service, "table=items", (&handle, "0_inf")).await;
        (keys(&log).values().sum::<usize>() == 520).then_some(log)
    })
    .await;
    assert!(log.len() > 5, "{}", log.len());
    let changed = keys(&log);
    assert_eq!((changed.len(), changed.values().filter(|count| **count == 2).count()), (500, 20));
    for (path, chunk) in &log[..log.len() - 1] {
        assert!((10_000..11_000).contains(&chunk.body.len()), "{path}: {}", chunk.body.len());
        let last = messages(chunk).last().expect("a message")["headers"].clone();
        let position = format!("{}_{}", last["lsn"].as_str().expect("an lsn"), last["op_position"]);
        assert_eq!(header(chunk, "electric-offset"), position, "the offset is that of the last row");
    }

    // What is complete answers the same for ever; what was the tail goes on.
    database.execute("INSERT INTO items VALUES (1000, 'later')").await;
    let next = following(&service, "table=items", &log[log.len() - 1].1, 1).await;
    assert_eq!(messages(&next)[0]["value"], json!({ "id": "1000", "v": "later" }));
    for (path, chunk) in complete.iter().chain(&log[..log.len() - 1]) {
        let again = service.get(path).await;
        assert!(again.body == chunk.body, "{path} has another body than before");
        for name in ["electric-offset", "etag", "electric-handle", "electric-schema", "cache-control"] {
            assert_eq!(again.header(name), chunk.header(name), "{path} {name}");
        }
    }
}

#[tokio::test]
async fn offsets_between_entries_and_odd_spellings_are_understood() {
    let (database, service) =
        started("offsets", "CREATE TABLE items (id int PRIMARY KEY, v text)", &[]).await;
    let empty = service.get("/v1/shape?table=items&offset=-1").await;
    let only = messages(&empty);
    assert_eq!((only.len(), &only[0]["headers"]["control"]), (1, &json!("snapshot-end")));
    for field in ["xmin", "xmax"] {
        let text = only[0]["headers"][field].as_str().expect("text");
        assert!(text.parse::<u64>().is_ok(), "{field}: {text}");
    }
    assert!(only[0]["headers"]["xip_list"].is_array());
    assert_eq!(service.get("/v1/shape?table=items&offset=-1_0").await.body, empty.body);
    let tail = tail(&service, "table=items").await;
    database.execute("INSERT INTO items VALUES (1, 'a'), (2, 'b'), (3, 'c')").await;
    let log = following(&service, "table=items", &tail, 3).await;
    let entries = messages(&log);
    let lsn = entries[0]["headers"]["lsn"].as_str().expect("text").to_owned();
    let positions: Vec<_> =
        entries[..3].iter().map(|entry| entry["headers"]["op_position"].clone()).collect();
    assert_eq!(positions, [json!(0), json!(2), json!(4)]);
    assert_eq!(header(&log, "electric-offset"), format!("{lsn}_4"));
    assert_eq!(entries[2]["headers"]["last"], true);
    assert_eq!(entries[0]["headers"]["last"], Value::Null);
    assert_eq!(entries[0]["headers"]["relation"], json!(["public", "items"]));
    assert!(entries[0]["headers"]["txids"][0].is_u64());
    let handle = header(&tail, "electric-handle");
    for (offset, count) in [
        (format!("{lsn}_0"), 2),
        (format!("{lsn}_1"), 2),
        (format!("{lsn}_3"), 1),
        (format!("{lsn}_4"), 0),
        (format!("0{lsn}_04"), 0),
        ("0_inf".to_owned(), 3),
        ("1_0".to_owned(), 3),
        ("1_inf".to_owned(), 3),
        ("0_00".to_owned(), 3),
    ] {
        let answer = service.get(&format!("/v1/shape?table=items&handle={handle}&offset={offset}")).await;
        assert_eq!(messages(&answer).len(), count + 1, "{offset}: {}", answer.text());
        assert_eq!(header(&answer, "electric-offset"), format!("{lsn}_4"), "{offset}");
        assert_eq!(header(&answer, "electric-has-data"), "true", "{offset}");
    }
}

#[tokio::test]
async fn an_offset_beyond_the_log_waits_and_is_then_out_of_bounds() {
    let (database, service) = started(
        "beyond",
        "CREATE TABLE items (id int PRIMARY KEY, v text)",
        &[("ELECTRIC_LONG_POLL_TIMEOUT", "1000")],
    )
    .await;
    let handle = header(&tail(&service, "table=items").await, "electric-handle");
    for live in ["", "&live=true"] {
        let path = format!("/v1/shape?table=items&handle={handle}&offset=999999999999_0{live}");
        let answer = service.get(&path).await;
        assert_eq!(answer.status, 400, "{}", answer.text());
        assert_eq!(
            answer.json(),
            json!({ "message": "Invalid request", "errors": { "offset": ["out of bounds for this shape"] } })
        );
        assert_eq!(answer.header("cache-control"), Some("no-store"));
    }
    // A log that gets there in time is served.
    let postgres = database.client().await;
    let here = super::current_lsn(&postgres).await;
    let path = format!("/v1/shape?table=items&handle={handle}&offset={}_0", here + 1);
    let asked = async { service.get(&path).await };
    let wrote = database.execute("INSERT INTO items VALUES (1, 'in time')");
    let (answer, ()) = tokio::join!(asked, wrote);
    assert_eq!(messages(&answer)[0]["value"]["v"], "in time", "{}", answer.text());
}

#[tokio::test]
async fn now_changes_only_and_full_replicas() {
    let (database, service) = started(
        "modes",
        "CREATE TABLE items (id int PRIMARY KEY, v text, w text);
         INSERT INTO items VALUES (1, 'a', 'big'), (2, 'b', NULL)",
        &[],
    )
    .await;
    let now = service.get("/v1/shape?table=items&offset=now").await;
    let body = messages(&now);
    assert_eq!((body.len(), header(&now, "electric-has-data").as_str()), (1, "false"));
    assert!(is_up_to_date(&body[0]));
    assert_eq!(header(&now, "electric-offset"), "0_inf");
    assert_eq!(header(&now, "electric-up-to-date"), "");
    assert_eq!(header(&now, "cache-control"), "public, max-age=60, stale-while-revalidate=300");
    assert!(now.header("electric-schema").is_some());

    let only = "table=items&log=changes_only";
    let first = service.get(&format!("/v1/shape?{only}&offset=-1")).await;
    let body = messages(&first);
    assert_eq!((body.len(), &body[0]["headers"]["control"]), (1, &json!("snapshot-end")));
    let full = "table=items&replica=full";
    let narrow = "table=items&columns=id,v";
    let (only_tail, full_tail, narrow_tail) =
        (tail(&service, only).await, tail(&service, full).await, tail(&service, narrow).await);
    let handles =
        [&now, &only_tail, &full_tail, &narrow_tail].map(|answer| header(answer, "electric-handle"));
    for (index, handle) in handles.iter().enumerate() {
        assert!(!handles[..index].contains(handle), "four definitions, four shapes: {handles:?}");
    }
    for sql in [
        "UPDATE items SET v = 'changed' WHERE id = 1",
        "UPDATE items SET w = 'unselected' WHERE id = 2",
        "UPDATE items SET v = v",
        "BEGIN; INSERT INTO items VALUES (9, 'never'); ROLLBACK",
        "UPDATE items SET id = 3 WHERE id = 2",
        "DELETE FROM items WHERE id = 1",
    ] {
        database.execute(sql).await;
    }
    let short =
        |message: &Value| json!([message["headers"]["operation"], message["value"], message["old_value"]]);
    let changes = |answer: &Response| {
        messages(answer).iter().filter(|m| !is_up_to_date(m)).map(short).collect::<Vec<_>>()
    };
    let expected = vec![
        json!(["update", { "id": "1", "v": "changed" }, null]),
        json!(["update", { "id": "2", "w": "unselected" }, null]),
        json!(["delete", { "id": "2" }, null]),
        json!(["insert", { "id": "3", "v": "b", "w": "unselected" }, null]),
        json!(["delete", { "id": "1" }, null]),
    ];
    let log = following(&service, "table=items", &now, 5).await;
    assert_eq!(changes(&log), expected);
    assert_eq!(changes(&following(&service, only, &only_tail, 5).await), expected);
    let key_change = messages(&log);
    assert_eq!(key_change[2]["headers"]["key_change_to"], "\"public\".\"items\"/\"3\"");
    assert_eq!(key_change[3]["headers"]["key_change_from"], "\"public\".\"items\"/\"2\"");
    assert_eq!(key_change[3]["headers"]["op_position"], 1);
    assert_eq!(
        changes(&following(&service, full, &full_tail, 5).await),
        vec![
            json!(["update", { "id": "1", "v": "changed", "w": "big" }, { "v": "a" }]),
            json!(["update", { "id": "2", "v": "b", "w": "unselected" }, { "w": null }]),
            json!(["delete", { "id": "2", "v": "b", "w": "unselected" }, null]),
            json!(["insert", { "id": "3", "v": "b", "w": "unselected" }, null]),
            json!(["delete", { "id": "1", "v": "changed", "w": "big" }, null]),
        ]
    );
    assert_eq!(
        changes(&following(&service, narrow, &narrow_tail, 4).await),
        vec![
            json!(["update", { "id": "1", "v": "changed" }, null]),
            json!(["delete", { "id": "2" }, null]),
            json!(["insert", { "id": "3", "v": "b" }, null]),
            json!(["delete", { "id": "1" }, null]),
        ]
    );
}

/// A hundred first requests at once: one shape.
#[tokio::test]
async fn first_requests_at_the_same_time_get_one_handle() {
    let (_database, service) =
        started("oneshape", "CREATE TABLE items (id int PRIMARY KEY, v text)", &[]).await;
    let asked: Vec<_> = (0..100)
        .map(|_| {
            let mut http = service.http();
            tokio::spawn(async move { http.get("/v1/shape?table=items&offset=-1&where=id%20%3E%205").await })
        })
        .collect();
    let mut handles = Vec::new();
    for answer in asked {
        let answer = answer.await.expect("the request ended").expect("an answer");
        handles.push(header(&answer, "electric-handle"));
    }
    handles.dedup();
    assert_eq!(handles.len(), 1, "{handles:?}");
}

//! Identity of shapes, values and keys, and what of a change is in the log: contract 1.8, 1.10, 3.

use serde_json::{Value, json};

use super::{header, post, started, tail};
use crate::support::{Service, WAIT_DURATION_MAX, encode};

async fn handle(service: &Service, query: &str) -> String {
    let answer = service.get(&format!("/v1/shape?offset=-1&{query}")).await;
    assert_eq!(answer.status, 200, "{query}: {}", answer.text());
    header(&answer, "electric-handle")
}

#[tokio::test]
async fn equal_definitions_share_a_handle_and_others_do_not() {
    let schema =
        "CREATE TABLE items (id int8 PRIMARY KEY, a int4, b text); CREATE TABLE other (id int8 PRIMARY KEY)";
    let (_database, service) = started("identity", schema, &[]).await;
    let plain = handle(&service, "table=items").await;
    let (hash, micros) = plain.split_once('-').expect("two parts");
    assert!(hash.parse::<u64>().is_ok() && micros.parse::<u64>().is_ok_and(|at| at > 1_700_000_000_000_000));
    for same in [
        "table=public.items",
        "table=items&where=",
        "table=items&where=%20%20",
        "table=items&replica=default&log=full",
        "table=items&cache-buster=1&expired_handle=x&foo=bar&cursor=banana",
        "table=items&experimental_compaction=true",
    ] {
        assert_eq!(handle(&service, same).await, plain, "{same}");
    }
    let some = handle(&service, "table=items&columns=id,a").await;
    for same in ["table=items&columns=a,id", "table=items&queryable_columns=id,a"] {
        assert_eq!(handle(&service, same).await, some, "{same}");
    }
    let filtered = handle(&service, "table=items&where=id%20=%20$1%20AND%20a%20IS%20NULL&params[1]=5").await;
    for same in ["id='5'::int8 and a is null", "((id = '5'::int8)) AND (a IS NULL)"] {
        assert_eq!(
            handle(&service, &format!("table=items&where={}", encode(same))).await,
            filtered,
            "{same}"
        );
    }
    let mut all = vec![plain, some, filtered];
    for different in [
        "table=other",
        "table=items&columns=id,a,b",
        "table=items&replica=full",
        "table=items&log=changes_only",
        "table=items&where=id%20=%20%275%27%20AND%20a%20IS%20NULL",
        "table=items&where=id%20=%205%20AND%20a%20IS%20NULL",
    ] {
        let next = handle(&service, different).await;
        assert!(!all.contains(&next), "{different}");
        all.push(next);
    }
    let outside = service.get("/v1/shape?offset=-1&table=items&columns=id,b&queryable_columns=id,a").await;
    assert_eq!(
        outside.json()["errors"],
        json!({ "columns": ["The following columns are not found on the table: b"] })
    );
}

#[tokio::test]
async fn the_secret_is_taken_from_the_query_only() {
    let schema = "CREATE TABLE items (id int PRIMARY KEY)";
    let (_database, service) =
        started("secret", schema, &[("ELECTRIC_SECRET", "s3cret"), ("ELECTRIC_INSECURE", "false")]).await;
    let path = "/v1/shape?table=items&offset=-1";
    assert_eq!(post(&service, path, r#"{"secret":"s3cret"}"#).await.status, 401);
    let headers = [("authorization", "Bearer s3cret")];
    let answer = service.http().request("GET", path, &headers, b"").await.expect("an answer");
    assert_eq!(answer.text(), r#"{"message":"Unauthorized - Invalid API secret"}"#);
    for (query, status) in
        [("secret=s3cret", 200), ("api_secret=s3cret", 200), ("secret=x&api_secret=s3cret", 401)]
    {
        assert_eq!(service.get(&format!("{path}&{query}")).await.status, status, "{query}");
    }
}

/// The changes on the log, once there are so many.
async fn log(service: &Service, query: &str, count: usize) -> Vec<Value> {
    let deadline = std::time::Instant::now() + WAIT_DURATION_MAX;
    loop {
        let (_, mut messages) = tail(service, query).await;
        messages.retain(|message| message["headers"]["lsn"].is_string());
        if messages.len() >= count {
            return messages;
        }
        assert!(std::time::Instant::now() < deadline, "{query}: {messages:?}");
    }
}

fn short(messages: &[Value], field: &str) -> Vec<Value> {
    messages.iter().map(|message| json!([message["headers"]["operation"], message[field]])).collect()
}

#[tokio::test]
async fn only_what_changed_is_on_the_log() {
    let schema =
        "CREATE TABLE items (id int PRIMARY KEY, a int, big text); CREATE TABLE keyless (a int, b text);
        ALTER TABLE items ALTER big SET STORAGE EXTERNAL;
        INSERT INTO items VALUES (1, 1, repeat('x', 100000)); INSERT INTO keyless VALUES (1, 'x')";
    let (database, service) = started("changed", schema, &[]).await;
    for table in ["items", "keyless", "items&columns=id", "items&replica=full"] {
        tail(&service, &format!("table={table}")).await;
    }
    let statements = [
        "UPDATE items SET a = a",
        "UPDATE items SET a = 2",
        "BEGIN; INSERT INTO items VALUES (7, 7, 'gone'); ROLLBACK",
        "BEGIN; INSERT INTO items VALUES (8, 8, 's'); SAVEPOINT s; INSERT INTO items VALUES (9, 9, 'gone'); \
         ROLLBACK TO s; COMMIT",
        "BEGIN; INSERT INTO keyless VALUES (2, NULL); INSERT INTO items VALUES (10, 10, 's'); \
         INSERT INTO keyless VALUES (3, 'y'); COMMIT",
        "UPDATE keyless SET b = 'z' WHERE a = 1",
    ];
    for sql in statements {
        database.execute(sql).await;
    }
    let items = log(&service, "table=items", 3).await;
    assert_eq!(
        short(&items, "value"),
        [
            json!(["update", { "id": "1", "a": "2" }]),
            json!(["insert", { "id": "8", "a": "8", "big": "s" }]),
            json!(["insert", { "id": "10", "a": "10", "big": "s" }]),
        ]
    );
    let last = &items[2]["headers"];
    assert_eq!(
        (&last["op_position"], &last["last"]),
        (&json!(2), &json!(true)),
        "over all tables, last here"
    );
    let ids = log(&service, "table=items&columns=id", 2).await;
    assert_eq!(ids.len(), 2, "an update of no column of it is nothing: {ids:?}");
    let full = log(&service, "table=items&replica=full", 3).await;
    let update = full.iter().find(|message| message["headers"]["operation"] == "update").expect("an update");
    assert_eq!(update["value"]["big"].as_str().map(str::len), Some(100_000), "filled from the old row");
    assert_eq!(update["old_value"], json!({ "a": "1" }));
    assert_eq!(
        short(&log(&service, "table=keyless", 4).await, "key"),
        [
            json!(["insert", r#""public"."keyless"/"2"/_"#]),
            json!(["insert", r#""public"."keyless"/"3"/"y""#]),
            json!(["delete", r#""public"."keyless"/"1"/"x""#]),
            json!(["insert", r#""public"."keyless"/"1"/"z""#]),
        ]
    );
}

/// U8: one form of keys and values in snapshot and log.
#[tokio::test]
async fn keys_values_and_schema() {
    let schema = r#"CREATE TABLE "od.d/t""q" (ok boolean, name text, addr inet, c char(4), v varchar(10), n numeric(10,2),
            t timestamp(3), m int[][], i interval year to month, "größe" int NOT NULL, e text, PRIMARY KEY (name, ok, addr));
        INSERT INTO "od.d/t""q" VALUES (true, 'a/b"c', '10.0.0.1', 'x', 'y', 1.5, '2024-01-31 12:34:56.789', '{{1,2}}', '14 months', 1, ''),
            (false, '', '10.0.0.0/8', NULL, NULL, NULL, NULL, NULL, NULL, 2, NULL)"#;
    let (database, service) = started("keys", schema, &[]).await;
    let query = format!("table={}", encode(r#""od.d/t""q""#));
    let (answer, snapshot) = tail(&service, &query).await;
    let schema: Value = serde_json::from_str(&header(&answer, "electric-schema")).expect("JSON");
    assert!(header(&answer, "electric-schema").is_ascii());
    assert_eq!(
        schema,
        json!({
            "name": { "type": "text", "not_null": true, "pk_index": 0 },
            "ok": { "type": "bool", "not_null": true, "pk_index": 1 },
            "addr": { "type": "inet", "not_null": true, "pk_index": 2 },
            "c": { "type": "bpchar", "length": 4 },
            "v": { "type": "varchar", "max_length": 10 },
            "n": { "type": "numeric", "precision": 10, "scale": 2 },
            "t": { "type": "timestamp", "precision": 3 },
            "m": { "type": "int4", "dims": 2 },
            "i": { "type": "interval", "fields": "YEAR TO MONTH" },
            "größe": { "type": "int4", "not_null": true },
            "e": { "type": "text" },
        })
    );
    let copy = r#"BEGIN; CREATE TEMP TABLE copies ON COMMIT DROP AS SELECT * FROM "od.d/t""q";
        DELETE FROM "od.d/t""q"; INSERT INTO "od.d/t""q" SELECT * FROM copies; COMMIT"#;
    database.execute(copy).await;
    let log = log(&service, &query, 4).await;
    let rows = |messages: &[Value]| -> Vec<Value> {
        let inserts = messages.iter().filter(|m| m["headers"]["operation"] == "insert");
        let mut rows: Vec<Value> = inserts.map(|m| json!([m["key"], m["value"]])).collect();
        rows.sort_by_key(Value::to_string);
        rows
    };
    assert_eq!(rows(&log), rows(&snapshot));
    let rows = rows(&log);
    assert_eq!(rows.len(), 2);
    assert_eq!(rows[0][0], r#""public"."od..d//t"q"/""/"false"/"10.0.0.0//8""#);
    assert_eq!(rows[1][0], r#""public"."od..d//t"q"/"a//b"c"/"true"/"10.0.0.1""#);
    let value = &rows[1][1];
    for (column, text) in
        [("c", "x   "), ("ok", "true"), ("t", "2024-01-31 12:34:56.789"), ("i", "P1Y2M"), ("e", "")]
    {
        assert_eq!(value[column], text, "{column}");
    }
    assert_eq!(rows[0][1]["e"], Value::Null);
}

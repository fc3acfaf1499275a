//! What the service answers to requests that are wrong, and to those beside the log: contract 1 and 2.

use serde_json::json;

use super::errors;
use crate::support::{Response, Service, TestDatabase, database, encode};

const SCHEMA: &str = r#"
    CREATE TABLE items (id int8 PRIMARY KEY, value text, n int4, made date);
    INSERT INTO items SELECT i, 'value ' || i, i, '2026-01-01' FROM generate_series(1, 3) i;
    CREATE TABLE pairs (b int4, a int4, v text, PRIMARY KEY (b, a));
    CREATE TABLE keyless (a int4, b int4);
    CREATE TABLE "Mixed" (id int4 PRIMARY KEY, "a,B" text);
    CREATE VIEW seen AS SELECT * FROM items;
    CREATE SCHEMA other;
    CREATE TABLE other.things (id int4 PRIMARY KEY);
"#;

/// What a browser may read of an answer.
const EXPOSED: &str = "electric-cursor,electric-handle,electric-has-data,electric-offset,electric-schema,electric-up-to-date,electric-internal-known-error,retry-after";

async fn started(hint: &str) -> (TestDatabase, Service) {
    let database = database(hint).await;
    database.execute(SCHEMA).await;
    let service = Service::start(&database, |_| {}).await;
    (database, service)
}

async fn request(service: &Service, method: &str, path: &str, headers: &[(&str, &str)]) -> Response {
    service.http().request(method, path, headers, b"").await.expect("the service answers")
}

/// The headers that every answer has.
fn common(answer: &Response, context: &str) {
    let header = |name| answer.header(name);
    assert!(header("electric-server").is_some_and(|text| text.starts_with("ElectricSQL/")), "{context}");
    assert!(header("x-request-id").is_some_and(|id| id.len() == 20), "{context}");
    if answer.status == 401 {
        assert_eq!(header("access-control-allow-origin"), None, "{context}");
    } else {
        assert_eq!(header("access-control-allow-origin"), Some("*"), "{context}");
        assert_eq!(header("access-control-expose-headers"), Some(EXPOSED), "{context}");
    }
}

/// A refusal of parameters: status, whole body, headers.
async fn refused(service: &Service, query: &str, expected: serde_json::Value) {
    let answer = service.get(&format!("/v1/shape?{query}")).await;
    assert_eq!(answer.status, 400, "{query}: {}", answer.text());
    assert_eq!(answer.json(), json!({ "message": "Invalid request", "errors": expected }), "{query}");
    assert_eq!(answer.header("cache-control"), Some("no-store"), "{query}");
    assert_eq!(answer.header("surrogate-control"), Some("no-store"), "{query}");
    assert_eq!(answer.header("content-type"), Some("application/json; charset=utf-8"), "{query}");
    for absent in ["electric-offset", "electric-schema", "electric-cursor", "electric-handle", "etag"] {
        assert_eq!(answer.header(absent), None, "{query}: {absent}");
    }
    common(&answer, query);
}

#[tokio::test]
async fn malformed_parameters_are_refused_in_the_order_of_the_contract() {
    let (_database, service) = started("params").await;
    for (query, expected) in [
        ("", json!({ "offset": ["can't be blank"] })),
        ("table=items", json!({ "offset": ["can't be blank"] })),
        ("table=items&offset=%20", json!({ "offset": ["can't be blank"] })),
        ("offset=-1", json!({ "table": ["can't be blank"] })),
        ("table=items&offset=10", json!({ "offset": ["has invalid format"] })),
        ("table=items&offset=1_2_3", json!({ "offset": ["has invalid format"] })),
        ("table=items&offset=1_2%20", json!({ "offset": ["has invalid format"] })),
        ("table=items&offset=foo", json!({ "offset": ["has invalid format"] })),
        ("table=items&offset=1_-1", json!({ "offset": ["has invalid format"] })),
        ("table=items&offset=-2", json!({ "offset": ["has invalid format"] })),
        ("table=items&offset=99999999999999999999_0&handle=1-1", json!({ "offset": ["has invalid format"] })),
        // The syntax of the offset comes before the table is looked at.
        ("table=nope&offset=foo", json!({ "offset": ["has invalid format"] })),
        ("table=items&offset=0_0", json!({ "handle": ["can't be blank when offset != -1"] })),
        ("table=items&offset=-1&live=true", json!({ "live": ["can't be true when offset == -1"] })),
        ("table=items&offset=-1&live", json!({ "live": ["can't be true when offset == -1"] })),
        ("table=items&offset=-1&live=banana", json!({ "live": ["can't be true when offset == -1"] })),
        ("table=items&offset=now&live=true", json!({ "live": ["can't be true when offset is 'now'"] })),
        (
            "table=items&offset=-1&live_sse=true",
            json!({ "live_sse": ["can't be true unless live is also true"] }),
        ),
        ("table=items&offset=-1&replica=x", json!({ "replica": ["is invalid"] })),
        ("table=items&offset=-1&log=x", json!({ "log": ["is invalid"] })),
        ("table=items&replica=x", json!({ "offset": ["can't be blank"], "replica": ["is invalid"] })),
        ("table=items&offset=-1&params=x", json!({ "params": ["is invalid"] })),
        (
            "table=items&offset=-1&where=id=$1&params[a]=1",
            json!({ "params": ["Parameters can only use numbers as keys"] }),
        ),
        (
            "table=items&offset=-1&where=id=$1&params[2]=1",
            json!({ "params": ["Parameters must be numbered sequentially, starting from 1"] }),
        ),
    ] {
        refused(&service, query, expected).await;
    }
}

#[tokio::test]
async fn tables_that_are_none_are_refused() {
    let (_database, service) = started("tables").await;
    let missing = |name: &str| {
        format!(
            "Table {name} does not exist. If the table name contains capitals or special characters you must quote it."
        )
    };
    for (table, message) in [
        ("nope", missing(r#""public"."nope""#)),
        ("Mixed", missing(r#""public"."mixed""#)),
        ("other.nope", missing(r#""other"."nope""#)),
        ("seen", missing(r#""public"."seen""#)),
        ("items_pkey", missing(r#""public"."items_pkey""#)),
        ("a.b.c", "Invalid relation identifier, too many delimiters: a.b.c".to_owned()),
        ("a@b", "Invalid unquoted identifier contains special characters: a@b".to_owned()),
        ("\"\"", "Invalid zero-length delimited identifier".to_owned()),
        ("\"a\"b\"", "Invalid identifier with unescaped quote: a\"b".to_owned()),
        (&"x".repeat(64), "Identifier is too long (max length is 63)".to_owned()),
    ] {
        let query = format!("offset=-1&table={}", encode(table));
        refused(&service, &query, json!({ "table": [message] })).await;
    }
    for table in ["items", "public.items", "ITEMS", "\"Mixed\"", "other.things"] {
        let answer = service.get(&format!("/v1/shape?offset=-1&table={}", encode(table))).await;
        assert_eq!(answer.status, 200, "{table}: {}", answer.text());
    }
}

#[tokio::test]
async fn columns_are_checked_against_the_table() {
    let (_database, service) = started("columns").await;
    let missing = "The list of columns must include all primary key columns, missing: ";
    for (table, columns, message) in [
        ("items", "value", format!("{missing}id")),
        ("pairs", "v", format!("{missing}b, a")),
        ("pairs", "v,a,nope", format!("{missing}b")),
        ("keyless", "a", format!("{missing}b")),
        ("items", "id,zzz,yyy", "The following columns are not found on the table: zzz, yyy".to_owned()),
        ("items", "id, value", "Invalid unquoted identifier contains special characters:  value".to_owned()),
        ("items", "id,a@b", "Invalid unquoted identifier contains special characters: a@b".to_owned()),
    ] {
        let query = format!("offset=-1&table={table}&columns={}", encode(columns));
        refused(&service, &query, json!({ "columns": [message] })).await;
    }
    let answer =
        service.get(&format!("/v1/shape?offset=-1&table=%22Mixed%22&columns={}", encode("\"a,B\",id"))).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let schema: serde_json::Value =
        serde_json::from_str(answer.header("electric-schema").expect("a schema")).expect("JSON");
    assert_eq!(schema["id"], json!({ "type": "int4", "pk_index": 0, "not_null": true }));
    assert_eq!(schema["a,B"], json!({ "type": "text" }));
}

#[tokio::test]
async fn where_clauses_are_checked_against_the_columns() {
    let (_database, service) = started("where").await;
    let message = async |clause: &str, more: &str| {
        let answer =
            service.get(&format!("/v1/shape?table=items&offset=-1&where={}{more}", encode(clause))).await;
        assert_eq!(answer.header("cache-control"), Some("no-store"), "{clause}");
        let messages = errors(&answer, "where");
        let list = messages.as_array().unwrap_or_else(|| panic!("{clause}: {}", answer.text()));
        assert_eq!(list.len(), 1, "{clause}: {list:?}");
        list[0].as_str().expect("text").to_owned()
    };
    for (clause, part) in [
        ("id =", "syntax error"),
        ("id = 1 AND", "syntax error"),
        ("1", "WHERE clause must return a boolean"),
        ("zzz = 1", "unknown reference zzz"),
        ("items.id = 1", "unknown reference items.id"),
        ("id = 'x'", "invalid syntax for type int8: x"),
        ("made = 5", "Could not select an operator overload"),
        ("value > 5", "Could not select an operator overload"),
        ("id = 1; SELECT 1", "unescaped \";\" causing statement split"),
        ("true ORDER BY 1", "malformed query ending with SQL clauses"),
        ("true LIMIT 1", "malformed query ending with SQL clauses"),
        ("id = $1", "parameter $1 was not provided"),
    ] {
        let text = message(clause, "").await;
        assert!(text.contains(part), "{clause}: {text}");
    }
    assert!(message("id =", "").await.starts_with("At location "), "a syntax error says where");
    assert_eq!(message("id = 1 AND zzz = 1", "").await, "At location 11: unknown reference zzz");
    let conflict = message("n = $1 AND value = $1", "&params[1]=1").await;
    assert!(conflict.contains("type conflict for $1"), "{conflict}");
    // No shape has come of any of this.
    let fine = service.get("/v1/shape?table=items&offset=-1&where=%20").await;
    let plain = service.get("/v1/shape?table=items&offset=-1").await;
    assert_eq!(fine.header("electric-handle"), plain.header("electric-handle"), "blank is absent");
}

#[tokio::test]
async fn a_handle_that_does_not_fit_is_answered_with_the_one_that_does() {
    let (_database, service) = started("handles").await;
    let first = service.get("/v1/shape?table=items&offset=-1").await;
    let handle = first.header("electric-handle").expect("a handle").to_owned();
    let (hash, micros) = handle.split_once('-').expect("two parts");
    assert!(hash.parse::<u128>().is_ok() && micros.parse::<u64>().is_ok(), "{handle}");
    let filtered = service.get("/v1/shape?table=items&offset=-1&where=id%3D1").await;
    let other = filtered.header("electric-handle").expect("a handle").to_owned();
    assert_ne!(handle, other);
    for wrong in ["1-1", "bogus", &other] {
        let answer = service.get(&format!("/v1/shape?table=items&offset=0_0&handle={}", encode(wrong))).await;
        assert_eq!(answer.status, 409, "{wrong}: {}", answer.text());
        assert_eq!(answer.text(), r#"[{"headers":{"control":"must-refetch"}}]"#);
        assert_eq!(answer.header("electric-handle"), Some(&*handle), "{wrong}");
        assert_eq!(answer.header("etag"), Some(&*format!("\"{handle}::\"")));
        assert_eq!(answer.header("cache-control"), Some("public, max-age=60, must-revalidate"));
        assert_eq!(answer.header("location"), None);
        common(&answer, wrong);
        // Of no account where all rows are asked for anyway.
        for offset in ["-1", "now"] {
            let answer =
                service.get(&format!("/v1/shape?table=items&offset={offset}&handle={}", encode(wrong))).await;
            assert_eq!((answer.status, answer.header("electric-handle")), (200, Some(&*handle)));
        }
    }
    // A shape that nobody has asked for yet is made for the sake of its handle.
    let made = service.get("/v1/shape?table=pairs&offset=0_0&handle=1-1").await;
    let successor = made.header("electric-handle").expect("the handle of the new shape").to_owned();
    let pairs = service.get("/v1/shape?table=pairs&offset=-1").await;
    assert_eq!((made.status, pairs.header("electric-handle")), (409, Some(&*successor)));
}

#[tokio::test]
async fn deletion_needs_permission_and_ends_one_shape() {
    let (database, service) = started("deletion").await;
    let get = async |path: &str| service.get(path).await.header("electric-handle").map(str::to_owned);
    let delete = async |query: &str| request(&service, "DELETE", &format!("/v1/shape?{query}"), &[]).await;
    let handle = get("/v1/shape?table=items&offset=-1").await.expect("a handle");
    let other = get("/v1/shape?table=pairs&offset=-1").await.expect("a handle");

    let answer = delete("table=keyless").await;
    assert_eq!((answer.status, &*answer.text()), (404, r#"{"message":"No existing shape found"}"#));
    let answer = delete("handle=1-1").await;
    assert_eq!((answer.status, &*answer.text()), (404, r#"{"message":"No existing shape found"}"#));
    let answer = delete(&format!("table=items&handle={other}")).await;
    assert_eq!(answer.status, 400);
    assert_eq!(
        answer.text(),
        r#"{"message":"The specified shape definition and handle do not match. Please ensure the shape definition is correct or omit the shape handle from the request to obtain a new one."}"#
    );
    assert_eq!(
        errors(&delete("").await, "handle"),
        json!(["can't be blank when shape definition is missing"])
    );
    assert_eq!(errors(&delete("table=items&live=banana").await, "live"), json!(["is invalid"]));
    assert_eq!(get("/v1/shape?table=items&offset=-1").await.as_ref(), Some(&handle), "nothing was deleted");

    let answer = delete(&format!("table=items&handle={handle}")).await;
    assert_eq!((answer.status, &*answer.text()), (202, ""));
    assert_eq!(answer.header("cache-control"), Some("no-cache"));
    let gone = service.get(&format!("/v1/shape?table=items&offset=0_0&handle={handle}")).await;
    assert_eq!(gone.status, 409);
    let next = get("/v1/shape?table=items&offset=-1").await.expect("a handle");
    assert_ne!(next, handle, "a handle is never used again");
    assert_eq!(gone.header("electric-handle"), Some(&*next));
    assert_eq!(delete(&format!("handle={other}")).await.status, 202);
    assert_eq!(delete("table=items").await.status, 202);
    assert_eq!(delete("table=items").await.status, 404);
    drop(service);

    let service = Service::start(&database, |settings| {
        settings.set("ELECTRIC_ENABLE_INTEGRATION_TESTING", "false");
        settings.stream_id.push_str("_closed");
    })
    .await;
    let answer = request(&service, "DELETE", "/v1/shape?table=items", &[]).await;
    assert_eq!((answer.status, &*answer.text()), (405, r#"{"message":"DELETE not allowed"}"#));
    assert_eq!(answer.header("cache-control"), Some("no-cache"));
}

#[tokio::test]
async fn routes_methods_and_cross_origin_headers() {
    let (_database, service) = started("routes").await;
    for (method, path) in [
        ("GET", "/nope"),
        ("GET", "/v1"),
        ("GET", "/v1/shape/x"),
        ("PUT", "/v1/shape"),
        ("POST", "/v1/health"),
        ("OPTIONS", "/"),
        ("DELETE", "/v1/health"),
    ] {
        let answer = request(&service, method, path, &[]).await;
        assert_eq!((answer.status, &*answer.text()), (404, "Not found"), "{method} {path}");
        assert_eq!(answer.header("cache-control"), Some("max-age=0, private, must-revalidate"));
        common(&answer, path);
    }
    for method in ["GET", "HEAD"] {
        let root = request(&service, method, "/", &[]).await;
        assert_eq!((root.status, root.body.len()), (200, 0), "{method} /");
        assert_eq!(root.header("access-control-allow-methods"), Some("GET, HEAD"));
        let health = request(&service, method, "/v1/health?x=1", &[]).await;
        let body = if method == "GET" { r#"{"status":"active"}"# } else { "" };
        assert_eq!((health.status, &*health.text()), (200, body));
        assert_eq!(health.header("cache-control"), Some("no-cache, no-store, must-revalidate"));
        assert_eq!(health.header("access-control-allow-methods"), Some("GET, HEAD"));
    }
    let preflight = request(
        &service,
        "OPTIONS",
        "/v1/shape",
        &[("origin", "https://a.example"), ("access-control-request-headers", "If-None-Match")],
    )
    .await;
    assert_eq!((preflight.status, preflight.body.len()), (204, 0));
    assert_eq!(preflight.header("access-control-max-age"), Some("86400"));
    assert_eq!(preflight.header("access-control-allow-origin"), Some("https://a.example"));
    assert_eq!(preflight.header("access-control-allow-headers"), Some("if-none-match"));
    assert_eq!(preflight.header("access-control-allow-methods"), Some("GET, POST, HEAD, DELETE, OPTIONS"));
    assert_eq!((preflight.header("cache-control"), preflight.header("vary")), (None, None));

    let head = request(&service, "HEAD", "/v1/shape?table=items&offset=-1", &[]).await;
    let get = request(&service, "GET", "/v1/shape?table=items&offset=-1", &[]).await;
    assert_eq!((head.status, head.body.len(), get.status), (200, 0, 200));
    for name in ["electric-handle", "electric-offset", "electric-schema", "etag", "cache-control", "vary"] {
        assert_eq!(head.header(name), get.header(name), "{name}");
        assert!(get.header(name).is_some(), "{name}");
    }
    let id = "a-request-id-of-a-decent-length";
    let echoed = request(&service, "GET", "/v1/health", &[("x-request-id", id)]).await;
    assert_eq!(echoed.header("x-request-id"), Some(id));
}

#[tokio::test]
async fn the_secret_guards_every_spelling_of_the_path() {
    let database = database("secret").await;
    database.execute(SCHEMA).await;
    let service = Service::start(&database, |settings| {
        settings.set("ELECTRIC_INSECURE", "false").set("ELECTRIC_SECRET", "s3cret-text");
    })
    .await;
    for path in ["/v1/shape", "/v1/shape/", "/v1//shape", "//v1/shape", "/v1/%73hape", "/%76%31/shape//"] {
        let ask = async |method: &str, secret: &str| {
            request(&service, method, &format!("{path}?table=items&offset=-1{secret}"), &[]).await
        };
        for method in ["GET", "HEAD", "POST", "DELETE"] {
            for wrong in ["", "&secret=", "&secret=wrong", "&secret=wrong&api_secret=s3cret-text"] {
                let answer = ask(method, wrong).await;
                assert_eq!(answer.status, 401, "{method} {path} {wrong}");
                let body =
                    if method == "HEAD" { "" } else { r#"{"message":"Unauthorized - Invalid API secret"}"# };
                assert_eq!(answer.text(), body);
                common(&answer, path);
            }
        }
        for right in ["&secret=s3cret-text", "&api_secret=s3cret-text", "&secret=s3cret-text&api_secret=no"] {
            assert_eq!(ask("GET", right).await.status, 200, "{path} {right}");
        }
        let header = [("authorization", "Bearer s3cret-text")];
        let answer = request(&service, "GET", &format!("{path}?table=items&offset=-1"), &header).await;
        assert_eq!(answer.status, 401, "only the query counts");
        assert_eq!(request(&service, "OPTIONS", path, &[]).await.status, 204);
    }
    for (path, status) in [("/", 200), ("/v1/health", 200), ("/nope", 404)] {
        assert_eq!(request(&service, "GET", path, &[]).await.status, status, "{path} needs no secret");
    }
    assert!(!service.output().contains("s3cret-text"), "{}", service.output());
}

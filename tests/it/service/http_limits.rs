//! Requests with a body, and more of them than there are places: contract 1.6, 1.14 and 6.4.

use serde_json::json;

use super::{handle, until};
use crate::support::{Response, Service, ShapeRequest, database};

async fn post(service: &Service, query: &str, body: &[u8]) -> Response {
    let path = format!("/v1/shape?{query}");
    let headers = [("content-type", "application/json")];
    service.http().request("POST", &path, &headers, body).await.expect("an answer")
}

#[tokio::test]
async fn a_post_is_a_get_with_parameters_in_its_body() {
    let database = database("post").await;
    database
        .execute(
            "CREATE TABLE items (id int8 PRIMARY KEY, v text); INSERT INTO items VALUES (1, 'a'), (2, 'b')",
        )
        .await;
    let service = Service::start(&database, |_| {}).await;
    let get = service.get("/v1/shape?table=items&offset=-1&where=id%20%3D%20%241&params%5B1%5D=2").await;
    let body = json!({ "table": "items", "where": "id = $1", "params": { "1": "2" } }).to_string();
    // A subset has a `where` of its own at the top of the body: the shape's is in the query.
    let body = if get.status == 200 { body.replace(r#","where":"id = $1""#, "") } else { body };
    let body = body.replace(r#","params":{"1":"2"}"#, "").replace(r#""params":{"1":"2"},"#, "");
    let answer = post(&service, "offset=-1&where=id%20%3D%20%241&params%5B1%5D=2", body.as_bytes()).await;
    assert_eq!(answer.status, 200, "{body}: {}", answer.text());
    assert_eq!(
        (answer.header("electric-handle"), answer.text()),
        (get.header("electric-handle"), get.text())
    );
    assert_eq!(answer.header("cache-control"), Some("no-cache"));
    for (body, error) in [
        (&b"[1]"[..], json!({ "error": "Request body must be a JSON object" })),
        (b"\"x\"", json!({ "error": "Request body must be a JSON object" })),
    ] {
        let answer = post(&service, "table=items&offset=-1", body).await;
        assert_eq!((answer.status, answer.json()), (400, error));
    }
    let broken = post(&service, "table=items&offset=-1", b"{\"table\":").await;
    assert_eq!((broken.status, &broken.json()["error"]), (400, &json!("Invalid JSON in request body")));
    let missing = post(&service, "table=items", b"{}").await;
    assert_eq!(
        (missing.status, missing.header("cache-control")),
        (400, Some("no-cache")),
        "{}",
        missing.text()
    );
    let large = format!("{{\"table\":\"{}\"}}", "x".repeat(8_000_000));
    let answer = post(&service, "offset=-1", large.as_bytes()).await;
    assert_eq!((answer.status, answer.json()), (413, json!({ "error": "Request body too large" })));
}

#[tokio::test]
async fn more_requests_than_places_are_sent_away_and_places_come_back() {
    let database = database("places").await;
    database.execute("CREATE TABLE items (id int PRIMARY KEY, v text)").await;
    let service = Service::start(&database, |settings| {
        settings
            .set("ELECTRIC_MAX_CONCURRENT_REQUESTS", r#"{"initial":1,"existing":1}"#)
            .set("ELECTRIC_LONG_POLL_TIMEOUT", "60000");
    })
    .await;
    let mut client = service.follow(ShapeRequest::table("items"));
    client.sync().await.expect("the shape is made");
    let live =
        format!("/v1/shape?table=items&handle={}&offset={}&live=true", handle(&client), client.offset());
    let (mut http, path) = (service.http(), live.clone());
    // It asks again where one of the requests below was there before it.
    let first =
        tokio::spawn(async move { while http.get(&path).await.is_ok_and(|answer| answer.status == 503) {} });
    let tail = live.replace("&live=true", "");
    let refused = until("the only place is taken", async || {
        let answer = service.get(&tail).await;
        (answer.status != 200).then_some(answer)
    })
    .await;
    assert_eq!(refused.status, 503);
    assert_eq!(
        refused.json(),
        json!({
            "code": "concurrent_request_limit_exceeded",
            "message": "Concurrent existing request limit exceeded (limit: 1), please retry"
        })
    );
    assert_eq!(refused.header("electric-internal-known-error"), Some("true"));
    let seconds: u64 = refused.header("retry-after").and_then(|text| text.parse().ok()).expect("a number");
    assert!((6..=10).contains(&seconds), "{seconds}");
    // First requests have places of their own; what they ask for wrongly is looked at afterwards.
    assert_eq!(service.get("/v1/shape?table=nope&offset=-1").await.status, 400);
    // A client that goes away gives its place back.
    first.abort();
    until("the place is free", async || (service.get(&tail).await.status == 200).then_some(())).await;
}

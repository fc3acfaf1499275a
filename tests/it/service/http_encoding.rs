//! What a client gets that accepts compressed answers: contract 1.3.

use std::io::Read;

use super::http_log::{header, started};

const TABLE: &str =
    "CREATE TABLE items (id int PRIMARY KEY, v text); INSERT INTO items VALUES (1, repeat('x', 5000))";

/// Errors are compressed, logs and streams of events come as they are.
#[tokio::test]
async fn errors_are_compressed_and_logs_are_not() {
    let (database, service) = started("encoding", TABLE, &[]).await;
    let mut http = service.http();
    let accept = [("accept-encoding", "gzip, deflate")];
    let refused =
        http.request("GET", "/v1/shape?table=nothing&offset=-1", &accept, b"").await.expect("an answer");
    assert_eq!((refused.status, header(&refused, "content-encoding").as_str()), (400, "gzip"));
    assert_eq!(header(&refused, "vary"), "accept-encoding");
    let mut text = String::new();
    flate2::read::GzDecoder::new(&*refused.body).read_to_string(&mut text).expect("gzip");
    let plain = service.get("/v1/shape?table=nothing&offset=-1").await;
    assert_eq!((plain.text(), plain.header("content-encoding")), (text, None));

    let first =
        http.request("GET", "/v1/shape?table=items&offset=-1", &accept, b"").await.expect("an answer");
    assert_eq!((first.status, first.header("content-encoding")), (200, None));
    let handle = header(&first, "electric-handle");
    let now = http.request("GET", "/v1/shape?table=items&offset=now", &accept, b"").await.expect("an answer");
    let path = format!(
        "/v1/shape?table=items&handle={handle}&offset={}&live=true&live_sse=true",
        header(&now, "electric-offset")
    );
    let streamed = tokio::spawn(async move {
        let mut text = String::new();
        let on_part = |part: &[u8]| text.push_str(&String::from_utf8_lossy(part));
        let head = http.request_streaming("GET", &path, &accept, b"", on_part).await.expect("a stream");
        (head, text)
    });
    database.execute("UPDATE items SET v = repeat('y', 5000); TRUNCATE items").await;
    let (head, text) = streamed.await.expect("the stream ends");
    assert_eq!((head.status, head.header("content-encoding")), (200, None));
    assert!(text.is_empty() || text.starts_with("data: {"), "{text}");
    let refetch = service
        .http()
        .request("GET", &format!("/v1/shape?table=items&handle={handle}&offset=0_0"), &accept, b"")
        .await;
    let refetch = refetch.expect("an answer");
    assert_eq!(
        (refetch.status, refetch.text().as_str()),
        (409, r#"[{"headers":{"control":"must-refetch"}}]"#)
    );
}

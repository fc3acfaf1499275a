//! Over real sockets: what only a connection can show.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::runtime::handle::Status;
use crate::server::Settings;
use crate::server::accept::serve_app;
use crate::server::testing::{Birth, World, definition, push_row};

struct Server {
    world: World,
    address: std::net::SocketAddr,
    shutdown: oneshot::Sender<()>,
    serving: JoinHandle<()>,
}

async fn server(birth: Birth) -> Server {
    server_with(Settings::default(), birth).await
}

async fn server_with(settings: Settings, birth: Birth) -> Server {
    let settings = Settings { shutdown_timeout: Duration::from_secs(60), ..settings };
    let world = World::new(settings, birth);
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("an address");
    let (shutdown, stopped) = oneshot::channel();
    let serving = tokio::spawn(serve_app(listener, Arc::clone(&world.app), async {
        let _ = stopped.await;
    }));
    Server { world, address, shutdown, serving }
}

impl Server {
    async fn send(&self, request: &str) -> TcpStream {
        let mut stream = TcpStream::connect(self.address).await.expect("the server accepts");
        stream.write_all(request.as_bytes()).await.expect("the server reads");
        stream
    }

    /// Until so many requests to a shape are being answered.
    async fn until_waiting(&self, count: i64) {
        let taken = self.world.service.metrics().admission.with_label_values(&["existing"]);
        while taken.get() != count {
            tokio::task::yield_now().await;
        }
    }
}

async fn read_all(mut stream: TcpStream) -> String {
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.expect("the server closes the connection");
    String::from_utf8(answer).expect("text")
}

fn get(target: &str) -> String {
    format!("GET {target} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
}

#[tokio::test]
async fn a_request_over_a_socket() {
    let server = server(Birth::Complete(1)).await;
    let answer = read_all(server.send(&get("/v1/shape?table=items&offset=-1")).await).await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(answer.contains("electric-offset: 0_0\r\n") && answer.contains("date: "), "{answer}");
    let head =
        server.send("HEAD /v1/shape?table=items&offset=-1 HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    let answer = read_all(head.await).await;
    assert!(answer.contains("electric-handle: 77-1\r\n") && answer.ends_with("\r\n\r\n"), "{answer}");
    let long = format!("/v1/shape?offset=x&table={}", "y".repeat(60_000));
    let answer = read_all(server.send(&get(&long)).await).await;
    assert!(answer.contains("has invalid format"), "long URLs are read: {answer}");
}

#[tokio::test]
async fn a_broken_body_breaks_the_connection() {
    let server = server(Birth::Readable).await;
    let made = server.world.make(definition());
    let mut snapshot = made.snapshot();
    push_row(&mut snapshot, 0);
    snapshot.show().expect("the disk works");
    let mut stream = server.send(&get("/v1/shape?table=items&offset=-1")).await;
    let mut answer = Vec::new();
    while !String::from_utf8_lossy(&answer).contains("\"old\"") {
        assert_ne!(stream.read_buf(&mut answer).await.expect("the beginning"), 0);
    }
    drop(snapshot);
    // A reset is as good as an early end.
    let _ = stream.read_to_end(&mut answer).await;
    let answer = String::from_utf8_lossy(&answer);
    assert!(answer.contains("transfer-encoding: chunked"), "{answer}");
    assert!(!answer.ends_with("0\r\n\r\n"), "the body must not end cleanly: {answer}");
}

#[tokio::test]
async fn shutdown_answers_what_waits_and_closes_what_idles() {
    let server = server(Birth::Complete(0)).await;
    server.world.make(definition());
    let live = "GET /v1/shape?table=items&handle=77-1&live=true&offset=0_inf HTTP/1.1\r\nhost: x\r\n\r\n";
    let waiting = server.send(live).await;
    let mut idle = server.send("GET /v1/health HTTP/1.1\r\nhost: x\r\n\r\n").await;
    let mut answer = Vec::new();
    while !answer.ends_with(b"}") {
        assert_ne!(idle.read_buf(&mut answer).await.expect("an answer"), 0);
    }
    server.until_waiting(1).await;
    server.shutdown.send(()).expect("the server runs");
    let answer = read_all(waiting).await;
    assert!(answer.contains("electric-has-data: false") && answer.contains("connection: close"), "{answer}");
    assert_eq!(read_all(idle).await, "");
    server.serving.await.expect("the server ends");
    assert!(TcpStream::connect(server.address).await.is_err(), "nothing is accepted any more");
}

#[tokio::test]
async fn a_service_that_drains_takes_the_server_along() {
    let server = server(Birth::Complete(0)).await;
    let service = server.world.service.clone();
    service.set_status(Status::Draining);
    server.serving.await.expect("the server ends");
    drop((Arc::new(server.shutdown), server.world));
}

const LIVE: &str = "GET /v1/shape?table=items&handle=77-1&live=true&offset=0_inf HTTP/1.1\r\nhost: x\r\n\r\n";
const HEALTH: &str = "GET /v1/health HTTP/1.1\r\nhost: x\r\n\r\n";

/// Reads until the connection has brought so many answers with a body that ends with this.
async fn read_answers(stream: &mut TcpStream, end: &str, count: usize) -> String {
    let mut answers = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&answers);
        if text.matches(end).count() >= count {
            return text.into_owned();
        }
        assert_ne!(stream.read_buf(&mut answers).await.expect("an answer"), 0, "{answers:?}");
    }
}

#[tokio::test]
async fn requests_follow_each_other_in_whatever_pieces_they_come() {
    let server = server(Birth::Complete(0)).await;
    server.world.make(definition());
    let three = format!("{HEALTH}{LIVE}{HEALTH}");
    let answers = async |mut stream: TcpStream| {
        let before = read_answers(&mut stream, "{\"status\":\"active\"}", 1).await;
        server.until_waiting(1).await;
        server.world.app.closing.send_replace(true);
        let rest = read_all(stream).await;
        server.world.app.closing.send_replace(false);
        before + &rest
    };
    let at_once = answers(server.send(&three).await).await;
    assert_eq!(at_once.matches("HTTP/1.1 200 OK\r\n").count(), 2, "{at_once}");
    assert!(
        at_once.contains("electric-has-data: false") && at_once.contains("connection: close"),
        "{at_once}"
    );
    let mut slow = TcpStream::connect(server.address).await.expect("the server accepts");
    for byte in three.as_bytes() {
        slow.write_all(std::slice::from_ref(byte)).await.expect("the server reads");
        tokio::task::yield_now().await;
    }
    let in_pieces = answers(slow).await;
    assert_eq!(in_pieces.matches("HTTP/1.1 200 OK\r\n").count(), 2, "{in_pieces}");
}

#[tokio::test]
async fn what_is_not_plain_is_answered_as_well() {
    let server = server(Birth::Complete(1)).await;
    // A body, after a request without one and before another.
    let body = r#"{"table":"items"}"#;
    let post = format!(
        "POST /v1/shape?offset=-1 HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\nexpect: 100-continue\r\n\r\n{body}",
        body.len()
    );
    let mut stream = server.send(&format!("{HEALTH}{post}{HEALTH}")).await;
    let answers = read_answers(&mut stream, "{\"status\":\"active\"}", 2).await;
    assert_eq!(answers.matches("HTTP/1.1 200 OK\r\n").count(), 3, "{answers}");
    assert!(answers.contains("electric-offset: 0_0\r\n"), "{answers}");
    let long = "x".repeat(70_000);
    let many = "a: b\r\n".repeat(200);
    for (request, status) in [
        (format!("GET /v1/health HTTP/1.1\r\na: {long}\r\n\r\n"), "HTTP/1.1 431 "),
        (format!("GET /v1/health HTTP/1.1\r\n{many}\r\n"), "HTTP/1.1 431 "),
        ("GET /v1/health HTTP/1.1\r\nno colon\r\n\r\n".to_owned(), "HTTP/1.1 400 "),
        ("\x16\x03\x01\x02\x00\x01".to_owned(), "HTTP/1.1 400 "),
        ("GET /v1/health HTTP/1.0\r\n\r\n".to_owned(), "HTTP/1.0 200 "),
    ] {
        let mut stream = server.send(&request).await;
        let mut answer = Vec::new();
        // What was not read before the end makes a reset of it.
        while answer.len() < status.len() && stream.read_buf(&mut answer).await.is_ok_and(|len| len > 0) {}
        assert!(answer.starts_with(status.as_bytes()), "{status}: {}", String::from_utf8_lossy(&answer));
    }
}

#[tokio::test]
async fn who_goes_away_gives_the_place_back() {
    let server = server(Birth::Complete(0)).await;
    server.world.make(definition());
    let (first, second) = (server.send(LIVE).await, server.send(&format!("{LIVE}{HEALTH}")).await);
    server.until_waiting(2).await;
    drop(first);
    server.until_waiting(1).await;
    drop(second);
    server.until_waiting(0).await;
}

#[tokio::test]
async fn a_connection_ends_with_as_many_answers_as_it_may_have() {
    let max = std::num::NonZeroU64::new(2);
    let settings = Settings { connection_requests_max: max, ..Settings::default() };
    let server = server_with(settings, Birth::Complete(0)).await;
    let post = "POST /v1/shape HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{}";
    for requests in [HEALTH.repeat(3), post.repeat(3)] {
        let answers = read_all(server.send(&requests).await).await;
        assert_eq!(answers.matches("HTTP/1.1 ").count(), 2, "{answers}");
        let first = answers.find("connection: close").expect("the end is announced");
        assert!(answers[..first].matches("HTTP/1.1 ").count() == 2, "by the last one: {answers}");
    }
}

#[tokio::test]
async fn a_connection_without_a_request_is_closed() {
    let settings = Settings { read_timeout: Duration::from_millis(50), ..Settings::default() };
    let server = server_with(settings, Birth::Complete(0)).await;
    for begun in ["", "GET /v1/hea"] {
        assert_eq!(read_all(server.send(begun).await).await, "");
    }
    let answers = read_all(server.send(HEALTH).await).await;
    assert!(answers.ends_with("{\"status\":\"active\"}"), "{answers}");
}

#[tokio::test]
async fn http_2_without_tls() {
    use http_body_util::{BodyExt, Empty};
    use hyper_util::rt::{TokioExecutor, TokioIo};

    let server = server(Birth::Complete(1)).await;
    server.world.make(definition());
    let stream = TcpStream::connect(server.address).await.expect("the server accepts");
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .expect("the server speaks HTTP/2");
    let client = tokio::spawn(connection);
    let answers = ["offset=-1", "handle=77-1&offset=0_inf&live=true&live_sse=true"].map(|query| {
        let uri = format!("http://x/v1/shape?table=items&{query}");
        let request = hyper::Request::get(uri).body(Empty::<bytes::Bytes>::new()).expect("a request");
        sender.send_request(request)
    });
    let [snapshot, events] = answers;
    let snapshot = snapshot.await.expect("an answer");
    assert_eq!(
        (snapshot.status().as_u16(), snapshot.headers()["electric-offset"].as_bytes()),
        (200, &b"0_0"[..])
    );
    let body = snapshot.into_body().collect().await.expect("a body").to_bytes();
    assert!(body.starts_with(b"[{\"key\"") && body.ends_with(b"]"), "{body:?}");
    let events = events.await.expect("an answer");
    assert_eq!(events.headers()["content-type"], "text/event-stream");
    server.shutdown.send(()).expect("the server runs");
    events.into_body().collect().await.expect("the stream ends cleanly");
    drop(sender);
    let _ended = client.await.expect("no panic");
    server.serving.await.expect("the server ends");
}

/// Thousands of them wait: docs/benchmarks tell what a client costs in all.
#[tokio::test]
async fn a_connection_that_waits_is_small() {
    let world = World::new(Settings::default(), Birth::Complete(0));
    let request = crate::server::testing::request(axum::http::Method::GET, "/v1/health");
    let answering = crate::server::router::dispatch(&world.app, request);
    let size = std::mem::size_of_val(&answering);
    assert!(size <= ANSWERING_BYTES_MAX, "{size} bytes for a request");
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let stream = TcpStream::connect(listener.local_addr().expect("an address")).await.expect("connected");
    let size = std::mem::size_of_val(&crate::server::http1::serve(&world.app, stream));
    assert!(size <= CONNECTION_BYTES_MAX, "{size} bytes for a connection");
}

/// Of the future that answers a request.
const ANSWERING_BYTES_MAX: usize = 6 << 10;
/// Of the future that serves a connection, without the answer.
const CONNECTION_BYTES_MAX: usize = 2 << 10;

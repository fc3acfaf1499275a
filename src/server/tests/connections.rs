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
    let settings = Settings { shutdown_timeout: Duration::from_secs(60), ..Settings::default() };
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
    // Two connections, and the request that waits.
    while server.world.app.closing.receiver_count() < 3 {
        tokio::task::yield_now().await;
    }
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

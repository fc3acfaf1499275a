//! A connection whose other end is gone without a word.

use shapefold::domain::Lsn;
use shapefold::postgres::{DatabaseUrl, PgErrorKind, TcpOptions};
use shapefold::replication::{ReplicationClient, ReplicationError};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::postgres::options;

const AUTHENTICATED: &[u8] = b"R\0\0\0\x08\0\0\0\0";
const READY: &[u8] = b"Z\0\0\0\x05I";
const COPY_BOTH: &[u8] = b"W\0\0\0\x07\0\0\0";

/// Plays a server until the stream has begun, then says nothing more. Returns the last byte of each
/// status update: whether it asks for an answer.
async fn go_silent(mut socket: TcpStream) -> Vec<u8> {
    let startup_len = socket.read_u32().await.expect("a start-up message");
    skip(&mut socket, startup_len - 4).await;
    socket.write_all(&[AUTHENTICATED, READY].concat()).await.expect("the client listens");
    for answer in [READY, COPY_BOTH] {
        assert_eq!(socket.read_u8().await.expect("a query"), b'Q');
        let len = socket.read_u32().await.expect("a length");
        skip(&mut socket, len - 4).await;
        socket.write_all(answer).await.expect("the client listens");
    }
    let mut asks = Vec::new();
    while let Ok(tag) = socket.read_u8().await {
        assert_eq!(tag, b'd');
        let len = socket.read_u32().await.expect("a length");
        asks.push(skip(&mut socket, len - 4).await);
    }
    asks
}

/// Reads over some bytes; returns the last one.
async fn skip(socket: &mut TcpStream, len: u32) -> u8 {
    let mut bytes = vec![0; len as usize];
    socket.read_exact(&mut bytes).await.expect("the rest of a message");
    bytes.last().copied().unwrap_or_default()
}

/// The clock stands still and leaps over every wait in which nothing else happens.
#[tokio::test(start_paused = true)]
async fn a_server_that_does_not_answer_is_given_up() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let server = tokio::spawn(async move { go_silent(listener.accept().await.expect("a client").0).await });
    let url = DatabaseUrl::parse(&format!("postgres://u@{address}/d?sslmode=disable")).expect("a URL");
    let connect = shapefold::postgres::ConnectOptions { tcp: TcpOptions::default(), ..options() };
    let client = ReplicationClient::connect(&url, &connect).await.expect("a connection");
    let mut stream = client.start("slot", "publication", Lsn(0)).await.expect("a stream");
    let started = tokio::time::Instant::now();
    let error = stream.next().await.expect_err("nothing comes");
    assert!(matches!(error, ReplicationError::Silent(60)), "{error}");
    assert_eq!(started.elapsed().as_secs(), 60);
    drop(stream);
    let asks = server.await.expect("no panic");
    assert!(asks.contains(&1), "an answer was asked for: {asks:?}");
    assert!(asks.len() >= 3, "a status every 15 s: {asks:?}");
}

#[tokio::test]
async fn a_server_that_speaks_another_protocol_is_refused() {
    for answer in
        [&b"HTTP/1.1 400 Bad Request\r\n\r\n"[..], b"R\xff\xff\xff\xff", b"R\0\0\0\x05x", b"Z\0\0\0\0"]
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let server = tokio::spawn(async move {
            let mut socket = listener.accept().await.expect("a client").0;
            socket.write_all(answer).await.expect("the client listens");
            let mut rest = Vec::new();
            // Ends when the client has turned away; how is its own business.
            let _reset_or_closed = socket.read_to_end(&mut rest).await;
        });
        let url = DatabaseUrl::parse(&format!("postgres://u@{address}/d?sslmode=disable")).expect("a URL");
        let error = ReplicationClient::connect(&url, &options()).await.expect_err("not Postgres");
        assert_eq!(error.kind(), PgErrorKind::Protocol, "{answer:?}");
        server.await.expect("no panic");
    }
}

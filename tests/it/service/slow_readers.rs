//! Clients that ask and never read the answer, and a service that has few descriptors to begin with.

use std::os::unix::fs::PermissionsExt;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use super::http_log::header;
use super::{ITEMS, catch_up};
use crate::support::{BINARY, Service, ShapeRequest, WAIT_DURATION_MAX, database};

const READERS: usize = 10_000;
/// Of a log: each holds a piece of its own.
const LOG_READERS: usize = 3_000;
/// What all pieces may take beside what each connection may: `shape_log::HELD_BYTES_MAX`, and what the
/// allocator makes of it.
const HELD_BYTES_MAX: u64 = 192 << 20;
/// Up to here nothing is compared: the first ones warm up pools and allocator.
const WARM: usize = 2_000;
/// What the service may hold for a reader that does not read: the piece that is being written, and
/// what goes with a connection.
const BYTES_EACH_MAX: u64 = 96 << 10;
/// What a reader takes into its socket: the rest has to stay with the service.
const RECEIVE_BUFFER: u32 = 4 << 10;

/// Asks, sees that an answer begins, and reads nothing more.
async fn ask(service: &Service, path: &str) -> TcpStream {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.set_recv_buffer_size(RECEIVE_BUFFER).expect("a small buffer");
    let mut stream = socket.connect(service.address()).await.expect("the service accepts");
    stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n").as_bytes()).await.expect("it is sent");
    let mut begin = [0; 12];
    let read = tokio::time::timeout(WAIT_DURATION_MAX, stream.read_exact(&mut begin)).await;
    read.expect("in time").expect("an answer begins");
    assert_eq!(&begin, b"HTTP/1.1 200");
    stream
}

/// No two readers of a log share a piece, as no two readers of different shapes do: all of them together
/// are bounded.
#[tokio::test]
async fn readers_that_share_nothing_are_bounded_together() {
    let database = database("slowlog").await;
    database.execute("CREATE TABLE items (id int PRIMARY KEY, v text)").await;
    let service = Service::start(&database, |settings| {
        settings.set("ELECTRIC_MAX_CONCURRENT_REQUESTS", r#"{"initial":300,"existing":20000}"#);
        settings.set("ELECTRIC_TCP_SEND_TIMEOUT", "10min");
        settings.set("ELECTRIC_PROMETHEUS_PORT", "0");
        settings.set("ELECTRIC_SYSTEM_METRICS_POLL_INTERVAL", "100ms");
    })
    .await;
    let mut client = service.follow(ShapeRequest::table("items"));
    client.sync().await.expect("the shape is made");
    database
        .execute("INSERT INTO items SELECT n, repeat(md5(n::text), 30) FROM generate_series(1, 5000) n")
        .await;
    let session = database.client().await;
    catch_up(&mut client, &ITEMS, &session).await;
    let first = service.get("/v1/shape?table=items&offset=-1").await;
    let handle = header(&first, "electric-handle");
    let path = format!("/v1/shape?table=items&offset=0_inf&handle={handle}");
    let whole = service.get(&path).await;
    assert!(whole.body.len() > 4 << 20, "more than sockets take: {}", whole.body.len());
    let before = service.memory_bytes().expect("it runs");
    let mut streams = Vec::with_capacity(LOG_READERS);
    while streams.len() < LOG_READERS {
        streams.push(ask(&service, &path).await);
    }
    let grown = service.memory_bytes().expect("it runs").saturating_sub(before);
    let bound = HELD_BYTES_MAX + LOG_READERS as u64 * BYTES_EACH_MAX / 2;
    assert!(grown <= bound, "{grown} bytes for {LOG_READERS} readers");
    // Also who reads gets small pieces now, and all of them.
    // The message at the end says how far the stream is, which goes on.
    let rows = |body: &[u8]| {
        String::from_utf8_lossy(body).split(r#"{"headers":{"control""#).next().map(str::to_owned)
    };
    assert!(rows(&service.get(&path).await.body) == rows(&whole.body), "other rows than before");
    database.execute("UPDATE items SET v = 'changed' WHERE id % 7 = 0").await;
    let followed = catch_up(&mut client, &ITEMS, &session);
    tokio::time::timeout(2 * WAIT_DURATION_MAX, followed).await.expect("others are served");
    drop(streams);
    super::until("nothing is held", async || {
        let held = crate::operations::metric(&service, "shapefold_http_held_bytes").await;
        held.filter(|held| *held == 0.0)
    })
    .await;
}

#[tokio::test]
async fn ten_thousand_readers_that_never_read_cost_little_and_hold_up_nobody() {
    let database = database("slow").await;
    database
        .execute(
            "CREATE TABLE items (id int PRIMARY KEY, v text);
             INSERT INTO items SELECT n, repeat(md5(n::text), 30) FROM generate_series(1, 5000) n",
        )
        .await;
    // The soft limit of the service would be too low, the hard one is not.
    let folder = tempfile::tempdir().expect("a temporary folder");
    let wrapper = folder.path().join("shapefold");
    std::fs::write(&wrapper, format!("#!/bin/sh\nulimit -Sn 256\nexec {BINARY} \"$@\"\n")).expect("a script");
    std::fs::set_permissions(&wrapper, std::fs::Permissions::from_mode(0o755)).expect("it is mine");
    let service = Service::start(&database, |settings| {
        settings.binary = wrapper;
        settings.set("ELECTRIC_MAX_CONCURRENT_REQUESTS", r#"{"initial":300,"existing":20000}"#);
        settings.set("ELECTRIC_TCP_SEND_TIMEOUT", "10min");
    })
    .await;
    let mut client = service.follow(ShapeRequest::table("items"));
    client.sync().await.expect("the shape is made");
    let first = service.get("/v1/shape?table=items&offset=-1").await;
    assert!(first.body.len() > 1 << 20, "more than sockets take: {}", first.body.len());
    let path = format!("/v1/shape?table=items&offset=-1&handle={}", header(&first, "electric-handle"));

    // Where the limit for this process is lower there are as many as it allows.
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(u64::MAX);
    let readers = READERS.min(usize::try_from(limit).unwrap_or(READERS).saturating_sub(200));
    let mut streams = Vec::with_capacity(readers);
    let mut warm = 0;
    while streams.len() < readers {
        streams.push(ask(&service, &path).await);
        if streams.len() == readers.min(WARM) {
            warm = service.memory_bytes().expect("it runs");
        }
    }
    let full = service.memory_bytes().expect("it runs");
    let each = full.saturating_sub(warm) / (readers - readers.min(WARM)).max(1) as u64;
    assert!(each <= BYTES_EACH_MAX, "{each} bytes for each of {readers} readers; {full} in all");

    database.execute("UPDATE items SET v = 'changed' WHERE id % 7 = 0").await;
    let session = database.client().await;
    let followed = catch_up(&mut client, &ITEMS, &session);
    tokio::time::timeout(2 * WAIT_DURATION_MAX, followed).await.expect("others are served");
    drop(streams);
    super::until("the places come back", async || {
        let answer = service.get(&path).await;
        (answer.status == 200 && answer.body.len() == first.body.len()).then_some(())
    })
    .await;
}

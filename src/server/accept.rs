//! Connections: accepting them, serving them with hyper, and closing them all.
//!
//! axum's own server takes twice the memory for an idle connection, which is what most of them are.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Sleep, sleep, timeout};

use crate::runtime::handle::{Service, Status};

use super::App;
use super::live::set;
use super::router::dispatch;
use super::settings::Settings;

/// Open connections, at most; more wait in the listener's queue.
pub const CONNECTIONS_MAX: usize = 65_536;
/// What waits to be written for one connection, about: a piece of a body more than this waits with its
/// source. Also the longest request head. (hyper's own limit would hold two pieces of a body.)
const WAITING_BYTES_MAX: usize = 64 << 10;
/// How long accepting rests after an error, such as running out of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Serves until `shutdown` resolves or the service drains, then answers what waits, finishes what is
/// being sent, closes all connections and returns.
pub async fn serve(
    listener: TcpListener,
    service: Service,
    settings: Settings,
    shutdown: impl Future<Output = ()> + Send,
) {
    serve_app(listener, Arc::new(App::new(service, settings)), shutdown).await;
}

pub(super) async fn serve_app(
    listener: TcpListener,
    app: Arc<App>,
    shutdown: impl Future<Output = ()> + Send,
) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    tokio::pin!(shutdown);
    let mut status = app.service.watch_status();
    let mut draining = std::pin::pin!(async {
        // The sender lives in the service, which the app holds.
        let _ = status.wait_for(|status| *status == Status::Draining).await;
    });
    loop {
        let accepted = async {
            let place = Arc::clone(&places).acquire_owned().await;
            (listener.accept().await, place)
        };
        tokio::select! {
            biased;
            () = &mut shutdown => break,
            () = &mut draining => break,
            (accepted, place) = accepted => match (accepted, place) {
                (Ok((stream, _)), Ok(place)) => {
                    tokio::spawn(connection(Arc::clone(&app), stream, place));
                }
                (Err(error), _) => {
                    tracing::warn!(%error, "no connection can be accepted");
                    sleep(ACCEPT_PAUSE).await;
                }
                // The semaphore is never closed.
                (Ok(_), Err(_)) => break,
            },
        }
    }
    drop(listener);
    app.closing.send_replace(true);
    let all = u32::try_from(CONNECTIONS_MAX).expect("a small number");
    if timeout(app.settings.shutdown_timeout, places.acquire_many(all)).await.is_err() {
        tracing::warn!("connections were cut off: their answers took too long after shutdown began");
    }
    app.cut.send_replace(true);
}

async fn connection(app: Arc<App>, stream: TcpStream, place: OwnedSemaphorePermit) {
    // Answers are small and waited for.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "a connection ended before it was served");
        return;
    }
    let connections = &app.service.metrics().http_connections;
    connections.inc();
    let mut closing = app.closing.subscribe();
    let mut cut = app.cut.subscribe();
    let settings = &app.settings;
    let io = TokioIo::new(Sending::new(stream, settings.send_timeout));
    let service = service_fn(|request: hyper::Request<Incoming>| {
        let app = &app;
        async move { Ok::<_, Infallible>(dispatch(app, request).await) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .max_buf_size(WAITING_BYTES_MAX)
        .header_read_timeout(settings.read_timeout)
        .serve_connection(io, service);
    let mut served = std::pin::pin!(served);
    let ended = tokio::select! {
        biased;
        () = set(&mut closing) => {
            served.as_mut().graceful_shutdown();
            tokio::select! {
                ended = served => ended,
                () = set(&mut cut) => Ok(()),
            }
        }
        ended = served.as_mut() => ended,
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection broke");
    }
    connections.dec();
    drop(place);
}

/// A stream whose peer has to take something every so often: else a client that stops reading would
/// hold a view, and the memory and files behind it, for ever.
#[derive(Debug)]
struct Sending {
    stream: TcpStream,
    timeout: Duration,
    /// Runs while a write waits.
    stalled: Option<Pin<Box<Sleep>>>,
}

impl Sending {
    fn new(stream: TcpStream, timeout: Duration) -> Sending {
        Sending { stream, timeout, stalled: None }
    }

    fn watched<T>(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        let timeout = self.timeout;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(sleep(timeout)));
        ready!(stalled.as_mut().poll(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncRead for Sending {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Sending {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.watched(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.watched(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

//! Connections that are left to hyper: requests with a body, HTTP/1.0, HTTP/2 without TLS, and
//! whatever is wrong on the wire.

use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::{Body, HttpBody};
use axum::http::HeaderValue;
use axum::http::header::CONNECTION;
use bytes::Bytes;
use hyper::body::{Frame, Incoming, SizeHint};
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Sleep, sleep};

use super::App;
use super::accept::asks_to_close;
use super::http1::HEAD_BYTES_MAX;
use super::live::set;
use super::router::dispatch;

/// What waits to be written for one connection, about: a piece of a body more than this waits with its
/// source. (hyper's own limit would hold two pieces of a body.) Also the longest request head.
const WAITING_BYTES_MAX: usize = HEAD_BYTES_MAX;
/// What a connection of HTTP/2 begins with: RFC 9113, section 3.4.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n";
/// Requests of one connection of HTTP/2 at the same time.
const STREAMS_MAX: u32 = 100;

/// Serves a connection that began with these bytes, until it ends or the service shuts down.
pub(super) async fn serve(app: &Arc<App>, stream: TcpStream, begun: Vec<u8>) {
    let second = begun.starts_with(PREFACE);
    let io = TokioIo::new(Sending::new(stream, begun, app.settings.send_timeout));
    let ended = if second { serve_second(app, io).await } else { serve_first(app, io).await };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection broke");
    }
}

async fn serve_first(app: &App, io: TokioIo<Sending>) -> hyper::Result<()> {
    let answered = AtomicU64::new(0);
    let service = service_fn(|request: hyper::Request<Incoming>| {
        let answered = &answered;
        async move {
            let mut response = dispatch(app, request).await;
            if asks_to_close(app, answered.fetch_add(1, Ordering::Relaxed) + 1) {
                response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            Ok::<_, Infallible>(response)
        }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .max_buf_size(WAITING_BYTES_MAX)
        .header_read_timeout(app.settings.read_timeout)
        .serve_connection(io, service);
    let mut served = std::pin::pin!(served);
    let mut closing = app.closing.subscribe();
    tokio::select! {
        biased;
        () = set(&mut closing) => served.as_mut().graceful_shutdown(),
        ended = served.as_mut() => return ended,
    }
    served.await
}

async fn serve_second(app: &Arc<App>, io: TokioIo<Sending>) -> hyper::Result<()> {
    let stall = Arc::new(Stall::default());
    let service = service_fn(|request: hyper::Request<Incoming>| {
        let (app, stall) = (Arc::clone(app), Arc::clone(&stall));
        async move {
            let mut response = dispatch(&app, request).await;
            // A header of HTTP/1.1 only.
            response.headers_mut().remove(CONNECTION);
            Ok::<_, Infallible>(response.map(|body| Watched { body, owes: false, stall }))
        }
    });
    let served = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(HEAD_BYTES_MAX as u32)
        .max_send_buf_size(WAITING_BYTES_MAX)
        .keep_alive_interval(app.settings.read_timeout / 2)
        .serve_connection(io, service);
    let mut served = std::pin::pin!(served);
    let mut closing = app.closing.subscribe();
    tokio::select! {
        biased;
        () = set(&mut closing) => served.as_mut().graceful_shutdown(),
        ended = served.as_mut() => return ended,
        () = stall.lasts(app.settings.send_timeout) => return Ok(()),
    }
    served.await
}

/// Whether anything of what was begun is taken. The socket does not show it: a client of HTTP/2 may
/// read, and want nothing.
#[derive(Debug, Default)]
struct Stall {
    /// Bodies that gave a piece and were not asked for the next one.
    owing: AtomicU64,
    /// How often a body was asked.
    asked: AtomicU64,
}

impl Stall {
    /// Waits until nothing was taken for so long, though something was there.
    async fn lasts(&self, patience: Duration) {
        let mut before = None;
        loop {
            let asked = self.asked.load(Ordering::Relaxed);
            let owing = self.owing.load(Ordering::Relaxed) > 0;
            if owing && before == Some(asked) {
                return;
            }
            before = owing.then_some(asked);
            sleep(patience).await;
        }
    }
}

/// A body that tells when it is asked for more.
#[derive(Debug)]
struct Watched {
    body: Body,
    owes: bool,
    stall: Arc<Stall>,
}

impl Watched {
    fn set_owes(&mut self, owes: bool) {
        if owes && !self.owes {
            self.stall.owing.fetch_add(1, Ordering::Relaxed);
        } else if !owes && self.owes {
            self.stall.owing.fetch_sub(1, Ordering::Relaxed);
        }
        self.owes = owes;
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.set_owes(false);
    }
}

impl HttpBody for Watched {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        self.stall.asked.fetch_add(1, Ordering::Relaxed);
        self.set_owes(false);
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        self.set_owes(frame.is_some());
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A stream whose peer has to take something every so often: else a client that stops reading would
/// hold a view, and the memory and files behind it, for ever.
#[derive(Debug)]
struct Sending {
    stream: TcpStream,
    /// Bytes that were read before: they come first.
    begun: Vec<u8>,
    timeout: Duration,
    /// Runs while a write waits.
    stalled: Option<Pin<Box<Sleep>>>,
}

impl Sending {
    fn new(stream: TcpStream, begun: Vec<u8>, timeout: Duration) -> Sending {
        Sending { stream, begun, timeout, stalled: None }
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
        if self.begun.is_empty() {
            return Pin::new(&mut self.stream).poll_read(cx, buf);
        }
        let len = buf.remaining().min(self.begun.len());
        let rest = self.begun.split_off(len);
        buf.put_slice(&std::mem::replace(&mut self.begun, rest));
        Poll::Ready(Ok(()))
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

//! Connections of HTTP/1.1, as nearly all are: requests without a body.
//!
//! Most connections wait, thousands of them, and then are all answered at once. hyper keeps two buffers
//! of 8 KiB for each; here a connection that waits has none: what is read goes through one buffer of the
//! thread, and an answer is written where it is made. Everything that is rare (a body, another version,
//! a head that is wrong) is handed to hyper with the bytes that were read.

mod answer;
mod head;

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};

use super::App;
use super::accept::asks_to_close;
use super::live::set;
use super::router::dispatch;

use head::{Head, Plain, read_head};

pub(super) use head::HEAD_BYTES_MAX;

/// How a connection went on.
#[derive(Debug)]
pub(super) enum Outcome {
    Closed,
    /// It is for hyper, and begins with these bytes.
    Other(TcpStream, Vec<u8>),
}

/// What was read and belongs to the next request. Mostly nothing: clients wait for an answer.
#[derive(Debug, Default)]
pub(super) struct Input {
    bytes: Vec<u8>,
    /// So many of them are no whole head.
    seen: usize,
}

/// What a look at the input has brought.
#[derive(Debug)]
enum Next {
    Request(Box<Plain>),
    Other,
    /// The client went away, or is sent away.
    End,
}

/// Serves requests until the connection ends or is for hyper.
///
/// # Errors
/// Those of the socket; a client that takes or sends nothing for too long.
pub(super) async fn serve(app: &App, mut stream: TcpStream) -> io::Result<Outcome> {
    let mut input = Input::default();
    let patience = app.settings.send_timeout;
    let mut answered = 0;
    loop {
        let Plain { request, close, .. } = *match next_request(app, &mut stream, &mut input).await? {
            Next::Request(plain) => plain,
            Next::Other => return Ok(Outcome::Other(stream, input.bytes)),
            Next::End => return Ok(Outcome::Closed),
        };
        let method = request.method().clone();
        // Boxed: a connection between two requests has no use for the place.
        let mut answer = Box::pin(dispatch(app, request));
        let response = tokio::select! {
            biased;
            response = &mut answer => response,
            () = gone(&mut stream, &mut input) => return Ok(Outcome::Closed),
        };
        drop(answer);
        answered += 1;
        let last = close || *app.closing.borrow() || asks_to_close(app, answered);
        answer::send(&mut stream, &mut input, &method, response, last, patience).await?;
        if last {
            stream.shutdown().await?;
            return Ok(Outcome::Closed);
        }
    }
}

/// The next request, once it is there as a whole.
async fn next_request(app: &App, stream: &mut TcpStream, input: &mut Input) -> io::Result<Next> {
    if let Some(next) = input.take() {
        return Ok(next);
    }
    let deadline = Instant::now() + app.settings.read_timeout;
    let mut closing = app.closing.subscribe();
    let read = async {
        tokio::select! {
            biased;
            () = set(&mut closing) => Ok(Next::End),
            next = poll_fn(|cx| input.poll_next(stream, cx)) => next,
        }
    };
    timeout_at(deadline, read).await.unwrap_or(Ok(Next::End))
}

/// Waits until the client has gone away. What it sends meanwhile is kept; when that is too much, nobody
/// looks any more before the answer is sent.
async fn gone(stream: &mut TcpStream, input: &mut Input) {
    poll_fn(|cx| input.poll_gone(stream, cx)).await;
}

impl Input {
    /// The request that is here already.
    fn take(&mut self) -> Option<Next> {
        if self.bytes.is_empty() {
            return None;
        }
        match read_head(&self.bytes) {
            Head::Partial => {
                self.seen = self.bytes.len();
                None
            }
            Head::Other => Some(Next::Other),
            Head::Plain(plain) => {
                // Also gives back the memory: what follows is rare.
                self.bytes = self.bytes.split_off(plain.len);
                self.seen = 0;
                Some(Next::Request(plain))
            }
        }
    }

    fn poll_next(&mut self, stream: &mut TcpStream, cx: &mut Context<'_>) -> Poll<io::Result<Next>> {
        loop {
            let next = ready!(poll_scratch(stream, cx, |read| self.accept(read)))?;
            if let Some(next) = next {
                return Poll::Ready(Ok(next));
            }
        }
    }

    /// Takes in what was read.
    fn accept(&mut self, read: &[u8]) -> Option<Next> {
        if read.is_empty() {
            return Some(Next::End);
        }
        // As nearly always: one whole head, which need not be kept.
        if self.bytes.is_empty()
            && let Head::Plain(plain) = read_head(read)
        {
            self.bytes.extend_from_slice(&read[plain.len..]);
            return Some(Next::Request(plain));
        }
        let first = self.bytes.is_empty();
        self.bytes.extend_from_slice(read);
        if first || head::may_be_whole(&self.bytes, self.seen) {
            return self.take();
        }
        self.seen = self.bytes.len();
        None
    }

    fn poll_gone(&mut self, stream: &mut TcpStream, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            if self.bytes.len() >= HEAD_BYTES_MAX {
                return Poll::Pending;
            }
            let keep = |read: &[u8]| {
                self.bytes.extend_from_slice(read);
                read.len()
            };
            match ready!(poll_scratch(stream, cx, keep)) {
                Ok(0) | Err(_) => return Poll::Ready(()),
                Ok(_) => {}
            }
        }
    }
}

/// Reads what is there into a buffer that the connections of a thread share, and hands it over; nothing
/// at the end of the stream.
fn poll_scratch<T>(
    stream: &mut TcpStream,
    cx: &mut Context<'_>,
    accept: impl FnOnce(&[u8]) -> T,
) -> Poll<io::Result<T>> {
    thread_local!(static SCRATCH: RefCell<Vec<u8>> = RefCell::new(vec![0; HEAD_BYTES_MAX]));
    SCRATCH.with_borrow_mut(|scratch| {
        let mut read = ReadBuf::new(scratch);
        ready!(Pin::new(stream).poll_read(cx, &mut read))?;
        Poll::Ready(Ok(accept(read.filled())))
    })
}

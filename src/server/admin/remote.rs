//! What the command line asks over the network: a command of `shapefold journal`, answered here as it
//! would be there; and the journal as a file.

use std::io::{self, Write};
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::http::{Response, StatusCode};
use bytes::Bytes;
use futures_util::stream;
use serde::Deserialize;
use serde_json::json;
use tokio::io::AsyncReadExt;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;

use crate::inspect::{Listener, Source};

use super::answer::{Refusal, respond};
use super::question::Asked;
use super::{Admin, Command, heavy};

/// Bytes of arguments.
const ARGUMENTS_BYTES_MAX: usize = 64 * 1024;
/// Pieces of output that wait for the client, and their size.
const PIECES_MAX: usize = 16;
const PIECE_BYTES: usize = 32 * 1024;
/// How often a writer looks whether a slow client has gone.
const LOOK_EVERY: Duration = Duration::from_millis(10);

#[derive(Debug, Deserialize)]
struct Asking {
    arguments: Vec<String>,
    /// Say how far long work is.
    #[serde(default)]
    progress: bool,
}

/// `POST /v1/ask` with `{"arguments": [...]}`, behind `shapefold journal`. The answer is a line of JSON for
/// each piece of output, `{"out": "..."}`, with `"progress": true` also of how far long work is,
/// `{"progress": "..."}`, and last `{"code": 0}` or `{"error": "..."}`: an answer without
/// a last line was cut off.
pub(super) async fn ask(State(admin): State<Arc<Admin>>, body: Body) -> Result<Response<Body>, Refusal> {
    let wrong = |error: String| Refusal::Wrong(format!("not a question: {error}"));
    let body =
        axum::body::to_bytes(body, ARGUMENTS_BYTES_MAX).await.map_err(|error| wrong(error.to_string()))?;
    let asking: Asking = serde_json::from_slice(&body).map_err(|error| wrong(error.to_string()))?;
    let history = admin.history(None)?;
    let turn = admin.heavy.turn().await?;
    let (flag, gone) = heavy::flag();
    let (pieces, body) = mpsc::channel(PIECES_MAX);
    let asker = Arc::clone(&admin.asker);
    tokio::task::spawn_blocking(move || {
        let last = history.ask(Some(flag), |source| {
            let listened = asking.progress.then(|| source.again().with_listener(telling(pieces.clone())));
            let source = listened.as_ref().unwrap_or(source);
            let out = Box::new(Pieces { pieces: pieces.clone(), source: source.again(), buffer: Vec::new() });
            asker(Command { arguments: asking.arguments, source, may_write: false }, out)
        });
        let last = match last {
            Ok(Ok(code)) => json!({ "code": code }),
            Ok(Err(error)) => json!({ "error": error }),
            Err(error) => json!({ "error": error.to_string() }),
        };
        // Nobody waits for it where the client has gone.
        let _gone = pieces.try_send(Bytes::from(format!("{last}\n")));
        drop(turn);
    });
    let sending = stream::unfold((body, gone), |(mut body, gone)| async move {
        let piece = body.recv().await?;
        Some((Ok::<_, io::Error>(piece), (body, gone)))
    });
    Ok(respond(StatusCode::OK, "application/x-ndjson", Body::from_stream(sending)))
}

/// Sends on how far long work is, unless the client is slow: the next time it is further.
fn telling(pieces: mpsc::Sender<Bytes>) -> Listener {
    Arc::new(move |line: &str| {
        if pieces.capacity() > 1 {
            let _full = pieces.try_send(Bytes::from(format!("{}\n", json!({ "progress": line }))));
        }
    })
}

/// Output, on its way to a client that may be slow or gone.
struct Pieces {
    pieces: mpsc::Sender<Bytes>,
    source: Source,
    buffer: Vec<u8>,
}

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() >= PIECE_BYTES {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    /// Sends whole characters; the rest of one waits for its end.
    fn flush(&mut self) -> io::Result<()> {
        let whole = match std::str::from_utf8(&self.buffer) {
            Ok(text) => text.len(),
            Err(error) => error.valid_up_to(),
        };
        if whole == 0 {
            return Ok(());
        }
        let text = String::from_utf8_lossy(&self.buffer[..whole]).into_owned();
        self.buffer.drain(..whole);
        let mut piece = Bytes::from(format!("{}\n", json!({ "out": text })));
        // One place is left for the last line.
        loop {
            if self.source.is_cancelled() {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            if self.pieces.capacity() > 1 {
                match self.pieces.try_send(piece) {
                    Ok(()) => return Ok(()),
                    Err(TrySendError::Closed(_)) => return Err(io::ErrorKind::BrokenPipe.into()),
                    Err(TrySendError::Full(back)) => piece = back,
                }
            }
            std::thread::park_timeout(LOOK_EVERY);
        }
    }
}

/// `GET /v1/export?from=&to=`: the journal, or a part of it, as `shapefold journal export` writes it.
pub(super) async fn export(
    State(admin): State<Arc<Admin>>,
    Asked(question): Asked,
) -> Result<Response<Body>, Refusal> {
    let history = admin.history(question.journal.as_deref())?;
    let failed = |error: io::Error| Refusal::Failed(error.to_string());
    let folder = tempfile::Builder::new().prefix("shapefold-export-").tempdir().map_err(failed)?;
    let path = folder.path().join("journal.sfx");
    let mut arguments = vec!["export".to_owned(), "own".to_owned(), path.to_string_lossy().into_owned()];
    for (name, place) in [("--from", question.from), ("--to", question.to)] {
        arguments.extend(place.into_iter().flat_map(|place| [name.to_owned(), place]));
    }
    let asker = Arc::clone(&admin.asker);
    let exported = admin.heavy.ask(move |gone| {
        let answered = history.ask(Some(gone), |source| {
            asker(Command { arguments, source, may_write: true }, Box::new(io::sink()))
        });
        answered?.map_err(Refusal::Wrong)
    });
    exported.await?;
    let file = tokio::fs::File::open(&path).await.map_err(failed)?;
    let length = file.metadata().await.map_err(failed)?.len();
    // The folder goes when all of it is sent, or nobody wants it.
    let sending = stream::unfold((file, folder), |(mut file, folder)| async move {
        let mut piece = vec![0; PIECE_BYTES * 8];
        match file.read(&mut piece).await {
            Ok(0) => None,
            Ok(length) => {
                piece.truncate(length);
                Some((Ok(Bytes::from(piece)), (file, folder)))
            }
            Err(error) => Some((Err(error), (file, folder))),
        }
    });
    let mut response = respond(StatusCode::OK, "application/octet-stream", Body::from_stream(sending));
    response.headers_mut().insert(axum::http::header::CONTENT_LENGTH, length.into());
    Ok(response)
}

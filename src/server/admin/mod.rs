//! The admin API and the dashboard: questions about the service, on a port of their own.
//!
//! Off the data path: what is now comes from a second fold of the journal that follows the engine's, what
//! was is read from the journal itself, on threads for such questions, of which there are few. Nothing
//! here makes the engine wait, and nothing changes anything; `check` asks the driver to compare its views
//! with the fold, which it does in small parts. Every answer but the page itself needs the token.

mod answer;
mod auth;
mod heavy;
mod histories;
mod live;
mod page;
mod past;
mod question;
mod remote;
mod router;

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};

use crate::inspect::{History, Source};
use crate::runtime::handle::Service;
use crate::runtime::observed::Observed;

use auth::Token;
use heavy::Heavy;

/// Open connections, at most; more wait in the listener's queue.
pub const CONNECTIONS_MAX: usize = 256;
/// A connection that sends no whole request head for so long is closed.
const HEAD_WAIT_MAX: Duration = Duration::from_secs(30);
/// How long accepting rests after an error.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Runs a command of `shapefold journal` for somebody else: its arguments, whether it may write the file
/// that it names, where to read, and where its output goes. Gives its exit code, or why it failed.
pub type Asker = Arc<dyn Fn(Command<'_>, Box<dyn Write + Send>) -> Result<u8, String> + Send + Sync>;

/// A command, as its arguments behind `shapefold journal`.
pub struct Command<'a> {
    pub arguments: Vec<String>,
    pub source: &'a Source,
    pub may_write: bool,
}

/// What is looked at.
pub enum Sources {
    /// A running service. Its journal is there once the directory is owned.
    Running { service: Service, observed: watch::Receiver<Option<Observed>> },
    /// A journal that nobody writes.
    Opened(Arc<History>),
}

impl Sources {
    #[must_use]
    pub fn running(service: Service, observed: watch::Receiver<Option<Observed>>) -> Sources {
        Sources::Running { service, observed }
    }
}

/// What all requests share.
pub struct Admin {
    token: Token,
    sources: Sources,
    handed_in: RwLock<BTreeMap<u64, Arc<History>>>,
    heavy: Heavy,
    streams: Arc<Semaphore>,
    asker: Asker,
}

impl Admin {
    #[must_use]
    pub fn new(token: String, sources: Sources, asker: Asker) -> Admin {
        Admin {
            token: Token::new(token),
            sources,
            handed_in: RwLock::default(),
            heavy: Heavy::default(),
            streams: Arc::new(Semaphore::new(live::STREAMS_MAX)),
            asker,
        }
    }

    fn observed(&self) -> Option<Observed> {
        match &self.sources {
            Sources::Running { observed, .. } => observed.borrow().clone(),
            Sources::Opened(_) => None,
        }
    }

    fn handed_in(&self) -> std::sync::RwLockReadGuard<'_, BTreeMap<u64, Arc<History>>> {
        self.handed_in.read().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Answers until it is dropped.
pub async fn serve(listener: TcpListener, admin: Admin) {
    let app = router::router(Arc::new(admin));
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        // The semaphore is never closed.
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "no connection to the admin port can be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let app = TowerToHyperService::new(app.clone());
        tokio::spawn(async move {
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_WAIT_MAX)
                .serve_connection(TokioIo::new(stream), app);
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection to the admin port broke");
            }
            drop(place);
        });
    }
}

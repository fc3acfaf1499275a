//! Connections: accepting them, and closing them all. What is on them is for [`super::http1`],
//! and for [`super::foreign`] where that is more than a request without a body.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{sleep, timeout};

use crate::runtime::handle::{Service, Status};

use super::App;
use super::live::set;
use super::settings::Settings;
use super::{foreign, http1};

/// Open connections, at most; more wait in the listener's queue.
pub const CONNECTIONS_MAX: usize = 65_536;
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
    let mut cut = app.cut.subscribe();
    let served = async {
        match http1::serve(&app, stream).await {
            Ok(http1::Outcome::Closed) => {}
            // Boxed: it is large, and rare.
            Ok(http1::Outcome::Other(stream, begun)) => Box::pin(foreign::serve(&app, stream, begun)).await,
            Err(error) => tracing::debug!(%error, "a connection broke"),
        }
    };
    tokio::select! {
        biased;
        () = served => {}
        () = set(&mut cut) => {}
    }
    connections.dec();
    drop(place);
}

/// Whether a connection is to end with its `answered`th answer.
pub(super) fn asks_to_close(app: &App, answered: u64) -> bool {
    app.settings.connection_requests_max.is_some_and(|max| answered >= max.get())
}

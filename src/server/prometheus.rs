//! The listener for Prometheus: `/metrics` and nothing else (contract 6.2).

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderValue, Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use crate::telemetry::{self, Metrics};

/// Connections at once; more wait.
const CONNECTIONS_MAX: usize = 16;
/// A connection without a request for so long is closed.
const READ_WAIT_MAX: Duration = Duration::from_secs(90);
/// How long accepting rests after an error.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Serves until the task is dropped.
pub async fn serve_metrics(listener: TcpListener, metrics: Arc<Metrics>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "no connection for metrics can be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let metrics = Arc::clone(&metrics);
        tokio::spawn(async move {
            let service = service_fn(|request: Request<Incoming>| {
                let answer = answer(&request, &metrics);
                async move { Ok::<_, Infallible>(answer) }
            });
            let served = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(READ_WAIT_MAX)
                .serve_connection(TokioIo::new(stream), service)
                .await;
            if let Err(error) = served {
                tracing::debug!(%error, "a connection for metrics broke");
            }
            drop(place);
        });
    }
}

fn answer<B>(request: &Request<B>, metrics: &Metrics) -> Response<Body> {
    let found = request.uri().path() == "/metrics" && matches!(*request.method(), Method::GET | Method::HEAD);
    if !found {
        let mut response = Response::new(Body::from("Not found"));
        *response.status_mut() = StatusCode::NOT_FOUND;
        return response;
    }
    let mut response = Response::new(Body::from(metrics.render()));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(telemetry::CONTENT_TYPE));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_metrics_are_there() {
        let metrics = Metrics::new();
        for (method, path, status) in [
            ("GET", "/metrics", 200),
            ("HEAD", "/metrics", 200),
            ("GET", "/metrics?name=x", 200),
            ("POST", "/metrics", 404),
            ("GET", "/", 404),
            ("GET", "/v1/shape", 404),
        ] {
            let request = Request::builder().method(method).uri(path).body(()).unwrap();
            assert_eq!(answer(&request, &metrics).status(), status, "{method} {path}");
        }
    }
}

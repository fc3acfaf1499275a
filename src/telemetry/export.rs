//! Sending to a collector: OTLP over HTTP, in protobuf. What cannot be delivered is dropped and counted; no
//! part of the service waits for it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http_body_util::Full;
use hyper::client::conn::http1;
use hyper::header::{CONTENT_TYPE, HOST, HeaderName, HeaderValue, USER_AGENT};
use hyper::{Request, Uri};
use hyper_util::rt::TokioIo;
use percent_encoding::percent_decode_str;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio_rustls::TlsConnector;

use super::log::Line;
use super::trace::Span;
use super::{Metrics, otlp, otlp_logs};

/// Spans, or lines of the log, in one request.
const BATCH_MAX: usize = 512;
/// A request that is not answered by then has failed.
const ANSWER_WAIT_MAX: Duration = Duration::from_secs(10);
/// The last request may take so long, at the end of the process.
const LAST_WAIT_MAX: Duration = Duration::from_secs(2);

/// Where to send to, and as whom.
#[derive(Clone, Debug)]
pub struct Destination {
    tls: Option<Arc<ClientConfig>>,
    host: String,
    port: u16,
    /// Before `/v1/traces`; without a slash at its end.
    path: String,
    headers: Vec<(HeaderName, HeaderValue)>,
    /// Attributes of the process.
    resource: Vec<(String, String)>,
}

/// Why a destination is none. The texts never quote a header.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DestinationError {
    #[error("must be a URL such as http://collector:4318")]
    Url,
    #[error("no CA certificate of this system can be used for https")]
    NoRoots,
    #[error("the TLS library refuses its own defaults")]
    Tls,
    #[error("a header has a value that cannot be sent")]
    Header,
    #[error("resource attributes are written as name=value,name=value")]
    Attributes,
}

/// Why something was not delivered.
#[derive(Debug, thiserror::Error)]
enum ExportError {
    #[error("{0}")]
    Io(#[from] std::io::Error),
    #[error("{0}")]
    Http(#[from] hyper::Error),
    #[error("the collector answered {0}")]
    Status(u16),
    #[error("the collector did not answer in time")]
    Timeout,
    #[error("the name of the collector is none for TLS")]
    Name,
}

impl Destination {
    /// From the base URL of a collector.
    ///
    /// # Errors
    /// See [`DestinationError`].
    pub fn new(endpoint: &str) -> Result<Destination, DestinationError> {
        let uri: Uri = endpoint.trim().parse().map_err(|_| DestinationError::Url)?;
        let encrypted = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            Some(_) | None => return Err(DestinationError::Url),
        };
        let host = uri.host().ok_or(DestinationError::Url)?;
        Ok(Destination {
            tls: if encrypted { Some(tls()?) } else { None },
            host: host.trim_start_matches('[').trim_end_matches(']').to_owned(),
            port: uri.port_u16().unwrap_or(if encrypted { 443 } else { 80 }),
            path: uri.path().trim_end_matches('/').to_owned(),
            headers: Vec::new(),
            resource: Vec::new(),
        })
    }

    /// One more header with every request.
    ///
    /// # Errors
    /// The value holds what a header cannot.
    pub fn with_header(mut self, name: &'static str, value: &str) -> Result<Destination, DestinationError> {
        let mut value = HeaderValue::from_str(value).map_err(|_| DestinationError::Header)?;
        value.set_sensitive(true);
        self.headers.push((HeaderName::from_static(name), value));
        Ok(self)
    }

    /// Attributes of everything: the given ones, over which those of `OTEL_RESOURCE_ATTRIBUTES` win.
    ///
    /// # Errors
    /// The text is not of its form.
    pub fn with_resource(
        mut self,
        own: &[(&str, &str)],
        environment: &str,
    ) -> Result<Destination, DestinationError> {
        let mut all: BTreeMap<String, String> =
            own.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        for pair in environment.split(',').map(str::trim).filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').ok_or(DestinationError::Attributes)?;
            let decode = |text: &str| {
                let decoded = percent_decode_str(text.trim()).decode_utf8();
                decoded.map(|text| text.into_owned()).map_err(|_| DestinationError::Attributes)
            };
            all.insert(decode(key)?, decode(value)?);
        }
        self.resource = all.into_iter().collect();
        Ok(self)
    }
}

fn tls() -> Result<Arc<ClientConfig>, DestinationError> {
    let mut roots = RootCertStore::empty();
    // Single files of the system that are no certificates do not matter as long as there are others.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() {
        return Err(DestinationError::NoRoots);
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|_| DestinationError::Tls)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

/// Exports until it is told to end.
#[derive(Debug)]
pub struct Exporter {
    /// Without it spans are printed only.
    destination: Option<Destination>,
    metrics: Arc<Metrics>,
    sources: Sources,
    period: Duration,
    /// Spans also go to standard output (`ELECTRIC_OTEL_DEBUG`).
    prints: bool,
    begun: SystemTime,
}

/// What is exported beside metrics, as it comes.
#[derive(Debug)]
pub struct Sources {
    pub spans: mpsc::Receiver<Span>,
    pub lines: Option<mpsc::Receiver<Line>>,
}

impl Sources {
    /// The next line of the log; waits for ever where nobody tells.
    async fn line(lines: &mut Option<mpsc::Receiver<Line>>) -> Option<Line> {
        match lines {
            Some(lines) => lines.recv().await,
            None => std::future::pending().await,
        }
    }
}

impl Exporter {
    /// Metrics every `period`; spans and lines, too, and sooner when there are many.
    #[must_use]
    pub fn new(
        destination: Option<Destination>,
        metrics: Arc<Metrics>,
        sources: Sources,
        period: Duration,
        prints: bool,
    ) -> Exporter {
        Exporter { destination, metrics, sources, period, prints, begun: SystemTime::now() }
    }

    /// Runs until `stop` resolves, then exports once more what there is.
    pub async fn run(mut self, mut stop: oneshot::Receiver<()>) {
        let mut tick = tokio::time::interval(self.period);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        // The first tick is at once; there is nothing to tell yet.
        tick.tick().await;
        let mut batch: Vec<Span> = Vec::new();
        let mut lines: Vec<Line> = Vec::new();
        loop {
            tokio::select! {
                // Its sender is dropped where the process ends.
                _ = &mut stop => break,
                _ = tick.tick() => self.send_all(&mut batch, &mut lines).await,
                Some(span) = self.sources.spans.recv() => {
                    self.print(&span);
                    batch.push(span);
                    if batch.len() >= BATCH_MAX {
                        self.send_spans(&mut batch).await;
                    }
                }
                Some(line) = Sources::line(&mut self.sources.lines) => {
                    lines.push(line);
                    if lines.len() >= BATCH_MAX {
                        self.send_lines(&mut lines).await;
                    }
                }
            }
        }
        while batch.len() < BATCH_MAX
            && let Ok(span) = self.sources.spans.try_recv()
        {
            self.print(&span);
            batch.push(span);
        }
        while lines.len() < BATCH_MAX
            && let Some(Ok(line)) = self.sources.lines.as_mut().map(mpsc::Receiver::try_recv)
        {
            lines.push(line);
        }
        let last = self.send_all(&mut batch, &mut lines);
        if tokio::time::timeout(LAST_WAIT_MAX, last).await.is_err() {
            tracing::warn!("the last metrics and traces could not be exported in time");
        }
    }

    async fn send_all(&self, batch: &mut Vec<Span>, lines: &mut Vec<Line>) {
        self.send_spans(batch).await;
        self.send_lines(lines).await;
        self.send_metrics().await;
    }

    fn print(&self, span: &Span) {
        if self.prints {
            println!("{span}");
        }
    }

    async fn send_spans(&self, batch: &mut Vec<Span>) {
        if batch.is_empty() {
            return;
        }
        if let Some(destination) = &self.destination {
            let body = otlp::traces(&destination.resource, batch);
            self.send(destination, "traces", "/v1/traces", body).await;
        }
        batch.clear();
    }

    async fn send_lines(&self, lines: &mut Vec<Line>) {
        if lines.is_empty() {
            return;
        }
        if let Some(destination) = &self.destination {
            let body = otlp_logs::logs(&destination.resource, lines);
            self.send(destination, "logs", "/v1/logs", body).await;
        }
        lines.clear();
    }

    async fn send_metrics(&self) {
        let Some(destination) = &self.destination else { return };
        let families = self.metrics.gather();
        let body = otlp::metrics(&destination.resource, &families, self.begun, SystemTime::now());
        self.send(destination, "metrics", "/v1/metrics", body).await;
    }

    async fn send(&self, destination: &Destination, signal: &'static str, path: &str, body: Vec<u8>) {
        let sent = tokio::time::timeout(ANSWER_WAIT_MAX, destination.post(path, body)).await;
        let result = match sent.unwrap_or(Err(ExportError::Timeout)) {
            Ok(()) => "delivered",
            Err(error) => {
                tracing::warn!(signal, %error, "telemetry could not be exported");
                "failed"
            }
        };
        self.metrics.exports.with_label_values(&[signal, result]).inc();
    }
}

impl Destination {
    /// A connection for each request: there is one every few seconds.
    async fn post(&self, path: &str, body: Vec<u8>) -> Result<(), ExportError> {
        let stream = TcpStream::connect((self.host.as_str(), self.port)).await?;
        stream.set_nodelay(true)?;
        match &self.tls {
            None => self.exchange(stream, path, body).await,
            Some(config) => {
                let connector = TlsConnector::from(Arc::clone(config));
                let name = ServerName::try_from(self.host.clone()).map_err(|_| ExportError::Name)?;
                self.exchange(connector.connect(name, stream).await?, path, body).await
            }
        }
    }

    async fn exchange<S>(&self, stream: S, path: &str, body: Vec<u8>) -> Result<(), ExportError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        // Ends with the sender; what fails is seen by the request.
        let connection = tokio::spawn(connection);
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        let mut request = Request::new(Full::new(Bytes::from(body)));
        *request.method_mut() = hyper::Method::POST;
        *request.uri_mut() =
            format!("{}{path}", self.path).parse().expect("a path of a URL and a path are a path");
        let headers = request.headers_mut();
        let authority = format!("{host}:{}", self.port);
        headers.insert(HOST, HeaderValue::from_str(&authority).map_err(|_| ExportError::Name)?);
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-protobuf"));
        headers
            .insert(USER_AGENT, HeaderValue::from_static(concat!("shapefold/", env!("CARGO_PKG_VERSION"))));
        for (name, value) in &self.headers {
            headers.insert(name, value.clone());
        }
        let response = sender.send_request(request).await;
        connection.abort();
        let status = response?.status();
        if status.is_success() { Ok(()) } else { Err(ExportError::Status(status.as_u16())) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn destinations_are_urls() {
        for (url, host, port, path) in [
            ("http://collector:4318", "collector", 4318, ""),
            ("http://collector/otlp/", "collector", 80, "/otlp"),
            ("http://[::1]:4318/", "::1", 4318, ""),
        ] {
            let destination = Destination::new(url).expect(url);
            assert_eq!(
                (&*destination.host, destination.port, &*destination.path),
                (host, port, path),
                "{url}"
            );
        }
        for url in ["", "collector:4318", "grpc://collector:4317", "/path", "http://"] {
            assert_eq!(Destination::new(url).err(), Some(DestinationError::Url), "{url}");
        }
    }

    #[test]
    fn attributes_of_the_environment_win() {
        let destination = Destination::new("http://h").expect("a URL");
        let own = [("service.name", "electric"), ("service.version", "1")];
        let set =
            destination.clone().with_resource(&own, "service.name=mine, region=eu%2Dwest").expect("pairs");
        let pairs: Vec<String> = set.resource.iter().map(|(key, value)| format!("{key}={value}")).collect();
        assert_eq!(pairs, ["region=eu-west", "service.name=mine", "service.version=1"]);
        assert!(destination.clone().with_resource(&own, "alone").is_err());
        let secret = destination.with_header("x-honeycomb-team", "k3y").expect("a header");
        assert!(!format!("{secret:?}").contains("k3y"), "{secret:?}");
    }
}

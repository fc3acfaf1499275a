//! A collector that takes OTLP over HTTP and decodes it with the messages of the OpenTelemetry project.

use std::sync::{Arc, Mutex};

use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value::Value};
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// What has arrived.
#[derive(Debug, Default)]
pub struct Arrived {
    pub traces: Vec<ExportTraceServiceRequest>,
    pub metrics: Vec<ExportMetricsServiceRequest>,
    pub logs: Vec<ExportLogsServiceRequest>,
    /// Heads of all requests.
    pub heads: Vec<String>,
}

#[derive(Clone, Debug)]
pub struct Collector {
    pub url: String,
    pub arrived: Arc<Mutex<Arrived>>,
}

impl Collector {
    pub async fn start() -> Collector {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("bound"));
        let arrived = Arc::<Mutex<Arrived>>::default();
        let all = Arc::clone(&arrived);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, Arc::clone(&all)));
            }
        });
        Collector { url, arrived }
    }

    /// Looks at what has arrived.
    pub fn look<T>(&self, look: impl FnOnce(&Arrived) -> T) -> T {
        look(&self.arrived.lock().expect("no panic while it is held"))
    }
}

async fn serve(mut stream: TcpStream, all: Arc<Mutex<Arrived>>) {
    let mut bytes = Vec::new();
    let head = loop {
        if let Some(at) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            break at + 4;
        }
        if stream.read_buf(&mut bytes).await.unwrap_or(0) == 0 {
            return;
        }
    };
    let text = String::from_utf8_lossy(&bytes[..head]).to_ascii_lowercase();
    let length: usize = text
        .lines()
        .find_map(|line| line.strip_prefix("content-length: "))
        .map_or(0, |length| length.trim().parse().expect("a number"));
    while bytes.len() < head + length {
        if stream.read_buf(&mut bytes).await.unwrap_or(0) == 0 {
            return;
        }
    }
    let body = &bytes[head..];
    {
        let mut all = all.lock().expect("no panic while it is held");
        if text.starts_with("post /v1/traces ") {
            all.traces.push(ExportTraceServiceRequest::decode(body).expect("spans"));
        } else if text.starts_with("post /v1/metrics ") {
            all.metrics.push(ExportMetricsServiceRequest::decode(body).expect("metrics"));
        } else if text.starts_with("post /v1/logs ") {
            all.logs.push(ExportLogsServiceRequest::decode(body).expect("lines"));
        }
        all.heads.push(text);
    }
    let _closed = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
}

/// The value of an attribute, as text.
pub fn attribute(attributes: &[KeyValue], key: &str) -> Option<String> {
    let found = attributes.iter().find(|attribute| attribute.key == key)?;
    Some(match found.value.as_ref()?.value.as_ref()? {
        Value::StringValue(text) => text.clone(),
        Value::IntValue(number) => number.to_string(),
        Value::BoolValue(flag) => flag.to_string(),
        other => format!("{other:?}"),
    })
}

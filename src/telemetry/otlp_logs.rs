//! Logs in OTLP: see [`super::otlp`].

use prost::Message;
use tracing::Level;

use super::log::Line;
use super::otlp::{Any, AnyValue, KeyValue, Resource, Scope, nanos, resource_of, scope, text};

#[derive(Clone, PartialEq, Message)]
struct Logs {
    #[prost(message, repeated, tag = "1")]
    resources: Vec<ResourceLogs>,
}

#[derive(Clone, PartialEq, Message)]
struct ResourceLogs {
    #[prost(message, optional, tag = "1")]
    resource: Option<Resource>,
    #[prost(message, repeated, tag = "2")]
    scopes: Vec<ScopeLogs>,
}

#[derive(Clone, PartialEq, Message)]
struct ScopeLogs {
    #[prost(message, optional, tag = "1")]
    scope: Option<Scope>,
    #[prost(message, repeated, tag = "2")]
    records: Vec<LogRecord>,
}

#[derive(Clone, PartialEq, Message)]
struct LogRecord {
    #[prost(fixed64, tag = "1")]
    at: u64,
    #[prost(int32, tag = "2")]
    severity: i32,
    #[prost(string, tag = "3")]
    severity_text: String,
    #[prost(message, optional, tag = "5")]
    body: Option<AnyValue>,
    #[prost(message, repeated, tag = "6")]
    attributes: Vec<KeyValue>,
    #[prost(fixed64, tag = "11")]
    observed_at: u64,
}

/// The body of a request to `/v1/logs`.
pub(super) fn logs(resource: &[(String, String)], lines: &[Line]) -> Vec<u8> {
    let records = lines.iter().map(record).collect();
    let scopes = vec![ScopeLogs { scope: Some(scope()), records }];
    Logs { resources: vec![ResourceLogs { resource: Some(resource_of(resource)), scopes }] }.encode_to_vec()
}

fn record(line: &Line) -> LogRecord {
    let at = nanos(line.at);
    LogRecord {
        at,
        severity: severity(line.level),
        severity_text: line.level.to_string(),
        body: Some(AnyValue { value: Some(Any::Text(line.message.clone())) }),
        attributes: line.fields.iter().map(|(key, value)| text(key, value)).collect(),
        observed_at: at,
    }
}

/// The first number of each range of OTLP.
fn severity(level: Level) -> i32 {
    match level {
        Level::TRACE => 1,
        Level::DEBUG => 5,
        Level::INFO => 9,
        Level::WARN => 13,
        Level::ERROR => 17,
    }
}

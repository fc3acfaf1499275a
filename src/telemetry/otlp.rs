//! The part of OTLP that is sent: spans, and metrics as gauges, sums and histograms. Field numbers are
//! those of <https://github.com/open-telemetry/opentelemetry-proto>, version 1, which never change.

use std::time::{SystemTime, UNIX_EPOCH};

use prometheus::proto::{MetricFamily, MetricType};
use prost::Message;

use super::trace::{Span, Value};

/// Where Electric has a name with dots (contract 6.2).
const NAMES: [(&str, &str); 9] = [
    ("electric_shapes_total_shapes_count", "electric.shapes.total_shapes.count"),
    ("electric_shapes_active_shapes_count", "electric.shapes.active_shapes.count"),
    (
        "electric_postgres_replication_slot_retained_wal_size",
        "electric.postgres.replication.slot_retained_wal_size",
    ),
    (
        "electric_postgres_replication_slot_confirmed_flush_lsn_lag",
        "electric.postgres.replication.slot_confirmed_flush_lsn_lag",
    ),
    (
        "electric_postgres_replication_transaction_received_receive_lag",
        "electric.postgres.replication.transaction_received.receive_lag",
    ),
    ("electric_plug_serve_shape_requests_count", "electric.plug.serve_shape.requests.count"),
    ("electric_admission_control_acquire_current", "electric.admission_control.acquire.current"),
    ("electric_admission_control_acquire_limit", "electric.admission_control.acquire.limit"),
    ("electric_admission_control_reject_count", "electric.admission_control.reject.count"),
];
const SCOPE: &str = "shapefold";
/// Counters and histograms count from the start of the process.
const CUMULATIVE: i32 = 2;
const STATUS_ERROR: i32 = 2;
/// The caller has sampled it.
const FLAG_SAMPLED: u32 = 1;

#[derive(Clone, PartialEq, Message)]
struct Traces {
    #[prost(message, repeated, tag = "1")]
    resources: Vec<ResourceSpans>,
}

#[derive(Clone, PartialEq, Message)]
struct ResourceSpans {
    #[prost(message, optional, tag = "1")]
    resource: Option<Resource>,
    #[prost(message, repeated, tag = "2")]
    scopes: Vec<ScopeSpans>,
}

#[derive(Clone, PartialEq, Message)]
struct ScopeSpans {
    #[prost(message, optional, tag = "1")]
    scope: Option<Scope>,
    #[prost(message, repeated, tag = "2")]
    spans: Vec<SpanMessage>,
}

#[derive(Clone, PartialEq, Message)]
struct SpanMessage {
    #[prost(bytes = "vec", tag = "1")]
    trace_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    span_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "4")]
    parent_span_id: Vec<u8>,
    #[prost(string, tag = "5")]
    name: String,
    #[prost(int32, tag = "6")]
    kind: i32,
    #[prost(fixed64, tag = "7")]
    begun: u64,
    #[prost(fixed64, tag = "8")]
    ended: u64,
    #[prost(message, repeated, tag = "9")]
    attributes: Vec<KeyValue>,
    #[prost(message, optional, tag = "15")]
    status: Option<Status>,
    #[prost(fixed32, tag = "16")]
    flags: u32,
}

#[derive(Clone, PartialEq, Message)]
struct Status {
    #[prost(int32, tag = "3")]
    code: i32,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Resource {
    #[prost(message, repeated, tag = "1")]
    attributes: Vec<KeyValue>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Scope {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    version: String,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct KeyValue {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(message, optional, tag = "2")]
    value: Option<AnyValue>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct AnyValue {
    #[prost(oneof = "Any", tags = "1, 2, 3")]
    pub value: Option<Any>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
pub(super) enum Any {
    #[prost(string, tag = "1")]
    Text(String),
    #[prost(bool, tag = "2")]
    Bool(bool),
    #[prost(int64, tag = "3")]
    Int(i64),
}

#[derive(Clone, PartialEq, Message)]
struct MetricsMessage {
    #[prost(message, repeated, tag = "1")]
    resources: Vec<ResourceMetrics>,
}

#[derive(Clone, PartialEq, Message)]
struct ResourceMetrics {
    #[prost(message, optional, tag = "1")]
    resource: Option<Resource>,
    #[prost(message, repeated, tag = "2")]
    scopes: Vec<ScopeMetrics>,
}

#[derive(Clone, PartialEq, Message)]
struct ScopeMetrics {
    #[prost(message, optional, tag = "1")]
    scope: Option<Scope>,
    #[prost(message, repeated, tag = "2")]
    metrics: Vec<MetricMessage>,
}

#[derive(Clone, PartialEq, Message)]
struct MetricMessage {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    description: String,
    #[prost(oneof = "Data", tags = "5, 7, 9")]
    data: Option<Data>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum Data {
    #[prost(message, tag = "5")]
    Gauge(GaugeMessage),
    #[prost(message, tag = "7")]
    Sum(SumMessage),
    #[prost(message, tag = "9")]
    Histogram(HistogramMessage),
}

#[derive(Clone, PartialEq, Message)]
struct GaugeMessage {
    #[prost(message, repeated, tag = "1")]
    points: Vec<NumberPoint>,
}

#[derive(Clone, PartialEq, Message)]
struct SumMessage {
    #[prost(message, repeated, tag = "1")]
    points: Vec<NumberPoint>,
    #[prost(int32, tag = "2")]
    temporality: i32,
    #[prost(bool, tag = "3")]
    monotonic: bool,
}

#[derive(Clone, PartialEq, Message)]
struct NumberPoint {
    #[prost(fixed64, tag = "2")]
    begun: u64,
    #[prost(fixed64, tag = "3")]
    at: u64,
    #[prost(double, optional, tag = "4")]
    value: Option<f64>,
    #[prost(message, repeated, tag = "7")]
    attributes: Vec<KeyValue>,
}

#[derive(Clone, PartialEq, Message)]
struct HistogramMessage {
    #[prost(message, repeated, tag = "1")]
    points: Vec<HistogramPoint>,
    #[prost(int32, tag = "2")]
    temporality: i32,
}

#[derive(Clone, PartialEq, Message)]
struct HistogramPoint {
    #[prost(fixed64, tag = "2")]
    begun: u64,
    #[prost(fixed64, tag = "3")]
    at: u64,
    #[prost(fixed64, tag = "4")]
    count: u64,
    #[prost(double, optional, tag = "5")]
    sum: Option<f64>,
    #[prost(fixed64, repeated, tag = "6")]
    buckets: Vec<u64>,
    #[prost(double, repeated, tag = "7")]
    bounds: Vec<f64>,
    #[prost(message, repeated, tag = "9")]
    attributes: Vec<KeyValue>,
}

/// The body of a request to `/v1/traces`.
pub(super) fn traces(resource: &[(String, String)], spans: &[Span]) -> Vec<u8> {
    let spans = spans.iter().map(span_message).collect();
    let scopes = vec![ScopeSpans { scope: Some(scope()), spans }];
    Traces { resources: vec![ResourceSpans { resource: Some(resource_of(resource)), scopes }] }
        .encode_to_vec()
}

/// The body of a request to `/v1/metrics`. `begun` is when the process began to count.
pub(super) fn metrics(
    resource: &[(String, String)],
    families: &[MetricFamily],
    begun: SystemTime,
    now: SystemTime,
) -> Vec<u8> {
    let (begun, now) = (nanos(begun), nanos(now));
    let metrics = families.iter().map(|family| metric_message(family, begun, now)).collect();
    let scopes = vec![ScopeMetrics { scope: Some(scope()), metrics }];
    let resource = Some(resource_of(resource));
    MetricsMessage { resources: vec![ResourceMetrics { resource, scopes }] }.encode_to_vec()
}

pub(super) fn scope() -> Scope {
    Scope { name: SCOPE.to_owned(), version: env!("CARGO_PKG_VERSION").to_owned() }
}

pub(super) fn resource_of(attributes: &[(String, String)]) -> Resource {
    Resource { attributes: attributes.iter().map(|(key, value)| text(key, value)).collect() }
}

pub(super) fn text(key: &str, value: &str) -> KeyValue {
    KeyValue { key: key.to_owned(), value: Some(AnyValue { value: Some(Any::Text(value.to_owned())) }) }
}

fn span_message(span: &Span) -> SpanMessage {
    let attribute = |(key, value): &(&'static str, Value)| KeyValue {
        key: (*key).to_owned(),
        value: Some(AnyValue {
            value: Some(match value {
                Value::Text(text) => Any::Text(text.clone()),
                Value::Int(number) => Any::Int(*number),
                Value::Bool(flag) => Any::Bool(*flag),
            }),
        }),
    };
    SpanMessage {
        trace_id: span.context.trace_id.to_vec(),
        span_id: span.context.span_id.to_vec(),
        parent_span_id: span.parent.map_or_else(Vec::new, |parent| parent.to_vec()),
        name: span.name.to_owned(),
        kind: span.kind as i32,
        begun: nanos(span.begun),
        ended: nanos(span.ended),
        attributes: span.attributes.iter().map(attribute).collect(),
        status: span.failed.then_some(Status { code: STATUS_ERROR }),
        flags: FLAG_SAMPLED,
    }
}

fn metric_message(family: &MetricFamily, begun: u64, at: u64) -> MetricMessage {
    let attributes = |metric: &prometheus::proto::Metric| {
        metric.get_label().iter().map(|label| text(label.name(), label.value())).collect::<Vec<_>>()
    };
    let points = |value: &dyn Fn(&prometheus::proto::Metric) -> f64| {
        let point =
            |metric| NumberPoint { begun, at, value: Some(value(metric)), attributes: attributes(metric) };
        family.get_metric().iter().map(point).collect::<Vec<_>>()
    };
    let data = match family.get_field_type() {
        MetricType::COUNTER => Data::Sum(SumMessage {
            points: points(&|metric| metric.get_counter().get_value()),
            temporality: CUMULATIVE,
            monotonic: true,
        }),
        MetricType::HISTOGRAM => {
            let point = |metric| histogram_point(metric, (begun, at), attributes(metric));
            let points = family.get_metric().iter().map(point).collect();
            Data::Histogram(HistogramMessage { points, temporality: CUMULATIVE })
        }
        // Nothing else is registered.
        MetricType::GAUGE | MetricType::SUMMARY | MetricType::UNTYPED => {
            Data::Gauge(GaugeMessage { points: points(&|metric| metric.get_gauge().get_value()) })
        }
    };
    MetricMessage { name: name_of(family.name()), description: family.help().to_owned(), data: Some(data) }
}

fn histogram_point(
    metric: &prometheus::proto::Metric,
    (begun, at): (u64, u64),
    attributes: Vec<KeyValue>,
) -> HistogramPoint {
    let histogram = metric.get_histogram();
    let count = histogram.get_sample_count();
    let mut before = 0;
    let mut buckets = Vec::new();
    let mut bounds = Vec::new();
    // Those of Prometheus hold everything up to their bound, those of OTLP what the bucket before lacks.
    for bucket in histogram.get_bucket().iter().filter(|bucket| bucket.upper_bound().is_finite()) {
        buckets.push(bucket.cumulative_count().saturating_sub(before));
        bounds.push(bucket.upper_bound());
        before = bucket.cumulative_count();
    }
    buckets.push(count.saturating_sub(before));
    HistogramPoint { begun, at, count, sum: Some(histogram.get_sample_sum()), buckets, bounds, attributes }
}

pub(super) fn name_of(name: &str) -> String {
    match NAMES.iter().find(|(prometheus, _)| *prometheus == name) {
        Some((_, dotted)) => (*dotted).to_owned(),
        None => name.replacen('_', ".", 1),
    }
}

pub(super) fn nanos(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::Metrics;

    #[test]
    fn every_name_of_electric_exists() {
        let metrics = Metrics::new();
        metrics.admission.with_label_values(&["initial"]);
        metrics.admission_limit.with_label_values(&["initial"]);
        metrics.admission_rejected.with_label_values(&["initial"]);
        metrics.requests.with_label_values(&["200"]);
        let families = metrics.gather();
        for (name, _) in NAMES {
            assert!(families.iter().any(|family| family.name() == name), "{name}");
        }
        assert_eq!(name_of("shapefold_held_bytes"), "shapefold.held_bytes");
    }

    #[test]
    fn buckets_hold_what_the_one_before_lacks() {
        let metrics = Metrics::new();
        for seconds in [0.0002, 0.0002, 0.02, 9.0] {
            metrics.flush_seconds.observe(seconds);
        }
        let families = metrics.gather();
        let family = families.iter().find(|family| family.name() == "shapefold_flush_seconds").unwrap();
        let Some(Data::Histogram(histogram)) = metric_message(family, 1, 2).data else {
            panic!("no histogram")
        };
        let point = &histogram.points[0];
        assert_eq!(point.buckets.len(), point.bounds.len() + 1);
        assert_eq!((point.buckets.iter().sum::<u64>(), point.count), (4, 4));
        assert_eq!((point.buckets[1], point.buckets.last()), (2, Some(&1)));
    }
}

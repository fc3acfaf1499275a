//! What is told about the running service: metrics, which anybody may read at any time, spans, of
//! which a part is kept, and the log; all of it can be sent to a collector.
//!
//! Counting never waits: a metric is an atomic number, a span that finds its queue full is dropped and
//! counted. Nothing here knows what is measured.

mod export;
mod log;
mod metrics;
mod otlp;
mod otlp_logs;
mod statsd;
mod trace;

pub use export::{Destination, DestinationError, Exporter, Sources};
pub use log::{LINES_MAX, Line, LogTap, tap};
pub use metrics::{CONTENT_TYPE, Metrics, Slot};
pub use statsd::Statsd;
pub use trace::{OpenSpan, SPANS_MAX, Sampling, Span, SpanKind, TraceContext, Tracer, Value};

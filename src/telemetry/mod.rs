//! What is told about the running service: metrics, which anybody may read at any time, and spans, of
//! which a part is kept; both can be sent to a collector.
//!
//! Counting never waits: a metric is an atomic number, a span that finds its queue full is dropped and
//! counted. Nothing here knows what is measured.

mod export;
mod metrics;
mod otlp;
mod trace;

pub use export::{Destination, DestinationError, Exporter};
pub use metrics::{CONTENT_TYPE, Metrics, Slot};
pub use trace::{OpenSpan, SPANS_MAX, Sampling, Span, SpanKind, TraceContext, Tracer, Value};

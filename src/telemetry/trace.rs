//! Spans: what took how long, for whom. A part of them is kept, and what is not kept costs a random number.

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use prometheus::IntCounter;
use rand::Rng;
use tokio::sync::mpsc;

/// Finished spans that wait for their export; more are dropped and counted.
pub const SPANS_MAX: usize = 4_096;

/// One part of a trace, as it came in or goes on: <https://www.w3.org/TR/trace-context/>.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceContext {
    pub trace_id: [u8; 16],
    pub span_id: [u8; 8],
    pub sampled: bool,
}

impl TraceContext {
    /// From the header `traceparent`; `None` where it is not of version 00 or its ids are zero.
    #[must_use]
    pub fn parse(header: &str) -> Option<TraceContext> {
        let mut parts = header.trim().split('-');
        let (version, trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        if version != "00" || parts.next().is_some() || flags.len() != 2 {
            return None;
        }
        let (trace_id, span_id) = (hex::<16>(trace)?, hex::<8>(span)?);
        let flags = u8::from_str_radix(flags, 16).ok()?;
        let zero = trace_id == [0; 16] || span_id == [0; 8];
        (!zero).then_some(TraceContext { trace_id, span_id, sampled: flags & 1 == 1 })
    }
}

fn hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let lower = text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
    if text.len() != 2 * N || !lower {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, at) in bytes.iter_mut().zip((0..text.len()).step_by(2)) {
        *byte = u8::from_str_radix(&text[at..at + 2], 16).ok()?;
    }
    Some(bytes)
}

/// What side of a conversation a span is on; the numbers are OTLP's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpanKind {
    Internal = 1,
    Server = 2,
    Consumer = 5,
}

/// Whether a span is kept where nobody before it has decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sampling {
    /// By the configured ratio: what comes often.
    Ratio,
    Always,
}

/// The value of an attribute. Never a row's, a parameter's or the text of a where clause.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Text(String),
    Int(i64),
    Bool(bool),
}

/// A finished span.
#[derive(Clone, Debug, PartialEq)]
pub struct Span {
    pub context: TraceContext,
    pub parent: Option<[u8; 8]>,
    pub name: &'static str,
    pub kind: SpanKind,
    pub begun: SystemTime,
    pub ended: SystemTime,
    pub attributes: Vec<(&'static str, Value)>,
    pub failed: bool,
}

/// One line for a person: `ELECTRIC_OTEL_DEBUG`.
impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hex =
            |f: &mut fmt::Formatter<'_>, id: &[u8]| id.iter().try_for_each(|byte| write!(f, "{byte:02x}"));
        write!(f, "span {} trace_id=", self.name)?;
        hex(f, &self.context.trace_id)?;
        f.write_str(" span_id=")?;
        hex(f, &self.context.span_id)?;
        if let Some(parent) = &self.parent {
            f.write_str(" parent_id=")?;
            hex(f, parent)?;
        }
        let lasted = self.ended.duration_since(self.begun).unwrap_or_default();
        write!(f, " millis={:.3} failed={}", lasted.as_secs_f64() * 1e3, self.failed)?;
        self.attributes.iter().try_for_each(|(name, value)| match value {
            Value::Text(text) => write!(f, " {name}={text:?}"),
            Value::Int(number) => write!(f, " {name}={number}"),
            Value::Bool(flag) => write!(f, " {name}={flag}"),
        })
    }
}

/// Takes spans. Cheap to clone; without a receiver it takes none.
#[derive(Clone, Debug, Default)]
pub struct Tracer {
    on: Option<On>,
}

#[derive(Clone, Debug)]
struct On {
    spans: mpsc::Sender<Span>,
    ratio: f64,
    /// Names of spans that are not wanted.
    excluded: Arc<[String]>,
    dropped: IntCounter,
}

impl Tracer {
    /// A tracer whose spans the receiver gets, and that counts those it could not take.
    #[must_use]
    pub fn new(ratio: f64, dropped: IntCounter) -> (Tracer, mpsc::Receiver<Span>) {
        let (spans, receiver) = mpsc::channel(SPANS_MAX);
        (Tracer { on: Some(On { spans, ratio, excluded: Arc::default(), dropped }) }, receiver)
    }

    /// Without the spans of these names (`ELECTRIC_EXCLUDE_SPANS`).
    #[must_use]
    pub fn without(self, names: Vec<String>) -> Tracer {
        Tracer { on: self.on.map(|on| On { excluded: names.into(), ..on }) }
    }

    /// Begins a span; `None` where it is not kept. The parent's decision is everybody's.
    #[must_use]
    pub fn begin(
        &self,
        name: &'static str,
        kind: SpanKind,
        sampling: Sampling,
        parent: Option<TraceContext>,
    ) -> Option<OpenSpan> {
        let on = self.on.as_ref().filter(|on| !on.excluded.iter().any(|excluded| excluded == name))?;
        let mut random = rand::rng();
        let sampled = match (parent, sampling) {
            (Some(parent), _) => parent.sampled,
            (None, Sampling::Always) => true,
            (None, Sampling::Ratio) => random.random_bool(on.ratio.clamp(0.0, 1.0)),
        };
        if !sampled {
            return None;
        }
        let trace_id = parent.map_or_else(|| random.random(), |parent| parent.trace_id);
        let context = TraceContext { trace_id, span_id: random.random(), sampled: true };
        let now = SystemTime::now();
        Some(OpenSpan {
            span: Span {
                context,
                parent: parent.map(|parent| parent.span_id),
                name,
                kind,
                begun: now,
                ended: now,
                attributes: Vec::new(),
                failed: false,
            },
            on: on.clone(),
        })
    }
}

/// A span that has not ended. Dropped without [`OpenSpan::end`] it is never told.
#[derive(Debug)]
pub struct OpenSpan {
    span: Span,
    on: On,
}

impl OpenSpan {
    pub fn set(&mut self, name: &'static str, value: Value) {
        self.span.attributes.push((name, value));
    }

    /// It began earlier than now.
    pub fn begun(&mut self, at: SystemTime) {
        self.span.begun = at;
    }

    /// Ends it. Never waits.
    pub fn end(mut self, failed: bool) {
        self.span.ended = SystemTime::now().max(self.span.begun);
        self.span.failed = failed;
        if self.on.spans.try_send(self.span).is_err() {
            self.on.dropped.inc();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn reads_what_w3c_writes() {
        let parent = TraceContext::parse(PARENT).expect("a context");
        assert_eq!((parent.trace_id[0], parent.span_id[7], parent.sampled), (0x0a, 0x31, true));
        for bad in [
            "",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
            "01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0AF7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319-b7ad6b71692033311-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more",
            "00-äääaaaaaaaaaaaaaaaaaaaaaaaaaaaaa-b7ad6b7169203331-01",
        ] {
            assert_eq!(TraceContext::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn the_parent_decides_and_then_the_ratio() {
        let dropped = IntCounter::new("dropped", "dropped").expect("a name");
        let (never, _spans) = Tracer::new(0.0, dropped.clone());
        let (always, mut spans) = Tracer::new(1.0, dropped.clone());
        let parent = TraceContext::parse(PARENT);
        let unsampled = parent.map(|parent| TraceContext { sampled: false, ..parent });
        let begin = |tracer: &Tracer, sampling, parent| {
            tracer.begin("name", SpanKind::Server, sampling, parent).is_some()
        };
        assert!(begin(&never, Sampling::Ratio, parent) && !begin(&always, Sampling::Ratio, unsampled));
        assert!(begin(&never, Sampling::Always, None) && !begin(&never, Sampling::Ratio, None));
        assert!(!begin(&Tracer::default(), Sampling::Always, parent), "nobody listens");
        let excluding = always.clone().without(vec!["other".to_owned(), "name".to_owned()]);
        assert!(!begin(&excluding, Sampling::Always, parent) && begin(&always, Sampling::Always, parent));
        let mut span = always.begin("name", SpanKind::Server, Sampling::Ratio, parent).expect("sampled");
        span.set("rows", Value::Int(3));
        span.end(true);
        let span = spans.try_recv().expect("it was sent");
        let parent = parent.expect("a context");
        assert_eq!((span.context.trace_id, span.parent), (parent.trace_id, Some(parent.span_id)));
        assert!(span.failed && span.ended >= span.begun && span.context.span_id != parent.span_id);
        let shown = span.to_string();
        assert!(
            shown.starts_with("span name trace_id=0af7651916cd43dd8448eb211c80319c span_id=")
                && shown.contains(" parent_id=b7ad6b7169203331 millis=")
                && shown.ends_with(" failed=true rows=3"),
            "{shown}"
        );
    }

    #[test]
    fn what_nobody_takes_is_dropped_and_counted() {
        let dropped = IntCounter::new("dropped", "dropped").expect("a name");
        let (tracer, _spans) = Tracer::new(1.0, dropped.clone());
        for _ in 0..SPANS_MAX + 3 {
            tracer.begin("name", SpanKind::Internal, Sampling::Always, None).expect("sampled").end(false);
        }
        assert_eq!(dropped.get(), 3);
    }
}

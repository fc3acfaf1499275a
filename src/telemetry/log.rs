//! The log, for export: what is written is also kept for a collector, once there is one.

use std::fmt;
use std::sync::OnceLock;
use std::time::SystemTime;

use prometheus::IntCounter;
use tokio::sync::mpsc;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

/// Lines that wait for their export; more are dropped and counted.
pub const LINES_MAX: usize = 4_096;
/// A line about the export is not exported: it would be followed by the next.
const OWN: &str = module_path!();

/// One line of the log.
#[derive(Clone, Debug, PartialEq)]
pub struct Line {
    pub at: SystemTime,
    pub level: Level,
    pub message: String,
    /// Fields of the event; nothing is in them that is not in the log.
    pub fields: Vec<(&'static str, String)>,
}

#[derive(Debug)]
struct Tap {
    lines: mpsc::Sender<Line>,
    dropped: IntCounter,
}

/// The log is there before it is known who wants it.
static TAP: OnceLock<Tap> = OnceLock::new();

/// Everything that is logged from now on; `None` where somebody gets it already.
#[must_use]
pub fn tap(dropped: IntCounter) -> Option<mpsc::Receiver<Line>> {
    let (lines, receiver) = mpsc::channel(LINES_MAX);
    TAP.set(Tap { lines, dropped }).is_ok().then_some(receiver)
}

/// Hands on what passes the filter of the log. Never waits.
#[derive(Clone, Copy, Debug, Default)]
pub struct LogTap;

impl<S: Subscriber> Layer<S> for LogTap {
    fn on_event(&self, event: &Event<'_>, _context: Context<'_, S>) {
        let Some(tap) = TAP.get() else { return };
        let own = OWN.rsplit_once("::").map_or(OWN, |(parent, _)| parent);
        if event.metadata().target().starts_with(own) {
            return;
        }
        if tap.lines.try_send(line(event)).is_err() {
            tap.dropped.inc();
        }
    }
}

fn line(event: &Event<'_>) -> Line {
    let level = *event.metadata().level();
    let mut line = Line { at: SystemTime::now(), level, message: String::new(), fields: Vec::new() };
    event.record(&mut line);
    line
}

impl Visit for Line {
    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "message" => value.clone_into(&mut self.message),
            name => self.fields.push((name, value.to_owned())),
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.record_str(field, &format!("{value:?}"));
    }
}

#[cfg(test)]
mod tests {
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    #[test]
    fn lines_are_handed_on_with_their_fields() {
        let dropped = IntCounter::new("dropped", "dropped").expect("a name");
        let mut lines = tap(dropped.clone()).expect("the first one");
        assert!(tap(dropped.clone()).is_none());
        let subscriber = tracing_subscriber::registry().with(LogTap);
        tracing::subscriber::with_default(subscriber, || {
            tracing::warn!(target: "elsewhere", shape_handle = "1-2", count = 3, "it is slow");
            tracing::error!("about the export itself");
            for _ in 0..LINES_MAX + 2 {
                tracing::info!(target: "elsewhere", "again");
            }
        });
        let line = lines.try_recv().expect("a line");
        assert_eq!((line.level, line.message.as_str()), (Level::WARN, "it is slow"));
        assert_eq!(line.fields, [("shape_handle", "1-2".to_owned()), ("count", "3".to_owned())]);
        assert_eq!(lines.try_recv().expect("a line").message, "again");
        assert_eq!(dropped.get(), 3);
    }
}

//! The log: one line for each event on standard output, as text or JSON (contract 6.3).
//!
//! A warning or an error that repeats word for word is written once, then with a count at growing
//! intervals: a database that is away for a night must not fill the disk.

use std::collections::HashMap;
use std::fmt::{self, Write as _};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::IsTerminal;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::{Format, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;

use crate::cli::operations::{LogFormat, Operations};
use crate::telemetry::LogTap;

/// The second of two equal lines is held back for so long, then twice as long, and so on.
const HELD_BACK_MIN: Duration = Duration::from_secs(1);
const HELD_BACK_MAX: Duration = Duration::from_secs(300);
/// An event that has not come for so long is new again.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(900);
/// Different lines that are remembered; at this many the memory starts over.
const LINES_MAX: usize = 1_024;

/// Begins to write the log.
///
/// # Errors
/// `ELECTRIC_LOG_LEVEL` is neither a level nor a filter.
pub fn start(settings: &Operations) -> Result<(), String> {
    let filter = filter(&settings.log_level)?;
    let colors = settings.log_colors.unwrap_or_else(|| std::io::stdout().is_terminal());
    let builder = tracing_subscriber::fmt().with_env_filter(filter);
    // Somebody else's subscriber is there in tests only.
    let _set = match settings.log_format {
        LogFormat::Text => {
            let format = Format::default().with_target(false).with_ansi(colors);
            let builder = builder.with_ansi(colors).event_format(Collapsing::new(format, Form::Text));
            builder.finish().with(LogTap).try_init()
        }
        LogFormat::Json => {
            let format = Format::default().json().flatten_event(true).with_target(false);
            let builder = builder.json().event_format(Collapsing::new(format, Form::Json));
            builder.finish().with(LogTap).try_init()
        }
    };
    Ok(())
}

/// Electric's names of levels, those of `tracing`, and filters such as `info,shapefold::runtime=debug`.
fn filter(level: &str) -> Result<EnvFilter, String> {
    let level = match level.trim().to_ascii_lowercase().as_str() {
        "warning" => "warn".to_owned(),
        "notice" => "info".to_owned(),
        "critical" | "alert" | "emergency" => "error".to_owned(),
        known @ ("error" | "warn" | "info" | "debug" | "trace") => known.to_owned(),
        filter if filter.contains('=') => filter.to_owned(),
        other => {
            return Err(format!(
                "ELECTRIC_LOG_LEVEL: {other:?} is no level: use error, warning, info or debug"
            ));
        }
    };
    // sled tells its own life at info. Libraries under us may write what passes through them, such as
    // statements and rows: never below a warning, whatever is asked for.
    let quiet = "sled=warn,tokio_postgres=warn,hyper=warn,hyper_util=warn,rustls=warn,h2=warn,mio=warn";
    EnvFilter::try_new(format!("{level},{quiet}")).map_err(|error| format!("ELECTRIC_LOG_LEVEL: {error}"))
}

#[derive(Clone, Copy, Debug)]
enum Form {
    Text,
    Json,
}

/// Leaves out lines that were just written.
#[derive(Debug)]
struct Collapsing<F> {
    inner: F,
    form: Form,
    lines: Mutex<HashMap<u64, Told>>,
}

#[derive(Clone, Copy, Debug)]
struct Told {
    at: Instant,
    held_back: Duration,
    left_out: u64,
}

impl<F> Collapsing<F> {
    fn new(inner: F, form: Form) -> Collapsing<F> {
        Collapsing { inner, form, lines: Mutex::default() }
    }

    /// How many equal lines were left out before this one; `None` where it is left out, too.
    fn pass(&self, key: u64, now: Instant) -> Option<u64> {
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.len() >= LINES_MAX {
            lines.clear();
        }
        match lines.get_mut(&key) {
            Some(told) if now.duration_since(told.at) < told.held_back => {
                told.left_out += 1;
                None
            }
            Some(told) if now.duration_since(told.at) < FORGOTTEN_AFTER => {
                let left_out = told.left_out;
                *told = Told { at: now, held_back: (told.held_back * 2).min(HELD_BACK_MAX), left_out: 0 };
                Some(left_out)
            }
            Some(_) | None => {
                lines.insert(key, Told { at: now, held_back: HELD_BACK_MIN, left_out: 0 });
                Some(0)
            }
        }
    }
}

impl<S, N, F> FormatEvent<S, N> for Collapsing<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        if *event.metadata().level() > Level::WARN {
            return self.inner.format_event(context, writer, event);
        }
        let Some(left_out) = self.pass(key_of(event), Instant::now()) else { return Ok(()) };
        if left_out == 0 {
            return self.inner.format_event(context, writer, event);
        }
        let mut line = String::new();
        self.inner.format_event(context, Writer::new(&mut line), event)?;
        let line = line.trim_end();
        match self.form {
            Form::Text => writeln!(writer, "{line} repeated={left_out}"),
            Form::Json => {
                let open = line.strip_suffix('}').unwrap_or(line);
                writeln!(writer, "{open},\"repeated\":{left_out}}}")
            }
        }
    }
}

/// Where an event comes from, and everything it says.
fn key_of(event: &Event<'_>) -> u64 {
    struct Said(DefaultHasher, String);
    impl Visit for Said {
        fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
            field.name().hash(&mut self.0);
            self.1.clear();
            // Into memory: cannot fail.
            let _written = write!(self.1, "{value:?}");
            self.1.hash(&mut self.0);
        }
    }
    let mut said = Said(DefaultHasher::new(), String::new());
    event.metadata().callsite().hash(&mut said.0);
    event.record(&mut said);
    said.0.finish()
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::Arc;

    use tracing_subscriber::fmt::MakeWriter;

    use super::*;

    #[derive(Clone, Debug, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl<'a> MakeWriter<'a> for Sink {
        type Writer = Sink;

        fn make_writer(&'a self) -> Sink {
            self.clone()
        }
    }

    #[test]
    fn a_line_that_repeats_is_written_once() {
        let sink = Sink::default();
        let format = Format::default().with_target(false).with_ansi(false);
        let subscriber = tracing_subscriber::fmt()
            .with_ansi(false)
            .event_format(Collapsing::new(format, Form::Text))
            .with_writer(sink.clone())
            .finish();
        tracing::subscriber::with_default(subscriber, || {
            for part in ["disk", "disk", "net", "disk"] {
                tracing::error!(part, "it failed");
            }
            for _ in 0..2 {
                tracing::info!("it went on");
            }
        });
        let text = String::from_utf8(sink.0.lock().unwrap().clone()).unwrap();
        let lines: Vec<&str> = text.lines().map(|line| line.split_once("Z ").unwrap().1.trim()).collect();
        assert_eq!(
            lines,
            [
                "ERROR it failed part=\"disk\"",
                "ERROR it failed part=\"net\"",
                "INFO it went on",
                "INFO it went on"
            ]
        );
    }

    #[test]
    fn what_was_left_out_is_counted_and_told_ever_more_rarely() {
        let collapsing = Collapsing::new((), Form::Text);
        let begun = Instant::now();
        // The same error every 100 ms for 20 s.
        let told: Vec<u64> =
            (0..200).filter_map(|n| collapsing.pass(7, begun + Duration::from_millis(100) * n)).collect();
        assert_eq!(told, [0, 9, 19, 39, 79], "at 0, 1, 3, 7 and 15 s");
        assert_eq!(collapsing.pass(8, begun), Some(0), "another line is not held back");
        assert_eq!(collapsing.pass(7, begun + FORGOTTEN_AFTER * 2), Some(0), "new again");
    }

    #[test]
    fn levels_of_electric_and_filters() {
        for level in ["error", "Warning", "notice", "INFO", "debug", "emergency", "info,shapefold=debug"] {
            assert!(filter(level).is_ok(), "{level}");
        }
        for level in ["loud", "", "info,shapefold=loud"] {
            assert!(filter(level).is_err(), "{level:?}");
        }
        let debug = filter("debug").unwrap().to_string();
        assert!(debug.contains("tokio_postgres=warn"), "{debug}");
    }
}

//! Variables of the Electric sync service that have nothing to act upon here: contract, section 5.
//!
//! They are accepted, so that an environment can be taken over as it is; a value that Electric would
//! refuse is refused here too, so that a typing error does not wait for the way back.

use std::ffi::OsStr;

use crate::cli::values;

/// How a value is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Time,
    Size,
    Boolean,
    Integer,
    Number,
    /// Anything.
    Text,
    /// One of these, in any case.
    OneOf(&'static [&'static str]),
}

/// A variable, and why it has no effect.
#[derive(Clone, Copy, Debug)]
pub struct Accepted {
    pub name: &'static str,
    form: Form,
    pub why: &'static str,
    /// Who sets it waits for something that does not come here.
    pub missed: bool,
}

impl Accepted {
    const fn missed(mut self) -> Accepted {
        self.missed = true;
        self
    }
}

const BATCHES: &str = "changes are decoded in batches of a fixed size";
const BEAM: &str = "tunes the virtual machine of Electric";
const IDLE: &str = "a shape without work is a record and two closed files";
const SQLITE: &str = "there is no SQLite here: shapes are in the journal";
const SENTRY: &str = "no error is sent to Sentry: they are in the log, which OTLP exports";
const PROFILE: &str = "what a where clause costs is not written to the log";

const fn accept(name: &'static str, form: Form, why: &'static str) -> Accepted {
    Accepted { name, form, why, missed: false }
}

/// All of them, by section of the contract.
pub const ACCEPTED: &[Accepted] = &[
    accept(
        "ELECTRIC_PUBLICATION_ALTER_DEBOUNCE_TIME",
        Form::Time,
        "each table is published when it is asked for",
    ),
    accept(
        "ELECTRIC_EXPERIMENTAL_MAX_TXN_SIZE",
        Form::Size,
        "no transaction is too large: large ones wait in a file",
    ),
    accept("ELECTRIC_EXPERIMENTAL_MAX_BATCH_SIZE", Form::Integer, BATCHES),
    accept("ELECTRIC_TWEAKS_HTTP_API_NUM_ACCEPTORS", Form::Integer, BEAM),
    accept("ELECTRIC_TWEAKS_HANDLER_FULLSWEEP_AFTER", Form::Integer, BEAM),
    accept("ELECTRIC_TWEAKS_PROCESS_REGISTRY_PARTITIONS", Form::Integer, BEAM),
    accept("ELECTRIC_PROCESS_SPAWN_OPTS", Form::Text, BEAM),
    accept("ELECTRIC_CONSUMER_GC_HEAP_THRESHOLD", Form::Integer, BEAM),
    accept("ELECTRIC_PERSISTENT_STATE", Form::OneOf(&["FILE", "MEMORY"]), "state goes where the shapes go"),
    accept("ELECTRIC_SHAPE_DB_STORAGE_DIR", Form::Text, SQLITE),
    accept("ELECTRIC_SHAPE_DB_EXCLUSIVE_MODE", Form::Boolean, SQLITE),
    accept("ELECTRIC_SHAPE_DB_SYNCHRONOUS", Form::Text, SQLITE),
    accept("ELECTRIC_SHAPE_DB_CACHE_SIZE", Form::Size, SQLITE),
    accept("ELECTRIC_SHAPE_HIBERNATE_AFTER", Form::Time, IDLE),
    accept("ELECTRIC_SHAPE_SUSPEND_CONSUMER", Form::Boolean, IDLE),
    accept("ELECTRIC_SHAPE_SUSPEND_AFTER", Form::Time, IDLE),
    accept("ELECTRIC_CONSUMER_PARTITIONS", Form::Integer, BEAM),
    accept("ELECTRIC_CLEANUP_INTERVAL_MS", Form::Time, "removed shapes are cleaned up at once"),
    accept("ELECTRIC_LOG_OTP_REPORTS", Form::Boolean, BEAM),
    accept("ELECTRIC_PROFILE_WHERE_CLAUSES", Form::Boolean, PROFILE).missed(),
    accept("ELECTRIC_METRICS_SAMPLING_RATIO", Form::Number, "metrics are never sampled"),
    accept("ELECTRIC_STACK_TELEMETRY_INIT_DELAY", Form::Time, "telemetry begins with the process"),
    accept("ELECTRIC_TELEMETRY_TOP_PROCESS_LIMIT", Form::Text, BEAM),
    accept("ELECTRIC_TELEMETRY_TOP_PROCESS_COUNT", Form::Integer, BEAM),
    accept("ELECTRIC_TELEMETRY_LONG_GC_THRESHOLD", Form::Time, BEAM),
    accept("ELECTRIC_TELEMETRY_LONG_SCHEDULE_THRESHOLD", Form::Time, BEAM),
    accept("ELECTRIC_TELEMETRY_LONG_MESSAGE_QUEUE_ENABLE_THRESHOLD", Form::Integer, BEAM),
    accept("ELECTRIC_TELEMETRY_LONG_MESSAGE_QUEUE_DISABLE_THRESHOLD", Form::Integer, BEAM),
    accept("SENTRY_DSN", Form::Text, SENTRY).missed(),
    accept("ELECTRIC_LIVE_DASHBOARD_PORT", Form::Integer, "the dashboard of Electric's virtual machine"),
    accept("ELECTRIC_USAGE_REPORTING", Form::Text, "nothing is ever reported to anybody"),
    accept("ELECTRIC_TELEMETRY_URL", Form::Text, "nothing is ever reported to anybody"),
];

/// Those that are set, checked.
///
/// # Errors
/// The first value that is not of its form, with the variable's name.
pub fn check(
    lookup: impl Fn(&'static str) -> Option<std::ffi::OsString>,
) -> Result<Vec<&'static Accepted>, String> {
    let mut set = Vec::new();
    for accepted in ACCEPTED {
        let Some(value) = lookup(accepted.name) else { continue };
        valid(accepted.form, &value).map_err(|error| format!("{}: {error}", accepted.name))?;
        set.push(accepted);
    }
    Ok(set)
}

fn valid(form: Form, value: &OsStr) -> Result<(), String> {
    let text = value.to_str().ok_or("is not text")?;
    let number = |result: Result<f64, _>| result.map(|_| ()).map_err(|_| "must be a number".to_owned());
    match form {
        Form::Text => Ok(()),
        Form::Time => values::duration(text).map(|_| ()),
        Form::Size => values::size(text).map(|_| ()),
        Form::Boolean => values::boolean(text).map(|_| ()),
        Form::Integer => {
            text.trim().parse::<u64>().map(|_| ()).map_err(|_| "must be a whole number".to_owned())
        }
        Form::Number => number(text.trim().parse()),
        Form::OneOf(words) if words.iter().any(|word| word.eq_ignore_ascii_case(text)) => Ok(()),
        Form::OneOf(words) => Err(format!("must be one of {}", words.join(", "))),
    }
}

/// For the end of the help text.
#[must_use]
pub fn help() -> String {
    let mut text = String::from("Variables that are accepted and have no effect:\n");
    for accepted in ACCEPTED {
        text.push_str(&format!("  {}: {}\n", accepted.name, accepted.why));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_electric_would_refuse_is_refused_by_name() {
        let one = |name: &'static str, value: &'static str| {
            check(move |asked| (asked == name).then(|| value.into())).map(|set| set.len())
        };
        for (name, good, bad) in [
            ("ELECTRIC_PUBLICATION_ALTER_DEBOUNCE_TIME", "100ms", "soon"),
            ("ELECTRIC_EXPERIMENTAL_MAX_TXN_SIZE", "250MiB", "huge"),
            ("ELECTRIC_SHAPE_SUSPEND_CONSUMER", "true", "maybe"),
            ("ELECTRIC_CONSUMER_PARTITIONS", "4", "-1"),
            ("ELECTRIC_METRICS_SAMPLING_RATIO", "0.5", "half"),
            ("ELECTRIC_PERSISTENT_STATE", "memory", "CLOUD"),
        ] {
            assert_eq!(one(name, good), Ok(1), "{name}");
            let refused = one(name, bad).expect_err(name);
            assert!(refused.starts_with(name), "{refused}");
        }
        assert_eq!(one("HOME", "/"), Ok(0));
    }
}

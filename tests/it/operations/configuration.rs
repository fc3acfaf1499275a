//! Every variable of contract 5 is known, documented, and refused where its value is wrong.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;

use super::{shapefold, text};

/// Contract, section 5: everything that it marks "yes" or "accept", and the rest, which is accepted.
const CONTRACT: &str = "
DATABASE_URL ELECTRIC_POOLED_DATABASE_URL ELECTRIC_QUERY_DATABASE_URL ELECTRIC_DATABASE_USE_IPV6
ELECTRIC_DATABASE_CA_CERTIFICATE_FILE ELECTRIC_DATABASE_TCP_KEEPALIVE_IDLE
ELECTRIC_DATABASE_TCP_KEEPALIVE_INTERVAL ELECTRIC_DATABASE_TCP_KEEPALIVE_COUNT
ELECTRIC_DATABASE_TCP_USER_TIMEOUT ELECTRIC_DB_POOL_SIZE ELECTRIC_REPLICATION_STREAM_ID
CLEANUP_REPLICATION_SLOTS_ON_SHUTDOWN ELECTRIC_TEMPORARY_REPLICATION_SLOT_USE_RANDOM_NAME
ELECTRIC_REPLICATION_IDLE_TIMEOUT ELECTRIC_MANUAL_TABLE_PUBLISHING ELECTRIC_PUBLICATION_ALTER_DEBOUNCE_TIME
ELECTRIC_TWEAKS_PUBLICATION_REFRESH_PERIOD ELECTRIC_TWEAKS_SCHEMA_RECONCILER_PERIOD
ELECTRIC_EXPERIMENTAL_MAX_TXN_SIZE ELECTRIC_EXPERIMENTAL_MAX_BATCH_SIZE
ELECTRIC_SECRET ELECTRIC_INSECURE ELECTRIC_PORT ELECTRIC_LISTEN_ON_IPV6 ELECTRIC_INSTANCE_ID
ELECTRIC_SERVICE_NAME ELECTRIC_DATABASE_ID ELECTRIC_SHAPE_CHUNK_BYTES_THRESHOLD ELECTRIC_CACHE_MAX_AGE
ELECTRIC_CACHE_STALE_AGE ELECTRIC_LONG_POLL_TIMEOUT ELECTRIC_MAX_CONCURRENT_REQUESTS
ELECTRIC_TCP_SEND_TIMEOUT ELECTRIC_TCP_READ_TIMEOUT ELECTRIC_TWEAKS_CONN_MAX_REQUESTS
ELECTRIC_TWEAKS_HTTP_API_NUM_ACCEPTORS ELECTRIC_TWEAKS_HANDLER_FULLSWEEP_AFTER
ELECTRIC_TWEAKS_PROCESS_REGISTRY_PARTITIONS ELECTRIC_PROCESS_SPAWN_OPTS ELECTRIC_CONSUMER_GC_HEAP_THRESHOLD
ELECTRIC_ENABLE_INTEGRATION_TESTING ELECTRIC_FEATURE_FLAGS
ELECTRIC_MAX_SHAPES ELECTRIC_EXPERIMENTAL_MAX_SHAPES ELECTRIC_STORAGE ELECTRIC_STORAGE_DIR
ELECTRIC_PERSISTENT_STATE ELECTRIC_SHAPE_DB_STORAGE_DIR ELECTRIC_SHAPE_DB_EXCLUSIVE_MODE
ELECTRIC_SHAPE_DB_SYNCHRONOUS ELECTRIC_SHAPE_DB_CACHE_SIZE ELECTRIC_SHAPE_HIBERNATE_AFTER
ELECTRIC_SHAPE_SUSPEND_CONSUMER ELECTRIC_SHAPE_SUSPEND_AFTER ELECTRIC_CONSUMER_PARTITIONS
ELECTRIC_FLUSH_STALL_GRACE_PERIOD ELECTRIC_SUBQUERY_BUFFER_MAX_TRANSACTIONS ELECTRIC_CLEANUP_INTERVAL_MS
ELECTRIC_LOG_LEVEL ELECTRIC_LOG_COLORS ELECTRIC_LOG_OTP_REPORTS ELECTRIC_PROFILE_WHERE_CLAUSES
ELECTRIC_PROMETHEUS_PORT ELECTRIC_STATSD_HOST ELECTRIC_OTLP_ENDPOINT ELECTRIC_OTEL_DEBUG
ELECTRIC_OTEL_SAMPLING_RATIO ELECTRIC_METRICS_SAMPLING_RATIO ELECTRIC_OTEL_EXPORT_PERIOD
ELECTRIC_HNY_API_KEY ELECTRIC_HNY_DATASET ELECTRIC_SYSTEM_METRICS_POLL_INTERVAL
ELECTRIC_STACK_TELEMETRY_INIT_DELAY ELECTRIC_EXCLUDE_SPANS ELECTRIC_DROP_EMPTY_RESPONSE_SPANS
ELECTRIC_TELEMETRY_TOP_PROCESS_LIMIT ELECTRIC_TELEMETRY_TOP_PROCESS_COUNT
ELECTRIC_TELEMETRY_LONG_GC_THRESHOLD ELECTRIC_TELEMETRY_LONG_SCHEDULE_THRESHOLD
ELECTRIC_TELEMETRY_LONG_MESSAGE_QUEUE_ENABLE_THRESHOLD ELECTRIC_TELEMETRY_LONG_MESSAGE_QUEUE_DISABLE_THRESHOLD
SENTRY_DSN ELECTRIC_LIVE_DASHBOARD_PORT OTEL_RESOURCE_ATTRIBUTES ELECTRIC_USAGE_REPORTING
ELECTRIC_TELEMETRY_URL";

/// What the help says: variables that are options, with their defaults; and those without effect.
fn help() -> (BTreeMap<String, Option<String>>, BTreeSet<String>) {
    let output = shapefold(&["serve", "--help"], &[]);
    assert!(output.status.success());
    let help = text(&output);
    let (options, accepted) =
        help.split_once("Variables that are accepted and have no effect:").expect("the end of the help");
    let mut variables = BTreeMap::new();
    for part in options.split("[env: ").skip(1) {
        // A value that is a secret is not shown.
        let (name, rest) = part.split_once(['=', ']']).expect("a variable has an end");
        // The default stands before the next option's variable.
        let default = rest.split_once("[default: ").map(|(_, rest)| {
            let line = rest.lines().next().expect("a default ends its line");
            let default = line.split_once("] [possible values").map_or(line, |(default, _)| default);
            default.trim_end_matches(']').to_owned()
        });
        variables.insert(name.to_owned(), default.filter(|default| default != "\"\""));
    }
    let accepted = accepted.lines().filter_map(|line| line.trim().split_once(": "));
    (variables, accepted.map(|(name, _)| name.to_owned()).collect())
}

#[test]
fn every_variable_of_the_contract_is_known() {
    let (options, accepted) = help();
    let unknown: Vec<&str> = CONTRACT
        .split_whitespace()
        .filter(|name| !options.contains_key(*name) && !accepted.contains(*name))
        .collect();
    assert!(unknown.is_empty(), "{unknown:?}");
    let both: Vec<&String> = accepted.iter().filter(|name| options.contains_key(*name)).collect();
    assert!(both.is_empty(), "an option, and said to be without effect: {both:?}");
}

#[test]
fn the_tables_are_what_the_program_knows() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("docs/configuration.md");
    let document = fs::read_to_string(path).expect("the document is there");
    let (settings, without_effect) = document.split_once("## Without effect").expect("two parts");
    let rows = |part: &str| -> Vec<Vec<String>> {
        let rows = part.lines().filter(|line| line.starts_with("| `"));
        rows.map(|row| row.trim_matches('|').split(" | ").map(|cell| cell.trim().to_owned()).collect())
            .collect()
    };
    let name = |row: &[String]| row[0].trim_matches('`').to_owned();
    let documented: BTreeMap<String, Option<String>> = rows(settings)
        .iter()
        .filter(|row| row.len() == 4)
        // The help does not show what a switch is.
        .map(|row| {
            let default = row[2].trim_matches('`').to_owned();
            (name(row), (!["–", "false", "true"].contains(&default.as_str())).then_some(default))
        })
        .collect();
    let (options, accepted) = help();
    assert_eq!(documented, options, "names and defaults");
    let documented: BTreeSet<String> = rows(without_effect).iter().map(|row| name(row)).collect();
    assert_eq!(documented, accepted);
}

const GOOD: [(&str, &str); 3] = [
    // Nothing listens there, and nothing is connected to before the settings are checked.
    ("DATABASE_URL", "postgresql://nobody@127.0.0.1:1/none"),
    ("ELECTRIC_INSECURE", "true"),
    ("ELECTRIC_PORT", "0"),
];

/// Starts with these variables and one more; what it says when it refuses to.
fn refused(name: &str, value: &str) -> String {
    let mut environment: BTreeMap<&str, &str> = GOOD.into_iter().collect();
    environment.insert(name, value);
    let environment: Vec<(&str, &str)> = environment.into_iter().collect();
    let output = shapefold(&["serve"], &environment);
    assert!(!output.status.success(), "{name}={value} was taken");
    text(&output)
}

#[test]
fn a_wrong_value_ends_the_start_and_is_named() {
    for (name, value) in [
        ("ELECTRIC_DATABASE_USE_IPV6", "maybe"),
        ("ELECTRIC_DATABASE_TCP_KEEPALIVE_IDLE", "soon"),
        ("ELECTRIC_DATABASE_TCP_KEEPALIVE_COUNT", "many"),
        ("ELECTRIC_DB_POOL_SIZE", "-1"),
        ("ELECTRIC_REPLICATION_STREAM_ID", "a b"),
        ("ELECTRIC_PORT", "70000"),
        ("ELECTRIC_SHAPE_CHUNK_BYTES_THRESHOLD", "5 TB"),
        ("ELECTRIC_CACHE_MAX_AGE", "1m"),
        ("ELECTRIC_LONG_POLL_TIMEOUT", "20s"),
        ("ELECTRIC_MAX_CONCURRENT_REQUESTS", "{"),
        ("ELECTRIC_TCP_SEND_TIMEOUT", "0"),
        ("ELECTRIC_MAX_SHAPES", "0"),
        ("ELECTRIC_STORAGE", "FILE"),
        ("ELECTRIC_STORAGE", "CLOUD"),
        ("ELECTRIC_FLUSH_STALL_GRACE_PERIOD", "1h"),
        ("ELECTRIC_LOG_LEVEL", "loud"),
        ("ELECTRIC_LOG_COLORS", "blue"),
        ("ELECTRIC_PROMETHEUS_PORT", "http"),
        ("ELECTRIC_OTEL_SAMPLING_RATIO", "2"),
        ("ELECTRIC_SHAPE_SUSPEND_AFTER", "never"),
        ("ELECTRIC_PERSISTENT_STATE", "CLOUD"),
        ("SHAPEFOLD_LOG_FORMAT", "xml"),
        ("SHAPEFOLD_FAILOVER_SLOT", "perhaps"),
    ] {
        let told = refused(name, value);
        assert!(told.contains(name), "{name}={value}: {told}");
    }
}

#[test]
fn a_wrong_url_is_explained_and_not_shown() {
    for (url, part) in [
        ("mysql://u:s3cr3t@h/d", "postgres://"),
        ("postgresql://u:s3cr3t@h/d?replication=database", "replication"),
        ("postgresql://u:s3cr3t@h/d?sslmode=verify-full", "ELECTRIC_DATABASE_CA_CERTIFICATE_FILE"),
        ("postgresql://u:s3cr3t@h:x/d", "port"),
    ] {
        for name in ["DATABASE_URL", "ELECTRIC_POOLED_DATABASE_URL"] {
            let told = refused(name, url);
            assert!(told.contains(part) && !told.contains("s3cr3t"), "{name}: {told}");
        }
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("ca.pem");
    fs::write(&file, "no certificate").expect("the folder is ours");
    let told = refused("ELECTRIC_DATABASE_CA_CERTIFICATE_FILE", file.to_str().expect("a plain name"));
    assert!(told.contains("CA file"), "{told}");
}

/// Exactly one of a secret and `ELECTRIC_INSECURE=true`.
#[test]
fn serving_everyone_has_to_be_said() {
    let start = |more: &[(&str, &str)]| {
        let mut environment = vec![GOOD[0], GOOD[2]];
        environment.extend(more);
        let output = shapefold(&["serve"], &environment);
        assert!(!output.status.success(), "{more:?}");
        text(&output)
    };
    for (more, part) in [
        (&[][..], "set ELECTRIC_SECRET, or ELECTRIC_INSECURE=true"),
        (&[("ELECTRIC_SECRET", "")], "set ELECTRIC_SECRET, or ELECTRIC_INSECURE=true"),
        (&[("ELECTRIC_INSECURE", "false")], "set ELECTRIC_SECRET, or ELECTRIC_INSECURE=true"),
        (&[("ELECTRIC_SECRET", "marker"), ("ELECTRIC_INSECURE", "true")], "not both"),
    ] {
        let told = start(more);
        assert!(told.contains(part) && !told.contains("marker"), "{more:?}: {told}");
    }
}

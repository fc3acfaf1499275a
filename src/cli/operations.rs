//! Settings of operation: slot, limits, telemetry, log (contract, section 5). The variables of the
//! service's own begin with `SHAPEFOLD_`.

use std::time::Duration;

use crate::cli::values;
use crate::runtime::settings::{CompactionPolicy, Failover, Operation, Trust};
use crate::state::{Allowance, REMEMBERED};

/// The least that `ELECTRIC_REPLICATION_IDLE_TIMEOUT` may be; shorter ones would only make the service
/// connect again and again. Tests may not wait that long.
const IDLE_TIMEOUT_MIN: Duration =
    if cfg!(feature = "test-hooks") { Duration::from_millis(1) } else { Duration::from_secs(30) };

#[derive(Debug, clap::Args)]
#[group(id = "operations")]
pub struct Operations {
    /// Give a temporary slot a name that nobody else has.
    #[arg(
        long,
        env = "ELECTRIC_TEMPORARY_REPLICATION_SLOT_USE_RANDOM_NAME",
        value_parser = values::boolean,
        default_value = "false"
    )]
    pub temporary_replication_slot_use_random_name: bool,
    /// Close all connections to the database after so long without a transaction; the next request opens
    /// them again. At least 30s; without it they stay.
    #[arg(long, env = "ELECTRIC_REPLICATION_IDLE_TIMEOUT", value_parser = idle_timeout)]
    pub replication_idle_timeout: Option<Duration>,
    /// Make the slot one that Postgres 17 and later carries over to a standby: auto (where it can be),
    /// true, false.
    #[arg(long, env = "SHAPEFOLD_FAILOVER_SLOT", default_value = "auto")]
    pub failover_slot: FailoverSlot,

    /// Keep at most so many shapes: those not asked for longest are ended.
    #[arg(long, env = "ELECTRIC_MAX_SHAPES", value_parser = values::positive)]
    pub max_shapes: Option<usize>,
    /// Older name of the limit.
    #[arg(long, env = "ELECTRIC_EXPERIMENTAL_MAX_SHAPES", value_parser = values::positive)]
    pub experimental_max_shapes: Option<usize>,
    /// How often shapes are counted for the limit.
    #[arg(
        long,
        env = "SHAPEFOLD_SHAPE_EXPIRY_INTERVAL",
        value_parser = values::duration,
        default_value = "60s"
    )]
    pub shape_expiry_interval: Duration,

    /// Take a data directory whose file locks exclude nobody, or nobody on another host. Two instances on it
    /// destroy each other's data: only for a directory that one instance alone can ever use.
    #[arg(
        long,
        env = "SHAPEFOLD_UNSAFE_FILE_LOCKS",
        value_parser = values::boolean,
        default_value = "false"
    )]
    pub unsafe_file_locks: bool,

    /// Keep new shapes in files that they share with others, for as long as they are small.
    #[arg(long, env = "SHAPEFOLD_PACK_SMALL_SHAPES", value_parser = values::boolean, default_value = "false")]
    pub pack_small_shapes: bool,

    /// Rewrite the log of a shape that has grown far beyond its rows.
    #[arg(long, env = "SHAPEFOLD_COMPACTION", value_parser = values::boolean, default_value = "true")]
    pub compaction: bool,
    /// A smaller log is left as it is.
    #[arg(
        long,
        env = "SHAPEFOLD_COMPACTION_MIN_SIZE",
        value_parser = values::size,
        default_value = "16MiB"
    )]
    pub compaction_min_size: u64,
    /// So many times the size of its rows a log has to be; at least 2.
    #[arg(
        long,
        env = "SHAPEFOLD_COMPACTION_RATIO",
        value_parser = clap::value_parser!(u64).range(2..=1_000),
        default_value_t = 4
    )]
    pub compaction_ratio: u64,

    /// Serve Prometheus metrics at /metrics on this port; 0 picks a free one.
    #[arg(long, env = "ELECTRIC_PROMETHEUS_PORT")]
    pub prometheus_port: Option<u16>,
    /// How often the slot, the disk and the host are looked at for metrics and readiness.
    #[arg(
        long,
        env = "ELECTRIC_SYSTEM_METRICS_POLL_INTERVAL",
        value_parser = values::duration,
        default_value = "5s"
    )]
    pub system_metrics_poll_interval: Duration,
    /// /v1/ready says no when what is flushed has not moved for so long although there was something to
    /// flush.
    #[arg(
        long,
        env = "SHAPEFOLD_READY_STALL_AFTER",
        value_parser = values::duration,
        default_value = "30s"
    )]
    pub ready_stall_after: Duration,
    /// A part of the pipeline that shows no sign of life for so long raises the alarm.
    #[arg(long, env = "SHAPEFOLD_WATCHDOG_AFTER", value_parser = values::duration, default_value = "10s")]
    pub watchdog_after: Duration,
    /// The state is saved, and what it covers archived, after so many events of the journal.
    #[arg(
        long,
        env = "SHAPEFOLD_CHECKPOINT_EVENTS",
        value_parser = clap::value_parser!(u64).range(10..),
        default_value = "200000"
    )]
    pub checkpoint_events: u64,
    /// At most so many shapes are given up within the window because they seem to be beyond help.
    #[arg(
        long,
        env = "SHAPEFOLD_GIVE_UP_SHAPES_MAX",
        value_parser = values::positive,
        default_value = "1000"
    )]
    pub give_up_shapes_max: usize,
    /// At most this part of all shapes, in percent; one may always be.
    #[arg(
        long,
        env = "SHAPEFOLD_GIVE_UP_PERCENT_MAX",
        value_parser = clap::value_parser!(u32).range(0..=100),
        default_value = "10"
    )]
    pub give_up_percent_max: u32,
    /// The window of the two. At most 1h.
    #[arg(long, env = "SHAPEFOLD_GIVE_UP_WINDOW", value_parser = give_up_window, default_value = "10min")]
    pub give_up_window: Duration,
    /// Send metrics to StatsD, with Datadog's tags, at this host; port 8125 unless one is given.
    #[arg(long, env = "ELECTRIC_STATSD_HOST")]
    pub statsd_host: Option<String>,
    /// Base URL of an OpenTelemetry collector that takes OTLP over HTTP: traces, metrics and the log.
    #[arg(long, env = "ELECTRIC_OTLP_ENDPOINT")]
    pub otlp_endpoint: Option<String>,
    /// Part of the traces that is exported, from 0 to 1, where the caller has not decided.
    #[arg(
        long,
        env = "ELECTRIC_OTEL_SAMPLING_RATIO",
        value_parser = values::ratio,
        default_value = "0.01"
    )]
    pub otel_sampling_ratio: f64,
    /// Print finished spans to standard output, too.
    #[arg(long, env = "ELECTRIC_OTEL_DEBUG", value_parser = values::boolean, default_value = "false")]
    pub otel_debug: bool,
    /// Names of spans that are not kept, separated by commas.
    #[arg(long, env = "ELECTRIC_EXCLUDE_SPANS", default_value = "")]
    pub exclude_spans: String,
    /// Keep no spans of requests that were answered without news.
    #[arg(
        long,
        env = "ELECTRIC_DROP_EMPTY_RESPONSE_SPANS",
        value_parser = values::boolean,
        default_value = "false"
    )]
    pub drop_empty_response_spans: bool,
    /// How often metrics are exported, and traces and the log at the latest.
    #[arg(long, env = "ELECTRIC_OTEL_EXPORT_PERIOD", value_parser = values::duration, default_value = "30s")]
    pub otel_export_period: Duration,
    /// Attributes of everything that is exported: name=value, separated by commas.
    #[arg(long, env = "OTEL_RESOURCE_ATTRIBUTES")]
    pub otel_resource_attributes: Option<String>,
    /// Sent to the collector as x-honeycomb-team.
    #[arg(long, env = "ELECTRIC_HNY_API_KEY", hide_env_values = true)]
    pub hny_api_key: Option<String>,
    /// Sent to the collector as x-honeycomb-dataset.
    #[arg(long, env = "ELECTRIC_HNY_DATASET")]
    pub hny_dataset: Option<String>,
    /// Name of this process in telemetry; by default a random one.
    #[arg(long, env = "ELECTRIC_INSTANCE_ID")]
    pub instance_id: Option<String>,
    /// Name of the service in telemetry.
    #[arg(long, env = "ELECTRIC_SERVICE_NAME", default_value = "electric")]
    pub service_name: String,
    /// Names of features, separated by commas; none is known.
    #[arg(long, env = "ELECTRIC_FEATURE_FLAGS", default_value = "")]
    pub feature_flags: String,

    /// emergency, alert, critical, error, warning, notice, info, debug, or a filter of the `tracing` crate.
    #[arg(long, env = "ELECTRIC_LOG_LEVEL", default_value = "info")]
    pub log_level: String,
    /// Colours in the log; by default where it goes to a terminal.
    #[arg(long, env = "ELECTRIC_LOG_COLORS", value_parser = values::boolean)]
    pub log_colors: Option<bool>,
    /// text, or json: an object for each line.
    #[arg(long, env = "SHAPEFOLD_LOG_FORMAT", default_value = "text")]
    pub log_format: LogFormat,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
#[value(rename_all = "lower")]
pub enum LogFormat {
    Text,
    Json,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
#[value(rename_all = "lower")]
pub enum FailoverSlot {
    // From Postgres 17 on, unless the slot is temporary.
    Auto,
    True,
    False,
}

impl Operations {
    /// What is asked of the locks of the data directory's file system.
    #[must_use]
    pub fn lock_trust(&self) -> Trust {
        if self.unsafe_file_locks { Trust::Unconditional } else { Trust::Verified }
    }

    /// When logs are rewritten, if they are.
    #[must_use]
    pub fn compaction(&self) -> Option<CompactionPolicy> {
        let (bytes_min, ratio) = (self.compaction_min_size, self.compaction_ratio);
        self.compaction.then_some(CompactionPolicy { bytes_min, ratio })
    }

    /// What of it the service below the HTTP server is told.
    #[must_use]
    pub fn to_settings(&self) -> Operation {
        Operation {
            random_slot_name: self.temporary_replication_slot_use_random_name,
            failover: match self.failover_slot {
                FailoverSlot::Auto => Failover::WherePossible,
                FailoverSlot::True => Failover::Always,
                FailoverSlot::False => Failover::Never,
            },
            idle_timeout: self.replication_idle_timeout,
            shapes_max: self.shapes_max(),
            expiry_interval: self.shape_expiry_interval,
            poll_interval: self.system_metrics_poll_interval,
            stall_after: self.ready_stall_after,
            watchdog_after: self.watchdog_after,
        }
    }

    /// How many shapes may be given up on suspicion.
    #[must_use]
    pub fn give_up(&self) -> Allowance {
        Allowance {
            shapes_max: self.give_up_shapes_max,
            percent_max: self.give_up_percent_max,
            window: self.give_up_window,
        }
    }

    /// The limit of shapes, by whichever of its names.
    #[must_use]
    pub fn shapes_max(&self) -> Option<usize> {
        self.max_shapes.or(self.experimental_max_shapes)
    }
}

fn give_up_window(text: &str) -> Result<Duration, String> {
    let window = values::duration(text)?;
    if window > REMEMBERED {
        return Err("must be at most 1h".to_owned());
    }
    Ok(window)
}

fn idle_timeout(text: &str) -> Result<Duration, String> {
    let timeout = values::duration(text)?;
    if timeout < IDLE_TIMEOUT_MIN {
        return Err("must be at least 30s".to_owned());
    }
    Ok(timeout)
}

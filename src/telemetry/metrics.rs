//! All metrics, in one place. Names that the Electric sync service has are its names (contract 6.2);
//! the others begin with `shapefold_`. No label is a shape, a client or a table.

use prometheus::core::Collector;
use prometheus::proto::MetricFamily;
use prometheus::{
    Encoder, Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry, TextEncoder,
};

/// Of what [`Metrics::render`] returns.
pub const CONTENT_TYPE: &str = prometheus::TEXT_FORMAT;

/// Seconds: from what a page cache takes to what a slow disk does.
const DISK_SECONDS: [f64; 10] = [0.0001, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.1, 0.5, 2.0];
const REQUEST_SECONDS: [f64; 9] = [0.001, 0.005, 0.025, 0.1, 0.5, 1.0, 5.0, 20.0, 60.0];
/// Electric's, which are milliseconds.
const RECEIVE_LAG_MILLIS: [f64; 7] = [0.01, 0.025, 0.05, 0.1, 0.2, 0.5, 1.0];

/// Every metric of the process. Shared; each is an atomic number.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    pub shapes_total: IntGauge,
    pub shapes_active: IntGauge,
    /// By phase: opening, snapshotting, live, ended.
    pub shapes: IntGaugeVec,
    pub writers: IntGauge,
    /// Shapes that owe something.
    pub shapes_owing: IntGauge,
    pub invalidations: IntCounterVec,
    pub compactions: IntCounter,
    /// Bytes of logs that were given back by them.
    pub compacted_bytes: IntCounter,
    /// 1 while more shapes would have to be given up than may be.
    pub give_up_exhausted: IntGauge,
    /// For how long a part of the pipeline has shown no sign of life; only of those that stand still.
    pub part_still_seconds: GaugeVec,
    pub receive_lag_millis: Histogram,
    pub transactions: IntCounter,
    pub transaction_changes: IntCounter,
    pub transaction_bytes: IntCounter,
    /// Memory of transactions that some shape still owes.
    pub held_bytes: IntGauge,
    pub oldest_pending_seconds: Gauge,
    pub boundary_age_seconds: Gauge,
    /// What waits, and how much may: by queue.
    pub queue_depth: IntGaugeVec,
    pub queue_limit: IntGaugeVec,
    pub journal_append_seconds: Histogram,
    pub journal_sync_seconds: Histogram,
    pub journal_entries: IntCounter,
    pub journal_last: IntGauge,
    pub journal_durable: IntGauge,
    pub flush_groups: IntCounter,
    pub flush_logs: IntCounter,
    pub flush_seconds: Histogram,
    pub requests: IntCounterVec,
    pub http_requests: IntCounterVec,
    pub http_seconds: HistogramVec,
    pub http_connections: IntGauge,
    /// Of answers that clients have not taken.
    pub http_held_bytes: IntGauge,
    pub admission: IntGaugeVec,
    pub admission_limit: IntGaugeVec,
    pub admission_rejected: IntCounterVec,
    pub pool_used: IntGaugeVec,
    pub pool_limit: IntGaugeVec,
    pub pool_timeouts: IntCounterVec,
    /// 1 for the present one.
    pub status: IntGaugeVec,
    pub slot: Slot,
    pub disk_free_bytes: IntGauge,
    pub disk_seconds_left: Gauge,
    pub load_percent: GaugeVec,
    pub memory_percent: GaugeVec,
    pub resident_bytes: IntGauge,
    pub open_files: IntGauge,
    pub spans_dropped: IntCounter,
    pub lines_dropped: IntCounter,
    pub exports: IntCounterVec,
}

/// What Postgres says about the slot.
#[derive(Debug)]
pub struct Slot {
    pub retained_bytes: IntGauge,
    pub lag_bytes: IntGauge,
    /// From what is flushed here to the end of the log.
    pub gap_bytes: IntGauge,
    /// From what the shape that holds up the acknowledgement owes to the end of the log.
    pub holder_bytes: IntGauge,
    /// Until Postgres may throw away what the slot still needs; -1 where there is no limit.
    pub safe_bytes: IntGauge,
    /// The same as time at the present rate; +Inf where there is no end in sight.
    pub seconds_left: Gauge,
    pub wal_bytes_per_second: Gauge,
}

/// Registers metrics; every name is given once, and tests build the whole.
struct Registrar(Registry);

impl Registrar {
    fn add<C: Collector + Clone + 'static>(&self, made: prometheus::Result<C>) -> C {
        let made = made.expect("names and labels are constants of the right form");
        self.0.register(Box::new(made.clone())).expect("every name is registered once");
        made
    }

    fn gauge(&self, name: &str, help: &str) -> IntGauge {
        self.add(IntGauge::new(name, help))
    }

    fn gauges(&self, name: &str, help: &str, label: &str) -> IntGaugeVec {
        self.add(IntGaugeVec::new(Opts::new(name, help), &[label]))
    }

    fn float(&self, name: &str, help: &str) -> Gauge {
        self.add(Gauge::new(name, help))
    }

    fn counter(&self, name: &str, help: &str) -> IntCounter {
        self.add(IntCounter::new(name, help))
    }

    fn counters(&self, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
        self.add(IntCounterVec::new(Opts::new(name, help), labels))
    }

    fn histogram(&self, name: &str, help: &str, buckets: &[f64]) -> Histogram {
        self.add(Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets.to_vec())))
    }
}

impl Default for Metrics {
    fn default() -> Metrics {
        Metrics::new()
    }
}

impl Metrics {
    /// All at zero.
    #[must_use]
    pub fn new() -> Metrics {
        let r = Registrar(Registry::new());
        let slot = Slot::new(&r);
        Metrics {
            shapes_total: r.gauge("electric_shapes_total_shapes_count", "Shapes that can be read."),
            shapes_active: r.gauge("electric_shapes_active_shapes_count", "Shapes with a running writer."),
            shapes: r.gauges("shapefold_shapes", "Shapes by phase of their life.", "phase"),
            writers: r.gauge("shapefold_writers", "Writers that run."),
            shapes_owing: r.gauge("shapefold_shapes_owing", "Shapes that owe a transaction."),
            invalidations: r.counters("shapefold_invalidations_total", "Shapes ended, by cause.", &["cause"]),
            compactions: r
                .counter("shapefold_compactions_total", "Logs of shapes replaced by compacted ones."),
            compacted_bytes: r.counter("shapefold_compacted_bytes_total", "Bytes that these gave back."),
            give_up_exhausted: r.gauge(
                "shapefold_give_up_exhausted",
                "1 while more shapes would have to be given up than may be: none is.",
            ),
            part_still_seconds: r.add(GaugeVec::new(
                Opts::new("shapefold_part_still_seconds", "Since when a part of the pipeline stands still."),
                &["part"],
            )),
            receive_lag_millis: r.histogram(
                "electric_postgres_replication_transaction_received_receive_lag",
                "Milliseconds from commit to receipt.",
                &RECEIVE_LAG_MILLIS,
            ),
            transactions: r.counter("shapefold_transactions_total", "Transactions received."),
            transaction_changes: r.counter("shapefold_transaction_changes_total", "Changes in them."),
            transaction_bytes: r.counter("shapefold_transaction_bytes_total", "Bytes of them."),
            held_bytes: r.gauge("shapefold_held_bytes", "Memory of transactions that some shape owes."),
            oldest_pending_seconds: r.float(
                "shapefold_oldest_pending_seconds",
                "Since when the shape that owes longest has owed.",
            ),
            boundary_age_seconds: r.float(
                "shapefold_boundary_age_seconds",
                "Since when what is flushed has not moved, while something is owed.",
            ),
            queue_depth: r.gauges("shapefold_queue_depth", "What waits in a queue.", "queue"),
            queue_limit: r.gauges("shapefold_queue_limit", "What may wait in it.", "queue"),
            journal_append_seconds: r.histogram(
                "shapefold_journal_append_seconds",
                "Time of one append to the journal.",
                &DISK_SECONDS,
            ),
            journal_sync_seconds: r.histogram(
                "shapefold_journal_sync_seconds",
                "Time of one sync of the journal.",
                &DISK_SECONDS,
            ),
            journal_entries: r.counter("shapefold_journal_entries_total", "Events appended."),
            journal_last: r.gauge("shapefold_journal_last_event", "Number of the newest event."),
            journal_durable: r
                .gauge("shapefold_journal_durable_event", "Number of the newest durable event."),
            flush_groups: r.counter("shapefold_flush_groups_total", "Group flushes of shape logs."),
            flush_logs: r.counter("shapefold_flush_logs_total", "Logs in them."),
            flush_seconds: r.histogram("shapefold_flush_seconds", "Time of one group flush.", &DISK_SECONDS),
            requests: r.counters(
                "electric_plug_serve_shape_requests_count",
                "Requests to /v1/shape by status.",
                &["status"],
            ),
            http_requests: r.counters("shapefold_http_requests_total", "Requests.", &["route", "status"]),
            http_seconds: r.add(HistogramVec::new(
                HistogramOpts::new("shapefold_http_request_seconds", "Time until the head of the answer.")
                    .buckets(REQUEST_SECONDS.to_vec()),
                &["route"],
            )),
            http_connections: r.gauge("shapefold_http_connections", "Open connections of clients."),
            http_held_bytes: r
                .gauge("shapefold_http_held_bytes", "Pieces of answers in memory that clients have to take."),
            admission: r.gauges(
                "electric_admission_control_acquire_current",
                "Requests that hold a place.",
                "kind",
            ),
            admission_limit: r.gauges("electric_admission_control_acquire_limit", "Places.", "kind"),
            admission_rejected: r.counters(
                "electric_admission_control_reject_count",
                "Requests sent away for want of a place.",
                &["kind"],
            ),
            pool_used: r.gauges("shapefold_pool_used", "Database connections in use.", "pool"),
            pool_limit: r.gauges("shapefold_pool_limit", "Database connections at most.", "pool"),
            pool_timeouts: r.counters("shapefold_pool_timeouts_total", "Waits for one in vain.", &["pool"]),
            status: r.gauges("shapefold_status", "1 for the status that /v1/health tells.", "status"),
            slot,
            disk_free_bytes: r.gauge("shapefold_disk_free_bytes", "Free space of the data directory."),
            disk_seconds_left: r
                .float("shapefold_disk_limit_seconds", "Until that is used up, at the present rate."),
            load_percent: r.add(GaugeVec::new(
                Opts::new("system_load_percent", "Load of the host in percent of its processors."),
                &["over"],
            )),
            memory_percent: r.add(GaugeVec::new(
                Opts::new("system_memory_percent", "Memory of the host in percent."),
                &["kind"],
            )),
            resident_bytes: r.gauge("process_resident_memory_bytes", "Memory of this process."),
            open_files: r.gauge("process_open_fds", "Open files of this process."),
            spans_dropped: r.counter("shapefold_spans_dropped_total", "Spans that found their queue full."),
            lines_dropped: r.counter(
                "shapefold_log_lines_dropped_total",
                "Lines of the log that found their queue full.",
            ),
            exports: r.counters(
                "shapefold_exports_total",
                "Exports to the collector.",
                &["signal", "result"],
            ),
            registry: r.0,
        }
    }

    /// All of them in the text format of Prometheus.
    #[must_use]
    pub fn render(&self) -> Vec<u8> {
        let mut text = Vec::new();
        TextEncoder::new()
            .encode(&self.gather(), &mut text)
            .expect("into memory, from names of the right form");
        text
    }

    /// All of them as data.
    #[must_use]
    pub fn gather(&self) -> Vec<MetricFamily> {
        self.registry.gather()
    }
}

impl Slot {
    fn new(r: &Registrar) -> Slot {
        Slot {
            retained_bytes: r.gauge(
                "electric_postgres_replication_slot_retained_wal_size",
                "Log that Postgres keeps for the slot.",
            ),
            lag_bytes: r.gauge(
                "electric_postgres_replication_slot_confirmed_flush_lsn_lag",
                "Log that the slot has not been told to be flushed.",
            ),
            gap_bytes: r.gauge("shapefold_wal_gap_bytes", "Log after what is flushed by every shape."),
            holder_bytes: r.gauge(
                "shapefold_holder_wal_bytes",
                "Log after the oldest transaction that some shape owes.",
            ),
            safe_bytes: r.gauge(
                "shapefold_slot_safe_wal_bytes",
                "Log that may come before Postgres invalidates the slot; -1 without a limit.",
            ),
            seconds_left: r.float(
                "shapefold_slot_limit_seconds",
                "Until max_slot_wal_keep_size is reached, at the present rate of the log.",
            ),
            wal_bytes_per_second: r.float("shapefold_wal_bytes_per_second", "Rate of the log of Postgres."),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_the_contract_and_labels_of_few_values() {
        let metrics = Metrics::new();
        metrics.requests.with_label_values(&["200"]).inc();
        metrics.admission.with_label_values(&["initial"]).set(3);
        metrics.receive_lag_millis.observe(0.3);
        let text = String::from_utf8(metrics.render()).unwrap();
        for line in [
            "electric_shapes_total_shapes_count 0",
            "electric_plug_serve_shape_requests_count{status=\"200\"} 1",
            "electric_admission_control_acquire_current{kind=\"initial\"} 3",
            "electric_postgres_replication_transaction_received_receive_lag_bucket{le=\"0.5\"} 1",
            "electric_postgres_replication_transaction_received_receive_lag_bucket{le=\"0.2\"} 0",
            "electric_postgres_replication_slot_retained_wal_size 0",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
        // Everything has a meaning, and a type that Prometheus knows.
        let helps = text.lines().filter(|line| line.starts_with("# HELP ")).count();
        assert_eq!(helps, text.lines().filter(|line| line.starts_with("# TYPE ")).count());
    }
}

//! What the service is told at its start: data, parsed by the CLI.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::PathBuf;
use std::time::Duration;

use crate::engine::Policy;
pub use crate::ownership::Trust;
use crate::postgres::{ConnectOptions, DatabaseUrl};
pub use crate::replication::Failover;
use crate::replication::{publication_name, slot_name};
pub use crate::shape_log::CompactionPolicy;

/// Settings of the service below the HTTP server.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `ELECTRIC_STORAGE_DIR`: owned by one process at a time.
    pub data_dir: PathBuf,
    /// `SHAPEFOLD_UNSAFE_FILE_LOCKS`: whether the locks of its file system must be seen to work.
    pub lock_trust: Trust,
    /// `DATABASE_URL`: replication, catalog, publication.
    pub database_url: DatabaseUrl,
    /// `ELECTRIC_POOLED_DATABASE_URL`: snapshots.
    pub query_url: DatabaseUrl,
    pub connect: ConnectOptions,
    /// `ELECTRIC_REPLICATION_STREAM_ID`: names slot and publication.
    pub stream_id: String,
    pub temporary_slot: bool,
    /// `ELECTRIC_MANUAL_TABLE_PUBLISHING`.
    pub manual_publishing: bool,
    /// The shorter of `ELECTRIC_TWEAKS_SCHEMA_RECONCILER_PERIOD` and
    /// `ELECTRIC_TWEAKS_PUBLICATION_REFRESH_PERIOD`: between two looks at the catalog.
    pub reconcile_interval: Duration,
    /// `SHAPEFOLD_POSTGRES_EVALUATION`: whether where clauses may need Postgres for every change.
    pub postgres_evaluation: bool,
    /// `ELECTRIC_DB_POOL_SIZE`: connections in all but the stream's.
    pub pool_size: usize,
    /// `ELECTRIC_SHAPE_CHUNK_BYTES_THRESHOLD`.
    pub chunk_bytes: u64,
    /// `SHAPEFOLD_PACK_SMALL_SHAPES`: whether new shapes share files for as long as they are small.
    pub pack_small_shapes: bool,
    /// `SHAPEFOLD_COMPACTION`, `…_MIN_SIZE` and `…_RATIO`: when a log is rewritten; never, without.
    pub compaction: Option<CompactionPolicy>,
    /// Rows appended to the logs are flushed at the latest this long after.
    pub flush_interval: Duration,
    /// A writer without work is put to sleep after this long.
    pub writer_idle_after: Duration,
    /// The state is saved and the journal sealed after this many events.
    pub checkpoint_events: u64,
    /// … or this long after the last time, if anything happened.
    pub checkpoint_interval: Duration,
    /// Sealed segments are kept this long, and this many bytes of them.
    pub archive_age_max: Duration,
    pub archive_bytes_max: u64,
    pub policy: Policy,
    pub operation: Operation,
    /// Somebody may want to look: a second fold of the journal is kept beside the engine's.
    pub observe: bool,
    /// `SHAPEFOLD_PROJECTION_CHECK_INTERVAL`: how often the engine's views are compared with the fold.
    pub projection_check_interval: Duration,
    /// `ELECTRIC_DATABASE_ID`: part of the tags of rows.
    pub stack: String,
    /// `ELECTRIC_SUBQUERY_BUFFER_MAX_TRANSACTIONS`.
    pub subquery_buffer_max: usize,
}

/// Settings of operation.
#[derive(Clone, Debug)]
pub struct Operation {
    /// `ELECTRIC_TEMPORARY_REPLICATION_SLOT_USE_RANDOM_NAME`: of a temporary slot.
    pub random_slot_name: bool,
    /// Whether Postgres 17 and later is asked to carry the slot over to standbys.
    pub failover: Failover,
    /// `ELECTRIC_REPLICATION_IDLE_TIMEOUT`: without a transaction for so long, all connections are closed.
    pub idle_timeout: Option<Duration>,
    /// `ELECTRIC_MAX_SHAPES`.
    pub shapes_max: Option<usize>,
    pub expiry_interval: Duration,
    /// `ELECTRIC_SYSTEM_METRICS_POLL_INTERVAL`.
    pub poll_interval: Duration,
    /// After so long without progress, though there was something to do, the service is not ready.
    pub stall_after: Duration,
    /// `SHAPEFOLD_WATCHDOG_AFTER`: a part of the pipeline without a sign of life for so long stands still.
    pub watchdog_after: Duration,
}

impl Settings {
    /// Name of the slot, unless it has a random one.
    #[must_use]
    pub fn slot(&self) -> String {
        slot_name(&self.stream_id)
    }

    /// Name of the publication.
    #[must_use]
    pub fn publication(&self) -> String {
        publication_name(&self.stream_id)
    }

    /// Tells whether two starts were configured alike; passwords and their presence do not count.
    #[must_use]
    pub fn hash(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        (self.database_url.host(), self.database_url.port(), self.database_url.database()).hash(&mut hasher);
        (&self.stream_id, self.temporary_slot, self.manual_publishing, self.pool_size).hash(&mut hasher);
        (self.chunk_bytes, self.flush_interval, self.checkpoint_events).hash(&mut hasher);
        hasher.finish()
    }
}

/// How a process is configured, for those who look at its journal.
#[derive(Clone, Debug)]
pub struct Configured {
    /// [`Settings::hash`].
    pub hash: u64,
    /// A JSON object: every setting that changes what the service does, nothing that is secret.
    pub described: String,
}

impl Settings {
    /// The settings as people may see them: no user, no password, nothing of the pooler but where it is.
    #[must_use]
    pub fn configured(&self) -> Configured {
        let place = |url: &DatabaseUrl| format!("{}:{}/{}", url.host(), url.port(), url.database());
        let millis = |span: Duration| u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
        let operation = &self.operation;
        let described = serde_json::json!({
            "config_hash": format!("{:016x}", self.hash()),
            "data_dir": self.data_dir.display().to_string(),
            "database": place(&self.database_url),
            "sslmode": format!("{:?}", self.database_url.ssl_mode()),
            "pooled_database": place(&self.query_url),
            "stream_id": self.stream_id,
            "temporary_slot": self.temporary_slot,
            "manual_publishing": self.manual_publishing,
            "reconcile_interval_ms": millis(self.reconcile_interval),
            "postgres_evaluation": self.postgres_evaluation,
            "pool_size": self.pool_size,
            "chunk_bytes": self.chunk_bytes,
            "flush_interval_ms": millis(self.flush_interval),
            "writer_idle_after_ms": millis(self.writer_idle_after),
            "checkpoint_events": self.checkpoint_events,
            "checkpoint_interval_ms": millis(self.checkpoint_interval),
            "archive_age_max_ms": millis(self.archive_age_max),
            "archive_bytes_max": self.archive_bytes_max,
            "writer_attempts_max": self.policy.writer_attempts_max,
            "stall_grace_ms": millis(self.policy.stall_grace),
            "stall_invalidations_max": self.policy.stall_invalidations_max,
            "failover": format!("{:?}", operation.failover),
            "idle_timeout_ms": operation.idle_timeout.map(millis),
            "shapes_max": operation.shapes_max,
            "ready_stall_after_ms": millis(operation.stall_after),
            "projection_check_interval_ms": millis(self.projection_check_interval),
            "subquery_buffer_max": self.subquery_buffer_max,
        });
        Configured { hash: self.hash(), described: described.to_string() }
    }
}

/// Bytes of transactions that are held for shapes which have not flushed them yet. Above, the stream
/// is not read, and Postgres keeps what it has.
pub const HELD_BYTES_MAX: usize = 64 << 20;

/// Changes of transactions that wait for a writer thread, before the stream is paused.
pub const QUEUED_DELIVERIES_MAX: usize = 4_096;

/// Batches of the stream that wait for the driver.
pub const STREAM_BATCHES_MAX: usize = 8;

/// Inputs that wait for the driver.
pub const INPUTS_MAX: usize = 4_096;

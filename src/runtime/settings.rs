//! What the service is told at its start: data, parsed by the CLI.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::PathBuf;
use std::time::Duration;

use crate::engine::Policy;
use crate::postgres::{ConnectOptions, DatabaseUrl};

/// Settings of the service below the HTTP server.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `ELECTRIC_STORAGE_DIR`: owned by one process at a time.
    pub data_dir: PathBuf,
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
    /// `ELECTRIC_DB_POOL_SIZE`: connections in all but the stream's.
    pub pool_size: usize,
    /// `ELECTRIC_SHAPE_CHUNK_BYTES_THRESHOLD`.
    pub chunk_bytes: u64,
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
    /// `ELECTRIC_DATABASE_ID`: part of the tags of rows.
    pub stack: String,
    /// `ELECTRIC_SUBQUERY_BUFFER_MAX_TRANSACTIONS`.
    pub subquery_buffer_max: usize,
}

impl Settings {
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

/// Bytes of transactions that are held for shapes which have not flushed them yet. Above, the stream
/// is not read, and Postgres keeps what it has.
pub const HELD_BYTES_MAX: usize = 64 << 20;

/// Changes of transactions that wait for a writer thread, before the stream is paused.
pub const QUEUED_DELIVERIES_MAX: usize = 4_096;

/// Batches of the stream that wait for the driver.
pub const STREAM_BATCHES_MAX: usize = 8;

/// Inputs that wait for the driver.
pub const INPUTS_MAX: usize = 4_096;

//! What the HTTP server can be told: contract 5.2.

use std::fmt;
use std::num::NonZeroU64;
use std::time::Duration;

/// Settings of the server. Data only: the command line builds it.
#[derive(Clone)]
pub struct Settings {
    /// `ELECTRIC_SECRET`. `None` serves everyone (`ELECTRIC_INSECURE`).
    pub secret: Option<String>,
    /// `ELECTRIC_LONG_POLL_TIMEOUT`: how long a live request waits; also the interval of the cursor.
    /// Half of it is how long an offset beyond the shape is waited for.
    pub long_poll_timeout: Duration,
    /// `ELECTRIC_CACHE_MAX_AGE`, seconds.
    pub cache_max_age: u64,
    /// `ELECTRIC_CACHE_STALE_AGE`, seconds.
    pub cache_stale_age: u64,
    /// `ELECTRIC_ENABLE_INTEGRATION_TESTING`: DELETE is allowed.
    pub allow_delete: bool,
    /// `ELECTRIC_MAX_CONCURRENT_REQUESTS`, `initial`: requests without a handle that is known here.
    pub initial_requests_max: usize,
    /// `ELECTRIC_MAX_CONCURRENT_REQUESTS`, `existing`: bounds the number of live clients.
    pub existing_requests_max: usize,
    /// `ELECTRIC_TCP_READ_TIMEOUT`: a connection that sends no whole request head for so long is closed.
    pub read_timeout: Duration,
    /// `ELECTRIC_TWEAKS_CONN_MAX_REQUESTS`: a connection ends with so many answers.
    pub connection_requests_max: Option<NonZeroU64>,
    /// `ELECTRIC_TCP_SEND_TIMEOUT`: a client that takes nothing for so long is cut off.
    pub send_timeout: Duration,
    /// `ELECTRIC_DROP_EMPTY_RESPONSE_SPANS`: keep no spans of answers without news.
    pub drop_empty_spans: bool,
    /// How long the service may take to become ready before a request is told so (contract 1.2).
    pub readiness_timeout: Duration,
    /// How long the first rows of a snapshot are waited for (contract 1.8).
    pub snapshot_start_timeout: Duration,
    /// Without progress for so long, though there was something to do, `/v1/ready` says no.
    pub stall_after: Duration,
    /// How long answers under way may take after shutdown began, before they are cut off.
    pub shutdown_timeout: Duration,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            secret: None,
            long_poll_timeout: Duration::from_secs(20),
            cache_max_age: 60,
            cache_stale_age: 300,
            allow_delete: false,
            initial_requests_max: 300,
            existing_requests_max: 10_000,
            read_timeout: Duration::from_secs(60),
            connection_requests_max: None,
            send_timeout: Duration::from_secs(30),
            drop_empty_spans: false,
            readiness_timeout: Duration::from_secs(5),
            snapshot_start_timeout: Duration::from_secs(45),
            stall_after: Duration::from_secs(30),
            shutdown_timeout: Duration::from_secs(10),
        }
    }
}

/// Without the secret.
impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings")
            .field("secret", &self.secret.as_ref().map(|_| "[REDACTED]"))
            .field("long_poll_timeout", &self.long_poll_timeout)
            .field("allow_delete", &self.allow_delete)
            .field("initial_requests_max", &self.initial_requests_max)
            .field("existing_requests_max", &self.existing_requests_max)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_secret_is_never_printed() {
        let settings = Settings { secret: Some("hunter2".to_owned()), ..Settings::default() };
        let shown = format!("{settings:?}");
        assert!(shown.contains("[REDACTED]") && !shown.contains("hunter2"), "{shown}");
    }
}

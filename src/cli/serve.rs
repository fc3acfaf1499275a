//! `shapefold serve`: from settings to a running service and back to an exit code.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use crate::cli::export::Export;
use crate::cli::operations::Operations;
use crate::cli::{accepted, admin, log, values};
use crate::engine::Policy;
use crate::events::DrainCause;
use crate::postgres::{ConnectOptions, DatabaseUrl, SslMode, TcpOptions, Tls};
use crate::runtime::handle::Status;
use crate::runtime::settings::Settings;
use crate::runtime::{Running, start};
use crate::server;

/// Answers under way when the service stops may take this long.
const SHUTDOWN_MAX: Duration = Duration::from_secs(15);

#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// postgres://user:password@host:port/database?sslmode=prefer
    #[arg(long, env = "DATABASE_URL", hide_env_values = true)]
    database_url: String,
    /// Where snapshots are read from; may be a pooler.
    #[arg(long, env = "ELECTRIC_POOLED_DATABASE_URL", hide_env_values = true)]
    pooled_database_url: Option<String>,
    /// Older name of the pooled URL.
    #[arg(long, env = "ELECTRIC_QUERY_DATABASE_URL", hide_env_values = true)]
    query_database_url: Option<String>,
    /// Prefer IPv6 for the database, fall back to IPv4.
    #[arg(long, env = "ELECTRIC_DATABASE_USE_IPV6", value_parser = values::boolean, default_value = "false")]
    database_use_ipv6: bool,
    /// Verify the database's certificate with this CA.
    #[arg(long, env = "ELECTRIC_DATABASE_CA_CERTIFICATE_FILE")]
    database_ca_certificate_file: Option<PathBuf>,
    /// TCP keepalive of database connections: idle time.
    #[arg(long, env = "ELECTRIC_DATABASE_TCP_KEEPALIVE_IDLE", value_parser = values::duration)]
    database_tcp_keepalive_idle: Option<Duration>,
    /// TCP keepalive of database connections: interval.
    #[arg(long, env = "ELECTRIC_DATABASE_TCP_KEEPALIVE_INTERVAL", value_parser = values::duration)]
    database_tcp_keepalive_interval: Option<Duration>,
    /// TCP keepalive of database connections: probes.
    #[arg(long, env = "ELECTRIC_DATABASE_TCP_KEEPALIVE_COUNT")]
    database_tcp_keepalive_count: Option<u32>,
    /// TCP_USER_TIMEOUT of database connections.
    #[arg(long, env = "ELECTRIC_DATABASE_TCP_USER_TIMEOUT", value_parser = values::duration)]
    database_tcp_user_timeout: Option<Duration>,
    /// Connections to the database, the replication stream's not counted.
    #[arg(long, env = "ELECTRIC_DB_POOL_SIZE", default_value_t = 20)]
    db_pool_size: usize,
    /// Suffix of the names of slot and publication: one for each service on a database.
    #[arg(long, env = "ELECTRIC_REPLICATION_STREAM_ID", default_value = "default")]
    replication_stream_id: String,
    /// Use a temporary slot, which ends with the connection.
    #[arg(long, env = "CLEANUP_REPLICATION_SLOTS_ON_SHUTDOWN", value_parser = values::boolean, default_value = "false")]
    cleanup_replication_slots_on_shutdown: bool,
    /// Never change the publication or a table's replica identity.
    #[arg(long, env = "ELECTRIC_MANUAL_TABLE_PUBLISHING", value_parser = values::boolean, default_value = "false")]
    manual_table_publishing: bool,
    /// Between two looks at the catalog for tables that were changed without a write to them.
    #[arg(long, env = "ELECTRIC_TWEAKS_SCHEMA_RECONCILER_PERIOD", value_parser = values::duration, default_value = "60s")]
    schema_reconciler_period: Duration,
    /// Between two looks at the publication; one task does both, in the shorter period.
    #[arg(long, env = "ELECTRIC_TWEAKS_PUBLICATION_REFRESH_PERIOD", value_parser = values::duration, default_value = "60s")]
    publication_refresh_period: Duration,
    /// Let Postgres evaluate the parts of where clauses that are not evaluated here.
    #[arg(long, env = "SHAPEFOLD_POSTGRES_EVALUATION", value_parser = values::boolean, default_value = "true")]
    postgres_evaluation: bool,

    /// Clients must send this as the query parameter `secret`.
    #[arg(long, env = "ELECTRIC_SECRET", hide_env_values = true)]
    secret: Option<String>,
    /// Serve everyone. One of this and the secret must be given.
    #[arg(long, env = "ELECTRIC_INSECURE", value_parser = values::boolean, default_value = "false")]
    insecure: bool,
    /// HTTP port; 0 picks a free one.
    #[arg(long, env = "ELECTRIC_PORT", default_value_t = 3000)]
    port: u16,
    /// Listen on `::` instead of `0.0.0.0`.
    #[arg(long, env = "ELECTRIC_LISTEN_ON_IPV6", value_parser = values::boolean, default_value = "false")]
    listen_on_ipv6: bool,
    /// Size of a chunk of a shape log.
    #[arg(long, env = "ELECTRIC_SHAPE_CHUNK_BYTES_THRESHOLD", value_parser = values::size, default_value = "10485760")]
    shape_chunk_bytes_threshold: u64,
    /// Seconds for which a response may be cached.
    #[arg(long, env = "ELECTRIC_CACHE_MAX_AGE", default_value_t = 60)]
    cache_max_age: u64,
    /// Seconds for which a stale response may be used meanwhile.
    #[arg(long, env = "ELECTRIC_CACHE_STALE_AGE", default_value_t = 300)]
    cache_stale_age: u64,
    /// How long a live request waits, in milliseconds.
    #[arg(long, env = "ELECTRIC_LONG_POLL_TIMEOUT", default_value_t = 20_000)]
    long_poll_timeout: u64,
    /// Limits of concurrent requests, as JSON.
    #[arg(
        long,
        env = "ELECTRIC_MAX_CONCURRENT_REQUESTS",
        default_value = r#"{"initial":300,"existing":10000}"#
    )]
    max_concurrent_requests: String,
    /// A client that takes nothing for so long is cut off.
    #[arg(long, env = "ELECTRIC_TCP_SEND_TIMEOUT", value_parser = values::duration, default_value = "30s")]
    tcp_send_timeout: Duration,
    /// A connection without a request for so long is closed.
    #[arg(long, env = "ELECTRIC_TCP_READ_TIMEOUT", value_parser = values::duration, default_value = "60s")]
    tcp_read_timeout: Duration,
    /// Close a connection with its so many-th answer; without it, connections last.
    #[arg(long, env = "ELECTRIC_TWEAKS_CONN_MAX_REQUESTS")]
    tweaks_conn_max_requests: Option<NonZeroU64>,
    /// Allow DELETE.
    #[arg(long, env = "ELECTRIC_ENABLE_INTEGRATION_TESTING", value_parser = values::boolean, default_value = "false")]
    enable_integration_testing: bool,

    /// Directory of shapes and journal; owned by one process at a time.
    #[arg(long, env = "ELECTRIC_STORAGE_DIR", default_value = "./persistent")]
    storage_dir: PathBuf,
    /// FAST_FILE, or MEMORY: a directory for temporary files, gone with the process.
    #[arg(long, env = "ELECTRIC_STORAGE", default_value = "FAST_FILE")]
    storage: String,
    /// A shape whose writes make no progress for so long is suspected, and after twice that ended.
    #[arg(long, env = "ELECTRIC_FLUSH_STALL_GRACE_PERIOD", value_parser = values::duration, default_value = "1min")]
    flush_stall_grace_period: Duration,

    #[command(flatten)]
    operations: Operations,

    #[command(flatten)]
    admin: admin::Arguments,

    /// Name of this service among others of the database: part of the tags of rows of shapes with subqueries.
    #[arg(long, env = "ELECTRIC_DATABASE_ID", default_value = "single_stack")]
    database_id: String,
    /// Transactions that wait while rows move into a shape with subqueries; with more of them it starts over.
    #[arg(long, env = "ELECTRIC_SUBQUERY_BUFFER_MAX_TRANSACTIONS", default_value_t = 1_000)]
    subquery_buffer_max_transactions: usize,
}

/// What `doctor` looks at.
#[derive(Debug)]
pub struct Checked {
    pub service: Settings,
    /// One for each client, and those of the service itself.
    pub open_files_wanted: u64,
}

/// Open files of the service itself: shape logs, journal, connections to the database.
const OPEN_FILES_OWN: u64 = 8_192;

impl Arguments {
    /// The data directory, unless it is a temporary one.
    #[must_use]
    pub fn data_dir(&self) -> Option<PathBuf> {
        (!self.storage.eq_ignore_ascii_case("MEMORY")).then(|| self.storage_dir.clone())
    }
}

/// The settings as `serve` would take them.
///
/// # Errors
/// The first setting that is wrong.
pub fn checked_settings(arguments: Arguments) -> Result<Checked, String> {
    let storage = storage(&arguments.storage, &arguments.storage_dir)?;
    let Parts { service, server, .. } = settings(arguments, storage.path())?;
    let clients = server.initial_requests_max.saturating_add(server.existing_requests_max);
    let open_files_wanted = OPEN_FILES_OWN.saturating_add(u64::try_from(clients).unwrap_or(u64::MAX));
    Ok(Checked { service, open_files_wanted })
}

/// Runs until a signal or a fatal error.
pub fn run(arguments: Arguments) -> ExitCode {
    run_with(arguments, |_, _| std::future::ready(()))
}

/// As [`run`], with something beside it that is told the settings and where the service listens.
pub fn run_with<F>(arguments: Arguments, beside: impl FnOnce(&Parts, SocketAddr) -> F) -> ExitCode
where
    F: Future<Output = ()> + Send + 'static,
{
    if let Err(message) = log::start(&arguments.operations) {
        eprintln!("error: {message}");
        return ExitCode::FAILURE;
    }
    super::descriptors::raise_limit();
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(%error, "the runtime cannot be started");
            return ExitCode::FAILURE;
        }
    };
    let parsed = storage(&arguments.storage, &arguments.storage_dir)
        .and_then(|storage| Ok((settings(arguments, storage.path())?, storage)));
    // What is temporary goes when everything that uses it has ended.
    let (parts, _storage) = match parsed {
        Ok(parsed) => parsed,
        Err(message) => {
            tracing::error!("{message}");
            return ExitCode::FAILURE;
        }
    };
    let code = runtime.block_on(serve(parts, beside));
    // Connections that do not end by themselves must not keep the process.
    runtime.shutdown_timeout(Duration::from_secs(1));
    code
}

async fn serve<F>(parts: Parts, beside: impl FnOnce(&Parts, SocketAddr) -> F) -> ExitCode
where
    F: Future<Output = ()> + Send + 'static,
{
    let address = parts.address;
    let listener = match TcpListener::bind(address).await {
        Ok(listener) => listener,
        Err(error) => {
            tracing::error!(%address, %error, "the port cannot be listened on");
            return ExitCode::FAILURE;
        }
    };
    match listener.local_addr() {
        Ok(address) => {
            tracing::info!("listening on {}", reachable(address));
            tokio::spawn(beside(&parts, reachable(address)));
        }
        Err(error) => tracing::warn!(%error, "the port is not known"),
    }
    let admin = match &parts.admin {
        Some(settings) => match admin::listen(settings) {
            Ok(admin) => Some(admin),
            Err(message) => {
                tracing::error!("{message}");
                return ExitCode::FAILURE;
            }
        },
        None => None,
    };
    let Parts { service, address, server, export, .. } = parts;
    let mut running = start(service);
    // It ends with the process: what it shows of the end is worth more than an answer in full.
    if let Some(Err(error)) = admin.map(|admin| admin.serve(&running)) {
        tracing::error!(%error, "the admin API cannot be started");
        return ExitCode::FAILURE;
    }
    let exporting = match export.begin(address.ip(), &running.service).await {
        Ok(exporting) => exporting,
        Err(message) => {
            tracing::error!("{message}");
            return ExitCode::FAILURE;
        }
    };
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let http = tokio::spawn(server::serve(listener, running.service.clone(), server, async {
        // Dropping the sender stops the server, too.
        let _dropped = stopped.await;
    }));
    let code = until_the_end(&mut running).await;
    drop(stop);
    if tokio::time::timeout(SHUTDOWN_MAX, http).await.is_err() {
        tracing::warn!("some answers were cut off");
    }
    exporting.end().await;
    code
}

/// Where a person can point a client at.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

async fn until_the_end(running: &mut Running) -> ExitCode {
    let (mut terminate, mut interrupt) =
        match (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) {
            (Ok(terminate), Ok(interrupt)) => (terminate, interrupt),
            (Err(error), _) | (_, Err(error)) => {
                tracing::error!(%error, "signals cannot be listened for");
                return ExitCode::FAILURE;
            }
        };
    let ended = tokio::select! {
        ended = running.ended() => ended,
        _ = terminate.recv() => stop(running).await,
        _ = interrupt.recv() => stop(running).await,
    };
    match ended {
        Ok(()) => {
            tracing::info!("stopped in order");
            ExitCode::SUCCESS
        }
        Err(error) => {
            tracing::error!("{error}");
            ExitCode::FAILURE
        }
    }
}

async fn stop(running: &mut Running) -> Result<(), crate::runtime::Stopped> {
    tracing::info!("stopping: what is pending stays with Postgres");
    // At once, not when the driver gets to it: waiting requests are answered now.
    running.service.set_status(Status::Draining);
    running.drain(DrainCause::Signal).await;
    running.ended().await
}

/// Settings of the service, of its HTTP server with its address, of what it tells about itself, and of the
/// admin API if it is wanted.
#[derive(Debug)]
pub struct Parts {
    pub service: Settings,
    pub address: SocketAddr,
    pub server: server::Settings,
    pub export: Export,
    pub admin: Option<admin::Settings>,
}

fn settings(arguments: Arguments, data_dir: &Path) -> Result<Parts, String> {
    for accepted in accepted::check(std::env::var_os)? {
        let (variable, why) = (accepted.name, accepted.why);
        if accepted.missed {
            tracing::warn!(variable, why, "a variable that has no effect is set");
        } else {
            tracing::info!(variable, why, "a variable that has no effect is set");
        }
    }
    let secret = secret(&arguments)?;
    let admin = arguments.admin.settings()?;
    let database_url = parse_url(&arguments.database_url)?;
    let query = arguments.pooled_database_url.as_deref().or(arguments.query_database_url.as_deref());
    let query_url = query.map_or_else(|| Ok(database_url.clone()), parse_url)?;
    let connect = ConnectOptions { tls: tls(&arguments, &database_url)?, tcp: tcp(&arguments) };
    let stream_id = crate::domain::parse_identifier(&arguments.replication_stream_id)
        .map_err(|error| format!("ELECTRIC_REPLICATION_STREAM_ID: {error}"))?;
    let limits: Limits = serde_json::from_str(&arguments.max_concurrent_requests)
        .map_err(|error| format!("ELECTRIC_MAX_CONCURRENT_REQUESTS: {error}"))?;
    let ip: IpAddr =
        if arguments.listen_on_ipv6 { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
    let export = Export::new(&arguments.operations)?;
    let service = Settings {
        data_dir: data_dir.to_owned(),
        lock_trust: arguments.operations.lock_trust(),
        database_url,
        query_url,
        connect,
        stream_id,
        temporary_slot: arguments.cleanup_replication_slots_on_shutdown,
        manual_publishing: arguments.manual_table_publishing,
        reconcile_interval: arguments.schema_reconciler_period.min(arguments.publication_refresh_period),
        postgres_evaluation: arguments.postgres_evaluation,
        pool_size: arguments.db_pool_size,
        chunk_bytes: arguments.shape_chunk_bytes_threshold,
        pack_small_shapes: arguments.operations.pack_small_shapes,
        compaction: arguments.operations.compaction(),
        flush_interval: Duration::from_millis(50),
        writer_idle_after: Duration::from_secs(30),
        checkpoint_events: arguments.operations.checkpoint_events,
        checkpoint_interval: Duration::from_secs(300),
        archive_age_max: Duration::from_secs(72 * 3600),
        archive_bytes_max: 2 << 30,
        policy: Policy {
            stall_grace: arguments.flush_stall_grace_period,
            give_up: arguments.operations.give_up(),
            ..Policy::default()
        },
        operation: arguments.operations.to_settings(),
        observe: admin.is_some(),
        projection_check_interval: arguments.admin.projection_check_interval,
        stack: arguments.database_id.clone(),
        subquery_buffer_max: arguments.subquery_buffer_max_transactions,
    };
    let server = server::Settings {
        secret,
        long_poll_timeout: Duration::from_millis(arguments.long_poll_timeout),
        cache_max_age: arguments.cache_max_age,
        cache_stale_age: arguments.cache_stale_age,
        allow_delete: arguments.enable_integration_testing,
        initial_requests_max: limits.initial,
        existing_requests_max: limits.existing,
        read_timeout: arguments.tcp_read_timeout,
        connection_requests_max: arguments.tweaks_conn_max_requests,
        send_timeout: arguments.tcp_send_timeout,
        drop_empty_spans: arguments.operations.drop_empty_response_spans,
        stall_after: arguments.operations.ready_stall_after,
        ..server::Settings::default()
    };
    Ok(Parts { service, address: SocketAddr::new(ip, arguments.port), server, export, admin })
}

#[derive(Debug, serde::Deserialize)]
struct Limits {
    #[serde(default = "initial")]
    initial: usize,
    #[serde(default = "existing")]
    existing: usize,
}

fn initial() -> usize {
    300
}

fn existing() -> usize {
    10_000
}

/// Where the data of the service is, and what has to be kept for it to stay.
#[derive(Debug)]
enum Storage {
    Kept(PathBuf),
    /// Removed when the service has ended.
    Temporary(tempfile::TempDir),
}

impl Storage {
    fn path(&self) -> &Path {
        match self {
            Storage::Kept(path) => path,
            Storage::Temporary(folder) => folder.path(),
        }
    }
}

fn storage(kind: &str, directory: &Path) -> Result<Storage, String> {
    match kind.to_ascii_uppercase().as_str() {
        "FAST_FILE" => Ok(Storage::Kept(directory.to_owned())),
        "MEMORY" => {
            tempfile::Builder::new().prefix("shapefold-memory-").tempdir().map(Storage::Temporary).map_err(
                |error| format!("ELECTRIC_STORAGE=MEMORY needs a directory for temporary files: {error}"),
            )
        }
        "FILE" | "LEGACY_FILE" => {
            Err("ELECTRIC_STORAGE: this kind is no longer there; use FAST_FILE".to_owned())
        }
        _ => Err("ELECTRIC_STORAGE must be FAST_FILE or MEMORY".to_owned()),
    }
}

fn secret(arguments: &Arguments) -> Result<Option<String>, String> {
    match (&arguments.secret, arguments.insecure) {
        (Some(secret), false) if !secret.is_empty() => Ok(Some(secret.clone())),
        (None, true) => Ok(None),
        (Some(secret), true) if secret.is_empty() => Ok(None),
        (Some(_), true) => Err("give one of ELECTRIC_SECRET and ELECTRIC_INSECURE, not both".to_owned()),
        (_, false) => Err("set ELECTRIC_SECRET, or ELECTRIC_INSECURE=true to serve everyone".to_owned()),
    }
}

fn parse_url(text: &str) -> Result<DatabaseUrl, String> {
    DatabaseUrl::parse(text).map_err(|error| format!("the database URL is wrong: {error}"))
}

fn tls(arguments: &Arguments, url: &DatabaseUrl) -> Result<Tls, String> {
    match &arguments.database_ca_certificate_file {
        Some(_) if url.ssl_mode() == SslMode::Disable => {
            Err("ELECTRIC_DATABASE_CA_CERTIFICATE_FILE and sslmode=disable contradict each other".to_owned())
        }
        Some(path) => Tls::with_ca_file(path).map_err(|error| error.to_string()),
        None => Tls::unverified().map_err(|error| error.to_string()),
    }
}

fn tcp(arguments: &Arguments) -> TcpOptions {
    TcpOptions {
        keepalive_idle: arguments.database_tcp_keepalive_idle,
        keepalive_interval: arguments.database_tcp_keepalive_interval,
        keepalive_count: arguments.database_tcp_keepalive_count,
        user_timeout: arguments.database_tcp_user_timeout,
        prefer_ipv6: arguments.database_use_ipv6,
    }
}

//! The task that talks to Postgres on behalf of the driver: connect, stream, start over.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;

use crate::domain::{Generation, Lineage, Lsn, Oid};
use crate::engine::{Input, PostgresReady};
use crate::events::StopCause;
use crate::postgres::PgError;
use crate::replication::{
    Assembler, HistoryBroken, Ready, ReplicationError, ReplicationSettings, SPILL_BYTES_DEFAULT,
    StartupNotice, StatusSender, StreamItem, TransactionStream, connect_and_identify,
};
use crate::runtime::connections::Connections;
use crate::runtime::driver::Message;
use crate::runtime::handle::{Service, Status};
use crate::runtime::publishing::{Newcomers, Publishing};

/// Between two attempts to connect: contract 6.9.
const BACKOFF_MIN: Duration = Duration::from_secs(1);
const BACKOFF_MAX: Duration = Duration::from_secs(10);

/// Longest wait for the catalog while a batch of the stream waits for it.
const LOOK_WAIT_MAX: Duration = Duration::from_secs(30);
/// What a request is told that waits in vain: contract 6.6, the first of these that is not there yet.
const LOCK_TEXT: &str = "Timeout waiting for Postgres lock acquisition";
const CLIENT_TEXT: &str = "Timeout waiting for replication client to be ready";
/// Where no error is known: what most often holds it up.
const CLIENT_HINT: &str = "Timeout waiting for replication client to be ready. Check that you don't have pending transactions in the database. Electric has to wait for all pending transactions to commit or rollback before it can create the replication slot.";

/// An error that repeats is logged again this many attempts later.
const LOG_EVERY: u32 = 30;

/// What the driver asks of the task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Ends whatever is there, and connects.
    Connect,
    Start {
        generation: Generation,
    },
    Stop,
}

/// What the stream yields, in order.
#[derive(Debug)]
pub enum Batch {
    Items { generation: Generation, items: Vec<StreamItem> },
    Stopped { generation: Generation, cause: StopCause },
}

/// Where acknowledgements go while there is a stream.
#[derive(Clone, Debug, Default)]
pub struct Acknowledgements(Arc<Mutex<Option<(Generation, StatusSender)>>>);

impl Acknowledgements {
    /// Tells Postgres that everything before `lsn` is flushed; nothing where this stream has ended:
    /// the next one begins at what was told before.
    pub fn send(&self, generation: Generation, lsn: Lsn) {
        if let Some((streaming, status)) = self.lock().as_ref()
            && *streaming == generation
        {
            status.send_status(lsn);
        }
    }

    /// Asks Postgres how far it has come; the answer comes with the stream.
    pub fn ask(&self) {
        if let Some((_, status)) = self.lock().as_ref() {
            status.ping();
        }
    }

    fn set(&self, status: Option<(Generation, StatusSender)>) {
        *self.lock() = status;
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<(Generation, StatusSender)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// When connections are closed for want of work: contract 6.9.
#[derive(Debug)]
pub struct Idle {
    timeout: Option<Duration>,
    pools: [Connections; 2],
}

impl Idle {
    /// After `timeout` without a transaction the stream ends, and these connections are closed.
    #[must_use]
    pub fn new(timeout: Option<Duration>, pools: [Connections; 2]) -> Idle {
        Idle { timeout, pools }
    }

    /// When it is time, counted from a transaction that came just now.
    fn deadline(&self) -> Option<Instant> {
        self.timeout.map(|timeout| Instant::now() + timeout)
    }
}

/// Waits for a moment that may never come.
async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// The task. It has a thread of its own: see [`spawn`].
#[derive(Debug)]
pub struct StreamTask {
    pub idle: Idle,
    pub settings: ReplicationSettings,
    pub spill_dir: PathBuf,
    pub commands: mpsc::Receiver<Command>,
    pub driver: mpsc::Sender<Message>,
    pub batches: mpsc::Sender<Batch>,
    pub acknowledgements: Acknowledgements,
    pub service: Service,
    pub publishing: Arc<Publishing>,
    /// Woken where a table was announced: its key may have changed, too.
    pub reconcile: Arc<Notify>,
    /// Where everything else runs, and what is asked of the catalog, too: its connections outlive the stream.
    pub runtime: Handle,
}

/// Runs the task on a thread of its own: nothing that the HTTP server does holds up the stream, and the stream may
/// let its thread sleep while messages come together. The thread ends with the driver.
///
/// # Errors
/// The operating system gives no thread.
pub fn spawn(task: StreamTask) -> std::io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    thread::Builder::new().name("stream".to_owned()).spawn(move || runtime.block_on(task.run()))?;
    Ok(())
}

impl StreamTask {
    /// Runs until the driver is gone.
    pub async fn run(mut self) {
        let mut next = self.commands.recv().await;
        while let Some(command) = next {
            next = match command {
                Command::Connect => self.serve_connection().await,
                // A stream that has ended is started or stopped: nothing is left of it.
                Command::Start { .. } | Command::Stop => self.commands.recv().await,
            };
        }
    }

    /// From connecting to the end of the stream; the command that came meanwhile, or the next.
    async fn serve_connection(&mut self) -> Option<Command> {
        if self.service.is_asleep() {
            tokio::select! {
                () = self.service.work() => tracing::info!("connecting to the database: somebody has asked"),
                command = self.commands.recv() => return command,
            }
        }
        let ready = tokio::select! {
            ready = connect(&self.settings, &self.service, (&self.publishing, &self.runtime)) => ready,
            command = self.commands.recv() => return command,
        };
        if self.driver.send(Message::Input(Input::PostgresReady(self.describe(&ready)))).await.is_err() {
            return None;
        }
        let generation = match self.commands.recv().await? {
            Command::Start { generation } => generation,
            other @ (Command::Connect | Command::Stop) => return Some(other),
        };
        let stopped = self.stream(ready, generation).await;
        self.acknowledgements.set(None);
        match stopped {
            Ended::Commanded(command) => command,
            Ended::Idle => {
                tracing::info!("nothing came for long: all connections to the database are closed");
                self.service.set_asleep(true);
                self.idle.pools.iter().for_each(Connections::close);
                self.batches.send(Batch::Stopped { generation, cause: StopCause::Idle }).await.ok()?;
                self.commands.recv().await
            }
            Ended::Failed(cause) => {
                let reason =
                    format!("{LOCK_TEXT}: the replication stream has ended; it is being started again");
                self.service.set_status(Status::Waiting { reason });
                self.batches.send(Batch::Stopped { generation, cause }).await.ok()?;
                self.commands.recv().await
            }
        }
    }

    async fn stream(&mut self, ready: Ready, generation: Generation) -> Ended {
        let (slot, publication) = (&self.settings.slot, &self.settings.publication);
        let stream = match ready.client.start(slot, publication, Lsn(0)).await {
            Ok(stream) => stream,
            Err(error) => return Ended::Failed(self.failed(&error.into())),
        };
        let assembler = Assembler::new(self.spill_dir.clone(), SPILL_BYTES_DEFAULT);
        let mut stream = TransactionStream::new(stream, assembler);
        self.acknowledgements.set(Some((generation, stream.status())));
        self.service.progress().restart(std::time::Instant::now());
        self.service.set_status(Status::Active);
        self.service.set_asleep(false);
        tracing::info!(%generation, "streaming from Postgres");
        let mut items = Vec::new();
        let mut idle_at = self.idle.deadline();
        loop {
            tokio::select! {
                result = stream.next_batch(&mut items) => {
                    if let Err(error) = self.prepare(&items).await {
                        return Ended::Failed(self.failed(&error));
                    }
                    if items.iter().any(|item| matches!(item, StreamItem::Transaction(_))) {
                        idle_at = self.idle.deadline();
                    }
                    if !items.is_empty() {
                        let batch = Batch::Items { generation, items: std::mem::take(&mut items) };
                        if self.batches.send(batch).await.is_err() {
                            return Ended::Commanded(None);
                        }
                    }
                    if let Err(error) = result {
                        return Ended::Failed(self.failed(&error));
                    }
                }
                command = self.commands.recv() => {
                    stream.close().await;
                    return Ended::Commanded(command);
                }
                () = until(idle_at) => {
                    stream.close().await;
                    return Ended::Idle;
                }
            }
        }
    }

    /// Where relations were announced, sees to it that the driver knows of which tables they are
    /// partitions before it is handed their rows.
    async fn prepare(&self, items: &[StreamItem]) -> Result<(), ReplicationError> {
        let announced: Vec<Oid> = items
            .iter()
            .filter_map(|item| match item {
                StreamItem::Relation(relation) => Some(relation.oid),
                StreamItem::Transaction(_) | StreamItem::Keepalive { .. } => None,
            })
            .collect();
        if announced.is_empty() {
            return Ok(());
        }
        self.reconcile.notify_one();
        let followed = self.service.partitioned_tables();
        if followed.is_empty() {
            return Ok(());
        }
        let publishing = Arc::clone(&self.publishing);
        let looked =
            elsewhere(&self.runtime, async move { publishing.look_above(&announced, &followed).await });
        match tokio::time::timeout(LOOK_WAIT_MAX, looked).await {
            Ok(result) => result,
            Err(_elapsed) => Err(ReplicationError::Silent(LOOK_WAIT_MAX.as_secs())),
        }
    }

    fn failed(&self, error: &ReplicationError) -> StopCause {
        tracing::warn!(%error, "the replication stream ended");
        match error {
            ReplicationError::Malformed(_) => StopCause::Protocol,
            ReplicationError::Spill(_) => StopCause::Spill,
            ReplicationError::Silent(_) => StopCause::Connection,
            ReplicationError::Postgres(error) if error.sqlstate().is_none() => StopCause::Connection,
            ReplicationError::Postgres(_)
            | ReplicationError::Ended
            | ReplicationError::Standby
            | ReplicationError::PublicationNotFound(_)
            | ReplicationError::PublicationIncomplete(_)
            | ReplicationError::NotPublished { .. }
            | ReplicationError::IdentityNotFull(_)
            | ReplicationError::NotReplicated { .. }
            | ReplicationError::PublishedAsRoot { .. }
            | ReplicationError::Narrowed { .. }
            | ReplicationError::GeneratedNotPublished(_)
            | ReplicationError::GeneratedBlocksWrites(_)
            | ReplicationError::TableGone(_)
            | ReplicationError::LockTimeout
            | ReplicationError::FenceTimeout(_) => StopCause::Server,
        }
    }

    fn describe(&self, ready: &Ready) -> PostgresReady {
        let queried = self.service.progress().queried();
        PostgresReady {
            system_id: ready.system_id,
            timeline: ready.timeline,
            server_version: ready.server_version,
            database: ready.database_oid,
            backend_pid: ready.backend_pid,
            slot: ready.slot.name.clone(),
            confirmed: ready.slot.confirmed_flush,
            restart: ready.slot.restart_lsn.unwrap_or_default(),
            slot_created: ready.slot.created,
            slot_lost: ready.history_broken == Some(HistoryBroken::SlotLost),
            published: ready.published.clone(),
            publication_created: ready.history_broken == Some(HistoryBroken::PublicationCreated),
            lineage: Lineage { queried, ..ready.lineage.clone() },
        }
    }
}

enum Ended {
    Failed(StopCause),
    Commanded(Option<Command>),
    /// Nothing came for as long as was configured.
    Idle,
}

/// Different errors of which it is known how often they were told, in one attempt to get a stream.
const TOLD_MAX: usize = 16;

/// Connects, for as long as it takes. The same error is told once, and again now and then, also where
/// it takes turns with others: a database that is away for a night must not fill the log.
async fn connect(
    settings: &ReplicationSettings,
    service: &Service,
    (publishing, runtime): (&Arc<Publishing>, &Handle),
) -> Ready {
    let mut backoff = BACKOFF_MIN;
    let mut told: BTreeMap<String, u32> = BTreeMap::new();
    loop {
        let mut locked = false;
        let mut notify = |notice: StartupNotice| {
            locked |= notice == StartupNotice::LockTaken;
            tell(&notice, service);
        };
        let connected = match connect_and_identify(settings, &mut notify).await {
            Ok(ready) => {
                let (service, publishing) = (service.clone(), Arc::clone(publishing));
                let looked = elsewhere(runtime, async move { look_below(&service, &publishing).await });
                looked.await.map(|()| ready)
            }
            Err(error) => Err(error),
        };
        match connected {
            Ok(ready) => return ready,
            Err(error) => {
                let text = explain(&error);
                if told.len() >= TOLD_MAX && !told.contains_key(&text) {
                    told.clear();
                }
                let times = told.entry(text.clone()).or_insert(0);
                let repeated = *times;
                *times += 1;
                if repeated.is_multiple_of(LOG_EVERY) {
                    tracing::error!(error = %text, repeated, "cannot stream from Postgres yet; trying again");
                }
                // The condition that is not met first, and why: contract 6.6.
                let reason = format!("{}: {text}", if locked { CLIENT_TEXT } else { LOCK_TEXT });
                service.set_status(Status::Waiting { reason });
                // Who waits for connections is told that there are none.
                service.set_asleep(false);
            }
        }
        tokio::time::sleep(backoff).await;
        backoff = (backoff * 2).min(BACKOFF_MAX);
    }
}

/// Has another runtime do something: connections that are opened by it belong to that one.
async fn elsewhere<T: Send + 'static>(
    runtime: &Handle,
    work: impl Future<Output = Result<T, ReplicationError>> + Send + 'static,
) -> Result<T, ReplicationError> {
    match runtime.spawn(work).await {
        Ok(done) => done,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime ends, and the process with it.
            Err(_cancelled) => Err(ReplicationError::Ended),
        },
    }
}

/// What is below the partitioned tables may have changed while nobody looked.
async fn look_below(service: &Service, publishing: &Publishing) -> Result<(), ReplicationError> {
    for table in service.partitioned_tables() {
        publishing.look_below(table, Newcomers::Empty).await?;
    }
    Ok(())
}

/// One sentence on what is wrong, and one on what to do.
fn explain(error: &ReplicationError) -> String {
    match error {
        ReplicationError::Postgres(error) => format!("{error}. {}", PgError::remedy(error)),
        ReplicationError::PublicationNotFound(_) => format!(
            "{error}. Run CREATE PUBLICATION with that name, or grant the user in DATABASE_URL CREATE on the database."
        ),
        ReplicationError::PublicationIncomplete(_) => {
            format!("{error}. Run ALTER PUBLICATION with SET (publish = 'insert, update, delete, truncate').")
        }
        other => other.to_string(),
    }
}

fn tell(notice: &StartupNotice, service: &Service) {
    match notice {
        StartupNotice::WaitingForLock => {
            tracing::info!("waiting for the advisory lock: another instance streams from this slot");
            service.set_status(Status::Waiting { reason: LOCK_TEXT.to_owned() });
        }
        StartupNotice::LockTaken => {
            tracing::info!("the advisory lock is held");
            if !service.is_asleep() {
                service.set_status(Status::Waiting { reason: CLIENT_HINT.to_owned() });
            }
        }
        StartupNotice::HolderTerminated { backend_pid } => {
            tracing::warn!(backend_pid, "ended a backend that held the lock and did not stream");
        }
        StartupNotice::WaitingForSlot => {
            tracing::warn!("the slot cannot be made before the transactions that run now have ended");
            service.set_status(Status::Waiting { reason: CLIENT_HINT.to_owned() });
        }
    }
}

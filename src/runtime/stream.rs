//! The task that talks to Postgres on behalf of the driver: connect, stream, start over.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc;

use crate::domain::{Generation, Lsn};
use crate::engine::{Input, PostgresReady};
use crate::events::StopCause;
use crate::postgres::PgError;
use crate::replication::{
    Assembler, HistoryBroken, Ready, ReplicationError, ReplicationSettings, SPILL_BYTES_DEFAULT,
    StartupNotice, StatusSender, StreamItem, TransactionStream, connect_and_identify,
};
use crate::runtime::driver::Message;
use crate::runtime::handle::{Service, Status};

/// Between two attempts to connect: contract 6.9.
const BACKOFF_MIN: Duration = Duration::from_secs(1);
const BACKOFF_MAX: Duration = Duration::from_secs(10);

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

/// The task.
#[derive(Debug)]
pub struct StreamTask {
    pub settings: ReplicationSettings,
    pub spill_dir: PathBuf,
    pub commands: mpsc::Receiver<Command>,
    pub driver: mpsc::Sender<Message>,
    pub batches: mpsc::Sender<Batch>,
    pub acknowledgements: Acknowledgements,
    pub service: Service,
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
        let ready = tokio::select! {
            ready = connect(&self.settings, &self.service) => ready,
            command = self.commands.recv() => return command,
        };
        if self.driver.send(Message::Input(Input::PostgresReady(describe(&ready)))).await.is_err() {
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
            Ended::Failed(cause) => {
                let reason = "the replication stream has ended; it is being started again".to_owned();
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
        self.service.set_status(Status::Active);
        tracing::info!(%generation, "streaming from Postgres");
        let mut items = Vec::new();
        loop {
            tokio::select! {
                result = stream.next_batch(&mut items) => {
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
            }
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
            | ReplicationError::PublicationNotFound(_)
            | ReplicationError::PublicationIncomplete(_)
            | ReplicationError::NotPublished { .. }
            | ReplicationError::IdentityNotFull(_)
            | ReplicationError::TableGone(_)
            | ReplicationError::LockTimeout
            | ReplicationError::FenceTimeout(_) => StopCause::Server,
        }
    }
}

enum Ended {
    Failed(StopCause),
    Commanded(Option<Command>),
}

/// Connects, for as long as it takes. The same error is told once, and again now and then: a database
/// that is away for a night must not fill the log.
async fn connect(settings: &ReplicationSettings, service: &Service) -> Ready {
    let mut backoff = BACKOFF_MIN;
    let mut last: Option<String> = None;
    let mut repeated = 0;
    loop {
        let mut notify = |notice: StartupNotice| tell(&notice, service);
        match connect_and_identify(settings, &mut notify).await {
            Ok(ready) => return ready,
            Err(error) => {
                let text = explain(&error);
                repeated = if last.as_ref() == Some(&text) { repeated + 1 } else { 0 };
                if repeated % LOG_EVERY == 0 {
                    tracing::error!(error = %text, repeated, "cannot stream from Postgres yet; trying again");
                }
                // The condition that is not met first, and why: contract 6.6.
                let reason = format!("Timeout waiting for Postgres lock acquisition: {text}");
                service.set_status(Status::Waiting { reason });
                last = Some(text);
            }
        }
        tokio::time::sleep(backoff).await;
        backoff = (backoff * 2).min(BACKOFF_MAX);
    }
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
            let reason = "Timeout waiting for Postgres lock acquisition".to_owned();
            service.set_status(Status::Waiting { reason });
        }
        StartupNotice::LockTaken => tracing::info!("the advisory lock is held"),
        StartupNotice::HolderTerminated { backend_pid } => {
            tracing::warn!(backend_pid, "ended a backend that held the lock and did not stream");
        }
        StartupNotice::WaitingForSlot => {
            tracing::warn!("the slot cannot be made before the transactions that run now have ended");
            service.set_status(Status::Waiting {
                reason: "Timeout waiting for replication client to be ready. Check that you don't have pending transactions in the database. Electric has to wait for all pending transactions to commit or rollback before it can create the replication slot.".to_owned(),
            });
        }
    }
}

fn describe(ready: &Ready) -> PostgresReady {
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
    }
}

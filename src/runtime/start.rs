//! Putting the service together: every component is built here, once.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use tokio::sync::{mpsc, oneshot};

use crate::engine::Input;
use crate::events::DrainCause;
use crate::journal::{JournalPaths, JournalThread, Reserve, Retention};
use crate::replication::{ReplicationSettings, publication_name, slot_name};
use crate::runtime::archiver::Archiver;
use crate::runtime::boot::{self, BootError, Opened};
use crate::runtime::connections::Connections;
use crate::runtime::driver::{Driver, Fatal, Message, Queues};
use crate::runtime::executor::{Bodies, Executor};
use crate::runtime::handle::{REQUESTS_MAX, Request, Service, Status};
use crate::runtime::inspector::Inspector;
use crate::runtime::keeper::Keeper;
use crate::runtime::publishing::Publishing;
use crate::runtime::router::Router;
use crate::runtime::settings::{INPUTS_MAX, STREAM_BATCHES_MAX, Settings};
use crate::runtime::snapshots::{SnapshotContext, Snapshots};
use crate::runtime::stream::{Acknowledgements, StreamTask};
use crate::runtime::subquery::Resumed;
use crate::runtime::subset::Subsets;
use crate::runtime::writers::{PoolSettings, WriterThreads};
use crate::shape_log::{Disk, RealDisk};

/// Writer threads. More would wait for the same disk.
const WRITER_THREADS: usize = 2;
/// Connections for catalog and publication, of those configured: contract 5.1.
const ADMIN_CONNECTIONS_MAX: usize = 4;
/// Commands that wait for the stream task; the driver has at most two outstanding.
const STREAM_COMMANDS_MAX: usize = 16;

/// A started service.
#[derive(Debug)]
pub struct Running {
    pub service: Service,
    drain: mpsc::Sender<Message>,
    ended: oneshot::Receiver<Result<(), Stopped>>,
}

/// Why the service has ended other than by being asked to.
#[derive(Debug, thiserror::Error)]
pub enum Stopped {
    #[error(transparent)]
    Boot(#[from] BootError),
    #[error(transparent)]
    Fatal(#[from] Fatal),
    #[error("the driver panicked")]
    Panicked,
}

impl Running {
    /// Ends in order: what is pending stays with Postgres.
    pub async fn drain(&self, cause: DrainCause) {
        let _ended = self.drain.send(Message::Drain(cause)).await;
    }

    /// Waits for the end.
    ///
    /// # Errors
    /// [`Stopped`] where it is not the end that was asked for.
    pub async fn ended(&mut self) -> Result<(), Stopped> {
        (&mut self.ended).await.unwrap_or(Err(Stopped::Panicked))
    }
}

/// Starts the service on the present tokio runtime. Returns at once; the readiness is in
/// [`Service::status`].
#[must_use]
pub fn start(settings: Settings) -> Running {
    let (requests, request_queue) = mpsc::channel(REQUESTS_MAX);
    let (messages, message_queue) = mpsc::channel(INPUTS_MAX);
    let pool = settings.pool_size.max(2);
    let admin_size = (pool / 4).clamp(1, ADMIN_CONNECTIONS_MAX);
    let admin = Connections::new(settings.database_url.clone(), settings.connect.clone(), admin_size);
    let query_size = pool.saturating_sub(admin_size);
    let query = Connections::new(settings.query_url.clone(), settings.connect.clone(), query_size);
    let inspector = Inspector::new(admin.clone());
    let subsets = Subsets::new(query.clone(), query_size / 2);
    let service = Service::new(requests, inspector.clone(), subsets);
    let (tell, ended) = oneshot::channel();
    let parts = Parts {
        settings,
        service: service.clone(),
        messages: messages.clone(),
        message_queue,
        request_queue,
        admin,
        query,
        inspector,
    };
    tokio::spawn(async move {
        let result = parts.run().await;
        // Nobody waits any more where the process is ending anyway.
        let _gone = tell.send(result);
    });
    Running { service, drain: messages, ended }
}

struct Parts {
    settings: Settings,
    service: Service,
    messages: mpsc::Sender<Message>,
    message_queue: mpsc::Receiver<Message>,
    request_queue: mpsc::Receiver<Request>,
    admin: Connections,
    query: Connections,
    inspector: Inspector,
}

impl Parts {
    async fn run(mut self) -> Result<(), Stopped> {
        let data_dir = self.settings.data_dir.clone();
        let (locked, waited) = tokio::select! {
            locked = boot::lock(&data_dir, &self.service) => locked,
            () = drained(&mut self.message_queue) => return Ok(()),
        };
        self.service.set_status(Status::Starting {
            reason: "Timeout waiting for shape metadata to be loaded".to_owned(),
        });
        let (policy, config_hash) = (self.settings.policy.clone(), self.settings.hash());
        let opened =
            tokio::task::spawn_blocking(move || boot::open(&data_dir, locked, waited, policy, config_hash))
                .await
                .map_err(|_| Stopped::Panicked)??;
        let (driver, boot, stream) = self.assemble(opened)?;
        tokio::spawn(stream.run());
        let (tell, ended) = oneshot::channel();
        // A thread of its own: nothing that the HTTP server does can hold it up.
        let thread: JoinHandle<()> = std::thread::Builder::new()
            .name("driver".to_owned())
            .spawn(move || {
                let result = tokio::runtime::Builder::new_current_thread()
                    .enable_time()
                    .build()
                    .map_err(BootError::Thread)
                    .map_err(Stopped::from)
                    .and_then(|runtime| runtime.block_on(driver.run(boot)).map_err(Stopped::from));
                let _gone = tell.send(result);
            })
            .map_err(BootError::Thread)?;
        let result = ended.await.unwrap_or(Err(Stopped::Panicked));
        // It has nothing left to do but to end.
        drop(thread);
        result
    }

    fn assemble(self, opened: Opened) -> Result<(Driver, Input, StreamTask), Stopped> {
        let Parts { settings, service, messages, message_queue, request_queue, admin, query, inspector } =
            self;
        let Opened { lock, journal, core, boot, checkpoint } = opened;
        let disk: Arc<dyn Disk> = Arc::new(RealDisk::new(&settings.data_dir).map_err(BootError::Directory)?);
        let spill_dir = settings.data_dir.join("spill");
        std::fs::create_dir_all(&spill_dir).map_err(BootError::Directory)?;

        let paths = JournalPaths::new(&settings.data_dir);
        let (tell, archived) = mpsc::unbounded_channel();
        let retention =
            Retention { age_max: settings.archive_age_max, bytes_max: settings.archive_bytes_max };
        let archiver =
            Archiver::spawn(&paths, journal.reader(), retention, tell).map_err(BootError::Journal)?;
        let reserve = Reserve::open(&paths).map_err(BootError::Journal)?;
        let (notice, notices) = mpsc::unbounded_channel();
        let journal = JournalThread::spawn(
            journal,
            Box::new(move |message| {
                let _closed = notice.send(message);
            }),
        )
        .map_err(BootError::Journal)?;
        let (report, reports) = mpsc::unbounded_channel();
        let pool = PoolSettings { chunk_bytes: settings.chunk_bytes, idle_after: settings.writer_idle_after };
        let writers =
            WriterThreads::spawn(WRITER_THREADS, &pool, settings.flush_interval, &disk, move |message| {
                let _closed = report.send(message);
            })
            .map_err(BootError::Thread)?;

        let publication = publication_name(&settings.stream_id);
        let acknowledgements = Acknowledgements::default();
        let (commands, command_queue) = mpsc::channel(STREAM_COMMANDS_MAX);
        let (batches, batch_queue) = mpsc::channel(STREAM_BATCHES_MAX);
        let stream = StreamTask {
            settings: ReplicationSettings {
                url: settings.database_url.clone(),
                connect: settings.connect.clone(),
                slot: slot_name(&settings.stream_id),
                publication: publication.clone(),
                temporary_slot: settings.temporary_slot,
            },
            spill_dir,
            commands: command_queue,
            driver: messages.clone(),
            batches,
            acknowledgements: acknowledgements.clone(),
            service: service.clone(),
        };
        let context = Arc::new(SnapshotContext {
            query,
            data_dir: settings.data_dir.clone(),
            disk: Arc::clone(&disk),
            chunk_bytes: settings.chunk_bytes,
            driver: messages,
            publishing: Publishing::new(admin, publication, settings.manual_publishing),
        });
        let runtime = tokio::runtime::Handle::current();
        let executor = Executor {
            service,
            router: Router::new(settings.subquery_buffer_max),
            inspector,
            snapshots: Snapshots::new(Arc::clone(&context), runtime.clone()),
            context,
            writers,
            acknowledgements,
            stream: commands,
            runtime,
            data_dir: settings.data_dir.clone(),
            disk,
            shapes: BTreeMap::new(),
            bodies: Bodies::default(),
            waiting: BTreeMap::new(),
            tables: Arc::new(Mutex::new(BTreeSet::new())),
            table_names: BTreeMap::new(),
            stack: settings.stack.clone(),
            resumed: Resumed::default(),
            runs: BTreeMap::new(),
        };
        let queues = Queues {
            messages: message_queue,
            requests: request_queue,
            batches: batch_queue,
            reports,
            notices,
            archived,
        };
        let keeper = Keeper::new(&settings, checkpoint);
        let keeping = (keeper, archiver, reserve);
        Ok((Driver::new(core, executor, journal, lock, queues, keeping), Input::Boot(boot), stream))
    }
}

/// Waits for a request to drain; before the directory is ours there is nothing else to do about it.
async fn drained(messages: &mut mpsc::Receiver<Message>) {
    while let Some(message) = messages.recv().await {
        if matches!(message, Message::Drain(_)) {
            return;
        }
    }
}

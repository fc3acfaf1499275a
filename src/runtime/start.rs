//! Putting the service together: every component is built here, once.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};

use crate::engine::Input;
use crate::events::{DrainCause, Part};
use crate::inspect::{Follower, History, OwnJournal};
use crate::journal::{JournalError, JournalPaths, JournalThread, Notice, Reserve, Retention};
use crate::ownership::Trust;
use crate::replication::{ReplicationSettings, publication_name, random_slot_name, slot_name};
use crate::runtime::archiver::Archiver;
use crate::runtime::boot::{self, BootError, Opened};
use crate::runtime::compaction::{CompactionSettings, Compactor};
use crate::runtime::connections::Connections;
use crate::runtime::driver::{Driver, Fatal, Message, Queues};
use crate::runtime::evaluation::Evaluation;
use crate::runtime::executor::{Bodies, Executor};
use crate::runtime::handle::{REQUESTS_MAX, Request, Service, Status};
use crate::runtime::inspector::Inspector;
use crate::runtime::keeper::Keeper;
use crate::runtime::measured::Measured;
use crate::runtime::observed::{Observed, Observer};
use crate::runtime::probe::Probe;
use crate::runtime::publishing::Publishing;
use crate::runtime::reconciler::Reconciler;
use crate::runtime::restoring::{Loader, Restoring};
use crate::runtime::router::Router;
use crate::runtime::settings::{INPUTS_MAX, STREAM_BATCHES_MAX, Settings};
use crate::runtime::settling::Settling;
use crate::runtime::snapshots::{SnapshotContext, Snapshots};
use crate::runtime::stream::{self, Acknowledgements, Idle, StreamTask};
use crate::runtime::subquery::Resumed;
use crate::runtime::subset::Subsets;
use crate::runtime::turns;
use crate::runtime::watchdog::{Pulse, Watchdog, Watched};
use crate::runtime::writers::{PoolSettings, WriterThreads};

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
    /// Once the journal is open, if [`Settings::observe`] says so.
    pub observed: watch::Receiver<Option<Observed>>,
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
    let evaluated = (settings.database_url.clone(), settings.connect.clone());
    let evaluation = Evaluation::new(settings.postgres_evaluation, evaluated, admin.clone());
    let service = Service::new(requests, inspector.clone(), subsets, evaluation);
    admin.measure("admin", service.metrics());
    query.measure("snapshot", service.metrics());
    let (tell, ended) = oneshot::channel();
    let (observe, observed) = watch::channel(None);
    let parts = Parts {
        settings,
        service: service.clone(),
        messages: messages.clone(),
        message_queue,
        request_queue,
        admin,
        query,
        inspector,
        observe,
    };
    tokio::spawn(async move {
        let result = parts.run().await;
        // Nobody waits any more where the process is ending anyway.
        let _gone = tell.send(result);
    });
    Running { service, observed, drain: messages, ended }
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
    observe: watch::Sender<Option<Observed>>,
}

impl Parts {
    async fn run(mut self) -> Result<(), Stopped> {
        let Some(opened) = self.own().await? else { return Ok(()) };
        let (driver, boot, task, watchdog) = self.assemble(opened)?;
        stream::spawn(task).map_err(BootError::Thread)?;
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
        drop((thread, watchdog));
        result
    }

    /// Waits for the directory and opens it; `None` where the process is to end instead.
    async fn own(&mut self) -> Result<Option<Opened>, Stopped> {
        let mut told = false;
        loop {
            let data_dir = self.settings.data_dir.clone();
            let (locked, waited) = tokio::select! {
                locked = boot::lock(&data_dir, self.settings.lock_trust, &self.service) => locked,
                () = drained(&mut self.message_queue) => return Ok(None),
            };
            if self.settings.lock_trust == Trust::Unconditional {
                let slot = self.settings.slot();
                tokio::select! {
                    () = turns::wait_for_turn(&self.admin, &slot, &self.service) => {}
                    () = drained(&mut self.message_queue) => return Ok(None),
                }
            }
            let reason = "Timeout waiting for shape metadata to be loaded".to_owned();
            // An instance that has waited goes on serving what it served.
            self.service.set_status(if self.service.is_standing_by() {
                Status::Waiting { reason }
            } else {
                Status::Starting { reason }
            });
            let policy = self.settings.policy.clone();
            let configured = (self.settings.configured(), self.settings.pack_small_shapes);
            let open = move || boot::open(&data_dir, locked, waited, policy, configured);
            match tokio::task::spawn_blocking(open).await.map_err(|_| Stopped::Panicked)? {
                // Somebody has replaced the lock file under a living owner. That one notices within a
                // second or two, and its journal has a lock of its own until then.
                Err(BootError::Journal(JournalError::InUse)) => {
                    if !std::mem::replace(&mut told, true) {
                        tracing::warn!(
                            "the lock is free, and yet another process has the journal open; waiting"
                        );
                    }
                    tokio::time::sleep(boot::LOCK_POLL).await;
                }
                opened => return Ok(Some(opened?)),
            }
        }
    }

    fn assemble(self, opened: Opened) -> Result<(Driver, Input, StreamTask, Watchdog), Stopped> {
        let Parts {
            settings,
            service,
            messages,
            message_queue,
            request_queue,
            admin,
            query,
            inspector,
            observe,
        } = self;
        let Opened { lock, journal, core, boot, checkpoint, disk } = opened;
        let trees = core.engine().state().relations.clone();
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
        let metrics = Arc::clone(service.metrics());
        let mut wake = None;
        let mut watched = None;
        if settings.observe {
            let own = Arc::new(OwnJournal::new(&settings.data_dir, journal.reader()));
            let (follower, live, more) =
                Follower::start(&own, core.engine().state().clone()).map_err(BootError::Observe)?;
            let history = Arc::new(History::own(Arc::clone(&own)));
            observe.send_replace(Some(Observed { live, history }));
            (wake, watched) = (Some(more), Some(Observer::new(own, follower)));
        }
        let (driver_pulse, journal_pulse) = (Pulse::new(), Pulse::resting());
        let journal = JournalThread::spawn(
            Measured { journal, metrics: Arc::clone(&metrics), pulse: Arc::clone(&journal_pulse) },
            Box::new(move |message| {
                if let (Notice::Durable(upto), Some(wake)) = (&message, &wake) {
                    wake.durable(*upto);
                }
                let _closed = notice.send(message);
            }),
        )
        .map_err(BootError::Journal)?;
        let (report, reports) = mpsc::unbounded_channel();
        let pool = PoolSettings {
            chunk_bytes: settings.chunk_bytes,
            idle_after: settings.writer_idle_after,
            compaction: settings.compaction,
        };
        let writers = WriterThreads::spawn(
            WRITER_THREADS,
            &pool,
            settings.flush_interval,
            &disk,
            &metrics,
            move |message| {
                let _closed = report.send(message);
            },
        )
        .map_err(BootError::Thread)?;

        let mut parts = vec![
            Watched { part: Part::Driver, pulse: Arc::clone(&driver_pulse) },
            Watched { part: Part::Journal, pulse: journal_pulse },
        ];
        parts.extend(writers.watched());
        #[cfg(feature = "test-hooks")]
        service.hold_by(parts.clone());
        let watchdog = watch_over(parts, &service, &messages, settings.operation.watchdog_after)?;

        let slot = if settings.temporary_slot && settings.operation.random_slot_name {
            random_slot_name()
        } else {
            slot_name(&settings.stream_id)
        };
        let publication = publication_name(&settings.stream_id);
        let acknowledgements = Acknowledgements::default();
        let (commands, command_queue) = mpsc::channel(STREAM_COMMANDS_MAX);
        let (batches, batch_queue) = mpsc::channel(STREAM_BATCHES_MAX);
        let publishing = Arc::new(Publishing::new(
            admin.clone(),
            publication.clone(),
            settings.manual_publishing,
            messages.clone(),
            trees,
        ));
        let tables = Arc::new(Mutex::new(BTreeSet::new()));
        let reconcile = inspector.changed();
        let reconciler = Reconciler {
            admin: admin.clone(),
            service: service.clone(),
            publishing: Arc::clone(&publishing),
            driver: messages.clone(),
            tables: Arc::clone(&tables),
            period: settings.reconcile_interval,
            wake: Arc::clone(&reconcile),
        };
        tokio::spawn(reconciler.run());
        let probe = Probe {
            service: service.clone(),
            admin: admin.clone(),
            slot: slot.clone(),
            data_dir: settings.data_dir.clone(),
            interval: settings.operation.poll_interval,
        };
        tokio::spawn(probe.run());
        let stream = StreamTask {
            idle: Idle::new(settings.operation.idle_timeout, [admin.clone(), query.clone()]),
            settings: ReplicationSettings {
                url: settings.database_url.clone(),
                connect: settings.connect.clone(),
                slot,
                publication: publication.clone(),
                temporary_slot: settings.temporary_slot,
                failover: settings.operation.failover,
            },
            spill_dir,
            commands: command_queue,
            driver: messages.clone(),
            batches,
            acknowledgements: acknowledgements.clone(),
            service: service.clone(),
            publishing: Arc::clone(&publishing),
            reconcile,
            runtime: tokio::runtime::Handle::current(),
        };
        let context = Arc::new(SnapshotContext {
            query,
            data_dir: settings.data_dir.clone(),
            disk: Arc::clone(&disk),
            chunk_bytes: settings.chunk_bytes,
            driver: messages,
            publishing,
            settling: Settling::spawn(Arc::clone(&disk)).map_err(BootError::Thread)?,
            service: service.clone(),
        });
        let compactor = settings.compaction.map(|policy| {
            let (chunk_bytes, data_dir) = (settings.chunk_bytes, settings.data_dir.clone());
            Compactor::spawn(CompactionSettings { policy, chunk_bytes, data_dir }, context.driver.clone())
        });
        let compactor = compactor.transpose().map_err(BootError::Thread)?;
        let runtime = tokio::runtime::Handle::current();
        let executor = Executor {
            service,
            router: Router::new(settings.subquery_buffer_max),
            snapshots: Snapshots::new(Arc::clone(&context), runtime.clone()),
            context,
            writers,
            acknowledgements,
            stream: commands,
            runtime,
            data_dir: settings.data_dir.clone(),
            loader: Loader {
                disk: Arc::clone(&disk),
                data_dir: settings.data_dir.clone(),
                stack: settings.stack.clone(),
                inspector: inspector.clone(),
            },
            restoring: Restoring::default(),
            disk,
            inspector,
            shapes: BTreeMap::new(),
            bodies: Bodies::default(),
            waiting: BTreeMap::new(),
            tables,
            table_names: BTreeMap::new(),
            resumed: Resumed::default(),
            runs: BTreeMap::new(),
            suspects: Arc::default(),
            compactor,
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
        let watching =
            (settings.operation.clone(), watched, settings.projection_check_interval, driver_pulse);
        let driver = Driver::new(core, executor, journal, lock, queues, keeping, watching);
        Ok((driver, Input::Boot(boot), stream, watchdog))
    }
}

/// The watchdog over the parts of the pipeline. It has no part in any of them: what it tells the driver is
/// left out where the queue is full, and told again later.
fn watch_over(
    parts: Vec<Watched>,
    service: &Service,
    messages: &mpsc::Sender<Message>,
    after: Duration,
) -> Result<Watchdog, BootError> {
    let (service, messages) = (service.clone(), messages.clone());
    let metrics = Arc::clone(service.metrics());
    let publish = move |still: Vec<(Part, Duration)>| {
        metrics.part_still_seconds.reset();
        for (part, since) in &still {
            metrics.part_still_seconds.with_label_values(&[&part.to_string()]).set(since.as_secs_f64());
        }
        service.progress().standing(still);
    };
    let tell = move |input| messages.try_send(Message::Input(input)).is_ok();
    Watchdog::spawn(parts, after, publish, tell).map_err(BootError::Thread)
}

/// Waits for a request to drain; before the directory is ours there is nothing else to do about it.
async fn drained(messages: &mut mpsc::Receiver<Message>) {
    while let Some(message) = messages.recv().await {
        if matches!(message, Message::Drain(_)) {
            return;
        }
    }
}

//! Writer threads: a queue, a pool, and a flush now and then.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::domain::{EventId, Lsn, Sid};
use crate::events::Part;
use crate::runtime::clock;
use crate::runtime::watchdog::{Pulse, Watched};
use crate::runtime::writers::pool::thread_of;
use crate::runtime::writers::{Command, PoolSettings, Report, WriterPool};
use crate::shape_log::Disk;
use crate::telemetry::Metrics;

/// Commands that a thread takes in before it looks at its timers.
const COMMANDS_AT_ONCE_MAX: usize = 256;

/// Nothing is taken in while a flush lasts, and with thousands of logs one lasts long: then they are further apart,
/// so that flushing takes at most a fifth of the time. What waits for it is bounded by what the driver holds.
const FLUSH_PAUSE_FACTOR: u32 = 4;
const FLUSH_INTERVAL_MAX: Duration = Duration::from_millis(200);

/// How often idle writers are looked for.
const IDLE_CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// All writer threads.
///
/// The queues have no bound of their own, since the driver must never wait for a disk: it stops reading
/// the stream instead, as long as [`WriterThreads::queued`] is above its limit.
#[derive(Debug)]
pub struct WriterThreads {
    threads: Vec<Thread>,
}

#[derive(Debug)]
struct Thread {
    commands: Option<Sender<Command>>,
    queued: Arc<AtomicUsize>,
    published: Arc<AtomicU64>,
    pulse: Arc<Pulse>,
    join: Option<JoinHandle<()>>,
}

impl WriterThreads {
    /// Starts `count` threads. `report` is called on them and must not block.
    ///
    /// # Errors
    /// The operating system gives no thread.
    pub fn spawn(
        count: usize,
        settings: &PoolSettings,
        flush_interval: Duration,
        disk: &Arc<dyn Disk>,
        metrics: &Arc<Metrics>,
        report: impl Fn(Report) + Clone + Send + 'static,
    ) -> std::io::Result<WriterThreads> {
        let threads = (0..count)
            .map(|number| {
                let (commands, queue) = channel();
                let queued = Arc::new(AtomicUsize::new(0));
                let published = Arc::new(AtomicU64::new(0));
                let pool = WriterPool::new(settings.clone(), Arc::clone(disk), Arc::clone(&published));
                let report = report.clone();
                let (counter, metrics) = (Arc::clone(&queued), Arc::clone(metrics));
                let pulse = Pulse::new();
                let beats = Arc::clone(&pulse);
                let join = thread::Builder::new().name(format!("writers-{number}")).spawn(move || {
                    run(pool, &queue, (&counter, &beats), flush_interval, &metrics, &report)
                })?;
                Ok(Thread { commands: Some(commands), queued, published, pulse, join: Some(join) })
            })
            .collect::<std::io::Result<Vec<Thread>>>()?;
        Ok(WriterThreads { threads })
    }

    /// Hands a command to the thread of a shape.
    pub fn send(&self, sid: Sid, command: Command) {
        self.send_to(thread_of(sid, self.threads.len()), command);
    }

    /// Hands a delivery to each thread that has some of its shapes.
    pub fn deliver(
        &self,
        seq: crate::domain::Seq,
        routed: &Arc<crate::runtime::router::RoutedTransaction>,
        to: Vec<(Sid, crate::domain::Incarnation)>,
    ) {
        let count = self.threads.len();
        let mut parts = vec![Vec::new(); count];
        for writer in to {
            parts[thread_of(writer.0, count)].push(writer);
        }
        for (number, to) in parts.into_iter().enumerate() {
            if !to.is_empty() {
                self.send_to(number, Command::Deliver { seq, routed: Arc::clone(routed), to });
            }
        }
    }

    /// Tells every thread that all commits up to `lsn` have been handed out. One that has done everything that it
    /// was handed need not be woken up for that.
    pub fn progress(&self, lsn: Lsn) {
        for (number, thread) in self.threads.iter().enumerate() {
            // Acquire: of what it counted as done, the views are published.
            if thread.queued.load(Ordering::Acquire) == 0 {
                thread.published.fetch_max(lsn.0, Ordering::AcqRel);
            } else {
                self.send_to(number, Command::Progress(lsn));
            }
        }
    }

    /// Asks every thread for its writers; each answers with a part.
    pub fn audit(&self, asked: EventId) -> usize {
        for number in 0..self.threads.len() {
            self.send_to(number, Command::Audit { asked });
        }
        self.threads.len()
    }

    /// The mark of the thread of a shape.
    #[must_use]
    pub fn published(&self, sid: Sid) -> Arc<AtomicU64> {
        Arc::clone(&self.threads[thread_of(sid, self.threads.len())].published)
    }

    /// Signs of life of each.
    #[must_use]
    pub(in crate::runtime) fn watched(&self) -> Vec<Watched> {
        let watched = |(number, thread): (u32, &Thread)| Watched {
            part: Part::Writers(number),
            pulse: Arc::clone(&thread.pulse),
        };
        (0..).zip(&self.threads).map(watched).collect()
    }

    /// Every thread has taken in what was handed out up to here.
    #[must_use]
    pub fn reached(&self) -> Lsn {
        let published = self.threads.iter().map(|thread| thread.published.load(Ordering::Acquire));
        Lsn(published.min().unwrap_or(u64::MAX))
    }

    /// Commands that wait.
    #[must_use]
    pub fn queued(&self) -> usize {
        self.threads.iter().map(|thread| thread.queued.load(Ordering::Relaxed)).sum()
    }

    fn send_to(&self, number: usize, command: Command) {
        let thread = &self.threads[number];
        thread.queued.fetch_add(1, Ordering::Relaxed);
        // A thread ends only when its sender is dropped; a panic in its loop is a bug that the audit
        // would show.
        let sent = thread.commands.as_ref().is_some_and(|commands| commands.send(command).is_ok());
        if !sent {
            tracing::error!(number, "a writer thread is gone");
        }
    }
}

impl Drop for WriterThreads {
    fn drop(&mut self) {
        for thread in &mut self.threads {
            thread.commands = None;
        }
        for thread in &mut self.threads {
            if thread.join.take().is_some_and(|join| join.join().is_err()) {
                tracing::error!("a writer thread panicked");
            }
        }
    }
}

fn run(
    mut pool: WriterPool,
    queue: &Receiver<Command>,
    (queued, pulse): (&AtomicUsize, &Pulse),
    flush_interval: Duration,
    metrics: &Metrics,
    report: &impl Fn(Report),
) {
    let mut dirty_since: Option<Instant> = None;
    let mut interval = flush_interval;
    let mut idle_checked = Instant::now();
    loop {
        let wait = match dirty_since {
            Some(since) => interval.saturating_sub(since.elapsed()),
            None => IDLE_CHECK_INTERVAL,
        };
        pulse.end();
        let received = queue.recv_timeout(wait);
        pulse.begin();
        match received {
            Ok(command) => {
                let now = clock::now();
                pool.perform(now, command);
                let mut taken = 1;
                while taken < COMMANDS_AT_ONCE_MAX
                    && let Ok(command) = queue.try_recv()
                {
                    pool.perform(now, command);
                    taken += 1;
                }
                // Release: see [`WriterThreads::progress`].
                queued.fetch_sub(taken, Ordering::Release);
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        if pool.behind() > 0 {
            flush(&mut pool, metrics, WriterPool::behind, WriterPool::flush_behind);
        }
        match dirty_since {
            Some(since) if since.elapsed() >= interval => {
                let took = flush(&mut pool, metrics, WriterPool::dirty, WriterPool::flush);
                interval = (took * FLUSH_PAUSE_FACTOR).min(FLUSH_INTERVAL_MAX).max(flush_interval);
                dirty_since = None;
            }
            Some(_) => {}
            None if pool.is_dirty() => dirty_since = Some(Instant::now()),
            None => {}
        }
        if idle_checked.elapsed() >= IDLE_CHECK_INTERVAL {
            idle_checked = Instant::now();
            pool.tell_idle(clock::now());
        }
        for message in pool.take_reports() {
            report(message);
        }
    }
}

fn flush(
    pool: &mut WriterPool,
    metrics: &Metrics,
    logs: fn(&WriterPool) -> usize,
    flush: fn(&mut WriterPool),
) -> Duration {
    let begun = Instant::now();
    metrics.flush_groups.inc();
    metrics.flush_logs.inc_by(logs(pool) as u64);
    flush(pool);
    let took = begun.elapsed();
    metrics.flush_seconds.observe(took.as_secs_f64());
    took
}

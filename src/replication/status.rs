//! The half of a replication connection that writes: standby status updates.
//!
//! It is a task of its own, so that neither a reader that waits for room nor a large transaction keeps
//! the server from hearing of us: it would end the connection after `wal_sender_timeout`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::{BufMut, BytesMut};
use postgres_protocol::message::frontend;
use tokio::io::{AsyncWriteExt, WriteHalf};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use crate::domain::Lsn;
use crate::postgres::Transport;

/// Seconds from the Unix epoch to 2000-01-01, where Postgres begins to count.
const POSTGRES_EPOCH: Duration = Duration::from_secs(946_684_800);

/// The last status may wait at most this long for the socket when a stream is closed.
const CLOSE_WAIT_MAX: Duration = Duration::from_secs(2);

/// Acknowledges what has been dealt with. Cheap to clone; does nothing once the stream is gone.
#[derive(Clone, Debug)]
pub struct StatusSender(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// Flush and apply position to report. Never moves back.
    acknowledged: AtomicU64,
    /// Write position to report: the end of what was read. Never moves back.
    received: AtomicU64,
    /// The next status asks the server for an answer.
    ping: AtomicBool,
    closing: AtomicBool,
    wake: Notify,
}

impl StatusSender {
    /// Tells Postgres that nothing before `lsn` is needed any more. Returns at once; updates that come
    /// faster than the socket takes them are merged. An earlier position than before is ignored.
    pub fn send_status(&self, lsn: Lsn) {
        let before = self.0.acknowledged.fetch_max(lsn.0, Ordering::AcqRel);
        if lsn.0 > before {
            self.0.wake.notify_one();
        }
    }

    /// The position that was acknowledged last.
    #[must_use]
    pub fn acknowledged(&self) -> Lsn {
        Lsn(self.0.acknowledged.load(Ordering::Acquire))
    }

    pub(super) fn received(&self, lsn: Lsn) {
        self.0.received.fetch_max(lsn.0, Ordering::Relaxed);
    }

    /// Repeats the last status at once: the server has asked for it.
    pub(super) fn repeat(&self) {
        self.0.wake.notify_one();
    }

    /// Sends a status that the server must answer.
    pub fn ping(&self) {
        self.0.ping.store(true, Ordering::Release);
        self.0.wake.notify_one();
    }
}

/// The task behind a [`StatusSender`]; ends with this value.
#[derive(Debug)]
pub(super) struct StatusTask {
    task: JoinHandle<()>,
    shared: Arc<Shared>,
}

impl StatusTask {
    /// Starts to send the status every `interval`, beginning with `acknowledged`.
    pub(super) fn start(
        socket: WriteHalf<Transport>,
        interval: Duration,
        acknowledged: Lsn,
    ) -> (StatusTask, StatusSender) {
        let shared = Arc::new(Shared {
            acknowledged: AtomicU64::new(acknowledged.0),
            received: AtomicU64::new(acknowledged.0),
            ping: AtomicBool::new(false),
            closing: AtomicBool::new(false),
            wake: Notify::new(),
        });
        let task = tokio::spawn(run(socket, interval, Arc::clone(&shared)));
        (StatusTask { task, shared: Arc::clone(&shared) }, StatusSender(shared))
    }

    /// Sends the last status, takes leave of the server, and ends.
    pub(super) async fn close(mut self) {
        self.shared.closing.store(true, Ordering::Release);
        self.shared.wake.notify_one();
        // A server that takes nothing any more is left to the socket's end.
        let _ended_in_time = tokio::time::timeout(CLOSE_WAIT_MAX, &mut self.task).await;
    }
}

impl Drop for StatusTask {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn run(mut socket: WriteHalf<Transport>, interval: Duration, shared: Arc<Shared>) {
    let mut message = BytesMut::new();
    loop {
        // Either the interval is over or somebody woke us: both mean a status now.
        let _elapsed = tokio::time::timeout(interval, shared.wake.notified()).await;
        let closing = shared.closing.load(Ordering::Acquire);
        message.clear();
        encode(&shared, &mut message);
        if closing {
            frontend::copy_done(&mut message);
            frontend::terminate(&mut message);
        }
        let sent = async {
            socket.write_all(&message).await?;
            socket.flush().await
        };
        // A broken socket is reported by the half that reads: it sees the same.
        if sent.await.is_err() || closing {
            return;
        }
    }
}

fn encode(shared: &Shared, message: &mut BytesMut) {
    let acknowledged = shared.acknowledged.load(Ordering::Acquire);
    let written = shared.received.load(Ordering::Relaxed).max(acknowledged);
    let reply = shared.ping.swap(false, Ordering::AcqRel);
    let now = SystemTime::now().duration_since(UNIX_EPOCH + POSTGRES_EPOCH).unwrap_or_default();
    const STATUS_BYTES: u32 = 1 + 8 + 8 + 8 + 8 + 1;
    message.put_u8(b'd');
    message.put_u32(4 + STATUS_BYTES);
    message.put_u8(b'r');
    message.put_u64(written);
    message.put_u64(acknowledged);
    message.put_u64(acknowledged);
    message.put_u64(u64::try_from(now.as_micros()).unwrap_or(u64::MAX));
    message.put_u8(u8::from(reply));
}

//! The half of a replication connection that reads.

use std::time::Duration;

use bytes::{Buf, BytesMut};
use postgres_protocol::message::backend::Message;
use tokio::io::{AsyncReadExt, ReadHalf};
use tokio::time::Instant;

use crate::domain::Lsn;
use crate::postgres::{PgError, PgErrorKind, Transport};
use crate::replication::pgoutput::Malformed;
use crate::replication::status::StatusTask;
use crate::replication::{Assembler, ReplicationError, StatusSender, StreamItem};

/// Room for one read of the socket: many messages per system call.
const READ_BYTES: usize = 256 << 10;

/// A read buffer that had to grow beyond this for one message is given back once it is empty.
const BUFFER_KEEP_MAX: usize = 4 << 20;

/// Postgres builds messages in buffers of at most 1 GiB.
const FRAME_BYTES_MAX: usize = 1 << 30;

/// The buffer grows by at most this much ahead of what has come: a length alone allocates nothing.
const GROW_BYTES_MAX: usize = 8 << 20;

/// Items that one batch holds at most.
const BATCH_ITEMS_MAX: usize = 4096;

/// `wal_sender_timeout` where the server has turned it off.
const WAL_SENDER_TIMEOUT_DEFAULT: Duration = Duration::from_secs(60);

/// Longest time between two status updates (contract 6.9).
const STATUS_INTERVAL_MAX: Duration = Duration::from_secs(15);

/// Timing of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamOptions {
    /// A status is sent at least this often.
    pub status_interval: Duration,
    /// Nothing came for this long, though an answer was asked for after half of it: the connection is
    /// taken for dead.
    pub silence_max: Duration,
}

impl StreamOptions {
    /// What follows from the server's `wal_sender_timeout`; zero means that it is off there.
    #[must_use]
    pub fn for_wal_sender_timeout(timeout: Duration) -> StreamOptions {
        let timeout = if timeout.is_zero() { WAL_SENDER_TIMEOUT_DEFAULT } else { timeout };
        StreamOptions {
            status_interval: (timeout / 3).min(STATUS_INTERVAL_MAX),
            silence_max: timeout.max(Duration::from_secs(10)),
        }
    }
}

/// One message of the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame<'a> {
    XLogData { wal_start: Lsn, wal_end: Lsn, data: &'a [u8] },
    Keepalive { wal_end: Lsn, reply_requested: bool },
}

/// A read of fewer bytes is a small one.
const HASTY_BYTES_MAX: usize = 8 << 10;
/// A small read is a hasty one where the one before was no longer ago.
const HASTY_GAP_MAX: Duration = Duration::from_micros(300);
/// After so many hasty reads the stream pauses before each read, as long as that makes them larger: more
/// than a transaction of some ten rows has, so that only who has much to take in waits.
const HASTY_READS: u32 = 32;
/// Long enough for many messages, short enough for the buffer of the socket and for those who wait for rows.
const PAUSE: Duration = Duration::from_micros(500);

/// Reads frames. Dropping it ends the connection, and with it the lock and a temporary slot.
#[derive(Debug)]
pub struct ReplicationStream {
    socket: ReadHalf<Transport>,
    buffer: BytesMut,
    /// Length of the frame that was handed out last, still at the front of the buffer.
    handed_out: usize,
    status: StatusSender,
    task: StatusTask,
    silence_max: Duration,
    /// When something was last heard or asked for.
    since: Instant,
    pinged: bool,
    pace: Pace,
}

/// Whether reads follow each other so closely that it is better to let more come together first.
///
/// The server sends each message by itself. While it has many to send, waking up for each of them costs
/// both sides more than the messages: the server could have decoded the next one meanwhile. It sends the
/// rows of a transaction one after the other and then reads on for a while, so that a gap does not mean
/// that the burst is over: it halves what is remembered of it.
#[derive(Clone, Copy, Debug, Default)]
struct Pace {
    /// Small reads, each right after the one before.
    hasty: u32,
}

impl Pace {
    /// Takes note of a read of so many bytes, so long after the one before.
    fn read(&mut self, bytes: usize, after: Duration) {
        let small = bytes < HASTY_BYTES_MAX;
        if self.is_hasty() {
            if small {
                // There was little to wait for.
                self.hasty /= 2;
            }
        } else if small && after <= HASTY_GAP_MAX {
            self.hasty += 1;
        } else {
            self.hasty /= 2;
        }
    }

    /// The next read is better made a little later.
    fn is_hasty(self) -> bool {
        self.hasty >= HASTY_READS
    }
}

impl ReplicationStream {
    pub(super) fn new(
        transport: Transport,
        buffer: BytesMut,
        options: StreamOptions,
        acknowledged: Lsn,
    ) -> ReplicationStream {
        let (reader, writer) = tokio::io::split(transport);
        let (task, status) = StatusTask::start(writer, options.status_interval, acknowledged);
        ReplicationStream {
            socket: reader,
            buffer,
            handed_out: 0,
            status,
            task,
            silence_max: options.silence_max,
            since: Instant::now(),
            pinged: false,
            pace: Pace::default(),
        }
    }

    /// The handle with which positions are acknowledged.
    #[must_use]
    pub fn status(&self) -> StatusSender {
        self.status.clone()
    }

    /// The next frame. Requests for an answer are answered with the last acknowledged position before
    /// the frame is handed out. Cancelling loses nothing.
    ///
    /// # Errors
    /// After an error the stream is of no more use.
    pub async fn next(&mut self) -> Result<Frame<'_>, ReplicationError> {
        while !self.has_frame()? {
            self.fill().await?;
        }
        self.pop()?.ok_or(ReplicationError::Malformed(Malformed("an incomplete frame")))
    }

    /// Sends the last status and ends the connection in order.
    pub async fn close(self) {
        self.task.close().await;
    }

    /// Whether [`Self::pop`] has something to hand out; steps over messages that say nothing.
    fn has_frame(&mut self) -> Result<bool, ReplicationError> {
        self.buffer.advance(std::mem::take(&mut self.handed_out));
        while let Some((tag, len)) = frame_len(&self.buffer)? {
            match tag {
                b'd' => return Ok(true),
                b'E' => return Err(server_error(&mut self.buffer)),
                b'c' => return Err(ReplicationError::Ended),
                b'N' | b'S' | b'A' => self.buffer.advance(len),
                _ => return Err(Malformed("an unexpected message in the stream").into()),
            }
        }
        Ok(false)
    }

    /// The next frame that has been read completely.
    pub(super) fn pop(&mut self) -> Result<Option<Frame<'_>>, ReplicationError> {
        if !self.has_frame()? {
            return Ok(None);
        }
        let Some((_, len)) = frame_len(&self.buffer)? else {
            return Ok(None);
        };
        self.handed_out = len;
        let frame = copy_data(&self.buffer[FRAME_HEAD_BYTES..len])?;
        match frame {
            Frame::XLogData { wal_end, .. } => self.status.received(wal_end),
            Frame::Keepalive { wal_end, reply_requested } => {
                self.status.received(wal_end);
                if reply_requested {
                    self.status.repeat();
                }
            }
        }
        Ok(Some(frame))
    }

    /// Reads as much as there is, at least something.
    pub(super) async fn fill(&mut self) -> Result<(), ReplicationError> {
        self.buffer.advance(std::mem::take(&mut self.handed_out));
        if self.buffer.is_empty() && self.buffer.capacity() > BUFFER_KEEP_MAX {
            self.buffer = BytesMut::new();
        }
        let missing = match frame_len(&self.buffer)? {
            Some(_) => 0,
            None => frame_len_declared(&self.buffer).saturating_sub(self.buffer.len()),
        };
        self.buffer.reserve(missing.clamp(READ_BYTES, GROW_BYTES_MAX));
        if self.pace.is_hasty() {
            // The thread sleeps, not the task: a runtime that waits for its tasks is woken up by every message
            // that comes. The stream has a thread of its own, and whoever else is on it can wait that long.
            std::thread::sleep(PAUSE);
        }
        loop {
            let deadline = self.since + self.silence_max / 2;
            // The socket is polled before the deadline: what lies there counts, however late we come.
            match tokio::time::timeout_at(deadline, self.socket.read_buf(&mut self.buffer)).await {
                Ok(Ok(0)) => {
                    return Err(
                        PgError::new(PgErrorKind::Unreachable, "the server closed the connection").into()
                    );
                }
                Ok(Ok(bytes)) => {
                    let now = Instant::now();
                    self.pace.read(bytes, now.duration_since(self.since));
                    (self.since, self.pinged) = (now, false);
                    return Ok(());
                }
                Ok(Err(error)) => return Err(PgError::from_io(&error).into()),
                Err(_) if self.pinged => return Err(ReplicationError::Silent(self.silence_max.as_secs())),
                Err(_) => {
                    self.status.ping();
                    (self.since, self.pinged) = (Instant::now(), true);
                }
            }
        }
    }
}

/// Reads transactions: a [`ReplicationStream`] and its [`Assembler`].
#[derive(Debug)]
pub struct TransactionStream {
    stream: ReplicationStream,
    assembler: Assembler,
}

impl TransactionStream {
    #[must_use]
    pub fn new(stream: ReplicationStream, assembler: Assembler) -> TransactionStream {
        TransactionStream { stream, assembler }
    }

    #[must_use]
    pub fn status(&self) -> StatusSender {
        self.stream.status()
    }

    /// Appends everything that has arrived completely, waiting until there is something. Cancelling
    /// loses nothing as long as `items` is kept.
    ///
    /// # Errors
    /// After an error the stream is of no more use: what was not acknowledged comes again.
    pub async fn next_batch(&mut self, items: &mut Vec<StreamItem>) -> Result<(), ReplicationError> {
        let enough = items.len() + BATCH_ITEMS_MAX;
        let before = items.len();
        loop {
            while items.len() < enough {
                match self.stream.pop()? {
                    Some(frame) => self.assembler.accept(frame, items)?,
                    None => break,
                }
            }
            if items.len() > before {
                return Ok(());
            }
            self.stream.fill().await?;
        }
    }

    /// Sends the last status and ends the connection in order.
    pub async fn close(self) {
        self.stream.close().await;
    }
}

/// Tag u8 and length u32; the length counts itself.
const FRAME_HEAD_BYTES: usize = 5;

/// Tag and total length of the message at the front, once it is there completely.
fn frame_len(buffer: &[u8]) -> Result<Option<(u8, usize)>, Malformed> {
    let Some(head) = buffer.first_chunk::<FRAME_HEAD_BYTES>() else {
        return Ok(None);
    };
    let len = frame_len_declared(head);
    if !(FRAME_HEAD_BYTES..=FRAME_BYTES_MAX).contains(&len) {
        return Err(Malformed("a message of impossible length"));
    }
    Ok((buffer.len() >= len).then_some((head[0], len)))
}

fn frame_len_declared(buffer: &[u8]) -> usize {
    match buffer.first_chunk::<FRAME_HEAD_BYTES>() {
        Some([_, len @ ..]) => (u32::from_be_bytes(*len) as usize).saturating_add(1),
        None => 0,
    }
}

/// The content of a CopyData message: `w` XLogData or `k` keepalive.
fn copy_data(content: &[u8]) -> Result<Frame<'_>, Malformed> {
    const SHORT: Malformed = Malformed("a frame that ends too early");
    let lsn = |at: usize| {
        let bytes = content.get(at..).and_then(|rest| rest.first_chunk::<8>()).ok_or(SHORT)?;
        Ok(Lsn(u64::from_be_bytes(*bytes)))
    };
    match content.first() {
        Some(b'w') => Ok(Frame::XLogData {
            wal_start: lsn(1)?,
            wal_end: lsn(9)?,
            // The server's clock, 8 bytes, is of no use here.
            data: content.get(25..).ok_or(SHORT)?,
        }),
        Some(b'k') => {
            Ok(Frame::Keepalive { wal_end: lsn(1)?, reply_requested: *content.get(17).ok_or(SHORT)? != 0 })
        }
        _ => Err(Malformed("an unknown frame")),
    }
}

fn server_error(buffer: &mut BytesMut) -> ReplicationError {
    match Message::parse(buffer) {
        Ok(Some(Message::ErrorResponse(body))) => PgError::from_fields(body.fields()).into(),
        _ => Malformed("a malformed error of the server").into(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn only_many_small_reads_in_a_row_slow_the_stream_and_only_as_long_as_that_helps() {
        let (at_once, later) = (Duration::from_micros(10), Duration::from_millis(2));
        let mut pace = Pace::default();
        (1..HASTY_READS).for_each(|_| pace.read(300, at_once));
        assert!(!pace.is_hasty());
        pace.read(300, at_once);
        assert!(pace.is_hasty());
        pace.read(HASTY_BYTES_MAX, later);
        assert!(pace.is_hasty(), "much came together");
        pace.read(300, later);
        assert!(!pace.is_hasty(), "there was little to wait for");
        (0..HASTY_READS / 2).for_each(|_| pace.read(300, at_once));
        assert!(pace.is_hasty(), "it was a gap in the burst, not its end");
    }

    #[test]
    fn single_commits_now_and_then_never_slow_the_stream() {
        let mut pace = Pace::default();
        for _ in 0..1_000 {
            pace.read(300, Duration::from_millis(1));
            (0..5).for_each(|_| pace.read(300, Duration::from_micros(20)));
            assert!(!pace.is_hasty());
        }
        // Nor do large reads that follow each other at once: there is nothing to gain.
        (0..1_000).for_each(|_| pace.read(HASTY_BYTES_MAX, Duration::ZERO));
        assert!(!pace.is_hasty());
    }

    #[test]
    fn reads_frames_and_refuses_the_rest() {
        let mut data = vec![b'w'];
        data.extend_from_slice(&7_u64.to_be_bytes());
        data.extend_from_slice(&9_u64.to_be_bytes());
        data.extend_from_slice(&[0; 8]);
        assert_eq!(
            copy_data(&data),
            Ok(Frame::XLogData { wal_start: Lsn(7), wal_end: Lsn(9), data: b"" }),
            "an empty message is still a frame"
        );
        assert!(copy_data(&data[..24]).is_err());
        let mut keepalive = vec![b'k'];
        keepalive.extend_from_slice(&9_u64.to_be_bytes());
        keepalive.extend_from_slice(&[0; 8]);
        assert!(copy_data(&keepalive).is_err());
        keepalive.push(1);
        assert_eq!(copy_data(&keepalive), Ok(Frame::Keepalive { wal_end: Lsn(9), reply_requested: true }));
        assert!(copy_data(b"").is_err() && copy_data(b"z").is_err());
    }

    #[test]
    fn a_length_is_believed_only_within_limits() {
        assert_eq!(frame_len(b"d\0\0\0"), Ok(None));
        assert_eq!(frame_len(b"d\0\0\0\x05"), Ok(None));
        assert_eq!(frame_len(b"d\0\0\0\x05x"), Ok(Some((b'd', 6))));
        assert!(frame_len(b"d\0\0\0\x03").is_err(), "shorter than itself");
        assert!(frame_len(b"d\xff\xff\xff\xff").is_err());
    }

    #[test]
    fn timing_follows_the_server() {
        let of = |millis| StreamOptions::for_wal_sender_timeout(Duration::from_millis(millis));
        assert_eq!(of(60_000).status_interval, Duration::from_secs(15));
        assert_eq!(of(3_000).status_interval, Duration::from_secs(1));
        assert_eq!(of(0), of(60_000));
        assert_eq!(of(3_000).silence_max, Duration::from_secs(10));
    }

    proptest! {
        #[test]
        fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = frame_len(&bytes);
            let _ = copy_data(&bytes);
        }
    }
}

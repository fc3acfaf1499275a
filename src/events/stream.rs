//! Postgres, its replication stream, and what was routed from it.

use serde::{Deserialize, Serialize};

use crate::domain::{Generation, Lsn, Oid, Seq, SidSet, Timestamp, Xid};
use crate::events::Durability;

/// Facts about the connection to Postgres and the transactions that came over it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum StreamEvent {
    #[serde(rename = "pi")]
    Identified { system_id: u64, timeline: u32, server_version: u32, database: Oid },
    /// The advisory lock, inside the ownership of the directory.
    #[serde(rename = "pl")]
    LockAcquired { backend_pid: u32, generation: Generation },
    #[serde(rename = "px")]
    LockLost { generation: Generation },
    #[serde(rename = "so")]
    SlotObserved { name: String, confirmed: Lsn, restart: Lsn, created: bool },
    /// The stream cannot continue from what the shapes hold: every shape is invalidated with it.
    #[serde(rename = "hb")]
    HistoryBroken { cause: HistoryCause },
    /// The server was promoted: its timeline has left the known one at `fork`, and everything that is
    /// here is from before that. The slot continues.
    #[serde(rename = "tf")]
    TimelineFollowed { from: u32, to: u32, fork: Lsn },
    /// Rows were read beside the stream, and clients may have them, with what was committed up to here.
    /// Where a process was killed, the next one cannot know until it has seen that the server is still
    /// the same.
    #[serde(rename = "qu")]
    Queried { upto: Lsn },
    #[serde(rename = "ss")]
    Started { generation: Generation, from: Lsn },
    #[serde(rename = "sx")]
    Stopped { generation: Generation, cause: StopCause, received: Lsn },
    #[serde(rename = "rc")]
    RelationChanged { oid: Oid, old: u64, new: u64 },
    /// A committed transaction and the shapes that must hold it: the obligation exists before the
    /// delivery. `lsn` is the LSN of its commit record.
    #[serde(rename = "r")]
    TxnRouted {
        #[serde(rename = "q")]
        seq: Seq,
        #[serde(rename = "g")]
        generation: Generation,
        #[serde(rename = "l")]
        lsn: Lsn,
        #[serde(rename = "x")]
        xid: Xid,
        #[serde(rename = "c")]
        committed_at: Timestamp,
        #[serde(rename = "n")]
        changes: u64,
        #[serde(rename = "z")]
        bytes: u64,
        #[serde(rename = "s")]
        set: SidSet,
    },
    /// A run of transactions that no shape wanted, up to and including the commit at `upto`.
    #[serde(rename = "rn")]
    RoutedNothing { generation: Generation, upto: Lsn, txns: u64 },
    /// Postgres sent a transaction again that some shapes still owe; it keeps its number.
    #[serde(rename = "rd")]
    TxnRedelivered { seq: Seq, generation: Generation, set: SidSet },
    /// The position reported to Postgres as flushed: it may discard everything before. For a commit
    /// at LSN `c` that is `c + 1`.
    #[serde(rename = "ak")]
    AckSent {
        #[serde(rename = "l")]
        lsn: Lsn,
        #[serde(rename = "c")]
        cause: AckCause,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum HistoryCause {
    /// The slot had to be created although shapes exist.
    #[serde(rename = "n")]
    NewSlot,
    /// The publication had to be created although the slot existed.
    #[serde(rename = "p")]
    NewPublication,
    #[serde(rename = "t")]
    Timeline,
    #[serde(rename = "s")]
    SystemId,
    /// Postgres discarded WAL that the slot needed (`wal_status = lost`).
    #[serde(rename = "l")]
    SlotLost,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum StopCause {
    /// The connection ended or fell silent.
    #[serde(rename = "c")]
    Connection,
    /// Postgres ended it with an error.
    #[serde(rename = "s")]
    Server,
    /// The bytes were not what pgoutput sends.
    #[serde(rename = "p")]
    Protocol,
    /// A spill file could not be written or read.
    #[serde(rename = "f")]
    Spill,
    #[serde(rename = "d")]
    Drain,
    /// Nothing came for so long that the connections were closed; a request opens them again.
    #[serde(rename = "i")]
    Idle,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AckCause {
    #[serde(rename = "c")]
    Commit,
    /// Nothing was pending and Postgres said how far it is.
    #[serde(rename = "k")]
    Keepalive,
}

impl StreamEvent {
    #[must_use]
    pub fn durability(&self) -> Durability {
        match self {
            StreamEvent::LockAcquired { .. }
            | StreamEvent::HistoryBroken { .. }
            | StreamEvent::TimelineFollowed { .. } => Durability::Durable,
            StreamEvent::SlotObserved { created, .. } => {
                if *created {
                    Durability::Durable
                } else {
                    Durability::Lazy
                }
            }
            StreamEvent::LockLost { .. } | StreamEvent::RelationChanged { .. } => Durability::BeforeAck,
            StreamEvent::Identified { .. }
            | StreamEvent::Queried { .. }
            | StreamEvent::Started { .. }
            | StreamEvent::Stopped { .. }
            | StreamEvent::TxnRouted { .. }
            | StreamEvent::RoutedNothing { .. }
            | StreamEvent::TxnRedelivered { .. }
            | StreamEvent::AckSent { .. } => Durability::Lazy,
        }
    }

    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            StreamEvent::Identified { .. } => "PgIdentified",
            StreamEvent::LockAcquired { .. } => "PgLockAcquired",
            StreamEvent::LockLost { .. } => "PgLockLost",
            StreamEvent::SlotObserved { .. } => "SlotObserved",
            StreamEvent::HistoryBroken { .. } => "HistoryBroken",
            StreamEvent::TimelineFollowed { .. } => "TimelineFollowed",
            StreamEvent::Queried { .. } => "Queried",
            StreamEvent::Started { .. } => "StreamStarted",
            StreamEvent::Stopped { .. } => "StreamStopped",
            StreamEvent::RelationChanged { .. } => "RelationChanged",
            StreamEvent::TxnRouted { .. } => "TxnRouted",
            StreamEvent::RoutedNothing { .. } => "RoutedNothing",
            StreamEvent::TxnRedelivered { .. } => "TxnRedelivered",
            StreamEvent::AckSent { .. } => "AckSent",
        }
    }
}

//! Writers: one light incarnation per active shape, many to a thread.

mod classes;
mod pool;
mod thread;

use std::sync::Arc;

use crate::domain::{EventId, Incarnation, Lsn, Seq, Sid};
use crate::engine::Input;
use crate::events::{ExitCause, IntentId};
use crate::runtime::handle::LiveShape;
use crate::runtime::router::RoutedTransaction;
use crate::shape_log::{Prepared, ShapeFiles, StorageFault};

pub use pool::{PoolSettings, WriterPool};
pub use thread::WriterThreads;

/// What the driver asks of the writers.
#[derive(Debug)]
pub enum Command {
    Start {
        sid: Sid,
        incarnation: Incarnation,
        shape: Arc<LiveShape>,
        files: ShapeFiles,
        replay: Vec<(Seq, Arc<RoutedTransaction>)>,
        /// The replay is all that the shape owes: afterwards it is as far as its thread.
        complete: bool,
        /// These and later ones stay owed although they are taken in: more is to follow them.
        owes_from: Option<Seq>,
    },
    /// Transactions of one shape that are taken in together: no flush comes between them.
    Run {
        sid: Sid,
        incarnation: Incarnation,
        run: Vec<(Seq, Arc<RoutedTransaction>)>,
        owes_from: Option<Seq>,
    },
    Deliver {
        seq: Seq,
        routed: Arc<RoutedTransaction>,
        to: Vec<(Sid, Incarnation)>,
    },
    Stop {
        sid: Sid,
        incarnation: Incarnation,
        cause: ExitCause,
    },
    /// Put a generation of the log in the place of the present one.
    Switch {
        sid: Sid,
        incarnation: Incarnation,
        intent: IntentId,
        files: ShapeFiles,
        prepared: Box<Prepared>,
    },
    /// Every commit up to here has been handed out before this command.
    Progress(Lsn),
    /// Which incarnations exist? `asked` goes into the answer.
    Audit {
        asked: EventId,
    },
    /// Make the writer of a shape panic in so many transactions: for tests of the supervision.
    #[cfg(feature = "test-hooks")]
    Sabotage {
        sid: Sid,
        times: u32,
    },
}

/// What the writers tell the driver.
#[derive(Debug)]
pub enum Report {
    Input(Input),
    /// Part of the answer to an audit: the driver puts the parts of all threads together.
    Live {
        asked: EventId,
        live: Vec<(Sid, Incarnation)>,
    },
    /// The log of a shape has grown far beyond its rows.
    CompactionDue {
        sid: Sid,
        incarnation: Incarnation,
    },
    /// A sync failed. What the page cache holds can no longer be trusted, in this process: it must stop.
    SyncFailed(StorageFault),
}

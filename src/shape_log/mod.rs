//! The rows of the shapes: their initial snapshot, the log of their changes, and reading both.
//!
//! Each shape has a directory of its own (files.rs). What is stored are the bytes that go on the
//! wire: JSON messages, each followed by a comma, so that a response body is `[`, a byte range, and
//! `]`. The log is a sequence of checksummed frames (frame.rs), the snapshot a sequence of checksummed
//! blocks (snapshot.rs).
//!
//! * **Whole transactions.** Readers see a transaction when its last frame, which carries the commit
//!   flag, has been appended; recovery drops one that lacks it.
//! * **One body per offset.** Chunk ends follow from the messages alone (contract 1.11) and are kept in
//!   the frames. The same change gets the same offset and the same bytes when it is sent again.
//! * **One load.** A reader takes an immutable view by one atomic load (view.rs).
//! * **Nothing is durable that was not synced.** Every result and byte count is checked; after a
//!   fault a file is not written again (writer.rs, flush.rs).
//! * **Damage is an error.** A torn tail is cut off, damage to what was durable is reported
//!   (recovery.rs).
//!
//! * **Generations.** A log that has grown far beyond its rows is rewritten (compact.rs, rewrite.rs):
//!   every offset stays one that a client may have.
//!
//! This module knows nothing of Postgres connections, the journal, or the engine.

mod compact;
mod disk;
mod encoder;
mod error;
mod files;
mod flush;
mod follow;
mod frame;
mod held;
mod index;
mod json;
mod message;
mod open_files;
mod pack;
mod read_only;
mod reader;
mod recovery;
mod rewrite;
mod scan;
mod shared;
mod shared_encoder;
mod sim_disk;
mod snapshot;
mod tags;
mod view;
mod writer;

#[cfg(test)]
mod tests;

pub use disk::{Disk, DiskFile, FileIdentity, RealDisk};
pub use encoder::{Encoded, Encoder, Op, TransactionHeaders, snapshot_columns, snapshot_end};
pub use error::{EncodeError, FaultClass, FileKind, ShapeLogError, Stage, StorageFault};
pub use files::{
    Quarantined, ShapeFiles, Unsynced, list_quarantined, list_shapes, list_trash, purge, purge_quarantined,
};
pub use flush::{SYNC_EACH_MAX, flush_all};
pub use follow::{Followed, Follower, followed_disk};
pub use held::{HELD_BYTES_MAX, PIECE_BYTES_SMALL, held, held_bytes};
pub use json::messages;
pub use open_files::OpenFiles;
pub use pack::{PACKED_LOG_BYTES_MAX, PACKED_SNAPSHOT_BYTES_MAX, PackedDisk, SEGMENT_BYTES_MAX};
pub use read_only::ReadOnlyDisk;
pub use reader::{Body, Range, Read};
pub use recovery::{Verify, make_durable, open_read_only};
pub use rewrite::{
    COMPACTED_TOGETHER_BYTES_MAX, CompactionPolicy, Preparation, Prepared, Switched, is_compactable, prepare,
};
pub use scan::LogPiece;
pub use shared::{SharedPiece, SharedRows};
pub use shared_encoder::SharedEncoder;
pub use sim_disk::{SimDisk, SimFault};
pub use snapshot::{
    SETTLE_EACH_MAX, SealedSnapshot, SnapshotDone, SnapshotFollow, SnapshotState, SnapshotWriter, settle_all,
};
pub use tags::{Annotation, EVENT_START, Move, RowTags, Unit, move_event};
pub use view::{RECENT_BYTES_MAX, ShapeReader, ShapeView};
pub use writer::{Committed, LogWriter, OPEN_BYTES_MAX, Recovered, TAIL_BYTES_MAX};

/// Default of `ELECTRIC_SHAPE_CHUNK_BYTES_THRESHOLD` (contract 1.11).
pub const CHUNK_BYTES_THRESHOLD_DEFAULT: u64 = 10 << 20;

//! The logical replication stream: a client of its own for the walsender, the decoder of `pgoutput`,
//! the assembly of transactions, and the objects in Postgres that this needs.

mod assembler;
mod client;
mod connection;
mod fence;
mod generated;
mod partitions;
mod pgoutput;
mod publication;
mod slot;
mod spill;
mod standing;
mod status;
mod stream;

use std::io;

pub use assembler::{Assembler, SPILL_BYTES_DEFAULT, StreamItem};
pub use client::{ReplicationClient, SystemIdentity, TextRow};
pub use connection::{
    HistoryBroken, Ready, ReplicationSettings, StartupNotice, connect_and_identify, is_lock_held,
};
pub use fence::Fence;
pub use generated::check_generated;
pub use partitions::{came_without_rows, partition_tree, tables_above};
pub use pgoutput::{Head, Malformed};
pub use publication::{
    EnsuredTable, PublicationInfo, PublishedTable, drop_table, ensure_publication, ensure_table,
    published_tables, set_identity_full,
};
pub use slot::{Failover, SlotInfo, publication_name, random_slot_name, slot_name};
pub use spill::Transaction;
pub use standing::{Standing, lacking_identity, published_relations, standings};
pub use status::StatusSender;
pub use stream::{Frame, ReplicationStream, StreamOptions, TransactionStream};

use crate::domain::RelationName;
use crate::postgres::{PgError, PgErrorKind};

/// What can go wrong between Postgres' log and a [`Transaction`].
#[derive(Debug, thiserror::Error)]
pub enum ReplicationError {
    #[error(transparent)]
    Postgres(#[from] PgError),
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// The server ended the stream in order, as it does at shutdown.
    #[error("the server ended the replication stream")]
    Ended,
    /// A slot that is made here, or the end of a shape that is decided upon here, would be wrong as soon as
    /// the primary is asked.
    #[error(
        "the server is a standby: streaming begins when it has been promoted, or when DATABASE_URL leads to the primary"
    )]
    Standby,
    /// Nothing came for longer than the server's own limit, though an answer was asked for.
    #[error("the replication connection is silent: nothing came for {0} s")]
    Silent(u64),
    #[error("cannot write a large transaction to disk: {0}")]
    Spill(#[source] io::Error),
    #[error("Publication \"{0}\" not found in the database")]
    PublicationNotFound(String),
    #[error("Publication \"{0}\" does not publish all required operations: INSERT, UPDATE, DELETE, TRUNCATE")]
    PublicationIncomplete(String),
    /// Contract 4.4, table not in the publication.
    #[error(
        "Database table \"{table}\" is missing from the publication \"{publication}\" and {}",
        if *.manual {
            "the ELECTRIC_MANUAL_TABLE_PUBLISHING setting prevents Electric from adding it"
        } else {
            "Electric lacks privileges to add it"
        }
    )]
    NotPublished { table: RelationName, publication: String, manual: bool },
    #[error("Database table \"{0}\" does not have its replica identity set to FULL")]
    IdentityNotFull(RelationName),
    #[error("Database table \"{0}\" has been dropped or renamed")]
    TableGone(RelationName),
    /// An unlogged or foreign table, or a partition that is one.
    #[error(
        "Database table \"{table}\" cannot be followed: Postgres does not log the changes of \"{member}\", which is an unlogged or a foreign table"
    )]
    NotReplicated { table: RelationName, member: RelationName },
    /// A partition in a publication with `publish_via_partition_root`.
    #[error(
        "Database table \"{table}\" cannot be followed: the publication \"{publication}\" has publish_via_partition_root set, so its changes come under the name of its partitioned table"
    )]
    PublishedAsRoot { table: RelationName, publication: String },
    #[error(
        "Database table \"{table}\" cannot be followed: the publication \"{publication}\" has a row filter or a list of columns for it"
    )]
    Narrowed { table: RelationName, publication: String },
    /// Contract 4.4, Postgres 18 and later.
    #[error(
        "Publication \"{0}\" does not publish generated columns. This is a feature introduced in PostgreSQL 18 and requires setting the publication parameter 'publish_generated_columns' to 'stored'. Alternatively, you can exclude them from the shape by explicitly listing which columns to fetch in the 'columns' query param."
    )]
    GeneratedNotPublished(String),
    /// Since Postgres 18: "Replica identity must not contain unpublished generated columns".
    #[error(
        "Database table \"{0}\" has generated columns that are not published: with its replica identity set to FULL, Postgres would refuse to update or delete its rows"
    )]
    GeneratedBlocksWrites(RelationName),
    #[error("Snapshot timed out while waiting for a table lock")]
    LockTimeout,
    /// Transactions that wrote to the table before it was published are still open.
    #[error("transactions that wrote to the table before it was published are still open after {0} s")]
    FenceTimeout(u64),
}

impl ReplicationError {
    /// Trying again cannot help before somebody changes something (contract 6.9).
    #[must_use]
    pub fn fatal(&self) -> bool {
        match self {
            ReplicationError::Postgres(error) => error.fatal(),
            ReplicationError::PublicationNotFound(_) | ReplicationError::PublicationIncomplete(_) => true,
            ReplicationError::Malformed(_)
            | ReplicationError::Ended
            | ReplicationError::Standby
            | ReplicationError::Silent(_)
            | ReplicationError::Spill(_)
            | ReplicationError::NotPublished { .. }
            | ReplicationError::IdentityNotFull(_)
            | ReplicationError::NotReplicated { .. }
            | ReplicationError::PublishedAsRoot { .. }
            | ReplicationError::Narrowed { .. }
            | ReplicationError::GeneratedNotPublished(_)
            | ReplicationError::GeneratedBlocksWrites(_)
            | ReplicationError::TableGone(_)
            | ReplicationError::LockTimeout
            | ReplicationError::FenceTimeout(_) => false,
        }
    }

    /// What Postgres refused, where it was Postgres.
    #[must_use]
    pub fn postgres_kind(&self) -> Option<PgErrorKind> {
        match self {
            ReplicationError::Postgres(error) => Some(error.kind()),
            _ => None,
        }
    }
}

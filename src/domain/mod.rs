//! The values that every module speaks. Pure: no clock, no IO, no randomness.
//!
//! Words follow Postgres and the wire contract: an [`Lsn`] is a position in the write-ahead log, an
//! [`Offset`] a position in the log of one shape, a [`Handle`] the name of a shape on the wire, a
//! [`Sid`] its dense number inside one journal.

mod change;
mod fnv;
mod identifier;
mod ids;
mod lineage;
mod lsn;
mod offset;
mod partitions;
mod relation;
mod shape;
mod sid_set;
mod time;
mod visibility;

pub use change::{Change, Tuple, TupleBuilder, Value};
pub use identifier::{IdentifierError, parse_column_list, parse_identifier, parse_relation_name};
pub use ids::{Epoch, EventId, Generation, Incarnation, Oid, Seq, Sid, Xid};
pub use lineage::Lineage;
pub use lsn::{Lsn, ParseLsnError};
pub use offset::{Offset, OffsetError, Op};
pub use partitions::{Partition, PartitionTree};
pub use relation::quote_identifier;
pub use relation::{BaseType, Column, Relation, RelationName, Storage, WireColumn, WireRelation};
pub use shape::{DefinitionHash, Handle, HandleError, LogMode, Replica, ShapeDefinition};
pub use sid_set::SidSet;
pub use time::{MICROS_PER_DAY, ParseTimestampError, Timestamp, micros_of_day};
pub use visibility::PgSnapshot;

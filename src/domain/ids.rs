//! Dense numbers. Each is a type of its own, so that none can stand in for another.

use std::fmt;

use serde::{Deserialize, Serialize};

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
        )]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl $name {
            /// The number after this one. Panics on overflow: running out is a bug, never a wrap.
            #[must_use]
            pub fn next(self) -> Self {
                Self(self.0.checked_add(1).expect(concat!(stringify!($name), " overflow")))
            }
        }

        /// The bare number: the field that it stands in says what it is.
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }
    };
}

number! {
    /// Position of an event in the journal: dense, from 1, over all epochs.
    EventId(u64)
}
number! {
    /// Number of one ownership of a data directory. Strictly increases; written under the file lock.
    Epoch(u64)
}
number! {
    /// Dense number of a routed transaction: the journal's own clock for flush accounting, from 1.
    Seq(u64)
}
number! {
    /// Dense number of a shape inside one journal. Never reused.
    Sid(u32)
}
number! {
    /// Number of a writer incarnation of one shape, from 1. Strictly increases per shape.
    Incarnation(u32)
}
number! {
    /// Number of a replication stream connection, from 1. Strictly increases over the journal.
    Generation(u32)
}
number! {
    /// Object identifier of a Postgres relation or type.
    Oid(u32)
}
number! {
    /// 32-bit transaction id as the replication stream carries it. Compare only after widening:
    /// see [`crate::domain::PgSnapshot`].
    Xid(u32)
}

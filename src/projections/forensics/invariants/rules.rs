//! The rules by name.

use std::fmt;

use crate::domain::{EventId, Sid, Timestamp};

/// The rules, by their names in the design: O ownership, S stream, L shape, R writer, N snapshot,
/// F flush, J the journal itself. Those that no journal can show (R5, L6, P1 to P6) are watched by the
/// simulator: see `docs/invariants.md`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Invariant {
    /// Events are numbered without gaps, and name only earlier ones as their reason.
    J1,
    /// A projection equals the fold.
    J2,
    /// Epochs strictly increase, and do not overlap.
    O1,
    /// An event carries the epoch that is held.
    O2,
    /// Destruction is announced, with an allowed cause, before it is done.
    O3,
    /// Ownership is released with no writer left and no destruction under way, and nothing follows.
    O4,
    /// Starting is no reason to end a living shape or to remove anything, whatever the version, and no
    /// older layout follows a newer one.
    O5,
    /// After the directory was seen to be gone nothing is blamed for it and nothing removed; while
    /// draining no missing file is.
    O6,
    /// Who does not own the directory writes no event.
    O7,
    /// Nothing is streamed, routed or acknowledged without the advisory lock.
    O8,
    /// Routed transactions are numbered without gaps and ascend by LSN.
    S1,
    /// What a shape owes has one outcome: none is handed out again after it, and none goes without.
    S2,
    /// A transaction comes on the present stream only, and a flush counts for a writer that has begun.
    S3,
    /// What a writer took with it is handed to its successor before it counts as flushed; what Postgres
    /// will not send again ends the shape.
    S4,
    /// A keepalive is acknowledged only while nothing is owed.
    S5,
    /// A shape goes through its life in order.
    L1,
    /// A handle is newer than every handle before it.
    L2,
    /// A journal that lost what had been durable ends every shape: clients may know more than it.
    L3,
    /// Nothing is routed to a shape that is not routed.
    L4,
    /// A shape ends with the shapes of its inner queries, and is not made with one that has ended.
    L5,
    /// A snapshot that a start finds unfinished ends its shape.
    L7,
    /// Only the living writer speaks, numbers are not left out, and a restart has something to replay.
    R1,
    /// A shape has at most one writer, and its number is new.
    R2,
    /// Who a transaction is routed to has a writer that takes it, gets one, or ends.
    R3,
    /// A writer that owes something is not put to sleep.
    R4,
    /// Nothing that the snapshot contains is routed to the shape, and nothing is written before that is
    /// known.
    N1,
    /// The snapshot is taken after routing began.
    N2,
    /// The snapshot is taken once its table is published and who had written to it before has ended.
    N3,
    /// The snapshot has what was decoded before the shape was routed.
    N4,
    /// What waits for a snapshot is bounded.
    N5,
    /// A snapshot whose files failed is not complete.
    N6,
    /// An acknowledgement covers nothing that is owed.
    F1,
    /// Who owes something has a writer, or a restart or a redelivery to come.
    F2,
    /// Who is suspected of a stall gets on, or is ended, in bounded time.
    F3,
    /// The end of a writer tells what it owed, whatever the way it ended.
    F4,
    /// Where the acknowledgement may stand is the same counted anew.
    F5,
    /// Acknowledgements ascend.
    F6,
    /// What a shape has flushed is not held against it.
    F7,
    /// After a write or a sync that failed nothing is flushed by the same writer.
    F8,
    /// An acknowledgement is a transaction boundary that the fold arrives at, too.
    F9,
    /// Nobody holds the log of Postgres for long without being named.
    F10,
}

impl Invariant {
    /// All of them, by topic.
    pub const ALL: [Invariant; 41] = {
        use Invariant::{
            F1, F2, F3, F4, F5, F6, F7, F8, F9, F10, J1, J2, L1, L2, L3, L4, L5, L7, N1, N2, N3, N4, N5, N6,
            O1, O2, O3, O4, O5, O6, O7, O8, R1, R2, R3, R4, S1, S2, S3, S4, S5,
        };
        [
            J1, J2, O1, O2, O3, O4, O5, O6, O7, O8, S1, S2, S3, S4, S5, L1, L2, L3, L4, L5, L7, R1, R2, R3,
            R4, N1, N2, N3, N4, N5, N6, F1, F2, F3, F4, F5, F6, F7, F8, F9, F10,
        ]
    };

    /// Whether it is about who owns the directory: what surrounds a breach is the events of owners.
    #[must_use]
    pub fn is_of_ownership(self) -> bool {
        use Invariant::{O1, O2, O4, O5, O6, O7};
        matches!(self, O1 | O2 | O4 | O5 | O6 | O7)
    }
}

impl fmt::Display for Invariant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

/// A rule that does not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    pub invariant: Invariant,
    /// The event that broke it, and when that was.
    pub event: EventId,
    pub at: Timestamp,
    /// The shape that it is about, where it is about one.
    pub sid: Option<Sid>,
    pub detail: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} broken by event {}: {}", self.invariant, self.event, self.detail)
    }
}

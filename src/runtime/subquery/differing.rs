//! Where the rows of a shape do not yet follow from what its inner queries give.
//!
//! A shape does not keep its own copy of what it was made with: that is what the inner query gives now,
//! except for the values in here. By their hash, since that is what the log of the shape tells about them
//! after a restart.

use std::collections::{BTreeMap, BTreeSet};

use crate::domain::{Lsn, Xid};
use crate::filter::subquery::{Digest, Values};
use crate::runtime::subquery::members::{Flip, Members};

/// The values of one inner query about which a shape and the query differ.
#[derive(Debug, Default)]
pub struct Differing {
    entries: BTreeMap<Digest, Entry>,
}

/// One of them.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Unknown where only the log of the shape has told of it; the query does not give it then.
    pub values: Option<Values>,
    /// The transaction that made the difference; the shape owes it.
    pub cause: Lsn,
    pub xids: BTreeSet<u32>,
}

impl Entry {
    /// The query gives it now, and the shape was made without it; or the other way round.
    #[must_use]
    pub fn is_selected(&self, members: &Members) -> bool {
        self.values.as_ref().is_some_and(|values| members.is_selected(values))
    }

    /// Whether it has a NULL in it.
    #[must_use]
    pub fn is_partial(&self) -> bool {
        self.values.as_ref().is_some_and(|values| values.iter().any(Option::is_none))
    }
}

impl Differing {
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    #[must_use]
    pub fn contains(&self, digest: &Digest) -> bool {
        self.entries.contains_key(digest)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&Digest, &Entry)> {
        self.entries.iter()
    }

    pub fn insert(&mut self, digest: Digest, values: Option<Values>, cause: Lsn, xids: BTreeSet<u32>) {
        self.entries.insert(digest, Entry { values, cause, xids });
    }

    pub fn remove(&mut self, digest: &Digest) -> Option<Entry> {
        self.entries.remove(digest)
    }

    /// The query has come to give a value, or no longer does. What moves back before the shape has followed
    /// is no move.
    pub fn turn(&mut self, digest: Digest, flip: &Flip, cause: Lsn, xids: &BTreeSet<u32>) {
        if self.entries.remove(&digest).is_none() {
            let values = Some(flip.values.clone());
            self.entries.insert(digest, Entry { values, cause, xids: xids.clone() });
        }
    }
}

/// One transaction id as a set.
#[must_use]
pub fn only(xid: Xid) -> BTreeSet<u32> {
    BTreeSet::from([xid.0])
}

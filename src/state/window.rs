//! The window of routed transactions that are not yet acknowledged.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use crate::domain::{Lsn, Seq, SidSet, Xid};

/// A routed transaction.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Txn {
    /// LSN of its commit record.
    pub lsn: Lsn,
    pub xid: Xid,
    /// Number of shapes that still have it pending. Invariant: equals the number of shapes whose
    /// `pending` contains its number; moved by routing, flushing, invalidation and visibility.
    pub owed: u32,
    /// The shapes that it was routed to.
    pub set: SidSet,
}

/// Transactions `base..base + len`, oldest first. Invariant: the oldest is owed by some shape; what
/// nobody owes any more leaves from the front.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Window {
    base: Seq,
    txns: VecDeque<Txn>,
    /// One past the newest commit before the oldest transaction in the window.
    boundary: Lsn,
}

impl Window {
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.txns.is_empty()
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.txns.len()
    }

    #[must_use]
    pub fn get(&self, seq: Seq) -> Option<&Txn> {
        self.txns.get(self.index(seq)?)
    }

    /// The oldest transaction and its number.
    #[must_use]
    pub fn oldest(&self) -> Option<(Seq, &Txn)> {
        Some((self.base, self.txns.front()?))
    }

    /// Oldest first, with their numbers.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (Seq, &Txn)> {
        self.txns.iter().enumerate().map(|(index, txn)| (Seq(self.base.0 + index as u64), txn))
    }

    /// The transaction whose commit record stands at `lsn`.
    #[must_use]
    pub fn find(&self, lsn: Lsn) -> Option<(Seq, &Txn)> {
        let index = self.txns.binary_search_by_key(&lsn, |txn| txn.lsn).ok()?;
        Some((Seq(self.base.0 + index as u64), &self.txns[index]))
    }

    /// One past the newest commit that precedes everything owed; meaningless while nothing is owed.
    #[must_use]
    pub fn boundary(&self) -> Lsn {
        self.boundary
    }

    pub(super) fn push(&mut self, seq: Seq, txn: Txn) {
        // A journal with a gap in its numbers still folds: the gap is filled with owed-by-nobody.
        if self.txns.is_empty() {
            self.base = seq;
        }
        while self.base.0 + (self.txns.len() as u64) < seq.0 && self.txns.len() < GAP_MAX {
            self.txns.push_back(Txn { lsn: txn.lsn, xid: txn.xid, owed: 0, set: SidSet::new() });
        }
        self.txns.push_back(txn);
        self.trim();
    }

    /// One shape no longer owes `seq`.
    pub(super) fn discharge(&mut self, seq: Seq) {
        if let Some(index) = self.index(seq) {
            self.txns[index].owed = self.txns[index].owed.saturating_sub(1);
        }
    }

    /// Lets go of what nobody owes, from the front.
    pub(super) fn trim(&mut self) {
        while let Some(txn) = self.txns.front()
            && txn.owed == 0
        {
            self.boundary = self.boundary.max(Lsn(txn.lsn.0.saturating_add(1)));
            self.txns.pop_front();
            self.base = self.base.next();
        }
    }

    /// Commits before `lsn` precede everything owed; only meaningful while the window is empty.
    pub(super) fn passed(&mut self, lsn: Lsn) {
        if self.txns.is_empty() {
            self.boundary = self.boundary.max(lsn);
        }
    }

    fn index(&self, seq: Seq) -> Option<usize> {
        let index = usize::try_from(seq.0.checked_sub(self.base.0)?).ok()?;
        (index < self.txns.len()).then_some(index)
    }
}

/// A damaged journal must not make the fold allocate without bound.
const GAP_MAX: usize = 1 << 20;

//! A model of Postgres: transactions that run, commit, are decoded, and become visible, in that
//! order and with time between; one slot; one publication.

use std::collections::{BTreeMap, BTreeSet};

use crate::domain::{DefinitionHash, Lsn, Oid, PgSnapshot, Timestamp, Xid};

use crate::testing::model::choices::Choices;

pub const TABLES: u64 = 3;
pub const DEFINITIONS: u64 = 12;

/// The table that a definition is on, and the keys that it wants.
pub fn definition(hash: DefinitionHash) -> (Oid, u8) {
    let masks = [0xFF, 0x0F, 0xF1, 0x01];
    let oid = Oid(100 + u32::try_from(hash.0 % TABLES).expect("few tables"));
    (oid, masks[usize::try_from(hash.0 / TABLES).expect("few definitions") % masks.len()])
}

#[derive(Clone, Debug)]
pub struct Row {
    pub oid: Oid,
    pub key: u8,
    /// The table was published when the row was written.
    pub published: bool,
}

#[derive(Clone, Debug)]
pub struct Txn {
    pub xid: u64,
    pub rows: Vec<Row>,
    pub truncated: Vec<Oid>,
    pub old_row_missing: Vec<Oid>,
}

/// A transaction with a commit record, and so decodable.
#[derive(Clone, Debug)]
pub struct Committed {
    pub lsn: Lsn,
    pub txn: Txn,
    pub at: Timestamp,
    pub visible: bool,
}

impl Committed {
    pub fn xid(&self) -> Xid {
        Xid(self.txn.xid as u32)
    }

    /// Whether it wrote a row that the definition wants.
    pub fn concerns(&self, hash: DefinitionHash) -> bool {
        self.any_row(hash, |_| true)
    }

    /// The same, of what the publication lets through.
    pub fn matches(&self, hash: DefinitionHash) -> bool {
        self.any_row(hash, |row| row.published)
    }

    fn any_row(&self, hash: DefinitionHash, also: impl Fn(&Row) -> bool) -> bool {
        let (oid, mask) = definition(hash);
        self.txn.rows.iter().any(|row| row.oid == oid && mask & (1 << row.key) != 0 && also(row))
    }

    /// Whether a shape on this table cannot go on after it.
    pub fn ends(&self, oid: Oid) -> bool {
        self.txn.truncated.contains(&oid) || self.txn.old_row_missing.contains(&oid)
    }

    pub fn tables(&self) -> Vec<Oid> {
        let published = self.txn.rows.iter().filter(|row| row.published).map(|row| row.oid);
        let tables: BTreeSet<Oid> = published.chain(self.txn.truncated.iter().copied()).collect();
        tables.into_iter().collect()
    }
}

/// What a snapshot says, and what it really contains.
#[derive(Clone, Debug)]
pub struct Snapshot {
    pub snapshot: PgSnapshot,
    pub lsn: Lsn,
    pub contains: BTreeSet<Lsn>,
    pub history: u64,
}

pub struct Postgres {
    pub system_id: u64,
    pub timeline: u32,
    /// Changes whenever positions lose their meaning.
    pub history: u64,
    next_xid: u64,
    latest_completed: u64,
    pub insert: Lsn,
    pub running: Vec<Txn>,
    pub wal: Vec<Committed>,
    pub slot: Option<Slot>,
    pub publication_dropped: bool,
    /// Published tables, and the transactions that had written to each before it was.
    published: BTreeMap<Oid, BTreeSet<u64>>,
}

#[derive(Clone, Copy)]
pub struct Slot {
    pub confirmed: Lsn,
    /// What a checkpoint has of it: a crash of Postgres goes back to this.
    pub persisted: Lsn,
    pub lost: bool,
}

impl Postgres {
    /// Transaction ids begin a little before they wrap around 32 bits.
    pub(super) fn new() -> Postgres {
        let next_xid = (2 << 32) - 20;
        Postgres {
            system_id: 1,
            timeline: 1,
            history: 1,
            next_xid,
            latest_completed: next_xid - 1,
            insert: Lsn(1_000),
            running: Vec::new(),
            wal: Vec::new(),
            slot: None,
            publication_dropped: false,
            published: BTreeMap::new(),
        }
    }

    pub fn begin(&mut self, choices: &mut Choices) {
        let mut txn =
            Txn { xid: self.next_xid, rows: Vec::new(), truncated: Vec::new(), old_row_missing: Vec::new() };
        self.next_xid += 1;
        for _ in 0..choices.below(4) {
            let oid = Oid(100 + choices.below(TABLES as usize) as u32);
            let key = choices.below(8) as u8;
            let published = self.published.contains_key(&oid);
            txn.rows.push(Row { oid, key, published });
        }
        let oid = Oid(100 + choices.below(TABLES as usize) as u32);
        if self.published.contains_key(&oid) {
            match choices.below(40) {
                38 => txn.truncated.push(oid),
                39 => txn.old_row_missing.push(oid),
                _ => {}
            }
        }
        if let Some(missing) = txn.old_row_missing.first() {
            txn.rows.push(Row { oid: *missing, key: 0, published: true });
        }
        self.running.push(txn);
    }

    pub fn commit(&mut self, index: usize, now: Timestamp, gap: u64) {
        let txn = self.running.remove(index);
        let lsn = Lsn(self.insert.0 + 1 + gap);
        self.insert = Lsn(lsn.0 + 2);
        self.wal.push(Committed { lsn, txn, at: now, visible: false });
    }

    pub fn abort(&mut self, index: usize) {
        let txn = self.running.remove(index);
        self.latest_completed = self.latest_completed.max(txn.xid);
    }

    pub fn reveal(&mut self, index: usize) {
        let committed = &mut self.wal[index];
        committed.visible = true;
        self.latest_completed = self.latest_completed.max(committed.txn.xid);
    }

    pub fn reveal_before(&mut self, time: Timestamp) {
        for index in 0..self.wal.len() {
            if !self.wal[index].visible && self.wal[index].at <= time {
                self.reveal(index);
            }
        }
    }

    pub fn invisible(&self) -> Vec<usize> {
        (0..self.wal.len()).filter(|index| !self.wal[*index].visible).collect()
    }

    /// Ids that hold locks and are not visible.
    fn unfinished(&self) -> impl Iterator<Item = &Txn> {
        let waiting = self.wal.iter().filter(|committed| !committed.visible).map(|committed| &committed.txn);
        self.running.iter().chain(waiting)
    }

    pub fn snapshot(&self) -> Snapshot {
        let xmax = self.latest_completed + 1;
        let mut xip: Vec<u64> = self.unfinished().map(|txn| txn.xid).filter(|xid| *xid < xmax).collect();
        xip.sort_unstable();
        let xmin = xip.first().copied().unwrap_or(xmax);
        Snapshot {
            snapshot: PgSnapshot { xmin, xmax, xip },
            lsn: self.insert,
            contains: self.wal.iter().filter(|txn| txn.visible).map(|txn| txn.lsn).collect(),
            history: self.history,
        }
    }

    pub fn publish(&mut self, oid: Oid) {
        if !self.published.contains_key(&oid) {
            let wrote = |txn: &&Txn| txn.rows.iter().any(|row| row.oid == oid);
            let fence = self.unfinished().filter(wrote).map(|txn| txn.xid).collect();
            self.published.insert(oid, fence);
        }
    }

    pub fn drop_publication(&mut self) {
        self.published.clear();
        self.publication_dropped = true;
    }

    pub fn unpublish(&mut self, oid: Oid) {
        self.published.remove(&oid);
    }

    /// Whether every transaction that wrote to the table before it was published has ended (N3).
    pub fn fence_passed(&self, oid: Oid) -> bool {
        self.published.get(&oid).is_some_and(|fence| !self.unfinished().any(|txn| fence.contains(&txn.xid)))
    }

    /// The next commit that a stream which has sent everything before `at` sends.
    pub fn decode(&self, at: Lsn) -> Option<&Committed> {
        self.wal.iter().find(|committed| committed.lsn >= at)
    }

    pub fn confirm(&mut self, lsn: Lsn) {
        if let Some(slot) = &mut self.slot {
            slot.confirmed = slot.confirmed.max(lsn);
        }
    }

    /// Running transactions are gone, and the slot is where the last checkpoint had it.
    pub fn crash(&mut self) {
        self.next_xid += self.running.len() as u64;
        self.running.clear();
        for index in self.invisible() {
            self.reveal(index);
        }
        self.latest_completed = self.next_xid - 1;
        if let Some(slot) = &mut self.slot {
            slot.confirmed = slot.persisted;
        }
    }

    /// Another server behind the same address, or the same one restored to an earlier point.
    pub fn replace(&mut self, timeline_only: bool) {
        let fresh = Postgres::new();
        let published = std::mem::take(&mut self.published);
        let slot =
            timeline_only.then_some(Slot { confirmed: fresh.insert, persisted: fresh.insert, lost: false });
        *self = Postgres {
            system_id: if timeline_only { self.system_id } else { self.system_id + 1 },
            timeline: if timeline_only { self.timeline + 1 } else { self.timeline },
            history: self.history + 1,
            published: published.into_keys().map(|oid| (oid, BTreeSet::new())).collect(),
            slot,
            ..fresh
        };
    }
}

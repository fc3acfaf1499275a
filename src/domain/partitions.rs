//! What is below a partitioned table, and whether it is still what it was.

use crate::domain::fnv::Fnv;
use crate::domain::{Oid, RelationName};

/// A partitioned table with everything below it, as the catalog has it at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartitionTree {
    pub table: Oid,
    /// All levels. The one that has been attached longest comes first.
    pub partitions: Vec<Partition>,
    /// The publication gives changes of partitions the name of the table.
    pub as_root: bool,
}

/// A partition, or a partitioned table that is one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partition {
    pub oid: Oid,
    pub name: RelationName,
    pub parent: Oid,
    /// The transaction that attached it: another one attaches it again, should it be detached.
    pub attached_by: u32,
    /// Number of its file, where that is asked for: TRUNCATE gives it another one.
    pub file: u32,
    /// It holds rows itself.
    pub holds_rows: bool,
    pub identity_full: bool,
    /// Its changes are written to the log: it is no foreign and no unlogged table.
    pub logged: bool,
}

impl PartitionTree {
    /// The oids whose changes are changes of the table, ascending; its own among them.
    #[must_use]
    pub fn members(&self) -> Vec<Oid> {
        let mut members: Vec<Oid> = self.partitions.iter().map(|partition| partition.oid).collect();
        members.push(self.table);
        members.sort_unstable();
        members
    }

    /// A stable hash of what is below the table and since when.
    #[must_use]
    pub fn hash(&self) -> u64 {
        self.hashes().last().unwrap_or_default()
    }

    /// The partitions that were attached since the tree had that hash; `None` where one that was there
    /// then is gone or has been attached anew.
    #[must_use]
    pub fn grown_since(&self, known: u64) -> Option<&[Partition]> {
        let same = self.hashes().position(|hash| hash == known)?;
        Some(&self.partitions[same..])
    }

    /// Of none of the partitions, of the first, of the first two, … of all.
    fn hashes(&self) -> impl Iterator<Item = u64> + '_ {
        let mut hash = Fnv::new();
        hash.number(u64::from(self.table.0));
        let none = hash.finish();
        let more = self.partitions.iter().map(move |partition| {
            hash.number(u64::from(partition.oid.0));
            hash.number(u64::from(partition.parent.0));
            hash.number(u64::from(partition.attached_by));
            hash.number(u64::from(partition.file));
            hash.finish()
        });
        std::iter::once(none).chain(more)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn partition(oid: u32, attached_by: u32) -> Partition {
        Partition {
            oid: Oid(oid),
            name: RelationName { schema: "public".to_owned(), table: format!("p{oid}") },
            parent: Oid(1),
            attached_by,
            file: 0,
            holds_rows: true,
            identity_full: true,
            logged: true,
        }
    }

    fn tree(partitions: &[(u32, u32)]) -> PartitionTree {
        let partitions = partitions.iter().map(|(oid, attached_by)| partition(*oid, *attached_by)).collect();
        PartitionTree { table: Oid(1), partitions, as_root: false }
    }

    #[test]
    fn more_partitions_are_told_from_other_ones() {
        let before = tree(&[(10, 100), (20, 101)]);
        let added = |now: &[(u32, u32)]| {
            let now = tree(now);
            now.grown_since(before.hash()).map(|added| added.iter().map(|p| p.oid.0).collect::<Vec<_>>())
        };
        assert_eq!(added(&[(10, 100), (20, 101)]), Some(vec![]));
        assert_eq!(added(&[(10, 100), (20, 101), (5, 102), (30, 103)]), Some(vec![5, 30]));
        assert_eq!(added(&[(10, 100)]), None, "one is gone");
        assert_eq!(added(&[(10, 100), (20, 105)]), None, "one was away meanwhile");
        assert_eq!(added(&[]), None);
        let moved = Partition { parent: Oid(2), ..partition(20, 101) };
        let moved = PartitionTree { partitions: vec![partition(10, 100), moved], ..tree(&[]) };
        assert_eq!(moved.grown_since(before.hash()), None);
        let none = tree(&[]);
        assert_eq!(before.grown_since(none.hash()).map(<[Partition]>::len), Some(2));
        assert_ne!(none.hash(), PartitionTree { table: Oid(2), ..tree(&[]) }.hash());
    }

    #[test]
    fn members_are_ascending_and_have_the_table() {
        assert_eq!(tree(&[(20, 1), (10, 2)]).members(), [Oid(1), Oid(10), Oid(20)]);
    }
}

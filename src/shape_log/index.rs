//! Marks: where in the log which offsets are. The file `log.idx` keeps them, 64 bytes each.
//!
//! A mark covers the frames from its start to its end; marks follow each other without gap. One is
//! made at each chunk end and wherever 64 KiB of log have come together. The file is derived data:
//! where it is missing or torn it is built again from the frames. A record is appended only after
//! the frames it covers were synced, so a valid record also proves that they were durable.
//!
//! | at | bytes | field (little endian) |
//! |---|---|---|
//! | 0 | 1 | version, 1 |
//! | 1 | 1 | flags: 1 chunk end, 2 the end is the end of a transaction, 4 it is that of a compacted part |
//! | 2 | 2 | zero |
//! | 4 | 4 | crc32c of bytes 8 to 64, seeded with bytes 0 to 4 |
//! | 8 | 16 | first offset: transaction, operation |
//! | 24 | 16 | last offset |
//! | 40 | 8 | start in the log file |
//! | 48 | 8 | end in the log file |
//! | 56 | 8 | size of the running chunk at the end; 0 after a chunk end |

use std::sync::Arc;

use crate::domain::{Lsn, Offset};

use super::frame::FrameHeader;

pub(crate) const RECORD_LEN: usize = 64;
/// Log bytes after which a mark is made although no chunk ended.
const MARK_BYTES: u64 = 64 << 10;
const VERSION: u8 = 1;
const CHUNK_END: u8 = 1;
const COMMIT: u8 = 2;
const COMPACTED: u8 = 4;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mark {
    pub chunk_end: bool,
    pub commit: bool,
    pub compacted: bool,
    pub first: (Lsn, u64),
    pub last: (Lsn, u64),
    pub start: u64,
    pub end: u64,
    pub chunk_bytes: u64,
}

impl Mark {
    pub fn last_offset(&self) -> Offset {
        Offset::new(self.last.0, self.last.1)
    }

    pub fn encode(&self) -> [u8; RECORD_LEN] {
        let mut out = [0; RECORD_LEN];
        out[0] = VERSION;
        let flag = |is: bool, flag: u8| if is { flag } else { 0 };
        out[1] =
            flag(self.chunk_end, CHUNK_END) | flag(self.commit, COMMIT) | flag(self.compacted, COMPACTED);
        let numbers = [
            self.first.0.0,
            self.first.1,
            self.last.0.0,
            self.last.1,
            self.start,
            self.end,
            self.chunk_bytes,
        ];
        for (place, number) in out[8..].chunks_exact_mut(8).zip(numbers) {
            place.copy_from_slice(&number.to_le_bytes());
        }
        let crc = record_crc(&out);
        out[4..8].copy_from_slice(&crc.to_le_bytes());
        out
    }

    pub fn decode(record: &[u8; RECORD_LEN]) -> Option<Mark> {
        let crc = u32::from_le_bytes(record[4..8].try_into().expect("four bytes"));
        if record[0] != VERSION || record_crc(record) != crc {
            return None;
        }
        let number = |index: usize| {
            u64::from_le_bytes(record[8 + index * 8..16 + index * 8].try_into().expect("eight bytes"))
        };
        Some(Mark {
            chunk_end: record[1] & CHUNK_END != 0,
            commit: record[1] & COMMIT != 0,
            compacted: record[1] & COMPACTED != 0,
            first: (Lsn(number(0)), number(1)),
            last: (Lsn(number(2)), number(3)),
            start: number(4),
            end: number(5),
            chunk_bytes: number(6),
        })
    }
}

fn record_crc(record: &[u8; RECORD_LEN]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&record[..4]), &record[8..])
}

/// Makes marks from frames; the same from the writer and from recovery, since both only look at
/// frame headers. A copy taken at the start of a transaction brings it back there.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct MarkBuilder {
    /// Position of the next frame.
    pub at: u64,
    start: u64,
    first: Option<(Lsn, u64)>,
    pub chunk_bytes: u64,
}

impl MarkBuilder {
    /// Carries on behind a mark.
    pub fn after(mark: &Mark) -> MarkBuilder {
        MarkBuilder { at: mark.end, start: mark.end, first: None, chunk_bytes: mark.chunk_bytes }
    }

    /// Takes the next frame; gives a mark where one ends with it.
    pub fn push(&mut self, header: &FrameHeader) -> Option<Mark> {
        let first = *self.first.get_or_insert((header.tx, header.first_op));
        self.at += header.frame_len();
        self.chunk_bytes = if header.chunk_end { 0 } else { self.chunk_bytes + header.json_bytes() };
        if !header.chunk_end && self.at - self.start < MARK_BYTES {
            return None;
        }
        let mark = Mark {
            chunk_end: header.chunk_end,
            commit: header.commit,
            compacted: header.compacted,
            first,
            last: (header.tx, header.last_op),
            start: self.start,
            end: self.at,
            chunk_bytes: self.chunk_bytes,
        };
        self.start = self.at;
        self.first = None;
        Some(mark)
    }
}

/// Items per full block of an [`AppendList`].
const BLOCK_LEN: usize = 128;

/// A list that grows at its end and of which old copies stay as they were: a copy costs two
/// reference counts, an append at most one block. An empty one has no memory of its own: most shapes
/// have several.
#[derive(Clone, Debug)]
pub(crate) struct AppendList<T> {
    /// Invariant: every block has exactly `BLOCK_LEN` items.
    full: Option<Arc<Vec<Arc<[T]>>>>,
    /// Invariant: fewer than `BLOCK_LEN` items.
    open: Option<Arc<Vec<T>>>,
}

impl<T> Default for AppendList<T> {
    fn default() -> AppendList<T> {
        AppendList { full: None, open: None }
    }
}

impl<T: Copy> AppendList<T> {
    fn full(&self) -> &[Arc<[T]>] {
        self.full.as_ref().map_or(&[], |full| full.as_slice())
    }

    fn open(&self) -> &[T] {
        self.open.as_ref().map_or(&[], |open| open.as_slice())
    }

    pub fn len(&self) -> usize {
        self.full().len() * BLOCK_LEN + self.open().len()
    }

    pub fn push(&mut self, item: T) {
        // One item is what most have.
        let open = Arc::make_mut(self.open.get_or_insert_with(|| Arc::new(Vec::with_capacity(1))));
        open.push(item);
        if open.len() == BLOCK_LEN {
            Arc::make_mut(self.full.get_or_insert_default()).push(Arc::from(open.as_slice()));
            open.clear();
        }
    }

    pub fn get(&self, index: usize) -> Option<&T> {
        match self.full().get(index / BLOCK_LEN) {
            Some(block) => block.get(index % BLOCK_LEN),
            None => self.open().get(index.checked_sub(self.full().len() * BLOCK_LEN)?),
        }
    }

    pub fn last(&self) -> Option<&T> {
        self.get(self.len().checked_sub(1)?)
    }

    /// Index of the first item for which `before` is false; items are sorted by it.
    pub fn partition_point(&self, before: impl Fn(&T) -> bool) -> usize {
        let block = self.full().partition_point(|block| before(&block[BLOCK_LEN - 1]));
        let inside = match self.full().get(block) {
            Some(items) => items.partition_point(|item| before(item)),
            None => self.open().partition_point(|item| before(item)),
        };
        block * BLOCK_LEN + inside
    }

    pub fn iter_from(&self, index: usize) -> impl Iterator<Item = &T> {
        (index..self.len()).map_while(|index| self.get(index))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_copies_of_a_list_stay_as_they_were() {
        let mut list = AppendList::default();
        let mut copies = Vec::new();
        for item in 0..1000_usize {
            copies.push(list.clone());
            list.push(item);
        }
        for (len, copy) in copies.iter().enumerate() {
            assert_eq!(copy.len(), len);
            assert_eq!(copy.last().copied(), len.checked_sub(1));
            assert!(copy.iter_from(0).copied().eq(0..len));
            assert_eq!(copy.partition_point(|item| *item < 300), len.min(300));
        }
    }

    #[test]
    fn a_record_survives_encoding_and_no_damage() {
        let mark = Mark {
            chunk_end: true,
            commit: false,
            compacted: true,
            first: (Lsn(7), 0),
            last: (Lsn(u64::MAX), 12),
            start: 5,
            end: 1 << 40,
            chunk_bytes: 0,
        };
        let record = mark.encode();
        assert_eq!(Mark::decode(&record), Some(mark));
        for byte in 0..RECORD_LEN {
            let mut damaged = record;
            damaged[byte] ^= 0x10;
            assert_eq!(Mark::decode(&damaged), None, "byte {byte}");
        }
    }
}

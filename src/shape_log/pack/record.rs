//! Bytes of a segment: its header, then records, each with a head and a tail.
//!
//! Head of a segment, 32 bytes, little endian:
//!
//! | at | bytes | field |
//! |---|---|---|
//! | 0 | 4 | magic `SFPK` |
//! | 4 | 2 | version, 1 |
//! | 6 | 2 | zero |
//! | 8 | 4 | its number |
//! | 12 | 4 | number of the segment before, 0 where there is none |
//! | 16 | 4 | how far that one is valid: it was durable up to here before this one was made |
//! | 20 | 8 | zero |
//! | 28 | 4 | crc32c of the 28 bytes before |
//!
//! Head of a record, 40 bytes:
//!
//! | at | bytes | field |
//! |---|---|---|
//! | 0 | 2 | magic `F5 50` |
//! | 2 | 1 | version, 1 |
//! | 3 | 1 | kind: 0 `definition`, 1 `snapshot`, 2 `log`, 3 `log.idx`, 4 the shape is gone from here |
//! | 4 | 4 | crc32c of bytes 8 to 40, seeded with bytes 0 to 4 |
//! | 8 | 16 | handle: hash, microseconds |
//! | 24 | 4 | length of the content |
//! | 28 | 4 | position in the file; it ends here but for the content. 0 without content: it is removed |
//! | 32 | 4 | crc32c of the content |
//! | 36 | 4 | how far this segment was durable when the record was made |
//!
//! Tail of a record, 24 bytes: the handle again, the length again, crc32c of these. Where a head is
//! damaged, it tells whose record that was, so that no other shape is blamed.

use crate::domain::Handle;

/// Length of the head of a segment.
pub const SEGMENT_HEAD_LEN: usize = 32;
/// Length of the head of a record.
pub const HEAD_LEN: usize = 40;
/// Length of the tail of a record.
pub const TAIL_LEN: usize = 24;
/// With the version: no text of a row has the first byte.
pub const MAGIC: [u8; 3] = [0xF5, 0x50, VERSION];
const SEGMENT_MAGIC: &[u8; 4] = b"SFPK";
const VERSION: u8 = 1;

/// What a record is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Kind {
    Definition,
    Snapshot,
    Log,
    Index,
    /// No file: the shape was removed, or moved into files of its own.
    Gone,
}

impl Kind {
    /// Files, in the order of their numbers.
    pub const FILES: [Kind; 4] = [Kind::Definition, Kind::Snapshot, Kind::Log, Kind::Index];

    /// The kind of a file by its name.
    pub fn of_name(name: &str) -> Option<Kind> {
        Kind::FILES.into_iter().find(|kind| kind.name() == name)
    }

    pub fn name(self) -> &'static str {
        match self {
            Kind::Definition => "definition",
            Kind::Snapshot => "snapshot",
            Kind::Log => "log",
            Kind::Index => "log.idx",
            Kind::Gone => "",
        }
    }

    fn of_number(number: u8) -> Option<Kind> {
        [Kind::Definition, Kind::Snapshot, Kind::Log, Kind::Index, Kind::Gone]
            .into_iter()
            .find(|kind| *kind as u8 == number)
    }
}

/// The head of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentHead {
    pub number: u32,
    pub before: u32,
    pub before_valid: u32,
}

impl SegmentHead {
    pub fn encode(&self) -> [u8; SEGMENT_HEAD_LEN] {
        let mut out = [0; SEGMENT_HEAD_LEN];
        out[..4].copy_from_slice(SEGMENT_MAGIC);
        out[4] = VERSION;
        put(&mut out, 8, self.number);
        put(&mut out, 12, self.before);
        put(&mut out, 16, self.before_valid);
        let crc = crc32c::crc32c(&out[..28]);
        put(&mut out, 28, crc);
        out
    }

    pub fn decode(bytes: &[u8]) -> Option<SegmentHead> {
        let head = bytes.get(..SEGMENT_HEAD_LEN)?;
        let known = head[..4] == *SEGMENT_MAGIC && head[4] == VERSION;
        (known && crc32c::crc32c(&head[..28]) == u32_at(head, 28)).then(|| SegmentHead {
            number: u32_at(head, 8),
            before: u32_at(head, 12),
            before_valid: u32_at(head, 16),
        })
    }
}

/// The head of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    pub kind: Kind,
    pub handle: Handle,
    /// Of the content, bytes.
    pub len: u32,
    /// Position in the file.
    pub at: u32,
    pub crc: u32,
    pub durable: u32,
}

impl Head {
    /// Bytes of the whole record.
    pub fn record_len(&self) -> usize {
        HEAD_LEN + self.len as usize + TAIL_LEN
    }

    pub fn parse(bytes: &[u8]) -> Option<Head> {
        let head = bytes.get(..HEAD_LEN)?;
        let seed = crc32c::crc32c(&head[..4]);
        if head[..3] != MAGIC || crc32c::crc32c_append(seed, &head[8..]) != u32_at(head, 4) {
            return None;
        }
        Some(Head {
            kind: Kind::of_number(head[3])?,
            handle: handle_at(head, 8),
            len: u32_at(head, 24),
            at: u32_at(head, 28),
            crc: u32_at(head, 32),
            durable: u32_at(head, 36),
        })
    }
}

/// Makes a record in `out`, which is cleared before.
pub fn encode(kind: Kind, handle: Handle, at: u32, content: &[u8], durable: u32, out: &mut Vec<u8>) {
    let len = u32::try_from(content.len()).expect("the content of a record is small");
    out.clear();
    out.resize(HEAD_LEN, 0);
    out[..3].copy_from_slice(&MAGIC);
    out[3] = kind as u8;
    put_handle(out, 8, handle);
    put(out, 24, len);
    put(out, 28, at);
    put(out, 32, crc32c::crc32c(content));
    put(out, 36, durable);
    let crc = crc32c::crc32c_append(crc32c::crc32c(&out[..4]), &out[8..]);
    put(out, 4, crc);
    out.extend_from_slice(content);
    let tail = out.len();
    out.resize(tail + TAIL_LEN, 0);
    put_handle(out, tail, handle);
    put(out, tail + 16, len);
    let crc = crc32c::crc32c(&out[tail..tail + 20]);
    put(out, tail + 20, crc);
}

/// Whose record it is that ends with these bytes, and how long it is.
pub fn parse_tail(bytes: &[u8]) -> Option<(Handle, usize)> {
    let tail = &bytes[bytes.len().checked_sub(TAIL_LEN)?..];
    (crc32c::crc32c(&tail[..20]) == u32_at(tail, 20))
        .then(|| (handle_at(tail, 0), HEAD_LEN + u32_at(tail, 16) as usize + TAIL_LEN))
}

fn put(out: &mut [u8], at: usize, number: u32) {
    out[at..at + 4].copy_from_slice(&number.to_le_bytes());
}

fn put_handle(out: &mut [u8], at: usize, handle: Handle) {
    out[at..at + 8].copy_from_slice(&handle.hash.to_le_bytes());
    out[at + 8..at + 16].copy_from_slice(&handle.micros.to_le_bytes());
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn handle_at(bytes: &[u8], at: usize) -> Handle {
    let number = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
    Handle { hash: number(at), micros: number(at + 8) }
}

/// What comes next in a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// A record with this head; `whole`: its content is what was written.
    Record { head: Head, whole: bool },
    /// Nothing, or nothing valid.
    Nothing,
}

/// The record at `at`. One with a valid head that is cut short is nothing.
pub fn next(bytes: &[u8], at: usize) -> Next {
    let Some(head) = bytes.get(at..).and_then(Head::parse) else { return Next::Nothing };
    let Some(record) = bytes.get(at..at + head.record_len()) else { return Next::Nothing };
    let content = &record[HEAD_LEN..record.len() - TAIL_LEN];
    let tail = parse_tail(record) == Some((head.handle, record.len()));
    Next::Record { head, whole: tail && crc32c::crc32c(content) == head.crc }
}

/// The first valid head at or behind `from`.
pub fn resume(bytes: &[u8], from: usize) -> Option<(usize, Head)> {
    let rest = bytes.get(from..)?;
    memchr::memmem::find_iter(rest, &MAGIC)
        .find_map(|place| Head::parse(&rest[place..]).map(|head| (from + place, head)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HANDLE: Handle = Handle { hash: 7, micros: 1 << 50 };

    fn record() -> Vec<u8> {
        let mut out = Vec::new();
        encode(Kind::Log, HANDLE, 12, b"abc", 99, &mut out);
        out
    }

    #[test]
    fn a_record_survives_encoding_and_shows_damage() {
        let bytes = record();
        let head = Head {
            kind: Kind::Log,
            handle: HANDLE,
            len: 3,
            at: 12,
            crc: crc32c::crc32c(b"abc"),
            durable: 99,
        };
        assert_eq!(next(&bytes, 0), Next::Record { head, whole: true });
        assert_eq!(parse_tail(&bytes), Some((HANDLE, bytes.len())));
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x20;
            match next(&damaged, 0) {
                Next::Nothing => assert!(at < HEAD_LEN, "byte {at}"),
                Next::Record { whole, .. } => assert!(!whole && at >= HEAD_LEN, "byte {at}"),
            }
        }
        for len in 0..bytes.len() {
            assert_eq!(next(&bytes[..len], 0), Next::Nothing, "{len} bytes");
        }
    }

    #[test]
    fn after_damage_the_next_record_is_found_and_whose_was_lost() {
        let mut bytes = record();
        let lost = bytes.len();
        bytes[5] ^= 1;
        bytes.extend(record());
        let (found, _) = resume(&bytes, 0).expect("the second record");
        assert_eq!((found, parse_tail(&bytes[..found])), (lost, Some((HANDLE, lost))));
    }

    #[test]
    fn the_head_of_a_segment_survives_encoding_and_no_damage() {
        let head = SegmentHead { number: 3, before: 2, before_valid: 4_000_000_000 };
        let bytes = head.encode();
        assert_eq!(SegmentHead::decode(&bytes), Some(head));
        for at in 0..SEGMENT_HEAD_LEN {
            let mut damaged = bytes;
            damaged[at] ^= 0x20;
            assert_eq!(SegmentHead::decode(&damaged), None, "byte {at}");
        }
    }
}

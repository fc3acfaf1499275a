//! Keys and values inside sled: packing, splitting, checksums. The tables are in the module docs above.

use crate::domain::EventId;

use super::Entry;

/// Largest value handed to sled. A leaf of sled holds up to 16 entries and a page above a quarter of a
/// segment (131,052 bytes) goes to an un-synced blob file: 16 of these stay far below.
pub const VALUE_BYTES_MAX: usize = 4096;
pub(super) const VALUE_VERSION: u8 = 1;

const ENVELOPE_BYTES: usize = 5;
const KIND_PACKED: u8 = 1;
const KIND_FRAGMENT: u8 = 2;
const KIND_CHUNK: u8 = 3;
const KIND_MANIFEST: u8 = 4;
const KIND_FLOOR: u8 = 5;
const KIND_UNFINISHED: u8 = 6;
const PACKED_HEADER_BYTES: usize = 3;
const FRAGMENT_HEADER_BYTES: usize = 5;
const FRAGMENT_BYTES_MAX: usize = VALUE_BYTES_MAX - ENVELOPE_BYTES - FRAGMENT_HEADER_BYTES;
/// State bytes in one checkpoint value.
pub(super) const CHUNK_BYTES_MAX: usize = VALUE_BYTES_MAX - ENVELOPE_BYTES - 1;
/// Largest record that shares a value with others.
const PACKED_RECORD_BYTES_MAX: usize = VALUE_BYTES_MAX - ENVELOPE_BYTES - PACKED_HEADER_BYTES - 2;

pub(super) type EntryKey = [u8; 10];
pub(super) type CheckpointKey = [u8; 12];
pub(super) const MANIFEST_CHUNK: u32 = u32::MAX;
pub(super) const FLOOR_KEY: &[u8] = b"first";
pub(super) const UNFINISHED_KEY: &[u8] = b"unfinished";

pub(super) fn entry_key(first: u64, fragment: u16) -> EntryKey {
    let mut key = [0; 10];
    key[..8].copy_from_slice(&first.to_be_bytes());
    key[8..].copy_from_slice(&fragment.to_be_bytes());
    key
}

/// First id and fragment number; `None` if the key is not one of ours.
pub(super) fn parse_entry_key(key: &[u8]) -> Option<(u64, u16)> {
    let key: &EntryKey = key.try_into().ok()?;
    let (first, fragment) = key.split_at(8);
    Some((u64::from_be_bytes(first.try_into().ok()?), u16::from_be_bytes(fragment.try_into().ok()?)))
}

pub(super) fn checkpoint_key(serial: u64, chunk: u32) -> CheckpointKey {
    let mut key = [0; 12];
    key[..8].copy_from_slice(&serial.to_be_bytes());
    key[8..].copy_from_slice(&chunk.to_be_bytes());
    key
}

pub(super) fn parse_checkpoint_key(key: &[u8]) -> Option<(u64, u32)> {
    let key: &CheckpointKey = key.try_into().ok()?;
    let (serial, chunk) = key.split_at(8);
    Some((u64::from_be_bytes(serial.try_into().ok()?), u32::from_be_bytes(chunk.try_into().ok()?)))
}

/// Why a value cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ValueFault {
    /// The checksum is right: written by a newer program.
    Newer {
        found: u8,
    },
    Damaged(&'static str),
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Value<'a> {
    Packed(Vec<&'a [u8]>),
    Fragment { index: u16, total: u16, bytes: &'a [u8] },
    Chunk(&'a [u8]),
    Manifest(Manifest),
    Floor(EventId),
    Unfinished(EventId),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Manifest {
    pub upto: EventId,
    pub state_bytes: u64,
    pub chunks: u32,
    pub state_crc: u32,
}

/// Packs a dense batch into key-value pairs, ascending by key.
pub(super) fn pack(batch: &[Entry]) -> Vec<(EntryKey, Vec<u8>)> {
    let mut out = Vec::new();
    let mut rest = batch;
    while let Some(head) = rest.first() {
        if head.bytes.len() > PACKED_RECORD_BYTES_MAX {
            split(head, &mut out);
            rest = &rest[1..];
            continue;
        }
        let mut taken = 0;
        let mut room = VALUE_BYTES_MAX - ENVELOPE_BYTES - PACKED_HEADER_BYTES;
        for entry in rest {
            let Some(left) = room.checked_sub(2 + entry.bytes.len()) else { break };
            room = left;
            taken += 1;
        }
        let (packed, later) = rest.split_at(taken);
        out.push(seal_packed(head.id, packed));
        rest = later;
    }
    out
}

fn seal_packed(first: EventId, records: &[Entry]) -> (EntryKey, Vec<u8>) {
    let count = u16::try_from(records.len()).expect("a value of 4 KiB holds under 2^16 records");
    let mut payload = vec![KIND_PACKED];
    payload.extend_from_slice(&count.to_le_bytes());
    for record in records {
        let length = u16::try_from(record.bytes.len()).expect("a packed record is under 4 KiB");
        payload.extend_from_slice(&length.to_le_bytes());
        payload.extend_from_slice(&record.bytes);
    }
    let key = entry_key(first.0, 0);
    (key, seal(&key, &payload))
}

fn split(entry: &Entry, out: &mut Vec<(EntryKey, Vec<u8>)>) {
    let pieces = entry.bytes.chunks(FRAGMENT_BYTES_MAX);
    let total = u16::try_from(pieces.len()).expect("RECORD_BYTES_MAX keeps fragments under 2^16");
    for (index, piece) in (0..total).zip(pieces) {
        let mut payload = vec![KIND_FRAGMENT];
        payload.extend_from_slice(&index.to_le_bytes());
        payload.extend_from_slice(&total.to_le_bytes());
        payload.extend_from_slice(piece);
        let key = entry_key(entry.id.0, index);
        out.push((key, seal(&key, &payload)));
    }
}

pub(super) fn encode_chunk(key: &CheckpointKey, bytes: &[u8]) -> Vec<u8> {
    let mut payload = Vec::with_capacity(1 + bytes.len());
    payload.push(KIND_CHUNK);
    payload.extend_from_slice(bytes);
    seal(key, &payload)
}

pub(super) fn encode_manifest(key: &CheckpointKey, manifest: &Manifest) -> Vec<u8> {
    let mut payload = vec![KIND_MANIFEST];
    payload.extend_from_slice(&manifest.upto.0.to_le_bytes());
    payload.extend_from_slice(&manifest.state_bytes.to_le_bytes());
    payload.extend_from_slice(&manifest.chunks.to_le_bytes());
    payload.extend_from_slice(&manifest.state_crc.to_le_bytes());
    seal(key, &payload)
}

pub(super) fn encode_floor(first: EventId) -> Vec<u8> {
    let mut payload = vec![KIND_FLOOR];
    payload.extend_from_slice(&first.0.to_le_bytes());
    seal(FLOOR_KEY, &payload)
}

pub(super) fn encode_unfinished(before: EventId) -> Vec<u8> {
    let mut payload = vec![KIND_UNFINISHED];
    payload.extend_from_slice(&before.0.to_le_bytes());
    seal(UNFINISHED_KEY, &payload)
}

fn seal(key: &[u8], payload: &[u8]) -> Vec<u8> {
    let mut value = Vec::with_capacity(ENVELOPE_BYTES + payload.len());
    value.push(VALUE_VERSION);
    value.extend_from_slice(&checksum(key, VALUE_VERSION, payload).to_le_bytes());
    value.extend_from_slice(payload);
    assert!(value.len() <= VALUE_BYTES_MAX, "a value above the limit would become an un-synced blob");
    value
}

fn checksum(key: &[u8], version: u8, payload: &[u8]) -> u32 {
    let crc = crc32c::crc32c_append(crc32c::crc32c(key), &[version]);
    crc32c::crc32c_append(crc, payload)
}

/// Checks and takes apart one value. Never panics, whatever the bytes.
pub(super) fn decode<'a>(key: &[u8], value: &'a [u8]) -> Result<Value<'a>, ValueFault> {
    let mut cursor = Cursor(value);
    let version = cursor.u8()?;
    let expected = cursor.u32()?;
    if checksum(key, version, cursor.0) != expected {
        return Err(ValueFault::Damaged("checksum of a value"));
    }
    if version != VALUE_VERSION {
        return Err(ValueFault::Newer { found: version });
    }
    let decoded = match cursor.u8()? {
        KIND_PACKED => {
            let count = cursor.u16()?;
            let mut records = Vec::with_capacity(usize::from(count).min(VALUE_BYTES_MAX / 2));
            for _ in 0..count {
                let length = usize::from(cursor.u16()?);
                records.push(cursor.take(length)?);
            }
            Value::Packed(records)
        }
        KIND_FRAGMENT => Value::Fragment { index: cursor.u16()?, total: cursor.u16()?, bytes: cursor.rest() },
        KIND_CHUNK => Value::Chunk(cursor.rest()),
        KIND_MANIFEST => Value::Manifest(Manifest {
            upto: EventId(cursor.u64()?),
            state_bytes: cursor.u64()?,
            chunks: cursor.u32()?,
            state_crc: cursor.u32()?,
        }),
        KIND_FLOOR => Value::Floor(EventId(cursor.u64()?)),
        KIND_UNFINISHED => Value::Unfinished(EventId(cursor.u64()?)),
        _ => return Err(ValueFault::Damaged("kind of a value")),
    };
    if cursor.0.is_empty() { Ok(decoded) } else { Err(ValueFault::Damaged("trailing bytes in a value")) }
}

/// Reads little-endian fields off the front of a slice.
pub(super) struct Cursor<'a>(pub &'a [u8]);

impl<'a> Cursor<'a> {
    pub fn take(&mut self, count: usize) -> Result<&'a [u8], ValueFault> {
        let (head, tail) = self.0.split_at_checked(count).ok_or(ValueFault::Damaged("truncated"))?;
        self.0 = tail;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], ValueFault> {
        let (head, tail) = self.0.split_first_chunk().ok_or(ValueFault::Damaged("truncated"))?;
        self.0 = tail;
        Ok(*head)
    }

    pub fn u8(&mut self) -> Result<u8, ValueFault> {
        Ok(self.array::<1>()?[0])
    }

    pub fn u16(&mut self) -> Result<u16, ValueFault> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    pub fn u32(&mut self) -> Result<u32, ValueFault> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub fn u64(&mut self) -> Result<u64, ValueFault> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    pub fn i64(&mut self) -> Result<i64, ValueFault> {
        Ok(i64::from_le_bytes(self.array()?))
    }

    fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn batch(first: u64, sizes: &[usize]) -> Vec<Entry> {
        (first..)
            .zip(sizes)
            .map(|(id, size)| Entry { id: EventId(id), bytes: vec![(id % 251) as u8; *size] })
            .collect()
    }

    #[test]
    fn a_record_is_split_exactly_when_it_does_not_fit() {
        for (size, values) in [
            (0, 1),
            (PACKED_RECORD_BYTES_MAX, 1),
            (PACKED_RECORD_BYTES_MAX + 1, 2),
            (FRAGMENT_BYTES_MAX * 3, 3),
            (FRAGMENT_BYTES_MAX * 3 + 1, 4),
        ] {
            assert_eq!(pack(&batch(7, &[size])).len(), values, "record of {size} bytes");
        }
    }

    #[test]
    fn a_version_with_a_right_checksum_is_newer_and_with_a_wrong_one_damaged() {
        let (key, mut value) = pack(&batch(1, &[10])).remove(0);
        value[0] = 9;
        assert_eq!(decode(&key, &value), Err(ValueFault::Damaged("checksum of a value")));
        let crc = checksum(&key, 9, &value[ENVELOPE_BYTES..]);
        value[1..ENVELOPE_BYTES].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(decode(&key, &value), Err(ValueFault::Newer { found: 9 }));
    }

    /// As the version that introduced it wrote it.
    #[test]
    fn version_1_of_the_note_of_an_unfinished_append_is_read() {
        let note = [1, 116, 30, 41, 72, 6, 7, 1, 0, 0, 0, 0, 0, 0];
        assert_eq!(encode_unfinished(EventId(263)), note);
        assert_eq!(decode(UNFINISHED_KEY, &note), Ok(Value::Unfinished(EventId(263))));
    }

    #[test]
    fn a_value_under_another_key_is_damaged() {
        let (_, value) = pack(&batch(1, &[10])).remove(0);
        assert!(decode(&entry_key(2, 0), &value).is_err());
    }

    proptest! {
        #[test]
        fn what_is_packed_comes_back(sizes in prop::collection::vec(0usize..9000, 0..40), first in 1u64..1000) {
            let batch = batch(first, &sizes);
            let mut records: Vec<Vec<u8>> = Vec::new();
            let mut open: Vec<u8> = Vec::new();
            for (key, value) in pack(&batch) {
                prop_assert!(value.len() <= VALUE_BYTES_MAX);
                match decode(&key, &value).unwrap() {
                    Value::Packed(packed) => records.extend(packed.into_iter().map(<[u8]>::to_vec)),
                    Value::Fragment { index, total, bytes } => {
                        open.extend_from_slice(bytes);
                        if index + 1 == total {
                            records.push(std::mem::take(&mut open));
                        }
                    }
                    other => prop_assert!(false, "unexpected {other:?}"),
                }
            }
            prop_assert_eq!(records, batch.into_iter().map(|entry| entry.bytes).collect::<Vec<_>>());
        }

        #[test]
        fn any_flipped_bit_is_noticed(size in 0usize..500, at in any::<prop::sample::Index>(), bit in 0u8..8) {
            let (key, mut value) = pack(&batch(3, &[size])).remove(0);
            let at = at.index(value.len());
            value[at] ^= 1 << bit;
            prop_assert!(decode(&key, &value).is_err());
        }

        #[test]
        fn garbage_never_panics(key in prop::collection::vec(any::<u8>(), 0..16), value in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = parse_entry_key(&key);
            prop_assert!(decode(&key, &value).is_err());
        }
    }
}

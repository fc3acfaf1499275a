//! Sets of shapes, small on disk: fan-out is journaled as one set per transaction.

use std::fmt;

use serde::de::Visitor;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::domain::Sid;

/// An ascending set of shapes.
///
/// Encoded as runs: `(gap, length - 1)` pairs of LEB128 varints, so that the set of all shapes costs
/// a few bytes and a set of neighbours two bytes a shape at most. Invariant: strictly ascending.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SidSet(Vec<Sid>);

impl SidSet {
    #[must_use]
    pub fn new() -> SidSet {
        SidSet(Vec::new())
    }

    #[must_use]
    pub fn contains(&self, sid: Sid) -> bool {
        self.0.binary_search(&sid).is_ok()
    }

    pub fn iter(&self) -> impl ExactSizeIterator<Item = Sid> + '_ {
        self.0.iter().copied()
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        let mut rest = self.0.as_slice();
        let mut next = 0;
        while let Some(first) = rest.first().map(|sid| sid.0) {
            let run = rest.iter().zip(first..).take_while(|(sid, expected)| sid.0 == *expected).count();
            varint(&mut out, u64::from(first - next));
            varint(&mut out, run as u64 - 1);
            next = first + run as u32;
            rest = &rest[run..];
        }
        out
    }

    /// Reads what serialisation writes.
    pub(crate) fn from_runs(bytes: &[u8]) -> Option<SidSet> {
        SidSet::decode(bytes)
    }

    fn decode(mut bytes: &[u8]) -> Option<SidSet> {
        let mut sids = Vec::new();
        let mut next = 0_u64;
        while !bytes.is_empty() {
            let first = next.checked_add(read_varint(&mut bytes)?)?;
            let end = first.checked_add(read_varint(&mut bytes)?)?.checked_add(1)?;
            if end > u64::from(u32::MAX) || sids.len() as u64 + (end - first) > SET_LEN_MAX {
                return None;
            }
            sids.extend((first..end).map(|sid| Sid(sid as u32)));
            next = end;
        }
        Some(SidSet(sids))
    }
}

/// More shapes than one process serves; a damaged length must not allocate without bound: 16 MiB.
const SET_LEN_MAX: u64 = 1 << 22;

impl FromIterator<Sid> for SidSet {
    fn from_iter<I: IntoIterator<Item = Sid>>(sids: I) -> SidSet {
        let mut sids: Vec<Sid> = sids.into_iter().collect();
        sids.sort_unstable();
        sids.dedup();
        SidSet(sids)
    }
}

impl fmt::Display for SidSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("{")?;
        for (index, sid) in self.0.iter().enumerate() {
            write!(f, "{}{sid}", if index == 0 { "" } else { "," })?;
        }
        f.write_str("}")
    }
}

impl Serialize for SidSet {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.encode())
    }
}

impl<'de> Deserialize<'de> for SidSet {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<SidSet, D::Error> {
        struct Runs;
        impl Visitor<'_> for Runs {
            type Value = SidSet;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("runs of shape numbers")
            }

            fn visit_bytes<E: serde::de::Error>(self, bytes: &[u8]) -> Result<SidSet, E> {
                SidSet::decode(bytes).ok_or_else(|| E::custom("damaged set of shapes"))
            }
        }
        deserializer.deserialize_bytes(Runs)
    }
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn read_varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f).checked_shl(shift)?;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_broadcast_costs_a_few_bytes() {
        let all: SidSet = (0..300_000).map(Sid).collect();
        assert!(all.encode().len() <= 5, "{}", all.encode().len());
        assert_eq!(SidSet::decode(&all.encode()), Some(all));
    }

    #[test]
    fn damage_is_refused() {
        assert_eq!(SidSet::decode(&[0x80]), None, "a varint without an end");
        assert_eq!(SidSet::decode(&[1]), None, "a run without a length");
        assert_eq!(SidSet::decode(&[0, 0xff, 0xff, 0xff, 0xff, 0x0f]), None, "more than u32");
        assert_eq!(SidSet::decode(&[0xff; 12]), None, "a varint without bound");
        assert_eq!(
            SidSet::decode(&[0, 0xff, 0xff, 0xff, 0x03]),
            None,
            "found by tests/fuzz: 32 MiB for 5 bytes"
        );
    }

    proptest! {
        #[test]
        fn survives_encoding(sids in proptest::collection::vec(0_u32..5_000_000, 0..200)) {
            let set: SidSet = sids.iter().copied().map(Sid).collect();
            prop_assert_eq!(SidSet::decode(&set.encode()), Some(set.clone()));
            for sid in sids {
                prop_assert!(set.contains(Sid(sid)));
            }
        }

        #[test]
        fn damage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            let _ = SidSet::decode(&bytes);
        }
    }
}

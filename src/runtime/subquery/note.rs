//! What the files of a shape say for its next start, beside the messages about values that move.
//!
//! Those messages tell what rows do, and only of a transaction whose values only leave do they tell exactly which:
//! under NOT a NULL that has come or gone, or one of several columns, concerns rows of other values than the
//! inner query gives, and what is moved may concern no row at all. So every unit says in a note which
//! values of the inner queries the shape is made with, or without, from there on, and the snapshot says with
//! which it begins (`base`). Little endian: a version, 1; the number of inner queries that it is about, 16 bits,
//! and which, 16 bits each; then for each value the inner query, 16 bits, whether it is given, 8 bits, and
//! its hash, 128 bits.

use std::collections::BTreeSet;

use crate::filter::subquery::Digest;

const VERSION: u8 = 1;
/// Bytes of one value.
const ENTRY_LEN: usize = 2 + 1 + 16;

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Note {
    /// The inner queries of which it tells. What the messages of the unit say about positions that ask them
    /// is about rows only.
    pub dependencies: BTreeSet<usize>,
    /// A value of one of them, and whether the shape is made with it from here on.
    pub entries: Vec<(usize, Digest, bool)>,
}

impl Note {
    /// Its bytes; none for an empty one.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        if self.dependencies.is_empty() {
            return Vec::new();
        }
        // A clause has at most as many inner queries as literals.
        let number = |index: usize| u16::try_from(index).unwrap_or(u16::MAX).to_le_bytes();
        let mut bytes = vec![VERSION];
        bytes.extend(number(self.dependencies.len()));
        bytes.extend(self.dependencies.iter().flat_map(|dependency| number(*dependency)));
        for (dependency, digest, given) in &self.entries {
            bytes.extend(number(*dependency));
            bytes.push(u8::from(*given));
            bytes.extend(digest.0);
        }
        bytes
    }

    /// Reads what [`Note::encode`] gave; `None` for anything else.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Note> {
        if bytes.is_empty() {
            return Some(Note::default());
        }
        let (&version, rest) = bytes.split_first()?;
        let (count, mut rest) = take_u16(rest)?;
        if version != VERSION {
            return None;
        }
        let mut note = Note::default();
        for _ in 0..count {
            let (dependency, after) = take_u16(rest)?;
            note.dependencies.insert(dependency);
            rest = after;
        }
        let (entries, []) = rest.as_chunks::<ENTRY_LEN>() else { return None };
        for entry in entries {
            let (dependency, entry) = take_u16(entry)?;
            let (&given, digest) = entry.split_first()?;
            note.entries.push((dependency, Digest(digest.try_into().ok()?), given != 0));
        }
        Some(note)
    }
}

fn take_u16(bytes: &[u8]) -> Option<(usize, &[u8])> {
    let (number, rest) = bytes.split_first_chunk()?;
    Some((usize::from(u16::from_le_bytes(*number)), rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_is_read_as_it_was_written() {
        let (one, two) = (Digest([1; 16]), Digest([2; 16]));
        let note = Note {
            dependencies: BTreeSet::from([0, 3]),
            entries: vec![(0, one, true), (3, two, false), (3, one, true)],
        };
        let bytes = note.encode();
        assert_eq!(bytes.len(), 1 + 2 + 2 * 2 + 3 * ENTRY_LEN);
        assert_eq!(Note::decode(&bytes), Some(note));
        assert_eq!(Note::decode(&[]), Some(Note::default()));
        assert_eq!(Note::default().encode(), [0_u8; 0]);
        for cut in 1..bytes.len() {
            let whole_entries = cut >= 7 && (cut - 7) % ENTRY_LEN == 0;
            assert_eq!(Note::decode(&bytes[..cut]).is_some(), whole_entries, "cut at {cut}");
        }
    }
}

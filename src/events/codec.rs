//! The bytes of one journaled event.
//!
//! | Bytes | Field |
//! |---|---|
//! | 1 | record version, now 1 |
//! | 4 | CRC-32C over the payload, little endian |
//! | rest | payload: MessagePack of [`Recorded`], maps by field name, variants by short name |
//!
//! The checksum travels with the event through archive and export, whatever container it is in.
//! Older versions are brought up to date by [`UPCASTERS`], one step each; a newer one is refused.

use serde::Deserialize as _;
use serde::de::IgnoredAny;

use crate::events::{Event, Recorded, usual};

/// Version written by this build.
pub const RECORD_VERSION: u8 = 1;

const HEADER_LEN: usize = 5;

/// `UPCASTERS[n]` turns a payload of version `n + 1` into one of version `n + 2`.
const UPCASTERS: [Upcaster; RECORD_VERSION as usize - 1] = [];

type Upcaster = fn(Vec<u8>) -> Result<Vec<u8>, CodecError>;

/// Why bytes are not an event that this build understands.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    #[error("the record is cut short")]
    Short,
    #[error("the record's checksum does not match: expected {expected:08x}, found {found:08x}")]
    Checksum { expected: u32, found: u32 },
    #[error("the record has version {found}; this build reads versions 1 to {RECORD_VERSION}")]
    Version { found: u8 },
    #[error("the record is intact but not an event of this version: {0}")]
    Payload(String),
}

/// The bytes of an event.
///
/// # Panics
/// Never in practice: every part of an event has an encoding, which the tests go through.
#[must_use]
pub fn encode(recorded: &Recorded) -> Vec<u8> {
    let mut bytes = vec![0; HEADER_LEN];
    rmp_serde::encode::write_named(&mut bytes, recorded).expect("an event always encodes into memory");
    bytes[0] = RECORD_VERSION;
    let checksum = crc32c::crc32c(&bytes[HEADER_LEN..]);
    bytes[1..HEADER_LEN].copy_from_slice(&checksum.to_le_bytes());
    bytes
}

/// Levels of values in values: events have a few. Unknown fields are skipped by recursion.
const DEPTH_MAX: usize = 64;

/// Reads what [`encode`] wrote, in this or an earlier version.
///
/// # Errors
/// [`CodecError`] for anything that is not exactly one intact event, trailing bytes included.
pub fn decode(bytes: &[u8]) -> Result<Recorded, CodecError> {
    let (header, payload) = bytes.split_at_checked(HEADER_LEN).ok_or(CodecError::Short)?;
    let version = header[0];
    let expected = u32::from_le_bytes([header[1], header[2], header[3], header[4]]);
    if version == 0 || version > RECORD_VERSION {
        return Err(CodecError::Version { found: version });
    }
    let found = crc32c::crc32c(payload);
    if found != expected {
        return Err(CodecError::Checksum { expected, found });
    }
    if version == RECORD_VERSION {
        return usual::read(payload).map_or_else(|| payload_of_this_version(payload), Ok);
    }
    payload_of_this_version(&upcast(version, payload.to_vec(), &UPCASTERS)?)
}

/// Finds events of one kind without decoding all the others.
#[derive(Clone, Debug)]
pub struct KindSearch {
    /// How the topic and the name of this kind stand in the payload: `{"c": {"x": …`.
    needle: Vec<u8>,
}

impl KindSearch {
    /// A search for the kind that this event is of.
    ///
    /// # Panics
    /// Never: every event is a map of its topic to a map of its name.
    #[must_use]
    pub fn like(event: &Event) -> KindSearch {
        let bytes = rmp_serde::to_vec_named(event).expect("an event always encodes into memory");
        // Each of the two: a map of one, and a short text with its length in its first byte.
        let topic = 2 + usize::from(bytes[1] & 0x1f);
        let name = topic + 2 + usize::from(bytes[topic + 1] & 0x1f);
        KindSearch { needle: bytes[..name].to_vec() }
    }

    /// `false`: the record is certainly of another kind. `true`: decode it to know.
    #[must_use]
    pub fn may_match(&self, record: &[u8]) -> bool {
        record.first() != Some(&RECORD_VERSION) || memchr::memmem::find(record, &self.needle).is_some()
    }
}

fn upcast(version: u8, payload: Vec<u8>, upcasters: &[Upcaster]) -> Result<Vec<u8>, CodecError> {
    upcasters[usize::from(version) - 1..].iter().try_fold(payload, |payload, upcaster| upcaster(payload))
}

fn payload_of_this_version(payload: &[u8]) -> Result<Recorded, CodecError> {
    let mut decoder = rmp_serde::Deserializer::from_read_ref(&payload);
    decoder.set_max_depth(DEPTH_MAX);
    let recorded =
        Recorded::deserialize(&mut decoder).map_err(|error| CodecError::Payload(error.to_string()))?;
    // The decoder stops at the end of the value; bytes after it mean that it read something else
    // than was written. It does not say where it stands, but that there is no next marker.
    match IgnoredAny::deserialize(&mut decoder) {
        Err(rmp_serde::decode::Error::InvalidMarkerRead(_)) => {}
        Ok(_) | Err(_) => return Err(CodecError::Payload("bytes after the event".to_owned())),
    }
    Ok(recorded)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::domain::{Epoch, EventId, Generation, Lsn, Seq, Sid, Timestamp, Xid};
    use crate::events::{AckCause, FlushEvent, StreamEvent};

    fn routed() -> Recorded {
        Recorded {
            id: EventId(7),
            at: Timestamp(1_774_000_000_000_000),
            epoch: Epoch(3),
            because: None,
            event: Event::Stream(StreamEvent::TxnRouted {
                seq: Seq(5),
                generation: Generation(2),
                lsn: Lsn(8_458_315_976),
                xid: Xid(744),
                committed_at: Timestamp(1_774_000_000_000_000),
                changes: 1,
                bytes: 120,
                set: [Sid(1), Sid(2), Sid(9)].into_iter().collect(),
            }),
        }
    }

    #[test]
    fn what_is_written_is_read() {
        assert_eq!(decode(&encode(&routed())), Ok(routed()));
    }

    /// The journal stays affordable only while the usual event is small.
    #[test]
    fn the_usual_events_are_small() {
        assert!(encode(&routed()).len() <= 90, "{}", encode(&routed()).len());
        let watermark = Event::Flush(FlushEvent::Watermark { upto: Seq(1_000_000), except: vec![] });
        let bytes = encode(&Recorded { event: watermark, ..routed() });
        assert!(bytes.len() <= 60, "{}", bytes.len());
    }

    #[test]
    fn a_search_finds_its_kind_and_passes_over_others() {
        let search = KindSearch::like(&routed().event);
        assert!(search.may_match(&encode(&routed())));
        let watermark = Event::Flush(FlushEvent::Watermark { upto: Seq(1), except: vec![] });
        assert!(!search.may_match(&encode(&Recorded { event: watermark.clone(), ..routed() })));
        assert!(KindSearch::like(&watermark).may_match(&encode(&Recorded { event: watermark, ..routed() })));
        assert!(search.may_match(&[RECORD_VERSION + 1]), "what is not understood may be anything");
    }

    #[test]
    fn a_newer_record_is_refused_by_name() {
        let mut bytes = encode(&routed());
        bytes[0] = RECORD_VERSION + 1;
        assert_eq!(decode(&bytes), Err(CodecError::Version { found: RECORD_VERSION + 1 }));
    }

    #[test]
    fn trailing_bytes_are_refused() {
        let mut payload = encode(&routed())[HEADER_LEN..].to_vec();
        payload.push(0xc0);
        let mut bytes = vec![RECORD_VERSION];
        bytes.extend(crc32c::crc32c(&payload).to_le_bytes());
        bytes.extend(payload);
        assert_eq!(decode(&bytes), Err(CodecError::Payload("bytes after the event".to_owned())));
    }

    #[test]
    fn upcasters_run_from_the_version_found_to_the_last() {
        let chain: [Upcaster; 2] = [
            |mut payload| {
                payload.push(b'a');
                Ok(payload)
            },
            |mut payload| {
                payload.push(b'b');
                Ok(payload)
            },
        ];
        assert_eq!(upcast(1, vec![b'1'], &chain), Ok(b"1ab".to_vec()));
        assert_eq!(upcast(2, vec![b'2'], &chain), Ok(b"2b".to_vec()));
    }

    /// Both readers, of the same payload.
    fn both(payload: &[u8]) -> (Option<Recorded>, Result<Recorded, CodecError>) {
        (usual::read(payload), payload_of_this_version(payload))
    }

    #[test]
    fn the_usual_events_are_read_without_serde() {
        let watermark = Event::Flush(FlushEvent::Watermark { upto: Seq(1_000_000), except: vec![] });
        let acked = |cause| Event::Stream(StreamEvent::AckSent { lsn: Lsn(1 << 40), cause });
        let (commit, keepalive) = (acked(AckCause::Commit), acked(AckCause::Keepalive));
        let nothing =
            StreamEvent::RoutedNothing { generation: Generation(3), upto: Lsn(1 << 33), txns: 70_000 };
        for event in [routed().event, watermark, commit, keepalive, nothing.into()] {
            for because in [None, Some(EventId(6))] {
                let recorded = Recorded { event: event.clone(), because, ..routed() };
                let bytes = encode(&recorded);
                assert_eq!(both(&bytes[HEADER_LEN..]), (Some(recorded.clone()), Ok(recorded)));
            }
        }
        let except = Event::Flush(FlushEvent::Watermark { upto: Seq(9), except: vec![(Sid(1), Seq(2))] });
        let bytes = encode(&Recorded { event: except, ..routed() });
        assert_eq!(both(&bytes[HEADER_LEN..]).0, None, "left to serde");
    }

    proptest! {
        /// Whatever the quick reader takes for an event, the general one takes for the same.
        #[test]
        fn the_readers_agree(
            numbers in proptest::array::uniform8(any::<u64>()),
            wanted in any::<bool>(),
            sids in proptest::collection::vec(any::<u16>(), 0..40),
            at in 0_usize..160,
            flip in any::<u8>(),
            cut in 0_usize..4,
        ) {
            let shift = |index: usize| numbers[index] >> (numbers[index] % 64);
            let (generation, lsn) = (Generation(shift(1) as u32), Lsn(shift(2)));
            let event = if wanted {
                StreamEvent::TxnRouted {
                    seq: Seq(shift(0)),
                    generation,
                    lsn,
                    xid: Xid(shift(3) as u32),
                    committed_at: Timestamp(shift(4) as i64),
                    changes: shift(5),
                    bytes: shift(6),
                    set: sids.into_iter().map(|sid| Sid(u32::from(sid))).collect(),
                }
            } else {
                StreamEvent::RoutedNothing { generation, upto: lsn, txns: shift(5) }
            };
            let recorded = Recorded { id: EventId(shift(7)), event: event.into(), ..routed() };
            let bytes = encode(&recorded);
            prop_assert_eq!(decode(&bytes), Ok(recorded));
            // Damaged, with a checksum that is right all the same.
            let mut payload = bytes[HEADER_LEN..].to_vec();
            let place = at % payload.len();
            payload[place] ^= flip;
            payload.truncate(payload.len() - cut);
            if let (Some(quick), general) = both(&payload) {
                prop_assert_eq!(Ok(quick), general);
            }
        }

        #[test]
        fn one_wrong_byte_is_noticed(position in 0_usize..200, flip in 1_u8..=255) {
            let mut bytes = encode(&routed());
            let position = position % bytes.len();
            bytes[position] ^= flip;
            prop_assert!(decode(&bytes).is_err());
        }

        #[test]
        fn damage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = decode(&bytes);
        }
    }
}

//! The few kinds that nearly every record is of, read without serde: a journal of millions is folded in half the
//! time. Bytes that are not exactly what [`super::encode`] writes for one of them are left to the general reader,
//! which then decides what they are: nothing is accepted here that would be refused there, or means something else.

use crate::domain::{Epoch, EventId, Generation, Lsn, Seq, SidSet, Timestamp, Xid};
use crate::events::{AckCause, Event, FlushEvent, Recorded, StreamEvent};

/// The event of a payload, if it is one of the usual kinds in the usual form.
pub(super) fn read(payload: &[u8]) -> Option<Recorded> {
    let mut bytes = Bytes(payload);
    let with_because = match bytes.one()? {
        0x84 => false,
        0x85 => true,
        _ => return None,
    };
    let id = EventId(bytes.named(b"\xa1i")?);
    let at = Timestamp(i64::try_from(bytes.named(b"\xa1t")?).ok()?);
    let epoch = Epoch(bytes.named(b"\xa1e")?);
    let because = if with_because { Some(EventId(bytes.named(b"\xa1b")?)) } else { None };
    bytes.literal(b"\xa1v\x81")?;
    let event = match bytes.take(2)? {
        b"\xa1t" => stream(&mut bytes)?,
        b"\xa1f" => flush(&mut bytes)?,
        _ => return None,
    };
    bytes.0.is_empty().then_some(Recorded { id, at, epoch, because, event })
}

fn stream(bytes: &mut Bytes<'_>) -> Option<Event> {
    bytes.literal(b"\x81")?;
    let event = match bytes.one()? {
        0xa1 => {
            bytes.literal(b"r\x88")?;
            StreamEvent::TxnRouted {
                seq: Seq(bytes.named(b"\xa1q")?),
                generation: Generation(u32::try_from(bytes.named(b"\xa1g")?).ok()?),
                lsn: Lsn(bytes.named(b"\xa1l")?),
                xid: Xid(u32::try_from(bytes.named(b"\xa1x")?).ok()?),
                committed_at: Timestamp(i64::try_from(bytes.named(b"\xa1c")?).ok()?),
                changes: bytes.named(b"\xa1n")?,
                bytes: bytes.named(b"\xa1z")?,
                set: {
                    bytes.literal(b"\xa1s")?;
                    SidSet::from_runs(bytes.blob()?)?
                },
            }
        }
        0xa2 => return short(bytes).map(Event::Stream),
        _ => return None,
    };
    Some(Event::Stream(event))
}

/// Those with names of two letters.
fn short(bytes: &mut Bytes<'_>) -> Option<StreamEvent> {
    Some(match bytes.take(2)? {
        b"ak" => {
            bytes.literal(b"\x82")?;
            let lsn = Lsn(bytes.named(b"\xa1l")?);
            bytes.literal(b"\xa1c\xa1")?;
            let cause = match bytes.one()? {
                b'c' => AckCause::Commit,
                b'k' => AckCause::Keepalive,
                _ => return None,
            };
            StreamEvent::AckSent { lsn, cause }
        }
        b"rn" => {
            bytes.literal(b"\x83")?;
            let generation = Generation(u32::try_from(bytes.named(b"\xaageneration")?).ok()?);
            let upto = Lsn(bytes.named(b"\xa4upto")?);
            StreamEvent::RoutedNothing { generation, upto, txns: bytes.named(b"\xa4txns")? }
        }
        _ => return None,
    })
}

/// A mark without exceptions.
fn flush(bytes: &mut Bytes<'_>) -> Option<Event> {
    bytes.literal(b"\x81\xa1w\x82")?;
    let upto = Seq(bytes.named(b"\xa1u")?);
    bytes.literal(b"\xa1x\x90")?;
    Some(Event::Flush(FlushEvent::Watermark { upto, except: Vec::new() }))
}

/// What is left to read. MessagePack: <https://github.com/msgpack/msgpack/blob/master/spec.md>.
struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn one(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    fn literal(&mut self, expected: &[u8]) -> Option<()> {
        self.0 = self.0.strip_prefix(expected)?;
        Some(())
    }

    /// A number behind its name.
    fn named(&mut self, name: &[u8]) -> Option<u64> {
        self.literal(name)?;
        let length = match self.one()? {
            small @ 0..=0x7f => return Some(u64::from(small)),
            0xcc => 1,
            0xcd => 2,
            0xce => 4,
            0xcf => 8,
            _ => return None,
        };
        Some(self.take(length)?.iter().fold(0, |number, byte| number << 8 | u64::from(*byte)))
    }

    fn blob(&mut self) -> Option<&'a [u8]> {
        let bytes_of_length = match self.one()? {
            0xc4 => 1,
            0xc5 => 2,
            0xc6 => 4,
            _ => return None,
        };
        let length = self.take(bytes_of_length)?;
        self.take(length.iter().fold(0, |number, byte| number << 8 | usize::from(*byte)))
    }
}

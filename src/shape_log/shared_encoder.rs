//! The messages of one transaction, made once for all shapes of a class.

use std::ops::Range;

use crate::domain::{Change, Lsn, ShapeDefinition, Xid};

use super::encoder::{Encoded, Encoder, Op, TransactionHeaders};
use super::error::EncodeError;

/// Changes of one transaction whose messages are kept. Those after it are made for each shape.
const KEPT_CHANGES_MAX: usize = 65_536;
/// Bytes of messages that are kept; the next change is made for each shape.
const KEPT_BYTES_MAX: usize = 16 << 20;
/// Memory that is kept from one transaction to the next.
const SPARE_BYTES_MAX: usize = 1 << 20;

/// Encodes the changes of a transaction for the shapes of one class: those for which
/// [`SharedEncoder::class`] is equal, and which so get the same messages for the same changes.
#[derive(Debug)]
pub struct SharedEncoder {
    encoder: Encoder,
    transaction: Option<(Lsn, TransactionHeaders)>,
    /// By number of the change: 1 + the number in `kept`, for each [`Op`]; 0 where there is none yet.
    places: Vec<[u32; 3]>,
    kept: Vec<Kept>,
    bytes: Vec<u8>,
    scratch: Encoded,
}

/// Where the open messages of a change are.
#[derive(Debug, Default)]
struct Kept {
    messages: [(u64, Range<usize>); 2],
    count: usize,
}

impl SharedEncoder {
    #[must_use]
    pub fn new(definition: &ShapeDefinition) -> SharedEncoder {
        SharedEncoder {
            encoder: Encoder::new(definition),
            transaction: None,
            places: Vec::new(),
            kept: Vec::new(),
            bytes: Vec::new(),
            scratch: Encoded::default(),
        }
    }

    /// What the messages of a shape follow from, beside the changes.
    #[must_use]
    pub fn class(definition: &ShapeDefinition) -> Vec<u8> {
        Encoder::new(definition).class()
    }

    /// Forgets the transaction before; none may have the LSN of another.
    pub fn begin(&mut self, tx: Lsn, xid: Xid) {
        if self.transaction.as_ref().is_some_and(|(current, _)| *current == tx) {
            return;
        }
        self.transaction = Some((tx, TransactionHeaders::new(tx, xid)));
        self.places.clear();
        self.kept.clear();
        self.bytes.clear();
        self.bytes.shrink_to(SPARE_BYTES_MAX);
    }

    /// The open messages of a change, in log order: made at the first call. Panics where no transaction
    /// has begun.
    ///
    /// # Errors
    /// An [`EncodeError`], each time.
    pub(super) fn encode(&mut self, change: &Change, op: Op) -> Result<Messages<'_>, EncodeError> {
        // The ops of changes are 0, 2, 4, …
        let number = usize::try_from(change.op() / 2).unwrap_or(usize::MAX);
        let column = match op {
            Op::Insert => 0,
            Op::Update => 1,
            Op::Delete => 2,
        };
        let place = self.places.get(number).map_or(0, |places| places[column]);
        if let Some(kept) = (place as usize).checked_sub(1) {
            return Ok(self.kept[kept].messages(&self.bytes));
        }
        let (_, headers) = self.transaction.as_ref().expect("a transaction has begun");
        self.encoder.encode(change, op, headers, &mut self.scratch)?;
        let mut made = Kept::default();
        let fits = number < KEPT_CHANGES_MAX && self.bytes.len() < KEPT_BYTES_MAX;
        let before = if fits { self.bytes.len() } else { 0 };
        for (op, message) in self.scratch.messages() {
            let start = made.messages[..made.count].last().map_or(before, |(_, range)| range.end);
            made.messages[made.count] = (op, start..start + message.len());
            made.count += 1;
        }
        if !fits {
            return Ok(made.messages(self.scratch.bytes()));
        }
        self.bytes.extend_from_slice(self.scratch.bytes());
        if self.places.len() <= number {
            self.places.resize(number + 1, [0; 3]);
        }
        self.kept.push(made);
        let kept = self.kept.len() - 1;
        // At most three for each of so many changes.
        self.places[number][column] = u32::try_from(kept + 1).unwrap_or(0);
        Ok(self.kept[kept].messages(&self.bytes))
    }
}

impl Kept {
    fn messages<'a>(&self, bytes: &'a [u8]) -> Messages<'a> {
        let message = |(op, range): &(u64, Range<usize>)| (*op, &bytes[range.clone()]);
        Messages { messages: [message(&self.messages[0]), message(&self.messages[1])], count: self.count }
    }
}

/// None, one, or two open messages: `op_position` and bytes, in log order.
#[derive(Clone, Copy, Debug)]
pub(super) struct Messages<'a> {
    messages: [(u64, &'a [u8]); 2],
    count: usize,
}

impl<'a> Messages<'a> {
    pub fn iter(&self) -> impl Iterator<Item = (u64, &'a [u8])> {
        self.messages.into_iter().take(self.count)
    }
}

//! The pieces of a segment file as bytes: header, block, footer.

use crate::domain::{Epoch, EventId, Timestamp};

use super::super::value::{Cursor, ValueFault};
use super::{BLOCK_RAW_BYTES_MAX, SealSpan};

const MAGIC: &[u8; 8] = b"SFJARCHV";
pub(super) const VERSION: u16 = 1;
/// Magic, version, length, checksum: what every version begins with.
pub(super) const HEADER_PREFIX_BYTES: usize = 16;
pub(super) const HEADER_BYTES: usize = HEADER_PREFIX_BYTES + 40;
pub(super) const HEADER_BYTES_MAX: usize = 4096;
pub(super) const BLOCK_MARKER: &[u8; 4] = b"SFJB";
pub(super) const BLOCK_HEADER_BYTES: usize = 28;
pub(super) const FOOTER_MARKER: &[u8; 4] = b"SFJE";
pub(super) const FOOTER_BYTES: usize = 24;
/// zstd adds a little where nothing can be gained.
pub(super) const BLOCK_STORED_BYTES_MAX: usize = BLOCK_RAW_BYTES_MAX + BLOCK_RAW_BYTES_MAX / 128 + 1024;

pub(super) struct Header(pub SealSpan);

impl Header {
    pub fn encode(&self) -> Vec<u8> {
        let span = &self.0;
        let mut body = Vec::with_capacity(40);
        for number in [span.epoch.0, span.first.0, span.last.0] {
            body.extend_from_slice(&number.to_le_bytes());
        }
        for at in [span.oldest_at.0, span.newest_at.0] {
            body.extend_from_slice(&at.to_le_bytes());
        }
        let length = u16::try_from(HEADER_BYTES).expect("the header is small");
        let mut header = MAGIC.to_vec();
        header.extend_from_slice(&VERSION.to_le_bytes());
        header.extend_from_slice(&length.to_le_bytes());
        let checksum = crc32c::crc32c_append(crc32c::crc32c(&header), &body);
        header.extend_from_slice(&checksum.to_le_bytes());
        header.extend_from_slice(&body);
        header
    }

    /// Length of the whole header, from its prefix.
    pub fn length(prefix: &[u8]) -> Result<usize, ValueFault> {
        let mut cursor = Cursor(prefix);
        if cursor.take(MAGIC.len())? != MAGIC {
            return Err(ValueFault::Damaged("magic"));
        }
        cursor.u16()?;
        let length = usize::from(cursor.u16()?);
        if (HEADER_PREFIX_BYTES..=HEADER_BYTES_MAX).contains(&length) {
            Ok(length)
        } else {
            Err(ValueFault::Damaged("header length"))
        }
    }

    /// The version of a header whose checksum is right, and its body.
    pub fn open(header: &[u8]) -> Result<(u16, &[u8]), ValueFault> {
        let (prefix, body) =
            header.split_at_checked(HEADER_PREFIX_BYTES).ok_or(ValueFault::Damaged("truncated"))?;
        let (fixed, checksum) = prefix.split_at(HEADER_PREFIX_BYTES - 4);
        if Cursor(checksum).u32()? != crc32c::crc32c_append(crc32c::crc32c(fixed), body) {
            return Err(ValueFault::Damaged("checksum of the header"));
        }
        Ok((Cursor(&fixed[MAGIC.len()..]).u16()?, body))
    }

    pub fn decode(body: &[u8]) -> Result<Header, ValueFault> {
        let mut cursor = Cursor(body);
        Ok(Header(SealSpan {
            epoch: Epoch(cursor.u64()?),
            first: EventId(cursor.u64()?),
            last: EventId(cursor.u64()?),
            oldest_at: Timestamp(cursor.i64()?),
            newest_at: Timestamp(cursor.i64()?),
        }))
    }
}

pub(super) fn push_record(raw: &mut Vec<u8>, bytes: &[u8]) {
    let length = u32::try_from(bytes.len()).expect("RECORD_BYTES_MAX fits 32 bits");
    raw.extend_from_slice(&length.to_le_bytes());
    raw.extend_from_slice(bytes);
}

pub(super) fn encode(first: EventId, count: u32, raw_bytes: usize, stored: &[u8]) -> Vec<u8> {
    let length = |bytes: usize| u32::try_from(bytes).expect("a block fits 32 bits").to_le_bytes();
    let mut block = BLOCK_MARKER.to_vec();
    block.extend_from_slice(&first.0.to_le_bytes());
    block.extend_from_slice(&count.to_le_bytes());
    block.extend_from_slice(&length(raw_bytes));
    block.extend_from_slice(&length(stored.len()));
    let checksum = crc32c::crc32c_append(crc32c::crc32c(&block[BLOCK_MARKER.len()..]), stored);
    block.extend_from_slice(&checksum.to_le_bytes());
    block.extend_from_slice(stored);
    block
}

/// The fields in front of a block's payload; nothing is checked but the bounds.
pub(super) struct BlockHeader {
    pub first: EventId,
    pub count: u32,
    pub raw_bytes: usize,
    pub stored_bytes: usize,
    pub checksum: u32,
}

impl BlockHeader {
    pub fn decode(bytes: &[u8]) -> Result<BlockHeader, ValueFault> {
        let mut cursor = Cursor(bytes);
        if cursor.take(BLOCK_MARKER.len())? != BLOCK_MARKER {
            return Err(ValueFault::Damaged("marker of a block"));
        }
        let header = BlockHeader {
            first: EventId(cursor.u64()?),
            count: cursor.u32()?,
            raw_bytes: cursor.u32()? as usize,
            stored_bytes: cursor.u32()? as usize,
            checksum: cursor.u32()?,
        };
        if header.raw_bytes > BLOCK_RAW_BYTES_MAX || header.stored_bytes > BLOCK_STORED_BYTES_MAX {
            return Err(ValueFault::Damaged("length of a block"));
        }
        Ok(header)
    }
}

/// Checks and unpacks a whole block, header included.
pub(super) fn decode(block: &[u8]) -> Result<(EventId, Vec<Vec<u8>>), ValueFault> {
    let header = BlockHeader::decode(block)?;
    let fields = &block[BLOCK_MARKER.len()..BLOCK_HEADER_BYTES - 4];
    let stored = &block[BLOCK_HEADER_BYTES..];
    if stored.len() != header.stored_bytes
        || crc32c::crc32c_append(crc32c::crc32c(fields), stored) != header.checksum
    {
        return Err(ValueFault::Damaged("checksum of a block"));
    }
    let raw = zstd::bulk::decompress(stored, header.raw_bytes)
        .map_err(|_| ValueFault::Damaged("compression of a block"))?;
    let mut cursor = Cursor(&raw);
    let mut records = Vec::new();
    while !cursor.0.is_empty() {
        let length = cursor.u32()? as usize;
        records.push(cursor.take(length)?.to_vec());
    }
    if raw.len() != header.raw_bytes || records.len() as u64 != u64::from(header.count) {
        return Err(ValueFault::Damaged("length of a block"));
    }
    if header.first.0.checked_add(u64::from(header.count)).is_none() {
        return Err(ValueFault::Damaged("ids of a block"));
    }
    Ok((header.first, records))
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Footer {
    pub blocks: u32,
    pub count: u64,
    pub total_crc: u32,
}

impl Footer {
    pub fn encode(&self) -> Vec<u8> {
        let mut footer = FOOTER_MARKER.to_vec();
        footer.extend_from_slice(&self.blocks.to_le_bytes());
        footer.extend_from_slice(&self.count.to_le_bytes());
        footer.extend_from_slice(&self.total_crc.to_le_bytes());
        footer.extend_from_slice(&crc32c::crc32c(&footer).to_le_bytes());
        footer
    }

    pub fn decode(bytes: &[u8]) -> Result<Footer, ValueFault> {
        let mut cursor = Cursor(bytes);
        if cursor.take(FOOTER_MARKER.len())? != FOOTER_MARKER {
            return Err(ValueFault::Damaged("marker of the footer"));
        }
        let footer = Footer { blocks: cursor.u32()?, count: cursor.u64()?, total_crc: cursor.u32()? };
        let checked = bytes.len() - cursor.0.len();
        if cursor.u32()? != crc32c::crc32c(&bytes[..checked]) {
            return Err(ValueFault::Damaged("checksum of the footer"));
        }
        Ok(footer)
    }
}

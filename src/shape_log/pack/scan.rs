//! What the segments say: read whole at a start, and as far as they have grown by who follows them.
//!
//! A record at the end of the last segment that is not whole is what a crash leaves, unless something proves
//! that it was durable: a later record, or the head of a later segment. Then it is damage. Where the content
//! of a record is damaged, its shape finds out when it reads it. Where the head is, the tail tells whose it
//! was; that shape, and no other, has lost something. Where both are, every shape may have.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::domain::Handle;
use crate::shape_log::disk::read_whole;

use super::record::{self, HEAD_LEN, Head, Kind, Next, SEGMENT_HEAD_LEN, SegmentHead};
use super::store::{Piece, Place, Position, Segment, Store, Tail, lock, segment_name};

/// What stands at a place of a segment.
enum Found {
    Record(Position, Head),
    /// A record of this shape was there.
    Lost(Handle),
    /// Records were there, nobody knows whose.
    LostAny,
}

/// What a walk over a segment has found, and how far it came.
struct Walked {
    found: Vec<Found>,
    end: u32,
}

impl Store {
    /// Takes in what has come since the last time. For who follows: damage may pass, as the owner may be
    /// writing at this moment, so nothing is taken in of a segment that seems to have some.
    ///
    /// # Errors
    /// Those of reading.
    pub fn scan(&self, follows: bool) -> io::Result<()> {
        let mut tail = lock(&self.tail);
        if !self.list(&mut tail, follows)? {
            // What was taken in is no longer what the owner has: from the start.
            self.clear();
            *tail = Tail::new();
            self.list(&mut tail, follows)?;
        }
        let valid = valid_ends(&tail.segments);
        for segment in &tail.segments {
            let from = segment.end.load(Ordering::Relaxed);
            let limit = valid.get(&segment.number).copied();
            let size = u32::try_from(segment.file.size()?).map_err(|_| io::ErrorKind::FileTooLarge)?;
            if size.min(limit.unwrap_or(size)) <= from {
                continue;
            }
            let mut bytes = vec![0; (size - from) as usize];
            let read = read_whole(segment.file.as_ref(), &mut bytes, u64::from(from))?;
            bytes.truncate(read);
            let walked = walk(&bytes, from, limit, segment.number);
            let damaged = walked.found.iter().any(|found| !matches!(found, Found::Record(..)));
            if follows && damaged {
                return Err(io::ErrorKind::InvalidData.into());
            }
            walked.found.into_iter().for_each(|found| self.take(segment, found));
            segment.end.store(walked.end, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Opens segments that are new, and drops those that are gone. False where the owner has given up what
    /// was taken in from one.
    fn list(&self, tail: &mut Tail, follows: bool) -> io::Result<bool> {
        let names = match self.inner.list(&self.folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            names => names?,
        };
        let numbers: Vec<u32> = names.iter().filter_map(|name| name.parse().ok()).collect();
        tail.segments.retain(|segment| numbers.contains(&segment.number));
        for number in numbers {
            tail.next = tail.next.max(number.saturating_add(1));
            if tail.segments.iter().any(|segment| segment.number == number) {
                continue;
            }
            let file = match self.inner.open(&self.folder.join(segment_name(number))) {
                // Its content is in those that come after it.
                Err(error) if follows && error.kind() == io::ErrorKind::NotFound => continue,
                file => file?,
            };
            let mut start = [0; SEGMENT_HEAD_LEN + HEAD_LEN];
            let read = read_whole(file.as_ref(), &mut start, 0)?;
            // One without a head was being made when its process ended: nothing of it was durable. Where
            // records follow, it is the head that is damaged.
            let damaged = || {
                let head = SegmentHead { number, before: 0, before_valid: 0 };
                start[..read].get(SEGMENT_HEAD_LEN..).and_then(Head::parse).map(|_| head)
            };
            let head = SegmentHead::decode(&start[..read]).filter(|head| head.number == number);
            if let Some(head) = head.or_else(damaged) {
                let end = AtomicU32::new(SEGMENT_HEAD_LEN as u32);
                tail.segments.push(Arc::new(Segment { number, file, head, end }));
            }
        }
        tail.segments.sort_unstable_by_key(|segment| segment.number);
        let valid = valid_ends(&tail.segments);
        Ok(tail.segments.iter().all(|segment| {
            valid.get(&segment.number).is_none_or(|valid| segment.end.load(Ordering::Relaxed) <= *valid)
        }))
    }

    fn take(&self, segment: &Arc<Segment>, found: Found) {
        match found {
            Found::Record(_, Head { kind: Kind::Gone, handle, .. }) => {
                if let Some(shape) = self.shape(handle) {
                    let mut state = shape.state();
                    self.account(&mut state, Kind::Gone, 0, None);
                    state.place = Place::Gone;
                    drop(state);
                    self.forget(handle);
                }
            }
            Found::Record(upto, head) => {
                let (shape, _) = self.shape_or_new(head.handle);
                let mut state = shape.state();
                let content = upto.at() - (record::TAIL_LEN as u32) - head.len;
                let (len, kind) = (head.len, head.kind);
                let piece = (len > 0).then(|| Piece { segment: Arc::clone(segment), at: content, len, kind });
                self.account(&mut state, kind, head.at, piece);
                state.upto = upto;
            }
            Found::Lost(handle) => {
                tracing::error!(shape_handle = %handle, "a record of a shape is damaged");
                self.shape_or_new(handle).0.state().lost = true;
            }
            Found::LostAny => {
                tracing::error!(
                    segment = segment.number,
                    "records of small shapes are damaged, nobody knows whose"
                );
                self.all().into_iter().for_each(|(_, shape)| shape.state().lost = true);
            }
        }
    }
}

/// How far segments are valid, as the heads of those after them say.
fn valid_ends(segments: &[Arc<Segment>]) -> BTreeMap<u32, u32> {
    segments.iter().map(|segment| (segment.head.before, segment.head.before_valid)).collect()
}

/// Walks over the bytes of a segment from `base` on; `limit`: how far it is known to be valid.
fn walk(bytes: &[u8], base: u32, limit: Option<u32>, number: u32) -> Walked {
    let bytes = match limit {
        Some(limit) => &bytes[..bytes.len().min((limit - base) as usize)],
        None => bytes,
    };
    let mut found = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let place = base + at as u32;
        match record::next(bytes, at) {
            Next::Record { head, whole } if whole || is_proven(bytes, at, place, limit) => {
                at += head.record_len();
                found.push(Found::Record(Position::new(number, base + at as u32), head));
            }
            Next::Record { .. } | Next::Nothing => {
                if !is_proven(bytes, at, place, limit) {
                    break;
                }
                let next = record::resume(bytes, at + 1).map(|(next, _)| next);
                // Without another record it is the last one, where it is known how far they reach.
                let end = next.unwrap_or(bytes.len());
                found.push(match record::parse_tail(&bytes[at..end]) {
                    Some((handle, len)) if len == end - at => Found::Lost(handle),
                    Some(_) | None => Found::LostAny,
                });
                at = end;
            }
        }
    }
    Walked { found, end: base + at as u32 }
}

/// Whether something says that what stands at a place was durable once.
fn is_proven(bytes: &[u8], at: usize, place: u32, limit: Option<u32>) -> bool {
    if limit.is_some_and(|limit| limit > place) {
        return true;
    }
    let mut from = at + 1;
    while let Some((next, head)) = record::resume(bytes, from) {
        if head.durable > place {
            return true;
        }
        from = next + 1;
    }
    false
}

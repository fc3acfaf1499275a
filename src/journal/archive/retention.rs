//! How long sealed segments are kept.

use std::ops::RangeInclusive;
use std::time::Duration;

use crate::domain::{EventId, Timestamp};

use super::ArchiveSegment;

const DEFAULT_AGE_MAX: Duration = Duration::from_hours(72);
const DEFAULT_BYTES_MAX: u64 = 2 * 1024 * 1024 * 1024;

/// Limits for the archive. Whichever is reached first decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// Age of the newest event in a segment.
    pub age_max: Duration,
    /// Size of all segments and of the states at their ends together.
    pub bytes_max: u64,
}

impl Default for Retention {
    fn default() -> Retention {
        Retention { age_max: DEFAULT_AGE_MAX, bytes_max: DEFAULT_BYTES_MAX }
    }
}

impl Retention {
    /// Which of `segments` (ascending, as [`super::Archive::segments`] lists them) may go: the too old, then
    /// the oldest until the rest fits. Never one that overlaps a pinned range; pinned ones still count.
    #[must_use]
    pub fn expired<'a>(
        &self,
        now: Timestamp,
        segments: &'a [ArchiveSegment],
        pinned: &[RangeInclusive<EventId>],
    ) -> Vec<&'a ArchiveSegment> {
        let mut bytes: u64 = segments.iter().map(size).sum();
        let mut expired = Vec::new();
        for segment in segments {
            let old = segment.newest_at.is_some_and(|newest| now.since(newest) > self.age_max);
            let pinned =
                pinned.iter().any(|range| *range.start() <= segment.last && segment.first <= *range.end());
            if (old || bytes > self.bytes_max) && !pinned {
                bytes -= size(segment);
                expired.push(segment);
            }
        }
        expired
    }
}

fn size(segment: &ArchiveSegment) -> u64 {
    segment.bytes + segment.state_bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::Epoch;

    /// Segments of 10 events and 100 bytes, one per hour; prints the first ids of those that may go.
    fn check(age_hours: u64, bytes_max: u64, pinned: &[RangeInclusive<EventId>]) -> Vec<u64> {
        let hour = |number: u64| Timestamp(0).plus(Duration::from_hours(number));
        let segments: Vec<ArchiveSegment> = (0..5)
            .map(|number| ArchiveSegment {
                path: "segment".into(),
                epoch: Epoch(1),
                first: EventId(number * 10 + 1),
                last: EventId(number * 10 + 10),
                bytes: 80,
                state_bytes: 20,
                newest_at: (number != 3).then(|| hour(number)),
            })
            .collect();
        let retention = Retention { age_max: Duration::from_hours(age_hours), bytes_max };
        retention.expired(hour(5), &segments, pinned).iter().map(|segment| segment.first.0).collect()
    }

    #[test]
    fn age_and_size_decide_and_pins_hold() {
        assert_eq!(check(9, 1000, &[]), [0u64; 0]);
        assert_eq!(check(5, 1000, &[]), [0u64; 0], "exactly as old as allowed");
        assert_eq!(check(3, 1000, &[]), [1, 11]);
        assert_eq!(check(0, 1000, &[]), [1, 11, 21, 41], "without a time only the size removes");
        assert_eq!(check(9, 250, &[]), [1, 11, 21]);
        assert_eq!(check(9, 0, &[EventId(20)..=EventId(21)]), [1, 31, 41]);
        assert_eq!(check(0, 0, &[EventId(1)..=EventId(50)]), [0u64; 0]);
    }
}

//! How the service gets on, put together from what the driver and the probe publish. Whoever asks takes
//! a copy of a few numbers and holds up neither.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::domain::{Handle, Lsn};
use crate::events::Part;

/// Growth of the log of Postgres that is no evidence of work: what an idle server writes by itself.
const GROWTH_MIN: u64 = 64 << 10;

/// What the driver publishes, now and then.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DriverView {
    /// Postgres was told that everything before is flushed.
    pub boundary: Lsn,
    /// Shapes that owe a transaction.
    pub owing: usize,
    /// Memory of what they owe, bytes.
    pub held_bytes: u64,
    pub holder: Option<Holder>,
    /// Those that have owed longest after it, at most [`HOLDERS_MAX`].
    pub next_holders: Vec<Holder>,
    /// Since when more shapes would have to be given up than may be.
    pub exhausted: Option<Duration>,
}

/// Shapes that are named beside the one that has owed longest.
pub const HOLDERS_MAX: usize = 9;

/// The shape that has owed longest: it holds up the acknowledgement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    pub handle: Handle,
    /// The oldest transaction that it owes.
    pub lsn: Lsn,
    /// Since when it has made no progress.
    pub waiting: Duration,
}

/// What the probe learns from Postgres and the file system.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Probed {
    /// End of the log of Postgres.
    pub wal_end: Lsn,
    /// Seconds until Postgres may throw away what the slot needs, at the present rate.
    pub slot_seconds_left: Option<f64>,
    /// Seconds until the data directory's disk is full, at the present rate.
    pub disk_seconds_left: Option<f64>,
}

/// Where a service stands that is asked whether it gets on.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    pub boundary: Lsn,
    /// End of the log of Postgres when it was last looked at.
    pub wal_end: Option<Lsn>,
    /// Since when the boundary has not moved.
    pub still_for: Duration,
    /// How much the log grew meanwhile, bytes.
    pub grown: u64,
    pub owing: usize,
    pub held_bytes: u64,
    pub holder: Option<Holder>,
    pub next_holders: Vec<Holder>,
    /// Since when more shapes would have to be given up than may be.
    pub exhausted: Option<Duration>,
    /// Parts of the pipeline that stand still.
    pub still: Vec<(Part, Duration)>,
    pub slot_seconds_left: Option<f64>,
    pub disk_seconds_left: Option<f64>,
}

/// The newest of both, and when the boundary last moved.
#[derive(Debug, Default)]
pub struct Progress {
    seen: Mutex<Seen>,
    queried: AtomicU64,
}

#[derive(Debug, Default)]
struct Seen {
    driver: Option<DriverView>,
    probed: Option<Probed>,
    moved: Option<Moved>,
    still: Vec<(Part, Duration)>,
}

#[derive(Clone, Copy, Debug)]
struct Moved {
    at: Instant,
    /// End of the log at that time; unknown until the probe has looked.
    wal_end: Option<Lsn>,
}

impl Progress {
    /// Rows were read that may have what was committed up to there. Called before a client is given any
    /// of them.
    pub fn note_query(&self, upto: Lsn) {
        self.queried.fetch_max(upto.0, Ordering::SeqCst);
    }

    /// The newest of these.
    #[must_use]
    pub fn queried(&self) -> Lsn {
        Lsn(self.queried.load(Ordering::SeqCst))
    }

    pub fn publish(&self, now: Instant, view: DriverView) {
        let mut seen = self.lock();
        let before = seen.driver.replace(view);
        let moved = match (&before, &seen.driver) {
            (Some(before), Some(view)) => before.boundary != view.boundary,
            (None, _) | (_, None) => true,
        };
        if moved {
            seen.moved = Some(Moved { at: now, wal_end: seen.probed.map(|probed| probed.wal_end) });
        }
    }

    pub fn probed(&self, probed: Probed) {
        let mut seen = self.lock();
        seen.probed = Some(probed);
        if let Some(moved) = &mut seen.moved {
            moved.wal_end.get_or_insert(probed.wal_end);
        }
    }

    /// What the watchdog sees.
    pub fn standing(&self, still: Vec<(Part, Duration)>) {
        self.lock().still = still;
    }

    /// Streaming has begun anew: what was before says nothing about it.
    pub fn restart(&self, now: Instant) {
        let mut seen = self.lock();
        let wal_end = seen.probed.map(|probed| probed.wal_end);
        seen.moved = Some(Moved { at: now, wal_end });
    }

    /// Where things stand; `None` before the driver has said anything.
    #[must_use]
    pub fn report(&self, now: Instant) -> Option<Report> {
        let seen = self.lock();
        let view = seen.driver.as_ref()?;
        let wal_end = seen.probed.map(|probed| probed.wal_end);
        let moved = seen.moved?;
        let grown = wal_end.zip(moved.wal_end).map_or(0, |(end, then)| end.0.saturating_sub(then.0));
        Some(Report {
            boundary: view.boundary,
            wal_end,
            still_for: now.saturating_duration_since(moved.at),
            grown,
            owing: view.owing,
            held_bytes: view.held_bytes,
            holder: view.holder.clone(),
            next_holders: view.next_holders.clone(),
            exhausted: view.exhausted,
            still: seen.still.clone(),
            slot_seconds_left: seen.probed.and_then(|probed| probed.slot_seconds_left),
            disk_seconds_left: seen.probed.and_then(|probed| probed.disk_seconds_left),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Report {
    /// What is wrong with the service as a whole: a part of the pipeline stands still, or more shapes make no
    /// progress than may be given up.
    #[must_use]
    pub fn alarm(&self) -> Option<String> {
        if let Some((part, still)) = self.still.first() {
            return Some(format!("{part} has shown no sign of life for {} s", still.as_secs()));
        }
        if let Some(exhausted) = self.exhausted {
            let holder = self.holder.as_ref().map_or_else(String::new, |holder| {
                format!(
                    "; the longest is {}, which has owed a transaction for {} s",
                    holder.handle,
                    holder.waiting.as_secs()
                )
            });
            return Some(format!(
                "more shapes make no progress than may be given up, for {} s: none is given up, nothing that they \
                 owe is acknowledged{holder}",
                exhausted.as_secs()
            ));
        }
        None
    }

    /// Why this is no progress, where it is none: there was something to do for so long, and what is
    /// flushed has not moved.
    #[must_use]
    pub fn stalled(&self, after: Duration) -> Option<String> {
        if let Some(alarm) = self.alarm() {
            return Some(alarm);
        }
        if self.still_for < after {
            return None;
        }
        let owed_for = self.holder.as_ref().map_or(Duration::ZERO, |holder| holder.waiting);
        if self.grown < GROWTH_MIN && owed_for < after {
            return None;
        }
        let still = format!(
            "the boundary has not moved for {} s while the log of Postgres grew by {} bytes",
            self.still_for.as_secs(),
            self.grown
        );
        Some(match &self.holder {
            Some(holder) => format!(
                "{still}, held by shape {}, which has owed a transaction for {} s",
                holder.handle,
                holder.waiting.as_secs()
            ),
            None => format!("{still}, held by no shape: the stream brings nothing"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HANDLE: Handle = Handle { hash: 1, micros: 2 };

    fn view(boundary: u64, waiting: Option<u64>) -> DriverView {
        let holder = waiting.map(|seconds| Holder {
            handle: HANDLE,
            lsn: Lsn(90),
            waiting: Duration::from_secs(seconds),
        });
        DriverView {
            boundary: Lsn(boundary),
            owing: holder.iter().count(),
            held_bytes: 10,
            holder,
            next_holders: Vec::new(),
            exhausted: None,
        }
    }

    fn probe(wal_end: u64) -> Probed {
        Probed { wal_end: Lsn(wal_end), ..Probed::default() }
    }

    #[test]
    fn ready_is_not_progressing() {
        let progress = Progress::default();
        let begun = Instant::now();
        let after = |seconds| begun + Duration::from_secs(seconds);
        let grace = Duration::from_secs(30);
        assert_eq!(progress.report(begun), None);
        progress.publish(begun, view(100, None));
        progress.probed(probe(1_000));
        // Nothing happens: that is no stall, however long.
        let idle = progress.report(after(3_600)).expect("something was published");
        assert_eq!((idle.grown, idle.stalled(grace)), (0, None));
        // The log grows, and nothing moves.
        progress.probed(probe(1_000 + 200_000));
        let report = progress.report(after(31)).expect("published");
        assert_eq!((report.grown, report.still_for.as_secs()), (200_000, 31));
        assert_eq!(
            report.stalled(grace).as_deref(),
            Some(
                "the boundary has not moved for 31 s while the log of Postgres grew by 200000 bytes, held by no \
                 shape: the stream brings nothing"
            )
        );
        assert_eq!(progress.report(after(29)).expect("published").stalled(grace), None, "within the grace");
        // It moves.
        progress.publish(after(32), view(101, Some(0)));
        assert_eq!(progress.report(after(33)).expect("published").stalled(grace), None);
        // One transaction is owed for long, on a server where nothing else happens.
        progress.publish(after(70), view(101, Some(38)));
        let told = progress.report(after(70)).expect("published").stalled(grace).expect("a stall");
        assert!(told.contains("held by shape 1-2, which has owed a transaction for 38 s"), "{told}");
        // A new stream starts with a clean sheet.
        progress.restart(after(71));
        assert_eq!(progress.report(after(72)).expect("published").stalled(grace), None);
    }

    /// What the watchdog and the engine know is told at once, whatever the boundary does.
    #[test]
    fn a_standstill_and_an_exhausted_budget_are_told() {
        let progress = Progress::default();
        let begun = Instant::now();
        let stalled = || progress.report(begun).expect("published").stalled(Duration::from_secs(30));
        progress.publish(begun, view(100, Some(65)));
        progress.standing(vec![(Part::Writers(1), Duration::from_secs(12))]);
        assert_eq!(stalled().as_deref(), Some("writers-1 has shown no sign of life for 12 s"));
        progress.standing(Vec::new());
        assert_eq!(stalled(), None);
        progress
            .publish(begun, DriverView { exhausted: Some(Duration::from_secs(7)), ..view(100, Some(65)) });
        let told = stalled().expect("an alarm");
        assert!(told.contains("more shapes make no progress than may be given up, for 7 s"), "{told}");
        assert!(told.contains("the longest is 1-2, which has owed a transaction for 65 s"), "{told}");
    }
}

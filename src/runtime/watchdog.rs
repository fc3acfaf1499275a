//! A thread that watches whether the others get on. It shares neither thread nor queue nor lock with the
//! pipeline: each part of that counts a number up, and the watchdog looks whether the numbers move.
//!
//! What it sees goes to the log, to metrics and readiness at once, and to the driver without waiting: the
//! engine then gives up no shape for what is no shape's fault, for a bounded time, and journals that.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::engine::Input;
use crate::events::Part;

/// Between two looks.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);
/// A look that comes later than this says that the whole process stood still, and nothing about its parts.
const LOOK_LATE: Duration = Duration::from_secs(2);

/// Signs of life of one part of the pipeline.
#[derive(Debug, Default)]
pub struct Pulse {
    beats: AtomicU64,
    /// Nothing is to be expected of it.
    resting: AtomicBool,
    #[cfg(feature = "test-hooks")]
    held: Hold,
}

impl Pulse {
    /// Of a part that beats however little there is to do.
    #[must_use]
    pub fn new() -> Arc<Pulse> {
        Arc::default()
    }

    /// Of a part that beats only while it works.
    #[must_use]
    pub fn resting() -> Arc<Pulse> {
        let pulse = Pulse::default();
        pulse.resting.store(true, Ordering::Relaxed);
        Arc::new(pulse)
    }

    /// A sign of life.
    pub fn beat(&self) {
        #[cfg(feature = "test-hooks")]
        self.held.wait();
        self.beats.fetch_add(1, Ordering::Relaxed);
    }

    /// Work begins, for a part that rests in between.
    pub fn begin(&self) {
        self.resting.store(false, Ordering::Relaxed);
        self.beat();
    }

    /// Work is over.
    pub fn end(&self) {
        self.resting.store(true, Ordering::Relaxed);
        self.beats.fetch_add(1, Ordering::Relaxed);
    }

    /// For tests: whoever beats next stands still, until let go.
    #[cfg(feature = "test-hooks")]
    pub fn hold(&self, held: bool) {
        self.held.set(held);
    }
}

/// Holds a thread up, for tests.
#[cfg(feature = "test-hooks")]
#[derive(Debug, Default)]
struct Hold {
    held: std::sync::Mutex<bool>,
    changed: std::sync::Condvar,
}

#[cfg(feature = "test-hooks")]
impl Hold {
    fn set(&self, held: bool) {
        *self.held.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = held;
        self.changed.notify_all();
    }

    fn wait(&self) {
        let held = self.held.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let _let_go =
            self.changed.wait_while(held, |held| *held).unwrap_or_else(std::sync::PoisonError::into_inner);
    }
}

/// A part and its pulse.
#[derive(Clone, Debug)]
pub struct Watched {
    pub part: Part,
    pub pulse: Arc<Pulse>,
}

/// What a look found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Finding {
    /// No sign of life for so long, for the first time.
    Stopped(Part, Duration),
    /// Still none: worth another line in the log.
    StillStopped(Part, Duration),
    Resumed(Part, Duration),
}

/// Looks, without a clock of its own.
#[derive(Debug)]
struct Watcher {
    parts: Vec<(Watched, Seen)>,
    /// Without a sign of life for so long, a part stands still.
    after: Duration,
    looked: Instant,
}

#[derive(Debug)]
struct Seen {
    beats: u64,
    since: Instant,
    /// When its standing still is worth the next line.
    told: Option<Duration>,
}

impl Watcher {
    fn new(parts: Vec<Watched>, after: Duration, now: Instant) -> Watcher {
        let seen = |watched| (watched, Seen { beats: 0, since: now, told: None });
        Watcher { parts: parts.into_iter().map(seen).collect(), after, looked: now }
    }

    fn look(&mut self, now: Instant) -> Vec<Finding> {
        // This thread was held up as well: a laptop that slept, a process that was stopped.
        let late = now.duration_since(self.looked) > LOOK_LATE;
        self.looked = now;
        let mut findings = Vec::new();
        for (Watched { part, pulse }, seen) in &mut self.parts {
            let beats = pulse.beats.load(Ordering::Relaxed);
            let alive = beats != seen.beats || pulse.resting.load(Ordering::Relaxed);
            let still = now.duration_since(seen.since);
            if alive {
                if seen.told.take().is_some() {
                    findings.push(Finding::Resumed(*part, still));
                }
                (seen.beats, seen.since) = (beats, now);
            } else if late && seen.told.is_none() {
                seen.since = now;
            } else {
                match seen.told {
                    None if still >= self.after => {
                        seen.told = Some(still * 2);
                        findings.push(Finding::Stopped(*part, still));
                    }
                    Some(next) if still >= next => {
                        seen.told = Some(still * 2);
                        findings.push(Finding::StillStopped(*part, still));
                    }
                    None | Some(_) => {}
                }
            }
        }
        findings
    }

    /// The parts that stand still, and for how long.
    fn still(&self, now: Instant) -> Vec<(Part, Duration)> {
        let still = |(watched, seen): &(Watched, Seen)| {
            seen.told.map(|_| (watched.part, now.duration_since(seen.since)))
        };
        self.parts.iter().filter_map(still).collect()
    }
}

/// The thread. Ends when this is dropped.
#[derive(Debug)]
pub struct Watchdog {
    stop: Option<Sender<()>>,
    join: Option<JoinHandle<()>>,
}

impl Watchdog {
    /// Watches from now on. `publish` is called at each look, `tell` hands an input to the driver and says
    /// whether it was taken: a full queue is tried again.
    ///
    /// # Errors
    /// The operating system gives no thread.
    pub fn spawn(
        parts: Vec<Watched>,
        after: Duration,
        publish: impl Fn(Vec<(Part, Duration)>) + Send + 'static,
        tell: impl Fn(Input) -> bool + Send + 'static,
    ) -> std::io::Result<Watchdog> {
        let (stop, stopped) = channel::<()>();
        let join = thread::Builder::new().name("watchdog".to_owned()).spawn(move || {
            let mut watcher = Watcher::new(parts, after, Instant::now());
            // Bounded: at most one beginning and one end for each part wait.
            let mut untold: Vec<Finding> = Vec::new();
            while let Err(RecvTimeoutError::Timeout) = stopped.recv_timeout(LOOK_INTERVAL) {
                let now = Instant::now();
                for finding in watcher.look(now) {
                    log(finding);
                    note(&mut untold, finding);
                }
                publish(watcher.still(now));
                // In their order: where one is not taken, those after it wait.
                let taken = untold.iter().take_while(|finding| input(**finding).is_none_or(&tell)).count();
                untold.drain(..taken);
            }
        })?;
        Ok(Watchdog { stop: Some(stop), join: Some(join) })
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.stop = None;
        if self.join.take().is_some_and(|join| join.join().is_err()) {
            tracing::error!("the watchdog panicked");
        }
    }
}

fn log(finding: Finding) {
    match finding {
        Finding::Stopped(part, still) | Finding::StillStopped(part, still) => tracing::error!(
            %part,
            still_ms = still.as_millis(),
            "a part of the pipeline stands still; nothing is acknowledged that it holds, and no shape is given up for it"
        ),
        Finding::Resumed(part, still) => {
            tracing::warn!(%part, still_ms = still.as_millis(), "a part of the pipeline goes on");
        }
    }
}

/// Keeps what the driver has yet to be told. Of a part that stopped and went on several times meanwhile it
/// is told the last of each.
fn note(untold: &mut Vec<Finding>, finding: Finding) {
    let same = |other: &Finding| match (other, &finding) {
        (Finding::Stopped(part, _), Finding::Stopped(own, _))
        | (Finding::Resumed(part, _), Finding::Resumed(own, _)) => part == own,
        (Finding::Stopped(..) | Finding::Resumed(..) | Finding::StillStopped(..), _) => false,
    };
    match finding {
        Finding::Stopped(..) | Finding::Resumed(..) => {
            untold.retain(|other| !same(other));
            untold.push(finding);
        }
        Finding::StillStopped(..) => {}
    }
}

fn input(finding: Finding) -> Option<Input> {
    match finding {
        Finding::Stopped(part, still) => Some(Input::StoodStill { part, still }),
        Finding::Resumed(part, still) => Some(Input::WentOn { part, still }),
        Finding::StillStopped(..) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DRIVER: Part = Part::Driver;
    const JOURNAL: Part = Part::Journal;

    fn watcher(now: Instant) -> (Watcher, Arc<Pulse>, Arc<Pulse>) {
        let (driver, journal) = (Pulse::new(), Pulse::resting());
        let parts = vec![
            Watched { part: DRIVER, pulse: Arc::clone(&driver) },
            Watched { part: JOURNAL, pulse: Arc::clone(&journal) },
        ];
        (Watcher::new(parts, Duration::from_secs(10), now), driver, journal)
    }

    /// Looks once a second; what was found, with the second.
    fn look(watcher: &mut Watcher, begun: Instant, seconds: std::ops::Range<u64>) -> Vec<(u64, Finding)> {
        let mut found = Vec::new();
        for second in seconds {
            let now = begun + Duration::from_secs(second);
            found.extend(watcher.look(now).into_iter().map(|finding| (second, finding)));
        }
        found
    }

    #[test]
    fn what_stands_still_is_told_once_and_then_ever_more_rarely() {
        let begun = Instant::now();
        let (mut watcher, driver, _journal) = watcher(begun);
        driver.beat();
        let seconds = Duration::from_secs;
        let found = look(&mut watcher, begun, 0..100);
        assert_eq!(
            found,
            [
                (10, Finding::Stopped(DRIVER, seconds(10))),
                (20, Finding::StillStopped(DRIVER, seconds(20))),
                (40, Finding::StillStopped(DRIVER, seconds(40))),
                (80, Finding::StillStopped(DRIVER, seconds(80))),
            ]
        );
        assert_eq!(watcher.still(begun + seconds(90)), [(DRIVER, seconds(90))]);
        driver.beat();
        assert_eq!(look(&mut watcher, begun, 100..103), [(100, Finding::Resumed(DRIVER, seconds(100)))]);
        assert_eq!(watcher.still(begun + seconds(102)), []);
    }

    #[test]
    fn who_rests_is_not_expected_to_move_and_who_works_is() {
        let begun = Instant::now();
        let (mut watcher, driver, journal) = watcher(begun);
        let mut found = Vec::new();
        for second in 0..60 {
            driver.beat();
            match second {
                20 => journal.begin(),
                45 => journal.end(),
                0.. => {}
            }
            found.extend(look(&mut watcher, begun, second..second + 1));
        }
        let names: Vec<String> =
            found.iter().map(|(second, finding)| format!("{second} {finding:?}")).collect();
        assert_eq!(
            names,
            ["30 Stopped(Journal, 10s)", "40 StillStopped(Journal, 20s)", "45 Resumed(Journal, 25s)"]
        );
    }

    /// A process that was stopped as a whole says nothing about its parts.
    #[test]
    fn a_pause_of_everything_is_no_finding() {
        let begun = Instant::now();
        let (mut watcher, driver, _journal) = watcher(begun);
        driver.beat();
        assert_eq!(look(&mut watcher, begun, 0..2), []);
        assert_eq!(look(&mut watcher, begun, 600..605), []);
        driver.beat();
        assert_eq!(look(&mut watcher, begun, 605..606), []);
    }

    #[test]
    fn what_the_driver_has_not_been_told_does_not_pile_up() {
        let mut untold = Vec::new();
        for second in 1..50 {
            note(&mut untold, Finding::Stopped(DRIVER, Duration::from_secs(second)));
            note(&mut untold, Finding::Resumed(DRIVER, Duration::from_secs(second + 1)));
            note(&mut untold, Finding::StillStopped(JOURNAL, Duration::from_secs(second)));
        }
        assert_eq!(untold.len(), 2, "{untold:?}");
    }
}

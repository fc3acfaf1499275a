//! What is done to a fleet, and what came of it.

use std::time::Duration;

/// What is done to the fleet.
#[derive(Clone, Debug)]
pub struct FleetSettings {
    pub shapes: u32,
    pub duration: Duration,
    pub txns_per_second: u32,
    /// Shapes that each transaction is routed to.
    pub fan_out: u32,
    /// Write-ahead log that each transaction takes, bytes.
    pub wal_bytes: u64,
    /// Of the living writers, each second.
    pub killed_percent: f64,
    /// As the service: 10 s.
    pub audit_every: Duration,
    pub seed: u64,
    /// Keep pace with the clock of the machine; otherwise time passes as fast as it can, and the outcome
    /// depends on nothing but the seed.
    pub real_time: bool,
}

/// What came of it.
#[derive(Clone, Debug, Default)]
pub struct FleetReport {
    pub transactions: u64,
    pub events: u64,
    pub checkpoints: u64,
    pub living_at_start: usize,
    pub killed: usize,
    pub flagged: usize,
    /// Flagged although it lived.
    pub flagged_alive: usize,
    /// Dead, and never flagged.
    pub missed: usize,
    /// Shapes that were ended, suspected, or whose writers were ended although nobody had killed them.
    pub others_touched: usize,
    pub audits: u64,
    pub longest_audit: Duration,
    /// Longest that one step of the loop took, of the machine's time.
    pub longest_slice: Duration,
    /// How far the loop fell behind the clock, with [`FleetSettings::real_time`].
    pub longest_lag: Duration,
    /// Log that Postgres had to keep, bytes: the most at any time, and after the end.
    pub retained_max: u64,
    pub retained_at_end: u64,
    pub making: Duration,
    pub running: Duration,
    /// [`FleetReport::others_touched`] before every shape was ended.
    pub ended_before: usize,
    /// Events and record bytes of the one step that ended every shape.
    pub end_events: u64,
    pub end_bytes: u64,
    /// How long the engine took for that step, and how long until nothing was left of any shape.
    pub end_step: Duration,
    pub ending: Duration,
    /// Shapes of which something is left after that.
    pub left: usize,
    /// The journal on disk does not fold to what the engine has.
    pub journal_differs: bool,
}

impl FleetReport {
    /// What is wrong with it, if anything.
    #[must_use]
    pub fn faults(&self, settings: &FleetSettings) -> Vec<String> {
        let mut faults = Vec::new();
        let mut check = |holds: bool, what: String| {
            if !holds {
                faults.push(what);
            }
        };
        check(self.killed > 0, "nobody was killed".to_owned());
        check(self.missed == 0, format!("{} of those killed were never flagged", self.missed));
        check(self.flagged_alive == 0, format!("{} were flagged that lived", self.flagged_alive));
        check(self.ended_before == 0, format!("{} others were touched", self.ended_before));
        check(self.left == 0, format!("{} shapes did not come to their end", self.left));
        check(!self.journal_differs, "the journal folds to another state".to_owned());
        let bound = self.retained_bound(settings);
        check(
            self.retained_max <= bound,
            format!("{} bytes of log were kept, {bound} at most", self.retained_max),
        );
        check(self.retained_at_end <= bound, format!("{} bytes were kept at the end", self.retained_at_end));
        faults
    }

    /// What may be kept: what is written until an audit finds a dead writer, until it is started again, and
    /// until it has flushed.
    #[must_use]
    pub fn retained_bound(&self, settings: &FleetSettings) -> u64 {
        let rate = u64::from(settings.txns_per_second) * settings.wal_bytes;
        let seconds = settings.audit_every.as_secs_f64() + 2.0 + self.longest_lag.as_secs_f64();
        (rate as f64 * seconds) as u64
    }
}

//! Latencies in a histogram of high dynamic range: all of them count, none is kept.

use std::fmt;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

/// From a microsecond to ten minutes, to three digits.
const MICROS_MAX: u64 = 600_000_000;
const DIGITS: u8 = 3;

/// Latencies so far.
#[derive(Clone, Debug)]
pub struct Latencies(Histogram<u64>);

impl Default for Latencies {
    fn default() -> Latencies {
        Latencies(Histogram::new_with_bounds(1, MICROS_MAX, DIGITS).expect("the bounds are in order"))
    }
}

impl Latencies {
    /// One more; what is longer than ten minutes counts as ten minutes.
    pub fn add(&mut self, latency: Duration) {
        self.0.saturating_record(u64::try_from(latency.as_micros()).unwrap_or(MICROS_MAX).max(1));
    }

    pub fn merge(&mut self, other: &Latencies) {
        self.0.add(&other.0).expect("both have the same bounds");
    }

    #[must_use]
    pub fn count(&self) -> u64 {
        self.0.len()
    }

    #[must_use]
    pub fn percentiles(&self) -> Percentiles {
        let at = |percent: f64| self.0.value_at_percentile(percent) as f64 / 1_000.0;
        Percentiles {
            count: self.0.len(),
            mean_ms: self.0.mean() / 1_000.0,
            p50_ms: at(50.0),
            p90_ms: at(90.0),
            p99_ms: at(99.0),
            p999_ms: at(99.9),
            max_ms: self.0.max() as f64 / 1_000.0,
        }
    }
}

/// What a histogram says, in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Percentiles {
    pub count: u64,
    pub mean_ms: f64,
    pub p50_ms: f64,
    pub p90_ms: f64,
    pub p99_ms: f64,
    pub p999_ms: f64,
    pub max_ms: f64,
}

impl fmt::Display for Percentiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Percentiles { count, mean_ms, p50_ms, p90_ms, p99_ms, p999_ms, max_ms } = self;
        write!(
            f,
            "mean {mean_ms:.2}  p50 {p50_ms:.2}  p90 {p90_ms:.2}  p99 {p99_ms:.2}  p99.9 {p999_ms:.2}  max {max_ms:.2} ms of {count}"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_those_of_the_samples() {
        let mut latencies = Latencies::default();
        (1..=1_000).for_each(|millis| latencies.add(Duration::from_millis(millis)));
        latencies.add(Duration::from_secs(3_600));
        let found = latencies.percentiles();
        for (is, expected) in
            [(found.p50_ms, 500.0), (found.p90_ms, 900.0), (found.p99_ms, 990.0), (found.max_ms, 600_000.0)]
        {
            assert!((is - expected).abs() <= expected * 0.005, "{is} is not {expected}");
        }
        let mut both = Latencies::default();
        both.merge(&latencies);
        both.merge(&latencies);
        assert_eq!((both.count(), both.percentiles().p50_ms), (2_002, found.p50_ms));
    }
}

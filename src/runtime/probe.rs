//! Looks at what nobody tells: the slot, the end of Postgres' log, the disk, the host. For metrics and
//! readiness only; nothing is decided by it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::domain::Lsn;
use crate::postgres::PgError;
use crate::runtime::connections::Connections;
use crate::runtime::handle::{Service, Status};
use crate::runtime::progress::Probed;
use crate::telemetry::Metrics;

/// Longest wait for an answer of Postgres.
const ANSWER_WAIT_MAX: Duration = Duration::from_secs(5);
/// Nearer than this, a limit is worth a warning.
const NEAR: Duration = Duration::from_secs(600);
/// A shape that has owed for so long is named in it.
const HELD_LONG: Duration = Duration::from_secs(5);
/// A rate is the mean over about this long.
const RATE_OVER: Duration = Duration::from_secs(60);

const SLOT: &str = "
SELECT pg_current_wal_lsn()::text, restart_lsn::text, confirmed_flush_lsn::text, safe_wal_size
FROM (SELECT 1) AS always
LEFT JOIN pg_catalog.pg_replication_slots ON slot_name = $1";

/// The task.
pub(super) struct Probe {
    pub service: Service,
    pub admin: Connections,
    pub slot: String,
    pub data_dir: PathBuf,
    pub interval: Duration,
}

/// How fast a number grows.
#[derive(Clone, Copy, Debug, Default)]
struct Rate {
    last: Option<(Instant, u64)>,
    per_second: f64,
}

impl Rate {
    /// Takes the number in; what is left at this rate of `rest`, in seconds, where it grows at all.
    fn seconds_left(&mut self, now: Instant, number: u64, rest: u64) -> Option<f64> {
        if let Some((then, before)) = self.last {
            let passed = now.duration_since(then).as_secs_f64();
            if passed > 0.0 {
                let new = number.saturating_sub(before) as f64 / passed;
                let weight = (passed / RATE_OVER.as_secs_f64()).min(1.0);
                self.per_second += (new - self.per_second) * weight;
            }
        }
        self.last = Some((now, number));
        (self.per_second > 0.0).then(|| rest as f64 / self.per_second)
    }
}

/// What was read about the slot.
#[derive(Clone, Copy, Debug)]
struct SlotState {
    wal_end: Lsn,
    restart: Option<Lsn>,
    confirmed: Option<Lsn>,
    /// `None` without a limit.
    safe_bytes: Option<u64>,
}

impl Probe {
    /// Runs until the service drains.
    pub(super) async fn run(self) {
        let mut status = self.service.watch_status();
        let (mut wal, mut disk) = (Rate::default(), Rate::default());
        let mut warned = None;
        let mut probed = Probed::default();
        loop {
            self.host();
            probed.disk_seconds_left = self.disk(&mut disk);
            // Not while connections are closed for want of work: that is what they are closed for.
            if *status.borrow() == Status::Active && !self.service.is_asleep() {
                match tokio::time::timeout(ANSWER_WAIT_MAX, self.slot()).await {
                    Ok(Ok(slot)) => self.tell_slot(slot, &mut wal, &mut probed),
                    Ok(Err(error)) => tracing::debug!(%error, "the slot could not be looked at"),
                    Err(_elapsed) => tracing::debug!("the slot could not be looked at in time"),
                }
            }
            let metrics = self.service.metrics();
            metrics.disk_seconds_left.set(probed.disk_seconds_left.unwrap_or(f64::INFINITY));
            metrics.slot.seconds_left.set(probed.slot_seconds_left.unwrap_or(f64::INFINITY));
            let soonest =
                [probed.slot_seconds_left, probed.disk_seconds_left].into_iter().flatten().reduce(f64::min);
            self.warn(soonest, &mut warned);
            if probed.wal_end > Lsn(0) {
                self.service.progress().probed(probed);
            }
            tokio::select! {
                () = tokio::time::sleep(self.interval) => {}
                _ = status.wait_for(|status| *status == Status::Draining) => return,
            }
        }
    }

    /// Says that a limit is near, and which shapes hold the log; again when half of the time has passed.
    fn warn(&self, left: Option<f64>, warned: &mut Option<f64>) {
        let Some(left) = left.filter(|left| *left < NEAR.as_secs_f64()) else {
            *warned = None;
            return;
        };
        if warned.is_some_and(|before| left > before / 2.0) {
            return;
        }
        *warned = Some(left);
        let report = self.service.progress().report(Instant::now());
        let holders: Vec<String> = report
            .iter()
            .flat_map(|report| report.holder.iter().chain(&report.next_holders))
            .filter(|holder| holder.waiting >= HELD_LONG)
            .map(|holder| holder.handle.to_string())
            .collect();
        tracing::warn!(
            seconds_left = left.round(),
            holders = holders.join(" "),
            "max_slot_wal_keep_size or the end of the disk is near, at the present rate"
        );
    }

    async fn slot(&self) -> Result<SlotState, PgError> {
        let loan = self.admin.get().await?;
        let row = loan.client().query_one(SLOT, &[&self.slot]).await?;
        let lsn = |index: usize| -> Result<Option<Lsn>, PgError> {
            let text: Option<&str> = row.try_get(index)?;
            text.map(str::parse).transpose().map_err(|_| PgError::malformed("an LSN in an unknown form"))
        };
        let safe: Option<i64> = row.try_get(3)?;
        let slot = SlotState {
            wal_end: lsn(0)?.unwrap_or_default(),
            restart: lsn(1)?,
            confirmed: lsn(2)?,
            safe_bytes: safe.map(|bytes| u64::try_from(bytes).unwrap_or(0)),
        };
        loan.give_back();
        Ok(slot)
    }

    fn tell_slot(&self, slot: SlotState, rate: &mut Rate, probed: &mut Probed) {
        let metrics: &Arc<Metrics> = self.service.metrics();
        let behind = |lsn: Option<Lsn>| lsn.map_or(0, |lsn| int(slot.wal_end.0.saturating_sub(lsn.0)));
        metrics.slot.retained_bytes.set(behind(slot.restart));
        metrics.slot.lag_bytes.set(behind(slot.confirmed));
        metrics.slot.safe_bytes.set(slot.safe_bytes.map_or(-1, int));
        let left = rate.seconds_left(Instant::now(), slot.wal_end.0, slot.safe_bytes.unwrap_or(0));
        probed.slot_seconds_left = left.filter(|_| slot.safe_bytes.is_some());
        probed.wal_end = slot.wal_end;
        metrics.slot.wal_bytes_per_second.set(rate.per_second);
        let report = self.service.progress().report(Instant::now());
        let (boundary, holder) = match &report {
            Some(report) => (Some(report.boundary), report.holder.as_ref().map(|holder| holder.lsn)),
            None => (slot.confirmed, None),
        };
        metrics.slot.gap_bytes.set(behind(boundary));
        metrics.slot.holder_bytes.set(behind(holder));
    }

    fn disk(&self, rate: &mut Rate) -> Option<f64> {
        let free = fs4::available_space(&self.data_dir).ok()?;
        self.service.metrics().disk_free_bytes.set(int(free));
        // What is used grows as what is free shrinks.
        rate.seconds_left(Instant::now(), u64::MAX - free, free)
    }

    /// What Linux tells in /proc; elsewhere nothing is told.
    fn host(&self) {
        let metrics = self.service.metrics();
        let processors = std::thread::available_parallelism().map_or(1.0, |count| count.get() as f64);
        if let Ok(text) = std::fs::read_to_string("/proc/loadavg") {
            for (over, load) in ["avg1", "avg5", "avg15"].into_iter().zip(text.split_whitespace()) {
                let percent = load.parse::<f64>().unwrap_or(0.0) / processors * 100.0;
                metrics.load_percent.with_label_values(&[over]).set(percent);
            }
        }
        if let Ok(text) = std::fs::read_to_string("/proc/meminfo") {
            let total = kibibytes(&text, "MemTotal:").unwrap_or(0.0).max(1.0);
            for (kind, name) in [("free_memory", "MemFree:"), ("available_memory", "MemAvailable:")] {
                let part = kibibytes(&text, name).unwrap_or(0.0);
                metrics.memory_percent.with_label_values(&[kind]).set(part / total * 100.0);
            }
        }
        if let Ok(text) = std::fs::read_to_string("/proc/self/status") {
            let resident = kibibytes(&text, "VmRSS:").unwrap_or(0.0) * 1_024.0;
            metrics.resident_bytes.set(resident as i64);
        }
        metrics.http_held_bytes.set(int(crate::shape_log::held_bytes() as u64));
        if let Ok(entries) = std::fs::read_dir("/proc/self/fd") {
            metrics.open_files.set(int(entries.count() as u64));
        }
    }
}

/// `Name:   123 kB`
fn kibibytes(text: &str, name: &str) -> Option<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Metrics are signed.
fn int(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_follows_from_the_rate() {
        let begun = Instant::now();
        let mut rate = Rate::default();
        assert_eq!(rate.seconds_left(begun, 1_000, 500), None, "no rate yet");
        let left = rate.seconds_left(begun + RATE_OVER, 1_000 + 60 * 10, 500);
        assert_eq!(left, Some(50.0), "10 bytes a second");
        let left = rate.seconds_left(begun + RATE_OVER * 2, 1_600, 500);
        assert_eq!(left, None, "nothing was written for a minute");
    }

    #[test]
    fn reads_what_proc_says() {
        let text = "MemTotal:       16384 kB\nMemFree:  1 kB\n";
        assert_eq!(kibibytes(text, "MemTotal:"), Some(16_384.0));
        assert_eq!(kibibytes(text, "MemAvailable:"), None);
    }
}

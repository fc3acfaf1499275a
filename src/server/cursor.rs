//! The cursor of live requests: contract 1.13.

use std::time::Duration;

/// 2024-10-09T00:00:00Z in seconds since the Unix epoch.
const EPOCH: u64 = 1_728_432_000;
/// The largest random step past a cursor that the client has already.
pub(super) const STEP_MAX: u64 = 3_600;

/// The cursor at `now`, in seconds since the Unix epoch: the end of the current long-poll window, so
/// that all clients of one window share a URL. A client that has it already gets a `step` past it,
/// random in `1..=STEP_MAX`, so that no two of its live URLs are the same.
#[must_use]
pub(super) fn next_cursor(now: u64, long_poll: Duration, previous: Option<&str>, step: u64) -> u64 {
    let window = long_poll.as_secs();
    if window == 0 {
        return 0;
    }
    let cursor = now.saturating_sub(EPOCH).div_ceil(window) * window;
    let previous = previous.and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
    if cursor <= previous { previous.saturating_add(step) } else { cursor }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(seconds: u64, window_ms: u64, previous: Option<&str>, expected: u64) {
        let cursor = next_cursor(EPOCH + seconds, Duration::from_millis(window_ms), previous, 7);
        assert_eq!(cursor, expected, "{seconds} s, {window_ms} ms, {previous:?}");
    }

    #[test]
    fn rounds_up_to_the_window_and_never_repeats() {
        check(0, 20_000, None, 7);
        check(1, 20_000, None, 20);
        check(20, 20_000, None, 20);
        check(21, 20_000, None, 40);
        check(21, 20_000, Some("20"), 40);
        check(21, 20_000, Some("40"), 47);
        check(21, 20_000, Some("1000"), 1007);
        check(21, 20_000, Some("banana"), 40);
        check(21, 20_000, Some("-5"), 40);
        check(21, 3_000, None, 21);
        check(21, 999, Some("40"), 0);
        check(0, 20_000, Some("18446744073709551615"), u64::MAX);
    }
}

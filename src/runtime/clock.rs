//! The clocks of the running service. The core never sees them: time is an argument there.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::domain::Timestamp;

/// Wall clock, as data for events. A clock before 1970 reads as 1970.
#[must_use]
pub fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
}

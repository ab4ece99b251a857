//! Times of state as people and JSON see them.

use std::time::{Duration, UNIX_EPOCH};

/// A time in milliseconds since the Unix epoch as RFC 3339 has it.
pub(crate) fn rfc3339(time_ms: u64) -> String {
    humantime::format_rfc3339_millis(UNIX_EPOCH + Duration::from_millis(time_ms)).to_string()
}

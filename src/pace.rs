//! How slowly a body may come: a sender that trickles holds a connection, and what belongs to it, for ever.

use std::time::Duration;

use tokio::time::{Instant, timeout};

/// What a body must come at on average, in bytes a second, once its first pause is used up: far below any link in use.
const RATE_MIN: u64 = 1024;

/// The time that was spent on waiting for one body, against what came of it.
#[derive(Debug)]
pub(crate) struct Pace {
    pause: Duration,
    waited: Duration,
    bytes: u64,
}

impl Pace {
    /// A body that may stand still for `pause`, and must come at [`RATE_MIN`] beyond that.
    pub(crate) fn new(pause: Duration) -> Self {
        Self { pause, waited: Duration::ZERO, bytes: 0 }
    }

    /// Waits for the next part of the body, for `limit` at most; `None` when that was too long.
    pub(crate) async fn wait<T>(&mut self, limit: Duration, part: impl Future<Output = T>) -> Option<T> {
        let earned = self.pause + Duration::from_secs(self.bytes / RATE_MIN);
        let began = Instant::now();
        let came = timeout(limit.min(self.pause).min(earned.saturating_sub(self.waited)), part).await;
        self.waited += began.elapsed();
        came.ok()
    }

    /// So many bytes came.
    pub(crate) fn came(&mut self, bytes: usize) {
        self.bytes += bytes as u64;
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use super::*;

    #[tokio::test]
    async fn a_body_that_trickles_is_ended_and_a_slow_one_is_not() {
        let (pause, between) = (Duration::from_millis(40), Duration::from_millis(5));
        for (bytes, is_ended) in [(1, true), (100_000, false)] {
            let (mut pace, mut ended) = (Pace::new(pause), false);
            for _ in 0..20 {
                ended |= pace.wait(pause, tokio::time::sleep(between)).await.is_none();
                pace.came(bytes);
            }
            assert_eq!(ended, is_ended, "{bytes} bytes at a time");
        }
        assert!(Pace::new(between).wait(pause, pending::<()>()).await.is_none());
    }
}

//! How fast something may go that clients do not wait for.

use std::num::NonZeroU32;

use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};

/// What is counted, in bytes: a limit of up to four terabytes a second fits the limiter's 32 bits.
const UNIT: u64 = 1024;

/// Bytes a second, for all who share it. What was not used is kept for a second.
#[derive(Debug)]
pub(super) struct Rate {
    limiter: DefaultDirectRateLimiter,
    burst: u32,
}

impl Rate {
    /// So many bytes a second, at least [`UNIT`].
    pub(super) fn new(bytes: u64) -> Self {
        let burst = NonZeroU32::new(units(bytes)).unwrap_or(NonZeroU32::MIN);
        Self { limiter: RateLimiter::direct(Quota::per_second(burst)), burst: burst.get() }
    }

    /// Waits until so many bytes may go.
    pub(super) async fn wait(&self, bytes: usize) {
        let mut left = units(bytes as u64);
        while left > 0 {
            let some = NonZeroU32::new(left.min(self.burst)).unwrap_or(NonZeroU32::MIN);
            // It refuses more than a second's worth alone.
            let _ = self.limiter.until_n_ready(some).await;
            left -= some.get();
        }
    }
}

fn units(bytes: u64) -> u32 {
    u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[tokio::test]
    async fn what_goes_beyond_a_seconds_worth_waits() {
        let rate = Rate::new(100 * UNIT);
        let began = Instant::now();
        rate.wait(100 * UNIT as usize).await;
        rate.wait(50 * UNIT as usize).await;
        assert!(began.elapsed().as_millis() >= 400, "{:?}", began.elapsed());
    }
}

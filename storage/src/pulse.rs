//! Whether a thread that writes gets on with its work: how long it has been at one piece of it.
//!
//! Read without a lock: whoever asks because a disk hangs must not hang with it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// When the thread began what it is at. One thread writes it, any thread reads it.
pub(crate) struct Pulse {
    zero: Instant,
    /// As [`Pulse::now_ms`]; 0 while the thread has nothing to do.
    since_ms: AtomicU64,
}

impl Default for Pulse {
    fn default() -> Self {
        Pulse { zero: Instant::now(), since_ms: AtomicU64::new(0) }
    }
}

impl Pulse {
    /// The thread begins a piece of work.
    pub(crate) fn begin(&self) {
        self.since_ms.store(self.now_ms(), Ordering::Relaxed);
    }

    /// The thread has done it.
    pub(crate) fn end(&self) {
        self.since_ms.store(0, Ordering::Relaxed);
    }

    /// How long it has been at it; nothing while it waits for work.
    pub(crate) fn busy_for(&self) -> Duration {
        match self.since_ms.load(Ordering::Relaxed) {
            0 => Duration::ZERO,
            since_ms => Duration::from_millis(self.now_ms().saturating_sub(since_ms)),
        }
    }

    /// Milliseconds since `zero`, which is 1.
    fn now_ms(&self) -> u64 {
        1 + self.zero.elapsed().as_millis() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_is_busy_from_the_beginning_of_a_piece_to_its_end() {
        let pulse = Pulse { zero: Instant::now() - Duration::from_secs(60), since_ms: AtomicU64::new(0) };
        assert_eq!(pulse.busy_for(), Duration::ZERO);
        pulse.begin();
        assert!(pulse.busy_for() < Duration::from_secs(50), "the time before does not count");
        pulse.since_ms.store(1, Ordering::Relaxed);
        assert!(pulse.busy_for() >= Duration::from_secs(59));
        pulse.end();
        assert_eq!(pulse.busy_for(), Duration::ZERO);
    }
}

//! Memory that many requests share: each takes what it holds from one budget, so that all together stay bounded.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A number of bytes that [`Share`]s are taken from. Cheap to clone; clones are the same budget.
#[derive(Debug, Clone)]
pub(crate) struct Budget {
    used: Arc<AtomicUsize>,
    max: usize,
}

impl Budget {
    /// `max` bytes, all of them free.
    pub(crate) fn new(max: usize) -> Self {
        Self { used: Arc::default(), max }
    }

    /// An empty share.
    pub(crate) fn share(&self) -> Share {
        Share { budget: self.clone(), bytes: 0 }
    }
}

/// What one request holds of a [`Budget`], in bytes; it goes back when this is dropped.
#[derive(Debug)]
pub(crate) struct Share {
    budget: Budget,
    bytes: usize,
}

impl Share {
    /// Takes `bytes` more; false, and nothing taken, where the budget does not have them.
    pub(crate) fn grow(&mut self, bytes: usize) -> bool {
        let used = self.budget.used.fetch_add(bytes, Ordering::Relaxed);
        let fits = used + bytes <= self.budget.max;
        if fits {
            self.bytes += bytes;
        } else {
            self.budget.used.fetch_sub(bytes, Ordering::Relaxed);
        }
        fits
    }

    /// Gives back all but `bytes`.
    pub(crate) fn shrink_to(&mut self, bytes: usize) {
        let freed = self.bytes.saturating_sub(bytes);
        self.bytes -= freed;
        self.budget.used.fetch_sub(freed, Ordering::Relaxed);
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.shrink_to(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_bounded_together_and_come_back() {
        let budget = Budget::new(10);
        let (mut one, mut other) = (budget.share(), budget.share());
        assert!(one.grow(7));
        assert!(!other.grow(4));
        assert!(other.grow(3));
        one.shrink_to(5);
        assert!(other.grow(2));
        assert!(!other.grow(1));
        drop(one);
        assert!(other.grow(5));
    }
}

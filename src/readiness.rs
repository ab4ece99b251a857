//! Whether this node should be sent requests.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tokio_util::sync::CancellationToken;

/// Shared by the probes, the client port and the order of start and stop. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct Readiness {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    started: AtomicBool,
    caught_up: AtomicBool,
    stopping: CancellationToken,
    requests: AtomicUsize,
}

/// A request in flight, until it is dropped.
pub(crate) struct InFlight(Readiness);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.shared.requests.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Readiness {
    /// This node answers from now on: it has caught up once since its start, or found no majority for a while. A
    /// majority that is lost later changes nothing: what this node knows is the best that there is.
    pub(crate) fn started(&self) {
        self.shared.started.store(true, Ordering::Release);
    }

    /// The state of this node was as new as its cluster's at some time since its start.
    pub(crate) fn caught_up(&self) {
        self.shared.caught_up.store(true, Ordering::Release);
    }

    /// Whether it ever was.
    pub(crate) fn has_caught_up(&self) -> bool {
        self.shared.caught_up.load(Ordering::Acquire)
    }

    /// This node is about to stop.
    pub(crate) fn stop(&self) {
        self.shared.stopping.cancel();
    }

    /// Whether it answers.
    pub(crate) fn is_started(&self) -> bool {
        self.shared.started.load(Ordering::Acquire)
    }

    /// Whether it is about to stop.
    pub(crate) fn is_stopping(&self) -> bool {
        self.shared.stopping.is_cancelled()
    }

    /// What is cancelled when it is about to stop.
    pub(crate) fn stopping(&self) -> CancellationToken {
        self.shared.stopping.clone()
    }

    /// Whether it should be sent requests.
    pub(crate) fn is_ready(&self) -> bool {
        self.is_started() && !self.is_stopping()
    }

    /// Counts a request until the guard is dropped.
    pub(crate) fn request(&self) -> InFlight {
        self.shared.requests.fetch_add(1, Ordering::AcqRel);
        InFlight(self.clone())
    }

    /// Requests that are being answered.
    pub(crate) fn in_flight(&self) -> usize {
        self.shared.requests.load(Ordering::Acquire)
    }
}

//! Which images may run: policies, and the decision on what the API server of a Kubernetes cluster asks.
//!
//! [`hooks`] answers a call: it reads the [`review`], [`decide`]s by the [`policy`] documents in force and by [`state`], and
//! writes the [`answer`]. [`cases`] plays the same from files.

mod answer;
pub(crate) mod api;
pub(crate) mod cases;
pub(crate) mod configuration;
mod decide;
mod explain;
pub(crate) mod first_policies;
mod hooks;
mod metrics;
pub(crate) mod policy;
#[cfg(any(fuzzing, test))]
pub(crate) mod properties;
mod reference;
mod review;
mod state;
pub(crate) mod tls;
pub(crate) mod webhook;

use std::sync::Arc;
use std::time::Instant;

use flotilla_raft::Consensus;
use parking_lot::Mutex;

use crate::config::Config;
use crate::memory::Budget;
use crate::readiness::Readiness;

/// What the bodies of requests that are read into memory may take together, in bytes.
const BODIES_MAX: usize = 64 << 20;

/// What the handlers share, once for all workers.
pub(crate) struct Admission {
    consensus: Consensus,
    config: Arc<Config>,
    bodies: Budget,
    readiness: Readiness,
    policies: state::Policies,
    /// Since when, and when last, no majority said that state is the latest; a majority may answer pings all the while.
    stale: Mutex<Option<(Instant, Instant)>>,
    pub(crate) metrics: metrics::Metrics,
}

impl Admission {
    pub(crate) fn new(consensus: Consensus, config: Arc<Config>, readiness: Readiness) -> Self {
        let policies = state::Policies::new(config.admission.policies.is_some());
        Self {
            consensus,
            config,
            bodies: Budget::new(BODIES_MAX),
            readiness,
            policies,
            stale: Mutex::default(),
            metrics: metrics::Metrics::default(),
        }
    }
}

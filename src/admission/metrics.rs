//! What the webhooks count.

use std::sync::Arc;
use std::time::Duration;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

use super::hooks::Webhook;

/// Resources that are told apart; whoever may call a webhook could make up others without end.
const RESOURCES: [&str; 9] = [
    "pods",
    "podtemplates",
    "replicationcontrollers",
    "deployments",
    "replicasets",
    "statefulsets",
    "daemonsets",
    "jobs",
    "cronjobs",
];

/// One kind of answer.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Answered {
    pub(crate) webhook: Webhook,
    pub(crate) resource: &'static str,
    pub(crate) operation: &'static str,
    pub(crate) decision: Outcome,
    /// The strictest mode of a policy that objected.
    pub(crate) mode: &'static str,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
pub(crate) enum Outcome {
    Allowed,
    Denied,
    /// No policy is about it.
    Unregulated,
    /// There was no decision: a denial by itself.
    Failed,
}

/// Cheap to clone; clones count together.
#[derive(Clone, Default)]
pub(crate) struct Metrics(Arc<Counted>);

struct Counted {
    answers: Family<Answered, Counter>,
    seconds: Family<Timed, Histogram, fn() -> Histogram>,
    stale: Counter,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Timed {
    webhook: Webhook,
}

impl Default for Counted {
    fn default() -> Self {
        let histogram = || Histogram::new(exponential_buckets(0.0005, 2.0, 14));
        Self { answers: Family::default(), seconds: Family::new_with_constructor(histogram), stale: Counter::default() }
    }
}

impl Metrics {
    pub(crate) fn answered(&self, answered: Answered, took: Duration, is_stale: bool) {
        self.0.seconds.get_or_create(&Timed { webhook: answered.webhook }).observe(took.as_secs_f64());
        self.0.answers.get_or_create(&answered).inc();
        if is_stale {
            self.0.stale.inc();
        }
    }

    pub(crate) fn register(&self, registry: &mut Registry) {
        registry.register("admission_requests", "Reviews answered by the webhooks", self.0.answers.clone());
        registry.register_with_unit(
            "admission_duration",
            "How long an answer took",
            Unit::Seconds,
            self.0.seconds.clone(),
        );
        registry.register("admission_stale", "Decisions from state that may be old", self.0.stale.clone());
    }
}

/// The name of a resource as a label.
pub(crate) fn resource(name: &str) -> &'static str {
    RESOURCES.into_iter().find(|known| *known == name).unwrap_or("other")
}

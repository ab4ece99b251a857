//! What the webhooks count.

use std::sync::Arc;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

/// Resources that are told apart; whoever may call a webhook could make up others without end.
const RESOURCES: [&str; 10] = [
    "pods",
    "pods/ephemeralcontainers",
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
    /// `mutate` or `validate`.
    pub(crate) webhook: &'static str,
    /// As in the API, with the sub-resource; `other` for kinds that the settings name.
    pub(crate) resource: &'static str,
    /// `CREATE` and so on; `none` where that was not understood.
    pub(crate) operation: &'static str,
    pub(crate) decision: &'static str,
    /// The strictest mode of a policy that objected.
    pub(crate) mode: &'static str,
}

/// The values of `decision`.
pub(crate) const ALLOWED: &str = "allowed";
pub(crate) const DENIED: &str = "denied";
/// No policy is about it.
pub(crate) const UNREGULATED: &str = "unregulated";
/// There was no decision.
pub(crate) const FAILED: &str = "failed";

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
    webhook: &'static str,
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

//! The two webhooks without a network: a body in, a review out.

use base64::prelude::{BASE64_STANDARD, Engine as _};
use flotilla_storage::StorageError;
use kube::core::admission::{AdmissionResponse, Operation};
use prometheus_client::encoding::EncodeLabelValue;
use serde_json::{Value, json};

use super::answer;
use super::decide::{Decision, Effect, Facts, Subject, decide, pin};
use super::metrics::{self, Answered, Outcome};
use super::policy::Policy;
use super::review::{Review, Unreadable};

/// What a webhook is called for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
pub(crate) enum Webhook {
    /// Replaces tags of this registry by what they point at.
    Mutate,
    /// Says whether an object may be, by itself: what the other did is not trusted.
    Validate,
}

/// What a call is answered by.
pub(crate) struct Grounds<'a> {
    pub(crate) facts: &'a dyn Facts,
    pub(crate) policies: &'a [Policy],
    /// The time that ages are counted to, in milliseconds since the Unix epoch.
    pub(crate) now_ms: u64,
    /// The state may be old: no majority answered.
    pub(crate) is_stale: bool,
    /// Why nothing can be decided.
    pub(crate) refusal: Option<String>,
}

/// What goes back to the API server.
#[derive(Debug, Clone)]
pub(crate) enum Reply {
    Review(Box<Answer>),
    /// HTTP 400: what came is no review.
    BadRequest(String),
}

/// An answer, and what the log and the metrics say of it.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    /// As it is sent.
    pub(crate) review: Value,
    pub(crate) response: AdmissionResponse,
    pub(crate) counted: Answered,
    pub(crate) namespace: String,
    pub(crate) user: String,
}

/// Answers a call.
///
/// # Errors
/// State cannot be read.
pub(crate) fn answer(webhook: Webhook, grounds: &Grounds<'_>, body: &[u8]) -> Result<Reply, StorageError> {
    let Grounds { facts, policies, .. } = *grounds;
    let review = match Review::parse(body, facts.rules()) {
        Ok(review) => review,
        Err(Unreadable::NoReview(reason)) => return Ok(Reply::BadRequest(reason)),
        Err(Unreadable::Denied { uid, reason }) => return Ok(failed(webhook, &uid, &reason)),
    };
    let uid = review.request.uid;
    let subject = Subject {
        namespace: review.request.namespace.unwrap_or_default(),
        is_template: review.is_template,
        now_ms: grounds.now_ms,
        images: review.images,
    };
    let (mut response, outcome, mode) = match (&grounds.refusal, webhook) {
        // What has nothing to be judged goes on whatever happens here.
        _ if subject.images.is_empty() => (answer::allowed(&uid), Outcome::Allowed, "none"),
        (Some(refusal), _) => (answer::denied(&uid, refusal), Outcome::Failed, "none"),
        (None, Webhook::Mutate) if review.is_fixed => (answer::allowed(&uid), Outcome::Allowed, "none"),
        (None, Webhook::Mutate) => {
            let (pins, decision) = pin(facts, policies, &subject)?;
            let response = answer::patched(&uid, &pins, &decision)
                .unwrap_or_else(|error| answer::denied(&uid, &format!("the answer cannot be written: {error}")));
            (response, Outcome::Allowed, mode(&decision))
        }
        (None, Webhook::Validate) => {
            let decision = decide(facts, policies, &subject)?;
            (answer::decided(&uid, &subject.namespace, &decision), outcome(&decision), mode(&decision))
        }
    };
    if grounds.is_stale && !subject.images.is_empty() {
        answer::mark_stale(&mut response);
    }
    let operation = match review.request.operation {
        Operation::Create => "CREATE",
        Operation::Update => "UPDATE",
        Operation::Delete => "DELETE",
        Operation::Connect => "CONNECT",
    };
    let resource = metrics::resource(&review.request.resource.resource);
    Ok(Reply::Review(Box::new(Answer {
        review: written(&response),
        response,
        counted: Answered { webhook, resource, operation, decision: outcome, mode },
        namespace: subject.namespace,
        user: review.request.user_info.username.unwrap_or_default(),
    })))
}

/// A denial because nothing could be decided.
pub(crate) fn failed(webhook: Webhook, uid: &str, reason: &str) -> Reply {
    let response: AdmissionResponse = answer::denied(uid, reason);
    let counted = Answered { webhook, resource: "other", operation: "none", decision: Outcome::Failed, mode: "none" };
    Reply::Review(Box::new(Answer {
        review: written(&response),
        response,
        counted,
        namespace: String::new(),
        user: String::new(),
    }))
}

/// The review that carries a response. Kubernetes has a patch in base64, where the crate writes a list of numbers.
fn written(response: &AdmissionResponse) -> Value {
    let mut review = json!({
        "apiVersion": response.types.api_version,
        "kind": response.types.kind,
        "response": AdmissionResponse::clone(response),
    });
    if let Some(patch) = &response.patch {
        review["response"]["patch"] = BASE64_STANDARD.encode(patch).into();
    }
    review
}

fn outcome(decision: &Decision) -> Outcome {
    match () {
        () if !decision.is_allowed() => Outcome::Denied,
        () if decision.is_unregulated() => Outcome::Unregulated,
        () => Outcome::Allowed,
    }
}

fn mode(decision: &Decision) -> &'static str {
    match decision.findings.iter().map(|finding| finding.effect).min() {
        None => "none",
        Some(Effect::Deny) => "enforce",
        Some(Effect::Warn) => "warn",
        Some(Effect::Audit) => "audit",
    }
}

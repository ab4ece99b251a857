//! The two webhooks without a network: a body in, a review out.

use base64::prelude::{BASE64_STANDARD, Engine as _};
use flotilla_storage::StorageError;
use kube::core::admission::{AdmissionResponse, Operation};
use serde_json::{Value, json};

use super::answer;
use super::decide::{Decision, Effect, Facts, Subject, decide, pin};
use super::metrics::{self, ALLOWED, Answered, DENIED, FAILED, UNREGULATED};
use super::policy::Policy;
use super::review::{Head, HeadOfRequest, Review, Unreadable};

/// What a webhook is called for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Webhook {
    /// Replaces tags of this registry by what they point at.
    Mutate,
    /// Says whether an object may be, by itself: what the other did is not trusted.
    Validate,
}

impl Webhook {
    fn name(self) -> &'static str {
        match self {
            Self::Mutate => "mutate",
            Self::Validate => "validate",
        }
    }
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
    pub(crate) response: AdmissionResponse,
    pub(crate) counted: Answered,
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) user: String,
    /// It was decided by state that may be old.
    pub(crate) is_stale: bool,
}

/// Answers a call.
///
/// # Errors
/// State cannot be read.
pub(crate) fn answer(webhook: Webhook, grounds: &Grounds<'_>, body: &[u8]) -> Result<Reply, StorageError> {
    let review = match Review::parse(body, grounds.facts.rules()) {
        Ok(review) => review,
        Err(Unreadable::NoReview(reason)) => return Ok(Reply::BadRequest(reason)),
        Err(Unreadable::Denied { uid, reason }) => {
            let head = Head::of(body).unwrap_or_default();
            return Ok(Reply::Review(Box::new(unreadable(webhook, &uid, &head, &reason))));
        }
    };
    let (request, missing_template) = (review.request, review.missing_template);
    let subject = Subject {
        namespace: request.namespace.unwrap_or_default(),
        is_template: review.is_template,
        now_ms: grounds.now_ms,
        images: review.images,
    };
    // What has nothing to be judged goes on whatever happens here.
    let is_decided = !subject.images.is_empty() && grounds.refusal.is_none();
    let (mut response, decision, mode) = match &grounds.refusal {
        _ if subject.images.is_empty() => (answer::allowed(&request.uid), ALLOWED, "none"),
        Some(refusal) => (refused(webhook, &request.uid, refusal), FAILED, "none"),
        None => judged(webhook, grounds, &request.uid, &subject, review.is_fixed)?,
    };
    if let Some(place) = missing_template
        && webhook == Webhook::Validate
        && grounds.policies.iter().any(|policy| policy.selects(&subject.namespace))
    {
        answer::warn_of_missing(&mut response, &place);
    }
    let is_stale = grounds.is_stale && is_decided;
    if is_stale {
        answer::mark_stale(&mut response);
    }
    let resource = match &request.sub_resource {
        Some(part) if !part.is_empty() => format!("{}/{part}", request.resource.resource),
        _ => request.resource.resource,
    };
    let operation = match request.operation {
        Operation::Create => "CREATE",
        Operation::Update => "UPDATE",
        Operation::Delete => "DELETE",
        Operation::Connect => "CONNECT",
    };
    let webhook = webhook.name();
    Ok(Reply::Review(Box::new(Answer {
        response,
        counted: Answered { webhook, resource: metrics::resource(&resource), operation, decision, mode },
        namespace: subject.namespace,
        name: request.name,
        user: request.user_info.username.unwrap_or_default(),
        is_stale,
    })))
}

/// The answer by policies, and how it is counted.
fn judged(
    webhook: Webhook,
    grounds: &Grounds<'_>,
    uid: &str,
    subject: &Subject,
    is_fixed: bool,
) -> Result<(AdmissionResponse, &'static str, &'static str), StorageError> {
    let Grounds { facts, policies, .. } = *grounds;
    match webhook {
        Webhook::Mutate if is_fixed => Ok((answer::allowed(uid), ALLOWED, "none")),
        Webhook::Mutate => {
            let (pins, decision) = pin(facts, policies, subject)?;
            let response = answer::patched(uid, &pins, &decision)
                .unwrap_or_else(|error| answer::denied(uid, &format!("the answer cannot be written: {error}")));
            let counted = if decision.is_unregulated() { UNREGULATED } else { ALLOWED };
            Ok((response, counted, mode(&decision)))
        }
        Webhook::Validate => {
            let decision = decide(facts, policies, subject)?;
            let counted = match () {
                () if !decision.is_allowed() => DENIED,
                () if decision.is_unregulated() => UNREGULATED,
                () => ALLOWED,
            };
            Ok((answer::decided(uid, &subject.namespace, &decision), counted, mode(&decision)))
        }
    }
}

/// Where nothing could be decided `validate` says no. `mutate` changes nothing and stands in nobody's way: its objects are
/// judged all the same, unless an operator has taken the other webhook away to get out.
fn refused(webhook: Webhook, uid: &str, reason: &str) -> AdmissionResponse {
    match webhook {
        Webhook::Validate => answer::denied(uid, reason),
        Webhook::Mutate => answer::unpinned(uid, reason),
    }
}

/// The answer where there is no decision in time, or none is possible.
pub(crate) fn undecided(webhook: Webhook, head: Head, reason: &str) -> Answer {
    let response = refused(webhook, &head.request.uid, reason);
    Answer { response, ..unreadable(webhook, "", &head, reason) }
}

/// The answer to a review of which little more than its uid is understood.
fn unreadable(webhook: Webhook, uid: &str, head: &Head, reason: &str) -> Answer {
    let HeadOfRequest { operation, namespace, resource, .. } = &head.request;
    let operations = ["CREATE", "UPDATE", "DELETE", "CONNECT"];
    let counted = Answered {
        webhook: webhook.name(),
        resource: metrics::resource(&resource.resource),
        operation: operations.into_iter().find(|known| known == operation).unwrap_or("none"),
        decision: FAILED,
        mode: "none",
    };
    Answer {
        response: answer::denied(uid, reason),
        counted,
        namespace: namespace.clone(),
        name: String::new(),
        user: String::new(),
        is_stale: false,
    }
}

impl Answer {
    /// The review that goes back. Kubernetes has a patch in base64, where the crate writes a list of numbers.
    pub(crate) fn review(&self) -> Value {
        let mut review = json!({
            "apiVersion": self.response.types.api_version,
            "kind": self.response.types.kind,
            "response": self.response,
        });
        if let Some(patch) = &self.response.patch {
            review["response"]["patch"] = BASE64_STANDARD.encode(patch).into();
        }
        review
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

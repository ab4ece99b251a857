//! The webhooks' own port: TLS, deadlines, and how fresh the state behind an answer is.

use std::sync::Arc;
use std::time::{Duration, Instant};

use actix_web::http::StatusCode;
use actix_web::http::header::CONTENT_TYPE;
use actix_web::{HttpRequest, HttpResponse, ResponseError as _, web};
use bytes::Bytes;
use flotilla_storage::StorageError;
use serde_json::Value;
use tokio::time::timeout;

use super::Admission;
use super::explain::explain;
use super::hooks::{Answer, Grounds, Reply, Webhook, answer, undecided};
use super::policy::Policy;
use super::review::Head;
use super::state::AsOf;
use crate::body::read_body;
use crate::config::WithoutQuorum;
use crate::memory::Share;
use crate::request::query;

/// The largest review: an object of the API server's own limit, its former version, and what is around them.
const BODY_MAX: u64 = 8 << 20;

/// What is taken of the caller's time limit.
const SHARE: f64 = 0.8;

/// What a decision may take of that; the rest is for an answer without one.
const DECIDED_WITHIN: f64 = 0.95;

/// How long an answer may take where the caller says nothing.
const DEADLINE: Duration = Duration::from_secs(2);

/// How long the readiness probe waits for the others; a probe of Kubernetes waits a second.
const PROBE_PATIENCE: Duration = Duration::from_millis(500);

/// Two looks at how fresh state is belong together if no more time lies between them; a probe looks every ten seconds.
const ASKED_WITHIN: Duration = Duration::from_secs(60);

/// The longest that a caller's word counts (Kubernetes allows 30 s).
const TIMEOUT_MAX: Duration = Duration::from_secs(30);

/// The routes.
pub(crate) fn configure(routes: &mut web::ServiceConfig) {
    routes
        .route("/admission/validate", web::post().to(validate))
        .route("/admission/mutate", web::post().to(mutate))
        .route("/readyz", web::get().to(readyz));
}

async fn validate(admission: web::Data<Admission>, request: HttpRequest, payload: web::Payload) -> HttpResponse {
    call(Webhook::Validate, &admission, &request, payload).await
}

async fn mutate(admission: web::Data<Admission>, request: HttpRequest, payload: web::Payload) -> HttpResponse {
    call(Webhook::Mutate, &admission, &request, payload).await
}

/// Whether reviews are decided here.
async fn readyz(admission: web::Data<Admission>) -> HttpResponse {
    if admission.readiness.is_stopping() {
        return HttpResponse::ServiceUnavailable().body("this node is stopping\n");
    }
    // Reviews do not come any more once this says no, so it looks by itself.
    let is_stale = admission.catch_up(PROBE_PATIENCE).await;
    match web::block(move || admission.standing(is_stale).refusal).await {
        Ok(None) => HttpResponse::Ok().body("ready\n"),
        Ok(Some(reason)) => HttpResponse::ServiceUnavailable().body(format!("{reason}\n")),
        Err(_) => HttpResponse::ServiceUnavailable().body("this node is stopping\n"),
    }
}

async fn call(
    webhook: Webhook,
    admission: &web::Data<Admission>,
    request: &HttpRequest,
    payload: web::Payload,
) -> HttpResponse {
    let began = Instant::now();
    let limit = deadline(query(request, "timeout").as_deref());
    let mut memory = admission.bodies.share();
    let body = timeout(limit, read_body(request, payload, BODY_MAX, limit, &mut memory)).await;
    let body = match body {
        Ok(Ok(body)) => body,
        Ok(Err(error)) => return error.error_response(),
        Err(_) => return HttpResponse::build(StatusCode::REQUEST_TIMEOUT).body("the body did not come in time\n"),
    };
    let left = limit.mul_f64(DECIDED_WITHIN).saturating_sub(began.elapsed());
    let decided = timeout(left, decide(admission, webhook, limit / 4, body.clone(), memory)).await;
    let reply = match decided {
        Ok(Ok(reply)) => reply,
        Ok(Err(reason)) => without_decision(webhook, &body, &reason),
        Err(_) => without_decision(webhook, &body, "there was no decision within the time limit; try again"),
    };
    match reply {
        Reply::BadRequest(reason) => {
            tracing::warn!(target: "flotilla::admission", ?webhook, reason, "what came is no review");
            HttpResponse::BadRequest().body(format!("{reason}\n"))
        }
        Reply::Review(answer) => {
            admission.metrics.answered(answer.counted.clone(), began.elapsed(), answer.is_stale);
            log(&answer, began.elapsed());
            HttpResponse::Ok().insert_header((CONTENT_TYPE, "application/json")).json(answer.review())
        }
    }
}

async fn decide(
    admission: &web::Data<Admission>,
    webhook: Webhook,
    patience: Duration,
    body: Bytes,
    memory: Share,
) -> Result<Reply, String> {
    let is_stale = admission.catch_up(patience).await;
    let (now_ms, admission) = (admission.consensus.now_ms(), admission.clone());
    let decided = web::block(move || {
        // This goes on when nobody waits for it any more, and holds the body until then.
        let _memory = memory;
        let Standing { facts, policies, refusal } = admission.standing(is_stale);
        let grounds = Grounds { facts: &facts, policies: &policies, now_ms, is_stale, refusal };
        answer(webhook, &grounds, &body)
    });
    match decided.await {
        Ok(Ok(reply)) => Ok(reply),
        Ok(Err(error)) => {
            tracing::error!(%error, "a review could not be decided");
            Err("this node cannot read its state".into())
        }
        Err(_) => Err("this node is stopping".into()),
    }
}

/// The answer to whom the body's head names; without a uid there is no review.
fn without_decision(webhook: Webhook, body: &[u8], reason: &str) -> Reply {
    match Head::of(body) {
        Some(head) => Reply::Review(Box::new(undecided(webhook, head, reason))),
        None => Reply::BadRequest(reason.to_owned()),
    }
}

/// How long a call may take here: the API server says how long it waits, as `?timeout=5s`.
fn deadline(asked: Option<&str>) -> Duration {
    let asked = asked.and_then(|text| humantime::parse_duration(text).ok()).filter(|asked| !asked.is_zero());
    asked.map_or(DEADLINE, |asked| asked.min(TIMEOUT_MAX).mul_f64(SHARE))
}

fn log(answer: &Answer, took: Duration) {
    let response = &answer.response;
    let note = |key: &str| response.audit_annotations.get(key).map(String::as_str).unwrap_or_default();
    tracing::info!(
        target: "flotilla::admission",
        webhook = answer.counted.webhook,
        uid = response.uid,
        resource = answer.counted.resource,
        operation = answer.counted.operation,
        namespace = answer.namespace,
        name = answer.name,
        user = answer.user,
        decision = answer.counted.decision,
        mode = answer.counted.mode,
        policy = note("policy"),
        pinned = note("pinned"),
        denied = note("denied"),
        warned = note("warned"),
        audited = note("audited"),
        digest = note("digest"),
        revision = note("revision"),
        reason = response.result.message,
        stale = answer.is_stale,
        duration_ms = took.as_millis() as u64,
        "reviewed"
    );
}

/// What stands behind an answer.
struct Standing {
    facts: AsOf,
    policies: Arc<Vec<Policy>>,
    /// Why nothing can be decided.
    refusal: Option<String>,
}

impl Admission {
    /// By what is decided here now; `is_stale` where no majority says that it is the latest. Blocks.
    fn standing(&self, is_stale: bool) -> Standing {
        let facts = self.now();
        let (policies, unreadable) = match self.policies.at(&facts.registry, facts.revision) {
            Ok(policies) => (policies, None),
            Err(error) => (Arc::default(), Some(error.to_string())),
        };
        let refusal = self.refusal(is_stale).or(unreadable);
        Standing { facts, policies, refusal }
    }

    fn refusal(&self, is_stale: bool) -> Option<String> {
        if !self.readiness.has_caught_up() {
            return Some("this node has not caught up with its cluster since it was started".into());
        }
        if !is_stale {
            return None;
        }
        let stale_for = self.stale.lock().map_or(Duration::ZERO, |(since, _)| since.elapsed());
        let (settings, lost) = (&self.config.admission, self.consensus.quorum_lost_for().max(stale_for));
        match (settings.without_quorum, settings.max_staleness) {
            (WithoutQuorum::Deny, _) => Some(
                "no majority of the registry's nodes answers, and admission.without_quorum is deny: bring nodes back"
                    .into(),
            ),
            (WithoutQuorum::Local, Some(limit)) if lost > limit => Some(format!(
                "this node's state may be {} s old, more than admission.max_staleness allows: no majority of the registry's nodes says that it is the latest",
                lost.as_secs()
            )),
            (WithoutQuorum::Local, _) => None,
        }
    }

    /// Waits until state is as new as the call, where a majority answers within `patience`; whether it may be old.
    pub(super) async fn catch_up(&self, patience: Duration) -> bool {
        let is_stale = !matches!(timeout(patience, self.consensus.read_barrier()).await, Ok(Ok(())));
        let (mut stale, now) = (self.stale.lock(), Instant::now());
        // What lies long back says nothing of the time since, in which nobody asked.
        let since = stale.filter(|(_, last)| now - *last < ASKED_WITHIN).map_or(now, |(since, _)| since);
        *stale = is_stale.then_some((since, now));
        drop(stale);
        if !is_stale {
            self.readiness.caught_up();
        }
        is_stale
    }

    /// Decides about one image in a pod, for who asks.
    pub(super) fn explained(&self, is_stale: bool, namespace: &str, image: &str) -> Result<Value, StorageError> {
        let Standing { facts, policies, refusal } = self.standing(is_stale);
        let now_ms = self.consensus.now_ms();
        let grounds = Grounds { facts: &facts, policies: &policies, now_ms, is_stale, refusal };
        explain(&grounds, namespace, image)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_comes_before_the_caller_stops_waiting() {
        assert_eq!(deadline(Some("5s")), Duration::from_secs(4));
        assert_eq!(deadline(Some("10s")), Duration::from_secs(8));
        assert_eq!(deadline(Some("1m")), Duration::from_secs(24));
        for odd in [None, Some(""), Some("0s"), Some("soon"), Some("-1s")] {
            assert_eq!(deadline(odd), DEADLINE, "{odd:?}");
        }
    }
}

//! The webhooks' own port: TLS, deadlines, and how fresh the state behind an answer is.

use std::time::{Duration, Instant};

use actix_web::http::StatusCode;
use actix_web::http::header::CONTENT_TYPE;
use actix_web::{HttpRequest, HttpResponse, ResponseError as _, web};
use bytes::Bytes;
use tokio::time::timeout;

use super::Admission;
use super::hooks::{Answer, Grounds, Reply, Webhook, answer, failed};
use super::review::uid_of;
use crate::body::read_body;
use crate::config::WithoutQuorum;
use crate::request::query;

/// The largest review: an object of the API server's own limit, its former version, and what is around them.
const BODY_MAX: u64 = 8 << 20;

/// What is taken of the caller's time limit.
const SHARE: f64 = 0.8;

/// How long an answer may take where the caller says nothing.
const DEADLINE: Duration = Duration::from_secs(2);

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

/// Whether reviews can be decided here.
async fn readyz(admission: web::Data<Admission>) -> HttpResponse {
    match web::block(move || admission.refusal()).await {
        Ok(None) => HttpResponse::Ok().body("ready\n"),
        Ok(Some(reason)) => HttpResponse::ServiceUnavailable().body(format!("{reason}\n")),
        Err(_) => HttpResponse::ServiceUnavailable().body("this node is stopping\n"),
    }
}

async fn call(webhook: Webhook, admission: &Admission, request: &HttpRequest, payload: web::Payload) -> HttpResponse {
    let began = Instant::now();
    let limit = deadline(query(request, "timeout").as_deref());
    let body = timeout(limit, read_body(request, payload, BODY_MAX, limit, &mut admission.bodies.share())).await;
    let body = match body {
        Ok(Ok(body)) => body,
        Ok(Err(error)) => return error.error_response(),
        Err(_) => return HttpResponse::build(StatusCode::REQUEST_TIMEOUT).body("the body did not come in time\n"),
    };
    let left = limit.saturating_sub(began.elapsed());
    let decided = timeout(left, admission.decide(webhook, limit / 4, body.clone())).await;
    let (reply, is_stale) = match decided {
        Ok(Ok(decided)) => decided,
        Ok(Err(reason)) => (denial(webhook, &body, &reason), false),
        Err(_) => (denial(webhook, &body, "there was no decision within the time limit; try again"), false),
    };
    match reply {
        Reply::BadRequest(reason) => HttpResponse::BadRequest().body(format!("{reason}\n")),
        Reply::Review(answer) => {
            admission.metrics.answered(answer.counted.clone(), began.elapsed(), is_stale);
            log(&answer, is_stale, began.elapsed());
            HttpResponse::Ok().insert_header((CONTENT_TYPE, "application/json")).json(&answer.review)
        }
    }
}

/// A denial to whom the uid of the body says; without one there is no review.
fn denial(webhook: Webhook, body: &[u8], reason: &str) -> Reply {
    match uid_of(body) {
        Some(uid) => failed(webhook, &uid, reason),
        None => Reply::BadRequest(reason.to_owned()),
    }
}

/// How long a call may take here: the API server says how long it waits, as `?timeout=5s`.
fn deadline(asked: Option<&str>) -> Duration {
    let asked = asked.and_then(|text| humantime::parse_duration(text).ok()).filter(|asked| !asked.is_zero());
    asked.map_or(DEADLINE, |asked| asked.min(TIMEOUT_MAX).mul_f64(SHARE))
}

fn log(answer: &Answer, is_stale: bool, took: Duration) {
    let response = &answer.response;
    let note = |key: &str| response.audit_annotations.get(key).map(String::as_str).unwrap_or_default();
    tracing::info!(
        target: "flotilla::admission",
        webhook = ?answer.counted.webhook,
        uid = response.uid,
        resource = answer.counted.resource,
        operation = answer.counted.operation,
        namespace = answer.namespace,
        user = answer.user,
        decision = ?answer.counted.decision,
        mode = answer.counted.mode,
        policy = note("policy"),
        denied = note("denied"),
        warned = note("warned"),
        audited = note("audited"),
        digest = note("digest"),
        revision = note("revision"),
        stale = is_stale,
        duration_ms = took.as_millis() as u64,
        "reviewed"
    );
}

impl Admission {
    /// Why nothing can be decided here, if so.
    fn refusal(&self) -> Option<String> {
        if self.readiness.is_stopping() {
            return Some("this node is stopping".into());
        }
        if !self.readiness.has_caught_up() {
            return Some("this node has not caught up with its cluster since it was started".into());
        }
        let facts = self.now();
        self.policies.at(&facts.registry, facts.revision).err().map(|error| error.to_string())
    }

    /// Decides by state that is as new as the call where a majority answers within `patience`, else by what this node
    /// has; and whether that may be old.
    async fn decide(&self, webhook: Webhook, patience: Duration, body: Bytes) -> Result<(Reply, bool), String> {
        let is_stale = !matches!(timeout(patience, self.consensus.read_barrier()).await, Ok(Ok(())));
        if !is_stale {
            self.readiness.caught_up();
        }
        let refusal = match is_stale {
            true => self.refusal_of_the_stale(),
            false => None,
        };
        let (facts, now_ms, policies) = (self.now(), self.consensus.now_ms(), self.policies.clone());
        let decided = web::block(move || {
            let (policies, refusal) = match policies.at(&facts.registry, facts.revision) {
                Ok(policies) => (policies, refusal),
                Err(error) => (Default::default(), Some(error.to_string())),
            };
            let grounds = Grounds { facts: &facts, policies: &policies, now_ms, is_stale, refusal };
            answer(webhook, &grounds, &body)
        });
        match decided.await {
            Ok(Ok(reply)) => Ok((reply, is_stale)),
            Ok(Err(error)) => {
                tracing::error!(%error, "a review could not be decided");
                Err("this node cannot read its state".into())
            }
            Err(_) => Err("this node is stopping".into()),
        }
    }

    fn refusal_of_the_stale(&self) -> Option<String> {
        let settings = &self.config.admission;
        if !self.readiness.has_caught_up() {
            return Some("this node has not caught up with its cluster since it was started".into());
        }
        let lost = self.consensus.quorum_lost_for();
        match (settings.without_quorum, settings.max_staleness) {
            (WithoutQuorum::Deny, _) => Some(
                "no majority of the registry's nodes answers, and admission.without_quorum is deny: bring nodes back"
                    .into(),
            ),
            (WithoutQuorum::Local, Some(limit)) if lost > limit => Some(format!(
                "no majority of the registry's nodes has answered for {} s, more than admission.max_staleness allows",
                lost.as_secs()
            )),
            (WithoutQuorum::Local, _) => None,
        }
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

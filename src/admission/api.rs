//! Image policies over HTTP: put, removed, listed, and what they were before.

use std::time::Duration;

use actix_web::http::StatusCode;
use actix_web::http::header::{CONTENT_TYPE, ETAG};
use actix_web::{HttpRequest, HttpResponse, HttpResponseBuilder, delete, get, post, put, web};
use flotilla_raft::json::Object;
use flotilla_raft::{Command, PolicyName, PolicyVersion};
use flotilla_storage::StorageError;
use serde::Deserialize;
use serde_json::json;
use utoipa_actix_web::service_config::ServiceConfig;
use uuid::Uuid;

use super::Admission;
use super::policy::{DOCUMENT_MAX, Policy};
use super::state::AsOf;
use crate::body::read_body;
use crate::freshness::Freshness;
use crate::oci::error::{Code, OciError, blocking};
use crate::request::query;
use crate::revision::{self, FLOTILLA_REVISION};
use crate::timestamp::rfc3339;

/// The most versions that a history shows: all that are kept.
const VERSIONS_MAX: usize = 100;

/// How long the explanation waits for a majority: as the webhooks where the API server waits five seconds.
const EXPLAIN_PATIENCE: Duration = Duration::from_secs(1);

/// The largest body of a rollback, in bytes.
const ROLLBACK_MAX: u64 = 4096;

/// The routes. The app's data must hold [`Admission`].
pub(crate) fn configure(routes: &mut ServiceConfig<'_>) {
    routes
        .service(list)
        .service(get_policy)
        .service(put_policy)
        .service(delete_policy)
        .service(history)
        .service(rollback)
        .service(explain_image);
}

/// `GET /api/v1/policies`: the policies in force, by name.
#[utoipa::path(responses((status = 200, body = Object, description = "`policies`: each with `name`, `mode`, `revision`, `time`")))]
#[get("/api/v1/policies")]
async fn list(admission: web::Data<Admission>) -> Result<HttpResponse, OciError> {
    let freshness = Freshness::catch_up(&admission.consensus).await?;
    let (registry, revision) = (admission.consensus.registry().clone(), admission.consensus.applied_index());
    // Patterns are compiled to say what is not understood.
    let shown = blocking(move || {
        let found = registry.policies(revision)?;
        let shown = found.iter().map(|(name, began, version)| {
            let policy = Policy::parse(version.document.as_deref().unwrap_or_default(), *began);
            json!({
                "name": name,
                "mode": policy.as_ref().ok().map(|policy| policy.mode),
                "not_understood": policy.err().map(|error| error.to_string()),
                "revision": began,
                "time": rfc3339(version.time_ms),
            })
        });
        Ok::<Vec<_>, StorageError>(shown.collect())
    })
    .await?;
    Ok(answer(StatusCode::OK, revision, freshness).json(json!({ "policies": shown })))
}

/// `GET /api/v1/policies/<name>`: the document as it was put; `?revision=` one of its former versions.
#[utoipa::path(
    params(
        ("name" = String, Path),
        ("revision" = Option<u64>, Query, description = "The version that was in force then"),
    ),
    responses(
        (status = 200, content_type = "application/yaml", description = "The document; `ETag` is its revision"),
        (status = 404, body = Object, description = "There is, or was, no such policy"),
    )
)]
#[get("/api/v1/policies/{name}")]
async fn get_policy(
    admission: web::Data<Admission>,
    request: HttpRequest,
    name: web::Path<String>,
) -> Result<HttpResponse, OciError> {
    let name: PolicyName = name.parse()?;
    let freshness = Freshness::catch_up(&admission.consensus).await?;
    let then = match query(&request, "revision") {
        None => admission.consensus.applied_index(),
        Some(text) => text.parse().map_err(|_| refused("revision must be a number"))?,
    };
    let (began, document) =
        admission.document_at(&name, then).await?.ok_or_else(|| freshness.missing(unknown(&name)))?;
    let mut answered = answer(StatusCode::OK, began, freshness);
    Ok(answered
        .insert_header((ETAG, revision::etag(began)))
        .insert_header((CONTENT_TYPE, "application/yaml"))
        .body(document))
}

/// `PUT /api/v1/policies/<name>`: puts a document, YAML or JSON, that has this name. The same again is no change.
#[utoipa::path(
    params(
        ("name" = String, Path),
        ("if-match" = Option<String>, Header, description = "The revision that is replaced, as `ETag` had it"),
        ("if-none-match" = Option<String>, Header, description = "`*`: only if there is none"),
    ),
    request_body(content = Object, description = "The whole policy"),
    responses(
        (status = 204, description = "In force on every node; `ETag` is its revision"),
        (status = 400, body = Object, description = "Not valid; says where"),
        (status = 412, body = Object, description = "The policy is another by now"),
    )
)]
#[put("/api/v1/policies/{name}")]
async fn put_policy(
    admission: web::Data<Admission>,
    request: HttpRequest,
    name: web::Path<String>,
    payload: web::Payload,
) -> Result<HttpResponse, OciError> {
    let name: PolicyName = name.parse()?;
    let expected = revision::expected(&request)?;
    let (limit, pause) = (DOCUMENT_MAX as u64, admission.config.body_timeout);
    let mut memory = admission.bodies.share();
    let body = read_body(&request, payload, limit, pause, &mut memory).await?;
    let document = String::from_utf8(body.to_vec()).map_err(|_| refused("the policy is not UTF-8"))?;
    let (named, document) = blocking(move || {
        let policy =
            Policy::parse(&document, 0).map_err(|invalid| refused(&format!("the policy is not valid: {invalid}")))?;
        Ok::<_, OciError>((policy.name, document))
    })
    .await?;
    if named != name {
        return Err(refused(&format!("the policy's own name is {named}")));
    }
    if expected.is_none() {
        admission.consensus.read_barrier().await?;
        let present = admission.document_at(&name, admission.consensus.applied_index()).await?;
        if let Some((began, _)) = present.filter(|(_, present)| *present == document) {
            return Ok(done(began));
        }
    }
    admission.change(name, Some(document), expected).await.map(done)
}

/// `DELETE /api/v1/policies/<name>`
#[utoipa::path(
    params(
        ("name" = String, Path),
        ("if-match" = Option<String>, Header, description = "The revision that is removed, as `ETag` had it"),
    ),
    responses(
        (status = 204, description = "Removed on every node"),
        (status = 404, body = Object, description = "There is no such policy"),
        (status = 412, body = Object, description = "The policy is another by now"),
    )
)]
#[delete("/api/v1/policies/{name}")]
async fn delete_policy(
    admission: web::Data<Admission>,
    request: HttpRequest,
    name: web::Path<String>,
) -> Result<HttpResponse, OciError> {
    let expected = revision::expected(&request)?;
    admission.change(name.parse()?, None, expected).await.map(done)
}

/// `GET /api/v1/policies/<name>/history`: the newest version first.
#[utoipa::path(
    params(("name" = String, Path)),
    responses(
        (status = 200, body = Object, description = "`history`: each with `revision`, `time`, `actor`, `document` (null where it was removed)"),
        (status = 404, body = Object, description = "There never was such a policy"),
    )
)]
#[get("/api/v1/policies/{name}/history")]
async fn history(admission: web::Data<Admission>, name: web::Path<String>) -> Result<HttpResponse, OciError> {
    let name: PolicyName = name.parse()?;
    let freshness = Freshness::catch_up(&admission.consensus).await?;
    let (registry, wanted) = (admission.consensus.registry().clone(), name.clone());
    let versions = blocking(move || registry.policy_history(&wanted, None, VERSIONS_MAX)).await?;
    if versions.is_empty() {
        return Err(freshness.missing(unknown(&name)));
    }
    let shown: Vec<_> = versions.iter().map(|(revision, version)| shown(*revision, version)).collect();
    let revision = admission.consensus.applied_index();
    Ok(answer(StatusCode::OK, revision, freshness).json(json!({ "name": name, "history": shown })))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Rollback {
    revision: u64,
}

/// `POST /api/v1/policies/<name>/rollback` with `{"revision": N}`: the policy is again what it was then.
#[utoipa::path(
    params(
        ("name" = String, Path),
        ("if-match" = Option<String>, Header, description = "The revision that is replaced, as `ETag` had it"),
    ),
    request_body(content = Object, description = "`{\"revision\": N}`"),
    responses(
        (status = 204, description = "In force on every node; `ETag` is its new revision"),
        (status = 404, body = Object, description = "There was no such policy then, or it is forgotten"),
        (status = 412, body = Object, description = "The policy is another by now"),
    )
)]
#[post("/api/v1/policies/{name}/rollback")]
async fn rollback(
    admission: web::Data<Admission>,
    request: HttpRequest,
    name: web::Path<String>,
    payload: web::Payload,
) -> Result<HttpResponse, OciError> {
    let name: PolicyName = name.parse()?;
    let expected = revision::expected(&request)?;
    let pause = admission.config.body_timeout;
    let mut memory = admission.bodies.share();
    let body = read_body(&request, payload, ROLLBACK_MAX, pause, &mut memory).await?;
    let Object(Rollback { revision }) =
        serde_json::from_slice(&body).map_err(|error| refused(&format!("not {{\"revision\": N}}: {error}")))?;
    admission.consensus.read_barrier().await?;
    let (_, document) = admission.document_at(&name, revision).await?.ok_or_else(|| unknown(&name))?;
    admission.change(name, Some(document), expected).await.map(done)
}

/// `GET /api/v1/admission/explain?image=&namespace=`: what each policy and rule says of an image in a pod.
#[utoipa::path(
    params(
        ("image" = String, Query, description = "As a container names it"),
        ("namespace" = String, Query),
    ),
    responses((
        status = 200,
        body = Object,
        description = "`allowed`, `refusal`, `stale`, `revision`, `reference`, `repository`, `digest`, `runs_as`; `policies`: each with `rules` and `findings`",
    ))
)]
#[get("/api/v1/admission/explain")]
async fn explain_image(admission: web::Data<Admission>, request: HttpRequest) -> Result<HttpResponse, OciError> {
    let wanted = |name: &str| {
        query(&request, name).map(|text| text.into_owned()).ok_or_else(|| refused(&format!("{name} is missing")))
    };
    let (image, namespace) = (wanted("image")?, wanted("namespace")?);
    // As the webhooks wait, which it explains.
    let is_stale = admission.catch_up(EXPLAIN_PATIENCE).await;
    let explained = blocking(move || admission.explained(is_stale, &namespace, &image)).await?;
    let revision = explained["revision"].as_u64().unwrap_or_default();
    Ok(answer(StatusCode::OK, revision, Freshness::Current).json(explained))
}

impl Admission {
    /// What this node knows now.
    pub(super) fn now(&self) -> AsOf {
        let (applied, rules) = (self.consensus.applied_index(), self.consensus.rules());
        // Rules are told of before their revision counts as applied; what is decided by them is of their revision.
        let revision = applied.max(rules.revision());
        AsOf { registry: self.consensus.registry().clone(), rules, revision }
    }

    /// The document that was in force at a revision, and since when.
    async fn document_at(&self, name: &PolicyName, revision: u64) -> Result<Option<(u64, String)>, OciError> {
        let (registry, name) = (self.consensus.registry().clone(), name.clone());
        let found = blocking(move || registry.policy_history(&name, revision.checked_add(1), 1)).await?.pop();
        Ok(found.and_then(|(began, version)| Some((began, version.document?))))
    }

    async fn change(&self, name: PolicyName, document: Option<String>, expected: Option<u64>) -> Result<u64, OciError> {
        let command = Command::ChangePolicy { name, document, expected };
        let answer = self.consensus.propose(Uuid::new_v4(), command).await?;
        answer.result.map_err(|refusal| OciError::from(refusal).revision(answer.revision))?;
        Ok(answer.revision)
    }
}

fn answer(status: StatusCode, revision: u64, freshness: Freshness) -> HttpResponseBuilder {
    let mut answer = HttpResponse::build(status);
    answer.insert_header((FLOTILLA_REVISION, revision));
    if let Some(warning) = freshness.warning() {
        answer.insert_header(warning);
    }
    answer
}

fn done(revision: u64) -> HttpResponse {
    let mut answer = answer(StatusCode::NO_CONTENT, revision, Freshness::Current);
    answer.insert_header((ETAG, revision::etag(revision))).finish()
}

fn shown(revision: u64, version: &PolicyVersion) -> serde_json::Value {
    json!({
        "revision": revision,
        "time": rfc3339(version.time_ms),
        "actor": version.actor,
        "document": version.document,
    })
}

fn unknown(name: &PolicyName) -> OciError {
    OciError::not_found(Code::Unsupported, format!("there is no policy {name}"))
}

fn refused(message: &str) -> OciError {
    OciError::bad_request(Code::Unsupported, message)
}

//! What nothing uses, over HTTP: what would go, why, and make it go now.

use actix_web::http::header::CONTENT_TYPE;
use actix_web::{HttpRequest, HttpResponse, get, post, web};
use flotilla_raft::settings::Rules;
use flotilla_raft::{Candidate, Holding, Whereabouts};
use flotilla_storage::Digest;
use serde_json::{Value, json};
use utoipa_actix_web::service_config::ServiceConfig;

use super::error::{Code, OciError, blocking};
use super::{FLOTILLA_REVISION, Oci, decimal};
use crate::request::query;
use crate::timestamp::rfc3339;

/// The candidates that one plan lists at most.
const PLAN_MAX: usize = 1000;

/// The repositories, and manifests of each, that one explanation lists at most.
const PLACES_MAX: usize = 20;

/// The routes. The app's data must hold [`Oci`].
pub(crate) fn configure(routes: &mut ServiceConfig<'_>) {
    routes.service(plan).service(run).service(explain);
}

/// `GET /api/v1/gc/plan`: what nothing uses, and when each of it is due. `n` bounds the list.
#[utoipa::path(
    params(("n" = Option<u64>, Query, description = "The most candidates of the answer")),
    responses((
        status = 200,
        body = Object,
        description = "`candidates`: `kind` (`manifest`, `repository`, `blob`, `bytes`), `repository`, `digest`, `unused_since`, `due_at`, `due`; `more`: whether there are others",
    ))
)]
#[get("/api/v1/gc/plan")]
async fn plan(oci: web::Data<Oci>, request: HttpRequest) -> Result<HttpResponse, OciError> {
    let refused = || OciError::bad_request(Code::Unsupported, "n must be a number");
    let limit = query(&request, "n").map(|text| text.parse::<usize>().map_err(|_| refused())).transpose()?;
    let limit = limit.map_or(PLAN_MAX, |limit| limit.min(PLAN_MAX));
    let freshness = oci.catch_up().await?;
    let registry = oci.consensus.registry().clone();
    let mut found = blocking(move || registry.garbage(limit + 1)).await?;
    let more = found.len() > limit;
    found.truncate(limit);
    let (rules, now_ms) = (oci.consensus.rules(), oci.consensus.now_ms());
    let candidates: Vec<_> = found.iter().map(|(since_ms, what)| shown(&rules, now_ms, *since_ms, what)).collect();
    let mut answer = HttpResponse::Ok();
    answer.insert_header((FLOTILLA_REVISION, decimal(oci.consensus.applied_index())));
    if let Some(warning) = freshness.warning() {
        answer.insert_header(warning);
    }
    Ok(answer.json(json!({
        "grace_seconds": rules.garbage_grace_ms() / 1000,
        "history_seconds": rules.history_ms() / 1000,
        "candidates": candidates,
        "more": more,
    })))
}

fn shown(rules: &Rules, now_ms: u64, since_ms: u64, candidate: &Candidate) -> Value {
    let (kind, repository, digest, age_ms) = match candidate {
        Candidate::Former(repository, digest) => ("manifest", Some(repository), Some(digest), rules.history_ms()),
        Candidate::Existence(repository, _) => ("repository", Some(repository), None, rules.history_ms()),
        Candidate::Link(repository, digest) => ("blob", Some(repository), Some(digest), rules.garbage_grace_ms()),
        Candidate::Bytes(digest) => ("bytes", None, Some(digest), rules.garbage_grace_ms()),
    };
    let due_ms = since_ms.saturating_add(age_ms);
    json!({
        "kind": kind,
        "repository": repository,
        "digest": digest.map(ToString::to_string),
        "unused_since": rfc3339(since_ms),
        "due_at": rfc3339(due_ms),
        "due": due_ms <= now_ms,
    })
}

/// `POST /api/v1/gc/run`: collects what is due, and files without a name on all nodes that answer, now.
#[utoipa::path(responses(
    (
        status = 200,
        body = Object,
        description = "What is gone: `manifests` that history needed no more, `untagged` manifests, `links` of repositories, `blobs` and their `bytes`, `orphans` (files without a name)",
    ),
    (status = 503, body = Object, description = "No majority answers"),
))]
#[post("/api/v1/gc/run")]
async fn run(oci: web::Data<Oci>) -> Result<HttpResponse, OciError> {
    let (collected, revision) = oci.replication.collect().await?;
    // Whoever asks wants to see it gone.
    oci.consensus.wait_applied_everywhere(revision).await;
    let mut answer = HttpResponse::Ok();
    answer.insert_header((FLOTILLA_REVISION, decimal(revision)));
    Ok(answer.json(json!({
        "revision": revision,
        "manifests": collected.manifests,
        "untagged": collected.untagged,
        "links": collected.links,
        "blobs": collected.blobs,
        "bytes": collected.bytes,
        "orphans": collected.orphans,
    })))
}

/// `GET /api/v1/gc/blobs/<digest>`: who holds a digest, and when it goes.
#[utoipa::path(
    params(("digest" = String, Path)),
    responses(
        (
            status = 200,
            body = Object,
            description = "`size`; `unused_since` and `due_at` where no repository holds it; `repositories`: each with `blob`, `manifest` or `former_manifest`",
        ),
        (status = 404, body = Object, description = "No repository holds it"),
    )
)]
#[get("/api/v1/gc/blobs/{digest}")]
async fn explain(oci: web::Data<Oci>, digest: web::Path<String>) -> Result<HttpResponse, OciError> {
    let digest: Digest = digest.parse()?;
    let freshness = oci.catch_up().await?;
    let registry = oci.consensus.registry().clone();
    let found: Whereabouts = blocking(move || registry.whereabouts(&digest, PLACES_MAX)).await?;
    let unknown = || OciError::blob_unknown(&digest).revision(oci.consensus.applied_index());
    let (size, unused_since) = found.blob.ok_or_else(|| freshness.missing(unknown()))?;
    let rules = oci.consensus.rules();
    let repositories: Vec<_> = found.places.iter().map(|place| place_shown(&rules, place)).collect();
    let mut document = json!({
        "digest": digest.to_string(),
        "size": size,
        "repositories": repositories,
        "more": found.more,
    });
    if let Some(since_ms) = unused_since {
        document["unused_since"] = rfc3339(since_ms).into();
        document["due_at"] = rfc3339(since_ms.saturating_add(rules.garbage_grace_ms())).into();
    }
    let mut answer = HttpResponse::Ok();
    answer.insert_header((FLOTILLA_REVISION, decimal(oci.consensus.applied_index())));
    answer.insert_header((CONTENT_TYPE, "application/json"));
    if let Some(warning) = freshness.warning() {
        answer.insert_header(warning);
    }
    Ok(answer.body(document.to_string()))
}

fn place_shown(rules: &Rules, place: &Holding) -> Value {
    let mut shown = json!({ "repository": place.repository });
    if let Some(link) = &place.link {
        let named_by: Vec<_> = place.named_by.iter().map(ToString::to_string).collect();
        shown["blob"] = json!({ "uses": link.uses, "named_by": named_by });
        if link.uses == 0 {
            shown["blob"]["unused_since"] = rfc3339(link.unused_since_ms).into();
            shown["blob"]["due_at"] = rfc3339(link.unused_since_ms.saturating_add(rules.garbage_grace_ms())).into();
        }
    }
    if place.manifest {
        shown["manifest"] = json!({});
    }
    if let Some(deleted_ms) = place.former {
        shown["former_manifest"] = json!({
            "deleted": rfc3339(deleted_ms),
            "due_at": rfc3339(deleted_ms.saturating_add(rules.history_ms())),
        });
    }
    shown
}

//! The history of one tag, and the way back in it.

use actix_web::http::header::LINK;
use actix_web::{HttpRequest, HttpResponse, get, post, web};
use flotilla_raft::json::Object;
use flotilla_raft::{RepositoryName, Tag, TagChange, TagVersion};
use serde::Deserialize;
use serde_json::json;

use super::propose;
use crate::body::read_body;
use crate::oci::error::{Code, OciError, blocking};
use crate::oci::{FLOTILLA_REVISION, Oci, checked, condition, decimal, past};
use crate::request::query;
use crate::timestamp::rfc3339;

/// The versions of one page, unless the client asks for fewer.
const PAGE_MAX: usize = 1000;

/// The largest body of a request, in bytes.
const BODY_MAX: u64 = 4096;

/// `GET /api/v1/repositories/<name>/tags/<tag>/history`: the newest version first. `n` bounds the page, `before` is the
/// revision that the former page ended at.
#[utoipa::path(
    params(
        ("repository" = String, Path, description = "The repository; slashes are part of it"),
        ("tag" = String, Path),
        ("n" = Option<u64>, Query, description = "The most versions of the answer"),
        ("before" = Option<u64>, Query, description = "Only versions that began before this revision"),
    ),
    responses(
        (status = 200, body = Object, description = "The versions, the newest first; `Link` leads to older ones"),
        (status = 404, body = Object, description = "The tag never was"),
    )
)]
#[get("/api/v1/repositories/{repository:.+}/tags/{tag}/history")]
pub(super) async fn history(
    oci: web::Data<Oci>,
    request: HttpRequest,
    path: web::Path<(String, String)>,
) -> Result<HttpResponse, OciError> {
    let (repository, tag) = parsed(path)?;
    let number = |name: &str| {
        let parse = |text: std::borrow::Cow<'_, str>| text.parse::<u64>().ok();
        let refused = || OciError::bad_request(Code::Unsupported, format!("{name} must be a number"));
        query(&request, name).map(|text| parse(text).ok_or_else(refused)).transpose()
    };
    let (limit, before) = (number("n")?.map_or(PAGE_MAX, |n| PAGE_MAX.min(n as usize)), number("before")?);

    let freshness = oci.catch_up().await?;
    let registry = oci.consensus.registry().clone();
    let (name, wanted) = (repository.clone(), tag.clone());
    let mut versions = blocking(move || registry.tag_history(&name, &wanted, before, limit + 1)).await?;
    if versions.is_empty() && before.is_none() {
        return Err(freshness.missing(OciError::manifest_unknown(&tag)));
    }
    let more = versions.len() > limit;
    versions.truncate(limit);

    let mut answer = HttpResponse::Ok();
    answer.insert_header((FLOTILLA_REVISION, decimal(oci.consensus.applied_index())));
    if let Some(warning) = freshness.warning() {
        answer.insert_header(warning);
    }
    if let Some((last, _)) = versions.last().filter(|_| more) {
        let next =
            format!("</api/v1/repositories/{repository}/tags/{tag}/history?n={limit}&before={last}>; rel=\"next\"");
        answer.insert_header((LINK, checked(next)));
    }
    let versions: Vec<_> = versions.iter().map(|(revision, version)| shown(*revision, version)).collect();
    Ok(answer.json(json!({ "repository": repository, "tag": tag, "history": versions })))
}

fn shown(revision: u64, version: &TagVersion) -> serde_json::Value {
    json!({
        "revision": revision,
        "digest": version.digest.map(|digest| digest.to_string()),
        "time": rfc3339(version.time_ms),
        "actor": version.actor,
    })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Rollback {
    revision: u64,
}

/// `POST /api/v1/repositories/<name>/tags/<tag>/rollback` with `{"revision": N}`: the tag points again at what it
/// pointed at then; `If-Match` says where it must be now.
#[utoipa::path(
    params(
        ("repository" = String, Path, description = "The repository; slashes are part of it"),
        ("tag" = String, Path),
        ("if-match" = Option<String>, Header, description = "The digest that the tag must point at now, in quotes"),
    ),
    request_body(content = Object, description = "`{\"revision\": N}`"),
    responses(
        (status = 200, body = Object, description = "The tag points at that manifest again"),
        (status = 404, body = Object, description = "There was no such tag then, or its manifest is gone"),
        (status = 410, body = Object, description = "The revision is forgotten"),
        (status = 412, body = Object, description = "The tag is elsewhere by now: `ETag` says where"),
    )
)]
#[post("/api/v1/repositories/{repository:.+}/tags/{tag}/rollback")]
pub(super) async fn rollback(
    oci: web::Data<Oci>,
    request: HttpRequest,
    path: web::Path<(String, String)>,
    payload: web::Payload,
) -> Result<HttpResponse, OciError> {
    let (repository, tag) = parsed(path)?;
    let condition = condition::of(&request)?;
    let mut memory = oci.bodies.share();
    let body = read_body(&request, payload, BODY_MAX, oci.config.body_timeout, &mut memory).await?;
    let Object(Rollback { revision }) = serde_json::from_slice(&body)
        .map_err(|error| OciError::bad_request(Code::Unsupported, format!("not {{\"revision\": N}}: {error}")))?;
    past::reach(&oci, revision).await?;
    let then = past::tag_at(&oci, &repository, &tag, revision).await?;
    let (_, digest) = then.ok_or_else(|| OciError::manifest_unknown(&tag))?;

    let revision = propose(&oci, vec![TagChange { repository, tag, digest: Some(digest), condition }]).await?;
    let shown = json!({ "revision": revision, "digest": digest.to_string() });
    Ok(HttpResponse::Ok().insert_header((FLOTILLA_REVISION, decimal(revision))).json(shown))
}

fn parsed(path: web::Path<(String, String)>) -> Result<(RepositoryName, Tag), OciError> {
    let (repository, tag) = path.into_inner();
    Ok((repository.parse()?, tag.parse()?))
}

//! The settings that all nodes share, over HTTP: read, and replaced as a whole.

use actix_web::http::StatusCode;
use actix_web::http::header::{CONTENT_TYPE, ETAG};
use actix_web::{HttpRequest, HttpResponse, get, put, web};
use flotilla_raft::Command;
use flotilla_raft::settings::{DOCUMENT_MAX, Rules};
use utoipa_actix_web::service_config::ServiceConfig;
use uuid::Uuid;

use super::error::{Code, OciError};
use super::{FLOTILLA_REVISION, Oci, decimal};
use crate::body::read_body;
use crate::revision;

/// What stands for settings that nobody put.
const NOTHING: &str = "{}";

/// The routes. The app's data must hold [`Oci`].
pub(crate) fn configure(routes: &mut ServiceConfig<'_>) {
    routes.service(get_settings).service(put_settings);
}

/// `GET /api/v1/settings`: the document, and its revision as entity tag (`"0"` where none was put).
#[utoipa::path(responses((status = 200, body = Object, description = "The document; `ETag` is its revision")))]
#[get("/api/v1/settings")]
async fn get_settings(oci: web::Data<Oci>) -> Result<HttpResponse, OciError> {
    let freshness = oci.catch_up().await?;
    let record = oci.consensus.registry().settings()?;
    let (document, revision) = record.map_or_else(|| (NOTHING.into(), 0), |record| (record.document, record.revision));
    let mut answer = HttpResponse::Ok();
    answer.insert_header((FLOTILLA_REVISION, decimal(revision)));
    answer.insert_header((ETAG, revision::etag(revision)));
    answer.insert_header((CONTENT_TYPE, "application/json"));
    if let Some(warning) = freshness.warning() {
        answer.insert_header(warning);
    }
    Ok(answer.body(document))
}

/// `PUT /api/v1/settings`: replaces the document; `If-Match` says which revision is replaced.
#[utoipa::path(
    params(
        ("if-match" = Option<String>, Header, description = "The revision that is replaced, as `ETag` had it"),
        ("if-none-match" = Option<String>, Header, description = "`*`: only if none was put yet"),
    ),
    request_body(content = Object, description = "The whole document"),
    responses(
        (status = 204, description = "Replaced; `ETag` is the new revision"),
        (status = 400, body = Object, description = "Not valid; says where"),
        (status = 412, body = Object, description = "The settings are others by now"),
    )
)]
#[put("/api/v1/settings")]
async fn put_settings(
    oci: web::Data<Oci>,
    request: HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, OciError> {
    let expected = revision::expected(&request)?;
    let (limit, pause) = (DOCUMENT_MAX as u64, oci.config.body_timeout);
    let mut memory = oci.bodies.share();
    let body = read_body(&request, payload, limit, pause, &mut memory).await?;
    let document = String::from_utf8(body.to_vec()).map_err(|_| refused("the document is not UTF-8"))?;
    Rules::check(&document).map_err(|invalid| refused(&invalid.to_string()))?;
    let answer = oci.consensus.propose(Uuid::new_v4(), Command::PutSettings { document, expected }).await?;
    answer.result.map_err(|refusal| OciError::from(refusal).revision(answer.revision))?;
    let mut answered = HttpResponse::build(StatusCode::NO_CONTENT);
    answered.insert_header((FLOTILLA_REVISION, decimal(answer.revision)));
    Ok(answered.insert_header((ETAG, revision::etag(answer.revision))).finish())
}

fn refused(message: &str) -> OciError {
    OciError::bad_request(Code::Unsupported, message)
}

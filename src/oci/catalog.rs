//! The list of repositories.

use actix_web::{HttpRequest, HttpResponse};
use flotilla_raft::Registry;
use serde_json::json;

use super::Oci;
use super::error::OciError;
use super::tags::Page;

/// `GET /v2/_catalog`
pub(crate) async fn list(oci: &Oci, request: &HttpRequest) -> Result<HttpResponse, OciError> {
    let look = |registry: &Registry, after: Option<&str>, limit: usize| Ok(Some(registry.repositories(after, limit)?.into_iter().map(String::from).collect()));
    let page = Page::of(request)?;
    page.answer(oci, "/v2/_catalog", look, OciError::internal, |repositories| json!({ "repositories": repositories })).await
}

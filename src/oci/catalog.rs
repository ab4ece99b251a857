//! The list of repositories.

use actix_web::{HttpRequest, HttpResponse};
use flotilla_raft::Registry;
use serde_json::json;

use super::Oci;
use super::error::{Code, OciError};
use super::extract::query;
use super::tags::Page;

/// `GET /v2/_catalog`
pub(crate) async fn list(oci: &Oci, request: &HttpRequest) -> Result<HttpResponse, OciError> {
    let look = |registry: &Registry, after: Option<&str>, limit: usize| {
        Ok(Some(registry.repositories(after, limit)?.into_iter().map(String::from).collect()))
    };
    // Passed over, it would look like an answer about the past.
    if query(request, "revision").is_some() {
        return Err(OciError::bad_request(
            Code::Unsupported,
            "the catalog cannot be read at a revision, a repository's tags can",
        ));
    }
    let page = Page::of(request)?;
    page.answer(oci, "/v2/_catalog", look, OciError::internal, |repositories| json!({ "repositories": repositories }))
        .await
}

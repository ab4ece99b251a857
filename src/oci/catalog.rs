//! The list of repositories.

use actix_web::{HttpRequest, HttpResponse};
use flotilla_raft::Registry;
use serde_json::json;

use super::error::OciError;
use super::tags::Page;
use super::{Oci, past};

/// `GET /v2/_catalog`; `?revision=` reads it as it was then.
pub(crate) async fn list(oci: &Oci, request: &HttpRequest) -> Result<HttpResponse, OciError> {
    let past = past::revision(oci, request).await?;
    let look = move |registry: &Registry, after: Option<&str>, limit: usize| {
        let repositories = match past {
            Some(revision) => registry.repositories_at(revision, after, limit)?,
            None => registry.repositories(after, limit)?,
        };
        Ok(Some(repositories.into_iter().map(String::from).collect()))
    };
    let page = Page::of(request)?.at(past);
    page.answer(oci, "/v2/_catalog", look, OciError::internal, |repositories| json!({ "repositories": repositories }))
        .await
}

//! The list of a repository's tags, and what both lists have in common: pages.

use actix_web::http::header::{HeaderValue, LINK};
use actix_web::{HttpRequest, HttpResponse};
use flotilla_raft::{Registry, RepositoryName};
use flotilla_storage::StorageError;
use serde_json::json;

use super::error::{Code, OciError, blocking};
use super::extract::encoded;
use super::past;
use super::{FLOTILLA_REVISION, Freshness, Oci, checked, decimal};
use crate::request::query;

/// The most entries of one page.
const PAGE_MAX: usize = 10_000;

/// `GET /v2/<name>/tags/list`
pub(crate) async fn list(
    oci: &Oci,
    request: &HttpRequest,
    repository: &RepositoryName,
) -> Result<HttpResponse, OciError> {
    let page = Page::of(request)?;
    let past = past::revision(oci, request).await?;
    let name = repository.clone();
    let look = move |registry: &Registry, after: Option<&str>, limit: usize| {
        let (tags, is_known) = match past {
            Some(revision) => {
                (registry.tags_at(&name, revision, after, limit)?, registry.repository_existed(&name, revision)?)
            }
            None => {
                let tags = registry.tags(&name, after, limit)?;
                let is_known = !tags.is_empty() || registry.repository_exists(&name)?;
                (tags, is_known)
            }
        };
        Ok(is_known.then(|| tags.into_iter().map(String::from).collect()))
    };
    let unknown = || OciError::not_found(Code::NameUnknown, format!("repository {repository} is not known"));
    let path = format!("/v2/{repository}/tags/list");
    page.at(past).answer(oci, &path, look, unknown, |tags| json!({ "name": repository, "tags": tags })).await
}

/// Which part of a list a request asks for.
pub(super) struct Page {
    limit: usize,
    after: Option<String>,
    past: Option<u64>,
}

impl Page {
    /// Reads `n` and `last`.
    ///
    /// # Errors
    /// 400 for an `n` that is no count.
    pub(super) fn of(request: &HttpRequest) -> Result<Self, OciError> {
        let limit = match query(request, "n") {
            None => PAGE_MAX,
            Some(n) => {
                count(&n).ok_or_else(|| OciError::bad_request(Code::Unsupported, "n must be a number of entries"))?
            }
        };
        Ok(Self { limit, after: query(request, "last").map(|last| last.into_owned()), past: None })
    }

    /// The same page of the list as it was at a revision, where one is given.
    pub(super) fn at(self, past: Option<u64>) -> Self {
        Self { past, ..self }
    }

    /// Looks the page up, as new as the request where a majority answers, and answers with it.
    pub(super) async fn answer(
        self,
        oci: &Oci,
        path: &str,
        look: impl Fn(&Registry, Option<&str>, usize) -> Result<Option<Vec<String>>, StorageError> + Send + 'static,
        unknown: impl FnOnce() -> OciError,
        body: impl FnOnce(&[&str]) -> serde_json::Value,
    ) -> Result<HttpResponse, OciError> {
        let (freshness, revision) = match self.past {
            Some(revision) => (Freshness::Current, revision),
            None => {
                let freshness = oci.catch_up().await?;
                (freshness, oci.consensus.applied_index())
            }
        };
        let registry = oci.consensus.registry().clone();
        let Self { limit, after, past } = self;
        // One more than is shown tells whether there are more.
        let found = blocking(move || look(&registry, after.as_deref(), limit + 1)).await?;
        if let Some(revision) = past {
            past::still_kept(oci, revision)?;
        }
        let found = found.ok_or_else(|| freshness.missing(unknown().revision(revision)))?;
        let mut entries: Vec<&str> = found.iter().map(String::as_str).collect();
        let more = entries.len() > limit;
        entries.truncate(limit);

        let mut answer = HttpResponse::Ok();
        answer.insert_header((FLOTILLA_REVISION, decimal(revision)));
        if let Some(warning) = freshness.warning() {
            answer.insert_header(warning);
        }
        if let Some(last) = entries.last().filter(|_| more) {
            answer.insert_header((LINK, next(path, limit, last, past)));
        }
        Ok(answer.json(body(&entries)))
    }
}

/// A count of entries, at most what a page has. Digits only: `+5` and ` 5` are not numbers here.
fn count(text: &str) -> Option<usize> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().map_or(PAGE_MAX, |n: usize| n.min(PAGE_MAX)))
}

/// The `Link` to the page after `last` (RFC 5988). A path only: whatever host the client used, it stays there.
fn next(path: &str, limit: usize, last: &str, past: Option<u64>) -> HeaderValue {
    let past = past.map_or_else(String::new, |revision| format!("&revision={revision}"));
    checked(format_args!("<{path}?n={limit}&last={}{past}>; rel=\"next\"", encoded(last)))
}

#[cfg(test)]
mod tests {
    use actix_web::test::TestRequest;

    use super::*;

    fn page(query: &str) -> Option<(usize, Option<String>)> {
        let request = TestRequest::with_uri(&format!("/v2/a/tags/list{query}")).to_http_request();
        Page::of(&request).ok().map(|page| (page.limit, page.after))
    }

    /// C17
    #[test]
    fn odd_values_of_n() {
        assert_eq!(page(""), Some((PAGE_MAX, None)));
        assert_eq!(page("?n=0"), Some((0, None)));
        assert_eq!(page("?n=2&n=1"), Some((2, None)));
        assert_eq!(page("?n=99999999999999999999999"), Some((PAGE_MAX, None)));
        for bad in ["?n=-1", "?n=abc", "?n=", "?n=1.5", "?n=+5", "?n=%205"] {
            assert_eq!(page(bad), None, "{bad}");
        }
    }

    #[test]
    fn last_need_not_be_a_name() {
        assert_eq!(page("?last=a%2Fb&n=3&ns=docker.io"), Some((3, Some("a/b".into()))));
        assert_eq!(page("?last="), Some((PAGE_MAX, Some(String::new()))));
    }

    /// C19, C33
    #[test]
    fn links_are_paths_and_encoded() {
        assert_eq!(next("/v2/_catalog", 2, "a/b~c_d", None), "</v2/_catalog?n=2&last=a%2Fb~c_d>; rel=\"next\"");
        let past = next("/v2/a/b/tags/list", 10, "1.0-x", Some(7));
        assert_eq!(past, "</v2/a/b/tags/list?n=10&last=1.0-x&revision=7>; rel=\"next\"");
    }
}

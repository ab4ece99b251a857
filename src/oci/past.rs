//! Reads in the past: `?revision=` on a tag or a list of tags, as far back as changes are kept.

use actix_web::HttpRequest;
use actix_web::http::StatusCode;
use flotilla_raft::{RepositoryName, Tag};
use flotilla_storage::Digest;

use super::Oci;
use super::error::{Code, OciError, blocking};
use crate::request::query;

/// The revision that a request asks for, applied here by now. What was true at a revision never changes, so no
/// majority is asked where this node has it.
///
/// # Errors
/// 400 for what is no revision or lies in the future, 410 for one that is forgotten, 503 where neither is known.
pub(super) async fn revision(oci: &Oci, request: &HttpRequest) -> Result<Option<u64>, OciError> {
    let Some(text) = query(request, "revision") else { return Ok(None) };
    let revision: u64 = text
        .parse()
        .map_err(|_| OciError::bad_request(Code::Unsupported, "revision must be a number, as in Flotilla-Revision"))?;
    reach(oci, revision).await?;
    Ok(Some(revision))
}

/// Makes sure that a revision is applied here and is not forgotten.
///
/// # Errors
/// As [`revision`].
pub(super) async fn reach(oci: &Oci, revision: u64) -> Result<(), OciError> {
    come(oci, revision).await?;
    still_kept(oci, revision)
}

/// Makes sure that a revision is applied here.
///
/// # Errors
/// 400 for one in the future, 503 where that is not known.
pub(super) async fn come(oci: &Oci, revision: u64) -> Result<(), OciError> {
    if revision > oci.consensus.applied_index() {
        oci.consensus.read_barrier().await?;
    }
    if revision > oci.consensus.applied_index() {
        return Err(OciError::bad_request(Code::Unsupported, format!("revision {revision} is still to come")));
    }
    Ok(())
}

/// Makes sure that nothing of a revision was forgotten up to now: what was read before is right.
///
/// # Errors
/// 410 for one that is forgotten.
pub(super) fn still_kept(oci: &Oci, revision: u64) -> Result<(), OciError> {
    let oldest = oci.consensus.registry().history_floor()?;
    if revision < oldest { Err(forgotten(revision, oldest)) } else { Ok(()) }
}

/// What a tag was at a revision that is [reached](reach); `None` where there was none.
///
/// # Errors
/// Damaged data, or the node is stopping.
pub(super) async fn tag_at(
    oci: &Oci,
    repository: &RepositoryName,
    tag: &Tag,
    revision: u64,
) -> Result<Option<(u64, Digest)>, OciError> {
    let (registry, repository, tag) = (oci.consensus.registry().clone(), repository.clone(), tag.clone());
    let found = blocking(move || registry.tag_at(&repository, &tag, revision)).await?;
    still_kept(oci, revision)?;
    Ok(found.and_then(|(began, version)| Some((began, version.digest?))))
}

/// 410: the revision is older than what is kept.
pub(crate) fn forgotten(revision: u64, oldest: u64) -> OciError {
    let message = format!("revision {revision} is forgotten; the oldest that can be read is {oldest}");
    OciError::new(StatusCode::GONE, Code::Unsupported, message).detail(serde_json::json!({ "oldest": oldest }))
}

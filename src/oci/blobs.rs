//! Blobs: pull, delete, and mount from another repository. Pushes are `uploads`.

use actix_web::http::Method;
use actix_web::http::header::LOCATION;
use actix_web::{HttpRequest, HttpResponse};
use flotilla_raft::{Command, LinkRecord, ReadError, Refusal, RepositoryName};
use flotilla_storage::Digest;
use uuid::Uuid;

use super::content::{self, Content};
use super::error::OciError;
use super::{DOCKER_CONTENT_DIGEST, FLOTILLA_REVISION, Oci, checked, decimal};
use crate::request::query;

/// `GET` and `HEAD /v2/<name>/blobs/<digest>`
pub(crate) async fn get(
    oci: &Oci,
    request: &HttpRequest,
    repository: &RepositoryName,
    digest: &str,
) -> Result<HttpResponse, OciError> {
    let digest: Digest = digest.parse()?;
    let link = oci.find(|| link(oci, repository, &digest)).await?;
    let link = link.ok_or_else(|| OciError::blob_unknown(&digest).revision(oci.consensus.applied_index()))?;
    if request.method() == Method::HEAD {
        touch(oci, repository, &digest, &link).await;
    }
    let mut answer = HttpResponse::Ok();
    answer.insert_header((FLOTILLA_REVISION, decimal(link.revision)));
    let content =
        Content { digest, size: link.size, inline: link.inline, media_type: "application/octet-stream", hot: false };
    content::send(oci, request, answer, content).await
}

/// `DELETE /v2/<name>/blobs/<digest>`: other repositories keep theirs.
pub(crate) async fn delete(oci: &Oci, repository: RepositoryName, digest: &str) -> Result<HttpResponse, OciError> {
    oci.remove(Command::UnlinkBlob { repository, digest: digest.parse()? }).await
}

/// The `mount` of `POST /v2/<name>/blobs/uploads/?mount=<digest>[&from=<name>]`; `None` where an upload has to do it.
///
/// A mount is an optimisation: whatever is wrong with it, the client gets the upload that it then expects (C15).
pub(crate) async fn mount(
    oci: &Oci,
    request: &HttpRequest,
    repository: &RepositoryName,
) -> Result<Option<HttpResponse>, OciError> {
    let Some(digest) = query(request, "mount").and_then(|digest| digest.parse::<Digest>().ok()) else {
        return Ok(None);
    };
    let from = match query(request, "from").map(|name| name.parse::<RepositoryName>()) {
        None => None,
        Some(Ok(from)) => Some(from),
        Some(Err(_)) => return Ok(None),
    };
    if let Some(held) = link(oci, repository, &digest)? {
        touch(oci, repository, &digest, &held).await;
        return Ok(Some(mounted(repository, &digest, held.revision)));
    }
    // The upload makes the copies that are missing.
    if !oci.replication.has_copies_for(from.as_ref(), repository) {
        return Ok(None);
    }
    // Asked before it is proposed: most attempts fail, and each would be an entry in the log.
    if !may_be_mounted(oci, from.as_ref(), &digest)? {
        match oci.consensus.read_barrier().await {
            Ok(()) if may_be_mounted(oci, from.as_ref(), &digest)? => {}
            // Without a quorum the upload says so.
            Ok(()) | Err(ReadError::NoQuorum) => return Ok(None),
            Err(error @ ReadError::Stopped) => return Err(error.into()),
        }
    }
    let answer = oci
        .consensus
        .propose(Uuid::new_v4(), Command::MountBlob { repository: repository.clone(), from, digest })
        .await?;
    match answer.result {
        Ok(_) => Ok(Some(mounted(repository, &digest, answer.revision))),
        Err(Refusal::BlobUnknown | Refusal::RepositoryUnknown | Refusal::HoldersGone) => Ok(None),
        Err(refusal) => Err(refusal.into()),
    }
}

/// Who finds a blob here may count on it: one that no manifest names lives on for another grace time. An entry of the
/// log is spent on that only once half of the time is gone.
async fn touch(oci: &Oci, repository: &RepositoryName, digest: &Digest, link: &LinkRecord) {
    let unused_ms = oci.consensus.now_ms().saturating_sub(link.unused_since_ms);
    if link.uses > 0 || unused_ms < oci.consensus.rules().garbage_grace_ms() / 2 {
        return;
    }
    let command = Command::TouchBlob { repository: repository.clone(), digest: *digest };
    if let Err(error) = oci.consensus.propose(Uuid::new_v4(), command).await {
        // It is there now, which is what was asked; whoever names it too late is told so.
        tracing::debug!(%digest, %error, "a blob could not be touched");
    }
}

fn link(oci: &Oci, repository: &RepositoryName, digest: &Digest) -> Result<Option<LinkRecord>, OciError> {
    Ok(oci.consensus.registry().link(repository, digest)?)
}

fn may_be_mounted(oci: &Oci, from: Option<&RepositoryName>, digest: &Digest) -> Result<bool, OciError> {
    match from {
        Some(from) => Ok(link(oci, from, digest)?.is_some()),
        None => Ok(oci.consensus.registry().blob_exists(digest)?),
    }
}

fn mounted(repository: &RepositoryName, digest: &Digest, revision: u64) -> HttpResponse {
    HttpResponse::Created()
        .insert_header((LOCATION, checked(format_args!("/v2/{repository}/blobs/{digest}"))))
        .insert_header((DOCKER_CONTENT_DIGEST, checked(digest)))
        .insert_header((FLOTILLA_REVISION, decimal(revision)))
        .finish()
}

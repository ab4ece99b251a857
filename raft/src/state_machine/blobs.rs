//! Blobs in repositories: link, mount, unlink.

use flotilla_storage::{Digest, StorageError};
use uuid::Uuid;

use super::{Applied, State, garbage, keys};
use crate::command::{Body, Outcome, Refusal};
use crate::names::RepositoryName;
use crate::records::{BlobRecord, LinkRecord};

/// Makes an uploaded blob part of a repository.
pub(super) fn link(
    state: &mut State<'_>,
    repository: &RepositoryName,
    digest: &Digest,
    size: u64,
    body: &Body,
    request_id: Uuid,
) -> Applied {
    if let Some(refusal) = bytes_missing(state, digest, body)? {
        return Ok(Err(refusal));
    }
    let mut blob = keep_body(state, digest, size, body)?;
    let inline = matches!(body, Body::Inline(_));
    if put_link(state, repository, digest, &blob, Origin { size, inline, request_id })? {
        blob.links += 1;
    }
    garbage::put_blob(state, digest, blob, state.time_ms())?;
    Ok(Ok(Outcome::Done))
}

/// Makes a blob that another repository holds (any, where `from` is `None`) part of this one.
pub(super) fn mount(
    state: &mut State<'_>,
    repository: &RepositoryName,
    from: Option<&RepositoryName>,
    digest: &Digest,
    request_id: Uuid,
) -> Applied {
    let Some(mut blob) = state.get::<BlobRecord>(&keys::blob(digest))?.filter(|blob| blob.links > 0) else {
        return Ok(Err(Refusal::BlobUnknown));
    };
    let inline = match from {
        Some(from) => match state.get::<LinkRecord>(&keys::link(from, digest))? {
            Some(source) => source.inline,
            None => return Ok(Err(Refusal::BlobUnknown)),
        },
        None => blob.body.is_some(),
    };
    let size = blob.size;
    if put_link(state, repository, digest, &blob, Origin { size, inline, request_id })? {
        blob.links += 1;
        state.put(keys::blob(digest), &blob)?;
    }
    Ok(Ok(Outcome::Mounted { size }))
}

/// Removes a blob from a repository. Its bytes stay until they are collected.
pub(super) fn unlink(state: &mut State<'_>, repository: &RepositoryName, digest: &Digest) -> Applied {
    match remove_link(state, repository, digest, state.time_ms())? {
        true => Ok(Ok(Outcome::Done)),
        false => Ok(Err(state.unknown(repository, Refusal::BlobUnknown)?)),
    }
}

/// Removes a link; bytes that nothing holds any more are unused since `since_ms`. False where there is no link.
pub(super) fn remove_link(
    state: &mut State<'_>,
    repository: &RepositoryName,
    digest: &Digest,
    since_ms: u64,
) -> Result<bool, StorageError> {
    let key = keys::link(repository, digest);
    let Some(link) = state.get::<LinkRecord>(&key)? else { return Ok(false) };
    state.delete(key);
    garbage::link_ends(state, repository, digest, &link)?;
    state.count(repository, -1, 0)?;
    if let Some(mut blob) = state.get::<BlobRecord>(&keys::blob(digest))? {
        blob.links = blob.links.saturating_sub(1);
        garbage::put_blob(state, digest, blob, since_ms)?;
    }
    Ok(true)
}

/// Why the bytes cannot be counted on, if they cannot (invariants I3 and I22).
pub(super) fn bytes_missing(state: &State<'_>, digest: &Digest, body: &Body) -> Result<Option<Refusal>, StorageError> {
    if !holders_remain(state, body) {
        return Ok(Some(Refusal::HoldersGone));
    }
    Ok(garbage::promise_expired(state, digest, body)?.then_some(Refusal::PromiseExpired))
}

/// Whether enough of the nodes that promised the bytes are members that stay.
fn holders_remain(state: &State<'_>, body: &Body) -> bool {
    match body {
        Body::Inline(_) => true,
        Body::File { holders, min_copies, .. } => {
            holders.iter().filter(|holder| state.may_hold(**holder)).count() >= *min_copies as usize
        }
    }
}

/// Notes where the digest's bytes are. The caller counts its use and puts the record.
pub(super) fn keep_body(
    state: &mut State<'_>,
    digest: &Digest,
    size: u64,
    body: &Body,
) -> Result<BlobRecord, StorageError> {
    let mut blob = garbage::take_blob(state, digest)?.unwrap_or_default();
    blob.size = size;
    match body {
        Body::File { .. } if !blob.file => {
            blob.file = true;
            state.put(keys::file(digest), &size)?;
        }
        Body::Inline(bytes) if blob.body.is_none() => blob.body = Some(bytes.clone()),
        Body::File { .. } | Body::Inline(_) => {}
    }
    Ok(blob)
}

/// What a new link says of the blob.
struct Origin {
    size: u64,
    inline: bool,
    request_id: Uuid,
}

/// Puts a link; one that is there is touched: its revision stays that at which the blob came. Says whether there was
/// none.
fn put_link(
    state: &mut State<'_>,
    repository: &RepositoryName,
    digest: &Digest,
    blob: &BlobRecord,
    origin: Origin,
) -> Result<bool, StorageError> {
    let key = keys::link(repository, digest);
    // A digest that no repository holds need not be looked for in this one.
    if blob.links > 0 && state.exists(&key)? {
        // What it answers is about a link that is not there.
        let _touched = garbage::touch(state, repository, digest)?;
        return Ok(false);
    }
    let Origin { size, inline, request_id } = origin;
    let uses = garbage::link_begins(state, repository, digest)?;
    let (revision, unused_since_ms) = (state.index(), state.time_ms());
    state.put(key, &LinkRecord { size, inline, revision, request_id, uses, unused_since_ms })?;
    state.count(repository, 1, 0)?;
    Ok(true)
}

//! Blobs in repositories: link, mount, unlink.

use flotilla_storage::{Digest, StorageError};
use uuid::Uuid;

use super::{Applied, State, keys};
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
    if !holders_remain(state, body) {
        return Ok(Err(Refusal::HoldersGone));
    }
    let mut blob = keep_body(state, digest, size, body)?;
    let inline = matches!(body, Body::Inline(_));
    if put_link(state, repository, digest, LinkRecord { size, inline, revision: state.index(), request_id })? {
        blob.links += 1;
    }
    state.put(keys::blob(digest), &blob)?;
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
        None => blob.inline,
    };
    if put_link(state, repository, digest, LinkRecord { size: blob.size, inline, revision: state.index(), request_id })?
    {
        blob.links += 1;
        state.put(keys::blob(digest), &blob)?;
    }
    Ok(Ok(Outcome::Mounted { size: blob.size }))
}

/// Removes a blob from a repository. Its bytes stay until they are collected.
pub(super) fn unlink(state: &mut State<'_>, repository: &RepositoryName, digest: &Digest) -> Applied {
    let key = keys::link(repository, digest);
    if !state.exists(&key)? {
        return Ok(Err(state.unknown(repository, Refusal::BlobUnknown)?));
    }
    state.delete(key);
    state.count(repository, -1, 0)?;
    if let Some(mut blob) = state.get::<BlobRecord>(&keys::blob(digest))? {
        blob.links = blob.links.saturating_sub(1);
        state.put(keys::blob(digest), &blob)?;
    }
    Ok(Ok(Outcome::Done))
}

/// Whether enough of the nodes that promised the bytes are members (invariant I3).
pub(super) fn holders_remain(state: &State<'_>, body: &Body) -> bool {
    match body {
        Body::Inline(_) => true,
        Body::File { holders, min_copies } => {
            holders.iter().filter(|holder| state.is_member(**holder)).count() >= *min_copies as usize
        }
    }
}

/// Stores an inline body, and notes where the digest's bytes are. The caller counts its use and puts the record.
pub(super) fn keep_body(
    state: &mut State<'_>,
    digest: &Digest,
    size: u64,
    body: &Body,
) -> Result<BlobRecord, StorageError> {
    let mut blob: BlobRecord = state.get(&keys::blob(digest))?.unwrap_or_default();
    blob.size = size;
    match body {
        Body::File { .. } => blob.file = true,
        Body::Inline(bytes) if !blob.inline => {
            blob.inline = true;
            // An empty body has one empty part: a body without parts is one that is not there.
            let parts = if bytes.is_empty() { vec![&bytes[..]] } else { bytes.chunks(keys::BODY_PART).collect() };
            for (number, part) in (0u16..).zip(parts) {
                state.put_raw(keys::body_part(digest, number), part.to_vec());
            }
        }
        Body::Inline(_) => {}
    }
    Ok(blob)
}

/// Puts a link, unless there is one: its revision is that at which the blob came. Says whether there was none.
fn put_link(
    state: &mut State<'_>,
    repository: &RepositoryName,
    digest: &Digest,
    record: LinkRecord,
) -> Result<bool, StorageError> {
    let key = keys::link(repository, digest);
    if state.exists(&key)? {
        return Ok(false);
    }
    state.put(key, &record)?;
    state.count(repository, 1, 0)?;
    Ok(true)
}

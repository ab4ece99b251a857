//! Tags: put, delete.

use flotilla_storage::{Digest, StorageError};

use super::{Applied, State, keys};
use crate::command::{Outcome, Refusal};
use crate::names::{RepositoryName, Tag};
use crate::registry::TagRecord;

/// Points a tag at a manifest that the repository holds; the caller has made sure of that. Pointing it where it
/// points already is no change, so its revision stays.
pub(super) fn put(
    state: &mut State<'_>,
    repository: &RepositoryName,
    tag: &Tag,
    digest: &Digest,
    actor: &str,
) -> Result<(), StorageError> {
    let key = keys::tag(repository, tag);
    let former: Option<TagRecord> = state.get(&key)?;
    if former.is_some_and(|former| former.digest == *digest) {
        return Ok(());
    }
    let record =
        TagRecord { digest: *digest, revision: state.index(), time_ms: state.time_ms(), actor: actor.to_owned() };
    state.put(key, &record)
}

/// Removes a tag; its manifest stays.
pub(super) fn delete(state: &mut State<'_>, repository: &RepositoryName, tag: &Tag) -> Applied {
    let key = keys::tag(repository, tag);
    if !state.exists(&key)? {
        return Ok(Err(state.unknown(repository, Refusal::TagUnknown)?));
    }
    state.delete(key);
    Ok(Ok(Outcome::Done))
}

//! Tags: put, delete, several at once.

use flotilla_storage::{Digest, StorageError};

use super::{Applied, State, history, keys};
use crate::command::{Condition, Outcome, Refusal, TagChange};
use crate::names::{RepositoryName, Tag};
use crate::records::{ManifestRecord, TagRecord};

/// Why a tag may not come to point at `digest` (or be removed, where that is `None`), if it may not.
pub(super) fn check(
    state: &State<'_>,
    repository: &RepositoryName,
    tag: &Tag,
    digest: Option<&Digest>,
    condition: Option<Condition>,
) -> Result<Option<Refusal>, StorageError> {
    let rule = state.rules().immutable(repository, tag);
    if condition.is_none() && rule.is_none() {
        return Ok(None);
    }
    let current = state.get::<TagRecord>(&keys::tag(repository, tag))?.map(|record| record.digest);
    let holds = condition.is_none_or(|condition| match condition {
        Condition::Absent => current.is_none(),
        Condition::Present => current.is_some(),
        Condition::At(digest) => current == Some(digest),
    });
    if !holds {
        return Ok(Some(Refusal::ConditionFailed { repository: repository.clone(), tag: tag.clone(), current }));
    }
    let moves = current.is_some() && current.as_ref() != digest;
    let immutable =
        |rule: &str| Refusal::TagImmutable { repository: repository.clone(), tag: tag.clone(), rule: rule.to_owned() };
    Ok(rule.filter(|_| moves).map(immutable))
}

/// Points a tag at a manifest that the repository holds; the caller has made sure of that. Pointing it where it
/// points already is no change, so its revision stays.
pub(super) fn put(
    state: &mut State<'_>,
    repository: &RepositoryName,
    tag: &Tag,
    digest: &Digest,
) -> Result<(), StorageError> {
    let key = keys::tag(repository, tag);
    let former = state.get::<TagRecord>(&key)?.map(|former| former.digest);
    if former == Some(*digest) {
        return Ok(());
    }
    let manifest_key = keys::manifest(repository, digest);
    if let Some(mut manifest) = state.get::<ManifestRecord>(&manifest_key)?.filter(|manifest| !manifest.tagged) {
        manifest.tagged = true;
        state.put(manifest_key, &manifest)?;
    }
    let record = TagRecord {
        digest: *digest,
        revision: state.index(),
        time_ms: state.time_ms(),
        actor: state.actor().to_owned(),
    };
    state.put(key, &record)?;
    if let Some(former) = &former {
        untagged(state, repository, former)?;
    }
    history::tag_changed(state, repository, tag, Some(*digest), former)
}

/// A tag points at this manifest no more. Where nothing asks how long ago that was, it costs nothing.
fn untagged(state: &mut State<'_>, repository: &RepositoryName, digest: &Digest) -> Result<(), StorageError> {
    let now = state.time_ms();
    if state.rules().untagged_due_ms(repository, now).is_none() {
        return Ok(());
    }
    let key = keys::manifest(repository, digest);
    let Some(manifest) = state.get::<ManifestRecord>(&key)? else { return Ok(()) };
    state.put(key, &ManifestRecord { untagged_since_ms: now, ..manifest })
}

/// Removes a tag; its manifest stays.
pub(super) fn delete(
    state: &mut State<'_>,
    repository: &RepositoryName,
    tag: &Tag,
    condition: Option<Condition>,
) -> Applied {
    let Some(former) = state.get::<TagRecord>(&keys::tag(repository, tag))? else {
        return Ok(Err(match condition {
            Some(_) => Refusal::ConditionFailed { repository: repository.clone(), tag: tag.clone(), current: None },
            None => state.unknown(repository, Refusal::TagUnknown)?,
        }));
    };
    if let Some(refusal) = check(state, repository, tag, None, condition)? {
        return Ok(Err(refusal));
    }
    remove(state, repository, tag, former.digest)?;
    Ok(Ok(Outcome::Done))
}

/// Removes a tag that points at `digest`.
pub(super) fn remove(
    state: &mut State<'_>,
    repository: &RepositoryName,
    tag: &Tag,
    digest: Digest,
) -> Result<(), StorageError> {
    state.delete(keys::tag(repository, tag));
    untagged(state, repository, &digest)?;
    history::tag_changed(state, repository, tag, None, Some(digest))
}

/// Makes all of the changes, or none of them if one is refused.
pub(super) fn change_all(state: &mut State<'_>, changes: &[TagChange]) -> Applied {
    for (number, change) in (0..).zip(changes) {
        if let Some(refusal) = refusal_of(state, change)? {
            return Ok(Err(Refusal::InChange { number, refusal: Box::new(refusal) }));
        }
    }
    for TagChange { repository, tag, digest, .. } in changes {
        match digest {
            Some(digest) => put(state, repository, tag, digest)?,
            None => {
                if let Some(former) = state.get::<TagRecord>(&keys::tag(repository, tag))? {
                    remove(state, repository, tag, former.digest)?;
                }
            }
        }
    }
    Ok(Ok(Outcome::Done))
}

fn refusal_of(state: &State<'_>, change: &TagChange) -> Result<Option<Refusal>, StorageError> {
    let TagChange { repository, tag, digest, condition } = change;
    if let Some(refusal) = check(state, repository, tag, digest.as_ref(), *condition)? {
        return Ok(Some(refusal));
    }
    Ok(match digest {
        Some(digest) if !state.exists(&keys::manifest(repository, digest))? => {
            Some(state.unknown(repository, Refusal::ManifestUnknown)?)
        }
        None if !state.exists(&keys::tag(repository, tag))? => Some(state.unknown(repository, Refusal::TagUnknown)?),
        _ => None,
    })
}

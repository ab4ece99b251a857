//! Manifests in repositories: put with tags, delete with tags.

use std::collections::BTreeSet;

use flotilla_storage::{Digest, StorageError};

use super::blobs::{bytes_missing, keep_body};
use super::{Applied, State, garbage, history, keys, tags};
use crate::command::{Body, Collected, ManifestPut, Outcome, Refusal};
use crate::names::{RepositoryName, Tag};
use crate::records::{BlobRecord, Changed, ManifestRecord, Referrer, TagRecord};
use crate::settings::MissingContent;
use crate::wire::{self, Kind};

/// Stores a manifest whose content the repository holds, and points the tags at it (invariant I3).
pub(super) fn put(state: &mut State<'_>, put: &ManifestPut) -> Applied {
    for tag in &put.tags {
        if let Some(refusal) = tags::check(state, &put.repository, tag, Some(&put.digest), put.condition)? {
            return Ok(Err(refusal));
        }
    }
    let missing = missing_content(state, put)?;
    if !missing.is_empty() {
        return Ok(Err(Refusal::ContentMissing(missing)));
    }
    if let Some(refusal) = bytes_missing(state, &put.digest, &put.body)? {
        return Ok(Err(refusal));
    }
    let key = keys::manifest(&put.repository, &put.digest);
    let present = present(state, &key, &put.digest)?;
    // What a digest names never changes, not even its media type: a look-up by digest trusts what it finds, and what the
    // document names was read by that type.
    if let Some(present) = present.as_ref().filter(|present| present.media_type != put.media_type) {
        return Ok(Err(Refusal::MediaTypeDiffers { media_type: present.media_type.clone() }));
    }
    let is_new = present.is_none();
    let mut blob = keep_body(state, &put.digest, put.size, &put.body)?;
    if is_new {
        blob.manifests += 1;
    }
    garbage::put_blob(state, &put.digest, blob, state.time_ms())?;
    if is_new {
        let mut record = record(put, state);
        state.count(&put.repository, 0, 1)?;
        garbage::begin_uses(state, &put.repository, &record)?;
        count_children(state, &put.repository, &record, 1)?;
        // Only now, so that what both name is used all the time.
        if garbage::drop_former(state, &put.repository, &put.digest)?.is_some() {
            // A tag pointed at it, which history may still be asked for.
            record.tagged = true;
        }
        state.put(key, &record)?;
        if let Some(subject) = &put.subject {
            state.put(keys::referrer(&put.repository, subject, &put.digest), &referrer(put))?;
        }
        history::manifest_changed(state, Changed::ManifestPut, &put.repository, &put.digest)?;
    }
    for tag in &put.tags {
        tags::put(state, &put.repository, tag, &put.digest)?;
    }
    Ok(Ok(Outcome::Done))
}

/// The manifest as the repository has it. One that is no manifest of any repository need not be looked for in this one.
fn present(state: &State<'_>, key: &[u8], digest: &Digest) -> Result<Option<ManifestRecord>, StorageError> {
    let blob: Option<BlobRecord> = state.get(&keys::blob(digest))?;
    if blob.is_some_and(|blob| blob.manifests > 0) { state.get(key) } else { Ok(None) }
}

/// Removes a manifest and every tag that points at it. Its bytes stay until they are collected.
pub(super) fn delete(state: &mut State<'_>, repository: &RepositoryName, digest: &Digest) -> Applied {
    let Some(record) = state.get::<ManifestRecord>(&keys::manifest(repository, digest))? else {
        return Ok(Err(state.unknown(repository, Refusal::ManifestUnknown)?));
    };
    let tagged = tags_of(state, repository, digest)?;
    for tag in &tagged {
        if let Some(refusal) = tags::check(state, repository, tag, None, None)? {
            return Ok(Err(refusal));
        }
    }
    for tag in &tagged {
        tags::remove(state, repository, tag, *digest)?;
    }
    remove(state, repository, digest, record)?;
    Ok(Ok(Outcome::Done))
}

/// Removes a manifest that no tag points at.
fn remove(
    state: &mut State<'_>,
    repository: &RepositoryName,
    digest: &Digest,
    record: ManifestRecord,
) -> Result<(), StorageError> {
    if let Some(subject) = &record.subject {
        state.delete_long(keys::referrer(repository, subject, digest))?;
    }
    count_children(state, repository, &record, -1)?;
    state.delete_long(keys::manifest(repository, digest))?;
    history::forget_pairs(state, repository, digest)?;
    history::manifest_changed(state, Changed::ManifestDelete, repository, digest)?;
    state.count(repository, 0, -1)?;
    garbage::manifest_ends(state, repository, digest, record)
}

/// Removes those that have had no tag for long enough. A child lives as long as its index, a referrer as long as its
/// subject.
pub(super) fn collect_untagged(state: &mut State<'_>, repository: &RepositoryName, digests: &[Digest]) -> Applied {
    let mut tagged = BTreeSet::new();
    for (_, value) in state.scan(&keys::tags(repository))? {
        tagged.insert(wire::decode::<TagRecord>(Kind::Row, &value)?.digest);
    }
    let mut collected = Collected::default();
    for digest in digests.iter().filter(|digest| !tagged.contains(digest)) {
        let Some(record) = state.get::<ManifestRecord>(&keys::manifest(repository, digest))? else { continue };
        let due_ms = state.rules().untagged_due_ms(repository, record.untagged_since_ms);
        let has_subject = match &record.subject {
            Some(subject) => state.exists(&keys::manifest(repository, subject))?,
            None => false,
        };
        let is_child = state.exists(&keys::child(repository, digest))?;
        if due_ms.is_some_and(|due_ms| due_ms <= state.time_ms()) && !has_subject && !is_child {
            remove(state, repository, digest, record)?;
            collected.untagged += 1;
        }
    }
    Ok(Ok(Outcome::Collected(collected)))
}

fn count_children(
    state: &mut State<'_>,
    repository: &RepositoryName,
    index: &ManifestRecord,
    change: i64,
) -> Result<(), StorageError> {
    let children: BTreeSet<_> = index.manifests.iter().chain(&index.either).collect();
    for digest in children {
        let key = keys::child(repository, digest);
        let count: u64 = state.get(&key)?.unwrap_or(0);
        match count.saturating_add_signed(change) {
            0 => state.delete(key),
            count => state.put(key, &count)?,
        }
    }
    Ok(())
}

fn tags_of(state: &State<'_>, repository: &RepositoryName, digest: &Digest) -> Result<Vec<Tag>, StorageError> {
    let prefix = keys::tags(repository);
    let mut tags = Vec::new();
    for (key, value) in state.scan(&prefix)? {
        if wire::decode::<TagRecord>(Kind::Row, &value)?.digest == *digest {
            tags.push(keys::text_after(&key, prefix.len())?);
        }
    }
    Ok(tags)
}

fn missing_content(state: &State<'_>, put: &ManifestPut) -> Result<Vec<Digest>, StorageError> {
    let blob = |digest: &Digest| state.exists(&keys::link(&put.repository, digest));
    let manifest = |digest: &Digest| state.exists(&keys::manifest(&put.repository, digest));
    let mut missing = BTreeSet::new();
    let allowed = state.rules().missing_content(&put.repository);
    if allowed == MissingContent::All {
        return Ok(Vec::new());
    }
    for digest in &put.blobs {
        if !blob(digest)? {
            missing.insert(*digest);
        }
    }
    if allowed == MissingContent::Children {
        return Ok(missing.into_iter().collect());
    }
    for digest in &put.manifests {
        if !manifest(digest)? {
            missing.insert(*digest);
        }
    }
    for digest in &put.either {
        if !blob(digest)? && !manifest(digest)? {
            missing.insert(*digest);
        }
    }
    Ok(missing.into_iter().collect())
}

fn referrer(put: &ManifestPut) -> Referrer {
    Referrer {
        media_type: put.media_type.clone(),
        size: put.size,
        artifact_type: put.artifact_type.clone(),
        annotations: put.annotations.clone(),
    }
}

fn record(put: &ManifestPut, state: &State<'_>) -> ManifestRecord {
    ManifestRecord {
        media_type: put.media_type.clone(),
        size: put.size,
        inline: matches!(put.body, Body::Inline(_)),
        revision: state.index(),
        blobs: put.blobs.clone(),
        manifests: put.manifests.clone(),
        either: put.either.clone(),
        subject: put.subject,
        artifact_type: put.artifact_type.clone(),
        tagged: !put.tags.is_empty(),
        untagged_since_ms: state.time_ms(),
        time_ms: state.time_ms(),
        mentions: put.mentions.clone(),
    }
}

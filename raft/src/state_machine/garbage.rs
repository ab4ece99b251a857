//! What nothing uses: counted as names come and go, queued by the time since which it is unused, and removed by an
//! entry of the log alone (invariants I21 to I23; DESIGN.md, §2).
//!
//! The queue holds exactly what is unused, so that a collection costs what it removes, whatever the store holds.

use flotilla_storage::{Digest, StorageError};

use super::{Applied, State, blobs, history, keys};
use crate::command::{Body, Collected, Outcome, Refusal};
use crate::names::RepositoryName;
use crate::records::{BlobRecord, Candidate, FormerManifest, LinkRecord, ManifestRecord};

/// Collected digests that one step forgets.
const FORGET_MAX: usize = 512;

/// A manifest of the repository names these digests from now on.
pub(super) fn begin_uses(
    state: &mut State<'_>,
    repository: &RepositoryName,
    manifest: &ManifestRecord,
) -> Result<(), StorageError> {
    for digest in manifest.named() {
        let key = keys::link(repository, &digest);
        match state.get::<LinkRecord>(&key)? {
            Some(mut link) => {
                if link.uses == 0 {
                    let queued = Candidate::Link(repository.clone(), digest);
                    state.delete(keys::candidate(link.unused_since_ms, &queued));
                }
                link.uses += 1;
                state.put(key, &link)?;
            }
            None => {
                let uses = uses(state, repository, &digest)?;
                put_uses(state, repository, &digest, uses, uses + 1)?;
            }
        }
    }
    Ok(())
}

/// A manifest of the repository names these digests no more.
fn end_uses(state: &mut State<'_>, repository: &RepositoryName, manifest: &ManifestRecord) -> Result<(), StorageError> {
    for digest in manifest.named() {
        let key = keys::link(repository, &digest);
        match state.get::<LinkRecord>(&key)? {
            Some(mut link) => {
                link.uses = link.uses.saturating_sub(1);
                if link.uses == 0 {
                    link.unused_since_ms = state.time_ms();
                    queue(state, link.unused_since_ms, &Candidate::Link(repository.clone(), digest));
                }
                state.put(key, &link)?;
            }
            None => {
                let uses = uses(state, repository, &digest)?;
                put_uses(state, repository, &digest, uses, uses.saturating_sub(1))?;
            }
        }
    }
    Ok(())
}

/// A repository gets a link to a digest that its manifests may name already; says how many do.
pub(super) fn link_begins(
    state: &mut State<'_>,
    repository: &RepositoryName,
    digest: &Digest,
) -> Result<u64, StorageError> {
    let uses = uses(state, repository, digest)?;
    match uses {
        0 => queue(state, state.time_ms(), &Candidate::Link(repository.clone(), *digest)),
        _ => put_uses(state, repository, digest, uses, 0)?,
    }
    Ok(uses)
}

/// How many manifests of a repository name a digest that it does not link.
fn uses(state: &State<'_>, repository: &RepositoryName, digest: &Digest) -> Result<u64, StorageError> {
    // Mostly there is none at all, which is known without a look-up.
    match state.get::<u64>(&keys::use_count())?.unwrap_or(0) {
        0 => Ok(0),
        _ => Ok(state.get(&keys::uses(repository, digest))?.unwrap_or(0)),
    }
}

fn put_uses(
    state: &mut State<'_>,
    repository: &RepositoryName,
    digest: &Digest,
    before: u64,
    uses: u64,
) -> Result<(), StorageError> {
    let key = keys::uses(repository, digest);
    if (before == 0) != (uses == 0) {
        let count: u64 = state.get(&keys::use_count())?.unwrap_or(0);
        let count = if uses == 0 { count.saturating_sub(1) } else { count + 1 };
        state.put(keys::use_count(), &count)?;
    }
    match uses {
        0 => state.delete(key),
        _ => state.put(key, &uses)?,
    }
    Ok(())
}

/// A repository's link to a digest goes, whether manifests name it or not.
pub(super) fn link_ends(
    state: &mut State<'_>,
    repository: &RepositoryName,
    digest: &Digest,
    link: &LinkRecord,
) -> Result<(), StorageError> {
    match link.uses {
        0 => state.delete(keys::candidate(link.unused_since_ms, &Candidate::Link(repository.clone(), *digest))),
        uses => put_uses(state, repository, digest, 0, uses)?,
    }
    Ok(())
}

/// The time after which an unused blob is garbage begins anew.
pub(super) fn touch(state: &mut State<'_>, repository: &RepositoryName, digest: &Digest) -> Applied {
    let key = keys::link(repository, digest);
    let Some(mut link) = state.get::<LinkRecord>(&key)? else {
        return Ok(Err(state.unknown(repository, Refusal::BlobUnknown)?));
    };
    let now = state.time_ms();
    if link.uses == 0 && link.unused_since_ms != now {
        let queued = Candidate::Link(repository.clone(), *digest);
        state.delete(keys::candidate(link.unused_since_ms, &queued));
        queue(state, now, &queued);
        link.unused_since_ms = now;
        state.put(key, &link)?;
    }
    Ok(Ok(Outcome::Done))
}

/// Stores what is known of a digest after its counts changed. Unused, it waits in the queue since `since_ms`.
pub(super) fn put_blob(
    state: &mut State<'_>,
    digest: &Digest,
    mut blob: BlobRecord,
    since_ms: u64,
) -> Result<(), StorageError> {
    if blob.is_unused() {
        blob.unused_since_ms = since_ms;
        queue(state, since_ms, &Candidate::Bytes(*digest));
    }
    state.put(keys::blob(digest), &blob)
}

/// What is known of a digest that is about to be held by a repository; `None` where none holds it yet.
pub(super) fn take_blob(state: &mut State<'_>, digest: &Digest) -> Result<Option<BlobRecord>, StorageError> {
    let Some(blob) = state.get::<BlobRecord>(&keys::blob(digest))? else { return Ok(None) };
    if blob.is_unused() {
        state.delete(keys::candidate(blob.unused_since_ms, &Candidate::Bytes(*digest)));
    }
    Ok(Some(blob))
}

/// A manifest was deleted. What history may still be asked for stays until that is forgotten.
pub(super) fn manifest_ends(
    state: &mut State<'_>,
    repository: &RepositoryName,
    digest: &Digest,
    record: ManifestRecord,
) -> Result<(), StorageError> {
    if !record.tagged {
        return release(state, repository, digest, &record);
    }
    let deleted_ms = state.time_ms();
    queue(state, deleted_ms, &Candidate::Former(repository.clone(), *digest));
    let former = FormerManifest { record, deleted_ms, deleted_at: state.index() };
    state.put(keys::former(repository, digest), &former)
}

/// Drops a deleted manifest that history held: it is back, or history is forgotten. Says when it was deleted.
pub(super) fn drop_former(
    state: &mut State<'_>,
    repository: &RepositoryName,
    digest: &Digest,
) -> Result<Option<u64>, StorageError> {
    let key = keys::former(repository, digest);
    let Some(former) = state.get::<FormerManifest>(&key)? else { return Ok(None) };
    state.delete(keys::candidate(former.deleted_ms, &Candidate::Former(repository.clone(), *digest)));
    state.delete_long(key)?;
    release(state, repository, digest, &former.record)?;
    Ok(Some(former.deleted_at))
}

/// Nothing needs a manifest of the repository any more.
fn release(
    state: &mut State<'_>,
    repository: &RepositoryName,
    digest: &Digest,
    record: &ManifestRecord,
) -> Result<(), StorageError> {
    end_uses(state, repository, record)?;
    if let Some(mut blob) = state.get::<BlobRecord>(&keys::blob(digest))? {
        blob.manifests = blob.manifests.saturating_sub(1);
        put_blob(state, digest, blob, state.time_ms())?;
    }
    Ok(())
}

/// Removes what is due, and the files that state does not name.
pub(super) fn collect(state: &mut State<'_>, orphans: &[Digest], limit: u32) -> Applied {
    let mut collected = Collected::default();
    let mut left = limit as usize;
    for (queue, age_ms) in keys::Queue::aged(state.rules()) {
        let due = due(state, queue, age_ms, left)?;
        left -= due.len();
        collected.more |= left == 0 && limit > 0;
        for (since_ms, candidate) in due {
            match candidate {
                Candidate::Former(repository, digest) => {
                    if let Some(deleted_at) = drop_former(state, &repository, &digest)? {
                        history::raise_floor(state, deleted_at)?;
                        collected.manifests += 1;
                    }
                }
                Candidate::Existence(ref repository, revision) => {
                    history::forget_existence(state, repository, revision)?;
                    state.delete(keys::candidate(since_ms, &candidate));
                }
                Candidate::Link(repository, digest) => {
                    blobs::remove_link(state, &repository, &digest, since_ms)?;
                    collected.links += 1;
                }
                Candidate::Bytes(digest) => {
                    state.delete(keys::candidate(since_ms, &Candidate::Bytes(digest)));
                    collect_bytes(state, &digest, &mut collected)?;
                }
            }
        }
    }
    for digest in orphans {
        if !state.exists(&keys::file(digest))? {
            collect_file(state, digest)?;
            collected.orphans += 1;
        }
    }
    Ok(Ok(Outcome::Collected(collected)))
}

fn due(
    state: &State<'_>,
    queue: keys::Queue,
    age_ms: u64,
    limit: usize,
) -> Result<Vec<(u64, Candidate)>, StorageError> {
    let Some(until) = state.time_ms().checked_sub(age_ms) else { return Ok(Vec::new()) };
    let rows = state.scan_some(&keys::garbage(queue), None, limit)?;
    let parsed: Result<Vec<_>, _> = rows.iter().map(|(key, _)| keys::parse_candidate(key)).collect();
    Ok(parsed?.into_iter().take_while(|(since_ms, _)| *since_ms <= until).collect())
}

fn collect_bytes(state: &mut State<'_>, digest: &Digest, collected: &mut Collected) -> Result<(), StorageError> {
    let key = keys::blob(digest);
    let Some(blob) = state.get::<BlobRecord>(&key)? else { return Ok(()) };
    if blob.file {
        state.delete(keys::file(digest));
        collect_file(state, digest)?;
    }
    state.delete_long(key)?;
    collected.blobs += 1;
    collected.bytes += blob.size;
    Ok(())
}

/// Remembers that promises of this digest made before now are void, and tells the node to remove its file.
fn collect_file(state: &mut State<'_>, digest: &Digest) -> Result<(), StorageError> {
    let key = keys::collected(digest);
    if let Some(before) = state.get::<u64>(&key)? {
        state.delete(keys::collected_at(before, digest));
    }
    state.put(key, &state.index())?;
    state.put_raw(keys::collected_at(state.index(), digest), Vec::new());
    state.file_collected(*digest);
    Ok(())
}

/// Whether the holders' promise of these bytes is void (invariant I22): they were collected after it, or it is from
/// before the time that collected digests are remembered for.
pub(super) fn promise_expired(state: &State<'_>, digest: &Digest, body: &Body) -> Result<bool, StorageError> {
    let Body::File { promised, .. } = body else { return Ok(false) };
    if *promised < state.requests().floor() {
        return Ok(true);
    }
    Ok(state.get::<u64>(&keys::collected(digest))?.is_some_and(|collected| *promised < collected))
}

/// Forgets digests that were collected below the floor of requests: promises from there are void anyway.
pub(super) fn forget_collected(state: &mut State<'_>, floor: u64) -> Result<(), StorageError> {
    let mut last = None;
    for _ in 0..FORGET_MAX {
        let Some((key, _)) = state.first_after(&keys::collections(), last.as_deref())? else { break };
        let (index, digest) = keys::parse_collected_at(&key)?;
        if index >= floor {
            break;
        }
        state.delete(keys::collected(&digest));
        state.delete(key.clone());
        last = Some(key);
    }
    Ok(())
}

fn queue(state: &mut State<'_>, since_ms: u64, candidate: &Candidate) {
    state.put_raw(keys::candidate(since_ms, candidate), Vec::new());
}

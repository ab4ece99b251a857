//! What happened to names: changes in their order, versions of each tag, and how both are forgotten.

use flotilla_storage::{Digest, StorageError};

use super::journal::{CHANGES, envelopes};
use super::{State, keys};
use crate::names::{RepositoryName, Tag};
use crate::records::{Candidate, Change, Changed, Place, TagVersion};
use crate::wire::{self, Kind};

/// Forgetting goes in steps of this many entries, so that most entries pay nothing for it.
const STEP: u64 = 64;

/// The most rows of changes that one step forgets: more than usually come in one. What large transactions leave, later
/// steps forget.
const FORGET_MAX: usize = 32;

/// Notes that a tag points elsewhere now, or nowhere.
pub(super) fn tag_changed(
    state: &mut State<'_>,
    repository: &RepositoryName,
    tag: &Tag,
    digest: Option<Digest>,
    previous: Option<Digest>,
) -> Result<(), StorageError> {
    let version = TagVersion { digest, time_ms: state.time_ms(), actor: state.actor().to_owned() };
    state.put(keys::version(repository, tag, state.index()), &version)?;
    let what = if digest.is_some() { Changed::TagPut } else { Changed::TagDelete };
    record(state, what, repository, Some(tag), digest, previous)
}

/// That a tag pointed at a manifest is known as long as the manifest is there, also when no version says so any more.
fn keep_pair(
    state: &mut State<'_>,
    repository: &RepositoryName,
    digest: &Digest,
    tag: &Tag,
) -> Result<(), StorageError> {
    if state.exists(&keys::manifest(repository, digest))? {
        state.put_raw(keys::pair(repository, digest, tag), Vec::new());
    }
    Ok(())
}

/// Forgets which tags pointed at a manifest that is no more.
pub(super) fn forget_pairs(
    state: &mut State<'_>,
    repository: &RepositoryName,
    digest: &Digest,
) -> Result<(), StorageError> {
    for (key, _) in state.scan(&keys::pairs(repository, digest))? {
        state.delete(key);
    }
    Ok(())
}

/// Notes that a manifest came into a repository, or went.
pub(super) fn manifest_changed(
    state: &mut State<'_>,
    what: Changed,
    repository: &RepositoryName,
    digest: &Digest,
) -> Result<(), StorageError> {
    record(state, what, repository, None, Some(*digest), None)
}

/// Notes that a repository came to hold something, or to hold nothing. How it was before the latter is forgotten
/// after its time, by a collection.
pub(super) fn repository_changed(
    state: &mut State<'_>,
    repository: &RepositoryName,
    is_there: bool,
) -> Result<(), StorageError> {
    state.put(keys::existence(repository, state.index()), &is_there)?;
    if !is_there {
        let candidate = Candidate::Existence(repository.clone(), state.index());
        state.put_raw(keys::candidate(state.time_ms(), &candidate), Vec::new());
    }
    Ok(())
}

/// Forgets that a repository was there until a revision.
pub(super) fn forget_existence(
    state: &mut State<'_>,
    repository: &RepositoryName,
    revision: u64,
) -> Result<(), StorageError> {
    let gone = keys::existence(repository, revision);
    let prefix = &gone[..gone.len() - size_of::<u64>()];
    // Each end of a repository is forgotten by itself, so before it there is one beginning.
    for (began, _) in state.scan_some(prefix, Some(&gone), 1)? {
        state.delete(began);
    }
    state.delete(gone);
    raise_floor(state, revision)
}

/// Something of an older revision than this is forgotten.
pub(super) fn raise_floor(state: &mut State<'_>, revision: u64) -> Result<(), StorageError> {
    let floor: u64 = state.get(&keys::history_floor())?.unwrap_or(0);
    if revision > floor { state.put(keys::history_floor(), &revision) } else { Ok(()) }
}

fn record(
    state: &mut State<'_>,
    what: Changed,
    repository: &RepositoryName,
    tag: Option<&Tag>,
    digest: Option<Digest>,
    previous: Option<Digest>,
) -> Result<(), StorageError> {
    let change = Change {
        what,
        repository: repository.clone(),
        tag: tag.cloned(),
        digest,
        previous,
        actor: state.actor().to_owned(),
        time_ms: state.time_ms(),
    };
    let place = Place { revision: state.index(), number: state.next_change() };
    CHANGES.append(state, &wire::encode(Kind::Row, &(place, change))?)
}

/// Forgets changes that are older than the settings say, and the versions of tags that they ended.
pub(super) fn forget(state: &mut State<'_>) -> Result<(), StorageError> {
    if !state.index().is_multiple_of(STEP) {
        return Ok(());
    }
    let Some(limit) = state.time_ms().checked_sub(state.rules().history_ms()) else { return Ok(()) };
    let (mut floor, mut last) = (None, None);
    for _ in 0..FORGET_MAX {
        let Some((key, row)) = state.first_after(&CHANGES.rows(), last.as_deref())? else { break };
        let changes: Result<Vec<(Place, Change)>, _> =
            envelopes(&row).map(|envelope| wire::decode(Kind::Row, envelope?)).collect();
        let changes = changes?;
        if changes.last().is_some_and(|(_, newest)| newest.time_ms >= limit) {
            break;
        }
        for (Place { revision, .. }, change) in changes {
            if let Some(tag) = &change.tag {
                forget_versions_before(state, &change, tag, revision)?;
            }
            floor = Some(revision);
        }
        state.delete(key.clone());
        last = Some(key);
    }
    match floor {
        Some(floor) => raise_floor(state, floor),
        None => Ok(()),
    }
}

/// The version that this change began stays as long as the tag is there: it is what a read in the past finds.
fn forget_versions_before(
    state: &mut State<'_>,
    change: &Change,
    tag: &Tag,
    revision: u64,
) -> Result<(), StorageError> {
    let began = keys::version(&change.repository, tag, revision);
    // Each change ends one version, so there is at most one that is older.
    for (older, row) in state.scan_some(&keys::history(&change.repository, tag), Some(&began), 1)? {
        let version: TagVersion = wire::decode(Kind::Row, &row)?;
        if let Some(digest) = version.digest {
            keep_pair(state, &change.repository, &digest, tag)?;
        }
        state.delete(older);
    }
    if change.what == Changed::TagDelete {
        state.delete(began);
    }
    Ok(())
}

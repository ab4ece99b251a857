//! What was: former versions of tags and policies, deleted manifests, and the feed of changes.

use flotilla_storage::{Digest, StorageError};

use super::{Registry, WALK_PAGE};
use crate::names::{PolicyName, RepositoryName, Tag};
use crate::records::{Change, FormerManifest, Place, PolicyVersion, TagVersion};
use crate::state_machine::journal::{CHANGES, envelopes};
use crate::state_machine::keys;
use crate::state_store::AppliedRow;
use crate::wire::{self, Kind};

/// Rows of changes that are read at a time; each holds up to some twenty.
const CHANGE_ROWS: usize = 16;

/// Pages of a tag's versions that one question may walk: more than any tag has.
const VERSION_PAGES_MAX: usize = 100;

impl Registry {
    /// A manifest that was deleted, while the history of a tag still names it.
    ///
    /// # Errors
    /// Damaged data.
    pub fn former_manifest(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
    ) -> Result<Option<FormerManifest>, StorageError> {
        self.row(&keys::former(repository, digest))
    }

    /// What a tag was at a revision: since which revision, and what. `None` where there was no such tag.
    ///
    /// The caller makes sure that the revision is applied here and not below [`Registry::history_floor`].
    ///
    /// # Errors
    /// Damaged data.
    pub fn tag_at(
        &self,
        repository: &RepositoryName,
        tag: &Tag,
        revision: u64,
    ) -> Result<Option<(u64, TagVersion)>, StorageError> {
        let versions = self.tag_history(repository, tag, revision.checked_add(1), 1)?;
        Ok(versions.into_iter().next().filter(|(_, version)| version.digest.is_some()))
    }

    /// Up to `limit` versions of a tag with the revisions at which they began, the newest first, those that began
    /// before revision `before`.
    ///
    /// # Errors
    /// Damaged data.
    pub fn tag_history(
        &self,
        repository: &RepositoryName,
        tag: &Tag,
        before: Option<u64>,
        limit: usize,
    ) -> Result<Vec<(u64, TagVersion)>, StorageError> {
        let prefix = keys::history(repository, tag);
        let after = before.map(|before| keys::version(repository, tag, before));
        let rows = self.store.scan(&prefix, after.as_deref(), limit)?;
        let version =
            |(key, value): (Vec<u8>, Vec<u8>)| Ok((keys::revision_of_version(&key)?, wire::decode(Kind::Row, &value)?));
        rows.into_iter().map(version).collect()
    }

    /// Up to `limit` tags that were there at a revision, in byte order, those after `after`; see [`Registry::tag_at`].
    ///
    /// # Errors
    /// Damaged data.
    pub fn tags_at(
        &self,
        repository: &RepositoryName,
        revision: u64,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Tag>, StorageError> {
        let prefix = keys::histories(repository);
        let mut tags = Vec::new();
        let mut after = after.map(|tag| keys::after_versions(&prefix, tag));
        while tags.len() < limit
            && let Some((key, _)) = self.store.scan(&prefix, after.as_deref(), 1)?.into_iter().next()
        {
            let tag = keys::name_of_version::<Tag>(&key, prefix.len())?;
            after = Some(keys::after_versions(&prefix, tag.as_str()));
            if self.tag_at(repository, &tag, revision)?.is_some() {
                tags.push(tag);
            }
        }
        Ok(tags)
    }

    /// Whether a tag points at a manifest of its repository, or ever did, as far as is known: at least as long as the
    /// manifest is there. Walks the versions of the tag.
    ///
    /// # Errors
    /// Damaged data.
    pub fn tag_was(
        &self,
        repository: &RepositoryName,
        tag: &Tag,
        digest: &Digest,
        revision: u64,
    ) -> Result<bool, StorageError> {
        // What was forgotten is older than any revision that is read at.
        if self.store.get(&keys::pair(repository, digest, tag))?.is_some() {
            return Ok(true);
        }
        let mut before = revision.checked_add(1);
        for _ in 0..VERSION_PAGES_MAX {
            let page = self.tag_history(repository, tag, before, WALK_PAGE)?;
            if page.iter().any(|(_, version)| version.digest.as_ref() == Some(digest)) {
                return Ok(true);
            }
            let Some((oldest, _)) = page.last() else { return Ok(false) };
            before = Some(*oldest);
        }
        // A version may have been forgotten while the walk was on its way.
        Ok(self.store.get(&keys::pair(repository, digest, tag))?.is_some())
    }

    /// The revision at which a policy was put or removed last; 0 where none ever was.
    ///
    /// # Errors
    /// Damaged data.
    pub fn policies_revision(&self) -> Result<u64, StorageError> {
        Ok(self.row(&keys::policies_revision())?.unwrap_or(0))
    }

    /// The policies that were there at a revision, in byte order of their names, each with the revision of its version.
    ///
    /// # Errors
    /// Damaged data.
    pub fn policies(&self, revision: u64) -> Result<Vec<(PolicyName, u64, PolicyVersion)>, StorageError> {
        let prefix = keys::policies();
        let (mut found, mut after) = (Vec::new(), None);
        while let Some((key, _)) = self.store.scan(&prefix, after.as_deref(), 1)?.pop() {
            let name: PolicyName = keys::name_of_version(&key, prefix.len())?;
            after = Some(keys::after_versions(&prefix, name.as_str()));
            let then = self.policy_history(&name, revision.checked_add(1), 1)?.pop();
            if let Some((began, version)) = then.filter(|(_, version)| version.document.is_some()) {
                found.push((name, began, version));
            }
        }
        Ok(found)
    }

    /// Up to `limit` versions of a policy with the revisions at which they began, the newest first, those that began
    /// before revision `before`.
    ///
    /// # Errors
    /// Damaged data.
    pub fn policy_history(
        &self,
        name: &PolicyName,
        before: Option<u64>,
        limit: usize,
    ) -> Result<Vec<(u64, PolicyVersion)>, StorageError> {
        let after = before.map(|before| keys::policy_version(name, before));
        let rows = self.store.scan(&keys::policy(name), after.as_deref(), limit)?;
        let mut versions = Vec::new();
        for (key, _) in rows {
            // One that is gone by now was too old to be kept.
            if let Some(version) = self.row(&key)? {
                versions.push((keys::revision_of_version(&key)?, version));
            }
        }
        Ok(versions)
    }

    /// The oldest revision from which changes and tags can be read: older ones are forgotten.
    ///
    /// # Errors
    /// Damaged data.
    pub fn history_floor(&self) -> Result<u64, StorageError> {
        Ok(self.row(&keys::history_floor())?.unwrap_or(0))
    }

    /// Up to `limit` changes after a place, in their order.
    ///
    /// # Errors
    /// Damaged data.
    pub fn changes(&self, after: Place, limit: usize) -> Result<Vec<(Place, Change)>, StorageError> {
        // Rows are read one after the other while apply goes on: of what comes meanwhile a later change may be seen and
        // an earlier one not.
        let applied: Option<AppliedRow> = self.row(&keys::applied())?;
        let applied = applied.and_then(|row| row.log_id).map_or(0, |log_id| log_id.index());
        let (mut changes, mut row_before) = (Vec::new(), CHANGES.before(after.revision));
        loop {
            let rows = self.store.scan(&CHANGES.rows(), row_before.as_deref(), CHANGE_ROWS)?;
            for envelope in rows.iter().flat_map(|(_, row)| envelopes(row)) {
                let (place, change): (Place, Change) = wire::decode(Kind::Row, envelope?)?;
                if place.revision > applied {
                    return Ok(changes);
                }
                if place > after {
                    changes.push((place, change));
                }
                if changes.len() == limit {
                    return Ok(changes);
                }
            }
            row_before = rows.last().map(|(key, _)| key.clone());
            if row_before.is_none() {
                return Ok(changes);
            }
        }
    }

    /// Up to `limit` repositories that held something at a revision, in byte order, those after `after`; see
    /// [`Registry::tag_at`].
    ///
    /// # Errors
    /// Damaged data.
    pub fn repositories_at(
        &self,
        revision: u64,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<RepositoryName>, StorageError> {
        let prefix = keys::existences();
        let mut repositories = Vec::new();
        let mut after = after.map(|name| keys::after_versions(&prefix, name));
        while repositories.len() < limit
            && let Some((key, _)) = self.store.scan(&prefix, after.as_deref(), 1)?.pop()
        {
            let name: RepositoryName = keys::name_of_version(&key, prefix.len())?;
            after = Some(keys::after_versions(&prefix, name.as_str()));
            if self.repository_existed(&name, revision)? {
                repositories.push(name);
            }
        }
        Ok(repositories)
    }

    /// Whether a repository held something at a revision; see [`Registry::tag_at`].
    ///
    /// # Errors
    /// Damaged data.
    pub fn repository_existed(&self, repository: &RepositoryName, revision: u64) -> Result<bool, StorageError> {
        // From the one of this revision on: the first is the newest that is not newer.
        let from = keys::existence(repository, revision.saturating_add(1));
        let then = self.store.scan(&from[..from.len() - size_of::<u64>()], Some(&from), 1)?.pop();
        then.map_or(Ok(false), |(_, is_there)| wire::decode(Kind::Row, &is_there))
    }
}

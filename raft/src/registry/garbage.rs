//! What nothing uses, and what holds what is used.

use std::collections::BTreeSet;

use flotilla_storage::{Digest, StorageError};

use super::{Registry, WALK_PAGE};
use crate::names::RepositoryName;
use crate::records::{BlobRecord, Candidate, LinkRecord, ManifestRecord, TagRecord};
use crate::settings::Rules;
use crate::state_machine::keys;
use crate::wire::{self, Kind};

/// Where a digest is.
#[derive(Debug, Clone)]
pub struct Whereabouts {
    /// Its size in bytes, and where nothing holds it since when, in milliseconds since the Unix epoch; `None` for a
    /// digest that state does not know.
    pub blob: Option<(u64, Option<u64>)>,
    /// The repositories that hold it, some.
    pub places: Vec<Holding>,
    /// Whether more repositories may hold it.
    pub more: bool,
}

/// How one repository holds a digest.
#[derive(Debug, Clone)]
pub struct Holding {
    /// The repository.
    pub repository: RepositoryName,
    /// As a blob.
    pub link: Option<LinkRecord>,
    /// As a manifest.
    pub manifest: bool,
    /// As a deleted manifest that history needs: when it was deleted, in milliseconds since the Unix epoch.
    pub former: Option<u64>,
    /// Some of the manifests that name it.
    pub named_by: Vec<Digest>,
}

impl Registry {
    /// Up to `limit` things that nothing uses, each with the time since when, in milliseconds since the Unix epoch:
    /// deleted manifests and repositories that history holds, then blobs of repositories, then bytes, the oldest of each
    /// first.
    ///
    /// # Errors
    /// Damaged data.
    pub fn garbage(&self, limit: usize) -> Result<Vec<(u64, Candidate)>, StorageError> {
        let mut found = Vec::new();
        for queue in [keys::Queue::Former, keys::Queue::Existence, keys::Queue::Link, keys::Queue::Bytes] {
            let rows = self.store.scan(&keys::garbage(queue), None, limit - found.len())?;
            for (key, _) in rows {
                found.push(keys::parse_candidate(&key)?);
            }
        }
        Ok(found)
    }

    /// The manifests of a repository that a collection of manifests without a tag may remove by the clock `now_ms`. Walks
    /// the repository.
    ///
    /// # Errors
    /// Damaged data.
    pub fn untagged(
        &self,
        repository: &RepositoryName,
        rules: &Rules,
        now_ms: u64,
    ) -> Result<Vec<Digest>, StorageError> {
        let mut tagged = BTreeSet::new();
        self.each_row(&keys::tags(repository), |_, value| {
            tagged.insert(wire::decode::<TagRecord>(Kind::Row, value)?.digest);
            Ok(())
        })?;
        let prefix = keys::manifests(repository);
        let mut found = Vec::new();
        self.each_row(&prefix, |key, value| {
            let digest = Digest::from_key(&key[prefix.len()..]);
            let digest = digest.ok_or_else(|| StorageError::Corrupt { what: "key of a manifest".into() })?;
            if tagged.contains(&digest) || self.store.get(&keys::child(repository, &digest))?.is_some() {
                return Ok(());
            }
            let Some(record) = self.scanned::<ManifestRecord>(key, value)? else { return Ok(()) };
            let is_due = rules.untagged_due_ms(repository, record.untagged_since_ms).is_some_and(|due| due <= now_ms);
            let lives_with_subject = match &record.subject {
                Some(subject) => self.store.get(&keys::manifest(repository, subject))?.is_some(),
                None => false,
            };
            if is_due && !lives_with_subject {
                found.push(digest);
            }
            Ok(())
        })?;
        Ok(found)
    }

    pub(super) fn each_row(
        &self,
        prefix: &[u8],
        mut visit: impl FnMut(&[u8], &[u8]) -> Result<(), StorageError>,
    ) -> Result<(), StorageError> {
        let mut after: Option<Vec<u8>> = None;
        loop {
            let rows = self.store.scan(prefix, after.as_deref(), WALK_PAGE)?;
            for (key, value) in &rows {
                visit(key, value)?;
            }
            after = rows.last().map(|(key, _)| key.clone());
            if after.is_none() {
                return Ok(());
            }
        }
    }

    /// Whether a collection now would find anything, by the clock `now_ms`.
    ///
    /// # Errors
    /// Damaged data.
    pub fn garbage_due(&self, rules: &Rules, now_ms: u64) -> Result<bool, StorageError> {
        for (queue, age_ms) in keys::Queue::aged(rules) {
            if let Some((key, _)) = self.store.scan(&keys::garbage(queue), None, 1)?.first()
                && keys::parse_candidate(key)?.0.saturating_add(age_ms) <= now_ms
            {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// What is known of a digest, wherever it is. Walks the repositories: for people who ask why.
    ///
    /// # Errors
    /// Damaged data.
    pub fn whereabouts(&self, digest: &Digest, limit: usize) -> Result<Whereabouts, StorageError> {
        let blob: Option<BlobRecord> = self.row(&keys::blob(digest))?;
        let mut found = Whereabouts {
            blob: blob.map(|blob| (blob.size, blob.is_unused().then_some(blob.unused_since_ms))),
            places: Vec::new(),
            more: false,
        };
        let mut after: Option<RepositoryName> = None;
        loop {
            let page = self.repositories(after.as_ref().map(RepositoryName::as_str), WALK_PAGE)?;
            after = page.last().cloned();
            for repository in page {
                let place = Holding {
                    link: self.link(&repository, digest)?,
                    manifest: self.manifest(&repository, digest)?.is_some(),
                    former: self.former_manifest(&repository, digest)?.map(|former| former.deleted_ms),
                    named_by: Vec::new(),
                    repository,
                };
                if place.link.is_none() && !place.manifest && place.former.is_none() {
                    continue;
                }
                if found.places.len() == limit {
                    found.more = true;
                    return Ok(found);
                }
                let named_by = match &place.link {
                    Some(link) if link.uses > 0 => self.naming(&place.repository, digest, limit)?,
                    _ => Vec::new(),
                };
                found.places.push(Holding { named_by, ..place });
            }
            if after.is_none() {
                return Ok(found);
            }
        }
    }

    /// Up to `limit` manifests of the repository that name a digest.
    fn naming(&self, repository: &RepositoryName, digest: &Digest, limit: usize) -> Result<Vec<Digest>, StorageError> {
        let prefix = keys::manifests(repository);
        let mut naming = Vec::new();
        self.each_row(&prefix, |key, value| {
            if naming.len() == limit {
                return Ok(());
            }
            let Some(record) = self.scanned::<ManifestRecord>(key, value)? else { return Ok(()) };
            if record.named().contains(digest) {
                let manifest = Digest::from_key(&key[prefix.len()..]);
                naming.push(manifest.ok_or_else(|| StorageError::Corrupt { what: "key of a manifest".into() })?);
            }
            Ok(())
        })?;
        Ok(naming)
    }
}

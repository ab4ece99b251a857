//! What a node knows of the registry: reads of the applied state, local and fast. Whether that is fresh enough is
//! the caller's question to [`crate::Consensus::read_barrier`].

use std::collections::BTreeSet;

use bytes::Bytes;
use flotilla_storage::{Digest, Keyspace, MetadataStore, StorageError};
use uuid::Uuid;

use crate::names::{PolicyName, RepositoryName, Tag};
use crate::records::{
    BlobRecord, Candidate, Change, FormerManifest, LinkRecord, ManifestRecord, Place, PolicyVersion, Referrer,
    SettingsRecord, TagRecord, TagVersion,
};
use crate::settings::Rules;
use crate::state_machine::journal::{CHANGES, envelopes};
use crate::state_machine::{keys, long_rows};
use crate::state_store::AppliedRow;
use crate::wire::{self, Kind};

/// A page of the digests that state keeps as files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileBlobs {
    /// Digests with their sizes in bytes.
    pub blobs: Vec<(Digest, u64)>,
    /// After which digest the next page begins; `None` at the end.
    pub next: Option<Digest>,
}

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

/// How often a row is read before it counts as damaged.
const READS: usize = 4;

/// Rows of changes that are read at a time; each holds up to some twenty.
const CHANGE_ROWS: usize = 16;

/// Pages of a tag's versions that one question may walk: more than any tag has.
const VERSION_PAGES_MAX: usize = 100;

/// Rows that a walk reads at a time.
const WALK_PAGE: usize = 1000;

/// The applied state of this node. Cheap to clone. Single look-ups take microseconds (memory); lists belong on a
/// blocking thread.
#[derive(Clone)]
pub struct Registry {
    store: MetadataStore,
}

impl Registry {
    pub(crate) fn new(store: MetadataStore) -> Self {
        Self { store }
    }

    /// The parts of a long row are read one after the other, and apply may write it anew meanwhile: then it is read
    /// again.
    fn row<T: serde::de::DeserializeOwned>(&self, key: &[u8]) -> Result<Option<T>, StorageError> {
        for _ in 1..READS {
            match self.row_once(key) {
                Err(StorageError::Corrupt { .. }) => {}
                read => return read,
            }
        }
        self.row_once(key)
    }

    fn row_once<T: serde::de::DeserializeOwned>(&self, key: &[u8]) -> Result<Option<T>, StorageError> {
        let Some(stored) = self.store.get(key)? else { return Ok(None) };
        let whole = long_rows::join(key, stored, |part| self.store.get(part))?;
        wire::decode(Kind::Row, &whole).map(Some)
    }

    /// The row that a scan came by; `None` if it went meanwhile.
    fn scanned<T: serde::de::DeserializeOwned>(&self, key: &[u8], stored: &[u8]) -> Result<Option<T>, StorageError> {
        match wire::is_kind(Kind::LongRow, stored) {
            true => self.row(key),
            false => wire::decode(Kind::Row, stored).map(Some),
        }
    }

    /// The cluster's id, once it is founded.
    ///
    /// # Errors
    /// Damaged data.
    pub fn cluster_id(&self) -> Result<Option<Uuid>, StorageError> {
        self.row(&keys::cluster_id())
    }

    /// The settings that all nodes share, if any were put.
    ///
    /// # Errors
    /// Damaged data.
    pub fn settings(&self) -> Result<Option<SettingsRecord>, StorageError> {
        self.row(&keys::settings())
    }

    /// What a tag points at.
    ///
    /// # Errors
    /// Damaged data.
    pub fn tag(&self, repository: &RepositoryName, tag: &Tag) -> Result<Option<TagRecord>, StorageError> {
        self.row(&keys::tag(repository, tag))
    }

    /// A manifest by its digest.
    ///
    /// # Errors
    /// Damaged data.
    pub fn manifest(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
    ) -> Result<Option<ManifestRecord>, StorageError> {
        self.row(&keys::manifest(repository, digest))
    }

    /// A blob of the repository by its digest.
    ///
    /// # Errors
    /// Damaged data.
    pub fn link(&self, repository: &RepositoryName, digest: &Digest) -> Result<Option<LinkRecord>, StorageError> {
        self.row(&keys::link(repository, digest))
    }

    /// The bytes of a body that lives in state.
    ///
    /// # Errors
    /// Damaged data.
    pub fn body(&self, digest: &Digest) -> Result<Option<Bytes>, StorageError> {
        let record: Option<BlobRecord> = self.row(&keys::blob(digest))?;
        Ok(record.and_then(|blob| blob.body))
    }

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

    fn each_row(
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

    /// Whether a repository of this name holds anything.
    ///
    /// # Errors
    /// Damaged data.
    pub fn repository_exists(&self, repository: &RepositoryName) -> Result<bool, StorageError> {
        Ok(self.store.get(&keys::repository(repository))?.is_some())
    }

    /// Whether any repository holds a blob.
    ///
    /// # Errors
    /// Damaged data.
    pub fn blob_exists(&self, digest: &Digest) -> Result<bool, StorageError> {
        let record: Option<BlobRecord> = self.row(&keys::blob(digest))?;
        Ok(record.is_some_and(|blob| blob.links > 0))
    }

    /// Up to `limit` tags in byte order, those after `after` (which need not be a tag).
    ///
    /// # Errors
    /// Damaged data.
    pub fn tags(
        &self,
        repository: &RepositoryName,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Tag>, StorageError> {
        let prefix = keys::tags(repository);
        let after = after.map(|tag| [&prefix, tag.as_bytes()].concat());
        let rows = self.store.scan(&prefix, after.as_deref(), limit)?;
        rows.iter().map(|(key, _)| keys::text_after(key, prefix.len())).collect()
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

    /// Up to `limit` manifests of the repository that refer to `subject`, those after `after`, in the order of their
    /// keys. One that is deleted meanwhile is left out.
    ///
    /// # Errors
    /// Damaged data.
    pub fn referrers(
        &self,
        repository: &RepositoryName,
        subject: &Digest,
        after: Option<&Digest>,
        limit: usize,
    ) -> Result<Vec<(Digest, Referrer)>, StorageError> {
        let prefix = keys::referrers(repository, subject);
        let mut after = after.map(|after| keys::referrer(repository, subject, after));
        let mut found = Vec::new();
        loop {
            let wanted = limit - found.len();
            let rows = self.store.scan(&prefix, after.as_deref(), wanted)?;
            let is_last = rows.len() < wanted;
            for (key, stored) in &rows {
                let digest = Digest::from_key(&key[prefix.len()..])
                    .ok_or_else(|| StorageError::Corrupt { what: "key of a referrer".into() })?;
                found.extend(self.scanned(key, stored)?.map(|referrer| (digest, referrer)));
            }
            if is_last || found.len() == limit {
                return Ok(found);
            }
            after = rows.into_iter().next_back().map(|(key, _)| key);
        }
    }

    /// Up to `limit` repositories in byte order, those after `after`.
    ///
    /// # Errors
    /// Damaged data.
    pub fn repositories(&self, after: Option<&str>, limit: usize) -> Result<Vec<RepositoryName>, StorageError> {
        let prefix = [Keyspace::Repository.prefix()];
        let after = after.map(|name| [&prefix, name.as_bytes()].concat());
        let rows = self.store.scan(&prefix, after.as_deref(), limit)?;
        rows.iter().map(|(key, _)| keys::text_after(key, prefix.len())).collect()
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

    /// Up to `limit` digests that state keeps as files, with their sizes in bytes, those after `after` in key order.
    ///
    /// # Errors
    /// Damaged data.
    pub fn file_blobs(&self, after: Option<&Digest>, limit: usize) -> Result<FileBlobs, StorageError> {
        let prefix = keys::files();
        let after = after.map(keys::file);
        let rows = self.store.scan(&prefix, after.as_deref(), limit)?;
        let blob = |(key, value): &(Vec<u8>, Vec<u8>)| {
            let digest = Digest::from_key(&key[prefix.len()..]);
            let digest = digest.ok_or_else(|| StorageError::Corrupt { what: "key of a file".into() })?;
            Ok((digest, wire::decode(Kind::Row, value)?))
        };
        let blobs: Vec<(Digest, u64)> = rows.iter().map(blob).collect::<Result<_, StorageError>>()?;
        let next = blobs.last().map(|(digest, _)| *digest).filter(|_| rows.len() == limit);
        Ok(FileBlobs { blobs, next })
    }

    /// The size in bytes of a digest that state keeps as a file.
    ///
    /// # Errors
    /// Damaged data.
    pub fn file_blob(&self, digest: &Digest) -> Result<Option<u64>, StorageError> {
        self.row(&keys::file(digest))
    }
}

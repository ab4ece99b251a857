//! What a node knows of the registry: reads of the applied state, local and fast. Whether that is fresh enough is
//! the caller's question to [`crate::Consensus::read_barrier`].

mod garbage;
mod past;
mod replicas;

use bytes::Bytes;
use flotilla_storage::{Digest, Keyspace, MetadataStore, StorageError};
use uuid::Uuid;

use crate::names::{RepositoryName, Tag};
use crate::records::{
    AuthoritiesRecord, BlobRecord, LinkRecord, ManifestRecord, Referrer, SettingsRecord, TagRecord, TokenRecord,
};
use crate::state_machine::{keys, long_rows};
use crate::wire::{self, Kind};

pub use garbage::{Holding, Whereabouts};
pub use replicas::Replicas;

/// A page of the digests that state keeps as files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileBlobs {
    /// Digests with their sizes in bytes.
    pub blobs: Vec<(Digest, u64)>,
    /// After which digest the next page begins; `None` at the end.
    pub next: Option<Digest>,
}

/// How often a row is read before it counts as damaged.
const READS: usize = 4;

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

    /// The authorities that all nodes trust, once they are known to the cluster.
    ///
    /// # Errors
    /// Damaged data.
    pub fn authorities(&self) -> Result<Option<AuthoritiesRecord>, StorageError> {
        self.row(&keys::authorities())
    }

    /// The tokens by which nodes may join, those included that ended a short time ago.
    ///
    /// # Errors
    /// Damaged data.
    pub fn tokens(&self) -> Result<Vec<TokenRecord>, StorageError> {
        Ok(self.row(&keys::tokens())?.unwrap_or_default())
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

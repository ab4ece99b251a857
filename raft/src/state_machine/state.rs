//! The state as a command sees it: the stored rows under the writes of this chunk so far.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use flotilla_storage::{PresentRows, Rows, StorageError};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{keys, long_rows};
use crate::command::Refusal;
use crate::member::NodeId;
use crate::names::RepositoryName;
use crate::registry::RepositoryRecord;
use crate::wire::{self, Kind};

/// Where the stored rows come from.
pub(crate) trait Reader {
    /// One row.
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StorageError>;
    /// Up to `limit` rows with the prefix, in key order, after the key `after`.
    fn scan(&self, prefix: &[u8], after: Option<&[u8]>, limit: usize) -> Result<PresentRows, StorageError>;
}

/// Stored rows, and what the commands of one chunk have written over them.
pub(crate) struct State<'a> {
    reader: &'a dyn Reader,
    writes: BTreeMap<Vec<u8>, Option<Vec<u8>>>,
    members: BTreeSet<NodeId>,
    index: u64,
    time_ms: u64,
}

impl<'a> State<'a> {
    /// `members` are the nodes of the membership in force, `time_ms` the clock of state so far.
    pub(crate) fn new(reader: &'a dyn Reader, members: BTreeSet<NodeId>, time_ms: u64) -> Self {
        Self { reader, writes: BTreeMap::new(), members, index: 0, time_ms }
    }

    /// The log index of the entry that is being applied.
    pub(crate) fn index(&self) -> u64 {
        self.index
    }

    pub(crate) fn set_index(&mut self, index: u64) {
        self.index = index;
    }

    /// A membership entry took effect.
    pub(crate) fn set_members(&mut self, members: BTreeSet<NodeId>) {
        self.members = members;
    }

    /// Milliseconds since the Unix epoch, never going back.
    pub(crate) fn time_ms(&self) -> u64 {
        self.time_ms
    }

    pub(super) fn advance_clock(&mut self, stamp_ms: u64) {
        self.time_ms = self.time_ms.max(stamp_ms);
    }

    pub(super) fn is_member(&self, node: NodeId) -> bool {
        self.members.contains(&node)
    }

    pub(super) fn exists(&self, key: &[u8]) -> Result<bool, StorageError> {
        match self.writes.get(key) {
            Some(value) => Ok(value.is_some()),
            None => Ok(self.reader.get(key)?.is_some()),
        }
    }

    pub(super) fn get<T: DeserializeOwned>(&self, key: &[u8]) -> Result<Option<T>, StorageError> {
        let Some(stored) = self.stored(key)? else { return Ok(None) };
        let whole = long_rows::join(key, stored, |part| Ok(self.stored(part)?.map(Cow::into_owned)))?;
        wire::decode(Kind::Row, &whole).map(Some)
    }

    fn stored(&self, key: &[u8]) -> Result<Option<Cow<'_, [u8]>>, StorageError> {
        match self.writes.get(key) {
            Some(value) => Ok(value.as_deref().map(Cow::Borrowed)),
            None => Ok(self.reader.get(key)?.map(Cow::Owned)),
        }
    }

    /// All rows with the prefix, in key order.
    pub(super) fn scan(&self, prefix: &[u8]) -> Result<PresentRows, StorageError> {
        self.scan_until(prefix, None)
    }

    /// All rows with the prefix and, where there is one, before the key `end`: writes of this chunk included, so that
    /// what is found does not depend on where chunks begin.
    fn scan_until(&self, prefix: &[u8], end: Option<&[u8]>) -> Result<PresentRows, StorageError> {
        const PAGE: usize = 1000;
        let is_before_end = |key: &[u8]| end.is_none_or(|end| key < end);
        let mut rows = BTreeMap::new();
        let mut after: Option<Vec<u8>> = None;
        loop {
            let page = self.reader.scan(prefix, after.as_deref(), PAGE)?;
            let last_page = page.len() < PAGE || page.last().is_some_and(|(key, _)| !is_before_end(key));
            after = page.last().map(|(key, _)| key.clone());
            rows.extend(page.into_iter().filter(|(key, _)| is_before_end(key)));
            if last_page {
                break;
            }
        }
        let written = self.writes.range(prefix.to_vec()..);
        for (key, value) in written.take_while(|(key, _)| key.starts_with(prefix) && is_before_end(key)) {
            match value {
                Some(value) => rows.insert(key.clone(), value.clone()),
                None => rows.remove(key),
            };
        }
        Ok(rows.into_iter().collect())
    }

    pub(super) fn put<T: Serialize>(&mut self, key: Vec<u8>, value: &T) -> Result<(), StorageError> {
        let rows = long_rows::split(key, wire::encode(Kind::Row, value)?)?;
        self.writes.extend(rows.into_iter().map(|(key, value)| (key, Some(value))));
        Ok(())
    }

    pub(super) fn put_raw(&mut self, key: Vec<u8>, value: Vec<u8>) {
        self.writes.insert(key, Some(value));
    }

    pub(super) fn delete(&mut self, key: Vec<u8>) {
        self.writes.insert(key, None);
    }

    /// Deletes a row that may be a long one, with its parts.
    pub(super) fn delete_long(&mut self, key: Vec<u8>) -> Result<(), StorageError> {
        let parts = match self.stored(&key)? {
            Some(stored) => long_rows::part_keys(&key, &stored)?,
            None => Vec::new(),
        };
        parts.into_iter().for_each(|part| self.delete(part));
        self.delete(key);
        Ok(())
    }

    /// The keys of remembered requests with a base index below the floor.
    pub(super) fn requests_below(&self, floor: u64) -> Result<Vec<Vec<u8>>, StorageError> {
        let rows = self.scan_until(&keys::requests(), Some(&keys::requests_from(floor)))?;
        Ok(rows.into_iter().map(|(key, _)| key).collect())
    }

    /// Changes how much a repository holds; its row goes when nothing is left.
    pub(super) fn count(
        &mut self,
        repository: &RepositoryName,
        blobs: i64,
        manifests: i64,
    ) -> Result<(), StorageError> {
        let key = keys::repository(repository);
        let mut record: RepositoryRecord = self.get(&key)?.unwrap_or_default();
        record.blobs = record.blobs.saturating_add_signed(blobs);
        record.manifests = record.manifests.saturating_add_signed(manifests);
        if record == RepositoryRecord::default() {
            self.delete(key);
            return Ok(());
        }
        self.put(key, &record)
    }

    /// The refusal for something that a repository does not hold: the repository itself may be unknown.
    pub(super) fn unknown(&self, repository: &RepositoryName, what: Refusal) -> Result<Refusal, StorageError> {
        Ok(if self.exists(&keys::repository(repository))? { what } else { Refusal::RepositoryUnknown })
    }

    /// The writes of the chunk, for one atomic batch.
    pub(crate) fn into_rows(self) -> Rows {
        self.writes.into_iter().collect()
    }
}

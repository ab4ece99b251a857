//! The state as a command sees it: the stored rows under the writes of this chunk so far.

use std::collections::{BTreeMap, BTreeSet};

use flotilla_storage::{Keyspace, PresentRows, Rows, StorageError};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::keys;
use crate::command::Refusal;
use crate::member::NodeId;
use crate::names::RepositoryName;
use crate::registry::RepositoryRecord;
use crate::wire::{self, Kind};

/// The most remembered requests that one entry forgets, so that no entry takes long.
const FORGET_MAX: usize = 1024;

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
        match self.writes.get(key) {
            Some(value) => value.as_deref().map(|bytes| wire::decode(Kind::Row, bytes)).transpose(),
            None => self.reader.get(key)?.map(|bytes| wire::decode(Kind::Row, &bytes)).transpose(),
        }
    }

    /// All rows with the prefix, writes of this chunk included, in key order.
    pub(super) fn scan(&self, prefix: &[u8]) -> Result<PresentRows, StorageError> {
        const PAGE: usize = 1000;
        let mut rows = BTreeMap::new();
        let mut after: Option<Vec<u8>> = None;
        loop {
            let page = self.reader.scan(prefix, after.as_deref(), PAGE)?;
            let last_page = page.len() < PAGE;
            after = page.last().map(|(key, _)| key.clone());
            rows.extend(page);
            if last_page {
                break;
            }
        }
        for (key, value) in self.writes.range(prefix.to_vec()..).take_while(|(key, _)| key.starts_with(prefix)) {
            match value {
                Some(value) => rows.insert(key.clone(), value.clone()),
                None => rows.remove(key),
            };
        }
        Ok(rows.into_iter().collect())
    }

    pub(super) fn put<T: Serialize>(&mut self, key: Vec<u8>, value: &T) -> Result<(), StorageError> {
        let bytes = wire::encode(Kind::Row, value)?;
        self.writes.insert(key, Some(bytes));
        Ok(())
    }

    pub(super) fn put_raw(&mut self, key: Vec<u8>, value: Vec<u8>) {
        self.writes.insert(key, Some(value));
    }

    pub(super) fn delete(&mut self, key: Vec<u8>) {
        self.writes.insert(key, None);
    }

    /// The keys of remembered requests with a base index below the floor, at most [`FORGET_MAX`] of them.
    ///
    /// Those written in this chunk are not looked at: none of them is that old.
    pub(super) fn first_requests_below(&self, floor: u64) -> Result<Vec<Vec<u8>>, StorageError> {
        let rows = self.reader.scan(&[Keyspace::Request.prefix()], None, FORGET_MAX)?;
        let old = rows
            .into_iter()
            .map(|(key, _)| key)
            .take_while(|key| keys::request_base(key).is_some_and(|base| base < floor));
        Ok(old.filter(|key| !self.writes.contains_key(key)).collect())
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

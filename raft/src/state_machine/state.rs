//! The state as a command sees it: the stored rows under the writes of this chunk so far.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::Arc;

use flotilla_storage::{Digest, PresentRows, Rows, StorageError};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Layout, Requests, history, keys, layout, long_rows};
use crate::command::{Proposal, Refusal};
use crate::member::NodeId;
use crate::names::RepositoryName;
use crate::records::RepositoryRecord;
use crate::settings::Rules;
use crate::wire::{self, Kind};

/// Where the stored rows come from.
pub(crate) trait Reader {
    /// One row.
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StorageError>;
    /// Up to `limit` rows with the prefix, in key order, after the key `after`.
    fn scan(&self, prefix: &[u8], after: Option<&[u8]>, limit: usize) -> Result<PresentRows, StorageError>;
}

/// A key and its stored value.
pub(super) type Row = (Vec<u8>, Vec<u8>);

/// Stored rows, and what the commands of one chunk have written over them.
pub(crate) struct State<'a> {
    reader: &'a dyn Reader,
    writes: BTreeMap<Vec<u8>, Option<Vec<u8>>>,
    members: BTreeSet<NodeId>,
    index: u64,
    changes: u32,
    time_ms: u64,
    actor: String,
    rules: Arc<Rules>,
    layout: Layout,
    requests: &'a mut Requests,
    collected: Vec<(u64, Digest)>,
}

impl<'a> State<'a> {
    /// `members` are the nodes of the membership in force, `time_ms` the clock of state so far, `rules` those of the
    /// settings that are stored, `layout` the stored one, `requests` those that the rows remember.
    pub(crate) fn new(
        reader: &'a dyn Reader,
        members: BTreeSet<NodeId>,
        time_ms: u64,
        rules: Arc<Rules>,
        layout: Layout,
        requests: &'a mut Requests,
    ) -> Self {
        Self {
            reader,
            writes: BTreeMap::new(),
            members,
            index: 0,
            changes: 0,
            time_ms,
            actor: String::new(),
            rules,
            layout,
            requests,
            collected: Vec::new(),
        }
    }

    /// The log index of the entry that is being applied.
    pub(crate) fn index(&self) -> u64 {
        self.index
    }

    pub(crate) fn set_index(&mut self, index: u64) {
        self.index = index;
        self.changes = 0;
    }

    /// The number of the next change of names under this index, from 0.
    pub(super) fn next_change(&mut self) -> u32 {
        let number = self.changes;
        self.changes += 1;
        number
    }

    /// A membership entry took effect.
    pub(crate) fn set_members(&mut self, members: BTreeSet<NodeId>) -> Result<(), StorageError> {
        if self.members == members {
            return Ok(());
        }
        self.members = members;
        layout::members_changed(self)
    }

    /// The nodes of the membership in force.
    pub(super) fn members(&self) -> &BTreeSet<NodeId> {
        &self.members
    }

    /// Where blobs are placed.
    pub(crate) fn layout(&self) -> &Layout {
        &self.layout
    }

    pub(super) fn put_layout(&mut self, layout: Layout) -> Result<(), StorageError> {
        self.delete_long(keys::layout())?;
        self.put(keys::layout(), &layout)?;
        self.layout = layout;
        Ok(())
    }

    /// Whether a copy on this node counts.
    pub(super) fn may_hold(&self, node: NodeId) -> bool {
        self.is_member(node) && !self.layout.is_draining(node)
    }

    /// Milliseconds since the Unix epoch, never going back.
    pub(crate) fn time_ms(&self) -> u64 {
        self.time_ms
    }

    /// A proposal is applied now: its author is the actor, and its stamp may move the clock on.
    pub(super) fn begin(&mut self, proposal: &Proposal) {
        self.time_ms = self.time_ms.max(proposal.time_ms);
        self.actor.clone_from(&proposal.actor);
    }

    /// The rules of the settings in force.
    pub(crate) fn rules(&self) -> &Rules {
        &self.rules
    }

    pub(super) fn set_rules(&mut self, rules: Rules) {
        self.rules = Arc::new(rules);
    }

    /// Who asked for what is being applied.
    pub(super) fn actor(&self) -> &str {
        &self.actor
    }

    pub(super) fn requests(&self) -> &Requests {
        self.requests
    }

    pub(super) fn requests_mut(&mut self) -> &mut Requests {
        self.requests
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
        const PAGE: usize = 1000;
        let mut rows = PresentRows::new();
        loop {
            let after = rows.last().map(|(key, _)| key.clone());
            let page = self.scan_some(prefix, after.as_deref(), PAGE)?;
            let before = rows.len();
            rows.extend(page);
            if rows.len() < before + PAGE {
                return Ok(rows);
            }
        }
    }

    /// Up to `limit` rows with the prefix, in key order, after the key `after`: writes of this chunk included, so that
    /// what is found does not depend on where chunks begin.
    pub(super) fn scan_some(
        &self,
        prefix: &[u8],
        after: Option<&[u8]>,
        limit: usize,
    ) -> Result<PresentRows, StorageError> {
        let mut found = PresentRows::new();
        let mut after = after.map(<[u8]>::to_vec);
        loop {
            let page = self.reader.scan(prefix, after.as_deref(), limit)?;
            let is_last = page.len() < limit;
            // Rows past the end of this page are merged with the next one.
            let end = page.last().filter(|_| !is_last).map(|(key, _)| key.clone());
            let mut rows: BTreeMap<_, _> = page.into_iter().collect();
            let begin = match &after {
                Some(after) => Bound::Excluded(after.clone()),
                None => Bound::Included(prefix.to_vec()),
            };
            let written = self.writes.range((begin, Bound::Unbounded));
            let is_here = |key: &[u8]| key.starts_with(prefix) && end.as_deref().is_none_or(|end| key <= end);
            for (key, value) in written.take_while(|(key, _)| is_here(key)) {
                match value {
                    Some(value) => rows.insert(key.clone(), value.clone()),
                    None => rows.remove(key),
                };
            }
            found.extend(rows);
            if is_last || found.len() >= limit {
                found.truncate(limit);
                return Ok(found);
            }
            after = end;
        }
    }

    /// The first row with the prefix after the key `after`. What is forgotten in order is read by this, one by one:
    /// mostly the first row is too young, and rows that nobody looked at for long come from the disk.
    pub(super) fn first_after(&self, prefix: &[u8], after: Option<&[u8]>) -> Result<Option<Row>, StorageError> {
        Ok(self.scan_some(prefix, after, 1)?.pop())
    }

    pub(super) fn put<T: Serialize>(&mut self, key: Vec<u8>, value: &T) -> Result<(), StorageError> {
        let rows = long_rows::split(key, wire::encode(Kind::Row, value)?)?;
        self.writes.extend(rows.into_iter().map(|(key, value)| (key, Some(value))));
        Ok(())
    }

    /// A row's stored value as it is.
    pub(super) fn raw(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StorageError> {
        Ok(self.stored(key)?.map(Cow::into_owned))
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

    /// Changes how much a repository holds; its row goes when nothing is left.
    pub(super) fn count(
        &mut self,
        repository: &RepositoryName,
        blobs: i64,
        manifests: i64,
    ) -> Result<(), StorageError> {
        let key = keys::repository(repository);
        let mut record: RepositoryRecord = self.get(&key)?.unwrap_or_default();
        let was_there = record != RepositoryRecord::default();
        record.blobs = record.blobs.saturating_add_signed(blobs);
        record.manifests = record.manifests.saturating_add_signed(manifests);
        let is_there = record != RepositoryRecord::default();
        if was_there != is_there {
            history::repository_changed(self, repository, is_there)?;
        }
        match is_there {
            true => self.put(key, &record),
            false => {
                self.delete(key);
                Ok(())
            }
        }
    }

    /// The refusal for something that a repository does not hold: the repository itself may be unknown.
    pub(super) fn unknown(&self, repository: &RepositoryName, what: Refusal) -> Result<Refusal, StorageError> {
        Ok(if self.exists(&keys::repository(repository))? { what } else { Refusal::RepositoryUnknown })
    }

    /// The entry that is being applied collects the file of this digest.
    pub(super) fn file_collected(&mut self, digest: Digest) {
        self.collected.push((self.index, digest));
    }

    /// The rules that the next chunk begins with.
    pub(crate) fn current_rules(&self) -> Arc<Rules> {
        self.rules.clone()
    }

    /// The files that the entries so far have collected, with their log indexes.
    pub(crate) fn take_collected(&mut self) -> Vec<(u64, Digest)> {
        std::mem::take(&mut self.collected)
    }

    /// The writes of the chunk, for one atomic batch.
    pub(crate) fn into_rows(self) -> Rows {
        self.writes.into_iter().collect()
    }
}

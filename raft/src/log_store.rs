//! openraft's log over the storage crate's: encodes entries, and keeps the newest of them decoded in memory, where
//! replication and apply read them again a moment later.

use std::collections::VecDeque;
use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use flotilla_storage::{Done, LogMeta, LogStore as Store, StorageError};
use openraft::entry::RaftEntry;
use openraft::storage::{IOFlushed, LogState, RaftLogStorage};
use openraft::{EntryPayload, OptionalSend, RaftLogReader};
use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::types::{Entry, LogId, TypeConfig, Vote};
use crate::wire::{self, Kind};

/// The most bytes of entries that are kept decoded.
const RECENT_MAX_BYTES: usize = 16 << 20;

/// The most entries that are kept decoded.
const RECENT_MAX: usize = 8192;

/// The most bytes of entries that one read returns to replication, so that a batch fits in one request.
const BATCH_MAX_BYTES: usize = 1 << 20;

/// The most entries that one read returns to replication.
const BATCH_MAX: usize = 512;

/// The log, the vote and the committed log id of this node.
#[derive(Clone)]
pub(crate) struct LogStore {
    store: Store,
    recent: Arc<Mutex<Recent>>,
}

/// The newest entries, without a hole, the last of the log at the end. Those that the disk does not hold yet are
/// always among them, since they can be read nowhere else.
#[derive(Default)]
struct Recent {
    entries: VecDeque<(Entry, usize)>,
    bytes: usize,
    flushed: u64,
}

impl Recent {
    fn first(&self) -> Option<u64> {
        self.entries.front().map(|(entry, _)| entry.log_id.index)
    }

    fn push(&mut self, entry: Entry, size: usize) {
        self.bytes += size;
        self.entries.push_back((entry, size));
        while (self.bytes > RECENT_MAX_BYTES || self.entries.len() > RECENT_MAX)
            && self.first().is_some_and(|first| first <= self.flushed)
        {
            self.pop_front();
        }
    }

    fn pop_front(&mut self) {
        if let Some((_, size)) = self.entries.pop_front() {
            self.bytes -= size;
        }
    }

    fn truncate_from(&mut self, index: u64) {
        while self.entries.back().is_some_and(|(entry, _)| entry.log_id.index >= index) {
            if let Some((_, size)) = self.entries.pop_back() {
                self.bytes -= size;
            }
        }
        self.flushed = self.flushed.min(index.saturating_sub(1));
    }

    fn purge_through(&mut self, index: u64) {
        while self.first().is_some_and(|first| first <= index) {
            self.pop_front();
        }
    }

    /// The entries of [start, end) that are here, as long as they fit into the limits; at least one if any is.
    fn read(&self, start: u64, end: u64, max_bytes: usize, max: usize) -> Vec<Entry> {
        let Some(first) = self.first() else { return Vec::new() };
        let skip = start.saturating_sub(first) as usize;
        let mut bytes = 0;
        let wanted = self.entries.iter().skip(skip).take_while(|(entry, size)| {
            let fits = bytes == 0 || bytes + size <= max_bytes;
            bytes += size;
            fits && entry.log_id.index < end
        });
        wanted.take(max).map(|(entry, _)| entry.clone()).collect()
    }
}

impl LogStore {
    /// Opens the log in `dir`. Blocks.
    ///
    /// # Errors
    /// Damaged data, or a log whose synced tail is gone.
    pub(crate) fn open(dir: &Path) -> Result<Self, StorageError> {
        Ok(Self { store: Store::open(dir)?, recent: Arc::default() })
    }

    /// The index of the last entry; zero for an empty log. Blocks.
    ///
    /// # Errors
    /// Damaged data.
    pub(crate) fn last_index(&self) -> Result<u64, StorageError> {
        Ok(self.store.last_index()?.unwrap_or(0))
    }

    /// Makes durable up to where the log is committed, which no other write waits for: a node that starts alone cannot
    /// ask the others.
    ///
    /// # Errors
    /// The store is closed.
    pub(crate) async fn sync_committed(&self) -> Result<(), io::Error> {
        let (done, synced) = awaited();
        let store = self.store.clone();
        blocking(move || {
            match store.get_meta(LogMeta::Committed)? {
                Some(committed) => store.put_meta(LogMeta::Committed, committed, done),
                None => done(Ok(())),
            }
            Ok(())
        })
        .await?;
        synced.await
    }

    /// Bytes of the entries in the log, about.
    pub(crate) fn size_bytes(&self) -> u64 {
        self.store.size_bytes()
    }

    /// Syncs of the log since it was opened.
    pub(crate) fn sync_count(&self) -> u64 {
        self.store.sync_count()
    }

    /// How long the writer thread has been at what it is writing.
    ///
    /// # Errors
    /// It has ended.
    pub(crate) fn busy_for(&self) -> Result<Duration, StorageError> {
        self.store.busy_for()
    }

    async fn read(&self, start: u64, end: u64, max_bytes: usize, max: usize) -> Result<Vec<Entry>, io::Error> {
        let in_memory = {
            let recent = self.recent.lock();
            recent.first().is_some_and(|first| first <= start).then(|| recent.read(start, end, max_bytes, max))
        };
        if let Some(entries) = in_memory {
            return Ok(entries);
        }
        let (store, end_on_disk) = (self.store.clone(), self.recent.lock().first().unwrap_or(end).min(end));
        let mut entries = blocking(move || {
            let limit = end_on_disk.min(start.saturating_add(max as u64));
            let rows = store.read(start, limit, max_bytes as u64)?;
            rows.iter().map(|(_, bytes)| wire::decode::<Entry>(Kind::Entry, bytes)).collect::<Result<Vec<_>, _>>()
        })
        .await?;
        // What was in memory when the disk was read may have been pushed out since: it is on the disk by then, and a
        // reader that is cut short here comes back for it, unless it asked for all.
        let reached = entries.last().map_or(end_on_disk, |entry| entry.log_id.index + 1);
        if reached == end_on_disk && reached < end && entries.len() < max {
            let rest = self.recent.lock().read(reached, end, max_bytes, max - entries.len());
            if rest.first().is_some_and(|entry| entry.log_id.index == reached) {
                entries.extend(rest);
            }
        }
        Ok(entries)
    }

    /// Gives the writer something to do, elsewhere where its queue is full: that would park the worker on which openraft's
    /// core runs.
    async fn queue(&self, work: impl FnOnce(&Store) + Send + 'static) -> Result<(), io::Error> {
        if !self.store.is_full() {
            work(&self.store);
            return Ok(());
        }
        let store = self.store.clone();
        blocking(move || {
            work(&store);
            Ok(())
        })
        .await
    }

    async fn meta<T: serde::de::DeserializeOwned + Send + 'static>(
        &self,
        meta: LogMeta,
        kind: Kind,
    ) -> Result<Option<T>, io::Error> {
        let store = self.store.clone();
        blocking(move || store.get_meta(meta)?.map(|bytes| wire::decode(kind, &bytes)).transpose()).await
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StorageError> + Send + 'static,
) -> Result<T, io::Error> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result.map_err(io::Error::from),
        Err(problem) => Err(io::Error::other(problem)),
    }
}

/// A callback for the storage crate, and what waits for it.
fn awaited() -> (Done, impl Future<Output = Result<(), io::Error>>) {
    let (done, waits) = oneshot::channel();
    let callback: Done = Box::new(move |result| {
        // The one that waited may be gone; the write happened all the same.
        let _ = done.send(result);
    });
    (callback, async move {
        match waits.await {
            Ok(result) => result.map_err(io::Error::from),
            Err(_) => Err(StorageError::Closed.into()),
        }
    })
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, io::Error> {
        let (mut start, end) = limits(&range);
        let mut entries = Vec::new();
        while start < end {
            let more = self.read(start, end, usize::MAX, usize::MAX).await?;
            let Some(last) = more.last() else { break };
            start = last.log_id.index + 1;
            entries.extend(more);
        }
        Ok(entries)
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<Entry>, io::Error> {
        self.read(start, end, BATCH_MAX_BYTES, BATCH_MAX).await
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        self.meta(LogMeta::Vote, Kind::Vote).await
    }
}

fn limits(range: &impl RangeBounds<u64>) -> (u64, u64) {
    let start = match range.start_bound() {
        Bound::Included(index) => *index,
        Bound::Excluded(index) => index + 1,
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(index) => index + 1,
        Bound::Excluded(index) => *index,
        Bound::Unbounded => u64::MAX,
    };
    (start, end)
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, io::Error> {
        let store = self.store.clone();
        blocking(move || {
            let purged: Option<LogId> =
                store.get_meta(LogMeta::Purged)?.map(|bytes| wire::decode(Kind::LogId, &bytes)).transpose()?;
            let last = match store.last_index()? {
                None => None,
                Some(index) => store
                    .read(index, index + 1, u64::MAX)?
                    .first()
                    .map(|(_, bytes)| wire::decode::<Entry>(Kind::Entry, bytes))
                    .transpose()?,
            };
            let last_log_id = last.map(|entry| entry.log_id()).or(purged);
            Ok(LogState { last_purged_log_id: purged, last_log_id })
        })
        .await
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        let (done, synced) = awaited();
        let vote = wire::encode(Kind::Vote, vote)?;
        self.queue(move |store| store.put_meta(LogMeta::Vote, vote, done)).await?;
        synced.await
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), io::Error> {
        if let Some(committed) = committed {
            self.store.put_meta_unsynced(LogMeta::Committed, wire::encode(Kind::LogId, &committed)?);
        }
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, io::Error> {
        self.meta(LogMeta::Committed, Kind::LogId).await
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut encoded = Vec::new();
        let mut decoded = Vec::new();
        for entry in entries {
            let bytes = Bytes::from(wire::encode(Kind::Entry, &entry)?);
            decoded.push((entry.clone(), bytes.len() + body_bytes(&entry)));
            encoded.push((entry.log_id.index, bytes));
        }
        let Some(last) = encoded.last().map(|(index, _)| *index) else {
            callback.io_completed(Ok(()));
            return Ok(());
        };
        {
            let mut recent = self.recent.lock();
            decoded.into_iter().for_each(|(entry, size)| recent.push(entry, size));
        }
        let recent = self.recent.clone();
        let done: Done = Box::new(move |result| {
            if result.is_ok() {
                let mut recent = recent.lock();
                // A truncation that was asked for meanwhile comes after this write in the queue and has
                // already lowered the mark: never raise it above the newest entry that is left.
                let newest = recent.entries.back().map_or(0, |(entry, _)| entry.log_id.index);
                recent.flushed = recent.flushed.max(last.min(newest));
            }
            callback.io_completed(result.map_err(io::Error::from));
        });
        self.queue(move |store| store.append(encoded, done)).await
    }

    async fn truncate_after(&mut self, last_log_id: Option<LogId>) -> Result<(), io::Error> {
        let from = last_log_id.map_or(0, |log_id| log_id.index + 1);
        self.recent.lock().truncate_from(from);
        let (done, synced) = awaited();
        self.queue(move |store| store.truncate_from(from, done)).await?;
        synced.await
    }

    async fn purge(&mut self, log_id: LogId) -> Result<(), io::Error> {
        self.recent.lock().purge_through(log_id.index);
        let (done, synced) = awaited();
        let purged = wire::encode(Kind::LogId, &log_id)?;
        self.queue(move |store| store.purge_through(log_id.index, purged, done)).await?;
        synced.await
    }
}

/// What an entry's body takes in memory beside its encoding.
fn body_bytes(entry: &Entry) -> usize {
    match &entry.payload {
        EntryPayload::Normal(proposal) => proposal.command.bulk_bytes().max(256),
        _ => 256,
    }
}

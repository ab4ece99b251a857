//! The ordered log: opaque entries by index, and three meta rows, in a sled database `raft/`.
//!
//! One writer thread with one queue does all writing, in order: it drains the queue, writes, flushes once, and then
//! answers everyone who waited. That is group commit without lingering. What is queued can be read at once.
//!
//! After the first error the store stays closed and every answer is an error: the node must stop, because nobody
//! knows what a failed sync left on disk.

mod queue;
mod rows;
mod sentinel;
mod state;
mod writer;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;

use crate::database::{Database, Options};
use crate::error::StorageError;
use queue::Shared;
use sentinel::Sentinel;
use state::Operation;

const CACHE_BYTES: u64 = 16 << 20;
const FOLDER: &str = "raft";

/// A row beside the entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum LogMeta {
    /// The last vote. Losing it is noticed at the next start.
    Vote,
    /// How far entries are known to be committed.
    Committed,
    /// Up to where entries were removed from the front. Written by [`LogStore::purge_through`] alone.
    Purged,
}

/// Called exactly once with the outcome, on the writer thread (or on the caller's, if the store is closed already).
///
/// Keep it short: all other answers wait. It must not block on another write to the same store.
pub type Done = Box<dyn FnOnce(Result<(), StorageError>) + Send>;

/// The log of one node. Clones share it; the last one to be dropped writes what is queued and closes it.
#[derive(Clone)]
pub struct LogStore {
    handle: Arc<Handle>,
}

struct Handle {
    shared: Arc<Shared>,
    writer: Option<JoinHandle<()>>,
    sentinel: Option<JoinHandle<()>>,
}

impl LogStore {
    /// Opens the log in a data folder, or makes an empty one.
    ///
    /// # Errors
    /// `TailLost` if entries or a vote are missing that were durable before: this node must not vote under its old
    /// id. `Corrupt` for damage, `SyncNotDurable` for a wrongly linked program, `Io`, `Sled`.
    pub fn open(dir: &Path) -> Result<Self, StorageError> {
        let database = Database::open(&dir.join(FOLDER), Options { cache_bytes: CACHE_BYTES })?;
        let contents = rows::load(&database)?;
        let sentinel = Sentinel::open(dir, contents.mark())?;
        if let Some(torn) = contents.torn {
            rows::remove_torn(&database, torn)?;
        }
        let shared = Arc::new(Shared::new(database, sentinel, contents));
        let spawn = |name: &str, body: fn(&Shared)| {
            let shared = shared.clone();
            std::thread::Builder::new()
                .name(name.to_owned())
                .spawn(move || {
                    if catch_unwind(AssertUnwindSafe(|| body(&shared))).is_err() {
                        // Whoever waits for this thread would wait for ever.
                        shared.fail(StorageError::Closed);
                    }
                })
                .map_err(|error| StorageError::io(dir, error))
        };
        let mut handle = Handle { shared: shared.clone(), writer: None, sentinel: None };
        handle.sentinel = Some(spawn("log-sentinel", sentinel::run)?);
        handle.writer = Some(spawn("log-writer", writer::run)?);
        Ok(LogStore { handle: Arc::new(handle) })
    }

    /// Queues entries, in ascending order of their index, to follow what is there. They can be read on return;
    /// `done` is called once they are durable. An entry may have up to 64 MiB.
    ///
    /// Blocks while the store [is full](LogStore::is_full).
    pub fn append(&self, entries: Vec<(u64, Bytes)>, done: Done) {
        self.shared().enqueue(Operation::Append { entries, done });
    }

    /// Whether 4096 operations or 64 MiB are queued: what is queued now waits first.
    pub fn is_full(&self) -> bool {
        self.shared().is_full()
    }

    /// Queues a meta row; `done` is called once it is durable. Readable on return.
    pub fn put_meta(&self, key: LogMeta, value: Vec<u8>, done: Done) {
        self.shared().enqueue(Operation::PutMeta { key, value, done });
    }

    /// Queues a meta row that is written with the next operation that syncs anyway. Readable on return.
    ///
    /// A value of more than some 4,000 bytes closes the store: there is nobody to answer.
    pub fn put_meta_unsynced(&self, key: LogMeta, value: Vec<u8>) {
        self.shared().put_unsynced(key, value);
    }

    /// Removes all entries from `index` on, from the end backwards. They are unreadable on return; `done` is called
    /// once the removal is durable.
    pub fn truncate_from(&self, index: u64, done: Done) {
        self.shared().enqueue(Operation::Truncate { index, done });
    }

    /// Removes all entries up to and including `index` from the front. They are unreadable on return.
    ///
    /// `purged` is kept as [`LogMeta::Purged`]; `done` is called once that row is durable. The entries themselves are
    /// removed after it, in pieces between other writes, also across a restart. An `index` at or past the last entry
    /// empties the log.
    pub fn purge_through(&self, index: u64, purged: Vec<u8>, done: Done) {
        self.shared().enqueue(Operation::Purge { index, purged, done });
    }

    /// The last value given for a meta row, durable or not.
    ///
    /// # Errors
    /// `Closed`.
    pub fn get_meta(&self, key: LogMeta) -> Result<Option<Vec<u8>>, StorageError> {
        self.shared().get_meta(key)
    }

    /// Entries with `start <= index < end`, ascending, up to `max_bytes` of payload, but at least one if there is any.
    ///
    /// Entries before the first or past the last are simply not in the answer.
    ///
    /// # Errors
    /// `Corrupt` for a damaged entry or a hole between entries; `Closed`, `Sled`. Never treat one as «no entries».
    pub fn read(&self, start: u64, end: u64, max_bytes: u64) -> Result<Vec<(u64, Bytes)>, StorageError> {
        self.shared().read(start, end, max_bytes)
    }

    /// The index of the first entry, `None` for an empty log.
    ///
    /// # Errors
    /// `Closed`.
    pub fn first_index(&self) -> Result<Option<u64>, StorageError> {
        self.shared().bounds().map(|bounds| bounds.map(|(first, _)| first))
    }

    /// The index of the last entry, durable or not; `None` for an empty log.
    ///
    /// # Errors
    /// `Closed`.
    pub fn last_index(&self) -> Result<Option<u64>, StorageError> {
        self.shared().bounds().map(|bounds| bounds.map(|(_, last)| last))
    }

    /// Payload bytes of the entries kept on disk, approximately: what was purged leaves this sum piece by piece.
    pub fn size_bytes(&self) -> u64 {
        self.shared().size_bytes.load(Ordering::Relaxed)
    }

    /// How many flushes were made since the log was opened.
    pub fn sync_count(&self) -> u64 {
        self.shared().sync_count.load(Ordering::Relaxed)
    }

    /// How long the writer thread has been at what it is writing; nothing while it has nothing to do. Never blocks.
    ///
    /// # Errors
    /// `Closed`: the thread has ended.
    pub fn busy_for(&self) -> Result<Duration, StorageError> {
        self.shared().database.check_open().map(|()| self.shared().pulse.busy_for())
    }

    fn shared(&self) -> &Shared {
        &self.handle.shared
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.close();
        for thread in [self.writer.take(), self.sentinel.take()].into_iter().flatten() {
            // A `done` may hold the last clone; a thread cannot wait for itself.
            if thread.thread().id() != std::thread::current().id() && thread.join().is_err() {
                tracing::error!("a thread of the log panicked");
            }
        }
        // The sentinel's thread may have ended before the writer's last flush.
        if !self.shared.is_closed()
            && let Err(error) = self.shared.sentinel.catch_up()
        {
            tracing::warn!(%error, "the log's sentinel is a little behind");
        }
    }
}

#[cfg(test)]
mod tests;

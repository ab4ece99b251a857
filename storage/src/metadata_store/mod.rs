//! The rows of the registry's state: ordered, written in atomic batches, read by many threads.
//!
//! They live in a sled database `state-<generation>`. A snapshot from another node is installed as a new generation
//! beside the current one, which is also how space comes back: sled keeps what it once took.
//!
//! Writes go to a memtable first and into sled some hundred milliseconds later, many at a time: sled syncs for each
//! batch, and nobody needs a row to be durable before the next flush, since the Raft log replays it.

mod drain;
mod generation;
mod install;
mod memtable;
mod view;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::{Mutex, RwLock};

use crate::database;
use crate::error::StorageError;
use generation::Generation;
pub use install::Install;
pub use view::View;

/// Rows of one atomic batch: a key with its new value, or `None` to delete it. The last one of a key wins.
pub type Rows = Vec<(Vec<u8>, Option<Vec<u8>>)>;

/// Rows that are there: a key with its value.
pub type PresentRows = Vec<(Vec<u8>, Vec<u8>)>;

/// The longest value in bytes; callers split what is longer over several rows.
pub const MAX_VALUE_BYTES: usize = database::MAX_VALUE_BYTES;

/// The longest key in bytes.
pub const MAX_KEY_BYTES: usize = 2048;

/// The state of one node. Clones share the store.
///
/// Any number of threads read while one thread writes. A scan sees each batch wholly or not at all. After any error
/// of sled the store stays closed, and the node must stop.
#[derive(Clone)]
pub struct MetadataStore {
    inner: Arc<Inner>,
}

struct Inner {
    dir: std::path::PathBuf,
    current: RwLock<Arc<Generation>>,
    /// Held while another generation is made durable and takes the current one's place.
    switching: Mutex<()>,
    /// The number that the next install gets.
    next_generation: AtomicU64,
}

impl MetadataStore {
    /// Opens the newest complete generation in a data folder and removes all others; makes generation 1 if there is
    /// none.
    ///
    /// # Errors
    /// `Io`, `Sled`; `SyncNotDurable` if the program is linked wrongly; `Corrupt` for an unreadable mark.
    pub fn open(dir: &Path) -> Result<Self, StorageError> {
        let current = generation::open_newest(dir)?;
        let next_generation = AtomicU64::new(current.number() + 1);
        let current = RwLock::new(Arc::new(current));
        let switching = Mutex::default();
        Ok(MetadataStore { inner: Arc::new(Inner { dir: dir.to_path_buf(), current, switching, next_generation }) })
    }

    /// The value of a key.
    ///
    /// # Errors
    /// `Sled`, `Closed`.
    pub fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StorageError> {
        self.current().get(key)
    }

    /// Up to `limit` rows whose keys begin with `prefix` and come after the full key `after`, ascending.
    ///
    /// Writes wait while a scan runs: ask for pages of some thousand rows at most.
    ///
    /// # Errors
    /// `Sled`, `Closed`.
    pub fn scan(&self, prefix: &[u8], after: Option<&[u8]>, limit: usize) -> Result<PresentRows, StorageError> {
        self.current().scan(prefix, after, limit)
    }

    /// Writes one atomic batch. It is readable on return, and durable after the next [`MetadataStore::flush`].
    ///
    /// After a crash the state is that after some write, and at least after those before the last flush. Waits while
    /// 4 MiB have not gone into sled yet, and while a view is being made.
    ///
    /// # Errors
    /// `TooLarge`, with nothing written; `Sled`, `Closed`, also for what became of earlier writes in the background.
    pub fn write(&self, rows: &Rows) -> Result<(), StorageError> {
        // Held for the whole batch: a switch in the middle would send it into the generation that goes away.
        let current = self.inner.current.read();
        current.write(rows)
    }

    /// Makes everything written so far durable. May run beside a writer.
    ///
    /// # Errors
    /// `Sled`, `Closed`: nothing may be taken for durable that was not so before.
    pub fn flush(&self) -> Result<(), StorageError> {
        self.current().flush()
    }

    /// Bytes of keys and values written since the last flush began.
    pub fn unflushed_bytes(&self) -> u64 {
        self.current().unflushed_bytes()
    }

    /// A consistent view of all rows as they are now; nothing is copied. It outlives an install.
    ///
    /// Blocks, and writes with it, until everything written is in sled.
    ///
    /// # Errors
    /// `Sled`, `Closed`.
    pub fn view(&self) -> Result<View, StorageError> {
        View::register(self.current())
    }

    /// How many views of the current generation are open.
    pub fn open_views(&self) -> usize {
        self.current().open_views()
    }

    /// Begins a new, empty generation beside the current one, which goes on serving.
    ///
    /// # Errors
    /// `Io`, `Sled`.
    pub fn begin_install(&self) -> Result<Install, StorageError> {
        let number = self.inner.next_generation.fetch_add(1, Ordering::Relaxed);
        Install::begin(self.clone(), number)
    }

    /// How long the thread that writes the current generation has been at what it is writing; nothing while it has
    /// nothing to do. Never blocks for long.
    ///
    /// # Errors
    /// `Closed`: the thread has ended.
    pub fn busy_for(&self) -> Result<Duration, StorageError> {
        self.current().busy_for()
    }

    /// The number of the current generation.
    pub fn generation(&self) -> u64 {
        self.current().number()
    }

    fn current(&self) -> Arc<Generation> {
        self.inner.current.read().clone()
    }

    fn dir(&self) -> &Path {
        &self.inner.dir
    }

    /// Marks a filled generation complete and serves it from now on; the former one goes when its last view is closed.
    fn switch_to(&self, generation: Generation) -> Result<(), StorageError> {
        let _turn = self.inner.switching.lock();
        if generation.number() < self.current().number() {
            // After a restart the highest complete generation wins: a lower one must never become complete late.
            let number = generation.number();
            generation.retire();
            return Err(StorageError::Superseded { generation: number });
        }
        if let Err(error) = generation.mark_complete() {
            generation.retire();
            return Err(error);
        }
        let former = std::mem::replace(&mut *self.inner.current.write(), Arc::new(generation));
        former.retire();
        Ok(())
    }
}

fn check_size(key: &[u8], value: Option<&[u8]>) -> Result<u64, StorageError> {
    let value_bytes = value.map_or(0, <[u8]>::len);
    let too_large = |what, bytes: usize, limit: usize| {
        Err(StorageError::TooLarge { what, bytes: bytes as u64, limit: limit as u64 })
    };
    if key.len() > MAX_KEY_BYTES {
        return too_large("a row's key", key.len(), MAX_KEY_BYTES);
    }
    if value_bytes > MAX_VALUE_BYTES {
        return too_large("a row's value", value_bytes, MAX_VALUE_BYTES);
    }
    Ok((key.len() + value_bytes) as u64)
}

#[cfg(test)]
mod tests;

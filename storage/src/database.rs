//! sled, held at arm's length: its settings in one place, its panics turned into errors, closed after the first.

use std::io::ErrorKind;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::durable_file;
use crate::error::StorageError;
use crate::sync;

/// A database of this process that was just dropped may hold sled's own lock a moment longer, in a thread of sled's
/// pool. Two processes are kept apart by the data folder's lock, so waiting here is safe.
const LOCK_PATIENCE: Duration = Duration::from_secs(10);

/// The largest value ever handed to sled, in bytes. Pages over about 128 KiB go to files that sled never syncs, and a
/// leaf splits only past 16 entries.
pub(crate) const MAX_VALUE_BYTES: usize = 4096;

/// Rows of a batch whose replaced pages one round frees at the least: it takes eight bags of 64 pages.
const ROWS_FREED: usize = 64;

pub(crate) struct Options {
    /// sled's page cache.
    pub(crate) cache_bytes: u64,
}

/// An open sled database. After the first error or panic every call answers `Closed`.
pub(crate) struct Database {
    // `None` only while dropping.
    db: Option<sled::Db>,
    path: PathBuf,
    failed: AtomicBool,
}

impl Database {
    pub(crate) fn open(path: &Path, options: Options) -> Result<Self, StorageError> {
        sync::check_linked()?;
        durable_file::create_dir_durably(path)?;
        let config = sled::Config::new()
            .path(path)
            .cache_capacity(options.cache_bytes)
            .mode(sled::Mode::HighThroughput)
            // Only the writer decides when to flush: group commit, and every flush is counted and checked.
            .flush_every_ms(None)
            .use_compression(false);
        let started = Instant::now();
        let db = loop {
            match caught("opening", || config.open()) {
                Ok(db) => break db,
                Err(error) if is_locked(&error) && started.elapsed() < LOCK_PATIENCE => {
                    std::thread::sleep(Duration::from_millis(10));
                }
                Err(error) => return Err(error),
            }
        };
        // sled creates its files without syncing the folder that names them.
        durable_file::sync_folder(path)?;
        Ok(Database { db: Some(db), path: path.to_path_buf(), failed: AtomicBool::new(false) })
    }

    /// Runs sled code; an error or a panic closes this database for good.
    pub(crate) fn run<T>(
        &self,
        doing: &'static str,
        work: impl FnOnce(&sled::Db) -> sled::Result<T>,
    ) -> Result<T, StorageError> {
        let db = match &self.db {
            Some(db) if !self.failed.load(Ordering::Acquire) => db,
            _ => return Err(StorageError::Closed),
        };
        caught(doing, || work(db)).inspect_err(|error| {
            self.failed.store(true, Ordering::Release);
            tracing::error!(path = %self.path.display(), %error, "sled failed, the database is closed");
        })
    }

    /// Writes a batch of so many rows, and lets go of the memory that it set free.
    ///
    /// sled leaves the pages that a write replaces to crossbeam's epochs, which free a few at every 128th access. A batch
    /// is one access, however many rows it has: a node that writes more than it reads would grow without end.
    pub(crate) fn apply(&self, doing: &'static str, batch: sled::Batch, rows: usize) -> Result<(), StorageError> {
        self.run(doing, |db| db.apply_batch(batch))?;
        (0..=rows / ROWS_FREED).for_each(|_| crossbeam_epoch::pin().flush());
        Ok(())
    }

    /// For answers that need no sled: they too must end with the first error.
    pub(crate) fn check_open(&self) -> Result<(), StorageError> {
        if self.failed.load(Ordering::Acquire) { Err(StorageError::Closed) } else { Ok(()) }
    }

    pub(crate) fn close(&self) {
        self.failed.store(true, Ordering::Release);
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        let db = self.db.take();
        // Dropping flushes, and sled unwraps the result of its last sync.
        if catch_unwind(AssertUnwindSafe(|| drop(db))).is_err() {
            tracing::error!(path = %self.path.display(), "sled panicked while closing");
        }
    }
}

fn caught<T>(doing: &'static str, work: impl FnOnce() -> sled::Result<T>) -> Result<T, StorageError> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(StorageError::Sled { doing, message: error.to_string() }),
        Err(payload) => {
            let text = payload.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or("no message");
            Err(StorageError::Sled { doing, message: format!("panicked: {text}") })
        }
    }
}

fn is_locked(error: &StorageError) -> bool {
    matches!(error, StorageError::Sled { message, .. } if message.contains("could not acquire lock"))
}

/// Removes a folder with all it holds. sled's threads may still be writing a last file into it: try again then.
pub(crate) fn remove_folder(path: &Path) -> Result<(), StorageError> {
    let mut attempts = 0;
    loop {
        match std::fs::remove_dir_all(path) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            Err(_) if attempts < 50 => attempts += 1,
            Err(error) => return Err(StorageError::io(path, error)),
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_an_error_and_closes_the_database() {
        let dir = tempfile::tempdir().unwrap();
        let database = Database::open(dir.path(), Options { cache_bytes: 1 << 20 }).unwrap();
        let result: Result<(), _> = database.run("testing", |_| std::panic::panic_any("on purpose"));
        assert!(matches!(result, Err(StorageError::Sled { message, .. }) if message.contains("on purpose")));
        let after = database.run("reading", |db| db.get(b"key"));
        assert!(matches!(after, Err(StorageError::Closed)));
    }
}

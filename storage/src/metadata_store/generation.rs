//! One sled database of rows, in its folder `state-<generation>`, with the views that are open on it.

use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::{Mutex, RwLock};

use super::view::SetAside;
use super::{PresentRows, Rows, check_size};
use crate::database::{self, Database, Options};
use crate::durable_file;
use crate::error::StorageError;
use crate::format;

const CACHE_BYTES: u64 = 64 << 20;
const FOLDER_PREFIX: &str = "state-";
/// Inside the folder; a generation without it was never switched to.
const COMPLETE_FILE: &str = "complete";
const COMPLETE_VERSION: u8 = 1;

pub(super) struct Generation {
    number: u64,
    // `None` only while dropping: the database must be closed before its folder goes.
    database: Option<Database>,
    folder: PathBuf,
    unflushed_bytes: AtomicU64,
    /// Open views. Written under for each batch, read under for each scan: that makes a batch atomic for both.
    views: RwLock<Vec<Weak<Mutex<SetAside>>>>,
    retired: AtomicBool,
}

/// Opens the newest complete generation and removes all other folders; makes generation 1 if there is none.
pub(super) fn open_newest(dir: &Path) -> Result<Generation, StorageError> {
    durable_file::create_dir_durably(dir)?;
    let mut newest = None;
    let folders = list(dir)?;
    for &number in &folders {
        if is_complete(dir, number)? {
            newest = newest.max(Some(number));
        }
    }
    for number in folders {
        if Some(number) != newest {
            remove(&folder(dir, number))?;
        }
    }
    match newest {
        Some(number) => Generation::open(dir, number),
        None => {
            let first = Generation::open(dir, 1)?;
            first.mark_complete()?;
            Ok(first)
        }
    }
}

fn folder(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("{FOLDER_PREFIX}{number}"))
}

fn list(dir: &Path) -> Result<Vec<u64>, StorageError> {
    let entries = std::fs::read_dir(dir).map_err(|error| StorageError::io(dir, error))?;
    let mut numbers = Vec::new();
    for entry in entries {
        let name = entry.map_err(|error| StorageError::io(dir, error))?.file_name();
        let rest = name.to_str().and_then(|name| name.strip_prefix(FOLDER_PREFIX));
        numbers.extend(rest.and_then(|rest| rest.parse::<u64>().ok()));
    }
    Ok(numbers)
}

fn is_complete(dir: &Path, number: u64) -> Result<bool, StorageError> {
    let Some(bytes) = durable_file::read(&folder(dir, number).join(COMPLETE_FILE))? else {
        return Ok(false);
    };
    let payload = format::open(format::kind::GENERATION, COMPLETE_VERSION, &bytes)?;
    if payload == number.to_le_bytes() {
        Ok(true)
    } else {
        Err(StorageError::corrupt(format!("the mark of generation {number} belongs to another one")))
    }
}

/// Removes the mark first: half a generation must never look complete.
fn remove(folder: &Path) -> Result<(), StorageError> {
    durable_file::remove(&folder.join(COMPLETE_FILE))?;
    database::remove_folder(folder)
}

impl Generation {
    pub(super) fn open(dir: &Path, number: u64) -> Result<Self, StorageError> {
        let folder = folder(dir, number);
        let database = Some(Database::open(&folder, Options { cache_bytes: CACHE_BYTES })?);
        Ok(Generation {
            number,
            database,
            folder,
            unflushed_bytes: AtomicU64::new(0),
            views: RwLock::default(),
            retired: AtomicBool::new(false),
        })
    }

    pub(super) fn number(&self) -> u64 {
        self.number
    }

    /// Everything is flushed and from now on this generation counts, whatever happens.
    pub(super) fn mark_complete(&self) -> Result<(), StorageError> {
        self.flush()?;
        durable_file::sync_folder(&self.folder)?;
        let mark = format::seal(format::kind::GENERATION, COMPLETE_VERSION, &self.number.to_le_bytes());
        durable_file::write_atomically(&self.folder.join(COMPLETE_FILE), &mark)
    }

    /// Lets the folder go as soon as nobody holds this generation any more.
    pub(super) fn retire(&self) {
        self.retired.store(true, Ordering::Release);
    }

    pub(super) fn database(&self) -> Result<&Database, StorageError> {
        self.database.as_ref().ok_or(StorageError::Closed)
    }

    pub(super) fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StorageError> {
        let value = self.database()?.run("reading a row", |db| db.get(key))?;
        Ok(value.map(|value| value.to_vec()))
    }

    pub(super) fn scan(&self, prefix: &[u8], after: Option<&[u8]>, limit: usize) -> Result<PresentRows, StorageError> {
        let start = match after {
            Some(after) if after >= prefix => Bound::Excluded(after),
            _ => Bound::Included(prefix),
        };
        let _no_batch = self.views.read();
        self.database()?.run("scanning rows", |db| {
            let mut rows = Vec::new();
            if limit == 0 {
                return Ok(rows);
            }
            for row in db.range::<&[u8], _>((start, Bound::Unbounded)) {
                let (key, value) = row?;
                if !key.starts_with(prefix) {
                    break;
                }
                rows.push((key.to_vec(), value.to_vec()));
                if rows.len() == limit {
                    break;
                }
            }
            Ok(rows)
        })
    }

    pub(super) fn write(&self, rows: &Rows) -> Result<(), StorageError> {
        let mut bytes = 0;
        let mut batch = sled::Batch::default();
        for (key, value) in rows {
            bytes += check_size(key, value.as_deref())?;
            match value {
                Some(value) => batch.insert(key.as_slice(), value.as_slice()),
                None => batch.remove(key.as_slice()),
            }
        }
        let database = self.database()?;
        let mut views = self.views.write();
        views.retain(|view| view.strong_count() > 0);
        let open: Vec<_> = views.iter().filter_map(Weak::upgrade).collect();
        // Locked until the batch is in: a reader between «set aside» and «written» would take an old row twice, or a
        // new one at all.
        let mut locked: Vec<_> = open.iter().map(|view| view.lock()).collect();
        for (key, _) in rows {
            let concerned = locked.iter().any(|view| view.wants(key));
            if concerned {
                let old = self.get(key)?;
                locked.iter_mut().for_each(|view| view.keep(key, old.as_deref()));
            }
        }
        self.unflushed_bytes.fetch_add(bytes, Ordering::Relaxed);
        database.run("writing rows", |db| db.apply_batch(batch))
    }

    /// Rows of a generation that nobody reads yet: no views to think of.
    pub(super) fn load(&self, rows: &[(Vec<u8>, Vec<u8>)]) -> Result<(), StorageError> {
        let mut bytes = 0;
        let mut batch = sled::Batch::default();
        for (key, value) in rows {
            bytes += check_size(key, Some(value))?;
            batch.insert(key.as_slice(), value.as_slice());
        }
        self.unflushed_bytes.fetch_add(bytes, Ordering::Relaxed);
        self.database()?.run("loading rows", |db| db.apply_batch(batch))
    }

    pub(super) fn flush(&self) -> Result<(), StorageError> {
        let before = self.unflushed_bytes.load(Ordering::Relaxed);
        self.database()?.run("flushing rows", |db| db.flush())?;
        // Two flushes at a time may both subtract; the count is a hint and must only not wrap.
        let subtract = |bytes: u64| Some(bytes.saturating_sub(before));
        let _ = self.unflushed_bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, subtract);
        Ok(())
    }

    pub(super) fn unflushed_bytes(&self) -> u64 {
        self.unflushed_bytes.load(Ordering::Relaxed)
    }

    pub(super) fn register(&self, view: &Arc<Mutex<SetAside>>) {
        self.views.write().push(Arc::downgrade(view));
    }

    pub(super) fn open_views(&self) -> usize {
        self.views.read().iter().filter(|view| view.strong_count() > 0).count()
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        drop(self.database.take());
        if self.retired.load(Ordering::Acquire)
            && let Err(error) = remove(&self.folder)
        {
            // The next start removes it.
            tracing::warn!(folder = %self.folder.display(), %error, "an old generation stays behind");
        }
    }
}

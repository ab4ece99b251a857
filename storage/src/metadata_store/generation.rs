//! One sled database of rows, in its folder `state-<generation>`, with the memtable and the thread that fills it.

use std::ops::Bound;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use super::drain::Buffered;
use super::{PresentRows, Rows};
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
    buffered: Option<Arc<Buffered>>,
    writer: Option<JoinHandle<()>>,
    folder: PathBuf,
    open_views: AtomicUsize,
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
        let database = Database::open(&folder, Options { cache_bytes: CACHE_BYTES })?;
        let buffered = Arc::new(Buffered::new(database));
        let shared = buffered.clone();
        let writer = std::thread::Builder::new()
            .name("state-writer".into())
            .spawn(move || {
                if catch_unwind(AssertUnwindSafe(|| shared.run())).is_err() {
                    // Whoever waits for a drain would wait for ever.
                    shared.fail(StorageError::Closed);
                }
            })
            .map_err(|error| StorageError::io(&folder, error))?;
        Ok(Generation {
            number,
            buffered: Some(buffered),
            writer: Some(writer),
            folder,
            open_views: AtomicUsize::new(0),
            retired: AtomicBool::new(false),
        })
    }

    pub(super) fn number(&self) -> u64 {
        self.number
    }

    pub(super) fn busy_for(&self) -> Result<Duration, StorageError> {
        let buffered = self.buffered()?;
        buffered.database.check_open().map(|()| buffered.pulse.busy_for())
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

    pub(super) fn buffered(&self) -> Result<&Buffered, StorageError> {
        self.buffered.as_deref().ok_or(StorageError::Closed)
    }

    pub(super) fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StorageError> {
        let buffered = self.buffered()?;
        buffered.database.check_open()?;
        // A write between here and sled may be drained by then: sled's row is only newer.
        let known = buffered.tables.read().get(key);
        if let Some(value) = known {
            return Ok(value);
        }
        let value = buffered.database.run("reading a row", |db| db.get(key))?;
        Ok(value.map(|value| value.to_vec()))
    }

    pub(super) fn scan(&self, prefix: &[u8], after: Option<&[u8]>, limit: usize) -> Result<PresentRows, StorageError> {
        let start = match after {
            Some(after) if after >= prefix => Bound::Excluded(after),
            _ => Bound::Included(prefix),
        };
        let buffered = self.buffered()?;
        // Held to the end: no batch comes in between, and a drain that runs stays hidden behind its frozen table.
        let tables = buffered.tables.read();
        buffered.database.run("scanning rows", |db| {
            tables.merge(prefix, start, limit, db.range::<&[u8], _>((start, Bound::Unbounded)))
        })
    }

    pub(super) fn write(&self, rows: &Rows) -> Result<(), StorageError> {
        self.buffered()?.write(rows)
    }

    pub(super) fn load(&self, rows: &[(Vec<u8>, Vec<u8>)]) -> Result<(), StorageError> {
        self.buffered()?.load(rows)
    }

    pub(super) fn flush(&self) -> Result<(), StorageError> {
        self.buffered()?.flush()
    }

    pub(super) fn unflushed_bytes(&self) -> u64 {
        self.buffered.as_ref().map_or(0, |buffered| buffered.unflushed_bytes())
    }

    /// Counts the views. The references to them do not tell: a drain holds some too.
    pub(super) fn view_opened(&self) {
        self.open_views.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn view_closed(&self) {
        self.open_views.fetch_sub(1, Ordering::Relaxed);
    }

    pub(super) fn open_views(&self) -> usize {
        self.open_views.load(Ordering::Relaxed)
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        let retired = self.retired.load(Ordering::Acquire);
        if let Some(buffered) = self.buffered.take() {
            if retired {
                // Nobody will read these rows again: the last drain is spared.
                buffered.fail(StorageError::Closed);
            }
            buffered.close();
            // It caught its own panic, and holds the other reference to the database.
            let _ = self.writer.take().map(JoinHandle::join);
        }
        if retired && let Err(error) = remove(&self.folder) {
            // The next start removes it.
            tracing::warn!(folder = %self.folder.display(), %error, "an old generation stays behind");
        }
    }
}

//! Writes gather in a memtable, and the thread «state-writer» drains them into sled.
//!
//! A drain is one atomic batch of whole writes, in their order: whatever a crash leaves of sled is the state after
//! some write, and at least after those that were flushed. The Raft log brings back the rest.
//!
//! Locks are taken in the order control, tables; the list of views and each view stand apart. A drain holds neither
//! control nor tables while sled works.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard, RwLock};

use super::memtable::{Memtable, Table};
use super::view::SetAside;
use super::{Rows, check_size};
use crate::database::Database;
use crate::error::StorageError;
use crate::pulse::Pulse;

/// A drain begins when the active table takes this much memory, in bytes…
const DRAIN_BYTES: usize = 256 << 10;
/// …or this long after the first row came into it.
const DRAIN_AFTER: Duration = Duration::from_millis(200);
/// Writes wait while the active table takes this much memory, in bytes.
const MAX_ACTIVE_BYTES: usize = 4 << 20;

/// A database, with what was written and is not in it yet.
pub(super) struct Buffered {
    pub(super) database: Database,
    pub(super) pulse: Pulse,
    pub(super) tables: RwLock<Memtable>,
    control: Mutex<Control>,
    /// Something for the thread to do.
    work: Condvar,
    /// For all others: a drain began or ended, a view is registered, all is over.
    progress: Condvar,
    unflushed_bytes: AtomicU64,
    views: Mutex<Vec<Weak<Mutex<SetAside>>>>,
}

#[derive(Default)]
struct Control {
    /// Batches written, the last one's number.
    written: u64,
    /// The number of the last batch that is in sled.
    drained: u64,
    /// Somebody waits until this batch is in sled.
    wanted: u64,
    active_bytes: usize,
    /// When the active table is drained at the latest; `None` while it is empty.
    due: Option<Instant>,
    /// How many views are being made. Nothing is written meanwhile.
    holds: usize,
    closing: bool,
    failed: Option<StorageError>,
}

impl Control {
    fn must_drain(&self) -> bool {
        let wanted = self.closing || self.wanted > self.drained || self.active_bytes >= DRAIN_BYTES;
        self.due.is_some_and(|due| wanted || due <= Instant::now())
    }
}

impl Buffered {
    pub(super) fn new(database: Database) -> Self {
        Buffered {
            database,
            pulse: Pulse::default(),
            tables: RwLock::default(),
            control: Mutex::default(),
            work: Condvar::new(),
            progress: Condvar::new(),
            unflushed_bytes: AtomicU64::new(0),
            views: Mutex::default(),
        }
    }

    /// Takes one batch into the memtable. Waits while that is full, or while a view is being made.
    pub(super) fn write(&self, rows: &Rows) -> Result<(), StorageError> {
        let mut bytes = 0;
        for (key, value) in rows {
            bytes += check_size(key, value.as_deref())?;
        }
        let rows = rows.clone();
        let mut control = self.control.lock();
        while control.failed.is_none() && (control.holds > 0 || control.active_bytes >= MAX_ACTIVE_BYTES) {
            self.progress.wait(&mut control);
        }
        self.check(&control)?;
        if rows.is_empty() {
            return Ok(());
        }
        control.active_bytes = self.tables.write().insert(rows);
        control.written += 1;
        self.unflushed_bytes.fetch_add(bytes, Ordering::Relaxed);
        let first = control.due.is_none();
        if first {
            control.due = Some(Instant::now() + DRAIN_AFTER);
        }
        if first || control.active_bytes >= DRAIN_BYTES {
            self.work.notify_one();
        }
        Ok(())
    }

    /// Rows of a generation that nobody reads or writes otherwise yet: straight into sled.
    ///
    /// One by one: sled frees the pages that a write replaces as more writes come, a few for each, and a batch counts as
    /// one. With batches of thousands of rows it kept several times the size of all that was loaded.
    pub(super) fn load(&self, rows: &[(Vec<u8>, Vec<u8>)]) -> Result<(), StorageError> {
        let mut bytes = 0;
        for (key, value) in rows {
            bytes += check_size(key, Some(value))?;
        }
        self.unflushed_bytes.fetch_add(bytes, Ordering::Relaxed);
        self.database.run("loading rows", |db| {
            rows.iter().try_for_each(|(key, value)| db.insert(key.as_slice(), value.as_slice()).map(drop))
        })
    }

    /// Makes everything written before the call durable.
    pub(super) fn flush(&self) -> Result<(), StorageError> {
        let mut control = self.control.lock();
        let before = self.unflushed_bytes.load(Ordering::Relaxed);
        self.drain_all(&mut control)?;
        drop(control);
        self.database.run("flushing rows", |db| db.flush())?;
        // Two flushes at a time may both subtract; the count is a hint and must only not wrap.
        let subtract = |bytes: u64| Some(bytes.saturating_sub(before));
        let _ = self.unflushed_bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, subtract);
        Ok(())
    }

    pub(super) fn unflushed_bytes(&self) -> u64 {
        self.unflushed_bytes.load(Ordering::Relaxed)
    }

    /// Makes a view of this moment: all that was written is in sled by then, and what comes later is set aside first.
    pub(super) fn register(&self, view: &Arc<Mutex<SetAside>>) -> Result<(), StorageError> {
        let mut control = self.control.lock();
        control.holds += 1;
        let result = self.drain_all(&mut control);
        if result.is_ok() {
            self.views.lock().push(Arc::downgrade(view));
        }
        control.holds -= 1;
        self.progress.notify_all();
        result
    }

    /// Waits until everything written so far is in sled.
    fn drain_all(&self, control: &mut MutexGuard<'_, Control>) -> Result<(), StorageError> {
        let last = control.written;
        control.wanted = control.wanted.max(last);
        self.work.notify_one();
        while control.failed.is_none() && control.drained < last {
            self.progress.wait(control);
        }
        self.check(control)
    }

    fn check(&self, control: &Control) -> Result<(), StorageError> {
        control.failed.clone().map_or_else(|| self.database.check_open(), Err)
    }

    /// The thread: drains until the store is closed or fails.
    pub(super) fn run(&self) {
        while let Some((table, last)) = self.next() {
            self.pulse.begin();
            if let Err(error) = self.drain(&table) {
                return self.fail(error);
            }
            self.pulse.end();
            let mut control = self.control.lock();
            self.tables.write().release();
            control.drained = last;
            self.progress.notify_all();
        }
    }

    /// Waits for a drain to be due; returns its table, and the number of the last batch in it.
    fn next(&self) -> Option<(Arc<Table>, u64)> {
        let mut control = self.control.lock();
        while control.failed.is_none() {
            if control.must_drain() {
                let table = self.tables.write().freeze();
                control.due = None;
                control.active_bytes = 0;
                self.progress.notify_all();
                return Some((table, control.written));
            }
            match control.due {
                _ if control.closing => return None,
                Some(due) => drop(self.work.wait_until(&mut control, due)),
                None => self.work.wait(&mut control),
            }
        }
        None
    }

    fn drain(&self, table: &Table) -> Result<(), StorageError> {
        let mut batch = sled::Batch::default();
        for (key, value) in table.iter() {
            match value {
                Some(value) => batch.insert(key, value),
                None => batch.remove(key),
            }
        }
        // No view can come during a drain, only go.
        let open: Vec<_> = {
            let mut views = self.views.lock();
            views.retain(|view| view.strong_count() > 0);
            views.iter().filter_map(Weak::upgrade).collect()
        };
        // Locked until the batch is in: a reader between «set aside» and «written» would take an old row twice, or a
        // new one at all.
        let mut locked: Vec<_> = open.iter().map(|view| view.lock()).collect();
        for (key, _) in table.iter() {
            let concerned = locked.iter().any(|view| view.wants(key));
            if concerned {
                let old = self.database.run("reading a row to set aside", |db| db.get(key))?;
                locked.iter_mut().for_each(|view| view.keep(key, old.as_deref()));
            }
        }
        self.database.apply("writing rows", batch, table.len())
    }

    #[cfg(test)]
    pub(super) fn is_draining(&self) -> bool {
        self.tables.read().is_frozen()
    }

    /// Ends everything: what waits gets this error, and so does whoever comes later.
    pub(super) fn fail(&self, error: StorageError) {
        let mut control = self.control.lock();
        self.database.close();
        control.failed.get_or_insert(error);
        self.work.notify_one();
        self.progress.notify_all();
    }

    /// Lets the thread end, after a last drain.
    pub(super) fn close(&self) {
        self.control.lock().closing = true;
        self.work.notify_one();
    }
}

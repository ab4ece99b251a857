//! What callers and the writer thread share: the lock, the waiting, and the end.

use std::sync::OnceLock;
use std::sync::atomic::AtomicU64;
use std::thread::ThreadId;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::{Condvar, Mutex};

use super::LogMeta;
use super::rows::{Contents, MAX_META_BYTES};
use super::sentinel::{Mark, Sentinel};
use super::state::{Operation, Queued, State, Work, slot, too_large};
use crate::database::Database;
use crate::error::StorageError;
use crate::pulse::Pulse;

/// Payload bytes written with one flush, so that a batch stays small beside sled's cache.
const MAX_GROUP_BYTES: usize = 8 << 20;
/// Rows without a sync of their own that may wait for one.
const MAX_IDLE_ROWS: usize = 64;
/// How long they may, when nothing else is written.
const MAX_IDLE: Duration = Duration::from_millis(500);

pub(super) struct Shared {
    pub(super) database: Database,
    pub(super) sentinel: Sentinel,
    pub(super) size_bytes: AtomicU64,
    pub(super) sync_count: AtomicU64,
    /// What is durable at the start, and whether a purge is to be ended: for the writer.
    pub(super) start: (Mark, Option<u64>),
    pub(super) writer: OnceLock<ThreadId>,
    pub(super) pulse: Pulse,
    state: Mutex<State>,
    work_queued: Condvar,
    room: Condvar,
    closing: Condvar,
}

impl Shared {
    pub(super) fn new(database: Database, sentinel: Sentinel, contents: Contents) -> Self {
        let start = (contents.mark(), contents.leftovers.then_some(contents.floor));
        Shared {
            database,
            sentinel,
            size_bytes: AtomicU64::new(contents.size_bytes),
            sync_count: AtomicU64::new(0),
            start,
            writer: OnceLock::new(),
            pulse: Pulse::default(),
            state: Mutex::new(State::new(contents)),
            work_queued: Condvar::new(),
            room: Condvar::new(),
            closing: Condvar::new(),
        }
    }

    pub(super) fn enqueue(&self, operation: Operation) {
        let mut state = self.state.lock();
        // A `done` may queue more; if the writer waited for room here it would wait for itself.
        while state.is_full() && !state.closed && self.writer.get() != Some(&std::thread::current().id()) {
            self.room.wait(&mut state);
        }
        let refused = if state.closed { Err(StorageError::Closed) } else { state.check(&operation) };
        if let Err(error) = refused {
            drop(state);
            let (Operation::Append { done, .. }
            | Operation::PutMeta { done, .. }
            | Operation::Truncate { done, .. }
            | Operation::Purge { done, .. }) = operation;
            return done(Err(error));
        }
        state.accept(operation);
        self.work_queued.notify_one();
    }

    pub(super) fn put_unsynced(&self, key: LogMeta, value: Vec<u8>) {
        if value.len() > MAX_META_BYTES {
            return self.fail(too_large("a meta row of the log", value.len(), MAX_META_BYTES));
        }
        let mut state = self.state.lock();
        if state.closed {
            return;
        }
        let row = state.set_meta(key, value);
        match state.queue.back_mut() {
            // Nothing lies between: the newer value takes the older one's place.
            Some(Queued { work: Work::PutMeta(last, old), done: None, .. }) if *last == key => *old = row,
            _ => state.push(Work::PutMeta(key, row), None, 0),
        }
        // The first one, so that the writer begins to count the time.
        if state.queue.len() >= MAX_IDLE_ROWS || state.queue.len() == 1 {
            self.work_queued.notify_one();
        }
    }

    /// Waits for work and takes what one flush shall make durable; `None` when there is none and never will be.
    /// With `busy` it does not wait.
    pub(super) fn take(&self, busy: bool) -> Option<Vec<Queued>> {
        let mut state = self.state.lock();
        let mut waited_long = false;
        loop {
            if state.closed || (state.closing && state.queue.is_empty()) {
                return None;
            }
            let is_work = !state.queue.is_empty();
            let is_urgent = state.closing || state.waited_for > 0 || state.queue.len() >= MAX_IDLE_ROWS;
            if busy || is_urgent || (is_work && waited_long) {
                break;
            }
            match is_work {
                true => waited_long = self.work_queued.wait_for(&mut state, MAX_IDLE).timed_out(),
                false => self.work_queued.wait(&mut state),
            }
        }
        let mut taken = Vec::new();
        let mut bytes = 0;
        while bytes < MAX_GROUP_BYTES
            && let Some(next) = state.queue.pop_front()
        {
            bytes += next.bytes;
            state.waited_for -= usize::from(next.done.is_some());
            taken.push(next);
        }
        state.queued_bytes -= bytes;
        self.room.notify_all();
        Some(taken)
    }

    /// Work up to this sequence is in sled.
    pub(super) fn settle(&self, sequence: u64) {
        let mut state = self.state.lock();
        while state.pending.first_key_value().is_some_and(|(_, (written, _))| *written <= sequence) {
            state.pending.pop_first();
        }
        while state.truncations.front().is_some_and(|(executed, _)| *executed <= sequence) {
            state.truncations.pop_front();
        }
    }

    /// Closes the store for good and answers all who wait with the error.
    pub(super) fn fail(&self, error: StorageError) {
        let abandoned: Vec<Queued> = {
            let mut state = self.state.lock();
            if !state.closed {
                tracing::error!(%error, "the log is closed: nothing more will be stored");
            }
            state.closed = true;
            state.pending.clear();
            state.waited_for = 0;
            state.queued_bytes = 0;
            state.queue.drain(..).collect()
        };
        self.database.close();
        self.work_queued.notify_all();
        self.room.notify_all();
        self.closing.notify_all();
        for done in abandoned.into_iter().filter_map(|queued| queued.done) {
            done(Err(error.clone()));
        }
    }

    /// What is queued will still be written.
    pub(super) fn close(&self) {
        self.state.lock().closing = true;
        self.work_queued.notify_all();
        self.closing.notify_all();
    }

    /// Waits; true once the store is closing or closed.
    pub(super) fn wait_for_close(&self, timeout: Duration) -> bool {
        let mut state = self.state.lock();
        if !state.closing && !state.closed {
            self.closing.wait_for(&mut state, timeout);
        }
        state.closing || state.closed
    }

    pub(super) fn is_full(&self) -> bool {
        self.state.lock().is_full()
    }

    pub(super) fn is_closed(&self) -> bool {
        self.state.lock().closed
    }

    pub(super) fn get_meta(&self, key: LogMeta) -> Result<Option<Vec<u8>>, StorageError> {
        let state = self.state.lock();
        if state.closed {
            return Err(StorageError::Closed);
        }
        Ok(state.meta[slot(key)].as_ref().map(|row| row.value.clone()))
    }

    pub(super) fn bounds(&self) -> Result<Option<(u64, u64)>, StorageError> {
        let state = self.state.lock();
        if state.closed { Err(StorageError::Closed) } else { Ok(state.bounds) }
    }

    pub(super) fn read(&self, start: u64, end: u64, max_bytes: u64) -> Result<Vec<(u64, Bytes)>, StorageError> {
        loop {
            let Some(plan) = self.state.lock().plan(start, end, max_bytes)? else {
                return Ok(Vec::new());
            };
            let result = plan.carry_out(&self.database);
            // Entries removed while they were read look like damage: look again at what is left.
            let changed = self.state.lock().removals != plan.removals;
            match result {
                Err(StorageError::Corrupt { .. }) if changed => {}
                result => return result,
            }
        }
    }
}

//! What callers and the writer thread share: the queue, and the log as it will be once the queue is written.

use std::collections::{BTreeMap, VecDeque};
use std::sync::OnceLock;
use std::sync::atomic::AtomicU64;
use std::thread::ThreadId;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::{Condvar, Mutex};

use super::rows::{self, ALL_META, Contents, MAX_ENTRY_BYTES, MAX_META_BYTES, MetaRow};
use super::sentinel::{Mark, Sentinel};
use super::{Done, LogMeta};
use crate::database::Database;
use crate::error::StorageError;

/// Operations that may wait; further callers block.
const MAX_QUEUED_OPERATIONS: usize = 4096;
/// Payload bytes that may wait; further callers block.
const MAX_QUEUED_BYTES: usize = 64 << 20;
/// Payload bytes written with one flush, so that a batch stays small beside sled's cache.
const MAX_GROUP_BYTES: usize = 8 << 20;
/// Rows without a sync of their own that may wait for one.
const MAX_IDLE_ROWS: usize = 64;

/// What a caller asks for.
pub(super) enum Operation {
    Append {
        entries: Vec<(u64, Bytes)>,
        done: Done,
    },
    PutMeta {
        key: LogMeta,
        value: Vec<u8>,
        done: Done,
    },
    Truncate {
        index: u64,
        done: Done,
    },
    Purge {
        index: u64,
        purged: Vec<u8>,
        done: Done,
    },
}

/// What the writer does.
pub(super) enum Work {
    Append(Vec<(u64, Bytes)>),
    PutMeta(LogMeta, MetaRow),
    /// The index from which on all goes, and the lowest index that is not purged.
    Truncate(u64, u64),
    /// The row to record, and the lowest index to keep.
    Purge(MetaRow, u64),
}

/// One queued piece of work; without `done` it wants no sync of its own.
pub(super) struct Queued {
    pub(super) sequence: u64,
    pub(super) work: Work,
    pub(super) done: Option<Done>,
    bytes: usize,
}

pub(super) struct Shared {
    pub(super) database: Database,
    pub(super) sentinel: Sentinel,
    pub(super) size_bytes: AtomicU64,
    pub(super) sync_count: AtomicU64,
    /// What is durable at the start, and whether a purge is to be ended: for the writer.
    pub(super) start: (Mark, Option<u64>),
    pub(super) writer: OnceLock<ThreadId>,
    state: Mutex<State>,
    work_queued: Condvar,
    room: Condvar,
    closing: Condvar,
}

struct State {
    queue: VecDeque<Queued>,
    queued_bytes: usize,
    /// Queued work that somebody waits for.
    waited_for: usize,
    next_sequence: u64,
    closing: bool,
    closed: bool,
    meta: [Option<MetaRow>; 3],
    floor: u64,
    bounds: Option<(u64, u64)>,
    /// Entries that are not yet known to be in sled, always the end of the log, with their work's sequence.
    pending: BTreeMap<u64, (u64, Bytes)>,
    /// Truncations not yet carried out: sequence and index.
    truncations: VecDeque<(u64, u64)>,
    /// Counts truncations and purges, so that a reader knows that the log changed under it.
    removals: u64,
}

impl Shared {
    pub(super) fn new(database: Database, sentinel: Sentinel, contents: Contents) -> Self {
        let start = (
            contents.mark(),
            contents.leftovers.then_some(contents.floor),
        );
        Shared {
            database,
            sentinel,
            size_bytes: AtomicU64::new(contents.size_bytes),
            sync_count: AtomicU64::new(0),
            start,
            writer: OnceLock::new(),
            state: Mutex::new(State {
                queue: VecDeque::new(),
                queued_bytes: 0,
                waited_for: 0,
                next_sequence: 0,
                closing: false,
                closed: false,
                meta: contents.meta,
                floor: contents.floor,
                bounds: contents.bounds,
                pending: BTreeMap::new(),
                truncations: VecDeque::new(),
                removals: 0,
            }),
            work_queued: Condvar::new(),
            room: Condvar::new(),
            closing: Condvar::new(),
        }
    }

    pub(super) fn enqueue(&self, operation: Operation) {
        let mut state = self.state.lock();
        // A `done` may queue more; if the writer waited for room here it would wait for itself.
        while state.is_full()
            && !state.closed
            && self.writer.get() != Some(&std::thread::current().id())
        {
            self.room.wait(&mut state);
        }
        let refused = if state.closed {
            Err(StorageError::Closed)
        } else {
            state.check(&operation)
        };
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
            return self.fail(too_large(
                "a meta row of the log",
                value.len(),
                MAX_META_BYTES,
            ));
        }
        let mut state = self.state.lock();
        if state.closed {
            return;
        }
        let row = state.set_meta(key, value);
        match state.queue.back_mut() {
            // Nothing lies between: the newer value takes the older one's place.
            Some(Queued {
                work: Work::PutMeta(last, old),
                done: None,
                ..
            }) if *last == key => *old = row,
            _ => state.push(Work::PutMeta(key, row), None, 0),
        }
        if state.queue.len() >= MAX_IDLE_ROWS {
            self.work_queued.notify_one();
        }
    }

    /// Waits for work and takes what one flush shall make durable; `None` when there is none and never will be.
    /// With `busy` it does not wait.
    pub(super) fn take(&self, busy: bool) -> Option<Vec<Queued>> {
        let mut state = self.state.lock();
        loop {
            if state.closed || (state.closing && state.queue.is_empty()) {
                return None;
            }
            if busy || state.closing || state.waited_for > 0 || state.queue.len() >= MAX_IDLE_ROWS {
                break;
            }
            self.work_queued.wait(&mut state);
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
        while state
            .pending
            .first_key_value()
            .is_some_and(|(_, (written, _))| *written <= sequence)
        {
            state.pending.pop_first();
        }
        while state
            .truncations
            .front()
            .is_some_and(|(executed, _)| *executed <= sequence)
        {
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
        if state.closed {
            Err(StorageError::Closed)
        } else {
            Ok(state.bounds)
        }
    }

    pub(super) fn read(
        &self,
        start: u64,
        end: u64,
        max_bytes: u64,
    ) -> Result<Vec<(u64, Bytes)>, StorageError> {
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

impl State {
    fn is_full(&self) -> bool {
        self.queue.len() >= MAX_QUEUED_OPERATIONS || self.queued_bytes >= MAX_QUEUED_BYTES
    }

    /// Refuses what would leave a hole or an overwritten entry: our own mistakes.
    fn check(&self, operation: &Operation) -> Result<(), StorageError> {
        match operation {
            Operation::Append { entries, .. } => {
                let mut last = self.bounds.map(|(_, last)| last);
                for (index, payload) in entries {
                    let follows = last.is_none_or(|last| Some(*index) == last.checked_add(1));
                    if !follows || *index < self.floor {
                        let (floor, index) = (self.floor, *index);
                        let what = format!(
                            "entry {index} may not follow {last:?} in a log that begins at {floor}"
                        );
                        return Err(StorageError::Corrupt { what });
                    }
                    if payload.len() > MAX_ENTRY_BYTES {
                        return Err(too_large("a log entry", payload.len(), MAX_ENTRY_BYTES));
                    }
                    last = Some(*index);
                }
                Ok(())
            }
            Operation::PutMeta { value, .. } | Operation::Purge { purged: value, .. } => {
                if value.len() > MAX_META_BYTES {
                    return Err(too_large(
                        "a meta row of the log",
                        value.len(),
                        MAX_META_BYTES,
                    ));
                }
                Ok(())
            }
            Operation::Truncate { .. } => Ok(()),
        }
    }

    fn accept(&mut self, operation: Operation) {
        match operation {
            Operation::Append { entries, done } => {
                let mut bytes = 0;
                for (index, payload) in &entries {
                    bytes += payload.len();
                    self.pending
                        .insert(*index, (self.next_sequence, payload.clone()));
                    self.bounds = Some(
                        self.bounds
                            .map_or((*index, *index), |(first, _)| (first, *index)),
                    );
                }
                self.push(Work::Append(entries), Some(done), bytes);
            }
            Operation::PutMeta { key, value, done } => {
                let row = self.set_meta(key, value);
                self.push(Work::PutMeta(key, row), Some(done), 0);
            }
            Operation::Truncate { index, done } => {
                self.removals += 1;
                self.pending.split_off(&index);
                self.truncations.push_back((self.next_sequence, index));
                self.bounds = self
                    .bounds
                    .and_then(|(first, last)| match index.checked_sub(1) {
                        Some(before) if before >= first => Some((first, last.min(before))),
                        _ => None,
                    });
                self.push(Work::Truncate(index, self.floor), Some(done), 0);
            }
            Operation::Purge {
                index,
                purged,
                done,
            } => {
                self.removals += 1;
                let floor = index.saturating_add(1);
                // A purge that was overtaken changes nothing, but its answer keeps its place.
                let row = match self.meta[slot(LogMeta::Purged)].clone() {
                    Some(row) if self.floor > floor => row,
                    _ => MetaRow {
                        counter: index,
                        value: purged,
                    },
                };
                self.meta[slot(LogMeta::Purged)] = Some(row.clone());
                self.floor = self.floor.max(floor);
                self.pending = self.pending.split_off(&self.floor);
                self.bounds = self.bounds.and_then(|(first, last)| {
                    (last >= self.floor).then_some((first.max(self.floor), last))
                });
                self.push(Work::Purge(row, self.floor), Some(done), 0);
            }
        }
    }

    fn push(&mut self, work: Work, done: Option<Done>, bytes: usize) {
        self.waited_for += usize::from(done.is_some());
        self.queued_bytes += bytes;
        self.queue.push_back(Queued {
            sequence: self.next_sequence,
            work,
            done,
            bytes,
        });
        self.next_sequence += 1;
    }

    fn set_meta(&mut self, key: LogMeta, value: Vec<u8>) -> MetaRow {
        let place = &mut self.meta[slot(key)];
        let before = place.as_ref().map_or(0, |row| row.counter);
        // The number of a vote tells an older one from a newer one, without knowing what a vote says.
        let counter = if key == LogMeta::Vote {
            before + 1
        } else {
            before
        };
        let row = MetaRow { counter, value };
        *place = Some(row.clone());
        row
    }

    /// What to read where; `None` if there is nothing in the range.
    fn plan(&self, start: u64, end: u64, max_bytes: u64) -> Result<Option<Plan>, StorageError> {
        if self.closed {
            return Err(StorageError::Closed);
        }
        let Some((first, last)) = self.bounds else {
            return Ok(None);
        };
        let start = start.max(first);
        let end = end.min(last.saturating_add(1));
        if start >= end {
            return Ok(None);
        }
        let queued_from = self
            .pending
            .first_key_value()
            .map_or(u64::MAX, |(index, _)| *index);
        let cut_from = self
            .truncations
            .iter()
            .map(|(_, index)| *index)
            .min()
            .unwrap_or(u64::MAX);
        let mut budget = max_bytes;
        let queued = self.pending.range(start..end).enumerate().map_while(
            |(number, (index, (_, payload)))| {
                let bytes = payload.len() as u64;
                if number > 0 && bytes > budget {
                    return None;
                }
                budget = budget.saturating_sub(bytes);
                Some((*index, payload.clone()))
            },
        );
        let queued: Vec<_> = queued.collect();
        let last_queued = self
            .pending
            .range(start..end)
            .next_back()
            .map(|(index, _)| *index);
        let queued_cut = last_queued != queued.last().map(|(index, _)| *index);
        let disk_end = end.min(queued_from).min(cut_from);
        Ok(Some(Plan {
            start,
            disk_end,
            end,
            max_bytes,
            queued,
            queued_cut,
            removals: self.removals,
        }))
    }
}

/// One read: entries up to `disk_end` from sled, the rest from the queue.
struct Plan {
    start: u64,
    disk_end: u64,
    end: u64,
    max_bytes: u64,
    queued: Vec<(u64, Bytes)>,
    /// The queue holds more of the range than the limit allows.
    queued_cut: bool,
    removals: u64,
}

impl Plan {
    fn carry_out(&self, database: &Database) -> Result<Vec<(u64, Bytes)>, StorageError> {
        let mut found = rows::read(database, self.start, self.disk_end, self.max_bytes)?;
        if !found.full {
            for (index, payload) in &self.queued {
                let bytes = payload.len() as u64;
                if !found.entries.is_empty() && found.bytes + bytes > self.max_bytes {
                    found.full = true;
                    break;
                }
                found.bytes += bytes;
                found.entries.push((*index, payload.clone()));
            }
        }
        let hole = |index: u64| {
            Err(StorageError::corrupt(format!(
                "the log has no entry {index}"
            )))
        };
        for (expected, (index, _)) in (self.start..).zip(&found.entries) {
            if expected != *index {
                return hole(expected);
            }
        }
        let next = self.start + found.entries.len() as u64;
        // Short without a reason: the rest was there when the read was planned.
        if next < self.end && !found.full && !self.queued_cut {
            hole(next)
        } else {
            Ok(found.entries)
        }
    }
}

fn slot(key: LogMeta) -> usize {
    ALL_META
        .iter()
        .position(|candidate| *candidate == key)
        .unwrap_or_default()
}

fn too_large(what: &'static str, bytes: usize, limit: usize) -> StorageError {
    StorageError::TooLarge {
        what,
        bytes: bytes as u64,
        limit: limit as u64,
    }
}

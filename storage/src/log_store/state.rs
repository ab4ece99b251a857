//! The queue, and the log as it will be once the queue is written: pure bookkeeping under one lock.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;

use super::rows::{self, ALL_META, Contents, MAX_ENTRY_BYTES, MAX_META_BYTES, MetaRow};
use super::{Done, LogMeta};
use crate::database::Database;
use crate::error::StorageError;

/// Operations that may wait; further callers block.
const MAX_QUEUED_OPERATIONS: usize = 4096;
/// Payload bytes that may wait; further callers block.
const MAX_QUEUED_BYTES: usize = 64 << 20;
/// What a caller asks for.
pub(super) enum Operation {
    Append { entries: Vec<(u64, Bytes)>, done: Done },
    PutMeta { key: LogMeta, value: Vec<u8>, done: Done },
    Truncate { index: u64, done: Done },
    Purge { index: u64, purged: Vec<u8>, done: Done },
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
    pub(super) bytes: usize,
}

pub(super) struct State {
    pub(super) queue: VecDeque<Queued>,
    pub(super) queued_bytes: usize,
    /// Queued work that somebody waits for.
    pub(super) waited_for: usize,
    pub(super) next_sequence: u64,
    pub(super) closing: bool,
    pub(super) closed: bool,
    pub(super) meta: [Option<MetaRow>; 3],
    pub(super) floor: u64,
    pub(super) bounds: Option<(u64, u64)>,
    /// Entries that are not yet known to be in sled, always the end of the log, with their work's sequence.
    pub(super) pending: BTreeMap<u64, (u64, Bytes)>,
    /// Truncations not yet carried out: sequence and index.
    pub(super) truncations: VecDeque<(u64, u64)>,
    /// Counts truncations and purges, so that a reader knows that the log changed under it.
    pub(super) removals: u64,
}

impl State {
    pub(super) fn new(contents: Contents) -> Self {
        State {
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
        }
    }

    pub(super) fn is_full(&self) -> bool {
        self.queue.len() >= MAX_QUEUED_OPERATIONS || self.queued_bytes >= MAX_QUEUED_BYTES
    }

    /// Refuses what would leave a hole or an overwritten entry: our own mistakes.
    pub(super) fn check(&self, operation: &Operation) -> Result<(), StorageError> {
        match operation {
            Operation::Append { entries, .. } => {
                let mut last = self.bounds.map(|(_, last)| last);
                for (index, payload) in entries {
                    let follows = last.is_none_or(|last| Some(*index) == last.checked_add(1));
                    if !follows || *index < self.floor {
                        let (floor, index) = (self.floor, *index);
                        let what = format!("entry {index} may not follow {last:?} in a log that begins at {floor}");
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
                    return Err(too_large("a meta row of the log", value.len(), MAX_META_BYTES));
                }
                Ok(())
            }
            Operation::Truncate { .. } => Ok(()),
        }
    }

    pub(super) fn accept(&mut self, operation: Operation) {
        match operation {
            Operation::Append { entries, done } => {
                let mut bytes = 0;
                for (index, payload) in &entries {
                    bytes += payload.len();
                    self.pending.insert(*index, (self.next_sequence, payload.clone()));
                    self.bounds = Some(self.bounds.map_or((*index, *index), |(first, _)| (first, *index)));
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
                self.bounds = self.bounds.and_then(|(first, last)| match index.checked_sub(1) {
                    Some(before) if before >= first => Some((first, last.min(before))),
                    _ => None,
                });
                self.push(Work::Truncate(index, self.floor), Some(done), 0);
            }
            Operation::Purge { index, purged, done } => {
                self.removals += 1;
                let floor = index.saturating_add(1);
                // A purge that was overtaken changes nothing, but its answer keeps its place.
                let row = match self.meta[slot(LogMeta::Purged)].clone() {
                    Some(row) if self.floor > floor => row,
                    _ => MetaRow { counter: index, value: purged },
                };
                self.meta[slot(LogMeta::Purged)] = Some(row.clone());
                self.floor = self.floor.max(floor);
                self.pending = self.pending.split_off(&self.floor);
                self.bounds =
                    self.bounds.and_then(|(first, last)| (last >= self.floor).then_some((first.max(self.floor), last)));
                self.push(Work::Purge(row, self.floor), Some(done), 0);
            }
        }
    }

    pub(super) fn push(&mut self, work: Work, done: Option<Done>, bytes: usize) {
        self.waited_for += usize::from(done.is_some());
        self.queued_bytes += bytes;
        self.queue.push_back(Queued { sequence: self.next_sequence, work, done, bytes });
        self.next_sequence += 1;
    }

    pub(super) fn set_meta(&mut self, key: LogMeta, value: Vec<u8>) -> MetaRow {
        let place = &mut self.meta[slot(key)];
        let before = place.as_ref().map_or(0, |row| row.counter);
        // The number of a vote tells an older one from a newer one, without knowing what a vote says.
        let counter = if key == LogMeta::Vote { before + 1 } else { before };
        let row = MetaRow { counter, value };
        *place = Some(row.clone());
        row
    }

    /// What to read where; `None` if there is nothing in the range.
    pub(super) fn plan(&self, start: u64, end: u64, max_bytes: u64) -> Result<Option<Plan>, StorageError> {
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
        let queued_from = self.pending.first_key_value().map_or(u64::MAX, |(index, _)| *index);
        let cut_from = self.truncations.iter().map(|(_, index)| *index).min().unwrap_or(u64::MAX);
        let mut budget = max_bytes;
        let queued = self.pending.range(start..end).enumerate().map_while(|(number, (index, (_, payload)))| {
            let bytes = payload.len() as u64;
            if number > 0 && bytes > budget {
                return None;
            }
            budget = budget.saturating_sub(bytes);
            Some((*index, payload.clone()))
        });
        let queued: Vec<_> = queued.collect();
        let last_queued = self.pending.range(start..end).next_back().map(|(index, _)| *index);
        let queued_cut = last_queued != queued.last().map(|(index, _)| *index);
        let disk_end = end.min(queued_from).min(cut_from);
        Ok(Some(Plan { start, disk_end, end, max_bytes, queued, queued_cut, removals: self.removals }))
    }
}

/// One read: entries up to `disk_end` from sled, the rest from the queue.
pub(super) struct Plan {
    start: u64,
    disk_end: u64,
    end: u64,
    max_bytes: u64,
    queued: Vec<(u64, Bytes)>,
    /// The queue holds more of the range than the limit allows.
    queued_cut: bool,
    pub(super) removals: u64,
}

impl Plan {
    pub(super) fn carry_out(&self, database: &Database) -> Result<Vec<(u64, Bytes)>, StorageError> {
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
        let hole = |index: u64| Err(StorageError::corrupt(format!("the log has no entry {index}")));
        for (expected, (index, _)) in (self.start..).zip(&found.entries) {
            if expected != *index {
                return hole(expected);
            }
        }
        let next = self.start + found.entries.len() as u64;
        // Short without a reason: the rest was there when the read was planned.
        if next < self.end && !found.full && !self.queued_cut { hole(next) } else { Ok(found.entries) }
    }
}

pub(super) fn slot(key: LogMeta) -> usize {
    ALL_META.iter().position(|candidate| *candidate == key).unwrap_or_default()
}

pub(super) fn too_large(what: &'static str, bytes: usize, limit: usize) -> StorageError {
    StorageError::TooLarge { what, bytes: bytes as u64, limit: limit as u64 }
}

//! The one thread that writes the log.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;

use super::Done;
use super::LogMeta;
use super::queue::Shared;
use super::rows::{self, MetaRow};
use super::sentinel::Mark;
use super::state::{Queued, Work};
use crate::error::StorageError;

/// Rows cut off with one batch.
const CUT_ROWS: usize = 1024;

/// Rows of purged entries that each group of writes removes at the least: it must not be held up by them.
const PURGED_ROWS: usize = 64;

/// Writes until the store closes or fails.
pub(super) fn run(shared: &Shared) {
    // Set once, before the first `done` can be called.
    let _ = shared.writer.set(std::thread::current().id());
    let (mark, backlog) = shared.start;
    let mut writer = Writer { shared, mark, backlog, rows: Vec::new() };
    while let Some(taken) = shared.take(writer.backlog.is_some()) {
        shared.pulse.begin();
        if !writer.write_group(taken) {
            return;
        }
        shared.pulse.end();
    }
}

struct Writer<'a> {
    shared: &'a Shared,
    /// How far the log will have come once everything written is flushed.
    mark: Mark,
    /// Entries below this index are purged but not all removed yet.
    backlog: Option<u64>,
    /// Rows to be written, in this order.
    rows: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Writer<'_> {
    /// Makes one group durable with one flush and answers it. False after an error: then all is over.
    fn write_group(&mut self, taken: Vec<Queued>) -> bool {
        let mut waiting: Vec<Done> = Vec::with_capacity(taken.len());
        let mut last_sequence = None;
        let mut result = Ok(());
        for Queued { sequence, work, done, .. } in taken {
            waiting.extend(done);
            last_sequence = Some(sequence);
            if result.is_ok() {
                result = self.write(work);
            }
        }
        let written = self.rows.len();
        let result = result.and_then(|()| self.finish_group(last_sequence));
        if let Err(error) = &result {
            // First of all nobody may queue or read any more.
            self.shared.fail(error.clone());
        }
        for done in waiting {
            let answer = result.clone();
            if catch_unwind(AssertUnwindSafe(|| done(answer))).is_err() {
                // Somebody will never get an answer; going on would hide it.
                self.shared.fail(StorageError::Closed);
            }
        }
        // Only once all are answered.
        let result = result
            .and_then(|()| self.remove_purged_piece(written).inspect_err(|error| self.shared.fail(error.clone())));
        result.is_ok()
    }

    fn finish_group(&mut self, last_sequence: Option<u64>) -> Result<(), StorageError> {
        self.apply()?;
        let Some(last_sequence) = last_sequence else {
            return Ok(());
        };
        self.shared.database.run("flushing the log", |db| db.flush())?;
        self.shared.sync_count.fetch_add(1, Ordering::Relaxed);
        self.shared.sentinel.advance(self.mark);
        self.shared.settle(last_sequence);
        Ok(())
    }

    fn write(&mut self, work: Work) -> Result<(), StorageError> {
        match work {
            Work::Append(entries) => {
                for (index, payload) in entries {
                    self.rows.extend(rows::entry_rows(index, &payload));
                    self.mark.next_index = index.saturating_add(1);
                    self.shared.size_bytes.fetch_add(payload.len() as u64, Ordering::Relaxed);
                }
            }
            Work::PutMeta(key, row) => self.put_meta(key, &row),
            Work::Truncate(index, floor) => {
                // What is removed must be in sled first.
                self.apply()?;
                self.truncate(index, floor)?;
            }
            Work::Purge(row, floor) => {
                self.put_meta(LogMeta::Purged, &row);
                self.mark.next_index = self.mark.next_index.max(floor);
                // Removed only after the row is written: a start in between must not see a log that begins late
                // and no reason for it.
                self.backlog = Some(floor);
            }
        }
        Ok(())
    }

    fn put_meta(&mut self, key: LogMeta, row: &MetaRow) {
        if key == LogMeta::Vote {
            self.mark.votes = row.counter;
            self.mark.vote_crc = crc32c::crc32c(&row.value);
        }
        self.rows.push(rows::meta_row(key, row));
    }

    /// One by one instead of in a batch, for which sled syncs twice. Nothing is acknowledged before the flush, and sled
    /// recovers a prefix of the rows: whole entries, and perhaps one at the end that misses its part 0.
    fn apply(&mut self) -> Result<(), StorageError> {
        let rows = std::mem::take(&mut self.rows);
        self.shared.database.run("writing the log", |db| {
            for (key, value) in rows {
                db.insert(key, value)?;
            }
            Ok(())
        })
    }

    /// From the end backwards, so that whatever a power cut leaves has no hole.
    fn truncate(&mut self, index: u64, floor: u64) -> Result<(), StorageError> {
        self.mark.next_index = self.mark.next_index.min(index.max(floor));
        self.shared.sentinel.lower(self.mark.next_index)?;
        let start = rows::entry_key(index, 0);
        while self.cut_piece(&start)? {}
        Ok(())
    }

    /// From the front, one piece per group. What a power cut brings back is below the floor, and is removed again.
    fn remove_purged_piece(&mut self, written: usize) -> Result<(), StorageError> {
        let Some(floor) = self.backlog else {
            return Ok(());
        };
        let (start, end) = (rows::entry_key(0, 0), rows::entry_key(floor, 0));
        // Twice what comes in, so that the backlog comes to an end.
        let limit = PURGED_ROWS.max(2 * written);
        // One by one, as rows are written. A power cut may leave the rest of an entry: what is below the floor is removed then.
        let (count, bytes) = self.shared.database.run("purging the log", |db| {
            let (mut count, mut bytes) = (0, 0);
            for row in db.range(start..end).take(limit) {
                let (key, value) = row?;
                let part = rows::parse_entry_key(&key).map_or(0, |(_, part)| part);
                bytes += rows::stored_bytes(part, value.len());
                count += 1;
                db.remove(key)?;
            }
            Ok((count, bytes))
        })?;
        self.shared.size_bytes.fetch_sub(bytes, Ordering::Relaxed);
        if count < limit {
            self.backlog = None;
        }
        Ok(())
    }

    /// Removes the last rows of those from `start` on; false if these were all.
    fn cut_piece(&self, start: &[u8]) -> Result<bool, StorageError> {
        let (count, bytes) = self.shared.database.run("truncating the log", |db| {
            let mut batch = sled::Batch::default();
            let (mut count, mut bytes) = (0, 0);
            for row in db.range::<&[u8], _>(start..&rows::entries_end()[..]).rev() {
                let (key, value) = row?;
                let part = rows::parse_entry_key(&key).map_or(0, |(_, part)| part);
                count += 1;
                bytes += rows::stored_bytes(part, value.len());
                batch.remove(key);
                // Not in the middle of an entry: from the end, its part 0 would stay and promise the others.
                if count >= CUT_ROWS && part == 0 {
                    break;
                }
            }
            if count > 0 {
                db.apply_batch(batch)?;
            }
            Ok((count, bytes))
        })?;
        self.shared.size_bytes.fetch_sub(bytes, Ordering::Relaxed);
        Ok(count >= CUT_ROWS)
    }
}

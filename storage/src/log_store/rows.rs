//! How entries and meta rows lie in sled.
//!
//! An entry is sealed in an envelope and cut into parts of at most 4 KiB; part `n` of entry `i` has the key `'e'`,
//! `i` as u64, `n` as u16, big-endian. A meta row has the key `'m'` and one byte; its payload begins with a counter.

use bytes::Bytes;

use super::LogMeta;
use super::sentinel::Mark;
use crate::database::{Database, MAX_VALUE_BYTES};
use crate::error::StorageError;
use crate::format::{self, HEADER_BYTES, kind};

const ENTRY_VERSION: u8 = 1;
const META_VERSION: u8 = 1;
const ENTRY_PREFIX: u8 = b'e';
const META_PREFIX: u8 = b'm';
/// The largest entry in bytes: far above any command, and what one batch and one read can carry.
pub(super) const MAX_ENTRY_BYTES: usize = 64 << 20;

/// The largest meta row in bytes: one value of sled less envelope and counter.
pub(super) const MAX_META_BYTES: usize = MAX_VALUE_BYTES - HEADER_BYTES - 8;

pub(super) fn entry_key(index: u64, part: u16) -> [u8; 11] {
    let mut key = [ENTRY_PREFIX; 11];
    key[1..9].copy_from_slice(&index.to_be_bytes());
    key[9..].copy_from_slice(&part.to_be_bytes());
    key
}

/// The first key past all entries.
pub(super) fn entries_end() -> [u8; 1] {
    [ENTRY_PREFIX + 1]
}

pub(super) fn parse_entry_key(key: &[u8]) -> Option<(u64, u16)> {
    let [ENTRY_PREFIX, a, b, c, d, e, f, g, h, p, q] = *key else {
        return None;
    };
    Some((u64::from_be_bytes([a, b, c, d, e, f, g, h]), u16::from_be_bytes([p, q])))
}

/// The rows of an entry in the order in which they must be written: part 0 last.
///
/// sled recovers a prefix of what was written, so an entry with its part 0 has all its parts, and no batch is needed:
/// a batch would cost a second sync. The payload has at most [`MAX_ENTRY_BYTES`], so its parts can be numbered.
pub(super) fn entry_rows(index: u64, payload: &[u8]) -> Vec<(Vec<u8>, Vec<u8>)> {
    let sealed = format::seal(kind::LOG_ENTRY, ENTRY_VERSION, payload);
    let parts = (0..=u16::MAX).zip(sealed.chunks(MAX_VALUE_BYTES));
    let mut rows: Vec<_> = parts.map(|(part, piece)| (entry_key(index, part).to_vec(), piece.to_vec())).collect();
    rows.reverse();
    rows
}

/// A meta row's value and its counter: the number of votes so far, or the purged index; else 0.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct MetaRow {
    pub(super) counter: u64,
    pub(super) value: Vec<u8>,
}

pub(super) const ALL_META: [LogMeta; 3] = [LogMeta::Vote, LogMeta::Committed, LogMeta::Purged];

fn meta_key(key: LogMeta) -> [u8; 2] {
    // Permanent bytes.
    [
        META_PREFIX,
        match key {
            LogMeta::Vote => b'v',
            LogMeta::Committed => b'c',
            LogMeta::Purged => b'p',
        },
    ]
}

/// The row's value has at most [`MAX_META_BYTES`].
pub(super) fn meta_row(key: LogMeta, row: &MetaRow) -> (Vec<u8>, Vec<u8>) {
    let payload = [&row.counter.to_le_bytes()[..], &row.value].concat();
    (meta_key(key).to_vec(), format::seal(kind::LOG_META, META_VERSION, &payload))
}

fn get_meta(database: &Database, key: LogMeta) -> Result<Option<MetaRow>, StorageError> {
    let Some(bytes) = database.run("reading a meta row", |db| db.get(meta_key(key)))? else {
        return Ok(None);
    };
    let payload = format::open(kind::LOG_META, META_VERSION, &bytes)?;
    let Some((counter, value)) = payload.split_first_chunk() else {
        return Err(StorageError::corrupt(format!("the log's meta row {key:?} is too short")));
    };
    Ok(Some(MetaRow { counter: u64::from_le_bytes(*counter), value: value.to_vec() }))
}

/// What the log holds when it is opened.
pub(super) struct Contents {
    pub(super) meta: [Option<MetaRow>; 3],
    /// First and last index past what was purged.
    pub(super) bounds: Option<(u64, u64)>,
    /// The lowest index that may be read: one past the purged one.
    pub(super) floor: u64,
    pub(super) size_bytes: u64,
    /// Whether a purge was cut off and entries below the floor are still there.
    pub(super) leftovers: bool,
    /// An entry at the end that was being written, or removed, when the power went: its part 0 is missing.
    pub(super) torn: Option<u64>,
}

impl Contents {
    pub(super) fn mark(&self) -> Mark {
        let [vote, _, _] = &self.meta;
        Mark {
            next_index: self.bounds.map_or(0, |(_, last)| last.saturating_add(1)).max(self.floor),
            votes: vote.as_ref().map_or(0, |row| row.counter),
            vote_crc: vote.as_ref().map_or(0, |row| crc32c::crc32c(&row.value)),
        }
    }
}

/// Walks over the whole log once: finds its bounds and its size, and refuses a hole.
pub(super) fn load(database: &Database) -> Result<Contents, StorageError> {
    let mut meta = [None, None, None];
    for (row, key) in meta.iter_mut().zip(ALL_META) {
        *row = get_meta(database, key)?;
    }
    let floor = meta[2].as_ref().map_or(0, |row| row.counter.saturating_add(1));
    let mut contents = Contents { meta, bounds: None, floor, size_bytes: 0, leftovers: false, torn: None };
    let mut damage = None;
    database.run("reading the log's keys", |db| {
        for row in db.range::<&[u8], _>(&[ENTRY_PREFIX][..]..&entries_end()[..]) {
            let (key, value) = row?;
            let Some((index, part)) = parse_entry_key(&key) else {
                damage = Some(format!("the log has a key of {} bytes", key.len()));
                return Ok(());
            };
            if index < floor {
                contents.size_bytes += stored_bytes(part, value.len());
                contents.leftovers = true;
                continue;
            }
            if part > 0 && contents.bounds.is_none_or(|(_, last)| last != index) && contents.torn.is_none() {
                contents.torn = Some(index);
            }
            if contents.torn == Some(index) {
                continue;
            }
            contents.size_bytes += stored_bytes(part, value.len());
            if let Some(torn) = contents.torn {
                damage = Some(format!("entry {torn} of the log misses its beginning"));
                return Ok(());
            }
            contents.bounds = match contents.bounds {
                None => Some((index, index)),
                Some((first, last)) if last == index || last + 1 == index => Some((first, index)),
                Some((_, last)) => {
                    damage = Some(format!("the log has no entry between {last} and {index}"));
                    return Ok(());
                }
            };
        }
        Ok(())
    })?;
    match damage {
        Some(what) => Err(StorageError::Corrupt { what }),
        None => Ok(contents),
    }
}

/// Removes what is left of an entry that was never complete, before another one takes its index.
pub(super) fn remove_torn(database: &Database, index: u64) -> Result<(), StorageError> {
    tracing::info!(log_index = index, "the log ends in an entry that was never completely written: removed");
    database.run("removing an incomplete entry", |db| {
        let mut batch = sled::Batch::default();
        for key in db.range(entry_key(index, 0)..).keys() {
            let key = key?;
            if parse_entry_key(&key).is_none_or(|(found, _)| found != index) {
                break;
            }
            batch.remove(key);
        }
        db.apply_batch(batch)
    })
}

/// Payload bytes in one stored part.
pub(super) fn stored_bytes(part: u16, value_bytes: usize) -> u64 {
    let header = if part == 0 { HEADER_BYTES } else { 0 };
    value_bytes.saturating_sub(header) as u64
}

/// Entries as they lie in sled.
#[derive(Default)]
pub(super) struct Found {
    pub(super) entries: Vec<(u64, Bytes)>,
    /// Sum of the payloads.
    pub(super) bytes: u64,
    /// The next entry would have gone over the limit.
    pub(super) full: bool,
}

/// Entries with `start <= index < end`, up to `max_bytes`, at least one. Does not look for holes.
pub(super) fn read(database: &Database, start: u64, end: u64, max_bytes: u64) -> Result<Found, StorageError> {
    let mut found = Found::default();
    if start >= end {
        return Ok(found);
    }
    let mut current: Option<(u64, Assembly)> = None;
    let mut result = Ok(());
    database.run("reading entries", |db| {
        let mut keep = |(index, assembly): (u64, Assembly)| -> bool {
            match assembly.finish(index) {
                Ok(payload) if found.entries.is_empty() || found.bytes + payload.len() as u64 <= max_bytes => {
                    found.bytes += payload.len() as u64;
                    found.entries.push((index, payload));
                    true
                }
                Ok(_) => {
                    found.full = true;
                    false
                }
                Err(error) => {
                    result = Err(error);
                    false
                }
            }
        };
        for row in db.range(entry_key(start, 0)..entry_key(end, 0)) {
            let (key, value) = row?;
            let Some((index, part)) = parse_entry_key(&key) else {
                continue;
            };
            if current.as_ref().is_some_and(|(current, _)| *current != index)
                && let Some(complete) = current.take()
                && !keep(complete)
            {
                return Ok(());
            }
            current.get_or_insert_with(|| (index, Assembly::default())).1.push(part, &value);
        }
        if let Some(complete) = current.take() {
            keep(complete);
        }
        Ok(())
    })?;
    result.map(|()| found)
}

/// The parts of one entry.
#[derive(Default)]
struct Assembly {
    bytes: Vec<u8>,
    parts: u32,
    misplaced: bool,
}

impl Assembly {
    fn push(&mut self, part: u16, piece: &[u8]) {
        self.misplaced |= u32::from(part) != self.parts;
        self.parts += 1;
        self.bytes.extend_from_slice(piece);
    }

    fn finish(self, index: u64) -> Result<Bytes, StorageError> {
        if self.misplaced {
            return Err(StorageError::corrupt(format!("entry {index} of the log misses a part")));
        }
        match format::open(kind::LOG_ENTRY, ENTRY_VERSION, &self.bytes) {
            Ok(_) => Ok(Bytes::from(self.bytes).slice(HEADER_BYTES..)),
            Err(StorageError::Corrupt { what }) => {
                Err(StorageError::corrupt(format!("entry {index} of the log: {what}")))
            }
            Err(error) => Err(error),
        }
    }
}

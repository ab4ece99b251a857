//! A consistent view of all rows while a writer goes on: what it changes ahead of the reader is set aside first.
//!
//! A view begins with an empty memtable, so sled's rows are its rows, and the old ones are set aside by the drain.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use parking_lot::Mutex;

use super::PresentRows;
use super::generation::Generation;
use super::memtable::cost;
use crate::error::StorageError;

/// Memory that one view's old rows may take, in bytes. Past it the view is lost and its reader begins anew.
const MAX_SET_ASIDE_BYTES: usize = 64 << 20;

/// All rows as they were when the view was made, read in chunks. Dropping it ends the writer's care for it.
pub struct View {
    generation: Arc<Generation>,
    // Its only strong reference outside a running drain: dropping the view unregisters it.
    state: Arc<Mutex<SetAside>>,
}

/// What a view still needs of rows that were changed since it was made.
#[derive(Default)]
pub(super) struct SetAside {
    /// The last key given out; rows up to it are of no interest any more.
    cursor: Option<Vec<u8>>,
    /// Old values by key; `None`: there was no such row.
    rows: BTreeMap<Vec<u8>, Option<Vec<u8>>>,
    bytes: usize,
    finished: bool,
    lost: bool,
}

impl SetAside {
    /// Whether a change of this key would take something away from the view.
    pub(super) fn wants(&self, key: &[u8]) -> bool {
        let ahead = self.cursor.as_deref().is_none_or(|cursor| key > cursor);
        ahead && !self.finished && !self.lost && !self.rows.contains_key(key)
    }

    /// Keeps a row's value as it was before the change.
    pub(super) fn keep(&mut self, key: &[u8], old: Option<&[u8]>) {
        if !self.wants(key) {
            return;
        }
        self.bytes += cost(key, old);
        self.rows.insert(key.to_vec(), old.map(<[u8]>::to_vec));
        if self.bytes > MAX_SET_ASIDE_BYTES {
            self.lost = true;
            self.rows = BTreeMap::new();
            self.bytes = 0;
        }
    }

    /// Moves past a key: what was set aside up to it has been given out.
    fn advance(&mut self, cursor: Vec<u8>) {
        while let Some(first) = self.rows.first_entry() {
            if *first.key() > cursor {
                break;
            }
            let (key, old) = first.remove_entry();
            self.bytes -= cost(&key, old.as_deref());
        }
        self.cursor = Some(cursor);
    }
}

impl View {
    pub(super) fn register(generation: Arc<Generation>) -> Result<Self, StorageError> {
        let state = Arc::default();
        // Waits for a running batch and is waited for by the next one, so «now» lies between two batches.
        generation.buffered()?.register(&state)?;
        generation.view_opened();
        Ok(View { generation, state })
    }

    /// The next rows, ascending, of about `max_bytes` of keys and values (at least one row); `None` after the last.
    ///
    /// Draining waits while a chunk is read, and a chunk for a drain: ask for a megabyte or so.
    ///
    /// # Errors
    /// `ViewLost` if the writer changed more than 64 MiB of rows ahead of the reader; `Sled`, `Closed`.
    pub fn next_chunk(&mut self, max_bytes: usize) -> Result<Option<PresentRows>, StorageError> {
        let mut state = self.state.lock();
        if state.lost {
            return Err(StorageError::ViewLost);
        }
        if state.finished {
            return Ok(None);
        }
        let start = state.cursor.clone().map_or(Bound::Unbounded, Bound::Excluded);
        let database = &self.generation.buffered()?.database;
        let mut merge = Merge { chunk: Vec::new(), bytes: 0, max_bytes, passed: None };
        let full = database.run("reading a view", |db| {
            let mut old = state.rows.iter().peekable();
            for row in db.range((start.clone(), Bound::Unbounded)) {
                let (key, value) = row?;
                while let Some((old_key, old_value)) = old.next_if(|(old_key, _)| old_key.as_slice() < key.as_ref()) {
                    if merge.push(old_key, old_value.as_deref()) {
                        return Ok(true);
                    }
                }
                let replaced = old.next_if(|(old_key, _)| old_key.as_slice() == key.as_ref());
                let value = replaced.map_or(Some(value.as_ref()), |(_, old_value)| old_value.as_deref());
                if merge.push(&key, value) {
                    return Ok(true);
                }
            }
            Ok(old.any(|(old_key, old_value)| merge.push(old_key, old_value.as_deref())))
        })?;
        if let Some(passed) = merge.passed {
            state.advance(passed);
        }
        if !full {
            state.finished = true;
            state.rows = BTreeMap::new();
        }
        Ok(if merge.chunk.is_empty() { None } else { Some(merge.chunk) })
    }
}

impl Drop for View {
    fn drop(&mut self) {
        self.generation.view_closed();
    }
}

struct Merge {
    chunk: PresentRows,
    bytes: usize,
    max_bytes: usize,
    /// The last key looked at, given out or known to have been absent.
    passed: Option<Vec<u8>>,
}

impl Merge {
    /// Takes the next row; true when the chunk is full.
    fn push(&mut self, key: &[u8], value: Option<&[u8]>) -> bool {
        self.passed = Some(key.to_vec());
        let Some(value) = value else {
            return false;
        };
        self.bytes += key.len() + value.len();
        self.chunk.push((key.to_vec(), value.to_vec()));
        self.bytes >= self.max_bytes
    }
}

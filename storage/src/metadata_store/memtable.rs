//! Rows that were written but are not in sled yet, and how they read together with those that are.
//!
//! sled syncs twice for each batch, although nobody asked for it to be durable. So batches gather here and go into
//! sled many at a time; a row written often goes there once.

use std::collections::BTreeMap;
use std::iter::Peekable;
use std::ops::Bound;
use std::sync::Arc;

use super::{PresentRows, Rows};

/// What a row costs in memory besides its key and value, roughly.
const ROW_OVERHEAD_BYTES: usize = 96;

/// The memory that a row takes, roughly.
pub(super) fn cost(key: &[u8], value: Option<&[u8]>) -> usize {
    key.len() + value.map_or(0, <[u8]>::len) + ROW_OVERHEAD_BYTES
}

/// The last value of each key written, or `None` where it was deleted.
#[derive(Default)]
pub(super) struct Table {
    rows: BTreeMap<Vec<u8>, Option<Vec<u8>>>,
    bytes: usize,
}

impl Table {
    /// Rows by ascending key, each key once.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&[u8], Option<&[u8]>)> {
        self.rows.iter().map(|(key, value)| (key.as_slice(), value.as_deref()))
    }

    /// How many.
    pub(super) fn len(&self) -> usize {
        self.rows.len()
    }

    fn insert(&mut self, key: Vec<u8>, value: Option<Vec<u8>>) {
        let key_bytes = key.len();
        self.bytes += cost(&key, value.as_deref());
        if let Some(old) = self.rows.insert(key, value) {
            self.bytes -= key_bytes + old.map_or(0, |old| old.len()) + ROW_OVERHEAD_BYTES;
        }
    }

    fn range(&self, start: Bound<&[u8]>) -> impl Iterator<Item = Above<'_>> {
        let rows = self.rows.range::<[u8], _>((start, Bound::Unbounded));
        rows.map(|(key, value)| (key.as_slice(), value.as_deref()))
    }
}

/// A row of a table: what it says hides whatever lies below it.
type Above<'a> = (&'a [u8], Option<&'a [u8]>);

/// The table that takes writes, and the one before it while that goes into sled.
#[derive(Default)]
pub(super) struct Memtable {
    active: Table,
    /// Hides sled's rows until all of them are there: sled's other readers see a batch while it goes in, in part.
    frozen: Option<Arc<Table>>,
}

impl Memtable {
    /// Adds a batch; returns what the active table takes now, in bytes.
    pub(super) fn insert(&mut self, rows: Rows) -> usize {
        rows.into_iter().for_each(|(key, value)| self.active.insert(key, value));
        self.active.bytes
    }

    /// Sets the active table aside to be drained. The one before must have been released.
    pub(super) fn freeze(&mut self) -> Arc<Table> {
        debug_assert!(self.frozen.is_none(), "one drain at a time");
        let frozen = Arc::new(std::mem::take(&mut self.active));
        self.frozen = Some(frozen.clone());
        frozen
    }

    /// Lets go of the frozen table, whose rows are all in sled now.
    pub(super) fn release(&mut self) {
        self.frozen = None;
    }

    #[cfg(test)]
    pub(super) fn is_frozen(&self) -> bool {
        self.frozen.is_some()
    }

    /// What is known of a key here: a value, `Some(None)` if it was deleted, `None` if sled must say.
    pub(super) fn get(&self, key: &[u8]) -> Option<Option<Vec<u8>>> {
        let frozen = || self.frozen.as_ref().and_then(|frozen| frozen.rows.get(key));
        self.active.rows.get(key).or_else(frozen).cloned()
    }

    /// Up to `limit` rows from `start` on that begin with `prefix`, out of these tables and what lies `below`.
    pub(super) fn merge<K: AsRef<[u8]>, E>(
        &self,
        prefix: &[u8],
        start: Bound<&[u8]>,
        limit: usize,
        below: impl Iterator<Item = Result<(K, K), E>>,
    ) -> Result<PresentRows, E> {
        let mut page = Page { rows: Vec::new(), limit };
        if limit == 0 {
            return Ok(page.rows);
        }
        let frozen = self.frozen.as_ref().map(|frozen| frozen.range(start)).into_iter().flatten();
        let above = newest(self.active.range(start).peekable(), frozen.peekable());
        let mut above = above.take_while(|(key, _)| key.starts_with(prefix)).peekable();
        for row in below {
            let (key, value) = row?;
            let (key, value) = (key.as_ref(), value.as_ref());
            if !key.starts_with(prefix) {
                break;
            }
            while let Some((above_key, above_value)) = above.next_if(|(above_key, _)| *above_key < key) {
                if page.push(above_key, above_value) {
                    return Ok(page.rows);
                }
            }
            let hidden_by = above.next_if(|(above_key, _)| *above_key == key);
            if page.push(key, hidden_by.map_or(Some(value), |(_, above_value)| above_value)) {
                return Ok(page.rows);
            }
        }
        // Stops at the first that fills the page.
        above.any(|(key, value)| page.push(key, value));
        Ok(page.rows)
    }
}

/// Both in one order; of a key that both have, only the newer row.
fn newest<'a>(
    mut newer: Peekable<impl Iterator<Item = Above<'a>>>,
    mut older: Peekable<impl Iterator<Item = Above<'a>>>,
) -> impl Iterator<Item = Above<'a>> {
    std::iter::from_fn(move || {
        let Some((key, _)) = newer.peek() else {
            return older.next();
        };
        if let Some(before) = older.next_if(|(older_key, _)| older_key < key) {
            return Some(before);
        }
        older.next_if(|(older_key, _)| older_key == key);
        newer.next()
    })
}

struct Page {
    rows: PresentRows,
    limit: usize,
}

impl Page {
    /// Takes the next row; true when the page is full.
    fn push(&mut self, key: &[u8], value: Option<&[u8]>) -> bool {
        self.rows.extend(value.map(|value| (key.to_vec(), value.to_vec())));
        self.rows.len() == self.limit
    }
}

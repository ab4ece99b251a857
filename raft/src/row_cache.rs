//! The rows that apply reads again and again, in front of the store: a look-up there goes through sled's tree, and a
//! manifest that is tagged needs one for each of its layers.
//!
//! Only apply reads through it, and only apply writes rows, one after the other: it never holds an old one.

use flotilla_storage::{Keyspace, MetadataStore, PresentRows, Rows, StorageError};
use quick_cache::Weighter;
use quick_cache::sync::Cache;

use crate::state_machine::Reader;

/// The most bytes of keys and values that are kept.
const CAPACITY_BYTES: u64 = 8 << 20;

/// About how many rows that is.
const ROWS: usize = 32 * 1024;

/// The cache of one node's state.
pub(crate) struct RowCache(Cache<Vec<u8>, Option<Vec<u8>>, BySize>);

#[derive(Clone)]
struct BySize;

impl Weighter<Vec<u8>, Option<Vec<u8>>> for BySize {
    fn weight(&self, key: &Vec<u8>, value: &Option<Vec<u8>>) -> u64 {
        (key.len() + value.as_ref().map_or(0, Vec::len)) as u64
    }
}

impl Default for RowCache {
    fn default() -> Self {
        Self(Cache::with_weighter(ROWS, CAPACITY_BYTES, BySize))
    }
}

impl RowCache {
    /// These rows were written.
    pub(crate) fn written(&self, rows: &Rows) {
        for (key, value) in rows {
            // Only what was read is kept: most rows are written once and never looked at by apply again.
            if self.0.peek(key).is_some() {
                self.0.insert(key.clone(), value.clone());
            }
        }
    }
}

/// The stored rows, by way of the cache.
pub(crate) struct Cached<'a> {
    pub(crate) store: &'a MetadataStore,
    pub(crate) cache: &'a RowCache,
}

impl Reader for Cached<'_> {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StorageError> {
        if let Some(known) = self.cache.0.get(key) {
            return Ok(known);
        }
        let found = self.store.get(key)?;
        // What is not there is mostly not looked for again, but for the single rows that every command asks for.
        if found.is_some() || key.first() == Some(&Keyspace::Meta.prefix()) {
            self.cache.0.insert(key.to_vec(), found.clone());
        }
        Ok(found)
    }

    fn scan(&self, prefix: &[u8], after: Option<&[u8]>, limit: usize) -> Result<PresentRows, StorageError> {
        self.store.scan(prefix, after, limit)
    }
}

impl Reader for MetadataStore {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StorageError> {
        Self::get(self, key)
    }

    fn scan(&self, prefix: &[u8], after: Option<&[u8]>, limit: usize) -> Result<PresentRows, StorageError> {
        Self::scan(self, prefix, after, limit)
    }
}

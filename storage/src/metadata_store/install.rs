//! Filling a new generation beside the current one, and switching to it.

use super::MetadataStore;
use super::generation::Generation;
use crate::error::StorageError;

/// Bytes after which a flush is made on the way, so that the one at the end is short and memory stays bounded.
const FLUSH_BYTES: u64 = 8 << 20;

/// A new generation being filled. Dropping it without [`Install::finish`] removes its folder.
pub struct Install {
    store: MetadataStore,
    // `None` only after `finish` took it.
    generation: Option<Generation>,
}

impl Install {
    pub(super) fn begin(store: MetadataStore, number: u64) -> Result<Self, StorageError> {
        let generation = Generation::open(store.dir(), number)?;
        Ok(Install { store, generation: Some(generation) })
    }

    /// The number that the generation will have.
    pub fn generation(&self) -> u64 {
        self.generation.as_ref().map_or(0, Generation::number)
    }

    /// Adds rows, in any order; a key given twice keeps its last value.
    ///
    /// # Errors
    /// `TooLarge`, with none of these rows added; `Sled`, `Closed`.
    pub fn put(&mut self, rows: &[(Vec<u8>, Vec<u8>)]) -> Result<(), StorageError> {
        let generation = self.generation.as_ref().ok_or(StorageError::Closed)?;
        generation.load(rows)?;
        if generation.unflushed_bytes() >= FLUSH_BYTES {
            generation.flush()?;
        }
        Ok(())
    }

    /// The value of a row added so far.
    ///
    /// # Errors
    /// `Sled`, `Closed`.
    pub fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StorageError> {
        self.generation.as_ref().ok_or(StorageError::Closed)?.get(key)
    }

    /// Makes the rows durable, marks the generation complete, and switches every clone of the store to it.
    ///
    /// The former folder goes at once, or with the last view of it. Writes must not run meanwhile: they would wait,
    /// and then land in the new generation.
    ///
    /// # Errors
    /// `Superseded` if a later install finished first; `Io`, `Sled`: the former generation then goes on, but the node
    /// should stop, since the mark may or may not be on disk.
    pub fn finish(mut self) -> Result<(), StorageError> {
        let generation = self.generation.take().ok_or(StorageError::Closed)?;
        if let Err(error) = generation.flush() {
            generation.retire();
            return Err(error);
        }
        self.store.switch_to(generation)
    }
}

impl Drop for Install {
    fn drop(&mut self) {
        if let Some(generation) = &self.generation {
            generation.retire();
        }
    }
}

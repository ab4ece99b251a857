//! Rows that hold what several entries wrote, one after the other.
//!
//! Some of what apply writes is only ever appended, and forgotten in the same order: remembered requests, changes of
//! names. A row of its own for each would be most of what goes into sled, at the same cost as any other row. Entries
//! whose indexes are close share a block of rows; each row holds whole envelopes, one after the other.

use flotilla_storage::{Keyspace, StorageError, format};

use super::keys::ROW_PART;
use super::{State, keys};

/// A kind of what is appended.
pub(crate) struct Journal {
    pub(crate) space: Keyspace,
    /// How many log indexes share a block: about as many as fill one row.
    pub(crate) span: u64,
}

/// Who asked for what (see `requests`).
pub(crate) const REQUESTS: Journal = Journal { space: Keyspace::Request, span: 64 };

/// What happened to names (see `history`).
pub(crate) const CHANGES: Journal = Journal { space: Keyspace::Change, span: 16 };

impl Journal {
    /// The prefix of all rows.
    pub(crate) fn rows(&self) -> Vec<u8> {
        keys::journal(self.space)
    }

    fn row(&self, index: u64, part: u16) -> Vec<u8> {
        keys::journal_row(self.space, index / self.span, part)
    }

    /// The rows of the block that holds an index, in order.
    pub(crate) fn block(&self, index: u64) -> impl Iterator<Item = Vec<u8>> + '_ {
        (0..=u16::MAX).map(move |part| self.row(index, part))
    }

    /// After all rows of earlier blocks than that of an index, and before those of its block.
    pub(crate) fn before(&self, index: u64) -> Option<Vec<u8>> {
        (index / self.span).checked_sub(1).map(|block| keys::journal_row(self.space, block, u16::MAX))
    }

    /// The first log index after the block of a row.
    pub(crate) fn end_of(&self, key: &[u8]) -> Result<u64, StorageError> {
        let block = key.get(1..).and_then(|rest| rest.first_chunk::<8>()).map(|block| u64::from_be_bytes(*block));
        let damaged = || StorageError::Corrupt { what: "key of a journal's row".into() };
        block.and_then(|block| block.checked_add(1)?.checked_mul(self.span)).ok_or_else(damaged)
    }

    /// Appends an envelope under the log index that is being applied: to the last row of its block, even where an
    /// earlier one has room, so that what is read comes in the order in which it was written.
    pub(super) fn append(&self, state: &mut State<'_>, envelope: &[u8]) -> Result<(), StorageError> {
        let parts = self.parts(state)?;
        let last = match parts.checked_sub(1) {
            Some(last) => state.raw(&self.row(state.index(), last))?.map(|row| (last, row)),
            None => None,
        };
        let fits = |(_, row): &(u16, Vec<u8>)| row.len() + envelope.len() <= ROW_PART;
        let (part, mut row) = last.filter(fits).unwrap_or((parts, Vec::new()));
        if part == u16::MAX {
            return Err(StorageError::Corrupt { what: "a journal's block without end".into() });
        }
        row.extend_from_slice(envelope);
        state.put_raw(self.row(state.index(), part), row);
        Ok(())
    }

    /// How many rows the block of the index has that is being applied. They begin at 0 and have no gaps, and one entry may
    /// write thousands: so they are not counted one by one.
    fn parts(&self, state: &State<'_>) -> Result<u16, StorageError> {
        let has = |part: u16| Ok::<_, StorageError>(state.raw(&self.row(state.index(), part))?.is_some());
        let (mut there, mut absent) = (0, 1);
        if !has(0)? {
            return Ok(0);
        }
        while absent < u16::MAX && has(absent)? {
            (there, absent) = (absent, absent.saturating_mul(2));
        }
        while absent - there > 1 {
            let middle = there + (absent - there) / 2;
            if has(middle)? { there = middle } else { absent = middle }
        }
        Ok(absent)
    }
}

/// The envelopes of a row.
pub(crate) fn envelopes(mut row: &[u8]) -> impl Iterator<Item = Result<&[u8], StorageError>> {
    std::iter::from_fn(move || {
        if row.is_empty() {
            return None;
        }
        match format::split_first(row) {
            Ok((envelope, rest)) => {
                row = rest;
                Some(Ok(envelope))
            }
            Err(error) => {
                row = &[];
                Some(Err(error))
            }
        }
    })
}

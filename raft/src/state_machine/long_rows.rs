//! Rows longer than one value of the store: a head at the row's key, and parts in a keyspace of their own.
//!
//! A manifest may name thousands of digests. What apply must write has no upper bound that it could refuse, since
//! the entry is committed by then: so every row has a form in which it fits.

use flotilla_storage::{Keyspace, PresentRows, StorageError};
use serde::{Deserialize, Serialize};

use super::keys::ROW_PART;
use crate::wire::{self, Kind};

/// What stands at the key of a long row.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Head {
    /// How many parts it has.
    pub(crate) parts: u32,
}

fn part_key(key: &[u8], part: u32) -> Vec<u8> {
    [&[Keyspace::Part.prefix()], key, &[0], &part.to_be_bytes()[..]].concat()
}

/// The rows to write for a value: itself where it fits, else its head and parts.
pub(crate) fn split(key: Vec<u8>, value: Vec<u8>) -> Result<PresentRows, StorageError> {
    if value.len() <= ROW_PART {
        return Ok(vec![(key, value)]);
    }
    let mut rows: Vec<_> =
        (0u32..).zip(value.chunks(ROW_PART)).map(|(part, bytes)| (part_key(&key, part), bytes.to_vec())).collect();
    let head = Head { parts: u32::try_from(rows.len()).unwrap_or(u32::MAX) };
    rows.push((key, wire::encode(Kind::LongRow, &head)?));
    Ok(rows)
}

/// The whole value of the row whose stored value is `stored`.
///
/// # Errors
/// A part is missing.
pub(crate) fn join<V: AsRef<[u8]> + Into<Vec<u8>>>(
    key: &[u8],
    stored: V,
    get: impl Fn(&[u8]) -> Result<Option<Vec<u8>>, StorageError>,
) -> Result<Vec<u8>, StorageError> {
    if !wire::is_kind(Kind::LongRow, stored.as_ref()) {
        return Ok(stored.into());
    }
    let head: Head = wire::decode(Kind::LongRow, stored.as_ref())?;
    let mut value = Vec::with_capacity(head.parts as usize * ROW_PART);
    for part in 0..head.parts {
        let missing = || StorageError::Corrupt { what: format!("a long row misses part {part} of {}", head.parts) };
        value.extend_from_slice(&get(&part_key(key, part))?.ok_or_else(missing)?);
    }
    Ok(value)
}

/// The keys of the parts of the row whose stored value is `stored`; none for a short one.
pub(crate) fn part_keys(key: &[u8], stored: &[u8]) -> Result<Vec<Vec<u8>>, StorageError> {
    if !wire::is_kind(Kind::LongRow, stored) {
        return Ok(Vec::new());
    }
    let head: Head = wire::decode(Kind::LongRow, stored)?;
    Ok((0..head.parts).map(|part| part_key(key, part)).collect())
}

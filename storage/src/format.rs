//! The envelope around everything that is stored or sent, and the version of the data folder.
//!
//! An envelope is `"FLOT"`, kind, version, payload length (u32, little-endian), CRC32C (u32, little-endian, over kind,
//! version, length and payload), payload. The form is permanent; `testdata/` pins its bytes.

use std::path::Path;

use crate::durable_file;
use crate::error::StorageError;

/// The first bytes of every envelope.
pub const MAGIC: [u8; 4] = *b"FLOT";

/// Bytes that an envelope adds to its payload.
pub const HEADER_BYTES: usize = 14;

/// Kinds that this crate uses itself. Permanent; other crates take theirs from 16 upwards.
pub mod kind {
    /// One entry of the log.
    pub const LOG_ENTRY: u8 = 1;
    /// A meta row of the log.
    pub const LOG_META: u8 = 2;
    /// A slot of the sentinel file.
    pub const SENTINEL: u8 = 3;
    /// The mark of a complete generation.
    pub const GENERATION: u8 = 4;
    /// The checksums of a blob's pieces.
    pub const BLOB_SUMS: u8 = 5;
}

/// Version of the data folder's layout as a whole.
pub const DATA_VERSION: u32 = 1;

const FORMAT_FILE: &str = "format";

/// Wraps a payload.
///
/// The payload must be shorter than 4 GiB; all callers have far smaller limits, and a longer one would not open again.
pub fn seal(kind: u8, version: u8, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap_or(u32::MAX).to_le_bytes();
    let mut bytes = Vec::with_capacity(HEADER_BYTES + payload.len());
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(&[kind, version]);
    bytes.extend_from_slice(&length);
    bytes.extend_from_slice(&checksum(&bytes[4..10], payload).to_le_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

/// The kind that an envelope says it has; `None` for bytes that are none. Nothing is checked but the beginning.
pub fn kind_of(bytes: &[u8]) -> Option<u8> {
    bytes.strip_prefix(&MAGIC)?.first().copied()
}

/// The first of several envelopes that follow each other, and the rest. What is in it is not checked.
///
/// # Errors
/// `Corrupt` where the bytes do not begin with a whole envelope.
pub fn split_first(bytes: &[u8]) -> Result<(&[u8], &[u8]), StorageError> {
    let length = bytes.get(6..10).and_then(|length| length.first_chunk()).map(|length| u32::from_le_bytes(*length));
    let end = length.and_then(|length| HEADER_BYTES.checked_add(length as usize));
    let split = end.and_then(|end| bytes.split_at_checked(end)).filter(|_| bytes.starts_with(&MAGIC));
    split.ok_or_else(|| StorageError::corrupt("no whole envelope where one should begin"))
}

/// The payload of an envelope of the expected kind, checked.
///
/// # Errors
/// `Version` if it was written by a newer program, `Corrupt` for everything else that is not as [`seal`] wrote it.
pub fn open(kind: u8, known_version: u8, bytes: &[u8]) -> Result<&[u8], StorageError> {
    let (_, payload) = open_versioned(kind, known_version, bytes)?;
    Ok(payload)
}

/// As [`open`], and also says which version the payload has: 1 up to the known one.
///
/// # Errors
/// As [`open`].
pub fn open_versioned(kind: u8, known_version: u8, bytes: &[u8]) -> Result<(u8, &[u8]), StorageError> {
    let Some((header, payload)) = bytes.split_first_chunk::<HEADER_BYTES>() else {
        return Err(StorageError::corrupt(format!("an envelope of kind {kind} is cut short at {} bytes", bytes.len())));
    };
    let [m0, m1, m2, m3, found_kind, version, l0, l1, l2, l3, c0, c1, c2, c3] = *header;
    if [m0, m1, m2, m3] != MAGIC {
        return Err(StorageError::corrupt(format!("no envelope where one of kind {kind} should be")));
    }
    let length = u32::from_le_bytes([l0, l1, l2, l3]);
    if u32::try_from(payload.len()) != Ok(length) {
        let found = payload.len();
        return Err(StorageError::corrupt(format!("an envelope of kind {kind} has {found} bytes of {length}")));
    }
    // Before the version is believed: a flipped bit there must not send an operator looking for a newer program.
    if checksum(&header[4..10], payload) != u32::from_le_bytes([c0, c1, c2, c3]) {
        return Err(StorageError::corrupt(format!("checksum mismatch in an envelope of kind {kind}")));
    }
    if found_kind != kind {
        return Err(StorageError::corrupt(format!("an envelope of kind {found_kind} where {kind} should be")));
    }
    if version == 0 {
        return Err(StorageError::corrupt(format!("an envelope of kind {kind} has version 0")));
    }
    if version > known_version {
        let what = format!("an envelope of kind {kind}");
        return Err(StorageError::Version { what, found: version.into(), known: known_version.into() });
    }
    Ok((version, payload))
}

/// A folder that is about to become ours holds nothing but what a start leaves behind, or a new file system.
fn check_empty(dir: &Path) -> Result<(), StorageError> {
    let entries = std::fs::read_dir(dir).map_err(|error| StorageError::io(dir, error))?;
    for entry in entries {
        let name = entry.map_err(|error| StorageError::io(dir, error))?.file_name();
        let name = name.to_string_lossy();
        if !["lock", "lost+found"].contains(&name.as_ref()) && !name.starts_with('.') {
            return Err(StorageError::Foreign { folder: dir.to_path_buf(), name: name.into_owned() });
        }
    }
    Ok(())
}

fn checksum(head: &[u8], payload: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(head), payload)
}

/// Checks that a data folder can be used by this program; an empty one becomes ours. Makes the folder if it is missing.
///
/// # Errors
/// `Version` if a newer program wrote it, `Foreign` if it holds what is not ours, `Corrupt` if the file `format` is unreadable or is missing beside data.
pub fn check_data_dir(dir: &Path) -> Result<(), StorageError> {
    durable_file::create_dir_durably(dir)?;
    let path = dir.join(FORMAT_FILE);
    let Some(bytes) = durable_file::read(&path)? else {
        if ["raft", "blobs"].iter().any(|name| dir.join(name).exists()) {
            let what = format!("{} holds data but no file `{FORMAT_FILE}`", dir.display());
            return Err(StorageError::corrupt(what));
        }
        check_empty(dir)?;
        return durable_file::write_atomically(&path, format!("flotilla {DATA_VERSION}\n").as_bytes());
    };
    let found: u32 = std::str::from_utf8(&bytes)
        .ok()
        .and_then(|text| text.strip_prefix("flotilla "))
        .and_then(|text| text.trim_end().parse().ok())
        .ok_or_else(|| StorageError::corrupt(format!("{} is not a format file", path.display())))?;
    if found > DATA_VERSION {
        let what = format!("the data folder {}", dir.display());
        return Err(StorageError::Version { what, found, known: DATA_VERSION });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOLDEN: &[u8] = include_bytes!("../testdata/envelope-kind7-version3.bin");

    #[test]
    fn the_released_bytes_still_read_and_are_still_written() {
        assert_eq!(open(7, 3, GOLDEN).unwrap(), b"flotilla envelope");
        assert_eq!(seal(7, 3, b"flotilla envelope"), GOLDEN);
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_noticed() {
        let sealed = seal(7, 3, b"payload");
        for position in 0..sealed.len() * 8 {
            let mut bytes = sealed.clone();
            bytes[position / 8] ^= 1 << (position % 8);
            assert!(matches!(open(7, 3, &bytes), Err(StorageError::Corrupt { .. })), "bit {position}");
        }
        for end in 0..sealed.len() {
            assert!(matches!(open(7, 3, &sealed[..end]), Err(StorageError::Corrupt { .. })), "cut at {end}");
        }
        assert!(matches!(open(8, 3, &sealed), Err(StorageError::Corrupt { .. })));
    }

    #[test]
    fn a_newer_version_is_named_not_called_damage() {
        let sealed = seal(7, 3, b"");
        assert!(matches!(open(7, 2, &sealed), Err(StorageError::Version { found: 3, known: 2, .. })));
        assert_eq!(open_versioned(7, 5, &sealed).unwrap(), (3, &[][..]));
    }

    #[test]
    fn a_data_folder_of_a_newer_program_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        check_data_dir(&data).unwrap();
        check_data_dir(&data).unwrap();
        std::fs::write(data.join(FORMAT_FILE), "flotilla 2\n").unwrap();
        assert!(matches!(check_data_dir(&data), Err(StorageError::Version { found: 2, known: 1, .. })));
        std::fs::write(data.join(FORMAT_FILE), "what").unwrap();
        assert!(matches!(check_data_dir(&data), Err(StorageError::Corrupt { .. })));
    }

    #[test]
    fn data_without_a_format_file_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("raft")).unwrap();
        assert!(matches!(check_data_dir(dir.path()), Err(StorageError::Corrupt { .. })));
    }
}

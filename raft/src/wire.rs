//! The versioned encoding of everything that outlives a process or crosses the peer port: bincode (fixed-size
//! integers, by position) inside the storage crate's envelope. `testdata/` holds golden bytes of each form.

use bincode::Options;
use flotilla_storage::StorageError;
use flotilla_storage::format;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// The largest message that is decoded, in bytes; nothing in the log or in one RPC comes near it.
pub const MESSAGE_MAX: u64 = 64 << 20;

/// What an envelope holds. Permanent: add, never reuse. Kinds below 16 are the storage crate's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// A log entry.
    Entry = 16,
    /// A vote.
    Vote = 17,
    /// A log id (committed, purged).
    LogId = 18,
    /// A row of state.
    Row = 19,
    /// A request of the peer port.
    Request = 20,
    /// An answer of the peer port.
    Response = 21,
    /// The head of a row that lies in parts.
    LongRow = 24,
}

/// The version of every form today.
pub const VERSION: u8 = 1;

fn options() -> impl Options {
    bincode::DefaultOptions::new().with_fixint_encoding().with_limit(MESSAGE_MAX)
}

/// Encodes a value.
///
/// # Errors
/// A value larger than [`MESSAGE_MAX`], or one that bincode cannot express.
pub fn encode<T: Serialize>(kind: Kind, value: &T) -> Result<Vec<u8>, StorageError> {
    let payload = options().serialize(value).map_err(|problem| corrupt(kind, &problem))?;
    Ok(format::seal(kind as u8, VERSION, &payload))
}

/// Decodes a value.
///
/// # Errors
/// Damaged bytes, another kind, trailing bytes, or a version that this build does not know.
pub fn decode<T: DeserializeOwned>(kind: Kind, bytes: &[u8]) -> Result<T, StorageError> {
    let payload = format::open(kind as u8, VERSION, bytes)?;
    options().deserialize(payload).map_err(|problem| corrupt(kind, &problem))
}

/// Whether these bytes say that they are of this kind; decoding checks them.
pub(crate) fn is_kind(kind: Kind, bytes: &[u8]) -> bool {
    format::kind_of(bytes) == Some(kind as u8)
}

fn corrupt(kind: Kind, problem: &bincode::Error) -> StorageError {
    StorageError::Corrupt { what: format!("{kind:?}: {problem}") }
}

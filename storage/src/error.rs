//! The one error of this crate. Its variants say what a caller can do, which mostly is: stop the node.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Why bytes could not be stored or read back.
///
/// It can be cloned, because one failed sync answers every caller that waited for it.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StorageError {
    /// The operating system refused; the path says where.
    // Not as a source: its words are in the message.
    #[error("{}: {error}", path.display())]
    Io {
        /// The file or folder concerned.
        path: PathBuf,
        /// What the operating system said.
        error: Arc<io::Error>,
    },
    /// sled failed or panicked. The store that saw it stays closed.
    #[error("sled failed while {doing}: {message}")]
    Sled {
        /// What this crate was about, e.g. `flushing`.
        doing: &'static str,
        /// sled's own words.
        message: String,
    },
    /// What was read is not what was written. Never treat it as absent.
    #[error("damaged data: {what}")]
    Corrupt {
        /// Where and how, readable alone.
        what: String,
    },
    /// Written by a newer Flotilla than this one.
    #[error("{what} has format version {found}, this program knows up to {known}: start the newer version again")]
    Version {
        /// What carries the version.
        what: String,
        /// The version found.
        found: u32,
        /// The newest version that this program reads.
        known: u32,
    },
    /// A folder that should become a data folder holds something else.
    #[error("{} is no data folder of Flotilla, and not empty: it holds `{name}`. Name an empty or a new one", folder.display())]
    Foreign {
        /// The folder.
        folder: PathBuf,
        /// One thing in it.
        name: String,
    },
    /// A flush would not reach the device: the program was linked so that sled's sync call is the C library's own.
    #[error("sled's flush does not reach the disk in this build: refusing to store anything")]
    SyncNotDurable,
    /// The store was closed, by its owner or by an earlier error.
    #[error("the store is closed")]
    Closed,
    /// The log opened without entries or a vote that were durable before. This node must not vote under its id.
    #[error("the log lost its tail: {remembered} was durable before, {found} is there now")]
    TailLost {
        /// What the sentinel remembers.
        remembered: String,
        /// What the log holds.
        found: String,
    },
    /// A view had to set aside more old rows than its limit; read the rows again with a new view.
    #[error("the view fell too far behind the writer")]
    ViewLost,
    /// A newer generation was switched to while this one was being filled.
    #[error("generation {generation} was overtaken by a newer one")]
    Superseded {
        /// The generation that will never be used.
        generation: u64,
    },
    /// Nothing more is stored: what is free is kept for the log and the state.
    #[error("{} has {free} bytes free, and {min_free} are kept for the log", folder.display())]
    Full {
        /// A folder on the disk.
        folder: PathBuf,
        /// What is free, in bytes.
        free: u64,
        /// What must stay free, in bytes.
        min_free: u64,
    },
    /// The caller should have split or refused this.
    #[error("{what} has {bytes} bytes, the limit is {limit}")]
    TooLarge {
        /// What is too large.
        what: &'static str,
        /// Its size in bytes.
        bytes: u64,
        /// The limit in bytes.
        limit: u64,
    },
}

impl StorageError {
    /// An operating system error at a path.
    pub fn io(path: &Path, error: io::Error) -> Self {
        StorageError::Io { path: path.to_path_buf(), error: Arc::new(error) }
    }

    /// Damaged data, in words that can be read alone.
    pub fn corrupt(what: impl Into<String>) -> Self {
        StorageError::Corrupt { what: what.into() }
    }
}

impl From<StorageError> for io::Error {
    fn from(error: StorageError) -> Self {
        let kind = match &error {
            StorageError::Io { error, .. } => error.kind(),
            StorageError::Foreign { .. } => io::ErrorKind::AlreadyExists,
            StorageError::Corrupt { .. } | StorageError::TailLost { .. } => io::ErrorKind::InvalidData,
            StorageError::Version { .. } => io::ErrorKind::Unsupported,
            StorageError::Full { .. } => io::ErrorKind::StorageFull,
            StorageError::TooLarge { .. } => io::ErrorKind::InvalidInput,
            StorageError::Sled { .. }
            | StorageError::SyncNotDurable
            | StorageError::Closed
            | StorageError::ViewLost
            | StorageError::Superseded { .. } => io::ErrorKind::Other,
        };
        io::Error::new(kind, error)
    }
}

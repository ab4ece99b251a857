//! How much of the disk blobs may take: not the last of it, which the log and the state need to go on.

use std::path::PathBuf;

use crate::error::StorageError;

/// The free space that blobs leave.
#[derive(Debug)]
pub(super) struct Room {
    folder: PathBuf,
    min_free: u64,
}

impl Room {
    pub(super) fn new(folder: PathBuf, min_free: u64) -> Self {
        Self { folder, min_free }
    }

    /// What this process may still write on the disk, in bytes.
    pub(super) fn free(&self) -> Result<u64, StorageError> {
        let disk = rustix::fs::statvfs(&self.folder).map_err(|error| StorageError::io(&self.folder, error.into()))?;
        Ok(disk.f_bavail.saturating_mul(disk.f_frsize))
    }

    pub(super) fn require(&self) -> Result<(), StorageError> {
        let free = self.free()?;
        match free < self.min_free {
            true => Err(StorageError::Full { folder: self.folder.clone(), free, min_free: self.min_free }),
            false => Ok(()),
        }
    }
}

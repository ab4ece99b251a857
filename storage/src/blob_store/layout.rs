//! Where blobs lie, and the folders that must exist before the first one.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::sums::Sums;
use crate::digest::{Algorithm, Digest};
use crate::durable_file;
use crate::error::StorageError;

/// Folders changed within this time before a start may hold names that a killed process did not sync. Older changes
/// were written back by the kernel (it waits for half a minute at most) or lost, and then are not there to be seen.
const RECENT: Duration = Duration::from_secs(3600);

/// What follows a blob's name in that of its checksums.
const SUMS: &str = "sums";

#[derive(Debug)]
pub(super) struct Layout {
    blobs: PathBuf,
    staging: PathBuf,
    damaged: PathBuf,
}

impl Layout {
    pub(super) fn prepare(dir: &Path) -> Result<Self, StorageError> {
        let layout = Layout { blobs: dir.join("blobs"), staging: dir.join("staging"), damaged: dir.join("damaged") };
        for algorithm in Algorithm::ALL {
            layout.prepare_algorithm(algorithm)?;
        }
        durable_file::create_dir_durably(&layout.staging)?;
        layout.empty_staging()?;
        Ok(layout)
    }

    /// All 256 folders are made at once and synced with one call, so that no seal ever has to make one.
    fn prepare_algorithm(&self, algorithm: Algorithm) -> Result<(), StorageError> {
        let root = self.blobs.join(algorithm.name());
        durable_file::create_dir_durably(&root)?;
        let mut made = false;
        for prefix in 0..=255u8 {
            let folder = root.join(hex::encode([prefix]));
            match fs::create_dir(&folder) {
                Ok(()) => made = true,
                Err(error) if error.kind() == ErrorKind::AlreadyExists => sync_if_recent(&folder)?,
                Err(error) => return Err(StorageError::io(&folder, error)),
            }
        }
        if made { durable_file::sync_folder(&root) } else { Ok(()) }
    }

    fn empty_staging(&self) -> Result<(), StorageError> {
        for path in entries(&self.staging)? {
            fs::remove_file(&path).map_err(|error| StorageError::io(&path, error))?;
        }
        Ok(())
    }

    pub(super) fn staging(&self) -> &Path {
        &self.staging
    }

    /// Where damaged files lie aside.
    pub(super) fn damaged(&self) -> &Path {
        &self.damaged
    }

    /// Removes the oldest files there, so that one more makes `limit` at most.
    pub(super) fn make_room_in_damaged(&self, limit: usize) -> Result<(), StorageError> {
        let mut aside = entries(&self.damaged)?;
        aside.sort_by_cached_key(|path| fs::metadata(path).and_then(|metadata| metadata.modified()).ok());
        for path in aside.iter().take((aside.len() + 1).saturating_sub(limit)) {
            match fs::remove_file(path) {
                Ok(()) => {}
                // Another file is put aside at the same time.
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(StorageError::io(path, error)),
            }
        }
        Ok(())
    }

    pub(super) fn folder(&self, digest: &Digest) -> PathBuf {
        let prefix = hex::encode(&digest.as_bytes()[..1]);
        self.blobs.join(digest.algorithm().name()).join(prefix)
    }

    pub(super) fn blob(&self, digest: &Digest) -> PathBuf {
        self.folder(digest).join(digest.hex())
    }

    /// Where the checksums of a blob's pieces lie.
    pub(super) fn sums(&self, digest: &Digest) -> PathBuf {
        self.blob(digest).with_extension(SUMS)
    }

    pub(super) fn walk(&self, visit: &mut dyn FnMut(Digest, u64)) -> Result<(), StorageError> {
        for algorithm in Algorithm::ALL {
            for folder in entries(&self.blobs.join(algorithm.name()))? {
                for path in entries(&folder)? {
                    if path.extension().is_some_and(|extension| extension == SUMS) {
                        // What a crash left between the two removals.
                        if !path.with_extension("").exists() {
                            Sums::remove(&path);
                        }
                        continue;
                    }
                    let Some(digest) = self.digest_of(algorithm, &path) else {
                        tracing::warn!(path = %path.display(), "not a blob: left alone");
                        continue;
                    };
                    match fs::metadata(&path) {
                        Ok(metadata) => visit(digest, metadata.len()),
                        Err(error) if error.kind() == ErrorKind::NotFound => {}
                        // The others are to be had all the same.
                        Err(error) => tracing::error!(path = %path.display(), %error, "a file cannot be looked at"),
                    }
                }
            }
        }
        Ok(())
    }

    fn digest_of(&self, algorithm: Algorithm, path: &Path) -> Option<Digest> {
        let name = path.file_name()?.to_str()?;
        let digest: Digest = format!("{}:{name}", algorithm.name()).parse().ok()?;
        (self.blob(&digest) == path).then_some(digest)
    }
}

fn sync_if_recent(folder: &Path) -> Result<(), StorageError> {
    let modified = fs::metadata(folder)
        .and_then(|metadata| metadata.modified())
        .map_err(|error| StorageError::io(folder, error))?;
    // A time in the future is an error here, and counts as recent.
    match SystemTime::now().duration_since(modified) {
        Ok(age) if age > RECENT => Ok(()),
        _ => durable_file::sync_folder(folder),
    }
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>, StorageError> {
    fs::read_dir(folder)
        .and_then(|entries| entries.map(|entry| entry.map(|entry| entry.path())).collect())
        .map_err(|error| StorageError::io(folder, error))
}

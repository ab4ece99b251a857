//! Content-addressed files: `blobs/<algorithm>/ab/abcd…`, each written in `staging/` first, and beside each one of more
//! than one piece the checksums of its pieces, `abcd….sums`.
//!
//! A blob that can be seen here is durable, and its content had its digest when it was sealed.

mod direct;
mod layout;
mod room;
mod staging;
mod sums;

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::hash::{BuildHasher, RandomState};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use crate::digest::Digest;
use crate::durable_file;
use crate::error::StorageError;
use layout::Layout;
use room::Room;
pub use staging::{SealError, Staging};
pub use sums::{BlobFile, SUMMED_BYTES, Summing, Sums};

/// Damaged files that are kept aside at most.
pub(crate) const ASIDE_MAX: usize = 100;

/// The blobs of one node. Clones share the store; all methods may be called from many threads.
#[derive(Clone, Debug)]
pub struct BlobStore {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    layout: Layout,
    room: Room,
    /// Digests whose file has its name already, but whose folder is not synced yet, with the number of seals under
    /// way. Until then they count as absent: «I have it» must never be said of what a power cut may take away.
    unsynced: Mutex<HashMap<Digest, usize>>,
    /// Digests whose file could not be read, until another takes its place or it can be read again.
    unreadable: Mutex<HashSet<Digest>>,
    /// Held while a file takes a blob's name or loses it.
    naming: Mutex<()>,
}

/// A file that was a blob. Dropping it removes it, which takes time for a large one.
#[derive(Debug)]
pub struct TakenOut {
    path: PathBuf,
}

impl Drop for TakenOut {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "a file is left until the next start");
        }
    }
}

impl BlobStore {
    /// Opens the store in a data folder: makes its folders, and removes what a crash left in `staging/`. Blobs leave
    /// `min_free` bytes of the disk to the log and the state.
    ///
    /// # Errors
    /// `Io`.
    pub fn open(dir: &Path, min_free: u64) -> Result<Self, StorageError> {
        let layout = Layout::prepare(dir)?;
        let room = Room::new(dir.to_path_buf(), min_free);
        let (unsynced, unreadable, naming) = (Mutex::default(), Mutex::default(), Mutex::default());
        Ok(BlobStore { inner: Arc::new(Inner { layout, room, unsynced, unreadable, naming }) })
    }

    /// Whether there is room for anything new. Looks at the disk.
    ///
    /// # Errors
    /// `Full`, or `Io`.
    pub fn require_room(&self) -> Result<(), StorageError> {
        self.inner.room.require()
    }

    /// What is free on the disk, in bytes.
    ///
    /// # Errors
    /// `Io`.
    pub fn free_bytes(&self) -> Result<u64, StorageError> {
        self.inner.room.free()
    }

    /// Begins a new blob whose digest may not be known yet.
    ///
    /// # Errors
    /// `Io`, or `Full`.
    pub fn stage(&self) -> Result<Staging, StorageError> {
        Staging::create(self.clone())
    }

    /// Opens a blob for reading; `None` if this node does not hold it.
    ///
    /// # Errors
    /// `Io`.
    pub fn open_blob(&self, digest: &Digest) -> Result<Option<BlobFile>, StorageError> {
        let path = self.path(digest);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(StorageError::io(&path, error)),
        };
        // After the look: what was found may have its name since a moment ago.
        if self.is_unsynced(digest) {
            return Ok(None);
        }
        let size = file.metadata().map_err(|error| StorageError::io(&path, error))?.len();
        let sums = (size > SUMMED_BYTES as u64).then(|| Sums::read(&self.inner.layout.sums(digest))).flatten();
        Ok(Some(BlobFile::new(file, size, *digest, sums)))
    }

    /// Keeps the checksums of a blob that this node holds. A failure is logged: without them, a blob that is read whole
    /// is hashed.
    pub fn keep_sums(&self, digest: &Digest, sums: &Sums) {
        let staged = self.inner.layout.staging().join(format!("{:016x}.sums", RandomState::new().hash_one(digest)));
        if let Err(error) = sums.write(&staged, &self.inner.layout.sums(digest)) {
            tracing::warn!(%digest, %error, "the checksums of a blob could not be kept");
            Sums::remove(&staged);
        }
    }

    /// The size of a blob in bytes; `None` if this node does not hold it.
    ///
    /// # Errors
    /// `Io`.
    pub fn size(&self, digest: &Digest) -> Result<Option<u64>, StorageError> {
        let found = self.size_on_disk(digest)?;
        // After the look: what was found may have its name since a moment ago.
        Ok(found.filter(|_| !self.is_unsynced(digest)))
    }

    /// Whether a blob's file could not be read when that was tried last: it is no copy to count on.
    pub fn is_unreadable(&self, digest: &Digest) -> bool {
        self.inner.unreadable.lock().contains(digest)
    }

    /// A blob's file cannot be read, this one if it was opened and has its name still. It stays.
    pub fn found_unreadable(&self, digest: &Digest, blob: Option<&BlobFile>) {
        let _turn = self.inner.naming.lock();
        if blob.is_none_or(|blob| blob.is_at(&self.path(digest))) {
            self.inner.unreadable.lock().insert(*digest);
        }
    }

    /// A blob's file can be read; says whether it could not before.
    pub fn found_readable(&self, digest: &Digest) -> bool {
        self.inner.unreadable.lock().remove(digest)
    }

    /// Takes a blob away at once, its file a little later; `None` if there was none. The caller has made sure that
    /// nobody was promised it.
    ///
    /// The removal is not synced: after a power cut the blob may be back, and is then found by who compares all files
    /// with what should be there.
    ///
    /// # Errors
    /// `Io`.
    pub fn take_out(&self, digest: &Digest) -> Result<Option<TakenOut>, StorageError> {
        let path = self.path(digest);
        let name = format!("{:016x}.removed", RandomState::new().hash_one(digest));
        let target = self.inner.layout.staging().join(name);
        match fs::rename(&path, &target) {
            Ok(()) => {
                Sums::remove(&self.inner.layout.sums(digest));
                self.found_readable(digest);
                Ok(Some(TakenOut { path: target }))
            }
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(StorageError::io(&path, error)),
        }
    }

    /// Puts a damaged blob's file aside, out of the store, for people to look at; says where. `None` if another file has
    /// taken its place. The oldest ones go beyond [`ASIDE_MAX`], and all others where the disk is full.
    ///
    /// # Errors
    /// `Io`.
    pub fn set_aside(&self, blob: &BlobFile) -> Result<Option<PathBuf>, StorageError> {
        let digest = blob.digest();
        let (path, folder) = (self.path(digest), self.inner.layout.damaged());
        durable_file::create_dir_durably(folder)?;
        self.inner.layout.make_room_in_damaged(if self.require_room().is_ok() { ASIDE_MAX } else { 1 })?;
        let _turn = self.inner.naming.lock();
        if !blob.is_at(&path) {
            return Ok(None);
        }
        let target = folder.join(format!("{}-{}", digest.algorithm().name(), digest.hex()));
        match fs::rename(&path, &target) {
            Ok(()) => Ok(Some(target)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(StorageError::io(&path, error)),
        }
    }

    /// All blobs with their sizes in bytes, in no order. For large stores prefer [`BlobStore::for_each`].
    ///
    /// # Errors
    /// `Io`.
    pub fn list(&self) -> Result<Vec<(Digest, u64)>, StorageError> {
        let mut blobs = Vec::new();
        self.for_each(&mut |digest, size_bytes| blobs.push((digest, size_bytes)))?;
        Ok(blobs)
    }

    /// Calls `visit` with each blob and its size in bytes, in no order. Blobs that come or go meanwhile may be missed.
    ///
    /// # Errors
    /// `Io`; what was visited so far stays visited.
    pub fn for_each(&self, visit: &mut dyn FnMut(Digest, u64)) -> Result<(), StorageError> {
        self.inner.layout.walk(&mut |digest, size_bytes| {
            if !self.is_unsynced(&digest) {
                visit(digest, size_bytes);
            }
        })
    }

    /// What unfinished blobs take on the disk, in bytes. Those that come or go meanwhile may be missed.
    pub fn staging_bytes(&self) -> u64 {
        let Ok(entries) = fs::read_dir(self.inner.layout.staging()) else { return 0 };
        entries.flatten().filter_map(|entry| entry.metadata().ok()).map(|metadata| metadata.len()).sum()
    }

    /// Where a blob lies or would lie.
    pub fn path(&self, digest: &Digest) -> PathBuf {
        self.inner.layout.blob(digest)
    }

    /// How long ago a blob's bytes were written, by this machine's clock; `None` if it is not here or cannot be told.
    pub fn age(&self, digest: &Digest) -> Option<Duration> {
        fs::metadata(self.path(digest)).ok()?.modified().ok()?.elapsed().ok()
    }

    fn is_unsynced(&self, digest: &Digest) -> bool {
        self.inner.unsynced.lock().contains_key(digest)
    }

    fn size_on_disk(&self, digest: &Digest) -> Result<Option<u64>, StorageError> {
        let path = self.path(digest);
        match fs::metadata(&path) {
            Ok(metadata) => Ok(Some(metadata.len())),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(StorageError::io(&path, error)),
        }
    }

    /// Gives a synced file of `length` bytes its blob's name, durably. It takes the place of one that is there already,
    /// which may be damaged.
    fn publish(&self, staged: &Path, digest: &Digest, length: u64) -> Result<(), StorageError> {
        let target = self.path(digest);
        let is_there = {
            let mut unsynced = self.inner.unsynced.lock();
            let others = unsynced.get(digest).copied().unwrap_or(0);
            // After a power cut one of the two is there.
            let is_there = others == 0 && self.size_on_disk(digest).is_ok_and(|size| size == Some(length));
            if !is_there {
                unsynced.insert(*digest, others + 1);
            }
            is_there
        };
        let renamed = {
            let _turn = self.inner.naming.lock();
            let renamed = fs::rename(staged, &target).map_err(|error| StorageError::io(&target, error));
            if renamed.is_ok() {
                self.found_readable(digest);
            }
            renamed
        };
        if renamed.is_ok() {
            // After a power cut the rename itself may be lost, and we would have acknowledged a blob that no node can
            // find. If this sync fails, the digest stays on the list: whether the name is durable is unknown for good.
            durable_file::sync_folder(&self.inner.layout.folder(digest))?;
        }
        if !is_there {
            let mut unsynced = self.inner.unsynced.lock();
            match unsynced.get_mut(digest) {
                Some(count) if *count > 1 => *count -= 1,
                _ => drop(unsynced.remove(digest)),
            }
        }
        renamed
    }
}

#[cfg(test)]
mod tests;

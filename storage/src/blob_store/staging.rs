//! A blob on its way in: a file that is hashed while it is written, and becomes visible only when its digest matches.

use std::fs::{self, File, OpenOptions};
use std::hash::{BuildHasher, RandomState};
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::BlobStore;
use super::direct::Direct;
use super::sums::{SUMMED_BYTES, Summing, Sums};
use crate::digest::{Algorithm, Digest, Hasher};
use crate::error::StorageError;
use crate::sync;

/// Bytes after which write-back is started in the background, so that the sync at the end has little left to do.
const WRITEBACK_BYTES: u64 = 8 << 20;
const READ_BYTES: usize = 256 << 10;

/// From this length in bytes on, a file is written past the page cache.
const DIRECT_FROM: u64 = 1 << 20;

/// Why a staged file did not become a blob. Either way the staged file is gone.
#[derive(Debug, Clone, thiserror::Error)]
pub enum SealError {
    /// The content has another digest than was claimed.
    #[error("the content has the digest {actual}")]
    DigestMismatch {
        /// Of the same algorithm as the claimed one.
        actual: Digest,
    },
    /// The disk failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

/// What is known of the bytes so far.
#[derive(Debug)]
struct Running {
    sha256: Hasher,
    sums: Summing,
}

impl Running {
    fn new() -> Self {
        Self { sha256: Hasher::new(Algorithm::Sha256), sums: Summing::default() }
    }
}

/// A blob being written. Dropping it without [`Staging::seal`] removes its file.
#[derive(Debug)]
pub struct Staging {
    store: BlobStore,
    file: File,
    path: PathBuf,
    length: u64,
    /// `None` after a truncation, when only reading again can tell.
    running: Option<Running>,
    writeback_from: u64,
    dirty: bool,
    /// The end of a large file, once it is large.
    direct: Option<Direct>,
    /// Direct writing is not possible for this file.
    never_direct: bool,
    /// A sync or a direct write failed: the kernel may have dropped pages, and the next sync would succeed without them.
    failed: bool,
}

impl Staging {
    pub(super) fn create(store: BlobStore) -> Result<Self, StorageError> {
        store.require_room()?;
        loop {
            let path = store.inner.layout.staging().join(format!("{:016x}", RandomState::new().hash_one(())));
            match OpenOptions::new().read(true).write(true).create_new(true).open(&path) {
                Ok(file) => {
                    return Ok(Staging {
                        store,
                        file,
                        path,
                        length: 0,
                        running: Some(Running::new()),
                        writeback_from: 0,
                        dirty: true,
                        direct: None,
                        never_direct: false,
                        failed: false,
                    });
                }
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                Err(error) => return Err(StorageError::io(&path, error)),
            }
        }
    }

    /// Appends bytes.
    ///
    /// # Errors
    /// `Full`, or `Io`; the length is then unchanged, and the same bytes may be written again, unless the file is large
    /// and the error `Io`: then it is `Closed` from now on.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), StorageError> {
        if self.failed {
            return Err(StorageError::Closed);
        }
        self.store.require_room()?;
        self.dirty = true;
        if self.direct.is_none() && self.length >= DIRECT_FROM && !self.never_direct {
            self.go_direct()?;
        }
        let written = match &mut self.direct {
            Some(direct) => direct.write(bytes).inspect_err(|_| self.failed = true),
            None => self.file.write_all_at(bytes, self.length),
        };
        written.map_err(|error| StorageError::io(&self.path, error))?;
        self.length += bytes.len() as u64;
        if let Some(running) = &mut self.running {
            running.sha256.update(bytes);
            running.sums.update(bytes);
        }
        if self.direct.is_none() && self.length - self.writeback_from >= WRITEBACK_BYTES {
            self.start_writeback();
        }
        Ok(())
    }

    fn go_direct(&mut self) -> Result<(), StorageError> {
        let start = Direct::start(self.length);
        let mut tail = vec![0; usize::try_from(self.length - start).unwrap_or_default()];
        self.file.read_exact_at(&mut tail, start).map_err(|error| StorageError::io(&self.path, error))?;
        self.direct = Direct::open(&self.path, start, &tail);
        self.never_direct = self.direct.is_none();
        Ok(())
    }

    /// Bytes written so far.
    pub fn len(&self) -> u64 {
        self.length
    }

    /// Whether nothing was written yet.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Where the bytes lie until they are sealed.
    pub fn file_path(&self) -> &Path {
        &self.path
    }

    /// Starts writing to the device what was not started yet, without waiting. Happens by itself every 8 MiB.
    pub fn start_writeback(&mut self) {
        if self.length > self.writeback_from {
            sync::start_writeback(&self.file, self.writeback_from, self.length - self.writeback_from);
            self.writeback_from = self.length;
        }
    }

    /// Makes what was written so far durable (`fdatasync`), e.g. while the rest is still coming in.
    ///
    /// # Errors
    /// `Io`; from then on `Closed`, because a second sync may succeed although bytes were lost.
    pub fn sync(&mut self) -> Result<(), StorageError> {
        if self.failed {
            return Err(StorageError::Closed);
        }
        if self.dirty {
            let flushed = self.direct.as_mut().map_or(Ok(()), Direct::flush);
            let synced =
                flushed.and_then(|()| self.file.sync_data()).map_err(|error| StorageError::io(&self.path, error));
            self.failed = synced.is_err();
            synced?;
            self.dirty = false;
            self.writeback_from = self.length;
        }
        Ok(())
    }

    /// Reads bytes already written, at an offset, into `buffer`; returns how many, 0 at the end.
    ///
    /// # Errors
    /// `Io`.
    pub fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<usize, StorageError> {
        // What a failed write left past the length is not content, nor is the padding of a direct one.
        let in_file = self.direct.as_ref().map_or(self.length, Direct::offset);
        if let Some(direct) = self.direct.as_ref().filter(|_| offset >= in_file) {
            let skip = usize::try_from(offset - in_file).unwrap_or(usize::MAX);
            let pending = direct.pending().get(skip..).unwrap_or_default();
            let count = buffer.len().min(pending.len());
            buffer[..count].copy_from_slice(&pending[..count]);
            return Ok(count);
        }
        let left = usize::try_from(in_file.saturating_sub(offset)).unwrap_or(usize::MAX);
        let end = buffer.len().min(left);
        self.file.read_at(&mut buffer[..end], offset).map_err(|error| StorageError::io(&self.path, error))
    }

    /// Drops everything from `length` on; a length past the end changes nothing.
    ///
    /// # Errors
    /// `Io`.
    pub fn truncate(&mut self, length: u64) -> Result<(), StorageError> {
        if length >= self.length {
            return Ok(());
        }
        if self.failed {
            return Err(StorageError::Closed);
        }
        match &mut self.direct {
            Some(direct) if length >= direct.offset() => direct.truncate(length),
            _ => self.cut_file(length)?,
        }
        self.length = length;
        self.writeback_from = self.writeback_from.min(length);
        self.running = (length == 0).then(Running::new);
        self.dirty = true;
        Ok(())
    }

    fn cut_file(&mut self, length: u64) -> Result<(), StorageError> {
        self.direct = None;
        self.file.set_len(length).map_err(|error| StorageError::io(&self.path, error))
    }

    /// The digest of what was written so far. Sha256 is at hand unless [`Staging::truncate`] cut something off;
    /// otherwise the file is read again.
    ///
    /// # Errors
    /// `Io`.
    pub fn digest(&self, algorithm: Algorithm) -> Result<Digest, StorageError> {
        Ok(self.measure(algorithm)?.0)
    }

    /// Makes the content durable and visible under its digest, and returns its size in bytes.
    ///
    /// If the store holds the blob already, this file takes the place of that one.
    ///
    /// # Errors
    /// `DigestMismatch` if the content is another; nothing becomes visible then. `Storage` if the disk failed.
    pub fn seal(mut self, digest: &Digest) -> Result<u64, SealError> {
        let (actual, sums) = self.measure(digest.algorithm())?;
        if actual != *digest {
            return Err(SealError::DigestMismatch { actual });
        }
        if let Some(mut direct) = self.direct.take() {
            direct.flush().map_err(|error| StorageError::io(&self.path, error))?;
        }
        // Cut off what a failed write may have left, and padding, which are not part of what was hashed.
        let on_disk = self.file.metadata().map_err(|error| StorageError::io(&self.path, error))?.len();
        if on_disk != self.length {
            self.file.set_len(self.length).map_err(|error| StorageError::io(&self.path, error))?;
            self.dirty = true;
        }
        self.sync()?;
        self.store.publish(&self.path, digest, self.length)?;
        if self.length > SUMMED_BYTES as u64 {
            self.store.keep_sums(digest, &sums);
        }
        Ok(self.length)
    }

    fn measure(&self, algorithm: Algorithm) -> Result<(Digest, Sums), StorageError> {
        match (&self.running, algorithm) {
            (Some(running), Algorithm::Sha256) => Ok((running.sha256.clone().finish(), running.sums.clone().finish())),
            _ => self.read_again(algorithm),
        }
    }

    fn read_again(&self, algorithm: Algorithm) -> Result<(Digest, Sums), StorageError> {
        let (mut hasher, mut sums) = (Hasher::new(algorithm), Summing::default());
        let mut buffer = vec![0; READ_BYTES];
        let mut offset = 0;
        while offset < self.length {
            let count = self.read_at(offset, &mut buffer)?;
            if count == 0 {
                return Err(StorageError::corrupt(format!("{} became shorter", self.path.display())));
            }
            hasher.update(&buffer[..count]);
            sums.update(&buffer[..count]);
            offset += count as u64;
        }
        Ok((hasher.finish(), sums.finish()))
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // After a seal the file has moved, unless the blob was there already.
        match fs::remove_file(&self.path) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => {
                tracing::warn!(path = %self.path.display(), %error, "a staging file stays behind")
            }
        }
    }
}

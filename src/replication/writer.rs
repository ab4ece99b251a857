//! Writes a staging file on the blocking pool while the next pieces are still on their way.

use bytes::Bytes;
use flotilla_storage::{Algorithm, Digest, SealError, Staging, StorageError};
use tokio::task::JoinHandle;

/// Bytes that may wait for the disk before the sender is held back.
const QUEUED_MAX: usize = 1024 * 1024;

/// A staging file and the pieces on their way into it.
///
/// Everything that waits can be cancelled: a piece that was accepted is then still written, and the next call finds
/// the file as it is.
pub(super) struct Writer {
    /// `None` while a batch is being written, and after a batch was lost to a panic.
    staging: Option<Staging>,
    running: Option<JoinHandle<(Staging, Result<(), StorageError>)>>,
    queued: Vec<Bytes>,
    queued_bytes: usize,
    length: u64,
}

impl Writer {
    /// Goes on at the end of `staging`.
    pub(super) fn new(staging: Staging) -> Self {
        let length = staging.len();
        Self { staging: Some(staging), running: None, queued: Vec::new(), queued_bytes: 0, length }
    }

    /// Bytes accepted so far, written or on their way.
    pub(super) fn len(&self) -> u64 {
        self.length
    }

    /// Accepts a piece; waits only while too much is queued.
    ///
    /// # Errors
    /// An earlier piece could not be written.
    pub(super) async fn write(&mut self, piece: Bytes) -> Result<(), StorageError> {
        self.length += piece.len() as u64;
        self.queued_bytes += piece.len();
        self.queued.push(piece);
        if self.running.as_ref().is_none_or(JoinHandle::is_finished) || self.queued_bytes >= QUEUED_MAX {
            self.join().await?;
            self.start()?;
        }
        Ok(())
    }

    /// Waits until every accepted piece is in the file (not yet durable).
    ///
    /// # Errors
    /// A piece could not be written.
    pub(super) async fn flush(&mut self) -> Result<(), StorageError> {
        self.join().await?;
        if !self.queued.is_empty() {
            self.start()?;
            self.join().await?;
        }
        Ok(())
    }

    /// Drops everything from `length` on, after an error too.
    ///
    /// # Errors
    /// The file could not be cut.
    pub(super) async fn truncate(&mut self, length: u64) -> Result<(), StorageError> {
        self.queued.clear();
        self.queued_bytes = 0;
        // What failed lies past `length`: the bytes before it were flushed when their request ended.
        let _ = self.join().await;
        let mut staging = self.take()?;
        // As a running batch, so that the file is not lost when whoever waits for this goes away.
        self.running = Some(tokio::task::spawn_blocking(move || {
            let result = staging.truncate(length);
            (staging, result)
        }));
        self.length = length.min(self.length);
        self.join().await
    }

    /// The digest of everything accepted.
    ///
    /// # Errors
    /// A piece could not be written, or the file not be read again.
    pub(super) async fn digest(&mut self, algorithm: Algorithm) -> Result<Digest, StorageError> {
        self.flush().await?;
        let staging = self.take()?;
        let (staging, digest) = blocking(move || {
            let digest = staging.digest(algorithm);
            (staging, digest)
        })
        .await?;
        self.staging = Some(staging);
        digest
    }

    /// Makes the content durable under its digest; says its size in bytes.
    ///
    /// # Errors
    /// It has another digest, or the disk failed. Either way the file is gone.
    pub(super) async fn seal(mut self, digest: Digest) -> Result<u64, SealError> {
        self.flush().await?;
        let staging = self.take()?;
        blocking(move || staging.seal(&digest)).await?
    }

    async fn join(&mut self) -> Result<(), StorageError> {
        let Some(running) = &mut self.running else { return Ok(()) };
        let joined = running.await;
        self.running = None;
        let (staging, result) = joined.map_err(|_| StorageError::Closed)?;
        self.staging = Some(staging);
        result
    }

    fn start(&mut self) -> Result<(), StorageError> {
        let mut staging = self.take()?;
        let pieces = std::mem::take(&mut self.queued);
        self.queued_bytes = 0;
        self.running = Some(tokio::task::spawn_blocking(move || {
            let result = pieces.iter().try_for_each(|piece| staging.write(piece));
            (staging, result)
        }));
        Ok(())
    }

    fn take(&mut self) -> Result<Staging, StorageError> {
        self.staging.take().ok_or(StorageError::Closed)
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        // Removing a large file takes milliseconds, too long for an async thread. (A running batch drops its own.)
        if let (Some(staging), Ok(runtime)) = (self.staging.take(), tokio::runtime::Handle::try_current()) {
            runtime.spawn_blocking(move || drop(staging));
        }
    }
}

/// Runs `work` on the blocking pool.
///
/// # Errors
/// `Closed`: it panicked, or the node is stopping.
pub(super) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, StorageError> {
    tokio::task::spawn_blocking(work).await.map_err(|_| StorageError::Closed)
}

#[cfg(test)]
mod tests {
    use flotilla_storage::BlobStore;

    use super::*;

    #[tokio::test]
    async fn pieces_arrive_in_order_and_are_hashed() {
        let folder = tempfile::tempdir().unwrap();
        let blobs = BlobStore::open(folder.path(), 0).unwrap();
        let mut writer = Writer::new(blobs.stage().unwrap());
        let content: Vec<u8> = (0..3_000_000u32).map(|number| (number % 251) as u8).collect();
        for piece in content.chunks(77_777) {
            writer.write(Bytes::copy_from_slice(piece)).await.unwrap();
        }
        let digest = Digest::of(Algorithm::Sha512, &content);
        assert_eq!(writer.digest(Algorithm::Sha512).await.unwrap(), digest);
        assert_eq!(writer.seal(digest).await.unwrap(), content.len() as u64);
        assert_eq!(blobs.size(&digest).unwrap(), Some(content.len() as u64));
    }

    #[tokio::test]
    async fn what_is_cut_off_leaves_no_trace() {
        let folder = tempfile::tempdir().unwrap();
        let blobs = BlobStore::open(folder.path(), 0).unwrap();
        let mut writer = Writer::new(blobs.stage().unwrap());
        writer.write(Bytes::from_static(b"kept")).await.unwrap();
        writer.flush().await.unwrap();
        writer.write(Bytes::from_static(b"lost")).await.unwrap();
        writer.truncate(4).await.unwrap();
        assert_eq!(writer.len(), 4);
        assert_eq!(writer.digest(Algorithm::Sha256).await.unwrap(), Digest::of(Algorithm::Sha256, b"kept"));
    }
}

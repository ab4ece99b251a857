//! Copies of uploads that other nodes hold: bytes that come in while the client still sends them to the owner.
//!
//! The owner counts: it says at which offset a request's bytes begin. What a request brought stays only if the
//! request completed, here as on the owner, so that both agree after any break.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use flotilla_storage::{BlobStore, Digest, SealError, StorageError};
use futures::Stream;
use parking_lot::Mutex;
use tokio::time::timeout;
use uuid::Uuid;

use super::pieces::{BodyError, Pieces};
use super::writer::{Writer, blocking};

/// How long a request waits for the one before it, which may still be noticing that its connection broke.
const TURN_TIMEOUT: Duration = Duration::from_secs(5);

/// Why a copy could not be written or sealed.
#[derive(Debug, thiserror::Error)]
pub(super) enum CopyError {
    /// There is none, or it was sealed or dropped.
    #[error("no copy of this upload")]
    Unknown,
    /// As many copies as this node takes.
    #[error("too many copies of uploads")]
    TooMany,
    /// Another request is at work on it.
    #[error("the copy is being written")]
    Busy,
    /// The copy ends elsewhere.
    #[error("the copy has {length} bytes")]
    Offset {
        /// Where.
        length: u64,
    },
    /// It would become larger than a blob may be.
    #[error("larger than a blob may be")]
    TooLarge,
    /// The body did not come whole.
    #[error(transparent)]
    Body(#[from] BodyError),
    /// The bytes are not those of the digest, or the disk failed.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// The disk failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

/// The copies on this node.
pub(super) struct Copies {
    blobs: BlobStore,
    limits: Limits,
    table: Mutex<HashMap<Uuid, Arc<Copy>>>,
}

/// What one copy, and all together, may be.
pub(super) struct Limits {
    /// Copies at a time.
    pub(super) copies: usize,
    /// The largest blob in bytes.
    pub(super) blob_size: u64,
    /// The longest pause within a body.
    pub(super) stall: Duration,
}

struct Copy {
    content: tokio::sync::Mutex<Content>,
    touched: Mutex<Instant>,
}

struct Content {
    /// `None` until the first byte, and after the seal.
    writer: Option<Writer>,
    /// The end of the last complete request, in bytes.
    committed: u64,
    gone: bool,
}

impl Copies {
    /// None yet.
    pub(super) fn new(blobs: BlobStore, limits: Limits) -> Self {
        Self { blobs, limits, table: Mutex::default() }
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.table.lock().len()
    }

    /// Appends a request's bytes at `offset`; says how long the copy is now.
    pub(super) async fn append<S, E>(&self, upload: Uuid, offset: u64, body: S) -> Result<u64, CopyError>
    where
        S: Stream<Item = Result<Bytes, E>> + Unpin,
    {
        let copy = self.find_or_begin(upload, offset)?;
        let mut content = timeout(TURN_TIMEOUT, copy.content.lock()).await.map_err(|_| CopyError::Busy)?;
        if content.gone {
            return Err(CopyError::Unknown);
        }
        content.go_to(offset).await?;
        let result = self.receive(&copy, &mut content, body).await;
        copy.touch();
        match result {
            Ok(()) => {
                content.committed = content.len();
                Ok(content.committed)
            }
            Err(error) => {
                content.go_to(offset).await?;
                Err(error)
            }
        }
    }

    async fn receive<S, E>(&self, copy: &Copy, content: &mut Content, body: S) -> Result<(), CopyError>
    where
        S: Stream<Item = Result<Bytes, E>> + Unpin,
    {
        let mut pieces = Pieces::new(body, self.limits.stall);
        while let Some(piece) = pieces.next().await {
            let piece = piece?;
            if content.len() + piece.len() as u64 > self.limits.blob_size {
                return Err(CopyError::TooLarge);
            }
            if content.writer.is_none() {
                let blobs = self.blobs.clone();
                content.writer = Some(Writer::new(blocking(move || blobs.stage()).await??));
            }
            if let Some(writer) = &mut content.writer {
                writer.write(piece).await?;
            }
            copy.touch();
        }
        match &mut content.writer {
            Some(writer) => Ok(writer.flush().await?),
            None => Ok(()),
        }
    }

    /// Makes the copy a durable blob of `size` bytes. It is gone afterwards, whatever comes of it, unless its length
    /// differs.
    pub(super) async fn seal(&self, upload: Uuid, digest: Digest, size: u64) -> Result<(), CopyError> {
        let copy = self.find(upload).ok_or(CopyError::Unknown)?;
        let mut content = timeout(TURN_TIMEOUT, copy.content.lock()).await.map_err(|_| CopyError::Busy)?;
        if content.gone {
            return Err(CopyError::Unknown);
        }
        if content.committed != size || content.len() != size {
            return Err(CopyError::Offset { length: content.committed });
        }
        content.gone = true;
        self.table.lock().remove(&upload);
        let writer = content.writer.take().ok_or(CopyError::Unknown)?;
        writer.seal(digest).await?;
        Ok(())
    }

    /// Forgets a copy and its bytes.
    pub(super) fn remove(&self, upload: Uuid) -> bool {
        let copy = self.table.lock().remove(&upload);
        let Some(copy) = copy else { return false };
        // A request at work on it holds the lock, and drops the bytes itself when it ends: nobody else knows the copy.
        if let Ok(mut content) = copy.content.try_lock() {
            content.gone = true;
            content.writer = None;
        }
        true
    }

    /// The copies that nobody touched for `idle`.
    pub(super) fn idle(&self, idle: Duration) -> Vec<Uuid> {
        let table = self.table.lock();
        table.iter().filter(|(_, copy)| copy.touched.lock().elapsed() >= idle).map(|(upload, _)| *upload).collect()
    }

    /// Whether a copy of `size` bytes was written to within `recent`: a blob of that size is probably on its way.
    pub(super) fn is_arriving(&self, size: u64, recent: Duration) -> bool {
        let table = self.table.lock();
        table.values().any(|copy| {
            // A locked copy is being written or sealed right now.
            let may_fit = copy.content.try_lock().map_or(true, |content| content.len() == size);
            may_fit && copy.touched.lock().elapsed() < recent
        })
    }

    fn find(&self, upload: Uuid) -> Option<Arc<Copy>> {
        self.table.lock().get(&upload).cloned()
    }

    fn find_or_begin(&self, upload: Uuid, offset: u64) -> Result<Arc<Copy>, CopyError> {
        let mut table = self.table.lock();
        if let Some(copy) = table.get(&upload) {
            return Ok(Arc::clone(copy));
        }
        if offset != 0 {
            return Err(CopyError::Offset { length: 0 });
        }
        if table.len() >= self.limits.copies {
            return Err(CopyError::TooMany);
        }
        let content = Content { writer: None, committed: 0, gone: false };
        let copy = Arc::new(Copy { content: content.into(), touched: Mutex::new(Instant::now()) });
        table.insert(upload, Arc::clone(&copy));
        Ok(copy)
    }
}

impl Copy {
    fn touch(&self) {
        *self.touched.lock() = Instant::now();
    }
}

impl Content {
    fn len(&self) -> u64 {
        self.writer.as_ref().map_or(0, Writer::len)
    }

    /// Goes back to `offset`, dropping what an interrupted request left, or what its owner took back.
    async fn go_to(&mut self, offset: u64) -> Result<(), CopyError> {
        if offset > self.committed {
            return Err(CopyError::Offset { length: self.committed });
        }
        self.committed = offset;
        if let Some(writer) = &mut self.writer
            && writer.len() != offset
        {
            writer.truncate(offset).await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use flotilla_storage::Algorithm;
    use futures::stream;

    use super::*;

    fn copies(folder: &tempfile::TempDir) -> Copies {
        let limits = Limits { copies: 2, blob_size: 10, stall: Duration::from_secs(1) };
        Copies::new(BlobStore::open(folder.path(), 0).unwrap(), limits)
    }

    fn body(chunks: &[Result<&'static str, ()>]) -> impl Stream<Item = Result<Bytes, ()>> + Unpin {
        stream::iter(chunks.iter().map(|chunk| chunk.map(Bytes::from)).collect::<Vec<_>>())
    }

    #[tokio::test]
    async fn a_copy_becomes_a_blob() {
        let folder = tempfile::tempdir().unwrap();
        let copies = copies(&folder);
        let upload = Uuid::from_u128(1);
        assert_eq!(copies.append(upload, 0, body(&[Ok("ab"), Ok("c")])).await.unwrap(), 3);
        assert_eq!(copies.append(upload, 3, body(&[Ok("d")])).await.unwrap(), 4);
        let digest = Digest::of(Algorithm::Sha256, b"abcd");
        copies.seal(upload, digest, 4).await.unwrap();
        assert_eq!(copies.blobs.size(&digest).unwrap(), Some(4));
        assert!(matches!(copies.seal(upload, digest, 4).await, Err(CopyError::Unknown)));
    }

    #[tokio::test]
    async fn an_interrupted_request_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let copies = copies(&folder);
        let upload = Uuid::from_u128(1);
        copies.append(upload, 0, body(&[Ok("ab")])).await.unwrap();
        assert!(matches!(copies.append(upload, 2, body(&[Ok("x"), Err(())])).await, Err(CopyError::Body(_))));
        assert_eq!(copies.append(upload, 2, body(&[Ok("cd")])).await.unwrap(), 4);
        copies.seal(upload, Digest::of(Algorithm::Sha256, b"abcd"), 4).await.unwrap();
    }

    #[tokio::test]
    async fn the_owner_may_go_back_but_not_ahead() {
        let folder = tempfile::tempdir().unwrap();
        let copies = copies(&folder);
        let upload = Uuid::from_u128(1);
        copies.append(upload, 0, body(&[Ok("abcd")])).await.unwrap();
        assert_eq!(copies.append(upload, 1, body(&[Ok("x")])).await.unwrap(), 2);
        assert!(matches!(copies.append(upload, 3, body(&[Ok("x")])).await, Err(CopyError::Offset { length: 2 })));
    }

    #[tokio::test]
    async fn limits_hold() {
        let folder = tempfile::tempdir().unwrap();
        let copies = copies(&folder);
        assert!(matches!(
            copies.append(Uuid::from_u128(1), 0, body(&[Ok("12345678901")])).await,
            Err(CopyError::TooLarge)
        ));
        copies.append(Uuid::from_u128(2), 0, body(&[])).await.unwrap();
        assert!(matches!(copies.append(Uuid::from_u128(3), 0, body(&[])).await, Err(CopyError::TooMany)));
        assert_eq!(copies.idle(Duration::ZERO).len(), 2);
        assert!(copies.remove(Uuid::from_u128(1)));
        assert!(!copies.remove(Uuid::from_u128(1)));
    }
}

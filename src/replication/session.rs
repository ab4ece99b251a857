//! One upload session: bytes that come in by one request after the other, and become a blob of its repository.
//!
//! The offset is the end of the last request that completed. What an interrupted request brought is cut off again,
//! at the latest when the next request begins: a client that asks for the offset is told bytes that all arrived.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use flotilla_raft::command::INLINE_BODY_MAX;
use flotilla_raft::{Pin, RepositoryName};
use flotilla_storage::{Digest, StorageError};
use futures::Stream;
use parking_lot::Mutex;
use tokio::sync::OwnedMutexGuard;
use tokio::time::timeout;
use uuid::Uuid;

use super::Replication;
use super::fanout::Fanout;
use super::pieces::{BodyError, Pieces};
use super::writer::{Writer, blocking};
use crate::memory::{Budget, Share};

/// How long a request waits for the one before it, which may still be noticing that its connection broke.
const TURN_TIMEOUT: Duration = Duration::from_secs(1);

/// Why a request to an upload session did not do what it asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UploadError {
    /// No such session in this repository: finished, given up, or never there.
    #[error("upload session not known")]
    Unknown,
    /// Another request is at work on it.
    #[error("another request is at work on the upload session")]
    Busy,
    /// The chunk does not begin where the session ends.
    #[error("the chunk must begin at byte {offset}")]
    OutOfOrder {
        /// The session's offset in bytes.
        offset: u64,
    },
    /// The body is not as long as its `Content-Range` says.
    #[error("the body has another length than its Content-Range")]
    WrongLength,
    /// The blob would become larger than the limit.
    #[error("a blob may have {limit} bytes at most")]
    TooLarge {
        /// The limit in bytes.
        limit: u64,
    },
    /// The body did not come whole.
    #[error(transparent)]
    Body(#[from] BodyError),
    /// The bytes have another digest.
    #[error("the uploaded bytes do not have the digest {digest}")]
    DigestMismatch {
        /// The digest that the client named.
        digest: Digest,
    },
    /// As many sessions are open as this node holds.
    #[error("too many upload sessions are open")]
    TooMany,
    /// Too few nodes answer. The session stays, and the request may be repeated.
    #[error("too few nodes can be reached")]
    NoQuorum,
    /// The blob may have been linked or not: the request may be repeated.
    #[error("it is not known whether the upload was finished")]
    OutcomeUnknown,
    /// This node's disk failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

/// An upload session.
pub(crate) struct Session {
    replication: Replication,
    id: Uuid,
    repository: RepositoryName,
    memory: Budget,
    content: Arc<tokio::sync::Mutex<Content>>,
    offset: AtomicU64,
    cancelled: AtomicBool,
    touched: Mutex<Instant>,
    /// The digest that was proposed under this session's id.
    proposed: OnceLock<Digest>,
}

/// Where a session's bytes are.
pub(super) enum Content {
    /// Few: they will travel in the log, or go to a file once they are more.
    Memory(Held),
    /// In a staging file here and in copies on their way to other nodes.
    File(Box<OnDisk>),
    /// A durable file here; what is missing is enough copies, or the log's answer.
    Sealed {
        /// The blob's digest.
        digest: Digest,
        /// Its size in bytes.
        size: u64,
        /// Keeps the file until it has a name.
        _pin: Pin,
    },
    /// The session is over.
    Gone,
}

/// A session's file and its copies.
pub(super) struct OnDisk {
    /// This node's file.
    pub(super) writer: Writer,
    /// The other nodes' copies.
    pub(super) fanout: Fanout,
}

/// Bytes in memory, counted.
pub(super) struct Held {
    bytes: Vec<u8>,
    share: Share,
}

impl Held {
    fn extend(&mut self, piece: &[u8]) -> bool {
        let fits = (self.bytes.len() + piece.len()) as u64 <= INLINE_BODY_MAX && self.share.grow(piece.len());
        if fits {
            self.bytes.extend_from_slice(piece);
        }
        fits
    }

    fn truncate(&mut self, length: u64) {
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        self.bytes.truncate(length);
        self.share.shrink_to(self.bytes.len());
    }

    /// The bytes themselves.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

impl Session {
    pub(super) fn new(replication: Replication, id: Uuid, repository: RepositoryName, memory: Budget) -> Self {
        let held = Held { bytes: Vec::new(), share: memory.share() };
        Self {
            replication,
            id,
            repository,
            memory,
            content: Arc::new(Content::Memory(held).into()),
            offset: AtomicU64::new(0),
            cancelled: AtomicBool::new(false),
            touched: Mutex::new(Instant::now()),
            proposed: OnceLock::new(),
        }
    }

    /// The digest that was proposed under this session's id.
    pub(super) fn proposed(&self) -> &OnceLock<Digest> {
        &self.proposed
    }

    /// Its id, which is also the request id of the link that it ends in.
    pub(crate) fn id(&self) -> Uuid {
        self.id
    }

    /// The repository that the blob will belong to.
    pub(crate) fn repository(&self) -> &RepositoryName {
        &self.repository
    }

    pub(super) fn replication(&self) -> &Replication {
        &self.replication
    }

    /// Bytes of all completed requests.
    pub(crate) fn offset(&self) -> u64 {
        self.offset.load(Ordering::Acquire)
    }

    /// Waits for the request before, if there is one, and excludes others until the turn is over.
    ///
    /// # Errors
    /// `Busy`, `Unknown`; `Storage` where a former request's rest could not be cut off.
    pub(crate) async fn turn(self: &Arc<Self>) -> Result<Turn, UploadError> {
        let lock = Arc::clone(&self.content).lock_owned();
        let content = timeout(TURN_TIMEOUT, lock).await.map_err(|_| UploadError::Busy)?;
        let mut turn = Turn { session: Arc::clone(self), content };
        turn.roll_back().await?;
        self.check_open()?;
        match *turn.content {
            Content::Gone => Err(UploadError::Unknown),
            _ => Ok(turn),
        }
    }

    /// Gives the session up. A request at work on it brings its body to the end, and hears that there is none.
    pub(crate) fn cancel(&self) {
        self.cancelled.store(true, Ordering::Release);
        self.replication.close_session(self.id);
        if let Ok(mut content) = self.content.try_lock() {
            *content = Content::Gone;
        }
    }

    /// # Errors
    /// `Unknown` once it was given up.
    pub(super) fn check_open(&self) -> Result<(), UploadError> {
        if self.cancelled.load(Ordering::Acquire) { Err(UploadError::Unknown) } else { Ok(()) }
    }

    pub(super) fn is_busy(&self) -> bool {
        self.content.try_lock().is_err()
    }

    pub(super) fn idle(&self) -> Duration {
        self.touched.lock().elapsed()
    }

    fn touch(&self) {
        *self.touched.lock() = Instant::now();
    }
}

/// A request's exclusive hold of a session.
pub(crate) struct Turn {
    pub(super) session: Arc<Session>,
    pub(super) content: OwnedMutexGuard<Content>,
}

impl Turn {
    /// Bytes of all completed requests.
    pub(crate) fn offset(&self) -> u64 {
        self.session.offset()
    }

    /// Whether the bytes are durable here under their digest already, and its links are what is left to do.
    pub(crate) fn is_sealed(&self) -> bool {
        matches!(*self.content, Content::Sealed { .. })
    }

    /// Takes a request's body, of `length` bytes where that is known. It counts once [`Turn::commit`] or
    /// [`Turn::finish`] is called; after an error the session is where it was before.
    ///
    /// # Errors
    /// See [`UploadError`].
    pub(crate) async fn append<S, E>(&mut self, body: S, length: Option<u64>) -> Result<(), UploadError>
    where
        S: Stream<Item = Result<Bytes, E>> + Unpin,
    {
        // A closing request that is repeated with its body brings bytes that are durable here already.
        if self.is_sealed() {
            return Ok(());
        }
        let result = self.receive(body, length).await;
        self.session.touch();
        if result.is_err() {
            self.roll_back().await?;
        }
        result
    }

    async fn receive<S, E>(&mut self, body: S, length: Option<u64>) -> Result<(), UploadError>
    where
        S: Stream<Item = Result<Bytes, E>> + Unpin,
    {
        let config = self.session.replication.config();
        let (limit, start) = (config.max_blob_size.as_u64(), self.offset());
        let mut pieces = Pieces::new(body, config.body_timeout);
        let mut came = 0;
        if length.is_some_and(|length| start.saturating_add(length) > limit) {
            return Err(UploadError::TooLarge { limit });
        }
        while let Some(piece) = pieces.next().await {
            let piece = piece?;
            came += piece.len() as u64;
            if length.is_some_and(|length| came > length) {
                return Err(UploadError::WrongLength);
            }
            if start + came > limit {
                return Err(UploadError::TooLarge { limit });
            }
            self.take(piece).await?;
            self.session.touch();
        }
        match length {
            Some(length) if came != length => Err(UploadError::WrongLength),
            _ => Ok(()),
        }
    }

    async fn take(&mut self, piece: Bytes) -> Result<(), UploadError> {
        if let Content::Memory(held) = &mut *self.content {
            if held.extend(&piece) {
                return Ok(());
            }
            self.spill().await?;
        }
        match &mut *self.content {
            Content::File(file) => Ok(file.push(piece).await?),
            Content::Memory(_) | Content::Sealed { .. } | Content::Gone => Err(UploadError::Unknown),
        }
    }

    /// Moves the bytes from memory to a file, and begins the copies on other nodes.
    async fn spill(&mut self) -> Result<(), UploadError> {
        let replication = &self.session.replication;
        let blobs = replication.blobs().clone();
        let staging = blocking(move || blobs.stage()).await??;
        // The digest is not known yet: the copies go to any nodes, and move to where they belong once it is.
        let (key, copies) = (self.session.id.as_bytes(), replication.wanted(&self.session.repository).replicas);
        let mut peers = replication.takers(key.last_chunk::<8>().map_or(&[], |key| key), copies);
        peers.truncate(copies.saturating_sub(1));
        let fanout = Fanout::begin(replication.peers(), self.session.id, peers, replication.config().body_timeout);
        let mut file = Box::new(OnDisk { writer: Writer::new(staging), fanout });
        if let Content::Memory(held) = &*self.content
            && !held.bytes.is_empty()
        {
            file.push(Bytes::copy_from_slice(&held.bytes)).await?;
            // Memory holds them until they are written: they belong to requests that are over.
            file.writer.flush().await?;
        }
        *self.content = Content::File(file);
        Ok(())
    }

    /// Keeps what the request brought; says the new offset.
    ///
    /// # Errors
    /// The disk failed.
    pub(crate) async fn commit(mut self) -> Result<u64, UploadError> {
        self.session.check_open()?;
        match &mut *self.content {
            Content::Gone => return Err(UploadError::Unknown),
            // Nothing may be added to what is durable under its digest already.
            Content::Sealed { size, .. } => return Err(UploadError::OutOfOrder { offset: *size }),
            Content::Memory(_) => {}
            Content::File(file) => {
                if let Err(error) = file.writer.flush().await {
                    self.roll_back().await?;
                    return Err(error.into());
                }
                file.fanout.commit().await;
            }
        }
        let offset = self.content.len();
        self.session.offset.store(offset, Ordering::Release);
        Ok(offset)
    }

    /// Drops what came since the last completed request.
    pub(super) async fn roll_back(&mut self) -> Result<(), StorageError> {
        let offset = self.offset();
        if self.content.len() == offset {
            return Ok(());
        }
        match &mut *self.content {
            Content::Memory(held) => held.truncate(offset),
            // A session without bytes has no file and no copies.
            Content::File(_) if offset == 0 => {
                let held = Held { bytes: Vec::new(), share: self.session.memory.share() };
                *self.content = Content::Memory(held);
            }
            Content::File(file) => {
                file.fanout.abort();
                file.writer.truncate(offset).await?;
            }
            Content::Sealed { .. } | Content::Gone => {}
        }
        Ok(())
    }

    /// The file has become a blob here.
    pub(super) fn sealed(&mut self, digest: Digest, size: u64) {
        let (_, pin) = self.session.replication.consensus().promises().pin(&digest);
        *self.content = Content::Sealed { digest, size, _pin: pin };
        self.session.offset.store(size, Ordering::Release);
    }
}

impl Content {
    fn len(&self) -> u64 {
        match self {
            Self::Memory(held) => held.bytes.len() as u64,
            Self::File(file) => file.writer.len(),
            Self::Sealed { size, .. } => *size,
            Self::Gone => 0,
        }
    }
}

impl OnDisk {
    async fn push(&mut self, piece: Bytes) -> Result<(), StorageError> {
        let written = self.writer.write(piece.clone());
        let (written, ()) = futures::join!(written, self.fanout.push(&piece));
        written
    }
}

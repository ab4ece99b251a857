//! Reads a blob: from this node's file, else from a node that holds it, and from the next one when that dies.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use flotilla_raft::Member;
use flotilla_storage::{BlobStore, Digest, StorageError};
use futures::stream::BoxStream;
use futures::{Stream, StreamExt, TryStreamExt, stream};
use tokio::time::timeout;

use super::keep::Keeper;
use super::peers::STALL_TIMEOUT;
use super::pieces::{Buffer, PIECE_MAX, Transfer};
use super::tally::Found;
use super::verified::verified;
use super::writer::blocking;
use super::{Replication, placement};

/// The most bytes that are taken from the page cache at once: a little less than what actix-web keeps as a connection's
/// write buffer, so that it needs no fresh memory for each piece, and small enough to stay in a core's cache.
const CACHED_PIECE: usize = 120 * 1024;

/// Why a blob cannot be read now.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReadBlobError {
    /// Not here, and no node that has it answers.
    #[error("no node that holds the blob can be reached")]
    Unreachable,
    /// This node's disk failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

/// The bytes of a blob, in pieces.
pub(crate) struct BlobStream(BoxStream<'static, io::Result<Bytes>>);

impl BlobStream {
    pub(super) fn new(pieces: impl Stream<Item = io::Result<Bytes>> + Send + 'static) -> Self {
        Self(pieces.boxed())
    }
}

impl Stream for BlobStream {
    type Item = io::Result<Bytes>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_next_unpin(context)
    }
}

impl Replication {
    /// The bytes `range` of a blob of `size` bytes. Errors after the first byte mean that no node could go on, or that
    /// they are not those of the digest, which is looked at where all of it is asked for.
    ///
    /// # Errors
    /// The first byte cannot be had from anywhere.
    pub(crate) async fn read(
        &self,
        digest: &Digest,
        size: u64,
        range: Range<u64>,
    ) -> Result<BlobStream, ReadBlobError> {
        let is_whole = range.start == 0 && range.end == size && size > 0;
        match self.read_local(digest, range.clone()).await {
            Ok(Some(local)) if is_whole => match self.checked_local(*digest, local).await {
                Some(checked) => return Ok(checked),
                None => tracing::warn!(%digest, "this node's copy of a blob is damaged: others are asked for theirs"),
            },
            Ok(Some(local)) => return Ok(local),
            Ok(None) if self.belongs_here(digest) => self.missed(digest, size),
            Ok(None) => {}
            // Others have copies: a file that cannot even be opened is no reason to fail a pull.
            Err(error) => {
                tracing::error!(%digest, %error, "this node's copy of a blob cannot be read");
                self.suspect(*digest);
            }
        }
        let remote = self.read_remote(digest, size, range).await?;
        match is_whole {
            true => Ok(BlobStream::new(verified(remote, *digest, || {}))),
            false => Ok(remote),
        }
    }

    /// This node's copy, hashed on its way; `None` if it turns out to be damaged before anything was sent.
    async fn checked_local(&self, digest: Digest, local: BlobStream) -> Option<BlobStream> {
        let replication = self.clone();
        let mut checked = verified(local, digest, move || replication.suspect(digest)).boxed();
        let first = checked.next().await?.ok()?;
        Some(BlobStream::new(stream::once(async { Ok(first) }).chain(checked)))
    }

    /// A file that was here is not: repair works off what is counted as missing.
    fn missed(&self, digest: &Digest, size: u64) {
        if self.tally().is_held(digest) {
            tracing::warn!(%digest, "this node's copy of a blob is gone: it is fetched again");
            self.tally().record(digest, size, Found::Missing);
        }
    }

    /// The bytes of this node's own copy; `None` where it has none.
    pub(super) async fn read_local(
        &self,
        digest: &Digest,
        range: Range<u64>,
    ) -> Result<Option<BlobStream>, StorageError> {
        let (blobs, digest) = (self.blobs().clone(), *digest);
        let transfer = Transfer::begin();
        let mut position = range.start;
        let first_size = piece_length(&transfer, &range, position);
        // Opening and the first piece are one trip to the blocking pool: most blobs have no second piece.
        let opened = blocking(move || -> Result<_, StorageError> {
            let Some((file, _)) = blobs.open_blob(&digest)? else { return Ok(None) };
            let first = read_piece(&file, position, first_size)
                .map_err(|error| StorageError::io(&blobs.path(&digest), error))?;
            Ok(Some((file, first)))
        });
        let Some((file, first)) = opened.await?? else { return Ok(None) };
        position += first.len() as u64;
        let rest = FileStream { file: Arc::new(file), transfer, range, position };
        Ok(Some(BlobStream(rest.after(first).boxed())))
    }

    async fn read_remote(&self, digest: &Digest, size: u64, range: Range<u64>) -> Result<BlobStream, ReadBlobError> {
        let keeper = match range.start == 0 && range.end == size && self.belongs_here(digest) {
            true => Keeper::begin(self, *digest, size).await,
            false => None,
        };
        let mut remote = Remote {
            replication: self.clone(),
            digest: *digest,
            range,
            holders: self.holders_to_ask(digest),
            progressed: false,
            chunks: None,
            keeper,
        };
        let Some(first) = remote.next().await else { return Ok(BlobStream(stream::empty().boxed())) };
        let first = first.map_err(|_| ReadBlobError::Unreachable)?;
        let rest = stream::unfold(remote, |mut remote| async move { remote.next().await.map(|item| (item, remote)) });
        Ok(BlobStream(stream::once(async { Ok(first) }).chain(rest).boxed()))
    }

    /// Whether placement gives this node a copy.
    pub(super) fn belongs_here(&self, digest: &Digest) -> bool {
        let members = self.consensus().members();
        placement::placed(digest, &members, self.copies_of(digest)).contains(&self.node_id())
    }

    /// All other members: those that answer first, and among them those that should have the blob.
    pub(super) fn holders_to_ask(&self, digest: &Digest) -> VecDeque<Member> {
        let (own, members) = (self.node_id(), self.consensus().members());
        let mut ordered = placement::ordered(digest.as_bytes(), &members, self.copies_of(digest));
        // A stable sort: the order of placement stays among those that answer, and among those that do not.
        ordered.sort_by_key(|id| !self.consensus().reachable(*id));
        let others = ordered.into_iter().filter(|id| *id != own);
        others.filter_map(|id| members.iter().find(|member| member.id == id).cloned()).collect()
    }
}

/// A blob on its way from other nodes.
struct Remote {
    replication: Replication,
    digest: Digest,
    /// What is still to come.
    range: Range<u64>,
    /// Not asked yet since the last byte came.
    holders: VecDeque<Member>,
    progressed: bool,
    chunks: Option<BoxStream<'static, io::Result<Bytes>>>,
    keeper: Option<Keeper>,
}

impl Remote {
    async fn next(&mut self) -> Option<io::Result<Bytes>> {
        while !self.range.is_empty() {
            if self.chunks.is_none() && !self.connect().await {
                return Some(Err(io::Error::new(io::ErrorKind::NotFound, "no node could go on with the blob")));
            }
            if let Some(chunk) = self.chunk().await {
                self.range.start += chunk.len() as u64;
                if let Some(keeper) = &mut self.keeper {
                    keeper.push(&chunk).await;
                }
                return Some(Ok(chunk));
            }
            self.chunks = None;
        }
        // Dropped with every byte of the blob in it, the keeper seals its copy.
        self.keeper = None;
        None
    }

    /// Asks one holder after the other until one answers.
    async fn connect(&mut self) -> bool {
        // After a break all may be asked again, those too that failed before: each byte is a new chance.
        if std::mem::take(&mut self.progressed) {
            self.holders = self.replication.holders_to_ask(&self.digest);
        }
        while let Some(peer) = self.holders.pop_front() {
            match self.replication.peers().get(&peer, &self.digest, self.range.clone()).await {
                Ok(response) => {
                    self.chunks = Some(response.bytes_stream().map_err(io::Error::other).boxed());
                    return true;
                }
                Err(error) => tracing::debug!(digest = %self.digest, %error, "a node could not give a blob"),
            }
        }
        false
    }

    /// The next bytes of the current connection; `None` when it broke, stalled or ended too early.
    async fn chunk(&mut self) -> Option<Bytes> {
        let chunks = self.chunks.as_mut()?;
        let mut chunk = timeout(STALL_TIMEOUT, chunks.next()).await.ok()??.ok()?;
        if chunk.is_empty() {
            return None;
        }
        let left = self.range.end - self.range.start;
        if chunk.len() as u64 > left {
            chunk.truncate(usize::try_from(left).unwrap_or(usize::MAX));
        }
        self.progressed = true;
        Some(chunk)
    }
}

/// A file read piece by piece: on this thread what the page cache holds, on the blocking pool what must come from the
/// disk.
struct FileStream {
    file: Arc<File>,
    transfer: Transfer,
    range: Range<u64>,
    /// Where the next piece to be read begins.
    position: u64,
}

impl FileStream {
    fn after(self, first: Bytes) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
        let first = (!first.is_empty()).then_some(Ok(first));
        let rest = stream::unfold(self, |mut file| async move { file.next().await.map(|piece| (piece, file)) });
        stream::iter(first).chain(rest)
    }

    async fn next(&mut self) -> Option<io::Result<Bytes>> {
        let length = piece_length(&self.transfer, &self.range, self.position);
        if length == 0 {
            return None;
        }
        let piece = match read_cached(&self.file, self.position, length.min(CACHED_PIECE)) {
            Some(piece) => Ok(piece),
            None => {
                let (file, position) = (Arc::clone(&self.file), self.position);
                let read = tokio::task::spawn_blocking(move || read_piece(&file, position, length));
                read.await.unwrap_or_else(|error| Err(io::Error::other(error)))
            }
        };
        match &piece {
            Ok(piece) => self.position += piece.len() as u64,
            Err(error) => tracing::error!(%error, "a blob's file could not be read"),
        }
        Some(piece)
    }
}

fn piece_length(transfer: &Transfer, range: &Range<u64>, position: u64) -> usize {
    let left = usize::try_from(range.end.saturating_sub(position)).unwrap_or(usize::MAX);
    left.min(transfer.piece_size())
}

fn read_piece(file: &File, position: u64, length: usize) -> io::Result<Bytes> {
    if length == 0 {
        return Ok(Bytes::new());
    }
    let mut buffer = Buffer::new(length);
    file.read_exact_at(buffer.whole(), position)?;
    Ok(buffer.freeze())
}

/// What the page cache holds of the next bytes; `None` if nothing, or if the file system cannot say. Never waits for
/// the disk, so that it may run on an async thread: two hand-overs to another one cost more than this read.
fn read_cached(file: &File, position: u64, length: usize) -> Option<Bytes> {
    let mut buffer = Buffer::new(PIECE_MAX);
    let target = &mut [io::IoSliceMut::new(buffer.first(length))];
    let count = rustix::io::preadv2(file, target, position, rustix::io::ReadWriteFlags::NOWAIT).ok()?;
    buffer.first(count);
    (count > 0).then(|| buffer.freeze())
}

/// The bytes of this node's own copy, opened when they are first asked for.
pub(super) fn local_file(
    blobs: BlobStore,
    digest: Digest,
    range: Range<u64>,
) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
    let opened = async move {
        let opened = blocking(move || blobs.open_blob(&digest)).await.map_err(io::Error::other)?;
        let (file, _) = opened?.ok_or(io::Error::from(io::ErrorKind::NotFound))?;
        let position = range.start;
        let stream = FileStream { file: Arc::new(file), transfer: Transfer::begin(), range, position };
        Ok::<_, io::Error>(stream.after(Bytes::new()))
    };
    stream::once(opened).try_flatten()
}

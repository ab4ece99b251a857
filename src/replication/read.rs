//! Reads a blob: from this node's file, else from a node that holds it, and from the next one when that dies.

use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use flotilla_raft::Member;
use flotilla_storage::{Digest, StorageError};
use futures::stream::BoxStream;
use futures::{Stream, StreamExt, TryStreamExt, stream};
use tokio::time::timeout;

use super::file::FileReader;
use super::keep::Keeper;
use super::peers::STALL_TIMEOUT;
use super::tally::Found;
use super::verified::verified;
use super::{Replication, placement};

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
    /// all of it was asked for and the bytes are not those of the digest.
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
        match FileReader::open(self.blobs().clone(), *digest, range.clone()).await {
            Ok(Some((file, first))) if file.is_checked() => {
                return Ok(self.or_from_others(*digest, size, range, file, first));
            }
            Ok(Some((file, first))) if !is_whole => {
                // The next one is compared with checksums.
                self.suspect(*digest);
                return Ok(self.or_from_others(*digest, size, range, file, first));
            }
            Ok(Some((file, first))) => match self.hashed(*digest, file.after(first)).await {
                Some(hashed) => return Ok(hashed),
                None => tracing::warn!(%digest, "this node's copy of a blob is damaged: others are asked for theirs"),
            },
            Ok(None) if self.belongs_here(digest) => self.missed(digest, size),
            Ok(None) => {}
            // Others have copies: a file that cannot be read is no reason to fail a pull.
            Err(error) => {
                tracing::error!(%digest, %error, "this node's copy of a blob cannot be read: others are asked for theirs");
                self.suspect(*digest);
            }
        }
        let remote = self.read_remote(digest, size, range, false).await?;
        match is_whole {
            true => Ok(BlobStream::new(verified(remote, *digest, || {}))),
            false => Ok(remote),
        }
    }

    /// This node's copy, and from the first piece on that cannot be had of it, those of others.
    fn or_from_others(
        &self,
        digest: Digest,
        size: u64,
        mut range: Range<u64>,
        file: FileReader,
        first: Bytes,
    ) -> BlobStream {
        range.start += first.len() as u64;
        let reading = Reading { replication: self.clone(), digest, size, range, source: Source::File(file) };
        let rest =
            stream::unfold(reading, |mut reading| async move { reading.next().await.map(|item| (item, reading)) });
        let first = (!first.is_empty()).then_some(Ok(first));
        BlobStream::new(stream::iter(first).chain(rest))
    }

    /// This node's copy without checksums, hashed on its way; `None` if it turns out to be damaged before anything was
    /// sent.
    async fn hashed(
        &self,
        digest: Digest,
        local: impl Stream<Item = io::Result<Bytes>> + Send + 'static,
    ) -> Option<BlobStream> {
        let replication = self.clone();
        let mut hashed = verified(BlobStream::new(local), digest, move || replication.suspect(digest)).boxed();
        let first = hashed.next().await?.ok()?;
        self.suspect(digest);
        Some(BlobStream::new(stream::once(async { Ok(first) }).chain(hashed)))
    }

    /// A file that was here is not: repair works off what is counted as missing.
    fn missed(&self, digest: &Digest, size: u64) {
        if self.tally().is_held(digest) {
            tracing::warn!(%digest, "this node's copy of a blob is gone: it is fetched again");
            self.tally().record(digest, size, Found::Missing);
        }
    }

    /// The bytes of this node's own copy; `None` where it has none, or, with `only_checked`, none with checksums.
    pub(super) async fn read_local(
        &self,
        digest: &Digest,
        range: Range<u64>,
        only_checked: bool,
    ) -> Result<Option<BlobStream>, StorageError> {
        let opened = FileReader::open(self.blobs().clone(), *digest, range).await;
        let Some((file, first)) = opened.inspect_err(|_| self.suspect(*digest))? else { return Ok(None) };
        if !file.is_checked() {
            self.suspect(*digest);
            if only_checked {
                return Ok(None);
            }
        }
        let (replication, digest) = (self.clone(), *digest);
        Ok(Some(BlobStream::new(file.after(first).inspect_err(move |_| replication.suspect(digest)))))
    }

    /// The bytes of other nodes' copies; with `only_checked`, of those that have checksums.
    async fn read_remote(
        &self,
        digest: &Digest,
        size: u64,
        range: Range<u64>,
        only_checked: bool,
    ) -> Result<BlobStream, ReadBlobError> {
        let keeper = match range.start == 0 && range.end == size && self.belongs_here(digest) {
            true => Keeper::begin(self, *digest, size).await,
            false => None,
        };
        let mut remote = Remote {
            replication: self.clone(),
            digest: *digest,
            range,
            only_checked,
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

/// A blob on its way from this node's file, or from others once that turned out to be bad.
struct Reading {
    replication: Replication,
    digest: Digest,
    size: u64,
    /// What is still to come.
    range: Range<u64>,
    source: Source,
}

enum Source {
    File(FileReader),
    Others(BlobStream),
}

impl Reading {
    async fn next(&mut self) -> Option<io::Result<Bytes>> {
        if let Source::File(file) = &mut self.source {
            match file.next().await? {
                Ok(piece) => {
                    self.range.start += piece.len() as u64;
                    return Some(Ok(piece));
                }
                Err(error) => {
                    let digest = self.digest;
                    tracing::error!(%digest, %error, "this node's copy of a blob is damaged: others give the rest");
                    self.replication.suspect(digest);
                    // What was sent already is not at hand to be hashed with the rest.
                    match self.replication.read_remote(&digest, self.size, self.range.clone(), true).await {
                        Ok(others) => self.source = Source::Others(others),
                        Err(_) => return Some(Err(error)),
                    }
                }
            }
        }
        match &mut self.source {
            Source::File(_) => None,
            Source::Others(others) => others.next().await,
        }
    }
}

/// A blob on its way from other nodes.
struct Remote {
    replication: Replication,
    digest: Digest,
    /// What is still to come.
    range: Range<u64>,
    only_checked: bool,
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
            match self.replication.peers().get(&peer, &self.digest, self.range.clone(), self.only_checked).await {
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

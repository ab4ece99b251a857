//! The client side of what nodes ask each other about blobs. The server side is in `serve.rs`; `oci::uploads` serves
//! requests that belong to an upload session of another node.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use flotilla_raft::network::{Dialer, Whom};
use flotilla_raft::{Member, NodeId, RepositoryName};
use flotilla_storage::Digest;
use futures::{Stream, StreamExt};
use reqwest::header::{CONTENT_LENGTH, HeaderMap, RANGE};
use reqwest::{Body, Method, RequestBuilder, Response, StatusCode};
use tokio::time::timeout;
use uuid::Uuid;

/// No connection within this time: the peer counts as away.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);

/// The whole of a question that needs no disk.
const CONTROL_TIMEOUT: Duration = Duration::from_secs(5);

/// A walk over all files of a node.
const ORPHANS_TIMEOUT: Duration = Duration::from_secs(60);

/// No byte of a body moved within this time: the peer is given up.
pub(super) const STALL_TIMEOUT: Duration = Duration::from_secs(15);

/// Idle connections kept to each peer. The peer port must keep them longer than [`IDLE_TIMEOUT`], else a request
/// meets a connection that is just being closed.
const IDLE_CONNECTIONS: usize = 64;
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);

/// The slowest disk, in bytes per second, that is waited for when a peer makes a copy durable.
const SYNC_BYTES_PER_SECOND: u64 = 8 * 1024 * 1024;

/// Why a peer did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PeerError {
    /// Not a member, no connection, or the connection broke.
    #[error("node {node:012x} did not answer: {source}")]
    Unreachable {
        /// The peer.
        node: NodeId,
        /// What happened.
        #[source]
        source: reqwest::Error,
    },
    /// The peer accepted the request and then let the time limit pass.
    #[error("node {node:012x} stalled")]
    Stalled {
        /// The peer.
        node: NodeId,
    },
    /// The peer answered with another status than was hoped for.
    #[error("node {node:012x} answered {status}")]
    Refused {
        /// The peer.
        node: NodeId,
        /// Its status.
        status: StatusCode,
    },
}

/// Talks to the other nodes' peer ports about blobs. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Peers {
    dialer: Dialer,
    control: reqwest::Client,
    stream: reqwest::Client,
}

impl Peers {
    /// Makes the clients; nothing is connected yet.
    ///
    /// # Errors
    /// The TLS library could not be set up.
    pub(crate) fn new(dialer: &Dialer) -> Result<Self, reqwest::Error> {
        let builder = || {
            dialer
                .builder(Whom::Node)
                .redirect(reqwest::redirect::Policy::none())
                .connect_timeout(CONNECT_TIMEOUT)
                .pool_max_idle_per_host(IDLE_CONNECTIONS)
                .pool_idle_timeout(IDLE_TIMEOUT)
        };
        // A body may take hours: its limit is the time without progress, which each call watches itself.
        let (control, stream) = (builder().timeout(CONTROL_TIMEOUT).build()?, builder().build()?);
        Ok(Self { dialer: dialer.clone(), control, stream })
    }

    /// The size in bytes of a blob that the peer holds durably, and its promise; `None` if it does not hold it.
    pub(super) async fn promise(&self, peer: &Member, digest: &Digest) -> Result<Option<(u64, u64)>, PeerError> {
        let answer = self.send(peer, self.control.head(self.blob_url(peer, digest))).await;
        match answer {
            Ok(response) => Ok(content_length(response.headers()).zip(promised(&response))),
            Err(PeerError::Refused { status: StatusCode::NOT_FOUND, .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Whether the peer keeps a blob, by the layout of this revision: false where it knows another one.
    pub(super) async fn keeps(&self, peer: &Member, digest: &Digest, layout: u64) -> Result<bool, PeerError> {
        let request = self.control.head(self.blob_url(peer, digest)).query(&[("layout", layout)]);
        match self.send(peer, request).await {
            Ok(_) => Ok(true),
            Err(PeerError::Refused { status: StatusCode::NOT_FOUND | StatusCode::CONFLICT, .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Tells the peer that its copy of a blob was not what it should be: it looks for itself.
    pub(super) async fn suspect(&self, peer: &Member, digest: &Digest) -> Result<(), PeerError> {
        let url = format!("{}/check", self.blob_url(peer, digest));
        self.send(peer, self.control.post(url)).await.map(drop)
    }

    /// Part of a blob as the peer sends it, `checked` only if it compares that with checksums; the caller watches for
    /// stalls between chunks.
    pub(super) async fn get(
        &self,
        peer: &Member,
        digest: &Digest,
        range: Range<u64>,
        checked: bool,
    ) -> Result<Response, PeerError> {
        let last = range.end.saturating_sub(1);
        let url = format!("{}?checked={checked}", self.blob_url(peer, digest));
        let request = self.stream.get(url).header(RANGE, format!("bytes={}-{last}", range.start));
        let answer = timeout(CONTROL_TIMEOUT, self.send(peer, request)).await;
        answer.unwrap_or(Err(PeerError::Stalled { node: peer.id }))
    }

    /// Sends a whole blob; once this returns the peer has it durably, and this is its promise.
    pub(super) async fn put<S>(&self, peer: &Member, digest: &Digest, size: u64, body: S) -> Result<u64, PeerError>
    where
        S: Stream<Item = std::io::Result<Bytes>> + Send + 'static,
    {
        let request = self.stream.put(self.blob_url(peer, digest)).header(CONTENT_LENGTH, size);
        promised_by(peer, self.send_watched(peer, request, body, STALL_TIMEOUT, sync_timeout(size)).await?)
    }

    /// Appends to the peer's copy of an upload at `offset`; says how long the copy is now.
    pub(super) async fn append<S>(
        &self,
        peer: &Member,
        upload: Uuid,
        offset: u64,
        body: S,
        stall: Duration,
    ) -> Result<u64, PeerError>
    where
        S: Stream<Item = std::io::Result<Bytes>> + Send + 'static,
    {
        let request = self.stream.post(format!("{}?offset={offset}", self.copy_url(peer, upload)));
        let response = self.send_watched(peer, request, body, stall, STALL_TIMEOUT).await?;
        let refused = PeerError::Refused { node: peer.id, status: response.status() };
        header(&response, OFFSET_HEADER).ok_or(refused)
    }

    /// Makes the peer's copy of an upload a durable blob; returns its promise.
    pub(super) async fn seal(&self, peer: &Member, upload: Uuid, digest: &Digest, size: u64) -> Result<u64, PeerError> {
        let url = format!("{}/seal?digest={digest}&size={size}", self.copy_url(peer, upload));
        promised_by(peer, self.send(peer, self.control.post(url).timeout(sync_timeout(size))).await?)
    }

    /// Tells the peer that an upload is given up.
    pub(super) async fn drop_copy(&self, peer: &Member, upload: Uuid) -> Result<(), PeerError> {
        self.send(peer, self.control.delete(self.copy_url(peer, upload))).await.map(drop)
    }

    /// Lets the peer have its files without a name collected; says how many it found.
    pub(super) async fn collect_orphans(&self, peer: &Member) -> Result<u64, PeerError> {
        let request = self.control.post(self.url(peer, format_args!("/orphans"))).timeout(ORPHANS_TIMEOUT);
        let response = self.send(peer, request).await?;
        let refused = PeerError::Refused { node: peer.id, status: response.status() };
        header(&response, COUNT_HEADER).ok_or(refused)
    }

    /// Whether the peer still has the upload session `upload`.
    pub(super) async fn has_session(&self, peer: &Member, upload: Uuid) -> Result<bool, PeerError> {
        let url = self.url(peer, format_args!("/sessions/{upload}"));
        match self.send(peer, self.control.head(url)).await {
            Ok(_) => Ok(true),
            Err(PeerError::Refused { status: StatusCode::NOT_FOUND, .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Passes a client's request on to the node that holds the upload session. Any status is an answer.
    pub(crate) async fn forward_upload(
        &self,
        owner: &Member,
        method: Method,
        target: &UploadTarget<'_>,
        headers: HeaderMap,
        body: Option<Body>,
    ) -> Result<Response, PeerError> {
        let mut request = self.stream.request(method, self.upload_url(owner, target)).headers(headers);
        if let Some(body) = body {
            request = request.body(body);
        }
        request.send().await.map_err(|source| PeerError::Unreachable { node: owner.id, source })
    }

    fn url(&self, peer: &Member, path: std::fmt::Arguments<'_>) -> String {
        self.dialer.url(&peer.record.peer_address, format_args!("/peer/v1{path}"))
    }

    fn blob_url(&self, peer: &Member, digest: &Digest) -> String {
        self.url(peer, format_args!("/blobs/{digest}"))
    }

    fn copy_url(&self, peer: &Member, upload: Uuid) -> String {
        self.url(peer, format_args!("/copies/{upload}"))
    }

    fn upload_url(&self, owner: &Member, target: &UploadTarget<'_>) -> String {
        self.url(owner, format_args!("/uploads/{}/{}?{}", target.repository, target.upload, target.query))
    }

    async fn send(&self, peer: &Member, request: RequestBuilder) -> Result<Response, PeerError> {
        let node = peer.id;
        let response = request.send().await.map_err(|source| PeerError::Unreachable { node, source })?;
        let status = response.status();
        if status.is_success() { Ok(response) } else { Err(PeerError::Refused { node, status }) }
    }

    /// Sends a body and gives up when it does not move for `stall`, or the answer does not come for `last` after it.
    async fn send_watched<S>(
        &self,
        peer: &Member,
        request: RequestBuilder,
        body: S,
        stall: Duration,
        last: Duration,
    ) -> Result<Response, PeerError>
    where
        S: Stream<Item = std::io::Result<Bytes>> + Send + 'static,
    {
        let progress = Arc::new(AtomicU64::new(0));
        let request = request.body(Body::wrap_stream(counted(body, Arc::clone(&progress))));
        tokio::select! {
            answer = self.send(peer, request) => answer,
            () = no_progress(&progress, stall, last) => Err(PeerError::Stalled { node: peer.id }),
        }
    }
}

/// The header in which a copy's length in bytes comes back.
pub(super) const OFFSET_HEADER: &str = "flotilla-offset";

/// The header in which a promise comes back: the log index that the peer had applied when it was asked.
pub(super) const PROMISED_HEADER: &str = "flotilla-promised";

/// The header in which a number of files comes back.
pub(super) const COUNT_HEADER: &str = "flotilla-count";

fn header(response: &Response, name: &str) -> Option<u64> {
    response.headers().get(name)?.to_str().ok()?.parse().ok()
}

fn promised(response: &Response) -> Option<u64> {
    header(response, PROMISED_HEADER)
}

fn promised_by(peer: &Member, response: Response) -> Result<u64, PeerError> {
    promised(&response).ok_or(PeerError::Refused { node: peer.id, status: response.status() })
}

/// A client's request to an upload session of another node.
pub(crate) struct UploadTarget<'a> {
    /// The repository in the path; its grammar has no character that a URL would have to quote.
    pub(crate) repository: &'a RepositoryName,
    /// The session.
    pub(crate) upload: Uuid,
    /// The query as the client wrote it.
    pub(crate) query: &'a str,
}

// `Response::content_length` of an answer to HEAD is that of its body, which is empty.
fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

fn sync_timeout(size: u64) -> Duration {
    STALL_TIMEOUT + Duration::from_secs(size / SYNC_BYTES_PER_SECOND)
}

/// Set in the progress counter once the body has ended.
const ENDED: u64 = u64::MAX;

fn counted<S>(body: S, progress: Arc<AtomicU64>) -> impl Stream<Item = std::io::Result<Bytes>> + Send + 'static
where
    S: Stream<Item = std::io::Result<Bytes>> + Send + 'static,
{
    let end = Arc::clone(&progress);
    let pieces = body.inspect(move |_| {
        progress.fetch_add(1, Ordering::Relaxed);
    });
    let mark = futures::stream::poll_fn(move |_| {
        end.store(ENDED, Ordering::Relaxed);
        std::task::Poll::Ready(None)
    });
    pieces.chain(mark)
}

async fn no_progress(progress: &AtomicU64, stall: Duration, last: Duration) {
    loop {
        let before = progress.load(Ordering::Relaxed);
        tokio::time::sleep(if before == ENDED { last } else { stall }).await;
        if progress.load(Ordering::Relaxed) == before {
            return;
        }
    }
}

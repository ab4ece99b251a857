//! Blob bytes between nodes: upload sessions, copies on enough nodes before a name is committed, reads from whoever
//! holds a blob, repair of what is missing, and the move of what belongs elsewhere.
//!
//! **Never** decides what exists: that is the log's. A blob's file without a link is nothing that a client can see,
//! and a link whose file is elsewhere is served from there.
//!
//! A push: `oci::uploads` → [`Session`] → `writer` (this disk) and `fanout` → `peers` → *network* → `serve` →
//! `copies` (other disks) → `finish` → `Consensus::propose`. A pull: `oci::blobs` → `read` → `file` or `peers`.

mod collect;
mod copies;
mod fanout;
mod file;
mod finish;
mod keep;
mod peers;
mod pieces;
mod placement;
#[cfg(any(fuzzing, test))]
pub(crate) mod properties;
mod rate;
mod read;
mod repair;
mod scrub;
mod serve;
mod session;
mod sessions;
mod store;
mod surplus;
mod tally;
mod upload_id;
mod verified;
mod writer;

use std::sync::Arc;

use bytes::Bytes;
use flotilla_raft::network::Dialer;
use flotilla_raft::{BlobCounts, Consensus, NodeId, Replicas};
use flotilla_storage::{BlobStore, Digest, StorageError};
use futures::Stream;
use parking_lot::RwLock;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::config::Config;
use copies::{Copies, Limits};
use keep::Claims;
use rate::Rate;
use sessions::Sessions;
use tally::Tally;

pub(crate) use collect::CollectError;
pub(crate) use peers::{PeerError, Peers, UploadTarget};
pub(crate) use pieces::{BodyError, Pieces};
pub(crate) use read::ReadBlobError;
pub(crate) use scrub::Scrub;
pub(crate) use serve::configure_peer;
pub(crate) use session::{Session, Turn, UploadError};
pub(crate) use sessions::OneRequest;
pub(crate) use store::StoreError;

/// A node's blobs and upload sessions, as part of the cluster. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Replication {
    inner: Arc<Inner>,
}

struct Inner {
    consensus: Consensus,
    blobs: BlobStore,
    config: Arc<Config>,
    peers: Peers,
    sessions: Sessions,
    copies: Copies,
    claims: Claims,
    tally: Tally,
    /// The digests that have another number of copies than the configuration says.
    replicas: RwLock<Replicas>,
    /// How fast blobs that are missing here are fetched.
    repair_rate: Rate,
    scrub: Scrub,
    /// Held by who compares all files with state: one at a time, however many ask.
    walking: tokio::sync::Mutex<()>,
    stop: CancellationToken,
}

impl Replication {
    /// Nothing runs until [`Replication::start`]. `dialer` reaches the other nodes.
    ///
    /// # Errors
    /// The HTTP client could not be set up.
    pub(crate) fn new(
        consensus: Consensus,
        blobs: BlobStore,
        config: Arc<Config>,
        dialer: &Dialer,
    ) -> Result<Self, reqwest::Error> {
        let limits = Limits {
            // Each other node may have as many sessions open as this one.
            copies: config.max_uploads.saturating_mul(config.replicas),
            blob_size: config.max_blob_size.as_u64(),
            // The owner ends a body that stalls; here only an owner that died without a word is noticed.
            stall: config.body_timeout * 2,
        };
        let inner = Inner {
            peers: Peers::new(dialer)?,
            copies: Copies::new(blobs.clone(), limits),
            sessions: Sessions::default(),
            claims: Claims::default(),
            tally: Tally::default(),
            replicas: RwLock::default(),
            repair_rate: Rate::new(config.repair_rate.as_u64()),
            scrub: Scrub::new(&config.data_dir, config.scrub_period),
            walking: tokio::sync::Mutex::default(),
            stop: CancellationToken::new(),
            consensus,
            blobs,
            config,
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Starts repair, collection, and the end of uploads that were given up.
    pub(crate) fn start(&self) {
        tokio::spawn(repair::Repair::new(self.clone()).run(self.inner.stop.clone()));
        tokio::spawn(self.clone().sweep_uploads(self.inner.stop.clone()));
        tokio::spawn(self.clone().collect_by_itself(self.inner.stop.clone()));
        tokio::spawn(self.clone().remove_collected(self.inner.stop.clone()));
        tokio::spawn(self.clone().remove_surplus(self.inner.stop.clone()));
        tokio::spawn(self.clone().scrub_by_itself(self.inner.stop.clone()));
    }

    /// Ends what [`Replication::start`] started. Requests are still served.
    pub(crate) fn stop(&self) {
        self.inner.stop.cancel();
    }

    /// This node's id.
    pub(crate) fn node_id(&self) -> NodeId {
        self.consensus().node_id()
    }

    /// Whether a majority answers: without one no upload can be finished.
    pub(crate) fn quorum_reachable(&self) -> bool {
        self.consensus().quorum_reachable()
    }

    /// Gathers a client's body into pieces, each of which must come within the configured time.
    pub(crate) fn pieces<S, E>(&self, body: S) -> Pieces<S>
    where
        S: Stream<Item = Result<Bytes, E>> + Unpin,
    {
        Pieces::new(body, self.config().body_timeout)
    }

    /// The blobs that belong on this node, and those that do not.
    pub(crate) fn blob_counts(&self) -> BlobCounts {
        BlobCounts { repair_rate: self.config().repair_rate.as_u64(), ..self.tally().counts() }
    }

    /// How many nodes keep a digest.
    fn copies_of(&self, digest: &Digest) -> usize {
        self.inner.replicas.read().of(digest, self.config().replicas)
    }

    /// Upload sessions open on this node, and copies that it takes of others' sessions.
    pub(crate) fn open_uploads(&self) -> (usize, usize) {
        (self.sessions().len(), self.copies().len())
    }

    /// Whether this node's disk takes anything new.
    ///
    /// # Errors
    /// `Full`, or what the disk said.
    pub(crate) async fn require_room(&self) -> Result<(), StorageError> {
        let blobs = self.blobs().clone();
        writer::blocking(move || blobs.require_room()).await?
    }

    /// What is free on this node's disk, in bytes; 0 where that cannot be told. Blocks.
    pub(crate) fn free_bytes(&self) -> u64 {
        self.blobs().free_bytes().unwrap_or(0)
    }

    /// What unfinished uploads take on this node's disk, in bytes. Blocks.
    pub(crate) fn staging_bytes(&self) -> u64 {
        self.blobs().staging_bytes()
    }

    /// The node that holds an upload session; `None` for an id that no node gave out.
    pub(crate) fn upload_owner(&self, id: &Uuid) -> Option<NodeId> {
        upload_id::owner(id)
    }

    /// The client side of what nodes ask each other.
    pub(crate) fn peers(&self) -> &Peers {
        &self.inner.peers
    }

    /// Agreement and the applied state.
    pub(crate) fn consensus(&self) -> &Consensus {
        &self.inner.consensus
    }

    fn blobs(&self) -> &BlobStore {
        &self.inner.blobs
    }

    fn config(&self) -> &Config {
        &self.inner.config
    }

    fn sessions(&self) -> &Sessions {
        &self.inner.sessions
    }

    fn copies(&self) -> &Copies {
        &self.inner.copies
    }

    fn claims(&self) -> &Claims {
        &self.inner.claims
    }

    fn tally(&self) -> &Tally {
        &self.inner.tally
    }

    /// The comparison of this node's files with their digests.
    pub(crate) fn scrub(&self) -> &Scrub {
        &self.inner.scrub
    }
}

//! Blob bytes between nodes: upload sessions, copies on enough nodes before a name is committed, reads from whoever
//! holds a blob, and repair of what is missing.
//!
//! **Never** decides what exists: that is the log's. A blob's file without a link is nothing that a client can see,
//! and a link whose file is elsewhere is served from there.
//!
//! A push: `oci::uploads` → [`Session`] → `writer` (this disk) and `fanout` → `peers` → *network* → `serve` →
//! `copies` (other disks) → `finish` → `Consensus::propose`. A pull: `oci::blobs` → `read` → file or `peers`.

mod copies;
mod fanout;
mod finish;
mod keep;
mod peers;
mod pieces;
mod placement;
mod read;
mod repair;
mod serve;
mod session;
mod sessions;
mod store;
mod tally;
mod upload_id;
mod writer;

use std::sync::Arc;

use flotilla_raft::Consensus;
use flotilla_storage::BlobStore;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::config::Config;
use copies::{Copies, Limits};
use keep::Claims;
use sessions::Sessions;
use tally::Tally;

pub(crate) use finish::Finished;
pub(crate) use peers::{PeerError, Peers, UploadTarget};
pub(crate) use pieces::BodyError;
pub(crate) use read::{BlobStream, ReadBlobError};
pub(crate) use serve::configure_peer;
pub(crate) use session::{Session, Turn, UploadError};
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
    tally: Arc<Tally>,
}

impl Replication {
    /// Nothing runs until [`Replication::start`].
    ///
    /// # Errors
    /// The HTTP client could not be set up.
    pub(crate) fn new(consensus: Consensus, blobs: BlobStore, config: Arc<Config>) -> Result<Self, reqwest::Error> {
        let limits = Limits {
            // Each other node may have as many sessions open as this one.
            copies: config.max_uploads.saturating_mul(config.replicas),
            blob_size: config.max_blob_size.as_u64(),
            // The owner ends a body that stalls; here only an owner that died without a word is noticed.
            stall: config.body_timeout * 2,
        };
        let inner = Inner {
            peers: Peers::new()?,
            copies: Copies::new(blobs.clone(), limits),
            sessions: Sessions::default(),
            claims: Claims::default(),
            tally: Arc::default(),
            consensus,
            blobs,
            config,
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Starts repair and the end of what was given up, until `stop`.
    pub(crate) fn start(&self, stop: &CancellationToken) {
        tokio::spawn(repair::Repair::new(self.clone()).run(stop.clone()));
        tokio::spawn(self.clone().sweep_uploads(stop.clone()));
    }

    /// How many blobs that belong on this node it holds, and how many it misses.
    pub(crate) fn held_and_missing(&self) -> (u64, u64) {
        self.tally().counts()
    }

    /// The node that holds an upload session; `None` for an id that no node gave out.
    pub(crate) fn upload_owner(&self, id: &Uuid) -> Option<flotilla_raft::NodeId> {
        upload_id::owner(id)
    }

    /// The client side of what nodes ask each other.
    pub(crate) fn peers(&self) -> &Peers {
        &self.inner.peers
    }

    fn consensus(&self) -> &Consensus {
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
}

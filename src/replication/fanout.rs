//! Sends an upload to other nodes while it comes in, so that their disks work at the same time as ours.
//!
//! A lane is one peer's copy. Its task sends the bytes of each client request as one streamed POST. A lane that
//! fails or stays full is given up; its peer gets the whole blob later.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use flotilla_raft::{Member, NodeId};
use flotilla_storage::Digest;
use futures::{Stream, stream};
use tokio::sync::{Mutex, OwnedMutexGuard, mpsc, oneshot};
use tokio::time::timeout;
use uuid::Uuid;

use super::peers::{PeerError, Peers};

/// Pieces that may wait for one peer. All lanes and the local writer share their bytes.
const QUEUED_PIECES: usize = 4;

/// How long the upload waits for a peer whose queue is full.
const SLOW_PEER: Duration = Duration::from_secs(2);

/// The copies of one upload on other nodes.
pub(super) struct Fanout {
    lanes: Vec<Lane>,
}

struct Lane {
    node: NodeId,
    items: mpsc::Sender<Item>,
}

enum Item {
    Piece(Bytes),
    /// The request's bytes are complete: the peer keeps them.
    Commit,
    /// The request failed: the peer goes back to where it began.
    Abort,
    Seal {
        digest: Digest,
        size: u64,
        answer: oneshot::Sender<u64>,
    },
}

impl Fanout {
    /// Begins an empty copy on each of `nodes`. `stall` is how long a client may pause within a body.
    pub(super) fn begin(peers: &Peers, upload: Uuid, nodes: Vec<Member>, stall: Duration) -> Self {
        let lanes = nodes.into_iter().map(|peer| {
            let (items, received) = mpsc::channel(QUEUED_PIECES);
            let node = peer.id;
            let task = LaneTask {
                peers: peers.clone(),
                peer,
                upload,
                offset: 0,
                stall,
                items: Arc::new(Mutex::new(received)),
            };
            tokio::spawn(task.run());
            Lane { node, items }
        });
        Self { lanes: lanes.collect() }
    }

    /// Hands a piece to every lane, and gives up those that take none for too long.
    pub(super) async fn push(&mut self, piece: &Bytes) {
        let mut kept = Vec::with_capacity(self.lanes.len());
        for lane in self.lanes.drain(..) {
            if lane.push(Item::Piece(piece.clone())).await {
                kept.push(lane);
            }
        }
        self.lanes = kept;
    }

    /// Ends a request whose bytes all came.
    pub(super) async fn commit(&mut self) {
        let mut kept = Vec::with_capacity(self.lanes.len());
        for lane in self.lanes.drain(..) {
            if lane.push(Item::Commit).await {
                kept.push(lane);
            }
        }
        self.lanes = kept;
    }

    /// Takes back the bytes of a request that failed.
    pub(super) fn abort(&mut self) {
        self.lanes.retain(|lane| lane.items.try_send(Item::Abort).is_ok());
    }

    /// Ends the copies by making them durable blobs. Each peer's answer, its promise, comes by itself; a lane that was
    /// given up has none.
    pub(super) async fn seal(self, digest: Digest, size: u64) -> Vec<(NodeId, oneshot::Receiver<u64>)> {
        let mut answers = Vec::with_capacity(self.lanes.len());
        for lane in self.lanes {
            let (answer, answered) = oneshot::channel();
            if lane.push(Item::Seal { digest, size, answer }).await {
                answers.push((lane.node, answered));
            }
        }
        answers
    }
}

impl Lane {
    async fn push(&self, item: Item) -> bool {
        let sent = timeout(SLOW_PEER, self.items.send(item)).await;
        if sent.is_err() {
            tracing::warn!(node_id = format!("{:012x}", self.node), "a node is too slow to take a copy of an upload");
        }
        matches!(sent, Ok(Ok(())))
    }
}

struct LaneTask {
    peers: Peers,
    peer: Member,
    upload: Uuid,
    /// The length of the peer's copy, in bytes, at the end of the last complete request.
    offset: u64,
    stall: Duration,
    items: Arc<Mutex<mpsc::Receiver<Item>>>,
}

impl LaneTask {
    async fn run(mut self) {
        let result = self.serve().await;
        match result {
            Ok(true) => return,
            Ok(false) => {}
            Err(error) => tracing::warn!(%error, upload = %self.upload, "a copy of an upload was given up"),
        }
        // Whoever still sends into the lane must notice now, not after the peer answered.
        self.items.lock().await.close();
        if let Err(error) = self.peers.drop_copy(&self.peer, self.upload).await {
            tracing::debug!(%error, "the peer will drop the copy by itself");
        }
    }

    /// Says whether the copy became a blob.
    async fn serve(&mut self) -> Result<bool, PeerError> {
        loop {
            let mut items = Arc::clone(&self.items).lock_owned().await;
            match items.recv().await {
                Some(Item::Piece(first)) => self.send_request(first, items).await?,
                Some(Item::Commit | Item::Abort) => {}
                Some(Item::Seal { digest, size, answer }) => {
                    let promised = self.peers.seal(&self.peer, self.upload, &digest, size).await?;
                    let _ = answer.send(promised);
                    return Ok(true);
                }
                None => return Ok(false),
            }
        }
    }

    /// Streams the bytes of one client request to the peer.
    async fn send_request(&mut self, first: Bytes, items: Items) -> Result<(), PeerError> {
        let (ended, how) = oneshot::channel();
        let body = request_body(first, items, ended);
        // Longer than the client's own limit, so that a slow client does not cost the copy.
        let stall = self.stall * 2;
        let sent = self.peers.append(&self.peer, self.upload, self.offset, body, stall).await;
        match (sent, how.await) {
            (Ok(offset), _) => {
                self.offset = offset;
                Ok(())
            }
            // The break was ours: the peer went back to the offset, which is still right.
            (Err(_), Ok(End::Aborted)) => Ok(()),
            (Err(error), _) => Err(error),
        }
    }
}

type Items = OwnedMutexGuard<mpsc::Receiver<Item>>;

enum End {
    Committed,
    Aborted,
}

/// The pieces up to the end of the request; an error where it was aborted, which breaks the connection and so tells
/// the peer.
fn request_body(
    first: Bytes,
    items: Items,
    ended: oneshot::Sender<End>,
) -> impl Stream<Item = std::io::Result<Bytes>> + Send + 'static {
    stream::unfold(Some((Some(first), items, ended)), |state| async move {
        let (first, mut items, ended) = state?;
        if let Some(first) = first {
            return Some((Ok(first), Some((None, items, ended))));
        }
        match items.recv().await {
            Some(Item::Piece(piece)) => Some((Ok(piece), Some((None, items, ended)))),
            Some(Item::Commit) => {
                let _ = ended.send(End::Committed);
                None
            }
            // A seal follows a commit; without one it is as good as an abort.
            Some(Item::Abort | Item::Seal { .. }) | None => {
                let _ = ended.send(End::Aborted);
                Some((Err(std::io::Error::from(std::io::ErrorKind::ConnectionAborted)), None))
            }
        }
    })
}

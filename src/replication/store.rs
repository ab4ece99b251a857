//! Makes bytes durable on enough nodes before their name may be committed (invariant I3).

use std::time::Duration;

use bytes::Bytes;
use flotilla_raft::{Body, Member, NodeId, Pin, RepositoryName};
use flotilla_storage::{Digest, SealError, StorageError};
use futures::stream::BoxStream;
use futures::{StreamExt, stream};
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};

use super::file::local_file;
use super::placement;
use super::writer::blocking;
use super::{Replication, peers};

/// How long copies are tried while a majority is reachable but the copies do not get done.
const PATIENCE: Duration = Duration::from_secs(10);

/// How often a wait looks whether a majority is still reachable, and failed peers are asked again.
const TICK: Duration = Duration::from_millis(250);

/// Why bytes are not durable on enough nodes.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    /// Too few nodes took a copy; what this node has it keeps.
    #[error("too few nodes could take a copy")]
    NoQuorum,
    /// This node's disk failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

/// Where the bytes for other nodes come from.
#[derive(Clone)]
pub(super) enum Source {
    /// Memory.
    Bytes(Bytes),
    /// This node's own durable copy.
    File,
}

/// One blob's copies, as they become durable on other nodes.
pub(super) struct Copying {
    replication: Replication,
    digest: Digest,
    size: u64,
    source: Source,
    /// What this node had applied when it took the bytes, and what keeps them here until they have a name.
    promised: u64,
    _pin: Pin,
    wanted: Wanted,
    /// Who has it durably, and what each had applied when it promised that.
    done: Vec<(NodeId, u64)>,
    /// Asked and not yet failed, or failed since the last pause.
    asked: Vec<NodeId>,
    running: JoinSet<(NodeId, Option<u64>)>,
}

/// How many copies a repository's blobs have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Wanted {
    /// In the end.
    pub(super) replicas: usize,
    /// Before a push is acknowledged.
    pub(super) min_copies: usize,
}

impl Replication {
    /// Makes a body durable here and on enough other nodes. The rest of the copies follow by themselves.
    ///
    /// # Errors
    /// Too few nodes took it, or this one's disk failed.
    pub(crate) async fn store(
        &self,
        repository: &RepositoryName,
        bytes: Bytes,
        digest: &Digest,
    ) -> Result<Body, StoreError> {
        let digest = *digest;
        let wanted = self.wanted(repository);
        let mut copying = Copying::new(self, digest, bytes.len() as u64, Source::Bytes(bytes.clone()), wanted);
        // Other nodes' disks sync while ours does.
        copying.ask(wanted.replicas.saturating_sub(1).max(copying.needed_others()));
        self.store_locally(bytes, digest).await?;
        copying.wait().await?;
        let body = copying.body();
        copying.finish_in_background();
        Ok(body)
    }

    async fn store_locally(&self, bytes: Bytes, digest: Digest) -> Result<(), StorageError> {
        let blobs = self.blobs().clone();
        let sealed = blocking(move || -> Result<u64, SealError> {
            let mut staging = blobs.stage()?;
            staging.write(&bytes)?;
            staging.seal(&digest)
        });
        match sealed.await? {
            Ok(_) => {
                self.tally().came(&digest);
                Ok(())
            }
            Err(SealError::Storage(error)) => Err(error),
            Err(SealError::DigestMismatch { actual }) => {
                Err(StorageError::corrupt(format!("a body checked as {digest} was stored as {actual}")))
            }
        }
    }

    /// How many copies a repository's blobs have: as a rule of the settings says, else this node's configuration.
    pub(super) fn wanted(&self, repository: &RepositoryName) -> Wanted {
        match self.consensus().rules().replicas(repository) {
            Some(replicas) => Wanted { replicas, min_copies: acknowledged_by(replicas) },
            None => Wanted { replicas: self.config().replicas, min_copies: self.config().min_copies },
        }
    }
}

impl Replication {
    /// Whether a blob of `from`, or of any repository, was acknowledged with as many copies as one of `repository` needs.
    pub(crate) fn has_copies_for(&self, from: Option<&RepositoryName>, repository: &RepositoryName) -> bool {
        let there = match from {
            Some(from) => self.wanted(from).min_copies,
            None => {
                let fewest = self.consensus().rules().fewest_replicas().map_or(usize::MAX, acknowledged_by);
                fewest.min(self.config().min_copies)
            }
        };
        there >= self.wanted(repository).min_copies
    }
}

/// How many of so many copies there are before a push is acknowledged.
fn acknowledged_by(replicas: usize) -> usize {
    replicas / 2 + 1
}

impl Copying {
    /// Nothing is copied yet. Made before this node looks for its own copy or writes it: a promise comes first.
    pub(super) fn new(replication: &Replication, digest: Digest, size: u64, source: Source, wanted: Wanted) -> Self {
        let (promised, pin) = replication.consensus().promises().pin(&digest);
        Self {
            promised,
            _pin: pin,
            wanted,
            replication: replication.clone(),
            digest,
            size,
            source,
            done: Vec::new(),
            asked: Vec::new(),
            running: JoinSet::new(),
        }
    }

    /// Counts a peer that seals its copy of the upload by itself.
    pub(super) fn expect(&mut self, node: NodeId, sealed: oneshot::Receiver<u64>) {
        self.asked.push(node);
        self.running.spawn(async move { (node, sealed.await.ok()) });
    }

    /// The blob's size in bytes.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// How many nodes must have it durably.
    fn needed(&self) -> usize {
        self.replication.consensus().copies_needed(self.wanted.replicas, self.wanted.min_copies)
    }

    /// How many of these are others: this one counts unless it is drained.
    fn needed_others(&self) -> usize {
        let (own, members) = (self.replication.node_id(), self.replication.consensus().members());
        let counts = members.iter().any(|member| member.id == own && !member.seat.draining);
        self.needed() - usize::from(counts)
    }

    /// Forgets the holders that do not stay.
    pub(super) fn forget_gone(&mut self) {
        let members = self.replication.consensus().members();
        self.done.retain(|(node, _)| members.iter().any(|member| member.id == *node && !member.seat.draining));
    }

    /// Asks everybody anew: the bytes may have been collected since they were promised.
    pub(super) fn promise_again(&mut self) {
        self.promised = self.replication.consensus().promises().promise(&self.digest);
        self.done.clear();
        self.asked.clear();
        self.running.detach_all();
    }

    /// Sends the blob to further peers, so that `wanted` have it or are about to.
    pub(super) fn ask(&mut self, wanted: usize) {
        let missing = wanted.saturating_sub(self.done.len() + self.running.len());
        for peer in self.candidates().into_iter().take(missing) {
            self.asked.push(peer.id);
            let (replication, source) = (self.replication.clone(), self.source.clone());
            let (digest, size) = (self.digest, self.size);
            self.running.spawn(async move {
                let sent = replication.send(&peer, &digest, size, source).await;
                if let Err(error) = &sent {
                    tracing::warn!(%digest, %error, "a copy of a blob could not be placed");
                }
                (peer.id, sent.ok())
            });
        }
    }

    /// Reachable peers that were not asked, those first that the blob belongs to.
    fn candidates(&self) -> Vec<Member> {
        let peers = self.replication.takers(self.digest.as_bytes(), self.wanted.replicas);
        let is_done = |peer: &Member| self.done.iter().any(|(node, _)| *node == peer.id);
        peers.into_iter().filter(|peer| !is_done(peer) && !self.asked.contains(&peer.id)).collect()
    }

    /// Waits until enough nodes have it durably, asking others where some fail.
    ///
    /// # Errors
    /// They do not get it.
    pub(super) async fn wait(&mut self) -> Result<(), StoreError> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            // Members come and go, and are drained, meanwhile.
            let wanted = self.needed_others();
            if self.done.len() >= wanted {
                return Ok(());
            }
            self.ask(wanted);
            if self.running.is_empty() && Instant::now() >= deadline {
                return Err(StoreError::NoQuorum);
            }
            let tick = Instant::now() + TICK;
            match timeout_at(tick, self.running.join_next()).await {
                Ok(Some(finished)) => self.finished(finished.ok()),
                Ok(None) => {
                    // Everybody failed or is away: pause, then ask all of them again.
                    tokio::time::sleep_until(tick).await;
                    self.asked.clear();
                }
                Err(_) => {}
            }
            if self.done.len() < wanted && !self.replication.consensus().quorum_reachable() {
                return Err(StoreError::NoQuorum);
            }
        }
    }

    fn finished(&mut self, finished: Option<(NodeId, Option<u64>)>) {
        if let Some((node, Some(promised))) = finished {
            self.done.push((node, promised));
        }
    }

    /// Lets go on by itself what is still on its way. A node that gets no copy fetches it.
    pub(super) fn finish_in_background(mut self) {
        if !self.running.is_empty() {
            tokio::spawn(async move { while self.running.join_next().await.is_some() {} });
        }
    }

    /// What the log is told, own copy included.
    pub(super) fn body(&self) -> Body {
        let mut holders = vec![self.replication.consensus().node_id()];
        holders.extend(self.done.iter().map(|(node, _)| *node));
        let min_copies = u32::try_from(self.needed()).unwrap_or(u32::MAX);
        let promised = self.done.iter().map(|(_, promised)| *promised).fold(self.promised, u64::min);
        Body::File { holders, min_copies, promised }
    }
}

impl Replication {
    /// The other members that answer, have most of the log and are not drained, in the order in which they are asked to keep what `key` names:
    /// those that shall keep it first, then those that take their place.
    pub(super) fn takers(&self, key: &[u8], copies: usize) -> Vec<Member> {
        let (own, members) = (self.node_id(), self.consensus().members());
        let ordered = placement::ordered(key, &members, copies).into_iter();
        let others = ordered.filter(|id| *id != own && self.consensus().may_promise(*id));
        let member = |id| members.iter().find(|member| member.id == id && !member.seat.draining).cloned();
        others.filter_map(member).collect()
    }

    /// Returns the peer's promise.
    async fn send(&self, peer: &Member, digest: &Digest, size: u64, source: Source) -> Result<u64, peers::PeerError> {
        if let Some((held, promised)) = self.peers().promise(peer, digest).await?
            && held == size
        {
            return Ok(promised);
        }
        let body: BoxStream<'static, std::io::Result<Bytes>> = match source {
            Source::Bytes(bytes) => stream::once(async { Ok(bytes) }).boxed(),
            Source::File => local_file(self.blobs().clone(), *digest, 0..size).boxed(),
        };
        self.peers().put(peer, digest, size, body).await
    }
}

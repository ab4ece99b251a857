//! The handle that `src/` holds: propose, read, change membership.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use flotilla_storage::{MetadataStore, StorageError};
use openraft::async_runtime::WatchReceiver;
use openraft::errors::{ClientWriteError, RaftError};
use openraft::raft::ReadPolicy;
use openraft::{Config, Raft, SnapshotPolicy};
use parking_lot::RwLock;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::{Mutex, broadcast};
use uuid::Uuid;

pub use crate::state_store::AppliedBlob;

use crate::command::{Answer, Command, Proposal};
use crate::forwarding::Forwarding;
use crate::liveness::Liveness;
use crate::log_store::LogStore;
use crate::member::{Member, NodeId, NodeRecord};
use crate::network::{Call, CallError, Identity, Network, PeerClient, Pong, ProposeReply, ReadIndexReply};
use crate::read_gate::ReadGate;
use crate::registry::Registry;
use crate::state_store::{StateStore, Watches};
use crate::types::TypeConfig;

/// How long a write or a linearizable read waits while a majority answers and nobody leads.
const ELECTION_LIMIT: Duration = Duration::from_secs(10);

/// How often a call to the leader looks whether it still leads.
const LEADER_WATCHED_EACH: Duration = Duration::from_millis(100);

/// The pause before the next attempt when the leader is not known or gone.
const RETRY_EACH: Duration = Duration::from_millis(25);

/// How long a delete waits for the nodes that answer.
const APPLIED_EVERYWHERE_LIMIT: Duration = Duration::from_secs(2);

/// A snapshot is built when this many bytes of log came since the last one, whatever their number.
const SNAPSHOT_EACH_BYTES: u64 = 64 << 20;

/// Messages that may wait for openraft's core.
const CHANNEL_SIZE: u64 = 8192;

/// How the Raft group of this node runs.
#[derive(Debug, Clone)]
pub struct Options {
    /// The folder of log and state.
    pub data_dir: PathBuf,
    /// This node's id.
    pub node_id: NodeId,
    /// This node's name and addresses.
    pub record: NodeRecord,
    /// A snapshot is built each so many entries.
    pub snapshot_every: u64,
    /// Entries that stay in the log behind a snapshot.
    pub keep: u64,
    /// The leader's heartbeat.
    pub heartbeat: Duration,
    /// The shortest election time-out.
    pub election_min: Duration,
    /// The longest election time-out.
    pub election_max: Duration,
    /// The version of the program, for the other nodes to see.
    pub version: String,
}

/// Why a proposal has no answer.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ProposeError {
    /// No majority answers, or nobody leads; nothing was changed.
    #[error("no majority of the nodes answers")]
    NoQuorum,
    /// The entry may have been committed, or may still be: never report this as «not done».
    #[error("the outcome is not known: the change may still take effect")]
    OutcomeUnknown,
}

/// Why a linearizable read is not possible.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ReadError {
    /// No majority answers, or nobody leads.
    #[error("no majority of the nodes answers")]
    NoQuorum,
    /// This node is going down.
    #[error("this node is stopping")]
    Stopped,
}

/// Why the Raft group does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Log or state cannot be opened.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// openraft refuses its configuration or what it finds in the log.
    #[error("raft: {0}")]
    Raft(String),
    /// The HTTP client cannot be set up.
    #[error("peer client: {0}")]
    Client(#[from] reqwest::Error),
}

/// The state of the Raft group as this node sees it.
#[derive(Debug, Clone)]
pub struct RaftStatus {
    /// The current term.
    pub term: u64,
    /// The last index known to be committed.
    pub commit_index: u64,
    /// The last applied index.
    pub applied_index: u64,
    /// The leader, if one is known.
    pub leader: Option<NodeId>,
    /// The index of the last snapshot.
    pub snapshot_index: u64,
    /// Bytes of log, about.
    pub log_bytes: u64,
    /// Syncs of the log since the start.
    pub log_syncs: u64,
    /// Snapshots built, sent to a follower, and installed from a leader, since the start.
    pub snapshots: [u64; 3],
}

/// The registry's Raft group on this node. Cheap to clone.
#[derive(Clone)]
pub struct Consensus {
    inner: Arc<Inner>,
}

struct Inner {
    options: Options,
    raft: Raft<TypeConfig, StateStore>,
    registry: Registry,
    metadata: MetadataStore,
    log: LogStore,
    watches: Watches,
    liveness: Liveness,
    client: PeerClient,
    /// Gone once this node is stopping.
    queues: RwLock<Option<Queues>>,
    receiving: Mutex<()>,
    blobs: [AtomicU64; 2],
}

/// Where requests wait for one that carries them all to the leader.
#[derive(Clone)]
struct Queues {
    reads: ReadGate,
    proposals: Forwarding,
}

impl Consensus {
    /// Opens log and state, replays what was committed, and takes part in the Raft group if this node is a member of
    /// one.
    ///
    /// # Errors
    /// Damaged data, or a configuration that openraft refuses.
    pub async fn start(options: Options) -> Result<Self, StartError> {
        let dir = options.data_dir.clone();
        let opened = tokio::task::spawn_blocking(move || {
            Ok::<_, StorageError>((LogStore::open(&dir)?, StateStore::open(&dir)?))
        });
        let (log, (state, metadata, watches)) =
            opened.await.map_err(|problem| StartError::Raft(problem.to_string()))??;
        let client = PeerClient::new()?;
        let network = Network { client: client.clone(), log: log.clone(), counters: watches.counters.clone() };
        let config = Arc::new(config(&options).validate().map_err(|problem| StartError::Raft(problem.to_string()))?);
        let raft = Raft::new(options.node_id, config, network, log.clone(), state)
            .await
            .map_err(|problem| StartError::Raft(problem.to_string()))?;
        let liveness = Liveness::new(options.node_id);
        tokio::spawn(liveness.clone().run(PeerClient::new()?, watches.progress.clone()));
        let registry = Registry::new(metadata.clone());
        let inner = Inner {
            options,
            raft,
            registry,
            metadata,
            log,
            watches,
            liveness,
            client,
            queues: RwLock::new(None),
            receiving: Mutex::new(()),
            blobs: Default::default(),
        };
        let consensus = Self { inner: Arc::new(inner) };
        *consensus.inner.queues.write() = Some(consensus.queues());
        tokio::spawn(consensus.clone().snapshot_by_size());
        Ok(consensus)
    }

    /// The queues' tasks end with them; a reference to this would keep both alive for ever.
    fn queues(&self) -> Queues {
        let (reading, proposing) = (Arc::downgrade(&self.inner), Arc::downgrade(&self.inner));
        let reads = ReadGate::start(move || {
            let reading = reading.upgrade();
            async move {
                match reading {
                    Some(inner) => Self { inner }.read_index().await,
                    None => Err(ReadError::Stopped),
                }
            }
        });
        let proposals = Forwarding::start(move |proposals| {
            let proposing = proposing.upgrade();
            async move {
                match proposing {
                    Some(inner) => Self { inner }.forward(proposals).await,
                    None => Err(CallError::Unreachable("this node is stopping".into())),
                }
            }
        });
        Queues { reads, proposals }
    }

    /// This node's id.
    pub fn node_id(&self) -> NodeId {
        self.inner.options.node_id
    }

    /// This node's name and addresses.
    pub fn record(&self) -> &NodeRecord {
        &self.inner.options.record
    }

    /// The applied state of this node.
    pub fn registry(&self) -> &Registry {
        &self.inner.registry
    }

    /// The last log index that this node has applied.
    pub fn applied_index(&self) -> u64 {
        self.inner.watches.progress.borrow().index
    }

    /// The members of the cluster as of the last applied entry; empty before it is founded.
    pub fn members(&self) -> Arc<[Member]> {
        self.inner.watches.progress.borrow().members.clone()
    }

    /// The leader, if one is known.
    pub fn leader(&self) -> Option<NodeId> {
        self.inner.raft.metrics().borrow_watched().current_leader
    }

    /// Whether a majority of the voters answers pings. Without one, writes are refused and names are read locally.
    pub fn quorum_reachable(&self) -> bool {
        self.inner.liveness.quorum()
    }

    /// Whether this node is reachable, by its pings.
    pub fn reachable(&self, id: NodeId) -> bool {
        self.inner.liveness.reachable(id)
    }

    /// The last word of a reachable node about itself.
    pub fn pong_of(&self, id: NodeId) -> Option<Pong> {
        if id == self.node_id() { Some(self.pong()) } else { self.inner.liveness.pong(id) }
    }

    /// Blobs in files that newly applied commands named.
    pub fn applied_blobs(&self) -> broadcast::Receiver<AppliedBlob> {
        self.inner.watches.blobs.subscribe()
    }

    /// What other nodes are told of this one's files: how many it has and how many it lacks.
    pub fn set_blob_counts(&self, held: u64, missing: u64) {
        self.inner.blobs[0].store(held, Ordering::Relaxed);
        self.inner.blobs[1].store(missing, Ordering::Relaxed);
    }

    /// Resolves when openraft has stopped, after an error of the storage for instance; says why.
    pub async fn stopped(&self) -> String {
        let mut metrics = self.inner.raft.metrics();
        loop {
            let state = metrics.borrow_and_update().running_state.clone();
            if let Err(fatal) = state {
                return fatal.to_string();
            }
            if metrics.changed().await.is_err() {
                return "raft has ended".into();
            }
        }
    }

    /// Whether this node has any log: one that has belongs to a cluster.
    pub fn is_empty(&self) -> bool {
        let metrics = self.inner.raft.metrics().borrow_watched().clone();
        metrics.last_log_index.is_none() && metrics.last_applied.is_none()
    }

    /// The state of the Raft group as this node sees it.
    pub fn status(&self) -> RaftStatus {
        let metrics = self.inner.raft.metrics().borrow_watched().clone();
        let counters = &self.inner.watches.counters;
        RaftStatus {
            term: metrics.current_term,
            commit_index: metrics.cluster_committed.or(metrics.local_committed).map_or(0, |log_id| log_id.index),
            applied_index: self.applied_index(),
            leader: metrics.current_leader,
            snapshot_index: metrics.snapshot.map_or(0, |log_id| log_id.index),
            log_bytes: self.inner.log.size_bytes(),
            log_syncs: self.inner.log.sync_count(),
            snapshots: [&counters.built, &counters.sent, &counters.installed]
                .map(|counter| counter.load(Ordering::Relaxed)),
        }
    }

    pub(crate) fn raft(&self) -> &Raft<TypeConfig, StateStore> {
        &self.inner.raft
    }

    pub(crate) fn client(&self) -> &PeerClient {
        &self.inner.client
    }

    pub(crate) fn metadata(&self) -> &MetadataStore {
        &self.inner.metadata
    }

    pub(crate) fn receiving(&self) -> &Mutex<()> {
        &self.inner.receiving
    }

    pub(crate) fn pong(&self) -> Pong {
        let [held, missing] = [0, 1].map(|which: usize| self.inner.blobs[which].load(Ordering::Relaxed));
        Pong {
            id: self.node_id(),
            applied_index: self.applied_index(),
            version: self.inner.options.version.clone(),
            blobs_held: held,
            blobs_missing: missing,
        }
    }

    /// Who this node is, for the others to see.
    pub fn identity(&self) -> Identity {
        // An unreadable row stops the node when it is applied over; here it only hides the cluster's id.
        let cluster_id = self.inner.registry.cluster_id().ok().flatten();
        Identity { id: self.node_id(), record: self.inner.options.record.clone(), cluster_id, empty: self.is_empty() }
    }
}

/// Writes.
impl Consensus {
    /// Proposes a command: to the leader, wherever it is, again and again under the same request id until it is
    /// applied, for at most ten seconds while a majority answers, and no longer than two seconds without one.
    ///
    /// # Errors
    /// See [`ProposeError`].
    pub async fn propose(&self, request_id: Uuid, command: Command) -> Result<Answer, ProposeError> {
        let proposal = Arc::new(Proposal {
            request_id,
            base_index: self.applied_index(),
            time_ms: 0,
            actor: String::new(),
            command,
        });
        let mut sent = false;
        let attempts = async {
            while self.quorum_reachable() {
                if let Some(answer) = self.attempt(&proposal, &mut sent).await {
                    return Some(answer);
                }
                tokio::time::sleep(RETRY_EACH).await;
            }
            None
        };
        let answer = tokio::select! {
            answer = tokio::time::timeout(ELECTION_LIMIT, attempts) => answer.ok().flatten(),
            () = self.inner.liveness.quorum_lost() => None,
        };
        answer.ok_or(if sent { ProposeError::OutcomeUnknown } else { ProposeError::NoQuorum })
    }

    /// One attempt; `None` asks for another. `sent` becomes true when the proposal may have reached a leader.
    async fn attempt(&self, proposal: &Arc<Proposal>, sent: &mut bool) -> Option<Answer> {
        let leader = self.leader()?;
        if leader == self.node_id() {
            *sent = true;
            return match self.propose_here(Proposal::clone(proposal)).await {
                ProposeReply::Answered(answer) => Some(answer),
                ProposeReply::NotLeader(_) | ProposeReply::Unknown => None,
            };
        }
        let proposals = self.inner.queues.read().clone()?.proposals;
        let was_sent = std::mem::replace(sent, true);
        match proposals.submit(proposal.clone()).await {
            Ok(ProposeReply::Answered(answer)) => Some(answer),
            Ok(ProposeReply::NotLeader(_) | ProposeReply::Unknown)
            | Err(CallError::NoAnswer(_) | CallError::Unreadable(_)) => None,
            Err(CallError::Unreachable(_) | CallError::Refused { .. }) => {
                *sent = was_sent;
                None
            }
        }
    }

    /// Takes proposals to the leader, if another node is; as many replies come back, in the same order.
    async fn forward(&self, proposals: Vec<Arc<Proposal>>) -> Result<Vec<ProposeReply>, CallError> {
        let leader = self.leader().filter(|leader| *leader != self.node_id());
        let leader = leader.ok_or_else(|| CallError::Unreachable("no other node leads".into()))?;
        let proposals: Vec<&Proposal> = proposals.iter().map(Arc::as_ref).collect();
        self.ask_leader(leader, Call::Propose, &proposals).await
    }

    /// A call to the leader, given up when it is not reachable any more or another one leads.
    async fn ask_leader<Q: Serialize, A: DeserializeOwned>(
        &self,
        leader: NodeId,
        call: Call,
        request: &Q,
    ) -> Result<A, CallError> {
        let address = self.address_of(leader).ok_or_else(|| CallError::Unreachable("not a member".into()))?;
        let deposed = async {
            while self.reachable(leader) && self.leader() == Some(leader) {
                tokio::time::sleep(LEADER_WATCHED_EACH).await;
            }
        };
        tokio::select! {
            answer = self.inner.client.call(&address, Some(leader), call, request, ELECTION_LIMIT) => answer,
            () = deposed => Err(CallError::NoAnswer("the leader is gone".into())),
        }
    }

    /// Proposes as the leader, if this node is.
    pub(crate) async fn propose_here(&self, mut proposal: Proposal) -> ProposeReply {
        proposal.time_ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
        match self.inner.raft.client_write(Arc::new(proposal)).await {
            Ok(written) => ProposeReply::Answered(written.data),
            Err(RaftError::APIError(ClientWriteError::ForwardToLeader(forward))) => {
                ProposeReply::NotLeader(forward.leader_id)
            }
            Err(problem) => {
                tracing::debug!(error = %problem, "a proposal has no outcome");
                ProposeReply::Unknown
            }
        }
    }

    fn address_of(&self, id: NodeId) -> Option<String> {
        self.members().iter().find(|member| member.id == id).map(|member| member.record.peer_address.clone())
    }

    /// Waits until this node has applied an index, or the time is over; says which.
    pub async fn wait_applied(&self, index: u64, limit: Duration) -> bool {
        let mut progress = self.inner.watches.progress.clone();
        matches!(tokio::time::timeout(limit, progress.wait_for(|progress| progress.index >= index)).await, Ok(Ok(_)))
    }

    /// Waits until every member that answers has applied an index, two seconds at most: after a delete no node may
    /// find what was deleted, and a look-up by digest is local where it finds something.
    pub async fn wait_applied_everywhere(&self, index: u64) {
        let members = self.members();
        let others = members.iter().filter(|member| member.id != self.node_id() && self.reachable(member.id));
        let limit_ms = APPLIED_EVERYWHERE_LIMIT.as_millis() as u64;
        let asked = others.map(|member| async move {
            let request = (index, limit_ms);
            let reply = self
                .inner
                .client
                .call::<_, bool>(
                    &member.record.peer_address,
                    Some(member.id),
                    Call::WaitApplied,
                    &request,
                    APPLIED_EVERYWHERE_LIMIT,
                )
                .await;
            if !matches!(reply, Ok(true)) {
                tracing::warn!(
                    node_id = format!("{:012x}", member.id),
                    log_index = index,
                    "a node has not applied a delete in time"
                );
            }
        });
        futures::join!(futures::future::join_all(asked), self.wait_applied(index, APPLIED_EVERYWHERE_LIMIT));
    }
}

/// Linearizable reads.
impl Consensus {
    /// Returns once the local state holds everything that was committed before the call.
    ///
    /// # Errors
    /// [`ReadError::NoQuorum`] at once when no majority answers pings, and after ten seconds when nobody leads.
    pub async fn read_barrier(&self) -> Result<(), ReadError> {
        if !self.quorum_reachable() {
            return Err(ReadError::NoQuorum);
        }
        let gate = self.inner.queues.read().clone().ok_or(ReadError::Stopped)?.reads;
        let barrier = async {
            let index = gate.index().await?;
            if self.wait_applied(index, ELECTION_LIMIT).await { Ok(()) } else { Err(ReadError::NoQuorum) }
        };
        tokio::select! {
            result = tokio::time::timeout(ELECTION_LIMIT, barrier) => result.unwrap_or(Err(ReadError::NoQuorum)),
            () = self.inner.liveness.quorum_lost() => Err(ReadError::NoQuorum),
        }
    }

    /// A read index, from the leader wherever it is.
    async fn read_index(&self) -> Result<u64, ReadError> {
        let attempts = async {
            while self.quorum_reachable() {
                if let Some(index) = self.ask_read_index().await {
                    return Ok(index);
                }
                tokio::time::sleep(RETRY_EACH).await;
            }
            Err(ReadError::NoQuorum)
        };
        tokio::time::timeout(ELECTION_LIMIT, attempts).await.unwrap_or(Err(ReadError::NoQuorum))
    }

    async fn ask_read_index(&self) -> Option<u64> {
        let leader = self.leader()?;
        let reply = if leader == self.node_id() {
            self.read_index_here().await
        } else {
            self.ask_leader(leader, Call::ReadIndex, &()).await.ok()?
        };
        match reply {
            ReadIndexReply::Index(index) => Some(index),
            ReadIndexReply::NotLeader(_) | ReadIndexReply::NoQuorum => None,
        }
    }

    /// The read index, if this node leads: a majority has confirmed that after the call (Raft dissertation, §6.4).
    pub(crate) async fn read_index_here(&self) -> ReadIndexReply {
        match self.inner.raft.get_read_linearizer(ReadPolicy::ReadIndex).await {
            Ok(linearizer) => ReadIndexReply::Index(linearizer.read_log_id().index()),
            Err(RaftError::APIError(openraft::errors::LinearizableReadError::ForwardToLeader(forward))) => {
                ReadIndexReply::NotLeader(forward.leader_id)
            }
            Err(_) => ReadIndexReply::NoQuorum,
        }
    }
}

/// The end, and what goes on beside.
impl Consensus {
    /// Ends the Raft group's work on this node.
    pub async fn shutdown(&self) {
        *self.inner.queues.write() = None;
        if let Err(problem) = self.inner.raft.shutdown().await {
            tracing::warn!(error = %problem, "raft did not end in order");
        }
    }

    async fn snapshot_by_size(self) {
        let (mut last_bytes, mut last_snapshot) = (0, 0);
        let mut ticks = tokio::time::interval(Duration::from_secs(1));
        let mut running = self.inner.raft.metrics();
        loop {
            ticks.tick().await;
            let (ended, snapshot) = {
                let metrics = running.borrow_and_update();
                (metrics.running_state.is_err(), metrics.snapshot.map_or(0, |log_id| log_id.index))
            };
            if ended {
                return;
            }
            let bytes = self.inner.log.size_bytes();
            if snapshot != last_snapshot || bytes < last_bytes {
                (last_bytes, last_snapshot) = (bytes, snapshot);
            }
            if bytes > last_bytes + SNAPSHOT_EACH_BYTES {
                last_bytes = bytes;
                if self.inner.raft.trigger().snapshot().await.is_err() {
                    return;
                }
            }
        }
    }
}

fn config(options: &Options) -> Config {
    Config {
        cluster_name: "flotilla".into(),
        heartbeat_interval: options.heartbeat.as_millis() as u64,
        election_timeout_min: options.election_min.as_millis() as u64,
        election_timeout_max: options.election_max.as_millis() as u64,
        install_snapshot_timeout: 60_000,
        max_payload_entries: 256,
        snapshot_policy: SnapshotPolicy::LogsSinceLast(options.snapshot_every),
        max_in_snapshot_log_to_keep: options.keep,
        purge_batch_size: 256,
        enable_pre_vote: Some(true),
        // A leader sends entries before its own sync is done. Restarted as the leader of the same term, it could give
        // another entry an index that its followers have, and nobody would notice.
        enable_leader_restore: Some(false),
        quorum_loss_probe_interval: Some(2000),
        // openraft sets the room for all of it aside at the start: 30 MiB by its own default.
        api_channel_size: Some(CHANNEL_SIZE),
        notification_channel_size: Some(CHANNEL_SIZE),
        ..Config::default()
    }
}

//! The handle that `src/` holds: propose, read, change membership.

mod reads;
mod writes;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use flotilla_storage::{MetadataStore, StorageError};
use openraft::async_runtime::WatchReceiver;
use openraft::{Config, Raft, SnapshotPolicy};
use parking_lot::RwLock;
use tokio::sync::{Mutex, broadcast, watch};
use uuid::Uuid;

pub use crate::network::BlobCounts;
pub use crate::state_store::AppliedBlob;

use crate::forwarding::Forwarding;
use crate::liveness::{Liveness, now_ms};
use crate::log_store::LogStore;
use crate::member::{Member, NodeId, NodeRecord};
use crate::network::{CallError, Dialer, Identity, Network, PeerClient, Pong, Receiving};
use crate::promises::Promises;
use crate::read_gate::ReadGate;
use crate::recognition::{self, Candidate};
use crate::registry::Registry;
use crate::settings::Rules;
use crate::state_machine::REQUESTS_WINDOW;
use crate::state_store::{StateStore, Watches};
use crate::types::TypeConfig;

/// How long a write or a linearizable read waits while a majority answers and nobody leads.
const ELECTION_LIMIT: Duration = Duration::from_secs(10);

/// The pause before the next attempt when the leader is not known or gone.
const RETRY_EACH: Duration = Duration::from_millis(25);

/// A snapshot is built when this many bytes of log came since the last one, whatever their number.
const SNAPSHOT_EACH_BYTES: u64 = 64 << 20;

/// How often it is looked whether openraft has stopped.
const STOPPED_LOOKED_FOR_EACH: Duration = Duration::from_millis(100);

/// Messages that may wait for openraft's core.
const CHANNEL_SIZE: u64 = 8192;

/// How long the end of a node waits for its last sync.
const SYNC_LIMIT: Duration = Duration::from_secs(5);

/// A node that is further behind gives no promises: half of what collections are remembered for, in entries, so that a
/// promise is good for a while.
const PROMISE_LAG_MAX: u64 = REQUESTS_WINDOW / 2;

/// How the Raft group of this node runs.
#[derive(Debug, Clone)]
pub struct Options {
    /// The folder of log and state.
    pub data_dir: PathBuf,
    /// This node's id.
    pub node_id: NodeId,
    /// This node's name and addresses.
    pub record: NodeRecord,
    /// Where other nodes are asked whether they know this one.
    pub peers: Vec<String>,
    /// The cluster that the data belongs to, where that is known beside state, which is on disk later.
    pub cluster_id: Option<Uuid>,
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
    /// The most voters; learners beyond that stay learners.
    pub voters_max: usize,
    /// How many nodes keep a blob where no rule of the settings says so.
    pub replicas: usize,
    /// How many of these there are before a push is acknowledged.
    pub min_copies: usize,
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
    /// Other nodes say that this one must not take part.
    #[error("{0}")]
    NotRecognised(String),
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
    receiving: Mutex<Receiving>,
    /// Held by who removes a member.
    removing: Mutex<()>,
    blobs: parking_lot::Mutex<BlobCounts>,
    /// Why this node must not take part any more.
    dismissed: watch::Sender<Option<String>>,
}

/// Where requests wait for one that carries them all to the leader.
#[derive(Clone)]
struct Queues {
    reads: ReadGate,
    proposals: Forwarding,
}

impl Consensus {
    /// Opens log and state, replays what was committed, and takes part in the Raft group if this node is a member of
    /// one. `dialer` reaches the other nodes.
    ///
    /// # Errors
    /// Damaged data, or a configuration that openraft refuses.
    pub async fn start(options: Options, dialer: &Dialer) -> Result<Self, StartError> {
        let dir = options.data_dir.clone();
        let opened = tokio::task::spawn_blocking(move || {
            let log = LogStore::open(&dir)?;
            let state = StateStore::open(&dir)?;
            let last_index = log.last_index()?;
            state.2.promises.begin(last_index);
            Ok::<_, StorageError>((log, last_index, state))
        });
        let (log, last_index, (state, metadata, watches)) =
            opened.await.map_err(|problem| StartError::Raft(problem.to_string()))??;
        let client = PeerClient::new(dialer)?;
        let (registry, progress) = (Registry::new(metadata.clone()), watches.progress.borrow().clone());
        let candidate = Candidate {
            id: options.node_id,
            record: &options.record,
            cluster_id: registry.cluster_id()?.or(options.cluster_id),
            last_index,
            members: &progress.members,
        };
        candidate.be_recognised(&options.peers, &client).await.map_err(StartError::NotRecognised)?;
        let network = Network { client: client.clone(), log: log.clone(), counters: watches.counters.clone() };
        let config = Arc::new(config(&options).validate().map_err(|problem| StartError::Raft(problem.to_string()))?);
        let raft = Raft::new(options.node_id, config, network, log.clone(), state)
            .await
            .map_err(|problem| StartError::Raft(problem.to_string()))?;
        let liveness = Liveness::new(options.node_id);
        tokio::spawn(liveness.clone().run(PeerClient::new(dialer)?, watches.progress.clone()));
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
            receiving: Mutex::default(),
            removing: Mutex::default(),
            blobs: parking_lot::Mutex::default(),
            dismissed: watch::Sender::new(None),
        };
        let consensus = Self { inner: Arc::new(inner) };
        *consensus.inner.queues.write() = Some(consensus.queues());
        tokio::spawn(consensus.clone().snapshot_by_size());
        tokio::spawn(consensus.clone().keep_voters(consensus.inner.options.voters_max));
        tokio::spawn(consensus.clone().notice_removal());
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

    /// The addresses of nodes that it was given at its start.
    pub fn peers(&self) -> &[String] {
        &self.inner.options.peers
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

    /// How long ago a majority of the voters answered last, to a second or so.
    pub fn quorum_lost_for(&self) -> Duration {
        self.inner.liveness.quorum_lost_for()
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

    /// What this node may say of its files while files are collected.
    pub fn promises(&self) -> &Promises {
        &self.inner.watches.promises
    }

    /// The rules of the settings that all nodes share, as of the last applied entry; they are told of just before the
    /// entry that put them counts as applied.
    pub fn rules(&self) -> Arc<Rules> {
        self.inner.watches.rules.borrow().clone()
    }

    /// Whether this node's clock is within five seconds of those of a majority. What depends on time alone waits
    /// until the leader's is.
    pub fn clock_agrees(&self) -> bool {
        self.inner.liveness.clock_agrees(&self.members())
    }

    /// The time that this node, as the leader, puts on an entry. Its own clock alone does not decide: one that jumped would
    /// move the time of state on, which never goes back.
    fn stamp_ms(&self) -> u64 {
        self.inner.liveness.time_ms(&self.members())
    }

    /// How many nodes have a blob before a push is acknowledged, where `min_copies` of `replicas` are wanted: fewer where
    /// there are not as many, or a single voter.
    pub fn copies_needed(&self, replicas: usize, min_copies: usize) -> usize {
        crate::member::copies_needed(&self.members(), replicas, min_copies)
    }

    /// Whether a node can be asked for a promise now: it answers, and is not so far behind the log that its promise would be
    /// from before what is remembered of collections.
    pub fn may_promise(&self, id: NodeId) -> bool {
        self.pong_of(id).is_some_and(|pong| pong.applied_index + PROMISE_LAG_MAX >= self.applied_index())
    }

    /// This node's clock, in milliseconds since the Unix epoch.
    pub fn now_ms(&self) -> u64 {
        now_ms()
    }

    /// The log index at which the membership, or where blobs are placed, changed last.
    pub fn layout_revision(&self) -> u64 {
        self.inner.watches.progress.borrow().layout_revision
    }

    /// What other nodes are told of this one's files.
    pub fn set_blob_counts(&self, counts: BlobCounts) {
        *self.inner.blobs.lock() = counts;
    }

    /// Resolves when this node cannot go on: openraft has stopped, after an error of the storage for instance, or the
    /// others say that it is no member any more. Says why.
    pub async fn stopped(&self) -> String {
        let mut dismissed = self.inner.dismissed.subscribe();
        tokio::select! {
            reason = self.raft_stopped() => reason,
            Ok(reason) = dismissed.wait_for(Option::is_some) => reason.clone().unwrap_or_default(),
        }
    }

    async fn raft_stopped(&self) -> String {
        let metrics = self.inner.raft.metrics();
        // Looked at now and then: the figures change several times with each entry, and who waits for each of these
        // changes is woken as often.
        let mut ticks = tokio::time::interval(STOPPED_LOOKED_FOR_EACH);
        loop {
            ticks.tick().await;
            if let Err(fatal) = &metrics.borrow_watched().running_state {
                return fatal.to_string();
            }
        }
    }

    /// Whether this node has any log: one that has belongs to a cluster.
    pub fn is_empty(&self) -> bool {
        let metrics = self.inner.raft.metrics().borrow_watched().clone();
        metrics.last_log_index.is_none() && metrics.last_applied.is_none()
    }

    /// How long the threads that write log and state have been at what they are writing, the slower of the two. Never
    /// blocks.
    ///
    /// # Errors
    /// One of them has ended: nothing more will be stored.
    pub fn storage_busy_for(&self) -> Result<Duration, StorageError> {
        Ok(self.inner.log.busy_for()?.max(self.inner.metadata.busy_for()?))
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

    /// How far the clock of a reachable member is from this node's, in milliseconds, about.
    pub fn clock_off_ms(&self, id: NodeId) -> Option<u64> {
        self.inner.liveness.clock_off_ms(id)
    }

    /// How many nodes keep a blob where no rule of the settings says so.
    pub fn replicas(&self) -> usize {
        self.inner.options.replicas
    }

    /// The fewest nodes that keep any blob, by the settings' rules and without one.
    pub fn fewest_replicas(&self) -> usize {
        self.rules().fewest_replicas().map_or(self.replicas(), |rule| rule.min(self.replicas()))
    }

    pub(crate) fn options(&self) -> &Options {
        &self.inner.options
    }

    /// This node must not take part any more, for this reason.
    pub(crate) fn dismiss(&self, reason: String) {
        self.inner.dismissed.send_replace(Some(reason));
    }

    /// Whether openraft has ended its work.
    pub(crate) fn has_ended(&self) -> bool {
        self.inner.raft.metrics().borrow_watched().running_state.is_err()
    }

    pub(crate) fn raft(&self) -> &Raft<TypeConfig, StateStore> {
        &self.inner.raft
    }

    pub(crate) fn removing(&self) -> &Mutex<()> {
        &self.inner.removing
    }

    pub(crate) fn client(&self) -> &PeerClient {
        &self.inner.client
    }

    pub(crate) fn metadata(&self) -> &MetadataStore {
        &self.inner.metadata
    }

    pub(crate) fn receiving(&self) -> &Mutex<Receiving> {
        &self.inner.receiving
    }

    pub(crate) fn pong(&self) -> Pong {
        Pong {
            id: self.node_id(),
            applied_index: self.applied_index(),
            version: self.inner.options.version.clone(),
            blobs: *self.inner.blobs.lock(),
            time_ms: now_ms(),
        }
    }

    /// Who this node is, for the others to see.
    pub fn identity(&self) -> Identity {
        // An unreadable row stops the node when it is applied over; here it only hides the cluster's id.
        let cluster_id = self.inner.registry.cluster_id().ok().flatten();
        Identity {
            id: self.node_id(),
            record: self.inner.options.record.clone(),
            cluster_id,
            empty: self.is_empty(),
            time_ms: now_ms(),
            process: recognition::this_process(),
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
        // A disk that hangs must not keep the process from ending.
        match tokio::time::timeout(SYNC_LIMIT, self.inner.log.sync_committed()).await {
            Ok(Ok(())) => {}
            Ok(Err(problem)) => tracing::warn!(error = %problem, "the log was not synced at the end"),
            Err(_) => tracing::warn!("the log was not synced at the end: the disk takes too long"),
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
            if let Ok(mut receiving) = self.inner.receiving.try_lock() {
                receiving.forget_broken();
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
        // openraft wants it to be twice an election's time-out at least.
        quorum_loss_probe_interval: Some(2000.max(2 * options.election_max.as_millis() as u64)),
        // openraft sets the room for all of it aside at the start: 30 MiB by its own default.
        api_channel_size: Some(CHANNEL_SIZE),
        notification_channel_size: Some(CHANNEL_SIZE),
        ..Config::default()
    }
}

//! openraft's state machine over the storage crate's rows: applies entries on a thread of its own, and stores what
//! they write, with the applied log id, in one batch for each chunk.
//!
//! The rows are not synced for each chunk: after a crash the log replays what was lost (`save_committed`). They are
//! synced beside the writer now and then, and before a snapshot (see [`crate::snapshot`]).

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use flotilla_storage::{Digest, Install, MetadataStore, StorageError, View};
use futures::{Stream, StreamExt};
use openraft::entry::RaftEntry;
use openraft::storage::{ApplyResponder, EntryResponder, RaftStateMachine};
use openraft::{EntryPayload, OptionalSend};
use serde::{Deserialize, Serialize};
use tokio::sync::{broadcast, mpsc, oneshot, watch};

use crate::command::{Answer, Body, Command, Outcome, Proposal};
use crate::member::{Member, NodeId, NodeRecord};
use crate::names::RepositoryName;
use crate::promises::{File, Promises};
use crate::row_cache::{Cached, RowCache};
use crate::settings::Rules;
use crate::snapshot::{Builder, Copy, Snapshot};
use crate::state_machine::{self, Layout, Requests, State, StoredSettings, keys, long_rows};
use crate::types::{Entry, LogId, SnapshotMeta, StoredMembership, TypeConfig};
use crate::wire::{self, Kind};

/// The most entries that are applied and stored in one batch.
const CHUNK: usize = 256;

/// State is synced beside the writer when this much of it is not on the disk, in bytes.
const FLUSH_EACH: u64 = 8 << 20;

/// Bytes of rows that are copied at a time.
const COPY_BYTES: usize = 256 << 10;

/// Chunks that wait for the apply thread; openraft sends one at a time.
const JOBS: usize = 4;

/// A blob whose bytes this node may have to fetch.
#[derive(Debug, Clone)]
pub enum AppliedBlob {
    /// A command named this file.
    Linked {
        /// The digest.
        digest: Digest,
        /// Bytes.
        size: u64,
        /// How many copies the rules want, where one says so.
        replicas: Option<usize>,
    },
    /// A command collected files; [`Promises`] says which.
    Collected,
    /// The whole state was replaced by a snapshot.
    Everything,
}

/// How far this node has applied the log, and what the membership was there.
#[derive(Debug, Clone, Default)]
pub(crate) struct Progress {
    /// The last applied log index; zero before the first.
    pub(crate) index: u64,
    /// The membership in force.
    pub(crate) members: Arc<[Member]>,
    /// The log index at which that, or where blobs are placed, changed last.
    pub(crate) layout_revision: u64,
}

/// The row that says up to where the other rows go.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct AppliedRow {
    pub(crate) log_id: Option<LogId>,
    pub(crate) membership: StoredMembership,
    pub(crate) time_ms: u64,
}

/// What the rest of the crate sees of the state machine's work.
#[derive(Clone)]
pub(crate) struct Watches {
    pub(crate) progress: watch::Receiver<Progress>,
    pub(crate) blobs: broadcast::Sender<AppliedBlob>,
    pub(crate) promises: Promises,
    pub(crate) rules: watch::Receiver<Arc<Rules>>,
    pub(crate) counters: Arc<Counters>,
}

/// Snapshots so far, for metrics.
#[derive(Default)]
pub(crate) struct Counters {
    pub(crate) built: AtomicU64,
    pub(crate) sent: AtomicU64,
    pub(crate) installed: AtomicU64,
}

/// The state machine of this node.
pub(crate) struct StateStore {
    store: MetadataStore,
    applied: AppliedRow,
    jobs: mpsc::Sender<Job>,
    progress: watch::Sender<Progress>,
    blobs: broadcast::Sender<AppliedBlob>,
    promises: Promises,
    rules: watch::Sender<Arc<Rules>>,
    counters: Arc<Counters>,
}

type Work = (Entry, Option<ApplyResponder<TypeConfig>>);

/// Work for the apply thread, which alone writes rows.
pub(crate) enum Job {
    /// Apply these; answers how far that goes.
    Apply(Vec<Work>, AppliedRow, oneshot::Sender<Result<AppliedRow, StorageError>>),
    /// Write the marker that a snapshot exists.
    Mark(oneshot::Sender<Result<(), StorageError>>),
}

impl StateStore {
    /// Opens the state in `dir`. Blocks.
    ///
    /// # Errors
    /// Damaged data.
    pub(crate) fn open(dir: &Path) -> Result<(Self, MetadataStore, Watches), StorageError> {
        let store = MetadataStore::open(dir)?;
        let applied = load(&store)?;
        let (progress, progress_seen) = watch::channel(progress_of(&applied, &Layout::load(&store)?));
        let (blobs, _) = broadcast::channel(4096);
        let (jobs, queue) = mpsc::channel(JOBS);
        let promises = Promises::default();
        promises.replaced(progress_seen.borrow().index);
        let mut derived = Derived::of(&store)?;
        let (rules, rules_seen) = watch::channel(derived.settings.rules(&store)?);
        let worker = Worker {
            store: store.clone(),
            progress: progress.clone(),
            blobs: blobs.clone(),
            promises: promises.clone(),
            rules: rules.clone(),
            flushing: Arc::default(),
            derived,
        };
        std::thread::Builder::new()
            .name("apply".into())
            .spawn(move || worker.run(queue))
            .map_err(|problem| StorageError::Corrupt { what: format!("no thread for apply: {problem}") })?;
        let counters = Arc::new(Counters::default());
        let watches = Watches {
            progress: progress_seen,
            blobs: blobs.clone(),
            promises: promises.clone(),
            rules: rules_seen,
            counters: counters.clone(),
        };
        Ok((Self { store: store.clone(), applied, jobs, progress, blobs, promises, rules, counters }, store, watches))
    }

    fn meta(&self) -> SnapshotMeta {
        SnapshotMeta { last_log_id: self.applied.log_id, last_membership: self.applied.membership.clone() }
    }

    fn builder(&self) -> Builder {
        let (store, jobs, counters) = (self.store.clone(), self.jobs.clone(), self.counters.clone());
        Builder { store, jobs, meta: self.meta(), counters }
    }

    async fn apply_chunk(&mut self, work: Vec<Work>) -> Result<(), io::Error> {
        let (done, waits) = oneshot::channel();
        self.jobs.send(Job::Apply(work, self.applied.clone(), done)).await.map_err(|_| StorageError::Closed)?;
        self.applied = waits.await.map_err(|_| StorageError::Closed)??;
        Ok(())
    }
}

fn load(store: &MetadataStore) -> Result<AppliedRow, StorageError> {
    let key = keys::applied();
    let Some(stored) = store.get(&key)? else { return Ok(AppliedRow::default()) };
    wire::decode(Kind::Row, &long_rows::join(&key, stored, |part| store.get(part))?)
}

fn progress_of(applied: &AppliedRow, layout: &Layout) -> Progress {
    let membership = applied.membership.membership();
    // While two majorities are needed, only who counts in both is relied on: a voter that is about to be one may not be it.
    let votes = |id: &NodeId| {
        let configs = membership.get_joint_config();
        !configs.is_empty() && configs.iter().all(|config| config.contains(id))
    };
    let member = |(id, record): (&NodeId, &NodeRecord)| Member {
        id: *id,
        record: record.clone(),
        voter: votes(id),
        seat: layout.seat(*id),
    };
    Progress {
        index: applied.log_id.as_ref().map_or(0, |log_id| log_id.index),
        members: membership.nodes().map(member).collect(),
        layout_revision: layout.revision,
    }
}

/// The thread that applies.
struct Worker {
    store: MetadataStore,
    progress: watch::Sender<Progress>,
    blobs: broadcast::Sender<AppliedBlob>,
    promises: Promises,
    rules: watch::Sender<Arc<Rules>>,
    flushing: Arc<AtomicBool>,
    derived: Derived,
}

/// What apply knows of the rows beside them; of one generation, since a snapshot replaces all rows.
struct Derived {
    generation: u64,
    cache: RowCache,
    settings: StoredSettings,
    requests: Requests,
}

impl Derived {
    fn of(store: &MetadataStore) -> Result<Self, StorageError> {
        let generation = store.generation();
        let (cache, settings) = (RowCache::default(), StoredSettings::default());
        Ok(Self { generation, cache, settings, requests: Requests::load(store)? })
    }
}

impl Worker {
    fn run(mut self, mut queue: mpsc::Receiver<Job>) {
        while let Some(job) = queue.blocking_recv() {
            match job {
                Job::Apply(work, applied, done) => {
                    // The other side is gone only when the node is going down.
                    let _ = done.send(self.apply(work, applied));
                    self.flush_beside();
                }
                Job::Mark(done) => {
                    let _ = done.send(self.store.write(&vec![(keys::snapshot_marker(), Some(vec![1]))]));
                }
            }
        }
    }

    fn apply(&mut self, work: Vec<Work>, mut applied: AppliedRow) -> Result<AppliedRow, StorageError> {
        if self.derived.generation != self.store.generation() {
            self.derived = Derived::of(&self.store)?;
        }
        let Derived { cache, settings, requests, .. } = &mut self.derived;
        let reader = Cached { store: &self.store, cache };
        let members = applied.membership.membership().nodes().map(|(id, _)| *id).collect();
        let rules = settings.rules(&reader)?;
        let mut state = State::new(&reader, members, applied.time_ms, rules, Layout::load(&reader)?, requests);
        let mut answers = Vec::new();
        let (mut named, mut files) = (Vec::new(), Vec::new());
        for (entry, responder) in work {
            let log_id = entry.log_id();
            state.set_index(log_id.index);
            let answer = match entry.payload {
                EntryPayload::Blank => done_at(log_id.index),
                EntryPayload::Membership(membership) => {
                    state.set_members(membership.nodes().map(|(id, _)| *id).collect())?;
                    applied.membership = StoredMembership::new(Some(log_id), membership);
                    done_at(log_id.index)
                }
                EntryPayload::Normal(proposal) => {
                    let answer = state_machine::apply(&mut state, &proposal)?;
                    let collected = state.take_collected().into_iter();
                    files.extend(collected.map(|(index, digest)| File::Collected { index, digest }));
                    if let Some((digest, size)) = file_of(&proposal).filter(|_| answer.result.is_ok()) {
                        files.push(File::Named { digest });
                        let replicas = repository_of(&proposal).and_then(|name| state.rules().replicas(name));
                        named.push(AppliedBlob::Linked { digest, size, replicas });
                    }
                    answer
                }
            };
            applied.log_id = Some(log_id);
            answers.extend(responder.map(|responder| (responder, answer)));
        }
        applied.time_ms = state.time_ms();
        let (rules, layout) = (state.current_rules(), state.layout().clone());
        if files.iter().any(|file| matches!(file, File::Collected { .. })) {
            named.push(AppliedBlob::Collected);
        }
        let mut rows = state.into_rows();
        let applied_rows = long_rows::split(keys::applied(), wire::encode(Kind::Row, &applied)?)?;
        rows.extend(applied_rows.into_iter().map(|(key, value)| (key, Some(value))));
        self.store.write(&rows)?;
        cache.written(&rows);
        let progress = progress_of(&applied, &layout);
        // Before anybody can see that these entries are applied: a promise with their index must know what they did.
        self.promises.applied(progress.index, files);
        self.rules.send_if_modified(|former| !Arc::ptr_eq(&std::mem::replace(former, rules.clone()), &rules));
        self.progress.send_replace(progress);
        answers.into_iter().for_each(|(responder, answer)| responder.send(answer));
        for blob in named {
            // Nobody listens before the node is up; it compares everything then.
            let _ = self.blobs.send(blob);
        }
        Ok(applied)
    }

    fn flush_beside(&self) {
        if self.store.unflushed_bytes() < FLUSH_EACH || self.flushing.swap(true, Ordering::AcqRel) {
            return;
        }
        let (store, flushing) = (self.store.clone(), self.flushing.clone());
        let spawned = std::thread::Builder::new().name("flush".into()).spawn(move || {
            if let Err(problem) = store.flush() {
                tracing::error!(error = %problem, "state could not be synced");
            }
            flushing.store(false, Ordering::Release);
        });
        if spawned.is_err() {
            self.flushing.store(false, Ordering::Release);
        }
    }
}

fn done_at(revision: u64) -> Answer {
    Answer { revision, result: Ok(Outcome::Done) }
}

/// The file that a command names, and its size in bytes, if it names one.
fn file_of(proposal: &Proposal) -> Option<(Digest, u64)> {
    match &proposal.command {
        Command::LinkBlob { digest, size, body: Body::File { .. }, .. } => Some((*digest, *size)),
        Command::PutManifest(put) if matches!(put.body, Body::File { .. }) => Some((put.digest, put.size)),
        _ => None,
    }
}

/// The repository that a command puts something into, where it names a file.
fn repository_of(proposal: &Proposal) -> Option<&RepositoryName> {
    match &proposal.command {
        Command::LinkBlob { repository, .. } => Some(repository),
        Command::PutManifest(put) => Some(&put.repository),
        _ => None,
    }
}

/// The rows of a view in a new generation.
async fn copied(store: MetadataStore, mut view: View) -> Result<Install, io::Error> {
    let work = move || {
        let mut install = store.begin_install()?;
        while let Some(rows) = view.next_chunk(COPY_BYTES)? {
            install.put(&rows)?;
        }
        Ok::<_, StorageError>(install)
    };
    Ok(tokio::task::spawn_blocking(work).await.map_err(io::Error::other)??)
}

impl RaftStateMachine<TypeConfig> for StateStore {
    type SnapshotData = Copy;
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        Ok((self.applied.log_id, self.applied.membership.clone()))
    }

    async fn apply<Strm>(&mut self, entries: Strm) -> Result<(), io::Error>
    where
        Strm: Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin + OptionalSend,
    {
        let mut chunks = entries.ready_chunks(CHUNK);
        while let Some(chunk) = chunks.next().await {
            self.apply_chunk(chunk.into_iter().collect::<Result<_, _>>()?).await?;
        }
        Ok(())
    }

    async fn try_create_snapshot_builder(&mut self, force: bool) -> Option<Builder> {
        // While a copy is out no new snapshot is built: the purge that follows it would overtake the copy, and the
        // follower would need another one without end.
        (force || self.store.open_views() == 0).then(|| self.builder())
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        self.builder()
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, snapshot: Copy) -> Result<(), io::Error> {
        let store = self.store.clone();
        let work = match snapshot {
            // openraft gives back what this node has when it starts.
            _ if *meta == self.meta() => return Ok(()),
            Copy::Received(received) => received.into_install()?,
            Copy::View(view) => copied(store.clone(), view).await?,
            Copy::State => return Err(io::Error::other("a snapshot without rows, of another state than this node's")),
        };
        let installed = tokio::task::spawn_blocking(move || {
            work.finish()?;
            Ok::<_, StorageError>((load(&store)?, Layout::load(&store)?))
        });
        let (applied, layout) = installed.await.map_err(io::Error::other)??;
        if applied.log_id != meta.last_log_id {
            return Err(StorageError::Corrupt {
                what: format!("the snapshot's rows go to {:?}, its head says {:?}", applied.log_id, meta.last_log_id),
            }
            .into());
        }
        self.applied = applied;
        self.counters.installed.fetch_add(1, Ordering::Relaxed);
        let progress = progress_of(&self.applied, &layout);
        self.promises.replaced(progress.index);
        let store = self.store.clone();
        let rules = tokio::task::spawn_blocking(move || StoredSettings::default().rules(&store));
        self.rules.send_replace(rules.await.map_err(io::Error::other)??);
        self.progress.send_replace(progress);
        let _ = self.blobs.send(AppliedBlob::Everything);
        tracing::info!(log_index = self.progress.borrow().index, "snapshot installed");
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot>, io::Error> {
        let store = self.store.clone();
        let view = tokio::task::spawn_blocking(move || {
            if store.get(&keys::snapshot_marker())?.is_none() {
                return Ok(None);
            }
            store.flush()?;
            store.view().map(Some)
        })
        .await
        .map_err(io::Error::other)??;
        Ok(view.map(|view| Snapshot { meta: self.meta(), snapshot: Copy::View(view) }))
    }
}

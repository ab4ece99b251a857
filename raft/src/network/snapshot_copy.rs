//! A snapshot on its way to a follower: calls one after the other, each with a checksum. First the head, then numbered
//! chunks of rows, at the end the word that these were all. A call that breaks is sent again, so that a copy goes on
//! where it broke off; a new leader begins a new one.

use std::time::{Duration, Instant};

use flotilla_storage::{Install, MetadataStore, StorageError, View};
use openraft::raft::SnapshotResponse;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::serve::stopped;
use super::{Call, CallError, PeerClient, Pong, ServeError};
use crate::consensus::Consensus;
use crate::log_store::LogStore;
use crate::member::{NodeId, NodeRecord};
use crate::snapshot::{Copy, Received, Snapshot};
use crate::types::{SnapshotMeta, TypeConfig, Vote};

/// Bytes of rows in a chunk.
const CHUNK_BYTES: usize = 512 << 10;

/// How long one call may take: the follower syncs now and then.
const CALL_LIMIT: Duration = Duration::from_secs(20);

/// How long the follower may take to sync all rows and switch to them.
const INSTALL_LIMIT: Duration = Duration::from_secs(600);

/// How long a call that breaks is sent again, and the pause before.
const BROKEN_MAX: Duration = Duration::from_secs(60);
const AGAIN_EACH: Duration = Duration::from_millis(200);

/// How often a node that takes no copy is asked whether it answers.
const ASKED_EACH: Duration = Duration::from_secs(1);

/// A copy during which the log grows past this many bytes is given up, since nothing is purged meanwhile.
const LOG_MAX_BYTES: u64 = 2 << 30;

/// What the follower must know before the rows.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Head {
    /// The leader's.
    pub(crate) vote: Vote,
    /// Up to where the rows go.
    pub(crate) meta: SnapshotMeta,
}

/// What the follower says to a call.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum CopyReply {
    /// It has what was sent.
    Taken,
    /// All rows are its state now.
    Installed(SnapshotResponse<TypeConfig>),
    /// It takes, or has taken, a copy of another leader.
    Other,
}

type Rows = Vec<(Vec<u8>, Vec<u8>)>;

/// The leader's side: to one node.
pub(crate) struct Sender<'a> {
    pub(crate) client: &'a PeerClient,
    pub(crate) record: &'a NodeRecord,
    pub(crate) to: NodeId,
    /// Watched meanwhile.
    pub(crate) log: &'a LogStore,
}

impl Sender<'_> {
    /// Sends the rows of a view, and waits until the node has installed them.
    pub(crate) async fn send(&self, head: Head, mut view: View) -> Result<SnapshotResponse<TypeConfig>, CallError> {
        let copy = Uuid::new_v4();
        let (address, to, begin) = (&self.record.peer_address, Some(self.to), (copy, head));
        let begun = self.client.call(address, to, Call::CopyBegin, &begin, CALL_LIMIT).await;
        if !matches!(begun, Ok(CopyReply::Taken)) {
            // No snapshot is built and nothing purged while a view is open, and the node may be away for long.
            drop(view);
            self.wait_until_it_answers().await;
            return Err(begun.err().unwrap_or_else(other_copy));
        }
        tracing::info!(node_id = format!("{:012x}", self.to), "sending a snapshot");
        for number in 0_u64.. {
            if self.log.size_bytes() > LOG_MAX_BYTES {
                return Err(CallError::NoAnswer("the log has grown too much during a copy: it is given up".into()));
            }
            let read = move || {
                let rows: Rows = view.next_chunk(CHUNK_BYTES)?.unwrap_or_default();
                Ok::<_, StorageError>((rows, view))
            };
            let read = tokio::task::spawn_blocking(read).await.map_err(|problem| problem.to_string());
            let (rows, same) = read
                .and_then(|read| read.map_err(|problem| problem.to_string()))
                .map_err(|problem| CallError::NoAnswer(format!("the state cannot be read: {problem}")))?;
            if rows.is_empty() {
                break;
            }
            view = same;
            self.call(Call::CopyRows, &(copy, number, rows), CALL_LIMIT).await?;
        }
        match self.call(Call::CopyEnd, &copy, INSTALL_LIMIT).await? {
            CopyReply::Installed(response) => Ok(response),
            CopyReply::Taken | CopyReply::Other => Err(CallError::NoAnswer("the copy was not installed".into())),
        }
    }

    /// Returns after a while at the latest, and after a pause at least.
    async fn wait_until_it_answers(&self) {
        let answers = async {
            loop {
                tokio::time::sleep(ASKED_EACH).await;
                let address = &self.record.peer_address;
                let pong = self.client.call::<_, Pong>(address, Some(self.to), Call::Ping, &(), ASKED_EACH).await;
                if pong.is_ok() {
                    return;
                }
            }
        };
        let _ = tokio::time::timeout(BROKEN_MAX, answers).await;
    }

    async fn call<Q: Serialize>(&self, call: Call, request: &Q, limit: Duration) -> Result<CopyReply, CallError> {
        let mut broken_since = None;
        loop {
            let reply = self.client.call(&self.record.peer_address, Some(self.to), call, request, limit).await;
            match reply {
                Ok(CopyReply::Other) => return Err(other_copy()),
                Ok(reply) => return Ok(reply),
                Err(problem @ (CallError::Refused { .. } | CallError::Unreadable(_))) => return Err(problem),
                Err(problem) => {
                    let broken_for = broken_since.get_or_insert_with(Instant::now).elapsed();
                    if broken_for > BROKEN_MAX || self.log.size_bytes() > LOG_MAX_BYTES {
                        return Err(problem);
                    }
                    tracing::debug!(error = %problem, "a copy of the state broke off: it goes on where it was");
                    tokio::time::sleep(AGAIN_EACH).await;
                }
            }
        }
    }
}

fn other_copy() -> CallError {
    CallError::NoAnswer("the node takes a copy of another leader".into())
}

/// The follower's side: the copy that it takes, or took last.
#[derive(Default)]
pub(crate) struct Receiving(Option<Incoming>);

struct Incoming {
    copy: Uuid,
    head: Head,
    /// The number of the next chunk.
    next: u64,
    touched: Instant,
    rows: Taken,
}

enum Taken {
    Some(Install),
    /// A step failed or is under way.
    Nothing,
    /// The answer to the last call, which may come again.
    All(SnapshotResponse<TypeConfig>),
}

impl Receiving {
    /// Gives up a copy whose leader went away in the middle of it: it takes room on the disk.
    pub(crate) fn forget_broken(&mut self) {
        if self.0.as_ref().is_some_and(|incoming| incoming.touched.elapsed() > 2 * BROKEN_MAX) {
            self.forget();
        }
    }

    /// Files go with it.
    fn forget(&mut self) {
        if let Some(incoming) = self.0.take() {
            tokio::task::spawn_blocking(move || drop(incoming));
        }
    }

    fn of(&mut self, copy: Uuid) -> Option<&mut Incoming> {
        let incoming = self.0.as_mut().filter(|incoming| incoming.copy == copy)?;
        incoming.touched = Instant::now();
        Some(incoming)
    }
}

impl Consensus {
    pub(super) async fn copy_begins(&self, copy: Uuid, head: Head) -> Result<CopyReply, ServeError> {
        let mut receiving = self.receiving().lock().await;
        if receiving.of(copy).is_some() {
            return Ok(CopyReply::Taken);
        }
        // The same leader begins anew what it gave up; a later one knows better.
        if receiving
            .0
            .as_ref()
            .is_some_and(|current| matches!(current.rows, Taken::Some(_)) && current.head.vote > head.vote)
        {
            return Ok(CopyReply::Other);
        }
        receiving.forget();
        let store: MetadataStore = self.metadata().clone();
        let install =
            tokio::task::spawn_blocking(move || store.begin_install()).await.map_err(stopped)?.map_err(stopped)?;
        let rows = Taken::Some(install);
        receiving.0 = Some(Incoming { copy, head, next: 0, touched: Instant::now(), rows });
        Ok(CopyReply::Taken)
    }

    pub(super) async fn copy_goes_on(&self, copy: Uuid, number: u64, rows: Rows) -> Result<CopyReply, ServeError> {
        let mut receiving = self.receiving().lock().await;
        let Some(incoming) = receiving.of(copy) else { return Ok(CopyReply::Other) };
        if number < incoming.next {
            return Ok(CopyReply::Taken);
        }
        let Taken::Some(mut install) = std::mem::replace(&mut incoming.rows, Taken::Nothing) else {
            return Ok(CopyReply::Other);
        };
        if number > incoming.next {
            return Ok(CopyReply::Other);
        }
        let put = move || {
            install.put(&rows)?;
            Ok::<_, StorageError>(install)
        };
        let install = tokio::task::spawn_blocking(put).await.map_err(stopped)?.map_err(stopped)?;
        (incoming.rows, incoming.next) = (Taken::Some(install), number + 1);
        Ok(CopyReply::Taken)
    }

    pub(super) async fn copy_ends(&self, copy: Uuid) -> Result<CopyReply, ServeError> {
        let mut receiving = self.receiving().lock().await;
        let Some(incoming) = receiving.of(copy) else { return Ok(CopyReply::Other) };
        let install = match std::mem::replace(&mut incoming.rows, Taken::Nothing) {
            Taken::Some(install) => install,
            Taken::Nothing => return Ok(CopyReply::Other),
            Taken::All(response) => {
                incoming.rows = Taken::All(response.clone());
                return Ok(CopyReply::Installed(response));
            }
        };
        let Head { vote, meta } = incoming.head.clone();
        let snapshot = Snapshot { meta, snapshot: Copy::Received(Received::new(install)) };
        let response = self.raft().install_full_snapshot(vote, snapshot).await.map_err(stopped)?;
        incoming.rows = Taken::All(response.clone());
        incoming.touched = Instant::now();
        Ok(CopyReply::Installed(response))
    }
}

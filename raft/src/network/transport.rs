//! openraft's network over the peer port.

use std::time::Duration;

use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{Backoff, RPCOption, RaftNetworkFactory, RaftNetworkV2};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest, TransferLeaderResponse,
    VoteRequest, VoteResponse,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::snapshot_copy::{Head, Sender};
use super::{Call, CallError, PeerClient};
use crate::log_store::LogStore;
use crate::member::{NodeId, NodeRecord};
use crate::snapshot::{Copy, Snapshot};
use crate::types::{TypeConfig, Vote};

/// A batch of entries may wait for the follower's sync. openraft's own limit is the heartbeat's interval, with which
/// one slow sync would send everything again.
const APPEND_LIMIT: Duration = Duration::from_secs(5);

/// A vote waits for one sync on the other side.
const VOTE_LIMIT: Duration = Duration::from_secs(2);

/// How long openraft waits before it tries a node again that cannot be reached.
const RETRY_EACH: Duration = Duration::from_millis(200);

/// Makes connections for openraft.
pub(crate) struct Network {
    pub(crate) client: PeerClient,
    pub(crate) log: LogStore,
    pub(crate) counters: std::sync::Arc<crate::state_store::Counters>,
}

/// The way to one node.
pub(crate) struct Connection {
    client: PeerClient,
    log: LogStore,
    counters: std::sync::Arc<crate::state_store::Counters>,
    target: NodeId,
    record: NodeRecord,
}

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = Connection;

    async fn new_client(&mut self, target: NodeId, node: &NodeRecord) -> Connection {
        Connection {
            client: self.client.clone(),
            log: self.log.clone(),
            counters: self.counters.clone(),
            target,
            record: node.clone(),
        }
    }
}

impl Connection {
    async fn call<Q: Serialize, A: DeserializeOwned>(
        &self,
        call: Call,
        request: &Q,
        limit: Duration,
    ) -> Result<A, RPCError<TypeConfig>> {
        self.client.call(&self.record.peer_address, Some(self.target), call, request, limit).await.map_err(rpc_error)
    }
}

/// A node that is not there, or not the one that was meant, is «unreachable», which openraft tries again with pauses.
fn rpc_error(problem: CallError) -> RPCError<TypeConfig> {
    match problem {
        CallError::Unreachable(_) | CallError::Refused { .. } => RPCError::Unreachable(Unreachable::new(&problem)),
        CallError::NoAnswer(_) | CallError::Unreadable(_) => RPCError::Network(NetworkError::new(&problem)),
    }
}

impl RaftNetworkV2<TypeConfig> for Connection {
    type SnapshotData = Copy;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<TypeConfig>,
        _option: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, RPCError<TypeConfig>> {
        self.call(Call::Append, &rpc, APPEND_LIMIT).await
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        _option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        self.call(Call::Vote, &rpc, VOTE_LIMIT).await
    }

    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        _option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        self.call(Call::PreVote, &rpc, VOTE_LIMIT).await
    }

    async fn transfer_leader(
        &mut self,
        req: TransferLeaderRequest<TypeConfig>,
        _option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, RPCError<TypeConfig>> {
        let parts = (*req.from_leader(), *req.to_node_id(), req.last_log_id().cloned());
        self.call(Call::Transfer, &parts, VOTE_LIMIT).await
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + openraft::OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let Copy::View(view) = snapshot.snapshot else {
            return Err(StreamingError::Network(NetworkError::from_string("this snapshot has no rows to send")));
        };
        let sender = Sender { client: &self.client, record: &self.record, to: self.target, log: &self.log };
        tokio::select! {
            closed = cancel => Err(StreamingError::Closed(closed)),
            sent = sender.send(Head { vote, meta: snapshot.meta }, view) => {
                let response = sent.map_err(|problem| StreamingError::from(rpc_error(problem)))?;
                self.counters.sent.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                Ok(response)
            }
        }
    }

    fn backoff(&self) -> Option<Backoff> {
        Some(Backoff::new(std::iter::repeat(RETRY_EACH)))
    }
}

//! The answering side of the peer port: bytes in, bytes out. `src/cluster` mounts it.

use std::time::Duration;

use futures::future::join_all;
use openraft::raft::{AppendEntriesRequest, TransferLeaderRequest, VoteRequest};
use serde::Serialize;
use serde::de::DeserializeOwned;
use uuid::Uuid;

use super::{Call, JoinReply, ProposeReply, ReadIndexReply, RemoveReply};
use crate::command::Proposal;
use crate::consensus::Consensus;
use crate::member::{NodeId, NodeRecord};
use crate::membership::Removal;
use crate::recognition::Recognition;
use crate::types::{LogId, TypeConfig, Vote};
use crate::wire::{self, Kind};

/// How long a node lets a caller wait until an index is applied.
const WAIT_APPLIED_MAX: Duration = Duration::from_secs(10);

/// Whom a request says that it is for, from its headers, and who asks.
#[derive(Debug, Clone, Copy, Default)]
pub struct Caller {
    /// The node that is meant.
    pub to: Option<NodeId>,
    /// The node that has proved to be the one that asks, where that is known.
    pub from: Option<NodeId>,
}

/// Why a request of the peer port is not answered.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// It was meant for a node that had this address before. HTTP 421.
    #[error("this node is {own:012x}, not {to:012x}")]
    OtherNode {
        /// This node.
        own: NodeId,
        /// The one that was meant.
        to: NodeId,
    },
    /// Bytes that this build cannot read. HTTP 400.
    #[error("unreadable: {0}")]
    Unreadable(String),
    /// This node is going down. HTTP 503.
    #[error("this node has stopped: {0}")]
    Stopped(String),
}

fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, ServeError> {
    wire::decode(Kind::Request, body).map_err(|problem| ServeError::Unreadable(problem.to_string()))
}

fn written<T: Serialize>(answer: &T) -> Result<Vec<u8>, ServeError> {
    wire::encode(Kind::Response, answer).map_err(|problem| ServeError::Stopped(problem.to_string()))
}

pub(super) fn stopped(problem: impl std::fmt::Display) -> ServeError {
    ServeError::Stopped(problem.to_string())
}

impl Consensus {
    /// Answers one call of the peer port.
    ///
    /// # Errors
    /// See [`ServeError`]: each has its HTTP status.
    pub async fn serve(&self, call: Call, caller: Caller, body: &[u8]) -> Result<Vec<u8>, ServeError> {
        self.check(caller)?;
        let raft = self.raft();
        match call {
            Call::Append => {
                written(&raft.append_entries(read::<AppendEntriesRequest<TypeConfig>>(body)?).await.map_err(stopped)?)
            }
            Call::Vote => written(&raft.vote(read::<VoteRequest<TypeConfig>>(body)?).await.map_err(stopped)?),
            Call::PreVote => written(&raft.pre_vote(read::<VoteRequest<TypeConfig>>(body)?).await.map_err(stopped)?),
            Call::Transfer => {
                let (from, to, last): (Vote, NodeId, Option<LogId>) = read(body)?;
                written(
                    &raft.handle_transfer_leader(TransferLeaderRequest::new(from, to, last)).await.map_err(stopped)?,
                )
            }
            Call::Propose => {
                let proposals: Vec<Proposal> = read(body)?;
                written::<Vec<ProposeReply>>(&join_all(proposals.into_iter().map(|one| self.propose_here(one))).await)
            }
            Call::ReadIndex => written::<ReadIndexReply>(&self.read_index_here().await),
            Call::Ping => written(&self.pong()),
            Call::WaitApplied => {
                let (index, limit_ms): (u64, u64) = read(body)?;
                written(&self.wait_applied(index, Duration::from_millis(limit_ms).min(WAIT_APPLIED_MAX)).await)
            }
            Call::Identity => written(&self.identity()),
            Call::Join => {
                let (id, record, cluster_id): (NodeId, NodeRecord, Option<Uuid>) = read(body)?;
                if let Some(from) = caller.from.filter(|from| *from != id) {
                    return written(&JoinReply::Refused(format!("node {from:012x} asks for node {id:012x}")));
                }
                written::<JoinReply>(&self.take_in(id, record, cluster_id).await)
            }
            Call::Recognise => {
                let id: NodeId = read(body)?;
                // The index first: who is told that it is no member believes it of an index that is not behind its own.
                let (cluster_id, applied_index) = (self.identity().cluster_id, self.applied_index());
                let member = self.members().iter().find(|member| member.id == id).map(|member| member.record.clone());
                written(&Recognition { cluster_id, applied_index, member })
            }
            Call::Remove => {
                let (id, how): (NodeId, Removal) = read(body)?;
                written::<RemoveReply>(&self.remove_here(id, how).await)
            }
            Call::CopyBegin => {
                let (copy, head) = read(body)?;
                written(&self.copy_begins(copy, head).await?)
            }
            Call::CopyRows => {
                let (copy, number, rows) = read(body)?;
                written(&self.copy_goes_on(copy, number, rows).await?)
            }
            Call::CopyEnd => written(&self.copy_ends(read(body)?).await?),
        }
    }

    fn check(&self, caller: Caller) -> Result<(), ServeError> {
        match caller.to {
            Some(to) if to != self.node_id() => Err(ServeError::OtherNode { own: self.node_id(), to }),
            _ => Ok(()),
        }
    }
}

//! Linearizable reads: by the leader's read index (Raft dissertation, §6.4).

use openraft::errors::RaftError;
use openraft::raft::ReadPolicy;

use super::{Consensus, ELECTION_LIMIT, RETRY_EACH, ReadError};
use crate::network::{Call, ReadIndexReply};

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
    pub(super) async fn read_index(&self) -> Result<u64, ReadError> {
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

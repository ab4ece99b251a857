//! Changes: proposed to the leader from any node, and awaited where they must be seen.

use std::sync::Arc;
use std::time::Duration;

use openraft::errors::{ClientWriteError, RaftError};
use serde::Serialize;
use serde::de::DeserializeOwned;
use uuid::Uuid;

use super::{Consensus, ELECTION_LIMIT, ProposeError, RETRY_EACH};
use crate::command::{Answer, Command, Proposal};
use crate::member::NodeId;
use crate::network::{Call, CallError, ProposeReply};

/// How often a call to the leader looks whether it still leads.
const LEADER_WATCHED_EACH: Duration = Duration::from_millis(100);

/// How long a delete waits for the nodes that answer.
const APPLIED_EVERYWHERE_LIMIT: Duration = Duration::from_secs(2);

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
    pub(super) async fn forward(&self, proposals: Vec<Arc<Proposal>>) -> Result<Vec<ProposeReply>, CallError> {
        let leader = self.leader().filter(|leader| *leader != self.node_id());
        let leader = leader.ok_or_else(|| CallError::Unreachable("no other node leads".into()))?;
        let proposals: Vec<&Proposal> = proposals.iter().map(Arc::as_ref).collect();
        self.ask_leader(leader, Call::Propose, &proposals).await
    }

    /// A call to the leader, given up when it is not reachable any more or another one leads.
    pub(super) async fn ask_leader<Q: Serialize, A: DeserializeOwned>(
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
        proposal.time_ms = self.stamp_ms();
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

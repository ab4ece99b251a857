//! Who belongs to the cluster, and who leads it: found, join, hand over.

use std::collections::BTreeMap;
use std::time::Duration;

use openraft::ChangeMembers;
use openraft::async_runtime::WatchReceiver;
use uuid::Uuid;

use crate::command::Command;
use crate::consensus::{Consensus, ProposeError};
use crate::member::{NodeId, NodeRecord};
use crate::network::{Call, CallError, Identity, JoinReply};

/// How long each of a leader's attempts to hand over may take.
const HAND_OVER_LIMIT: Duration = Duration::from_secs(1);

/// How often a leader looks for a voter that has its whole log.
const SUCCESSOR_LOOKS: usize = 20;

/// The pause between two looks.
const SUCCESSOR_LOOKED_FOR_EACH: Duration = Duration::from_millis(10);

impl Consensus {
    /// Founds a cluster of these nodes, this one among them, all of them empty: the first entry of the log names
    /// them, the second gives the cluster its id.
    ///
    /// # Errors
    /// A text that says why, such as that this node is not empty.
    pub async fn found(&self, nodes: BTreeMap<NodeId, NodeRecord>) -> Result<(), String> {
        self.raft().initialize(nodes).await.map_err(|problem| problem.to_string())
    }

    /// Gives the cluster an id, if it has none yet; returns it.
    ///
    /// # Errors
    /// See [`ProposeError`].
    pub async fn name_cluster(&self) -> Result<(), ProposeError> {
        self.propose(Uuid::new_v4(), Command::Found { cluster_id: Uuid::new_v4() }).await.map(|_| ())
    }

    /// Asks a node of a cluster who it is.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn identity_of(&self, address: &str, limit: Duration) -> Result<Identity, CallError> {
        self.client().call(address, None, Call::Identity, &(), limit).await
    }

    /// Asks a node of a cluster to take this one in.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn ask_to_join(&self, address: &str, cluster_id: Uuid, limit: Duration) -> Result<JoinReply, CallError> {
        let request = (self.node_id(), self.record().clone(), Some(cluster_id));
        self.client().call(address, None, Call::Join, &request, limit).await
    }

    /// Takes a node in as a learner, if this node leads.
    pub(crate) async fn take_in(&self, id: NodeId, record: NodeRecord, cluster_id: Option<Uuid>) -> JoinReply {
        let own = self.identity().cluster_id;
        if own.is_none() || own != cluster_id {
            return JoinReply::Refused(format!("this is cluster {own:?}, not {cluster_id:?}"));
        }
        let members = self.members();
        if members.iter().any(|member| member.id == id) {
            return JoinReply::Member(members.to_vec());
        }
        match self.leader() {
            Some(leader) if leader == self.node_id() => {}
            leader => {
                return JoinReply::NotLeader(leader.and_then(|leader| {
                    members.iter().find(|member| member.id == leader).map(|member| member.record.clone())
                }));
            }
        }
        // The node is added without a vote: one that never comes must not raise the quorum (case C43).
        let change = ChangeMembers::AddNodes(BTreeMap::from([(id, record)]));
        match self.raft().change_membership(change, true).await {
            Ok(_) => JoinReply::Member(self.members().to_vec()),
            Err(problem) => JoinReply::Refused(problem.to_string()),
        }
    }

    /// Hands leadership over, if this node leads: to a voter that has the whole log, since openraft's target refuses
    /// without it and the leader takes no proposals meanwhile. Gives up after two attempts; an election does it then.
    pub async fn hand_over(&self) {
        for _ in 0..2 {
            let Some(successor) = self.successor().await else { return };
            if self.raft().trigger().transfer_leader(successor).await.is_err() {
                return;
            }
            let mut seen = self.raft().metrics();
            let own = self.node_id();
            let changed = seen.wait_until(|metrics| metrics.current_leader.is_some_and(|leader| leader != own));
            if matches!(tokio::time::timeout(HAND_OVER_LIMIT, changed).await, Ok(Ok(_))) {
                tracing::info!(node_id = format!("{successor:012x}"), "leadership handed over");
                return;
            }
        }
    }

    /// The voter to hand over to: one with the last entry if that can be had soon, else the one that has most. `None`
    /// where this node does not lead, or no other voter answers.
    async fn successor(&self) -> Option<NodeId> {
        let mut best = None;
        for _ in 0..SUCCESSOR_LOOKS {
            let metrics = self.raft().metrics().borrow_watched().clone();
            if metrics.current_leader != Some(self.node_id()) {
                return None;
            }
            let matched = metrics.replication.unwrap_or_default();
            let matched = |id: &NodeId| matched.get(id).copied().flatten().map(|log_id| log_id.index);
            let voters: Vec<NodeId> = metrics.membership_config.membership().voter_ids().collect();
            let others = voters.into_iter().filter(|id| *id != self.node_id() && self.reachable(*id));
            best = others.max_by_key(matched);
            if best.as_ref().is_none_or(|best| matched(best) == metrics.last_log_index) {
                break;
            }
            tokio::time::sleep(SUCCESSOR_LOOKED_FOR_EACH).await;
        }
        best
    }
}

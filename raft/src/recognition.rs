//! Who is who: before a node with a log takes part again, it asks the others whether they know it. A data directory of
//! another cluster, a copy of one that is in use, and that of a removed node must not vote (case C44).

use std::collections::BTreeSet;
use std::sync::LazyLock;
use std::time::Duration;

use futures::future::join_all;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::consensus::Consensus;
use crate::member::{Member, NodeId, NodeRecord};
use crate::network::{Call, Identity, PeerClient};

/// How long another node may take to answer. Where all start together nobody does, and each waits so long.
const LIMIT: Duration = Duration::from_millis(500);

/// What tells this process from another one that has its id.
pub(crate) fn this_process() -> Uuid {
    static PROCESS: LazyLock<Uuid> = LazyLock::new(Uuid::new_v4);
    *PROCESS
}

/// What a node knows of another one: the answer to [`Call::Recognise`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Recognition {
    /// The cluster that it belongs to.
    pub(crate) cluster_id: Option<Uuid>,
    /// How far it has applied the log.
    pub(crate) applied_index: u64,
    /// The member of the id that was asked about.
    pub(crate) member: Option<NodeRecord>,
}

/// A node that is about to take part again.
pub(crate) struct Candidate<'a> {
    pub(crate) id: NodeId,
    pub(crate) record: &'a NodeRecord,
    /// `None` where that is on no disk yet.
    pub(crate) cluster_id: Option<Uuid>,
    /// The last index of its log; 0 for a node that has none, which is new.
    pub(crate) last_index: u64,
    pub(crate) members: &'a [Member],
}

impl Candidate<'_> {
    /// Asks these peers and all members that it remembers. Whoever does not answer says nothing: a cluster that starts
    /// as a whole has nobody who could.
    ///
    /// # Errors
    /// Why it must not take part, with what to do.
    pub(crate) async fn be_recognised(&self, peers: &[String], client: &PeerClient) -> Result<(), String> {
        if self.last_index == 0 {
            return Ok(());
        }
        let remembered = self.members.iter().map(|member| &member.record.peer_address);
        let addresses: BTreeSet<&String> =
            peers.iter().chain(remembered).filter(|address| **address != self.record.peer_address).collect();
        let asked = addresses.into_iter().map(|address| async move {
            let known = client.call::<_, Recognition>(address, None, Call::Recognise, &self.id, LIMIT).await;
            (address, known)
        });
        for (address, known) in join_all(asked).await {
            let Ok(known) = known else { continue };
            if let Some(refusal) = self.refusal(address, &known) {
                return Err(refusal);
            }
            if let Some(record) = known.member.filter(|record| record.peer_address != self.record.peer_address) {
                self.is_alone(&record, client).await?;
                return Err(format!(
                    "{address} says that others find node {:012x} at {}, and its `peer_advertise` is {}, where they do not look \
                     for it: set it to what it was, or give this node an empty data directory to join as a new node",
                    self.id, record.peer_address, self.record.peer_address
                ));
            }
        }
        // The copy of a whole machine has its addresses as well.
        self.is_alone(self.record, client).await
    }

    /// What one answer says against it.
    fn refusal(&self, address: &str, known: &Recognition) -> Option<String> {
        let other = known.cluster_id?;
        if let Some(own) = self.cluster_id.filter(|own| *own != other) {
            return Some(format!(
                "this data directory belongs to cluster {own}, and {address} to cluster {other}: give this node the data \
                 directory of its cluster, or an empty one to join as a new node"
            ));
        }
        // Who has applied less may not know of this node yet; but one that does not know its own cluster has no such case.
        let may_be_new = self.cluster_id.is_some() && known.applied_index < self.last_index;
        (known.member.is_none() && !may_be_new).then(|| {
            format!(
                "{address} says that node {:012x} is no member of cluster {other}, as one that was removed from it: give this \
                 node an empty data directory to join as a new node",
                self.id
            )
        })
    }

    /// Whether no other process answers as this node where the cluster knows it.
    async fn is_alone(&self, record: &NodeRecord, client: &PeerClient) -> Result<(), String> {
        let address = &record.peer_address;
        match client.call::<_, Identity>(address, None, Call::Identity, &(), LIMIT).await {
            Ok(found) if found.id == self.id && found.process != this_process() => Err(format!(
                "node {:012x} runs at {address} already: this data directory is a copy of its own; give this node an empty one",
                self.id
            )),
            _ => Ok(()),
        }
    }
}

/// How often a running node asks whether it is a member still.
const ASK_EACH: Duration = Duration::from_secs(5);

impl Consensus {
    /// Ends this node once it was removed while it ran. The entry that removes it may never reach it: the leader stops
    /// sending to who is no member.
    pub(crate) async fn notice_removal(self) {
        let mut ticks = tokio::time::interval(ASK_EACH);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut was_member = false;
        while !self.has_ended() {
            ticks.tick().await;
            let members = self.members();
            let is_member = members.iter().any(|member| member.id == self.node_id());
            if was_member && !is_member {
                self.dismiss(format!("node {:012x} was removed from the cluster", self.node_id()));
                return;
            }
            was_member = is_member;
            if !is_member {
                continue;
            }
            let candidate = Candidate {
                id: self.node_id(),
                record: self.record(),
                cluster_id: self.identity().cluster_id,
                last_index: self.applied_index(),
                members: &members,
            };
            if let Err(reason) = candidate.be_recognised(&self.options().peers, self.client()).await {
                self.dismiss(reason);
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_who_knows_as_much_can_say_that_a_node_was_removed() {
        let (own, other) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let record = NodeRecord::default();
        let mut candidate = Candidate { id: 7, record: &record, cluster_id: Some(own), last_index: 100, members: &[] };
        let refusal = |candidate: &Candidate<'_>, cluster_id, applied_index, member: Option<NodeRecord>| {
            candidate.refusal("a:7000", &Recognition { cluster_id, applied_index, member }).unwrap_or_default()
        };
        assert_eq!(refusal(&candidate, Some(own), 100, Some(record.clone())), "");
        assert!(refusal(&candidate, Some(own), 100, None).contains("000000000007 is no member"));
        assert_eq!(refusal(&candidate, Some(own), 99, None), "");
        assert_eq!(refusal(&candidate, None, 0, None), "");
        let foreign = refusal(&candidate, Some(other), 500, None);
        assert!(foreign.contains(&own.to_string()) && foreign.contains(&other.to_string()), "{foreign}");
        candidate.cluster_id = None;
        assert!(refusal(&candidate, Some(own), 99, None).contains("is no member"));
        assert_eq!(refusal(&candidate, Some(own), 100, Some(record.clone())), "");
    }
}

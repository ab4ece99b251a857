//! How an empty node finds its cluster.
//!
//! It asks all configured peers. If one of them belongs to a cluster, it joins that. Only if all of the initial nodes
//! answer that they are empty does the first of them by name found one; else it waits and says for whom. So a node
//! whose disk was lost never founds a second cluster beside the one that is there.

use std::collections::BTreeMap;
use std::time::Duration;

use flotilla_raft::network::{Identity, JoinReply};
use flotilla_raft::{Command, Consensus, NodeId, NodeRecord};

use crate::auth::peers::PeerTls;
use crate::config::Config;

/// How often the peers are asked.
const ASK_EACH: Duration = Duration::from_millis(500);

/// How long one peer may take to answer.
const ASK_LIMIT: Duration = Duration::from_secs(2);

/// Brings an empty node into a cluster; returns at once for a node that has a log.
pub(crate) async fn join_or_found(consensus: &Consensus, config: &Config, tls: &PeerTls) {
    let mut said = String::new();
    while consensus.is_empty() {
        let waiting = match attempt(consensus, config, tls).await {
            Ok(()) => return,
            Err(waiting) => waiting,
        };
        if waiting != said {
            tracing::info!("{waiting}");
            said = waiting;
        }
        tokio::time::sleep(ASK_EACH).await;
    }
}

/// One round. `Err` says what is being waited for.
async fn attempt(consensus: &Consensus, config: &Config, tls: &PeerTls) -> Result<(), String> {
    let own = consensus.identity();
    // It need not prove to itself who it is.
    let others = config.peers.iter().filter(|peer| **peer != own.record.peer_address);
    let asked = others.map(|peer| async move { (peer, consensus.identity_of(peer, ASK_LIMIT).await) });
    let mut known = BTreeMap::from([(own.id, own.clone())]);
    let mut silent = Vec::new();
    for (peer, answer) in futures::future::join_all(asked).await {
        match answer {
            Ok(identity) => {
                if let Some(cluster_id) = identity.cluster_id.filter(|_| identity.id != own.id) {
                    return join(consensus, tls, peer, cluster_id).await;
                }
                known.insert(identity.id, identity);
            }
            Err(problem) => {
                tracing::debug!(peer, error = %problem, "a peer does not answer");
                silent.push(peer.as_str());
            }
        }
    }
    let known: Vec<Identity> = known.into_values().collect();
    found_if_first(consensus, config, tls, &known, &silent).await
}

async fn found_if_first(
    consensus: &Consensus,
    config: &Config,
    tls: &PeerTls,
    known: &[Identity],
    silent: &[&str],
) -> Result<(), String> {
    let initial = config.initial_cluster_size;
    if !silent.is_empty() {
        return Err(format!("waiting for {} of the {initial} initial nodes: {}", silent.len(), silent.join(", ")));
    }
    if known.len() < initial {
        return Err(format!(
            "waiting for {} more initial nodes: {} of {initial} answer; are they all among `peers`?",
            initial - known.len(),
            known.len()
        ));
    }
    if known.len() > initial {
        return Err(format!(
            "{} nodes answer, but `initial_cluster_size` is {initial}: waiting for a cluster to join",
            known.len()
        ));
    }
    if let Some(busy) = known.iter().find(|node| !node.empty) {
        return Err(format!("waiting for {}, which is being taken into a cluster", busy.record.name));
    }
    let mut names: Vec<&str> = known.iter().map(|node| node.record.name.as_str()).collect();
    names.sort_unstable();
    if let Some(twice) = names.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(format!("two nodes are called {}: give each its own `name`", twice[0]));
    }
    if names.first() != Some(&consensus.record().name.as_str()) {
        let founder = known.iter().find(|node| node.record.name == names[0]);
        if let Some(founder) = founder {
            // It founds the cluster once it has signed for all; it does not before it sees all.
            let fetched = tls.fetch_leaf(&founder.record.peer_address, None).await;
            fetched.unwrap_or_else(|problem| tracing::debug!(problem, "the founder does not sign yet"));
        }
        return Err(format!("waiting for {} to found the cluster", names[0]));
    }
    let others = known.iter().filter(|node| node.id != consensus.node_id());
    let others: Vec<(NodeId, String)> = others.map(|node| (node.id, node.record.name.clone())).collect();
    tls.found(&others).await?;
    let nodes: BTreeMap<NodeId, NodeRecord> = known.iter().map(|node| (node.id, node.record.clone())).collect();
    tracing::info!(nodes = names.join(", "), "founding a cluster");
    consensus.found(nodes).await.map_err(|problem| format!("the cluster could not be founded: {problem}"))
}

async fn join(consensus: &Consensus, tls: &PeerTls, peer: &str, cluster_id: uuid::Uuid) -> Result<(), String> {
    tls.fetch_leaf(peer, Some(cluster_id)).await?;
    let mut address = peer.to_owned();
    // A follower names the leader; an election may take place in between.
    for _ in 0..3 {
        match consensus.ask_to_join(&address, cluster_id, ASK_LIMIT).await {
            Ok(JoinReply::Member(members)) => {
                tracing::info!(cluster_id = %cluster_id, members = members.len(), "joined the cluster");
                return Ok(());
            }
            Ok(JoinReply::NotLeader(Some(leader))) => address = leader.peer_address,
            Ok(JoinReply::NotLeader(None)) => return Err(format!("waiting for cluster {cluster_id} to have a leader")),
            Ok(JoinReply::Refused(reason)) => {
                return Err(format!("cluster {cluster_id} does not take this node in: {reason}"));
            }
            Err(problem) => return Err(format!("waiting for {address}: {problem}")),
        }
    }
    Err(format!("waiting for cluster {cluster_id} to have a leader"))
}

/// Tells the cluster where this node stands, where that is not what it knows.
pub(crate) async fn take_seat(consensus: &Consensus, config: &Config) {
    loop {
        let members = consensus.members();
        match members.iter().find(|member| member.id == consensus.node_id()) {
            Some(own) if own.seat.zone == config.zone && own.seat.weight == config.weight => return,
            Some(_) => {
                let (node, zone, weight) = (consensus.node_id(), config.zone.clone(), config.weight);
                let placed = consensus.propose(uuid::Uuid::new_v4(), Command::PlaceNode { node, zone, weight }).await;
                if let Err(problem) = placed {
                    tracing::warn!(error = %problem, "the cluster was not told this node's zone and weight yet");
                }
            }
            // It was let in, and has not applied that yet.
            None => {}
        }
        tokio::time::sleep(ASK_EACH).await;
    }
}

/// Gives a cluster that was just founded its id: the one that its certificates name, where they do. Whoever leads does it,
/// so that a founder that dies in between leaves no nameless cluster behind.
pub(crate) async fn name_cluster(consensus: &Consensus, tls: &PeerTls) {
    loop {
        match consensus.registry().cluster_id() {
            Ok(Some(cluster_id)) => return tracing::info!(cluster_id = %cluster_id, "cluster known"),
            Ok(None) if consensus.leader() == Some(consensus.node_id()) => {
                if let Err(problem) = consensus.name_cluster(tls.cluster_id().unwrap_or_else(uuid::Uuid::new_v4)).await
                {
                    tracing::warn!(error = %problem, "the cluster has no id yet");
                }
            }
            Ok(None) => {}
            Err(problem) => return tracing::error!(error = %problem, "the cluster's id cannot be read"),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

//! `kill -9` of whoever leads.

use crate::cluster::{Cluster, Node};

/// Finds the leader and kills it; the dead node.
pub async fn kill_leader(cluster: &Cluster) -> anyhow::Result<&Node> {
    let leader = cluster.leader().await?;
    leader.kill();
    Ok(leader)
}

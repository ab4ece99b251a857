//! The cluster as its operator sees it: what is done to its nodes, and what they say of each other.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use reqwest::Client;

use crate::cli::dev::{DescribedNode, Session, described_nodes};
use crate::cluster::status::{ClusterStatus, NodeStatus, Role};

const POLL_EVERY: Duration = Duration::from_millis(100);
const ANSWER_WITHIN: Duration = Duration::from_secs(3);

/// What the nodes say.
#[derive(Clone, Debug)]
pub(super) struct Observer {
    nodes: Vec<DescribedNode>,
    http: Client,
}

impl Observer {
    /// # Errors
    /// The HTTP client cannot be set up.
    pub(super) fn new(nodes: Vec<DescribedNode>) -> anyhow::Result<Self> {
        let http = Client::builder().no_proxy().connect_timeout(Duration::from_secs(1)).timeout(ANSWER_WITHIN).build();
        Ok(Self { nodes, http: http.context("cannot make an HTTP client")? })
    }

    pub(super) fn http(&self) -> &Client {
        &self.http
    }

    /// The state of the cluster by the word of the first node that gives it.
    ///
    /// # Errors
    /// No node does.
    pub(super) async fn status(&self) -> anyhow::Result<ClusterStatus> {
        let mut last = anyhow::anyhow!("there are no nodes");
        for node in &self.nodes {
            match self.status_by(node).await {
                Ok(status) => return Ok(status),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// The name of the leader.
    ///
    /// # Errors
    /// No node knows one.
    pub(super) async fn leader(&self) -> anyhow::Result<String> {
        let leader = self.status().await?.leader.context("the nodes know no leader")?;
        Ok(leader.name)
    }

    /// Waits until the nodes know another leader than that one; its name and the term.
    pub(super) async fn other_leader(&self, former: &str, within: Duration) -> anyhow::Result<(String, u64)> {
        until(within, async || {
            let status = self.status().await?;
            let leader = status.leader.context("the nodes know no leader")?.name;
            if leader == former {
                bail!("the nodes still call {former} their leader");
            }
            Ok((leader, status.term))
        })
        .await
    }

    /// Waits until the cluster is whole: see [`Observer::require_whole`].
    pub(super) async fn until_whole(&self, voters: usize, within: Duration) -> anyhow::Result<()> {
        until(within, async || self.require_whole(voters).await).await
    }

    /// Every node ready, and by the word of each the same members, one leader, so many voters, no blob missing.
    ///
    /// # Errors
    /// What it lacks.
    pub(super) async fn require_whole(&self, voters: usize) -> anyhow::Result<()> {
        let mut leader: Option<String> = None;
        for node in &self.nodes {
            self.require_ready(node).await?;
            let status = self.status_by(node).await?;
            if let Some(lack) = lack(&status, self.nodes.len(), voters) {
                bail!("by the word of {}, {lack}", node.name);
            }
            let named = status.leader.map(|leader| leader.name);
            if let (Some(one), Some(other)) = (&leader, &named)
                && one != other
            {
                bail!("{} says that {other} leads, another node that {one} does", node.name);
            }
            leader = named;
        }
        Ok(())
    }

    /// Waits until every node is ready.
    pub(super) async fn until_ready(&self, within: Duration) -> anyhow::Result<()> {
        until(within, async || {
            for node in &self.nodes {
                self.require_ready(node).await?;
            }
            Ok(())
        })
        .await
    }

    async fn require_ready(&self, node: &DescribedNode) -> anyhow::Result<()> {
        let answer = self.http.get(format!("{}/readyz", node.url)).send().await;
        let answer = answer.with_context(|| format!("{} does not answer", node.name))?;
        if !answer.status().is_success() {
            let reason = answer.text().await.unwrap_or_default();
            bail!("{} is not ready: {}", node.name, reason.trim());
        }
        Ok(())
    }

    async fn status_by(&self, node: &DescribedNode) -> anyhow::Result<ClusterStatus> {
        let answer = self.http.get(format!("{}/api/v1/cluster", node.url)).send().await;
        let answer = answer.and_then(reqwest::Response::error_for_status);
        let answer = answer.with_context(|| format!("{} does not say how the cluster is", node.name))?;
        answer.json().await.with_context(|| format!("{} says something else than the state of a cluster", node.name))
    }
}

/// The nodes of the cluster that runs in a folder.
///
/// # Errors
/// No cluster runs there.
pub(super) async fn nodes(dir: &Path) -> anyhow::Result<Vec<DescribedNode>> {
    // What dev.json says is true only while the supervisor runs.
    Session::open(dir).await?;
    described_nodes(dir)
}

/// How many members vote.
pub(super) fn voters(status: &ClusterStatus) -> usize {
    status.nodes.iter().filter(|node| node.role != Role::Learner).count()
}

/// What a cluster lacks to be whole.
fn lack(status: &ClusterStatus, members: usize, wanted_voters: usize) -> Option<String> {
    if status.leader.is_none() {
        return Some("nobody leads".to_owned());
    }
    if status.nodes.len() != members {
        return Some(format!("{} nodes are members, not {members}", status.nodes.len()));
    }
    if voters(status) < wanted_voters {
        return Some(format!("{} members vote, not {wanted_voters}", voters(status)));
    }
    status.nodes.iter().find_map(lack_of)
}

fn lack_of(node: &NodeStatus) -> Option<String> {
    match node.blobs {
        _ if !node.reachable => Some(format!("{} cannot be reached", node.name)),
        None => Some(format!("what {} holds is not known", node.name)),
        Some(blobs) if blobs.missing > 0 => Some(format!("{} lacks {} blobs", node.name, blobs.missing)),
        Some(_) => None,
    }
}

/// Asks again and again until there is an answer.
///
/// # Errors
/// The last reason, after that time.
pub(super) async fn until<T>(within: Duration, mut probe: impl AsyncFnMut() -> anyhow::Result<T>) -> anyhow::Result<T> {
    let deadline = Instant::now() + within;
    loop {
        match probe().await {
            Err(_) if Instant::now() < deadline => tokio::time::sleep(POLL_EVERY).await,
            other => return other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::status::{Blobs, Leader};

    fn three(change: impl FnOnce(&mut ClusterStatus)) -> Option<String> {
        let node = |name: &str, role| NodeStatus {
            id: format!("id-{name}"),
            name: name.to_owned(),
            url: String::new(),
            role,
            waits_for: None,
            reachable: true,
            version: None,
            applied_index: None,
            lag: None,
            blobs: Some(Blobs { held: 3, ..Blobs::default() }),
            zone: String::new(),
            weight: 1,
            draining: false,
            clock_off_ms: None,
        };
        let nodes = vec![node("n1", Role::Leader), node("n2", Role::Follower), node("n3", Role::Follower)];
        let leader = Leader { id: "id-n1".to_owned(), name: "n1".to_owned() };
        let mut status = ClusterStatus::new("c".to_owned(), 1, 1, Some(leader), nodes, 3);
        change(&mut status);
        lack(&status, 3, 3)
    }

    #[test]
    fn a_whole_cluster_lacks_nothing_and_any_other_says_what() {
        assert_eq!(three(|_| {}), None);
        let lacks = |change: fn(&mut ClusterStatus)| three(change).expect("it lacks something");
        assert_eq!(lacks(|status| status.leader = None), "nobody leads");
        assert_eq!(lacks(|status| status.nodes.truncate(2)), "2 nodes are members, not 3");
        assert_eq!(lacks(|status| status.nodes[2].role = Role::Learner), "2 members vote, not 3");
        assert_eq!(lacks(|status| status.nodes[2].reachable = false), "n3 cannot be reached");
        assert_eq!(lacks(|status| status.nodes[1].blobs = None), "what n2 holds is not known");
        assert_eq!(
            lacks(|status| status.nodes[1].blobs = Some(Blobs { held: 1, missing: 2, ..Blobs::default() })),
            "n2 lacks 2 blobs"
        );
    }

    #[tokio::test]
    async fn waiting_ends_with_the_last_reason() {
        let mut asked = 0;
        let answer = until(Duration::from_secs(60), async || {
            asked += 1;
            anyhow::ensure!(asked == 3, "not yet");
            Ok(asked)
        });
        assert_eq!(answer.await.expect("the third time"), 3);
        let never: anyhow::Result<()> = until(Duration::ZERO, async || bail!("never")).await;
        assert_eq!(never.expect_err("it never is").to_string(), "never");
    }
}

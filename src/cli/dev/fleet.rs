//! All nodes of a `flotilla dev` cluster together: start, readiness, description, stop.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use parking_lot::Mutex;

use super::control::{self, Action};
use super::home::Home;
use super::process::{Node, is_free};
use crate::cli::complain;
use crate::cluster::status::ClusterStatus;

const POLL_EVERY: Duration = Duration::from_millis(100);

/// All nodes of the cluster, running or not.
pub(super) struct Fleet {
    pub(super) home: Home,
    pub(super) nodes: Vec<Arc<Node>>,
    pub(super) http: reqwest::Client,
    binary: PathBuf,
    // Node ids by name, as the cluster last told them.
    ids: Mutex<BTreeMap<String, String>>,
}

impl Fleet {
    pub(super) fn new(home: Home) -> anyhow::Result<Self> {
        let nodes = (0..home.shape.nodes).map(|index| Arc::new(Node::new(&home.dir, home.shape.port, index)));
        let nodes: Vec<Arc<Node>> = nodes.collect();
        let http = reqwest::Client::builder()
            .no_proxy()
            .connect_timeout(Duration::from_secs(1))
            .timeout(Duration::from_secs(30))
            .build()
            .context("cannot make an HTTP client")?;
        let binary = std::env::current_exe().context("cannot find this program's own file")?;
        Ok(Self { home, nodes, http, binary, ids: Mutex::default() })
    }

    pub(super) fn node(&self, name: &str) -> anyhow::Result<&Arc<Node>> {
        let names = || self.nodes.iter().map(|node| node.name.as_str()).collect::<Vec<_>>().join(", ");
        self.nodes
            .iter()
            .find(|node| node.name == name)
            .with_context(|| format!("there is no node {name}: the nodes are {}", names()))
    }

    /// Refuses before anything is started, not with half of the nodes up.
    pub(super) fn require_free_ports(&self) -> anyhow::Result<()> {
        let advice = "stop what listens there (`ss -ltnp` shows it), or choose another --port and --data-dir";
        self.nodes.iter().try_for_each(|node| node.require_free_ports(advice))
    }

    pub(super) fn start_all(&self) -> anyhow::Result<()> {
        self.nodes.iter().try_for_each(|node| self.spawn(node))
    }

    /// Starts one node that is not running and waits a while until it is ready.
    pub(super) async fn start(&self, node: &Arc<Node>, within: Duration) -> anyhow::Result<String> {
        if let Some(pid) = node.pid() {
            bail!("{} runs already (pid {pid})", node.name);
        }
        node.require_free_ports("perhaps somebody started it already (`ss -ltnp` shows who listens)")?;
        self.spawn(node)?;
        let pid = node.pid().map_or("gone".to_owned(), |pid| pid.to_string());
        self.write_description()?;
        let deadline = Instant::now() + within;
        while Instant::now() < deadline {
            if self.is_ready(node).await? {
                self.learn_ids().await;
                self.write_description()?;
                return Ok(format!("{} is ready (pid {pid})", node.name));
            }
            tokio::time::sleep(POLL_EVERY).await;
        }
        Ok(format!(
            "{} runs (pid {pid}) but is not ready yet: see {}, or start more nodes if there is no quorum",
            node.name,
            node.log.display()
        ))
    }

    fn spawn(&self, node: &Arc<Node>) -> anyhow::Result<()> {
        let peers: Vec<String> = self.nodes.iter().map(|node| node.peer.to_string()).collect();
        let join_secret = self.home.join_secret();
        node.spawn(&self.binary, &peers, &join_secret).with_context(|| format!("cannot start {}", node.name))?;
        let (node, dir) = (Arc::clone(node), self.home.dir.clone());
        tokio::spawn(async move {
            let end = node.ended().await;
            if !node.is_expected_to_end() {
                let start = control::command(&dir, Action::Start, &node.name);
                complain(format_args!(
                    "{} died ({end}). Its log: {}. Start it again: {start}",
                    node.name,
                    node.log.display()
                ));
            }
        });
        Ok(())
    }

    /// Waits until every node is ready and they know each other as one cluster.
    pub(super) async fn wait_until_formed(&self, deadline: Instant) -> anyhow::Result<()> {
        let mut waiting: Vec<&Arc<Node>> = self.nodes.iter().collect();
        loop {
            let mut still = Vec::new();
            for node in waiting {
                if !self.is_ready(node).await? {
                    still.push(node);
                }
            }
            waiting = still;
            if waiting.is_empty() && self.learn_ids().await {
                return Ok(());
            }
            if Instant::now() >= deadline {
                let late = if waiting.is_empty() { &self.nodes.iter().collect() } else { &waiting };
                let logs: String = late.iter().map(|node| node.log_tail()).collect();
                bail!("the nodes did not become one cluster in time; the ends of their logs:\n{logs}");
            }
            tokio::time::sleep(POLL_EVERY).await;
        }
    }

    async fn is_ready(&self, node: &Node) -> anyhow::Result<bool> {
        if let Some(end) = node.end() {
            bail!("{} ended ({end}); the end of its log:\n{}", node.name, node.log_tail());
        }
        let answer = self.http.get(format!("{}/readyz", node.url)).timeout(Duration::from_secs(2)).send().await;
        Ok(answer.is_ok_and(|answer| answer.status().is_success()))
    }

    /// The state of the cluster, from the first node that tells it.
    pub(super) async fn status(&self) -> Option<ClusterStatus> {
        for node in self.nodes.iter().filter(|node| node.pid().is_some()) {
            let request = self.http.get(format!("{}/api/v1/cluster", node.url)).timeout(Duration::from_secs(2));
            if let Ok(answer) = request.send().await
                && answer.status().is_success()
                && let Ok(status) = answer.json().await
            {
                return Some(status);
            }
        }
        None
    }

    /// Asks for the node ids; false unless each node has one and the cluster a leader.
    async fn learn_ids(&self) -> bool {
        let Some(status) = self.status().await else {
            return false;
        };
        let mut ids = self.ids.lock();
        // Until a node that came back without its disk takes the place of the one that it was, both have its name.
        let (running, away): (Vec<_>, Vec<_>) = status.nodes.into_iter().partition(|member| member.reachable);
        ids.extend(away.into_iter().chain(running).map(|member| (member.name, member.id)));
        status.leader.is_some() && self.nodes.iter().all(|node| ids.contains_key(&node.name))
    }

    /// Writes dev.json. A node that is not ours at the moment has no pid in it.
    pub(super) fn write_description(&self) -> anyhow::Result<()> {
        let ids = self.ids.lock();
        let nodes = self.nodes.iter().map(|node| {
            serde_json::json!({
                "name": node.name,
                "id": ids.get(&node.name),
                "pid": node.pid(),
                "url": node.url,
                "peer_url": format!("https://{}", node.peer),
                "data_dir": node.data_dir,
            })
        });
        self.home.write_description(&serde_json::json!({ "nodes": nodes.collect::<Vec<_>>() }))
    }

    /// Followers first: each stop costs an election only once, at the very end.
    pub(super) async fn stop_all(&self) {
        let leader = self.status().await.and_then(|status| status.leader).map(|leader| leader.name);
        let mut order: Vec<&Arc<Node>> = self.nodes.iter().filter(|node| node.pid().is_some()).collect();
        order.sort_by_key(|node| Some(&node.name) == leader.as_ref());
        for node in order {
            match node.stop().await {
                Ok(end) => super::say(format_args!("{} stopped ({end})", node.name)),
                Err(error) => complain(format_args!("{error:#}")),
            }
        }
    }

    pub(super) async fn kill_all(&self) {
        for node in &self.nodes {
            if node.pid().is_some()
                && let Err(error) = node.kill().await
            {
                complain(format_args!("{error:#}"));
            }
        }
    }

    /// Names nodes that go on because they were started by somebody else.
    pub(super) fn name_strangers(&self) {
        for node in self.nodes.iter().filter(|node| node.pid().is_none() && !is_free(node.client)) {
            complain(format_args!(
                "something still listens on {}: {} was started by somebody else",
                node.client, node.name
            ));
        }
    }
}

//! Flotilla: three nodes of `flotilla dev`, and writes as a node forwards them to the leader.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use async_trait::async_trait;
use bytes::Bytes;
use flotilla_raft::{
    Answer, Body, Command, ManifestPut, NodeId, Proposal, RepositoryName, Tag,
    network::{Call, Dialer, PeerClient, ProposeReply},
};
use flotilla_storage::{Algorithm, Digest};
use futures::future::try_join_all;
use reqwest::{StatusCode, header};
use serde::Deserialize;
use tokio::time::Instant;
use uuid::Uuid;

use crate::{
    CALL_WITHIN, FORMED_WITHIN, LOOK_EACH,
    cli::Plan,
    names::{NAMES, Names},
    process::{Process, require_free},
    system::{self, Client, System},
};

const NODES: u16 = 3;
/// `flotilla dev` puts the peer ports here.
const PEER_PORTS: u16 = 1000;
const REPOSITORY: &str = "bench/writes";
const MEDIA_TYPE: &str = "application/vnd.oci.image.index.v1+json";
const LEADER_WITHIN: Duration = Duration::from_secs(10);
const READERS: usize = 16;

/// The bodies of the two manifests that tags are moved between: of one size, and naming no other content.
pub fn manifests() -> [String; 2] {
    ["a", "b"].map(|version| {
        format!(
            r#"{{"schemaVersion":2,"mediaType":"{MEDIA_TYPE}","manifests":[],"annotations":{{"org.opencontainers.image.version":"{version}"}}}}"#
        )
    })
}

/// A running cluster of Flotilla.
pub struct Flotilla {
    // Held for its end: the nodes end with it.
    _supervisor: Process,
    nodes: Vec<Node>,
    pids: Vec<i32>,
    version: String,
    names: Arc<Names>,
    tags: Arc<[Tag]>,
    manifests: Arc<[ManifestPut; 2]>,
    http: reqwest::Client,
    // Kept between rounds: setting up a client of this kind is slow.
    peer_clients: Mutex<Vec<PeerClient>>,
}

/// The part of dev.json that is of use here.
#[derive(Debug, Deserialize)]
struct Description {
    nodes: Vec<Node>,
}

#[derive(Debug, Clone, Deserialize)]
struct Node {
    id: String,
    pid: i32,
    url: String,
    peer_url: String,
    data_dir: PathBuf,
}

impl Node {
    fn node_id(&self) -> Result<NodeId> {
        NodeId::from_str_radix(&self.id, 16).with_context(|| format!("node id {:?}", self.id))
    }

    fn peer_address(&self) -> &str {
        self.peer_url.trim_start_matches("https://")
    }

    /// Calls peers as this node does, by its certificate.
    fn dialer(&self) -> Result<Dialer> {
        let path = self.data_dir.join("tls/node.pem");
        let pem = std::fs::read(&path).with_context(|| path.display().to_string())?;
        let identity = reqwest::Identity::from_pem(&pem).with_context(|| path.display().to_string())?;
        Ok(Dialer::tls(move |_| {
            reqwest::Client::builder().identity(identity.clone()).tls_danger_accept_invalid_certs(true)
        }))
    }
}

/// The part of the cluster's state that is of use here.
#[derive(Debug, Deserialize)]
struct ClusterState {
    leader: Option<Leader>,
    nodes: Vec<NodeState>,
}

#[derive(Debug, Deserialize)]
struct Leader {
    id: String,
}

#[derive(Debug, Deserialize)]
struct NodeState {
    id: String,
    version: Option<String>,
    applied_index: Option<u64>,
}

impl ClusterState {
    fn applied_index(&self, id: &str) -> Option<u64> {
        self.nodes.iter().find(|node| node.id == id)?.applied_index
    }
}

impl Flotilla {
    /// Starts it in an empty folder, waits until it can be written, and pushes the two manifests.
    pub async fn start(plan: &Plan, folder: &Path) -> Result<Self> {
        require_free((0..NODES).flat_map(|index| [plan.port + index, plan.port + PEER_PORTS + index]))?;
        let data_dir = folder.join("flotilla");
        let arguments = [
            "dev".to_owned(),
            format!("--nodes={NODES}"),
            "--no-demo".to_owned(),
            format!("--port={}", plan.port),
            format!("--data-dir={}", data_dir.display()),
        ];
        let mut supervisor = Process::start(&plan.flotilla_bin, &arguments, folder.join("flotilla.log"))?;
        let nodes = description(&mut supervisor, data_dir.join("dev.json")).await.context("flotilla dev")?.nodes;
        ensure!(nodes.len() == usize::from(NODES), "flotilla dev runs {} nodes", nodes.len());
        let mut flotilla = Self {
            _supervisor: supervisor,
            pids: nodes.iter().map(|node| node.pid).collect(),
            nodes,
            version: String::new(),
            names: Arc::new(Names::new()),
            tags: (0..NAMES).map(tag).collect::<Result<_>>()?,
            manifests: Arc::new(manifest_puts()?),
            http: crate::http()?,
            peer_clients: Mutex::default(),
        };
        let (_, state) = flotilla.state().await?;
        flotilla.version = state.nodes.into_iter().find_map(|node| node.version).unwrap_or_default();
        flotilla.push().await.context("pushing the two manifests")?;
        Ok(flotilla)
    }

    /// The state of the cluster, and the number of the leader, from the first node that knows one.
    async fn state(&self) -> Result<(usize, ClusterState)> {
        let deadline = Instant::now() + LEADER_WITHIN;
        loop {
            let mut problem = anyhow!("no node knows a leader");
            for node in &self.nodes {
                match self.state_at(&node.url).await {
                    Ok(state) => {
                        let id = state.leader.as_ref().map(|leader| &leader.id);
                        if let Some(leader) = self.nodes.iter().position(|node| Some(&node.id) == id) {
                            return Ok((leader, state));
                        }
                    }
                    Err(error) => problem = error,
                }
            }
            if Instant::now() > deadline {
                return Err(problem);
            }
            tokio::time::sleep(LOOK_EACH).await;
        }
    }

    async fn state_at(&self, url: &str) -> Result<ClusterState> {
        Ok(self.http.get(format!("{url}/api/v1/cluster")).send().await?.error_for_status()?.json().await?)
    }

    /// Pushes the manifests as a client does, which proves that the registry takes them.
    async fn push(&self) -> Result<()> {
        for (body, put) in manifests().into_iter().zip(self.manifests.iter()) {
            let url = self.manifest_url(&self.nodes[0], &put.digest.to_string());
            let answer = self.http.put(url).header(header::CONTENT_TYPE, MEDIA_TYPE).body(body).send().await?;
            let status = answer.status();
            ensure!(status == StatusCode::CREATED, "{status}: {}", answer.text().await.unwrap_or_default());
        }
        Ok(())
    }

    fn manifest_url(&self, node: &Node, reference: &str) -> String {
        format!("{}/v2/{REPOSITORY}/manifests/{reference}", node.url)
    }

    /// The digest that a tag points at, as a node tells a client.
    async fn digest_of(&self, node: &Node, tag: &Tag) -> Result<Option<String>> {
        let answer = self.http.head(self.manifest_url(node, tag.as_str())).header(header::ACCEPT, MEDIA_TYPE);
        let answer = answer.send().await?;
        if answer.status() == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        let digest = answer.error_for_status()?.headers().get("docker-content-digest").cloned();
        Ok(Some(digest.context("no Docker-Content-Digest")?.to_str()?.to_owned()))
    }

    fn peer_clients(&self, count: usize) -> Result<Vec<PeerClient>> {
        let mut clients = self.peer_clients.lock().unwrap_or_else(PoisonError::into_inner);
        while clients.len() < count {
            clients.push(PeerClient::new(&self.nodes.first().context("a node")?.dialer()?)?);
        }
        Ok(clients[..count].to_vec())
    }
}

#[async_trait]
impl System for Flotilla {
    fn name(&self) -> &'static str {
        "flotilla"
    }

    fn version(&self) -> &str {
        &self.version
    }

    fn pids(&self) -> &[i32] {
        &self.pids
    }

    fn names(&self) -> &Arc<Names> {
        &self.names
    }

    async fn leader(&self) -> Result<usize> {
        Ok(self.state().await?.0)
    }

    async fn connect(&self, leader: usize, clients: usize) -> Result<Vec<Box<dyn Client>>> {
        let node = &self.nodes[leader];
        let applied = self.state_at(&node.url).await?.applied_index(&node.id);
        let applied = applied.context("the leader does not say what it has applied")?;
        let to = node.node_id()?;
        let client = |peer_client| {
            Box::new(FlotillaClient {
                peer_client,
                to,
                address: node.peer_address().to_owned(),
                tags: self.tags.clone(),
                manifests: self.manifests.clone(),
                applied,
            }) as Box<dyn Client>
        };
        Ok(self.peer_clients(clients)?.into_iter().map(client).collect())
    }

    async fn log_syncs(&self, node: usize) -> Result<u64> {
        let page = format!("{}/metrics", self.nodes[node].url);
        system::counter(&self.http, &page, "flotilla_raft_log_syncs_total").await
    }

    async fn check(&self) -> Result<()> {
        let other = &self.nodes[(self.leader().await? + 1) % self.nodes.len()];
        let mut held: Vec<Option<String>> = Vec::new();
        for tags in self.tags.chunks(READERS) {
            held.extend(try_join_all(tags.iter().map(|tag| self.digest_of(other, tag))).await?);
        }
        let [a, b] = [0, 1].map(|value: usize| self.manifests[value].digest.to_string());
        system::expect_held(&self.names, |name| held[name].as_deref(), [&a, &b])
    }
}

struct FlotillaClient {
    peer_client: PeerClient,
    to: NodeId,
    address: String,
    tags: Arc<[Tag]>,
    manifests: Arc<[ManifestPut; 2]>,
    /// What a node that forwards would have applied: the newest index that this client knows to be.
    applied: u64,
}

#[async_trait]
impl Client for FlotillaClient {
    async fn put(&mut self, name: usize, value: usize) -> Result<()> {
        let put = ManifestPut { tags: vec![self.tags[name].clone()], ..self.manifests[value].clone() };
        let proposal = Proposal {
            request_id: Uuid::new_v4(),
            base_index: self.applied,
            time_ms: 0,
            actor: String::new(),
            command: Command::PutManifest(Box::new(put)),
        };
        // A node forwards all that wait in one call: here one at a time, as etcd gets them.
        let one = std::slice::from_ref(&proposal);
        let call = self.peer_client.call(&self.address, Some(self.to), Call::Propose, &one, CALL_WITHIN);
        let replies: Vec<ProposeReply> = call.await?;
        let reply = replies.into_iter().next().context("no reply to a proposal")?;
        match reply {
            ProposeReply::Answered(Answer { revision, result: Ok(_) }) => {
                self.applied = self.applied.max(revision);
                Ok(())
            }
            ProposeReply::Answered(Answer { result: Err(refusal), .. }) => bail!("refused: {refusal}"),
            ProposeReply::NotLeader(_) => bail!("the node does not lead"),
            ProposeReply::Unknown => bail!("the outcome is not known"),
        }
    }
}

/// Waits for dev.json, which `flotilla dev` writes once the cluster has formed.
async fn description(supervisor: &mut Process, path: PathBuf) -> Result<Description> {
    let deadline = Instant::now() + FORMED_WITHIN;
    loop {
        supervisor.require_running()?;
        match std::fs::read(&path) {
            Ok(text) => return serde_json::from_slice(&text).with_context(|| path.display().to_string()),
            Err(_) if Instant::now() < deadline => tokio::time::sleep(LOOK_EACH).await,
            Err(_) => bail!("no cluster within {FORMED_WITHIN:?}: {}", supervisor.log_tail()),
        }
    }
}

fn manifest_puts() -> Result<[ManifestPut; 2]> {
    let repository: RepositoryName = REPOSITORY.parse()?;
    Ok(manifests().map(|body| ManifestPut {
        repository: repository.clone(),
        digest: Digest::of(Algorithm::Sha256, body.as_bytes()),
        media_type: MEDIA_TYPE.to_owned(),
        size: body.len() as u64,
        body: Body::Inline(Bytes::from(body)),
        tags: Vec::new(),
        blobs: Vec::new(),
        manifests: Vec::new(),
        either: Vec::new(),
        subject: None,
        artifact_type: None,
        annotations: Vec::new(),
        condition: None,
        mentions: Vec::new(),
    }))
}

fn tag(name: usize) -> Result<Tag> {
    Ok(format!("t{name:04}").parse()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_two_manifests_differ_and_have_one_size() {
        let [a, b] = manifests();
        assert_ne!(a, b);
        assert_eq!(a.len(), b.len());
        serde_json::from_str::<serde_json::Value>(&a).expect("JSON");
    }

    #[test]
    fn dev_json_and_the_cluster_state_are_read() {
        let text = r#"{"nodes":[{"name":"n1","id":"0000000000ff","pid":7,"url":"http://127.0.0.1:1",
            "peer_url":"https://127.0.0.1:2","data_dir":"/x"}]}"#;
        let node = serde_json::from_str::<Description>(text).expect("valid").nodes.remove(0);
        assert_eq!(node.node_id().expect("an id"), 255);
        assert_eq!(node.peer_address(), "127.0.0.1:2");
        let text = r#"{"cluster_id":"c","leader":{"id":"0000000000ff","name":"n1"},
            "nodes":[{"id":"0000000000ff","version":"0.1.0","applied_index":9}]}"#;
        let state: ClusterState = serde_json::from_str(text).expect("valid");
        assert_eq!(state.applied_index(&node.id), Some(9));
    }
}

//! etcd: three processes as Debian packages them, with the defaults of the program.

use std::{path::Path, sync::Arc, time::Duration};

use anyhow::{Context, Result, bail};
use async_trait::async_trait;
use etcd_client::{ConnectOptions, GetOptions};
use futures::future::try_join_all;
use tokio::time::Instant;

use crate::{
    CALL_WITHIN, FORMED_WITHIN, LOOK_EACH,
    cli::Plan,
    names::{NAMES, Names},
    process::{Process, require_free},
    system::{self, Client, System},
};

const NODES: u16 = 3;
const CLIENT_PORTS: u16 = 100;
const PEER_PORTS: u16 = 200;
const KEY_PREFIX: &str = "/bench/writes/";
/// The history of one long run is larger than the default of 2 GiB, and is never compacted, as our log of it is not.
const QUOTA_BYTES: u64 = 8 << 30;

/// A running cluster of etcd.
pub struct Etcd {
    nodes: Vec<Node>,
    pids: Vec<i32>,
    version: String,
    names: Arc<Names>,
    values: Arc<[String; 2]>,
    http: reqwest::Client,
}

struct Node {
    process: Process,
    url: String,
}

impl Etcd {
    /// Starts it in an empty folder, and waits until it can be written.
    pub async fn start(plan: &Plan, folder: &Path, values: [String; 2]) -> Result<Self> {
        let ports = |above: u16| (0..NODES).map(move |index| plan.port + above + index);
        require_free(ports(CLIENT_PORTS).chain(ports(PEER_PORTS)))?;
        let peers: Vec<String> = ports(PEER_PORTS).zip(1..).map(|(port, n)| format!("e{n}={}", url(port))).collect();
        let peers = peers.join(",");
        let mut nodes = Vec::new();
        for (index, (client, peer)) in ports(CLIENT_PORTS).zip(ports(PEER_PORTS)).enumerate() {
            let name = format!("e{}", index + 1);
            let arguments = [
                format!("--name={name}"),
                format!("--data-dir={}", folder.join(&name).display()),
                format!("--listen-client-urls={}", url(client)),
                format!("--advertise-client-urls={}", url(client)),
                format!("--listen-peer-urls={}", url(peer)),
                format!("--initial-advertise-peer-urls={}", url(peer)),
                format!("--initial-cluster={peers}"),
                "--initial-cluster-state=new".to_owned(),
                format!("--quota-backend-bytes={QUOTA_BYTES}"),
                "--logger=zap".to_owned(),
                "--log-level=warn".to_owned(),
            ];
            let process = Process::start(&plan.etcd_bin, &arguments, folder.join(format!("{name}.log")))?;
            nodes.push(Node { process, url: url(client) });
        }
        let pids = nodes.iter().map(|node| node.process.pid()).collect();
        let http = crate::http()?;
        let names = Arc::new(Names::new());
        let mut etcd = Self { nodes, pids, version: String::new(), names, values: Arc::new(values), http };
        etcd.wait_until_formed().await?;
        Ok(etcd)
    }

    async fn wait_until_formed(&mut self) -> Result<()> {
        let deadline = Instant::now() + FORMED_WITHIN;
        loop {
            for (index, node) in self.nodes.iter_mut().enumerate() {
                node.process.require_running().with_context(|| format!("e{}", index + 1))?;
            }
            match self.status().await {
                Ok((_, version)) => {
                    self.version = version;
                    return Ok(());
                }
                Err(_) if Instant::now() < deadline => tokio::time::sleep(LOOK_EACH).await,
                Err(error) => return Err(error.context(self.nodes[0].process.log_tail())),
            }
        }
    }

    /// The number of the leader, and its version.
    async fn status(&self) -> Result<(usize, String)> {
        for (index, node) in self.nodes.iter().enumerate() {
            let status = connect(&node.url).await?.status().await?;
            let own = status.header().map(etcd_client::ResponseHeader::member_id);
            if own == Some(status.leader()) {
                return Ok((index, status.version().to_owned()));
            }
        }
        bail!("no node leads")
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        // All at once: the last of them would wait for the others.
        self.nodes.iter().for_each(|node| node.process.tell_to_end());
    }
}

#[async_trait]
impl System for Etcd {
    fn name(&self) -> &'static str {
        "etcd"
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
        Ok(self.status().await?.0)
    }

    async fn connect(&self, leader: usize, clients: usize) -> Result<Vec<Box<dyn Client>>> {
        let url = &self.nodes[leader].url;
        let keys: Arc<[String]> = (0..NAMES).map(key).collect();
        let client = async |_| {
            let client = EtcdClient { etcd: connect(url).await?, keys: keys.clone(), values: self.values.clone() };
            Ok(Box::new(client) as Box<dyn Client>)
        };
        try_join_all((0..clients).map(client)).await
    }

    async fn log_syncs(&self, node: usize) -> Result<u64> {
        let page = format!("{}/metrics", self.nodes[node].url);
        system::counter(&self.http, &page, "etcd_disk_wal_fsync_duration_seconds_count").await
    }

    async fn check(&self) -> Result<()> {
        let other = (self.leader().await? + 1) % self.nodes.len();
        let mut etcd = connect(&self.nodes[other].url).await?;
        let found = etcd.get(KEY_PREFIX, Some(GetOptions::new().with_prefix())).await?;
        let mut held: Vec<Option<&str>> = vec![None; NAMES];
        for pair in found.kvs() {
            let name = (0..NAMES).find(|name| key(*name).as_bytes() == pair.key());
            if let Some(name) = name {
                held[name] = Some(pair.value_str()?);
            }
        }
        system::expect_held(&self.names, |name| held[name], [&self.values[0], &self.values[1]])
    }
}

struct EtcdClient {
    etcd: etcd_client::Client,
    keys: Arc<[String]>,
    values: Arc<[String; 2]>,
}

#[async_trait]
impl Client for EtcdClient {
    async fn put(&mut self, name: usize, value: usize) -> Result<()> {
        self.etcd.put(self.keys[name].as_str(), self.values[value].as_str(), None).await?;
        Ok(())
    }
}

async fn connect(url: &str) -> Result<etcd_client::Client> {
    let options = ConnectOptions::new().with_connect_timeout(Duration::from_secs(2)).with_timeout(CALL_WITHIN);
    Ok(etcd_client::Client::connect([url], Some(options)).await?)
}

fn url(port: u16) -> String {
    format!("http://127.0.0.1:{port}")
}

fn key(name: usize) -> String {
    format!("{KEY_PREFIX}t{name:04}")
}

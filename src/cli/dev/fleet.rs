//! The node processes of `flotilla dev`.

use std::collections::BTreeMap;
use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use parking_lot::Mutex;
use rustix::process::{Pid, Signal, kill_process};
use tokio::sync::watch;

use super::control::{self, Action};
use super::home::Home;
use super::parent_death;
use crate::cli::complain;
use crate::cluster::status::ClusterStatus;

/// A node that is told to stop hands over and finishes what it serves; longer than this it may not take.
const STOP_WITHIN: Duration = Duration::from_secs(25);

const POLL_EVERY: Duration = Duration::from_millis(100);
const PEER_PORTS_ABOVE: u16 = 1000;
const LOG_TAIL_LINES: usize = 15;
const LOG_TAIL_BYTES: usize = 16 * 1024;

/// All nodes of the cluster, running or not.
pub(super) struct Fleet {
    pub(super) home: Home,
    pub(super) nodes: Vec<Arc<Node>>,
    pub(super) http: reqwest::Client,
    binary: PathBuf,
    // Node ids by name, as the cluster last told them.
    ids: Mutex<BTreeMap<String, String>>,
}

/// One node: what it is, and its process if it runs.
pub(super) struct Node {
    pub(super) name: String,
    pub(super) url: String,
    client: SocketAddr,
    peer: SocketAddr,
    data_dir: PathBuf,
    log: PathBuf,
    process: watch::Sender<Process>,
    // Somebody asked for its end, so the end is no news.
    expected_to_end: AtomicBool,
}

#[derive(Clone, Debug)]
enum Process {
    Running(Pid),
    /// With the exit status, or why there is none.
    Ended(String),
}

impl Fleet {
    pub(super) fn new(home: Home) -> anyhow::Result<Self> {
        let nodes = (0..home.shape.nodes)
            .map(|index| Arc::new(Node::new(&home.dir, home.shape.port, index)));
        let nodes: Vec<Arc<Node>> = nodes.collect();
        let http = reqwest::Client::builder()
            .no_proxy()
            .connect_timeout(Duration::from_secs(1))
            .timeout(Duration::from_secs(30))
            .build()
            .context("cannot make an HTTP client")?;
        let binary = std::env::current_exe().context("cannot find this program's own file")?;
        Ok(Self {
            home,
            nodes,
            http,
            binary,
            ids: Mutex::default(),
        })
    }

    pub(super) fn node(&self, name: &str) -> anyhow::Result<&Arc<Node>> {
        let names = || {
            self.nodes
                .iter()
                .map(|node| node.name.as_str())
                .collect::<Vec<_>>()
                .join(", ")
        };
        self.nodes
            .iter()
            .find(|node| node.name == name)
            .with_context(|| format!("there is no node {name}: the nodes are {}", names()))
    }

    /// Refuses before anything is started, not with half of the nodes up.
    pub(super) fn require_free_ports(&self) -> anyhow::Result<()> {
        self.nodes.iter().flat_map(|node| [node.client, node.peer]).try_for_each(|address| {
            require_free(address).with_context(|| {
                format!("the nodes cannot start: see what listens there with `ss -ltnp 'sport = {}'`; another cluster needs another --port and --data-dir", address.port())
            })
        })
    }

    pub(super) fn start_all(&self) -> anyhow::Result<()> {
        self.nodes.iter().try_for_each(|node| self.spawn(node))
    }

    /// Starts one node that is not running and waits a while until it is ready.
    pub(super) async fn start(&self, node: &Arc<Node>, within: Duration) -> anyhow::Result<String> {
        if let Some(pid) = node.pid() {
            bail!("{} runs already (pid {pid})", node.name);
        }
        for address in [node.client, node.peer] {
            require_free(address).with_context(|| {
                format!(
                    "{} cannot start: perhaps somebody started it already",
                    node.name
                )
            })?;
        }
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
        let peers: Vec<String> = self
            .nodes
            .iter()
            .map(|node| node.peer.to_string())
            .collect();
        let failed = || format!("cannot start {}", node.name);
        let log = File::options()
            .append(true)
            .create(true)
            .open(&node.log)
            .with_context(failed)?;
        let mut command = tokio::process::Command::new(&self.binary);
        command
            .arg("serve")
            .args(node.flags(&peers))
            .stdin(Stdio::null())
            .stdout(log.try_clone().with_context(failed)?)
            .stderr(log)
            // A Ctrl-C in the terminal is for the supervisor, which stops the nodes in order.
            .process_group(0);
        parent_death::follow(&mut command);
        let mut child = command.spawn().with_context(failed)?;
        let pid = child
            .id()
            .and_then(|pid| i32::try_from(pid).ok())
            .and_then(Pid::from_raw)
            .with_context(failed)?;
        node.expected_to_end.store(false, Ordering::Relaxed);
        node.process.send_replace(Process::Running(pid));
        let (node, dir) = (Arc::clone(node), self.home.dir.clone());
        tokio::spawn(async move {
            // The process is reaped here and nowhere else, and its pid forgotten before anything else runs
            // on this one thread: no signal can hit another process that got the same pid.
            let end = child
                .wait()
                .await
                .map_or_else(|error| error.to_string(), |status| status.to_string());
            node.process.send_replace(Process::Ended(end.clone()));
            if !node.expected_to_end.load(Ordering::Relaxed) {
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
                let late = if waiting.is_empty() {
                    &self.nodes.iter().collect()
                } else {
                    &waiting
                };
                let logs: String = late.iter().map(|node| node.log_tail()).collect();
                bail!(
                    "the nodes did not become one cluster in time; the ends of their logs:\n{logs}"
                );
            }
            tokio::time::sleep(POLL_EVERY).await;
        }
    }

    async fn is_ready(&self, node: &Node) -> anyhow::Result<bool> {
        if let Process::Ended(end) = &*node.process.borrow() {
            bail!(
                "{} ended ({end}); the end of its log:\n{}",
                node.name,
                node.log_tail()
            );
        }
        let answer = self
            .http
            .get(format!("{}/readyz", node.url))
            .timeout(Duration::from_secs(2))
            .send()
            .await;
        Ok(answer.is_ok_and(|answer| answer.status().is_success()))
    }

    /// The state of the cluster, from the first node that tells it.
    pub(super) async fn status(&self) -> Option<ClusterStatus> {
        for node in self.nodes.iter().filter(|node| node.pid().is_some()) {
            let request = self
                .http
                .get(format!("{}/api/v1/cluster", node.url))
                .timeout(Duration::from_secs(2));
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
        ids.extend(
            status
                .nodes
                .into_iter()
                .map(|member| (member.name, member.id)),
        );
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
                "peer_url": format!("http://{}", node.peer),
                "data_dir": node.data_dir,
            })
        });
        self.home
            .write_description(&serde_json::json!({ "nodes": nodes.collect::<Vec<_>>() }))
    }

    /// Followers first: each stop costs an election only once, at the very end.
    pub(super) async fn stop_all(&self) {
        let leader = self
            .status()
            .await
            .and_then(|status| status.leader)
            .map(|leader| leader.name);
        let mut order: Vec<&Arc<Node>> = self
            .nodes
            .iter()
            .filter(|node| node.pid().is_some())
            .collect();
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
        for node in self
            .nodes
            .iter()
            .filter(|node| node.pid().is_none() && require_free(node.client).is_err())
        {
            complain(format_args!(
                "something still listens on {}: {} was started by somebody else",
                node.client, node.name
            ));
        }
    }
}

impl Node {
    fn new(dir: &Path, first_port: u16, index: u16) -> Self {
        let name = format!("n{}", index + 1);
        let client = SocketAddr::from((Ipv4Addr::LOCALHOST, first_port + index));
        Self {
            url: format!("http://{client}"),
            client,
            peer: SocketAddr::from((Ipv4Addr::LOCALHOST, client.port() + PEER_PORTS_ABOVE)),
            data_dir: dir.join(&name),
            log: dir.join(format!("{name}.log")),
            process: watch::Sender::new(Process::Ended("not started".to_owned())),
            expected_to_end: AtomicBool::new(false),
            name,
        }
    }

    /// Everything that makes the node, so that its command line alone can start it again.
    fn flags(&self, peers: &[String]) -> Vec<std::ffi::OsString> {
        let mut flags: Vec<std::ffi::OsString> = vec![
            format!("--name={}", self.name).into(),
            format!("--listen={}", self.client).into(),
            format!("--peer-listen={}", self.peer).into(),
            format!("--advertise-url={}", self.url).into(),
            format!("--peer-advertise={}", self.peer).into(),
            format!("--peers={}", peers.join(",")).into(),
            format!("--initial-cluster-size={}", peers.len()).into(),
        ];
        flags.extend(["--data-dir".into(), self.data_dir.clone().into_os_string()]);
        flags
    }

    /// Its process id while we run it.
    pub(super) fn pid(&self) -> Option<i32> {
        match *self.process.borrow() {
            Process::Running(pid) => Some(pid.as_raw_nonzero().get()),
            Process::Ended(_) => None,
        }
    }

    /// Lets it finish, and kills it if that takes too long; returns its exit status.
    pub(super) async fn stop(&self) -> anyhow::Result<String> {
        self.expect_end(Signal::TERM)?;
        // A paused process sees the signal only once it goes on.
        self.signal(Signal::CONT)?;
        match tokio::time::timeout(STOP_WITHIN, self.ended()).await {
            Ok(end) => Ok(end),
            Err(_) => {
                complain(format_args!(
                    "{} did not stop within {} s: killing it",
                    self.name,
                    STOP_WITHIN.as_secs()
                ));
                self.kill().await
            }
        }
    }

    pub(super) async fn kill(&self) -> anyhow::Result<String> {
        self.expect_end(Signal::KILL)?;
        Ok(self.ended().await)
    }

    fn expect_end(&self, signal: Signal) -> anyhow::Result<()> {
        self.expected_to_end.store(true, Ordering::Relaxed);
        self.signal(signal)
    }

    /// Sends a signal to the process that we run.
    pub(super) fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        let Process::Running(pid) = *self.process.borrow() else {
            bail!("{} is not running here", self.name);
        };
        kill_process(pid, signal)
            .with_context(|| format!("cannot signal {} (pid {})", self.name, pid.as_raw_nonzero()))
    }

    async fn ended(&self) -> String {
        let mut process = self.process.subscribe();
        match process
            .wait_for(|process| matches!(process, Process::Ended(_)))
            .await
            .as_deref()
        {
            Ok(Process::Ended(end)) => end.clone(),
            Ok(Process::Running(_)) | Err(_) => "unknown".to_owned(),
        }
    }

    /// The end of its log, indented under its path.
    fn log_tail(&self) -> String {
        let bytes = std::fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(LOG_TAIL_BYTES)..]);
        let lines: Vec<&str> = text.lines().collect();
        let tail = &lines[lines.len().saturating_sub(LOG_TAIL_LINES)..];
        format!("{}:\n  {}\n", self.log.display(), tail.join("\n  "))
    }
}

fn require_free(address: SocketAddr) -> anyhow::Result<()> {
    let bound = TcpListener::bind(address);
    ensure!(bound.is_ok(), "port {} is taken", address.port());
    Ok(())
}

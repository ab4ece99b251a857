//! A cluster of `flotilla serve` processes on this machine, in a folder of its own.

use std::env;
use std::fs::{self, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, Once, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use rand::Rng;
use serde::Deserialize;

use crate::client::{Client, plain_http};
use crate::ports;
use crate::process::{self, Signal};
use crate::wait::until_ok;
use crate::webhooks::{ApiServer, Files};

/// How long a node may take to end after SIGTERM.
const ORDERLY_END: Duration = Duration::from_secs(20);
const LOG_TAIL_BYTES: usize = 4_000;

/// How to start a cluster.
#[derive(Clone, Debug)]
pub struct Options {
    /// How many nodes form the cluster.
    pub nodes: usize,
    /// Arguments for every node, after those that name it and its peers.
    pub extra_args: Vec<String>,
    /// The program; found by [`binary`] if none.
    pub binary: Option<PathBuf>,
    /// How long all nodes together may take until they are ready.
    pub ready_within: Duration,
    /// Whether the nodes serve webhooks.
    pub webhooks: bool,
    /// The zone of each node, where they are in zones.
    pub zones: Vec<String>,
    /// Whether the nodes are given a join secret; else `extra_args` say by what they know each other.
    pub join_secret: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            nodes: 3,
            extra_args: Vec::new(),
            binary: None,
            ready_within: Duration::from_secs(60),
            webhooks: false,
            zones: Vec::new(),
            join_secret: true,
        }
    }
}

impl Options {
    /// Three nodes with these further arguments.
    pub fn with_args<const N: usize>(arguments: [&str; N]) -> Self {
        Self { extra_args: arguments.map(str::to_owned).to_vec(), ..Self::default() }
    }
}

/// The program to test: `$FLOTILLA_BIN`, else the one built beside this executable, else the release build.
pub fn binary() -> anyhow::Result<PathBuf> {
    if let Some(named) = env::var_os("FLOTILLA_BIN") {
        return Ok(PathBuf::from(named));
    }
    program("flotilla").context("build it, or name it in FLOTILLA_BIN")
}

/// A program of this workspace, built beside this executable.
pub(crate) fn program(name: &str) -> anyhow::Result<PathBuf> {
    let here = env::current_exe().context("where this program lies")?;
    let beside = here.ancestors().skip(1).take(3).map(|folder| folder.join(name));
    beside
        .chain([Path::new("target/release").join(name)])
        .find(|path| path.is_file())
        .with_context(|| format!("no program {name} near {}", here.display()))
}

/// A running cluster. Dropping it kills the nodes and removes the folder, unless a test is failing
/// or `FLOTILLA_KEEP=1`.
#[derive(Debug)]
pub struct Cluster {
    nodes: Vec<Node>,
    folder: PathBuf,
    plan: Plan,
    /// By which files and on which ports webhooks are served.
    webhooks: Option<(Files, Vec<u16>)>,
    keep: AtomicBool,
    http: reqwest::Client,
}

/// What all nodes have in common.
#[derive(Debug)]
struct Plan {
    program: PathBuf,
    folder: PathBuf,
    /// The first nodes' peer addresses.
    peers: Vec<String>,
    /// By what they know each other.
    join_secret: Option<PathBuf>,
    extra_args: Vec<String>,
}

/// Arguments beside which a node is given no join secret.
const OTHER_PROOFS: [&str; 4] = ["--join-", "--insecure-peers", "--peer-tls-cert", "--peer-tls-ca"];

impl Plan {
    fn is_open(&self) -> bool {
        self.extra_args.iter().any(|argument| argument == "--insecure-peers")
    }

    fn node(&self, index: usize, port: u16, peer_port: u16, more: Vec<String>) -> Node {
        let name = format!("n{}", index + 1);
        let data_dir = self.folder.join(&name);
        let of_its_own = [
            ("--name", name.clone()),
            ("--data-dir", data_dir.display().to_string()),
            ("--listen", address(port)),
            ("--peer-listen", address(peer_port)),
            ("--peers", self.peers.join(",")),
            ("--initial-cluster-size", self.peers.len().to_string()),
        ];
        let flags = of_its_own.into_iter().flat_map(|(flag, value)| [flag.to_owned(), value]);
        // A node that is given something else to prove is not given this.
        let has_own = more.iter().any(|argument| OTHER_PROOFS.iter().any(|proof| argument.starts_with(proof)));
        let secret = self.join_secret.iter().filter(|_| !has_own);
        let secret = secret.flat_map(|file| ["--join-secret-file".to_owned(), file.display().to_string()]);
        let flags = flags.chain(secret);
        let arguments =
            ["serve".to_owned()].into_iter().chain(flags).chain(more).chain(self.extra_args.iter().cloned());
        Node {
            url: format!("http://{}", address(port)),
            peer_url: format!("{}://{}", if self.is_open() { "http" } else { "https" }, address(peer_port)),
            log: self.folder.join(format!("{name}.log")),
            name,
            data_dir,
            program: self.program.clone(),
            arguments: arguments.collect(),
            child: Mutex::new(None),
        }
    }
}

impl Cluster {
    /// Starts the nodes and waits until each is ready.
    pub async fn start(options: Options) -> anyhow::Result<Self> {
        let cluster = Self::launch(&options)?;
        let ready = cluster.wait_ready(options.ready_within).await;
        cluster.judged(ready)?;
        Ok(cluster)
    }

    /// Starts the nodes without waiting for anything.
    pub fn launch(options: &Options) -> anyhow::Result<Self> {
        let program = options.binary.clone().map_or_else(binary, Ok)?;
        let folder = tempfile::Builder::new().prefix("flotilla-").tempdir().context("a folder for the cluster")?.keep();
        let ports = ports::free(3 * options.nodes)?;
        let (listen, rest) = ports.split_at(options.nodes);
        let (peer_listen, webhook_listen) = rest.split_at(options.nodes);
        let webhooks = options.webhooks.then(|| Files::make(&folder.join("webhooks"))).transpose()?;
        let peers: Vec<String> = peer_listen.iter().map(|port| address(*port)).collect();
        let join_secret = options.join_secret.then(|| make_join_secret(&folder)).transpose()?;
        let plan = Plan { program, folder: folder.clone(), peers, join_secret, extra_args: options.extra_args.clone() };
        let nodes = listen
            .iter()
            .zip(peer_listen)
            .enumerate()
            .map(|(index, (port, peer_port))| {
                let more = webhooks.as_ref().map_or_else(Vec::new, |files: &Files| {
                    let (cert, key) = (files.cert.display().to_string(), files.key.display().to_string());
                    let listen = ["--admission-listen".to_owned(), address(webhook_listen[index])];
                    let identity = ["--admission-tls-cert".to_owned(), cert, "--admission-tls-key".to_owned(), key];
                    [&listen[..], &identity].concat()
                });
                let zone =
                    options.zones.get(index).map_or_else(Vec::new, |zone| vec!["--zone".to_owned(), zone.clone()]);
                plan.node(index, *port, *peer_port, [more, zone].concat())
            })
            .collect();
        let webhooks = webhooks.map(|files| (files, webhook_listen.to_vec()));
        let http = plain_http(Duration::from_secs(10));
        let cluster = Self { nodes, folder, plan, webhooks, keep: AtomicBool::new(false), http };
        for node in &cluster.nodes {
            node.restart()?;
        }
        Ok(cluster)
    }

    /// Starts one more node with these further arguments, which knows the first ones as its peers.
    ///
    /// # Errors
    /// It cannot be started. Whether it joins is another matter.
    pub fn add(&mut self, arguments: &[&str]) -> anyhow::Result<&Node> {
        let node = self.prepare(arguments)?;
        node.restart()?;
        Ok(node)
    }

    /// As [`Cluster::add`], but [`Node::restart`] starts it.
    ///
    /// # Errors
    /// There are no ports for it.
    pub fn prepare(&mut self, arguments: &[&str]) -> anyhow::Result<&Node> {
        let ports = ports::free(2)?;
        let more = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        self.nodes.push(self.plan.node(self.nodes.len(), ports[0], ports[1], more));
        self.nodes.last().context("a node was added")
    }

    /// A cluster that lives as long as the process, for tests that share one.
    pub fn shared(self) -> &'static Self {
        static FIRST: Once = Once::new();
        FIRST.call_once(|| {
            let before = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |panic| {
                A_TEST_FAILED.store(true, Ordering::Relaxed);
                before(panic);
            }));
            process::at_exit(end_shared);
        });
        let cluster: &'static Self = Box::leak(Box::new(self));
        lock(&SHARED).push(cluster);
        cluster
    }

    /// The nodes, in the order of their names.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The node of that number, counted from 0.
    pub fn node(&self, index: usize) -> &Node {
        &self.nodes[index]
    }

    /// The node of that number, to change how it is started next.
    pub fn node_mut(&mut self, index: usize) -> &mut Node {
        &mut self.nodes[index]
    }

    /// The address that clients use, for every node.
    pub fn urls(&self) -> Vec<String> {
        self.nodes.iter().map(|node| node.url.clone()).collect()
    }

    /// A client that sends each request to the next node.
    pub fn client(&self) -> Client {
        Client::over(self.http.clone(), self.urls())
    }

    /// A client of one node only.
    pub fn client_of(&self, node: &Node) -> Client {
        Client::over(self.http.clone(), vec![node.url.clone()])
    }

    /// An API server that calls the webhooks of all nodes in turn.
    pub fn api_server(&self) -> anyhow::Result<ApiServer> {
        let (files, ports) = self.webhooks()?;
        ApiServer::new(files, ports.to_vec(), None)
    }

    /// By which files and on which ports the nodes serve webhooks.
    ///
    /// # Errors
    /// The cluster was started without webhooks.
    pub fn webhooks(&self) -> anyhow::Result<(&Files, &[u16])> {
        let (files, ports) = self.webhooks.as_ref().context("the cluster was started without webhooks")?;
        Ok((files, ports))
    }

    /// Where the data directories and logs lie.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Waits until every node answers `/readyz` with 200; an error as soon as one of them ends.
    pub async fn wait_ready(&self, within: Duration) -> anyhow::Result<()> {
        let began = Instant::now();
        for node in &self.nodes {
            let left = within.saturating_sub(began.elapsed());
            let client = self.client_of(node).with_timeout(Duration::from_secs(2));
            let ended = until_ok(left, &format!("{} is ready", node.name), async || {
                if !node.alive() {
                    return Ok(true);
                }
                let reply = client.get("/readyz").await?;
                ensure!(reply.status == 200, "/readyz answers {} {}", reply.status, reply.text());
                Ok(false)
            })
            .await
            .with_context(|| format!("the log of {} ends: {}", node.name, node.log_tail()))?;
            ensure!(!ended, "{} has ended: {}", node.name, node.log_tail());
        }
        Ok(())
    }

    /// What the node says about the cluster.
    pub async fn status(&self, node: &Node) -> anyhow::Result<Status> {
        let reply = self.client_of(node).get("/api/v1/cluster").await?;
        ensure!(reply.status == 200, "/api/v1/cluster of {}: {} {}", node.name, reply.status, reply.text());
        serde_json::from_slice(&reply.body)
            .with_context(|| format!("/api/v1/cluster of {}: {}", node.name, reply.text()))
    }

    /// Waits until these nodes, by the word of the first of them, have all blobs that they should have and no others.
    pub async fn settled(&self, nodes: &[&Node], within: Duration) -> anyhow::Result<Status> {
        let asked = nodes.first().context("a node to ask")?;
        until_ok(within, "all blobs are where they belong", async || {
            let status = self.status(asked).await?;
            for node in nodes {
                let member = status.member(&node.name).with_context(|| format!("{} is no member", node.name))?;
                ensure!(member.blobs.as_ref().is_some_and(Held::is_settled), "{member:?}");
            }
            Ok(status)
        })
        .await
    }

    /// The node that leads by the word of the living nodes; waits for an election.
    pub async fn leader(&self) -> anyhow::Result<&Node> {
        until_ok(Duration::from_secs(20), "a living leader", async || {
            for asked in self.nodes.iter().filter(|node| node.alive()) {
                let Ok(status) = self.status(asked).await else {
                    continue;
                };
                let Some(leader) = status.leader else {
                    continue;
                };
                let named = self.nodes.iter().find(|node| node.name == leader.name);
                if let Some(node) = named.filter(|node| node.alive()) {
                    return Ok(node);
                }
            }
            bail!("no living node names a living leader")
        })
        .await
    }

    /// A number from a node's `/metrics`: the sum over all labels; 0 where it is not listed.
    pub async fn metric(&self, node: &Node, name: &str) -> anyhow::Result<f64> {
        let reply = self.client_of(node).get("/metrics").await?;
        ensure!(reply.status == 200, "/metrics of {}: {}", node.name, reply.status);
        Ok(metric_in(&reply.text(), name))
    }

    /// Keeps the folder if the result is an error, and says in it where that is.
    pub fn judged<T>(&self, result: anyhow::Result<T>) -> anyhow::Result<T> {
        result.with_context(|| {
            self.keep.store(true, Ordering::Relaxed);
            format!("data and logs are kept in {}", self.folder.display())
        })
    }

    fn end(&self, failed: bool) {
        for node in &self.nodes {
            node.kill();
        }
        let wanted = env::var_os("FLOTILLA_KEEP").is_some_and(|value| value == "1");
        if wanted || failed || self.keep.load(Ordering::Relaxed) {
            eprintln!("kept: {}", self.folder.display());
        } else if let Err(error) = fs::remove_dir_all(&self.folder) {
            eprintln!("{} stays: {error}", self.folder.display());
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.end(thread::panicking());
    }
}

static SHARED: Mutex<Vec<&'static Cluster>> = Mutex::new(Vec::new());
static A_TEST_FAILED: AtomicBool = AtomicBool::new(false);

extern "C" fn end_shared() {
    for cluster in lock(&SHARED).drain(..) {
        cluster.end(A_TEST_FAILED.load(Ordering::Relaxed));
    }
}

/// One `flotilla serve` process and what is needed to start it again.
#[derive(Debug)]
pub struct Node {
    /// The name by which the cluster knows it.
    pub name: String,
    /// Where clients reach it.
    pub url: String,
    /// Where the other nodes reach it.
    pub peer_url: String,
    /// What it keeps on disk.
    pub data_dir: PathBuf,
    log: PathBuf,
    program: PathBuf,
    arguments: Vec<String>,
    child: Mutex<Option<Child>>,
}

impl Node {
    /// Starts the process by the same command line as before; it must not be running.
    pub fn restart(&self) -> anyhow::Result<()> {
        ensure!(!self.alive(), "{} is running", self.name);
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.log)
            .with_context(|| format!("{}", self.log.display()))?;
        let mut command = Command::new(&self.program);
        command
            .args(&self.arguments)
            .stdin(Stdio::null())
            .stdout(log.try_clone().context("a second handle of the log")?)
            .stderr(log);
        let child = process::spawn(command)
            .with_context(|| format!("{} {}", self.program.display(), self.arguments.join(" ")))?;
        *lock(&self.child) = Some(child);
        Ok(())
    }

    /// Loses its disk; it must not be running.
    pub fn wipe(&self) -> anyhow::Result<()> {
        ensure!(!self.alive(), "{} is running", self.name);
        fs::remove_dir_all(&self.data_dir).with_context(|| format!("{}", self.data_dir.display()))
    }

    /// Where a blob's file lies on its disk, or would lie.
    pub fn blob_file(&self, digest: &str) -> PathBuf {
        let (algorithm, hex) = digest.split_once(':').unwrap_or(("sha256", digest));
        self.data_dir.join("blobs").join(algorithm).join(hex.get(..2).unwrap_or_default()).join(hex)
    }

    /// What follows the program's name when it is started next.
    pub fn arguments_mut(&mut self) -> &mut Vec<String> {
        &mut self.arguments
    }

    /// All that the process wrote.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// `kill -9`, and waits until the process is gone.
    pub fn kill(&self) {
        if let Some(child) = lock(&self.child).as_mut() {
            // A stopped process dies of SIGKILL as well; an error means that it is dead already.
            let _ = process::send(child, Signal::Kill);
            let _ = child.wait();
        }
    }

    /// SIGTERM, and waits; an error unless it exits with status 0 in time.
    pub async fn stop(&self) -> anyhow::Result<()> {
        self.signal(Signal::Terminate)?;
        let status = until_ok(ORDERLY_END, "an end after SIGTERM", async || {
            self.exit_status().with_context(|| format!("{} still runs", self.name))
        })
        .await?;
        ensure!(status.success(), "{} ends after SIGTERM with {status}: {}", self.name, self.log_tail());
        Ok(())
    }

    /// SIGSTOP: neither answers nor closes its connections.
    pub fn pause(&self) -> anyhow::Result<()> {
        self.signal(Signal::Stop)
    }

    /// SIGCONT.
    pub fn resume(&self) -> anyhow::Result<()> {
        self.signal(Signal::Continue)
    }

    /// Whether the process runs (or is paused).
    pub fn alive(&self) -> bool {
        match lock(&self.child).as_mut().map(Child::try_wait) {
            Some(Ok(ended)) => ended.is_none(),
            Some(Err(_)) | None => false,
        }
    }

    /// The most memory that the running process has ever held, since its start.
    pub fn peak_rss_bytes(&self) -> anyhow::Result<u64> {
        let pid = self.pid().with_context(|| format!("{} does not run", self.name))?;
        let path = format!("/proc/{pid}/status");
        let text = fs::read_to_string(&path).with_context(|| path.clone())?;
        let kib = text
            .lines()
            .find_map(|line| line.strip_prefix("VmHWM:"))
            .and_then(|value| value.split_whitespace().next()?.parse::<u64>().ok())
            .with_context(|| format!("no VmHWM in {path}"))?;
        Ok(kib * 1024)
    }

    /// The end of what the process wrote.
    pub fn log_tail(&self) -> String {
        let bytes = fs::read(&self.log).unwrap_or_default();
        let start = bytes.len().saturating_sub(LOG_TAIL_BYTES);
        String::from_utf8_lossy(&bytes[start..]).into_owned()
    }

    /// Bytes on disk below the data directory, without those below any folder of the given name.
    pub fn disk_bytes(&self, without: &str) -> io::Result<u64> {
        bytes_below(&self.data_dir, without)
    }

    /// The process id, while it runs.
    pub fn pid(&self) -> Option<u32> {
        let mut child = lock(&self.child);
        let child = child.as_mut()?;
        matches!(child.try_wait(), Ok(None)).then(|| child.id())
    }

    fn exit_status(&self) -> Option<ExitStatus> {
        lock(&self.child).as_mut()?.try_wait().ok()?
    }

    fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        let mut child = lock(&self.child);
        let child = child.as_mut().with_context(|| format!("{} was never started", self.name))?;
        process::send(child, signal).with_context(|| format!("{signal:?} to {}", self.name))
    }
}

/// The parts of `/api/v1/cluster` that scenarios look at.
#[derive(Clone, Debug, Deserialize)]
pub struct Status {
    /// `healthy`, `degraded` or `no_quorum`.
    pub verdict: String,
    /// How many more nodes may fail.
    pub failures_tolerated: u64,
    /// The leader, if one is known.
    pub leader: Option<Named>,
    /// Every member.
    pub nodes: Vec<Member>,
}

impl Status {
    /// The member of that name.
    pub fn member(&self, name: &str) -> Option<&Member> {
        self.nodes.iter().find(|member| member.name == name)
    }
}

/// A node by its name.
#[derive(Clone, Debug, Deserialize)]
pub struct Named {
    /// As given by `--name`.
    pub name: String,
}

/// One member of the cluster, as another (or itself) sees it.
#[derive(Clone, Debug, Deserialize)]
pub struct Member {
    /// Random, and gone with its disk.
    pub id: String,
    /// As given by `--name`.
    pub name: String,
    /// `leader`, `follower` or `learner`.
    pub role: String,
    /// Why a learner has no vote.
    pub waits_for: Option<String>,
    /// Whether it answers its peers.
    pub reachable: bool,
    /// The last log index that it has applied, where known.
    pub applied_index: Option<u64>,
    /// How many entries it is behind, where known.
    pub lag: Option<u64>,
    /// Blob files that it should hold.
    pub blobs: Option<Held>,
    /// Whether its blobs move to others.
    pub draining: bool,
}

/// Counts of blob files.
#[derive(Clone, Debug, Deserialize)]
pub struct Held {
    /// Files that are there.
    pub held: u64,
    /// Bytes of these.
    pub held_bytes: u64,
    /// Files that should be there and are not.
    pub missing: u64,
    /// How many of these no node that answers has.
    pub nowhere: u64,
    /// Files that are there and belong to others.
    pub surplus: u64,
    /// Whether all were compared since nodes came or went.
    pub compared: bool,
}

impl Held {
    /// Whether everything is where it belongs.
    pub fn is_settled(&self) -> bool {
        self.compared && self.missing == 0 && self.surplus == 0
    }
}

fn make_join_secret(folder: &Path) -> anyhow::Result<PathBuf> {
    let path = folder.join("join.secret");
    let secret: [u8; 32] = rand::rng().random();
    fs::write(&path, hex::encode(secret) + "\n").with_context(|| path.display().to_string())?;
    Ok(path)
}

fn address(port: u16) -> String {
    format!("127.0.0.1:{port}")
}

fn bytes_below(folder: &Path, without: &str) -> io::Result<u64> {
    let mut sum = 0;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        // A file may go between the listing and the look at it: nodes run meanwhile.
        let Ok(kind) = entry.metadata() else { continue };
        if kind.is_file() {
            sum += kind.len();
        } else if kind.is_dir() && entry.file_name() != without {
            sum += bytes_below(&entry.path(), without).unwrap_or(0);
        }
    }
    Ok(sum)
}

fn metric_in(text: &str, name: &str) -> f64 {
    text.lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.rsplit_once(' '))
        .filter(|(series, _)| series.split('{').next() == Some(name))
        .filter_map(|(_, value)| value.parse::<f64>().ok())
        .sum()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_metric_is_summed_over_its_labels_and_not_over_its_namesakes() {
        let text = "# TYPE a_total counter\na_total{x=\"1\"} 2\na_total{x=\"2\"} 3\na_total_more 7\n";
        assert_eq!(metric_in(text, "a_total"), 5.0);
        assert_eq!(metric_in(text, "b_total"), 0.0);
    }

    #[tokio::test]
    async fn a_paused_process_is_alive_and_a_killed_one_is_not() {
        let folder = tempfile::tempdir().expect("a folder");
        let node = Node {
            name: "sleeper".to_owned(),
            url: String::new(),
            peer_url: String::new(),
            data_dir: folder.path().to_owned(),
            log: folder.path().join("log"),
            program: PathBuf::from("sleep"),
            arguments: vec!["60".to_owned()],
            child: Mutex::new(None),
        };
        node.restart().expect("sleep starts");
        node.pause().expect("it can be paused");
        assert!(node.alive());
        assert!(node.restart().is_err(), "it still runs");
        node.resume().expect("it can go on");
        assert!(node.peak_rss_bytes().expect("its memory is known") > 0);
        assert!(node.stop().await.is_err(), "sleep dies of SIGTERM, not in order");
        node.restart().expect("it starts again");
        node.kill();
        assert!(!node.alive());
    }
}

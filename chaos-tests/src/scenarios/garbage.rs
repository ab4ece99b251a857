//! Pushes at the edge of the grace time, on all nodes, while collection runs without a pause: what was acknowledged
//! can be pulled, and in the end nothing lies on any disk that nobody names.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, ensure};
use bytes::Bytes;
use futures::future::try_join_all;
use rand::Rng;
use rand::rngs::StdRng;
use serde_json::json;
use std::sync::Mutex;

use crate::client::{Client, Method, Problem, Pushed, Way};
use crate::cluster::{Cluster, Node, Options};
use crate::image::{Image, OCI_MANIFEST, random_bytes, sha256};
use crate::nemesis;
use crate::wait;
use crate::workload::random;

const REPOSITORIES: [&str; 3] = ["garbage/one", "garbage/two", "garbage/three"];
const WORKERS: usize = 24;

/// Few blobs for many pushes: each is collected and pushed again, often by several at once.
const LAYERS: usize = 40;

/// The shortest grace time that there is.
const GRACE: Duration = Duration::from_secs(1);
const CLEAN_WITHIN: Duration = Duration::from_secs(60);

/// The time between two times at which all nodes are killed.
const KILL_EVERY: Duration = Duration::from_secs(4);
/// How long a worker whose push failed waits before the next one.
const PAUSE: Duration = Duration::from_millis(500);
const READY_WITHIN: Duration = Duration::from_secs(30);

/// Pushes `pushes` manifests whose blobs are about to become garbage; with `kills`, all nodes are killed at once now
/// and then.
pub async fn garbage(pushes: usize, kills: bool, seed: u64) -> anyhow::Result<()> {
    let cluster = Cluster::start(Options::default()).await?;
    let result = run(&cluster, pushes, kills, seed).await;
    cluster.judged(result)
}

/// What became of the pushes.
#[derive(Default)]
struct Tally {
    next: AtomicUsize,
    told: AtomicUsize,
    skipped: AtomicUsize,
    deleted: AtomicUsize,
    /// Those whose outcome is not known, with what they name: nodes were killed under them.
    unknown: Mutex<Vec<Image>>,
}

async fn run(cluster: &Cluster, pushes: usize, kills: bool, seed: u64) -> anyhow::Result<()> {
    let client = cluster.client();
    let settings = json!({"garbage_grace_seconds": GRACE.as_secs(), "history_seconds": 1}).to_string();
    client.send(Method::PUT, "/api/v1/settings", &[], settings.into()).await?.expect(&[204])?;
    let mut source = random(seed, 9, 0);
    // Half of them lie in the log, half are files.
    let layers: Vec<Bytes> = (0..LAYERS).map(|number| random_bytes(&mut source, 900 + 20_000 * (number % 2))).collect();
    let (tally, done) = (Tally::default(), AtomicBool::new(false));
    let workers = (0..WORKERS).map(|worker| {
        let client = cluster.client().starting_at(worker);
        let random = random(seed, 9, 1 + worker as u64);
        Worker { client, random, layers: &layers, tally: &tally, faults: kills }.work(pushes)
    });
    let pushed = async {
        let acknowledged = try_join_all(workers).await;
        done.store(true, Ordering::Release);
        acknowledged
    };
    let (acknowledged, rounds, killed) =
        futures::join!(pushed, collect_until(cluster, kills, &done), kill_until(cluster, kills, &done));
    let acknowledged: Vec<Pushed> = acknowledged?.into_iter().flatten().collect();
    println!(
        "{} pushes acknowledged, {} told that a blob is gone, {} with an unknown outcome, {} deleted again; {} uploads spared by a HEAD; {} collections beside them; all nodes killed {} times",
        acknowledged.len() + tally.deleted.load(Ordering::Relaxed),
        tally.told.load(Ordering::Relaxed),
        tally.unknown.lock().expect("no thread panics with it").len(),
        tally.deleted.load(Ordering::Relaxed),
        tally.skipped.load(Ordering::Relaxed),
        rounds?,
        killed?,
    );
    cluster.wait_ready(READY_WITHIN).await?;
    for node in cluster.nodes() {
        let client = cluster.client_of(node);
        for pushed in &acknowledged {
            client.verify(pushed).await.with_context(|| format!("at {}, after all", node.name))?;
        }
    }
    println!("each can be pulled from each node");
    let mut named = named(&client, &acknowledged).await?;
    for image in tally.unknown.lock().expect("no thread panics with it").drain(..) {
        named.extend(image.blobs.iter().map(|blob| sha256(blob)).chain([image.digest]));
    }
    wait::until_ok(CLEAN_WITHIN, "only what is named lies on the disks", async || {
        client.post("/api/v1/gc/run").await?.expect(&[200])?;
        cluster.nodes().iter().try_for_each(|node| only(node, &named))
    })
    .await?;
    println!("no unreferenced file is left on any node");
    Ok(())
}

struct Worker<'a> {
    client: Client,
    random: StdRng,
    layers: &'a [Bytes],
    tally: &'a Tally,
    /// Nodes are killed: a push may fail.
    faults: bool,
}

impl Worker<'_> {
    /// Pushes until there are enough; those that were acknowledged and not deleted.
    async fn work(mut self, pushes: usize) -> anyhow::Result<Vec<Pushed>> {
        let mut acknowledged = Vec::new();
        loop {
            let number = self.tally.next.fetch_add(1, Ordering::Relaxed);
            if number >= pushes {
                return Ok(acknowledged);
            }
            let repository = REPOSITORIES[self.random.random_range(0..REPOSITORIES.len())];
            let config = Bytes::from(json!({"number": number}).to_string());
            let chosen = [(); 2].map(|()| self.layers[self.random.random_range(0..self.layers.len())].clone());
            let image = Image::of(config, chosen.to_vec());
            match self.push(repository, number, &image).await {
                Ok(pushed) => acknowledged.extend(pushed),
                Err(problem @ Problem::Wrong(_)) => return Err(problem.into()),
                Err(_) if self.faults => {
                    self.tally.unknown.lock().expect("no thread panics with it").push(image);
                    // As clients do before they try again.
                    tokio::time::sleep(PAUSE).await;
                }
                Err(problem) => return Err(problem.into()),
            }
        }
    }

    async fn push(&mut self, repository: &str, number: usize, image: &Image) -> Result<Option<Pushed>, Problem> {
        for blob in &image.blobs {
            let path = format!("/v2/{repository}/blobs/{}", sha256(blob));
            match self.client.head(&path).await?.expect(&[200, 404])?.status {
                200 => drop(self.tally.skipped.fetch_add(1, Ordering::Relaxed)),
                _ => drop(self.client.push_blob(repository, blob, Way::number(number)).await?),
            }
        }
        tokio::time::sleep(GRACE.mul_f64(self.random.random_range(0.3..1.3))).await;
        let tag = if self.random.random_bool(0.5) { format!("t{number}") } else { image.digest.clone() };
        let put = self.client.put_manifest(repository, &tag, OCI_MANIFEST, image.manifest.clone()).await?;
        let put = put.expect(&[201, 400])?;
        if put.status == 400 {
            if put.codes().iter().any(|code| code != "MANIFEST_BLOB_UNKNOWN") {
                return Err(Problem::Wrong(format!("{} {}", put.request, put.text())));
            }
            self.tally.told.fetch_add(1, Ordering::Relaxed);
            return Ok(None);
        }
        let pushed = Pushed { repository: repository.to_owned(), tag, digest: image.digest.clone() };
        if !self.faults {
            let verified = self.client.verify(&pushed).await;
            verified.map_err(|problem| Problem::Wrong(format!("right after its 201: {problem}")))?;
        }
        if self.random.random_bool(0.3) {
            return Ok(Some(pushed));
        }
        let path = format!("/v2/{repository}/manifests/{}", image.digest);
        self.client.delete(&path).await?.expect(&[202])?;
        self.tally.deleted.fetch_add(1, Ordering::Relaxed);
        Ok(None)
    }
}

/// Collects at one node after the other; how often.
async fn collect_until(cluster: &Cluster, faults: bool, done: &AtomicBool) -> anyhow::Result<usize> {
    let client = cluster.client();
    let mut rounds = 0;
    while !done.load(Ordering::Acquire) {
        match client.post("/api/v1/gc/run").await.and_then(|reply| reply.expect(&[200])) {
            Ok(_) => rounds += 1,
            Err(problem) if !faults => return Err(problem.into()),
            Err(_) => {}
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(rounds)
}

/// Kills all nodes at once and starts them again, now and then; how often.
async fn kill_until(cluster: &Cluster, kills: bool, done: &AtomicBool) -> anyhow::Result<usize> {
    let mut times = 0;
    while kills && !done.load(Ordering::Acquire) {
        tokio::time::sleep(KILL_EVERY).await;
        nemesis::kill_all(cluster);
        cluster.nodes().iter().try_for_each(Node::restart)?;
        cluster.wait_ready(READY_WITHIN).await?;
        times += 1;
    }
    Ok(times)
}

/// The digests of these pushes and of all that they name.
async fn named(client: &Client, pushes: &[Pushed]) -> anyhow::Result<BTreeSet<String>> {
    let mut named = BTreeSet::new();
    for pushed in pushes {
        let manifest = client.manifest(&pushed.repository, &pushed.digest).await?.expect(&[200])?.json();
        let layers = manifest["layers"].as_array().into_iter().flatten();
        let digests = layers.chain([&manifest["config"]]).filter_map(|described| described["digest"].as_str());
        named.extend(digests.map(str::to_owned));
        named.insert(pushed.digest.clone());
    }
    Ok(named)
}

/// An error if a blob, or its checksums, lies on the node's disk that is not among these.
fn only(node: &Node, named: &BTreeSet<String>) -> anyhow::Result<()> {
    for folder in std::fs::read_dir(node.data_dir.join("blobs/sha256"))? {
        for file in std::fs::read_dir(folder?.path())? {
            let name = file?.file_name().to_string_lossy().into_owned();
            let digest = format!("sha256:{}", name.trim_end_matches(".sums"));
            ensure!(named.contains(&digest), "{} has {digest}, which nothing names", node.name);
        }
    }
    let staged = std::fs::read_dir(node.data_dir.join("staging"))?.count();
    ensure!(staged == 0, "{} has {staged} files in its staging folder", node.name);
    Ok(())
}

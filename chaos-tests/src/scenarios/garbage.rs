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

use crate::client::{Client, Method, Pushed, Way};
use crate::cluster::{Cluster, Node, Options};
use crate::image::{Image, OCI_MANIFEST, random_bytes, sha256};
use crate::wait;
use crate::workload::random;

const REPOSITORIES: [&str; 3] = ["garbage/one", "garbage/two", "garbage/three"];
const WORKERS: usize = 24;

/// Few blobs for many pushes: each is collected and pushed again, often by several at once.
const LAYERS: usize = 40;

/// The shortest grace time that there is.
const GRACE: Duration = Duration::from_secs(1);
const CLEAN_WITHIN: Duration = Duration::from_secs(60);

/// Pushes `pushes` manifests whose blobs are about to become garbage.
pub async fn garbage(pushes: usize, seed: u64) -> anyhow::Result<()> {
    let cluster = Cluster::start(Options::default()).await?;
    let result = run(&cluster, pushes, seed).await;
    cluster.judged(result)
}

/// What became of the pushes.
#[derive(Default)]
struct Tally {
    next: AtomicUsize,
    told: AtomicUsize,
    skipped: AtomicUsize,
    deleted: AtomicUsize,
}

async fn run(cluster: &Cluster, pushes: usize, seed: u64) -> anyhow::Result<()> {
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
        work(client, random, &layers, &tally, pushes)
    });
    let pushed = async {
        let acknowledged = try_join_all(workers).await;
        done.store(true, Ordering::Release);
        acknowledged
    };
    let (acknowledged, rounds) = futures::join!(pushed, collect_until(cluster, &done));
    let acknowledged: Vec<Pushed> = acknowledged?.into_iter().flatten().collect();
    println!(
        "{} pushes acknowledged, {} told that a blob is gone, {} of them deleted again; {} uploads spared by a HEAD; {} collections beside them",
        acknowledged.len() + tally.deleted.load(Ordering::Relaxed),
        tally.told.load(Ordering::Relaxed),
        tally.deleted.load(Ordering::Relaxed),
        tally.skipped.load(Ordering::Relaxed),
        rounds?
    );
    for node in cluster.nodes() {
        let client = cluster.client_of(node);
        for pushed in &acknowledged {
            client.verify(pushed).await.with_context(|| format!("at {}, after all", node.name))?;
        }
    }
    println!("each can be pulled from each node");
    let named = named(&client, &acknowledged).await?;
    wait::until_ok(CLEAN_WITHIN, "only what is named lies on the disks", async || {
        client.post("/api/v1/gc/run").await?.expect(&[200])?;
        cluster.nodes().iter().try_for_each(|node| only(node, &named))
    })
    .await?;
    println!("no unreferenced file is left on any node");
    Ok(())
}

/// Pushes until there are enough; those that were acknowledged and not deleted.
async fn work(
    client: Client,
    mut random: StdRng,
    layers: &[Bytes],
    tally: &Tally,
    pushes: usize,
) -> anyhow::Result<Vec<Pushed>> {
    let mut acknowledged = Vec::new();
    loop {
        let number = tally.next.fetch_add(1, Ordering::Relaxed);
        if number >= pushes {
            return Ok(acknowledged);
        }
        let repository = REPOSITORIES[random.random_range(0..REPOSITORIES.len())];
        let config = Bytes::from(json!({"number": number}).to_string());
        let chosen = [(); 2].map(|()| layers[random.random_range(0..layers.len())].clone());
        let image = Image::of(config, chosen.to_vec());
        for blob in &image.blobs {
            let path = format!("/v2/{repository}/blobs/{}", sha256(blob));
            match client.head(&path).await?.expect(&[200, 404])?.status {
                200 => drop(tally.skipped.fetch_add(1, Ordering::Relaxed)),
                _ => drop(client.push_blob(repository, blob, Way::number(number)).await?),
            }
        }
        tokio::time::sleep(GRACE.mul_f64(random.random_range(0.3..1.3))).await;
        let by_tag = random.random_bool(0.5);
        let tag = if by_tag { format!("t{number}") } else { image.digest.clone() };
        let put = client.put_manifest(repository, &tag, OCI_MANIFEST, image.manifest.clone()).await?;
        let put = put.expect(&[201, 400])?;
        if put.status == 400 {
            ensure!(put.codes().iter().all(|code| code == "MANIFEST_BLOB_UNKNOWN"), "{} {}", put.request, put.text());
            tally.told.fetch_add(1, Ordering::Relaxed);
            continue;
        }
        let pushed = Pushed { repository: repository.to_owned(), tag, digest: image.digest.clone() };
        client.verify(&pushed).await.context("right after its 201")?;
        if random.random_bool(0.7) {
            client.delete(&format!("/v2/{repository}/manifests/{}", image.digest)).await?.expect(&[202])?;
            tally.deleted.fetch_add(1, Ordering::Relaxed);
        } else {
            acknowledged.push(pushed);
        }
    }
}

/// Collects at one node after the other; how often.
async fn collect_until(cluster: &Cluster, done: &AtomicBool) -> anyhow::Result<usize> {
    let client = cluster.client();
    let mut rounds = 0;
    while !done.load(Ordering::Acquire) {
        client.post("/api/v1/gc/run").await?.expect(&[200])?;
        rounds += 1;
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(rounds)
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

/// An error if a blob lies on the node's disk that is not among these.
fn only(node: &Node, named: &BTreeSet<String>) -> anyhow::Result<()> {
    for folder in std::fs::read_dir(node.data_dir.join("blobs/sha256"))? {
        for file in std::fs::read_dir(folder?.path())? {
            let digest = format!("sha256:{}", file?.file_name().to_string_lossy());
            ensure!(named.contains(&digest), "{} has {digest}, which nothing names", node.name);
        }
    }
    let staged = std::fs::read_dir(node.data_dir.join("staging"))?.count();
    ensure!(staged == 0, "{} has {staged} files in its staging folder", node.name);
    Ok(())
}

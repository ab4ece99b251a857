//! A registry of a million tags: how long a start, a snapshot and a catch-up take, how long writes stand still meanwhile,
//! and what all of it takes in memory and on disk.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use rand::rngs::StdRng;
use serde_json::json;

use super::MIB;
use crate::client::{Client, Method, Way};
use crate::cluster::{Cluster, Node, Options};
use crate::image::{Image, OCI_MANIFEST, random_bytes};
use crate::wait::until_ok;
use crate::workload::random;

/// Clients that fill the registry.
const AT_ONCE: usize = 64;
/// Clients whose writes are watched.
const WATCHED: usize = 4;
const TAGS_EACH: usize = 5;
const REPOSITORIES: usize = 200;
const BODY_BYTES: usize = 2048;
const PUT_WITHIN: Duration = Duration::from_secs(60);
/// The promise: so long after its start a node serves.
const SERVES_WITHIN: Duration = Duration::from_secs(10);
/// The promise: so long at most do writes stand still while a snapshot is made.
const STALL_MAX: Duration = Duration::from_millis(50);
const CAUGHT_UP_WITHIN: Duration = Duration::from_secs(900);

/// Fills a registry with that many manifests, each with a config and five tags, and measures.
pub async fn million(manifests: usize, seed: u64) -> anyhow::Result<()> {
    let cluster = Cluster::start(Options::default()).await?;
    let result = run(&cluster, manifests, seed).await;
    cluster.judged(result)
}

async fn run(cluster: &Cluster, manifests: usize, seed: u64) -> anyhow::Result<()> {
    fill(cluster, manifests, seed).await?;
    footprint(cluster, "after the writes")?;
    let mut broken = Vec::new();
    broken.extend(snapshot_under_writes(cluster, seed).await?);
    broken.extend(start_again(cluster).await?);
    catch_up(cluster).await?;
    footprint(cluster, "at the end")?;
    ensure!(broken.is_empty(), "{}", broken.join("; "));
    Ok(())
}

/// An image without layers, whose config and manifest have two kilobytes each.
fn image(random: &mut StdRng) -> Image {
    let noise = |random: &mut StdRng, bytes| {
        let bytes = random_bytes(random, bytes);
        bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>()
    };
    let config = json!({"architecture": "amd64", "os": "linux", "noise": noise(random, BODY_BYTES / 2)}).to_string();
    let of = Image::of(Bytes::from(config), Vec::new());
    let mut manifest: serde_json::Value = serde_json::from_slice(&of.manifest).unwrap_or_default();
    manifest["annotations"] = json!({"noise": noise(random, (BODY_BYTES - of.manifest.len()) / 2 - 20)});
    let manifest = Bytes::from(manifest.to_string());
    Image { digest: crate::image::sha256(&manifest), manifest, blobs: of.blobs }
}

async fn put(client: &Client, number: usize, image: Image) -> anyhow::Result<()> {
    let repository = format!("million/r{}", number % REPOSITORIES);
    for blob in &image.blobs {
        client.push_blob(&repository, blob, Way::Post).await?;
    }
    let tags: String = (0..TAGS_EACH).map(|tag| format!("tag=t{number}-{tag}&")).collect();
    let path = format!("/v2/{repository}/manifests/{}?{}", image.digest, tags.trim_end_matches('&'));
    let headers = [("content-type", OCI_MANIFEST)];
    client.send(Method::PUT, &path, &headers, image.manifest).await?.expect(&[201])?;
    Ok(())
}

async fn fill(cluster: &Cluster, manifests: usize, seed: u64) -> anyhow::Result<()> {
    let began = Instant::now();
    let mut random = random(seed, 6, 0);
    let client = cluster.client().with_timeout(Duration::from_secs(60));
    let step = manifests.div_ceil(10).max(1);
    for from in (0..manifests).step_by(step) {
        let to = (from + step).min(manifests);
        let images: Vec<(usize, Image)> = (from..to).map(|number| (number, image(&mut random))).collect();
        let puts = images.into_iter().map(|(number, image)| {
            // A machine that is busy with other things as well answers 503 now and then.
            let client = &client;
            async move { until_ok(PUT_WITHIN, "it is pushed", async || put(client, number, image.clone()).await).await }
        });
        stream::iter(puts).buffer_unordered(AT_ONCE).try_collect::<()>().await?;
        println!("{to} manifests, {} tags after {:.1?}", to * TAGS_EACH, began.elapsed());
    }
    let took = began.elapsed();
    println!("{manifests} manifests with configs in {took:.1?}: {:.0} a second", manifests as f64 / took.as_secs_f64());
    Ok(())
}

fn footprint(cluster: &Cluster, when: &str) -> anyhow::Result<()> {
    for node in cluster.nodes() {
        println!(
            "{} {when}: peak RSS {} MiB, log and state on disk {} MiB",
            node.name,
            node.peak_rss_bytes()? / MIB,
            node.disk_bytes("blobs")? / MIB
        );
    }
    Ok(())
}

async fn snapshots(cluster: &Cluster) -> anyhow::Result<f64> {
    cluster.metric(cluster.leader().await?, "flotilla_raft_snapshots_built_total").await
}

/// Writes go on until the leader has made a snapshot, and as long again without one: the slowest of each.
async fn snapshot_under_writes(cluster: &Cluster, seed: u64) -> anyhow::Result<Option<String>> {
    let (over, slowest) = (Arc::new(AtomicBool::new(false)), Arc::new(std::sync::Mutex::new(Vec::new())));
    let began = Instant::now();
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..WATCHED {
        let client = cluster.client_of(cluster.leader().await?).with_timeout(Duration::from_secs(60));
        let (over, slowest, mut random) = (over.clone(), slowest.clone(), random(seed, 7, writer as u64));
        writers.spawn(async move {
            for number in 0_usize.. {
                if over.load(Ordering::Relaxed) {
                    break;
                }
                let (image, at) = (image(&mut random), Instant::now());
                put(&client, 10_000_000 + writer * 1_000_000 + number, image).await?;
                slowest.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push((at - began, at.elapsed()));
            }
            anyhow::Ok(())
        });
    }
    // The one that is due by the number of entries; seen within a few milliseconds of its end.
    let before = snapshots(cluster).await?;
    let made = until_ok(CAUGHT_UP_WITHIN, "a snapshot", async || {
        ensure!(snapshots(cluster).await? > before, "none yet");
        Ok(began.elapsed())
    })
    .await?;
    tokio::time::sleep(Duration::from_secs(10)).await;
    over.store(true, Ordering::Relaxed);
    while let Some(ended) = writers.join_next().await {
        ended.context("a writer")??;
    }
    let writes = slowest.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
    let near = |at: &Duration| made.abs_diff(*at) < Duration::from_secs(5);
    let slowest = |is_near: bool| writes.iter().filter(|(at, _)| near(at) == is_near).map(|(_, took)| *took).max();
    let mut all: Vec<Duration> = writes.iter().map(|(_, took)| *took).collect();
    all.sort_unstable();
    let p50 = all.get(all.len() / 2).copied().unwrap_or_default();
    let p99 = all.get(all.len() * 99 / 100).copied().unwrap_or_default();
    let (during, without) = (slowest(true).unwrap_or_default(), slowest(false).unwrap_or_default());
    println!(
        "{} pushes beside a snapshot: median {p50:.1?}, p99 {p99:.1?}, slowest {during:.1?} near it and {without:.1?} far from it",
        writes.len()
    );
    // A push is three changes one after the other; each waits for a sync in any case.
    let stall = during.saturating_sub(p99);
    Ok((stall > STALL_MAX)
        .then(|| format!("a push took {stall:.1?} longer than p99 near a snapshot, limit {STALL_MAX:?}")))
}

async fn start_again(cluster: &Cluster) -> anyhow::Result<Option<String>> {
    let mut longest = Duration::ZERO;
    for node in cluster.nodes() {
        node.stop().await?;
        let began = Instant::now();
        node.restart()?;
        serves(cluster, node).await?;
        println!("{} serves {:.2?} after its start", node.name, began.elapsed());
        longest = longest.max(began.elapsed());
    }
    let node = cluster.node(0);
    node.kill();
    let began = Instant::now();
    node.restart()?;
    serves(cluster, node).await?;
    println!("{} serves {:.2?} after its start from kill -9", node.name, began.elapsed());
    longest = longest.max(began.elapsed());
    Ok((longest > SERVES_WITHIN)
        .then(|| format!("a node serves {longest:.1?} after its start, limit {SERVES_WITHIN:?}")))
}

async fn serves(cluster: &Cluster, node: &Node) -> anyhow::Result<()> {
    let client = cluster.client_of(node).with_timeout(Duration::from_secs(2));
    until_ok(CAUGHT_UP_WITHIN, &format!("{} serves", node.name), async || {
        client.manifest("million/r0", "t0-0").await?.expect(&[200])?;
        Ok(())
    })
    .await
}

/// A node loses its disk: it gets all of the state as a copy, while writes go on.
async fn catch_up(cluster: &Cluster) -> anyhow::Result<()> {
    let lost = cluster.node(2);
    lost.kill();
    lost.wipe()?;
    let began = Instant::now();
    lost.restart()?;
    serves(cluster, lost).await?;
    let installed = cluster.metric(lost, "flotilla_raft_snapshots_installed_total").await?;
    println!("{} without its disk serves after {:.1?}, {installed} snapshots installed", lost.name, began.elapsed());
    Ok(())
}

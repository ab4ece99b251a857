//! A registry of a million tags: how long a start, a snapshot and a catch-up take, how long writes stand still meanwhile,
//! and what all of it takes in memory and on disk.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use parking_lot::Mutex;
use rand::rngs::StdRng;
use serde_json::json;

use super::{MIB, median};
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
/// The promise: a node never takes more memory, whatever it does.
const MEMORY_MAX: u64 = 1024 * MIB;
const PUT_WITHIN: Duration = Duration::from_secs(60);
/// The promise: so long after its start a node serves.
const SERVES_WITHIN: Duration = Duration::from_secs(10);
/// The promise: so long at most do writes stand still while a snapshot is made.
const STALL_MAX: Duration = Duration::from_millis(50);
/// Snapshots that are watched, and the time that is looked at as one.
const SNAPSHOTS: usize = 3;
const STRETCH: Duration = Duration::from_secs(1);
const CAUGHT_UP_WITHIN: Duration = Duration::from_secs(900);

/// Fills a registry with that many manifests, each with a config and five tags, and measures.
pub async fn million(manifests: usize, seed: u64) -> anyhow::Result<()> {
    let cluster = Cluster::start(Options::default()).await?;
    let result = run(&cluster, manifests, seed).await;
    cluster.judged(result)
}

async fn run(cluster: &Cluster, manifests: usize, seed: u64) -> anyhow::Result<()> {
    fill(cluster, manifests, seed).await?;
    let mut broken = Vec::new();
    broken.extend(footprint(cluster, "after the writes")?);
    broken.extend(snapshot_under_writes(cluster, seed).await?);
    broken.extend(start_again(cluster).await?);
    catch_up(cluster).await?;
    broken.extend(footprint(cluster, "at the end")?);
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

fn footprint(cluster: &Cluster, when: &str) -> anyhow::Result<Option<String>> {
    let mut broken = None;
    for node in cluster.nodes() {
        if node.peak_rss_bytes()? > MEMORY_MAX {
            broken = Some(format!("{} took more than {} MiB {when}", node.name, MEMORY_MAX / MIB));
        }
        println!(
            "{} {when}: peak RSS {} MiB, log and state on disk {} MiB",
            node.name,
            node.peak_rss_bytes()? / MIB,
            node.disk_bytes("blobs")? / MIB
        );
    }
    Ok(broken)
}

async fn snapshots(cluster: &Cluster) -> anyhow::Result<f64> {
    cluster.metric(cluster.leader().await?, "flotilla_raft_snapshots_built_total").await
}

/// The slowest push of each stretch of time, with or without the end of a snapshot in it.
fn slowest_by_stretch(writes: &[(Duration, Duration)], snapshots: &[Duration]) -> (Vec<Duration>, Vec<Duration>) {
    let stretch_of = |at: &Duration| at.as_millis() / STRETCH.as_millis();
    let mut slowest = BTreeMap::new();
    for (at, took) in writes {
        let entry = slowest.entry(stretch_of(&(*at + *took))).or_insert(*took);
        *entry = (*entry).max(*took);
    }
    let with: BTreeSet<u128> = snapshots.iter().map(stretch_of).collect();
    let (mut near, mut far) = (Vec::new(), Vec::new());
    for (stretch, took) in slowest {
        // What a snapshot leaves behind, such as a log to be purged, comes after its end.
        let is_near = with.contains(&stretch) || stretch.checked_sub(1).is_some_and(|before| with.contains(&before));
        if is_near { near.push(took) } else { far.push(took) }
    }
    (near, far)
}

/// Writes go on while the leader makes some snapshots: the slowest push near them, and of stretches as long without one,
/// which says what this machine does to a push by itself.
async fn snapshot_under_writes(cluster: &Cluster, seed: u64) -> anyhow::Result<Option<String>> {
    let (over, writes) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
    let began = Instant::now();
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..WATCHED {
        let client = cluster.client_of(cluster.leader().await?).with_timeout(Duration::from_secs(60));
        let (over, writes, mut random) = (over.clone(), writes.clone(), random(seed, 7, writer as u64));
        writers.spawn(async move {
            for number in 0_usize.. {
                if over.load(Ordering::Relaxed) {
                    break;
                }
                let (image, at) = (image(&mut random), Instant::now());
                put(&client, 10_000_000 + writer * 1_000_000 + number, image).await?;
                writes.lock().push((at - began, at.elapsed()));
            }
            anyhow::Ok(())
        });
    }
    let mut made = Vec::new();
    let mut before = snapshots(cluster).await?;
    while made.len() < SNAPSHOTS {
        // Seen within a few milliseconds of its end.
        before = until_ok(CAUGHT_UP_WITHIN, "a snapshot", async || {
            let now = snapshots(cluster).await?;
            ensure!(now > before, "none yet");
            Ok(now)
        })
        .await?;
        made.push(began.elapsed());
    }
    over.store(true, Ordering::Relaxed);
    while let Some(ended) = writers.join_next().await {
        ended.context("a writer")??;
    }
    let writes = writes.lock().clone();
    let mut all: Vec<Duration> = writes.iter().map(|(_, took)| *took).collect();
    all.sort_unstable();
    let (near, far) = slowest_by_stretch(&writes, &made);
    let (p50, count) = (median(&all), all.len());
    let p99 = all.get(count * 99 / 100).copied().unwrap_or_default();
    let (with, without) = (median(&near), median(&far));
    println!(
        "{count} pushes beside {} snapshots: median {p50:.1?}, p99 {p99:.1?}; the slowest of a stretch of {STRETCH:?}: \
         with a snapshot {with:.1?} (at most {:.1?}), without {without:.1?} (at most {:.1?})",
        made.len(),
        near.iter().max().copied().unwrap_or_default(),
        far.iter().max().copied().unwrap_or_default(),
    );
    let stall = with.saturating_sub(without);
    println!("a snapshot makes writes wait for {stall:.1?}");
    Ok((stall > STALL_MAX).then(|| format!("a snapshot makes writes wait for {stall:.1?}, limit {STALL_MAX:?}")))
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

//! A node misses so many writes that the log no longer holds them, and comes back by a snapshot.

use std::ops::Range;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};

use super::MIB;
use crate::client::{Client, Pushed, Way, path_of};
use crate::cluster::{Cluster, Node, Options};
use crate::image::{Image, OCI_MANIFEST};
use crate::nemesis;
use crate::wait::until_ok;
use crate::workload::random;

const REPOSITORIES: usize = 10;
const AT_ONCE: usize = 16;
const PUSHES: usize = 20;
/// Long enough for the leader to want to send a copy of its state to the node.
const AWAY_FOR: Duration = Duration::from_secs(5);
const SNAPSHOT_WITHIN: Duration = Duration::from_secs(20);
const CAUGHT_UP_WITHIN: Duration = Duration::from_secs(120);
const TAGS_A_PAGE: usize = 1_000;
/// More pages than any run of this scenario has.
const MAX_PAGES: usize = 1_000;

/// The size of the scenario.
#[derive(Clone, Copy, Debug)]
pub struct CatchUp {
    /// Metadata writes that the stopped node misses, at least.
    pub writes: usize,
    /// Entries between two snapshots.
    pub snapshot_every: usize,
    /// Entries that stay in the log behind a snapshot.
    pub keep: usize,
}

/// One node is stopped, misses the writes, and must serve everything after its restart.
pub async fn catch_up(size: CatchUp, seed: u64) -> anyhow::Result<()> {
    let (every, keep) = (size.snapshot_every.to_string(), size.keep.to_string());
    let options = Options::with_args(["--raft-snapshot-every", &every, "--raft-keep", &keep]);
    let cluster = Cluster::start(options).await?;
    let result = run(&cluster, size, seed).await;
    cluster.judged(result)
}

async fn run(cluster: &Cluster, size: CatchUp, seed: u64) -> anyhow::Result<()> {
    let mut random = random(seed, 5, 0);
    let image = Image::mixed(&mut random);
    for repository in 0..REPOSITORIES {
        cluster.client().push(&repository_of(repository), "first", &image, Way::Put).await?;
    }
    let leader = cluster.leader().await?;
    let behind = cluster.nodes().iter().find(|node| node.name != leader.name).context("a cluster has followers")?;
    nemesis::stop(&[behind]).await?;
    println!("{} is stopped; {size:?}", behind.name);

    let client = cluster.client();
    let writes = write_while_away(cluster, leader, &image, size).await?;
    let mut pushes = Vec::new();
    for number in 0..PUSHES {
        let image = Image::mixed(&mut random);
        pushes.push(client.push("missed/blobs", &format!("t{number}"), &image, Way::number(number)).await?);
    }

    let restarted = Instant::now();
    behind.restart()?;
    cluster.wait_ready(CAUGHT_UP_WITHIN).await?;
    let ready = restarted.elapsed();
    for asked in [behind, leader] {
        caught_up(cluster, asked, behind).await?;
    }
    println!("{} was ready after {ready:.2?} and had caught up after {:.2?}", behind.name, restarted.elapsed());
    serves_everything(&cluster.client_of(behind), &pushes, writes).await?;

    let installed = cluster.metric(behind, "flotilla_raft_snapshots_installed_total").await?;
    println!("snapshots installed by {}: {installed}", behind.name);
    for node in cluster.nodes() {
        let built = cluster.metric(node, "flotilla_raft_snapshots_built_total").await?;
        println!("snapshots built by {}: {built}", node.name);
    }
    ensure!(installed > 0.0, "{} caught up without a snapshot", behind.name);
    bounded_on_disk(cluster, writes)
}

fn repository_of(number: usize) -> String {
    format!("missed/tags-{}", number % REPOSITORIES)
}

/// Writes for a while, and at least as many times as wanted. After each so many entries a snapshot is due: if none is built,
/// the log grows for as long as the node is away. Says how many were written.
async fn write_while_away(cluster: &Cluster, leader: &Node, image: &Image, size: CatchUp) -> anyhow::Result<usize> {
    let client = cluster.client();
    let built = async || cluster.metric(leader, "flotilla_raft_snapshots_built_total").await;
    let (began, mut writes) = (Instant::now(), 0);
    while writes < size.writes || began.elapsed() < AWAY_FOR {
        let before = built().await?;
        write_tags(&client, image, writes..writes + size.snapshot_every).await?;
        writes += size.snapshot_every;
        until_ok(SNAPSHOT_WITHIN, "a snapshot is built", async || {
            let now = built().await?;
            ensure!(now > before, "{now} snapshots were built by {}, the last entries are in none", leader.name);
            Ok(())
        })
        .await?;
    }
    let took = began.elapsed();
    println!("{writes} writes in {took:.2?}: {:.0} a second", writes as f64 / took.as_secs_f64());
    Ok(writes)
}

async fn write_tags(client: &Client, image: &Image, numbers: Range<usize>) -> anyhow::Result<()> {
    let put = |number: usize| async move {
        let (repository, tag) = (repository_of(number), format!("w{number}"));
        let put = client.put_manifest(&repository, &tag, OCI_MANIFEST, image.manifest.clone()).await?;
        put.expect(&[201]).map(drop)
    };
    stream::iter(numbers).map(put).buffer_unordered(AT_ONCE).try_collect::<()>().await?;
    Ok(())
}

async fn caught_up(cluster: &Cluster, asked: &Node, node: &Node) -> anyhow::Result<()> {
    let what = format!("{} has caught up by the word of {}", node.name, asked.name);
    until_ok(CAUGHT_UP_WITHIN, &what, async || {
        let status = cluster.status(asked).await?;
        let member = status.member(&node.name).context("it is listed")?;
        let missing = member.blobs.as_ref().map(|blobs| blobs.missing);
        ensure!(member.lag == Some(0) && missing == Some(0), "{member:?}");
        Ok(())
    })
    .await
}

async fn serves_everything(client: &Client, pushes: &[Pushed], writes: usize) -> anyhow::Result<()> {
    for pushed in pushes {
        client.verify(pushed).await?;
    }
    let mut tags = 0;
    for repository in 0..REPOSITORIES {
        tags += count_tags(client, &repository_of(repository)).await?;
    }
    ensure!(tags == writes + REPOSITORIES, "{tags} tags, {} were written", writes + REPOSITORIES);
    for number in (0..writes).step_by(writes.div_ceil(100).max(1)) {
        let reply = client.manifest(&repository_of(number), &format!("w{number}")).await?;
        reply.expect(&[200])?;
    }
    Ok(())
}

async fn count_tags(client: &Client, repository: &str) -> anyhow::Result<usize> {
    let mut path = format!("/v2/{repository}/tags/list?n={TAGS_A_PAGE}");
    let mut count = 0;
    for _ in 0..MAX_PAGES {
        let page = client.send(crate::client::Method::GET, &path, &[], Bytes::new()).await?.expect(&[200])?;
        count += page.json()["tags"].as_array().map_or(0, Vec::len);
        let next = page.header("link").and_then(|link| link.split(['<', '>']).nth(1));
        match next {
            Some(next) => path = path_of(next).to_owned(),
            None => return Ok(count),
        }
    }
    anyhow::bail!("{repository} has more than {MAX_PAGES} pages of tags")
}

/// What is on disk beside blobs must be in proportion to the state, not to the time that has passed.
fn bounded_on_disk(cluster: &Cluster, writes: usize) -> anyhow::Result<()> {
    let limit_mib = 64 + writes as u64 / 64;
    for node in cluster.nodes() {
        let mib = node.disk_bytes("blobs")? / MIB;
        println!("log and state of {} on disk: {mib} MiB", node.name);
        ensure!(mib <= limit_mib, "{} keeps {mib} MiB of log and state, limit {limit_mib}", node.name);
    }
    Ok(())
}

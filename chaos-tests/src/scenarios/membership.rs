//! Who belongs to the cluster and who votes: nodes that join, grow into voters, and are removed.

use std::path::Path;

use crate::client::Way;
use crate::cluster::{Cluster, Node, Options};
use crate::image::{Image, random_bytes, sha256};
use crate::wait::until_ok;
use anyhow::{Context, Result, ensure};

use super::each_part;
use crate::fixture::{SOON, each, has_voters, node, push_small};

/// All of it, one after the other.
///
/// # Errors
/// The first that was not so.
pub async fn membership() -> Result<()> {
    each_part!(
        a_cluster_grows_to_five_voters_and_shrinks_again,
        c43_a_wrong_address_is_refused_and_a_ghost_can_be_removed,
        the_last_copy_of_a_blob_is_not_removed_with_its_node,
        c44_a_node_that_is_not_who_it_says_it_is_ends_with_the_reason,
    );
    Ok(())
}

/// A cluster grows to five voters, learners serving pulls meanwhile, and shrinks again.
///
/// # Errors
/// It was not so.
pub async fn a_cluster_grows_to_five_voters_and_shrinks_again() -> Result<()> {
    let mut cluster = Cluster::start(Options::default()).await?;
    let result = grown_and_shrunk(&mut cluster).await;
    cluster.judged(result)
}

async fn grown_and_shrunk(cluster: &mut Cluster) -> Result<()> {
    push_small(cluster, "grown/app", "v1").await?;
    cluster.add(&[])?;
    cluster.wait_ready(SOON).await?;
    let waiting = until_ok(SOON, "the fourth keeps up", async || {
        let status = cluster.status(cluster.node(0)).await?;
        let fourth = status.member("n4").context("a member")?.clone();
        ensure!(fourth.waits_for.as_deref().is_some_and(|why| why.contains("another learner")), "{fourth:?}");
        Ok(fourth)
    });
    ensure!(waiting.await?.role == "learner");
    // A learner serves what others serve.
    cluster.client_of(cluster.node(3)).manifest("grown/app", "v1").await?.expect(&[200])?;
    cluster.add(&[])?;
    cluster.wait_ready(SOON).await?;
    has_voters(cluster, 0, 5, 5).await?;
    for gone in [0, 1] {
        cluster.node(gone).kill();
    }
    until_ok(SOON, "three of five go on", async || Ok(push_to(cluster, 4, "v2").await?)).await?;
    for back in [0, 1] {
        cluster.node(back).restart()?;
    }
    cluster.wait_ready(SOON).await?;

    let (done, said) = node(cluster, 4, &["list"]).await?;
    ensure!(done && said.lines().count() == 6, "{said}");
    // Whatever leads can go, and an even number of voters does not stay.
    let leader = cluster.leader().await?.name.clone();
    let asked = usize::from(leader == "n1");
    let removed = async || {
        let (done, said) = node(cluster, asked, &["remove", &leader]).await?;
        ensure!(done || said.contains("no member"), "{said}");
        Ok(())
    };
    until_ok(SOON, "the leader is removed once all copies are there", removed).await?;
    has_voters(cluster, asked, 4, 3).await?;
    let (done, said) = node(cluster, asked, &["remove", &leader]).await?;
    ensure!(!done && said.contains("there is no member"), "{said}");
    for (number, client) in each(cluster).iter().enumerate().filter(|(number, _)| cluster.node(*number).name != leader)
    {
        client.manifest("grown/app", "v2").await?.expect(&[200]).with_context(|| format!("node {number}"))?;
    }
    Ok(())
}

async fn push_to(cluster: &Cluster, node: usize, tag: &str) -> Result<()> {
    let image = Image::random(&mut rand::rng(), &[2_000]);
    let way = Way::Put;
    each(cluster)[node].push("grown/app", tag, &image, way).await?;
    Ok(())
}

/// C43: a member with a wrong address raises no quorum: it is not taken in, and one that goes away before it votes stays
/// a learner and can be removed.
///
/// # Errors
/// It was not so.
pub async fn c43_a_wrong_address_is_refused_and_a_ghost_can_be_removed() -> Result<()> {
    let mut cluster = Cluster::start(Options::default()).await?;
    let result = wrong_address(&mut cluster).await;
    cluster.judged(result)
}

async fn wrong_address(cluster: &mut Cluster) -> Result<()> {
    // Nobody listens on the port of discard.
    let lost = cluster.add(&["--peer-advertise", "127.0.0.1:9"])?;
    until_ok(SOON, "the newcomer is told why", async || {
        let log = lost.log_tail();
        ensure!(log.contains("does not answer at its `peer_advertise` 127.0.0.1:9"), "{log}");
        Ok(())
    })
    .await?;
    lost.kill();
    ensure!(cluster.status(cluster.node(0)).await?.nodes.len() == 3, "it was taken in");
    cluster.add(&[])?;
    until_ok(SOON, "the fifth process is the fourth member", async || {
        let status = cluster.status(cluster.node(0)).await?;
        ensure!(status.member("n5").is_some(), "{:?}", status.nodes);
        Ok(())
    })
    .await?;
    cluster.node(4).kill();
    push_small(cluster, "ghost/app", "v1").await?;
    // Two of the three voters must stay.
    cluster.node(1).kill();
    let (done, said) = node(cluster, 0, &["remove", "n3"]).await?;
    ensure!(!done && said.contains("of the 2 voters that remain only 1 answer"), "{said}");
    cluster.node(1).restart()?;
    let removed = async || {
        let (done, said) = node(cluster, 2, &["remove", "n5"]).await?;
        ensure!(done, "{said}");
        Ok(())
    };
    until_ok(SOON, "the ghost is removed", removed).await?;
    has_voters(cluster, 0, 3, 3).await?;
    push_small(cluster, "ghost/app", "v2").await.map(drop)
}

/// With one copy of each blob no member is removed that may hold the last one, however fresh; force says what may go.
///
/// # Errors
/// It was not so.
pub async fn the_last_copy_of_a_blob_is_not_removed_with_its_node() -> Result<()> {
    let mut cluster = Cluster::start(Options::with_args(["--replicas", "1", "--min-copies", "1"])).await?;
    let result = last_copies(&mut cluster).await;
    cluster.judged(result)
}

async fn last_copies(cluster: &mut Cluster) -> Result<()> {
    let push = async |cluster: &Cluster, number: usize| -> Result<String> {
        let blob = random_bytes(&mut rand::rng(), 50_000);
        each(cluster)[number].push_blob("last/app", &blob, Way::Put).await?;
        Ok(sha256(&blob))
    };
    let mut pushed = Vec::new();
    for number in 0..12 {
        pushed.push(push(cluster, number % 3).await?);
    }
    let (done, said) = node(cluster, 0, &["remove", "n2"]).await?;
    ensure!(!done && said.contains("nowhere else"), "{said}");
    // One to which blobs move.
    cluster.add(&[])?;
    cluster.wait_ready(SOON).await?;
    until_ok(SOON, "blobs have moved to the fourth", async || {
        let counts = cluster.status(cluster.node(0)).await?.member("n4").context("a member")?.blobs.clone();
        ensure!(counts.as_ref().is_some_and(|blobs| blobs.held > 0 && blobs.missing == 0), "{counts:?}");
        Ok(())
    })
    .await?;
    let (done, said) = node(cluster, 0, &["remove", "n4"]).await?;
    ensure!(!done && said.contains("nowhere else"), "{said}");
    let (done, said) = node(cluster, 0, &["decommission", "n4"]).await?;
    ensure!(done, "{said}");
    for digest in &pushed {
        each(cluster)[0].pull_blob("last/app", digest).await?;
    }
    let lost = cluster.status(cluster.node(0)).await?.member("n3").and_then(|member| Some(member.blobs.as_ref()?.held));
    let (done, said) = node(cluster, 0, &["remove", "n3", "--force"]).await?;
    ensure!(done && said.contains("forced although: it holds"), "{said}");
    // What has gone with it is told of, and keeps no newcomer from its vote.
    cluster.add(&[])?;
    has_voters(cluster, 0, 3, 3).await?;
    until_ok(SOON, "what is nowhere is told of", async || {
        let status = cluster.status(cluster.node(0)).await?;
        let nowhere: u64 = status.nodes.iter().filter_map(|member| Some(member.blobs.as_ref()?.nowhere)).sum();
        ensure!(Some(nowhere) == lost, "{nowhere} are nowhere, {lost:?} were on n3 alone: {:?}", status.nodes);
        Ok(())
    })
    .await
}

/// C44: a data directory of another cluster, a copy of one that is in use, and that of a removed node: none of them takes
/// part, each ends with the reason, and the cluster does not notice.
///
/// # Errors
/// It was not so.
pub async fn c44_a_node_that_is_not_who_it_says_it_is_ends_with_the_reason() -> Result<()> {
    let mut cluster = Cluster::start(Options::default()).await?;
    let result = not_recognised(&mut cluster).await;
    cluster.judged(result)
}

async fn not_recognised(cluster: &mut Cluster) -> Result<()> {
    let other = Cluster::start(Options { nodes: 1, ..Options::default() }).await?;
    let id_of = async |cluster: &Cluster| {
        let document = each(cluster)[0].get("/api/v1/cluster").await?.expect(&[200])?.json();
        document["cluster_id"].as_str().map(str::to_owned).context("an id")
    };
    let (own_id, other_id) = (id_of(cluster).await?, id_of(&other).await?);
    other.node(0).stop().await?;
    let foreign = cluster.prepare(&[])?;
    copy(&other.node(0).data_dir, &foreign.data_dir)?;
    ends(foreign, &[&own_id, &other_id]).await?;

    // As it is on disk at one moment.
    cluster.node(1).pause()?;
    let original = cluster.node(1).data_dir.clone();
    let twin = cluster.prepare(&[])?;
    copy(&original, &twin.data_dir)?;
    cluster.node(1).resume()?;
    ends(cluster.node(4), &["already", "copy"]).await?;
    // The copy of a whole machine has its addresses as well, and listens at others.
    let address = cluster.node(1).peer_url.rsplit('/').next().context("an address")?.to_owned();
    let clone = cluster.prepare(&["--peer-advertise", &address])?;
    copy(&original, &clone.data_dir)?;
    ends(cluster.node(5), &["already", "copy"]).await?;

    cluster.node(2).kill();
    let removed = async || {
        let (done, said) = node(cluster, 0, &["remove", "n3"]).await?;
        ensure!(done, "{said}");
        Ok(())
    };
    until_ok(SOON, "the node that is away is removed", removed).await?;
    ends(cluster.node(2), &["is no member of cluster", "removed", "empty data directory"]).await?;
    has_voters(cluster, 1, 2, 2).await?;
    push_small(cluster, "who/app", "v1").await.map(drop)
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    let done = std::process::Command::new("cp").arg("-r").arg(from).arg(to).status()?;
    ensure!(done.success(), "cp {} {}: {done}", from.display(), to.display());
    Ok(())
}

async fn ends(node: &Node, reasons: &[&str]) -> Result<()> {
    node.restart()?;
    until_ok(SOON, "it ends", async || {
        ensure!(!node.alive(), "{} runs: {}", node.name, node.log_tail());
        Ok(())
    })
    .await?;
    let log = node.log_tail();
    let missing = reasons.iter().find(|reason| !log.contains(**reason));
    ensure!(missing.is_none(), "{missing:?} is missing: {log}");
    Ok(())
}

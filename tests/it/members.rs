//! Who belongs to the cluster and who votes: nodes that join, grow into voters, and are removed.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use chaos_tests::cluster::{Cluster, Options, Status};
use chaos_tests::wait::until_ok;

use crate::fixture::{SOON, each, flotilla, push_small};

/// A learner votes once it has kept up for ten seconds.
const GROWN: Duration = Duration::from_secs(60);

async fn node(cluster: &Cluster, asked: usize, arguments: &[&str]) -> Result<(bool, String)> {
    flotilla(&[&["node"], arguments, &["--url", &cluster.node(asked).url]].concat()).await
}

fn voters(status: &Status) -> usize {
    status.nodes.iter().filter(|member| member.role != "learner").count()
}

async fn has_voters(cluster: &Cluster, asked: usize, members: usize, wanted: usize) -> Result<()> {
    until_ok(GROWN, &format!("{wanted} of {members} members vote"), async || {
        let status = cluster.status(cluster.node(asked)).await?;
        ensure!(status.nodes.len() == members && voters(&status) == wanted, "{:?}", status.nodes);
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_grows_to_five_voters_and_shrinks_again() -> Result<()> {
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
    let image = chaos_tests::image::Image::random(&mut rand::rng(), &[2_000]);
    let way = chaos_tests::client::Way::Put;
    each(cluster)[node].push("grown/app", tag, &image, way).await?;
    Ok(())
}

/// C43: a member with a wrong address raises no quorum: it is not taken in, and one that goes away before it votes stays
/// a learner and can be removed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c43_a_wrong_address_is_refused_and_a_ghost_can_be_removed() -> Result<()> {
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

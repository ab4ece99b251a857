//! Where blobs are: spread over more nodes than copies, moved when nodes come and go, never with fewer copies meanwhile.

use crate::client::{Client, Method, Pushed, Way};
use crate::cluster::{Cluster, Node, Options, Status};
use crate::image::{Image, random_bytes, sha256};
use crate::wait::until_ok;
use anyhow::{Context, Result, ensure};
use futures::future::try_join_all;

use super::each_part;
use crate::fixture::{GROWN, SOON, each, node};

/// Enough that their spread over nodes is even: expected 0.6 of them on each of five, 0.02 the standard deviation.
const BLOBS: usize = 600;
/// More than what travels in the log.
const BLOB_BYTES: usize = 13 << 10;
const BLOBS_OF_AN_IMAGE: usize = 50;
/// All of it, one after the other.
///
/// # Errors
/// The first that was not so.
pub async fn placement() -> Result<()> {
    each_part!(
        five_nodes_share_the_blobs_two_may_fail_and_one_may_leave,
        repositories_have_as_many_copies_as_the_settings_say,
        a_node_that_lost_its_disk_takes_the_place_of_its_old_id,
    );
    Ok(())
}

/// Images of many blobs, each pushed to the next node.
async fn push_many(cluster: &Cluster, repository: &str, blobs: usize) -> Result<Vec<Pushed>> {
    let clients = each(cluster);
    let pushes = (0..blobs / BLOBS_OF_AN_IMAGE).map(|number| {
        let (client, image) =
            (&clients[number % clients.len()], Image::random(&mut rand::rng(), &[BLOB_BYTES; BLOBS_OF_AN_IMAGE]));
        async move { client.push(repository, &format!("v{number}"), &image, Way::Put).await }
    });
    Ok(try_join_all(pushes).await?)
}

async fn all_come_back(clients: &[Client], pushed: &[Pushed]) -> Result<()> {
    for client in clients {
        try_join_all(pushed.iter().map(|image| client.verify(image))).await?;
    }
    Ok(())
}

fn nodes(cluster: &Cluster) -> Vec<&Node> {
    cluster.nodes().iter().collect()
}

fn held(status: &Status) -> Vec<u64> {
    status.nodes.iter().filter_map(|member| member.blobs.as_ref()).map(|blobs| blobs.held).collect()
}

/// Waits until so many copies lie on these nodes and no others.
async fn copies(cluster: &Cluster, nodes: &[&Node], wanted: u64) -> Result<Status> {
    until_ok(GROWN, &format!("{wanted} copies, all where they belong"), async || {
        let status = cluster.settled(nodes, SOON).await?;
        ensure!(held(&status).iter().sum::<u64>() == wanted, "{:?}", held(&status));
        Ok(status)
    })
    .await
}

/// Five nodes with three copies hold at most 0.7 of all each; two die, pushes and pulls go on; one leaves.
///
/// # Errors
/// It was not so.
pub async fn five_nodes_share_the_blobs_two_may_fail_and_one_may_leave() -> Result<()> {
    let cluster = Cluster::start(Options { nodes: 5, ..Options::default() }).await?;
    let result = shared_by_five(&cluster).await;
    cluster.judged(result)
}

async fn shared_by_five(cluster: &Cluster) -> Result<()> {
    let pushed = push_many(cluster, "spread/app", BLOBS).await?;
    let status = copies(cluster, &nodes(cluster), 3 * BLOBS as u64).await?;
    let spread = held(&status);
    ensure!(spread.iter().all(|held| *held as f64 <= 0.7 * BLOBS as f64), "evenly: {spread:?}");
    ensure!(status.failures_tolerated == 2, "{status:?}");
    all_come_back(&each(cluster), &pushed).await?;

    for gone in [3, 4] {
        cluster.node(gone).kill();
    }
    let clients = &each(cluster)[..3];
    all_come_back(clients, &pushed).await?;
    let more = until_ok(SOON, "pushes go on without two of five", async || {
        let image = Image::random(&mut rand::rng(), &[BLOB_BYTES; 3]);
        Ok(clients[0].push("spread/app", "later", &image, Way::Put).await?)
    });
    let more = more.await?;
    for back in [3, 4] {
        cluster.node(back).restart()?;
    }
    cluster.wait_ready(SOON).await?;
    copies(cluster, &nodes(cluster), 3 * (BLOBS as u64 + 3)).await?;
    all_come_back(&each(cluster), &[more]).await?;

    // Copies and leadership first, then the member goes.
    let leader = cluster.leader().await?.name.clone();
    let asked = usize::from(leader == "n1");
    let (done, said) = node(cluster, asked, &["decommission", &leader]).await?;
    ensure!(done, "{said}");
    let remain: Vec<&Node> = cluster.nodes().iter().filter(|node| node.name != leader).collect();
    let gone = cluster.nodes().iter().find(|node| node.name == leader).context("the leader")?;
    until_ok(SOON, "who was removed ends with the reason", async || {
        ensure!(!gone.alive() && gone.log_tail().contains("removed"), "{}", gone.log_tail());
        Ok(())
    })
    .await?;
    copies(cluster, &remain, 3 * (BLOBS as u64 + 3)).await?;
    let clients: Vec<Client> = remain.iter().map(|node| cluster.client_of(node)).collect();
    all_come_back(&clients, &pushed).await
}

/// Repositories have as many copies as the settings say, before a push is acknowledged as well.
///
/// # Errors
/// It was not so.
pub async fn repositories_have_as_many_copies_as_the_settings_say() -> Result<()> {
    let cluster = Cluster::start(Options::default()).await?;
    let result = copies_by_rule(&cluster).await;
    cluster.judged(result)
}

async fn copies_by_rule(cluster: &Cluster) -> Result<()> {
    let client = &each(cluster)[1];
    let put = async |document: &'static str| {
        let headers = [("content-type", "application/json")];
        client.send(Method::PUT, "/api/v1/settings", &headers, document.into()).await?.expect(&[200, 204])?;
        Ok::<_, anyhow::Error>(())
    };
    put(r#"{"replicas":[{"repositories":"cache/**","replicas":1}]}"#).await?;
    let blob = random_bytes(&mut rand::rng(), BLOB_BYTES);
    client.push_blob("cache/one", &blob, Way::Put).await?;
    let copies = || {
        let digest = sha256(&blob);
        cluster.nodes().iter().filter(|node| node.blob_file(&digest).exists()).count()
    };
    let has = async |wanted: usize| {
        until_ok(GROWN, &format!("{wanted} copies"), async || {
            ensure!(copies() == wanted, "{} copies", copies());
            Ok(())
        })
        .await
    };
    has(1).await?;
    for client in each(cluster) {
        ensure!(client.pull_blob("cache/one", &sha256(&blob)).await? == BLOB_BYTES as u64);
    }
    // A repository without a rule wants three, which a mount would not make: the client is asked for the bytes.
    let mount = format!("/v2/kept/one/blobs/uploads/?mount={}&from=cache/one", sha256(&blob));
    client.send(Method::POST, &mount, &[], "".into()).await?.expect(&[202])?;
    let mount = format!("/v2/cache/two/blobs/uploads/?mount={}&from=cache/one", sha256(&blob));
    client.send(Method::POST, &mount, &[], "".into()).await?.expect(&[201])?;
    client.push_blob("kept/one", &blob, Way::Put).await?;
    has(3).await?;
    put(r#"{"replicas":[{"repositories":"**","replicas":2}]}"#).await?;
    has(2).await?;
    put("{}").await?;
    has(3).await
}

/// A node that lost its disk takes the place of its old id, by one command or by itself.
///
/// # Errors
/// It was not so.
pub async fn a_node_that_lost_its_disk_takes_the_place_of_its_old_id() -> Result<()> {
    let cluster = Cluster::start(Options::default()).await?;
    let result = disks_lost(&cluster).await;
    cluster.judged(result)
}

async fn disks_lost(cluster: &Cluster) -> Result<()> {
    let pushed = push_many(cluster, "lost/app", BLOBS_OF_AN_IMAGE).await?;
    copies(cluster, &nodes(cluster), 3 * BLOBS_OF_AN_IMAGE as u64).await?;
    let (done, said) = node(cluster, 0, &["replace", "n3"]).await?;
    ensure!(!done && said.contains("empty data directory"), "{said}");
    let old = comes_back_empty(cluster, 2).await?;
    let (done, said) = node(cluster, 0, &["replace", "n3"]).await?;
    ensure!(done, "{said}");
    is_whole_again(cluster, &old, &pushed).await?;

    let headers = [("content-type", "application/json")];
    let allowed = r#"{"replace_lost_nodes":true}"#;
    each(cluster)[0].send(Method::PUT, "/api/v1/settings", &headers, allowed.into()).await?.expect(&[200, 204])?;
    let old = comes_back_empty(cluster, 1).await?;
    is_whole_again(cluster, &old, &pushed).await
}

/// A node is killed, loses its disk and is started again; its old id.
async fn comes_back_empty(cluster: &Cluster, number: usize) -> Result<String> {
    let lost = cluster.node(number);
    let old = cluster.status(cluster.node(0)).await?.member(&lost.name).context("a member")?.id.clone();
    lost.kill();
    lost.wipe()?;
    lost.restart()?;
    until_ok(SOON, "it joins under a new id", async || {
        let status = cluster.status(cluster.node(0)).await?;
        let ids: Vec<_> =
            status.nodes.iter().filter(|member| member.name == lost.name).map(|member| &member.id).collect();
        ensure!(ids.iter().any(|id| **id != old), "{ids:?}");
        Ok(())
    })
    .await?;
    Ok(old)
}

async fn is_whole_again(cluster: &Cluster, old: &str, pushed: &[Pushed]) -> Result<()> {
    until_ok(GROWN, "three members vote again", async || {
        let status = cluster.status(cluster.node(0)).await?;
        let vote = status.nodes.iter().filter(|member| member.role != "learner").count();
        ensure!(status.nodes.len() == 3 && vote == 3, "{:?}", status.nodes);
        ensure!(status.nodes.iter().all(|member| member.id != old), "{old} is a member still");
        Ok(())
    })
    .await?;
    cluster.wait_ready(SOON).await?;
    copies(cluster, &nodes(cluster), 3 * BLOBS_OF_AN_IMAGE as u64).await?;
    all_come_back(&each(cluster), pushed).await
}

//! Nodes come and go under load: the cluster grows and shrinks, a disk is lost, a zone fails.

use std::sync::Arc;
use std::time::Duration;

use anyhow::ensure;

use super::{all, names};
use crate::checkers::{Outage, failed_pulls, lost_pushes, none_of};
use crate::cluster::{Cluster, Node, Options};
use crate::fixture::{has_voters, node};
use crate::history::History;
use crate::wait::{until, until_ok};
use crate::workload::{Pulls, Pushes, until_served};

const WORKERS: u64 = 3;
const MOVED_WITHIN: Duration = Duration::from_secs(120);
const SERVED_WITHIN: Duration = Duration::from_secs(60);
/// Pushes that lie there before the nodes change.
const BEFORE: usize = 100;

/// `flotilla node …` at one of the nodes; it must succeed.
async fn done(cluster: &Cluster, asked: usize, arguments: &[&str]) -> anyhow::Result<()> {
    let (done, said) = node(cluster, asked, arguments).await?;
    print!("{said}");
    ensure!(done, "{arguments:?}: {said}");
    Ok(())
}

async fn pushed(history: &History, count: usize) -> anyhow::Result<()> {
    until(SERVED_WITHIN, "pushes lie there", async || {
        (history.acknowledged(Duration::ZERO, history.now()).len() >= count).then_some(())
    })
    .await
}

/// Everything that was acknowledged, on each of the nodes; and no pull failed from a node that was there.
async fn verdict(cluster: &Cluster, history: &History, nodes: &[&Node], outages: &[Outage]) -> anyhow::Result<()> {
    let healed = history.now();
    let kept = history.acknowledged(Duration::ZERO, healed);
    let served = until_served(cluster, history, nodes, &kept, SERVED_WITHIN).await;
    let operations = history.snapshot();
    let names: Vec<String> = nodes.iter().map(|node| node.name.clone()).collect();
    none_of("acknowledged push lost", &lost_pushes(&operations, healed, &names))?;
    served?;
    none_of("failed pull from a node that was there", &failed_pulls(&operations, outages))?;
    println!("{} acknowledged pushes on {} nodes, no pull failed", kept.len(), nodes.len());
    Ok(())
}

/// From three to five nodes and back, under load.
pub async fn grow(seed: u64) -> anyhow::Result<()> {
    let mut cluster = Cluster::start(Options::default()).await?;
    let result = grown(&mut cluster, seed).await;
    cluster.judged(result)
}

async fn grown(cluster: &mut Cluster, seed: u64) -> anyhow::Result<()> {
    let history = Arc::new(History::default());
    let pushes = Pushes::start(cluster, &history, seed, "grow", WORKERS);
    let pulls = Pulls::start(cluster, &history, seed);
    pushed(&history, BEFORE).await?;
    for _ in 0..2 {
        cluster.add(&[])?;
    }
    cluster.wait_ready(SERVED_WITHIN).await?;
    has_voters(cluster, 0, 5, 5).await?;
    println!("five nodes vote after {:.1?}", history.now());
    let leaves = async |name: &str, history: &History| {
        let from = history.now();
        let asked = usize::from(name == "n1");
        done(cluster, asked, &["decommission", name]).await?;
        println!("{name} has left after {:.1?}", history.now() - from);
        anyhow::Ok(Outage { node: name.to_owned(), from, until: Duration::MAX })
    };
    let (first, second) = ("n5", "n4");
    let outages = [leaves(first, &history).await?, leaves(second, &history).await?];
    has_voters(cluster, 0, 3, 3).await?;
    println!("three nodes again after {:.1?}", history.now());
    println!("pushes that failed, by kind: {:?}", pushes.end().await?);
    pulls.end().await?;
    let remain: Vec<&Node> = cluster.nodes()[..3].iter().collect();
    cluster.settled(&remain, MOVED_WITHIN).await?;
    verdict(cluster, &history, &remain, &outages).await
}

/// A node loses its disk, and the one that comes back takes its place by one command.
pub async fn lost_disk(seed: u64) -> anyhow::Result<()> {
    let cluster = Cluster::start(Options::default()).await?;
    let result = replaced(&cluster, seed).await;
    cluster.judged(result)
}

async fn replaced(cluster: &Cluster, seed: u64) -> anyhow::Result<()> {
    let history = Arc::new(History::default());
    let pushes = Pushes::start(cluster, &history, seed, "disk", WORKERS);
    let pulls = Pulls::start(cluster, &history, seed);
    pushed(&history, BEFORE).await?;
    let (lost, from) = (cluster.node(2), history.now());
    lost.kill();
    lost.wipe()?;
    lost.restart()?;
    until_ok(SERVED_WITHIN, "it joins under a new id", async || {
        let status = cluster.status(cluster.node(0)).await?;
        ensure!(status.nodes.iter().filter(|member| member.name == lost.name).count() == 2, "{:?}", status.nodes);
        Ok(())
    })
    .await?;
    done(cluster, 0, &["replace", &lost.name]).await?;
    cluster.wait_ready(SERVED_WITHIN).await?;
    let ready = history.now();
    has_voters(cluster, 0, 3, 3).await?;
    println!("votes again {:.1?} after it was ready", history.now() - ready);
    println!("pushes that failed, by kind: {:?}", pushes.end().await?);
    pulls.end().await?;
    cluster.settled(&all(cluster), MOVED_WITHIN).await?;
    let outage = Outage { node: lost.name.clone(), from, until: ready };
    verdict(cluster, &history, &all(cluster), &[outage]).await
}

/// Six nodes in three zones, three copies: a zone is lost, and nothing with it.
pub async fn zones(seed: u64) -> anyhow::Result<()> {
    let zones = ["a", "a", "b", "b", "c", "c"].map(str::to_owned).to_vec();
    // Five of the six vote at most.
    let cluster = Cluster::start(Options { nodes: 6, zones, ..Options::default() }).await?;
    let result = zone_lost(&cluster, seed).await;
    cluster.judged(result)
}

async fn zone_lost(cluster: &Cluster, seed: u64) -> anyhow::Result<()> {
    let history = Arc::new(History::default());
    let pushes = Pushes::start(cluster, &history, seed, "zones", WORKERS);
    pushed(&history, BEFORE).await?;
    println!("pushes that failed, by kind: {:?}", pushes.end().await?);
    let status = cluster.settled(&all(cluster), MOVED_WITHIN).await?;
    let held: Vec<u64> =
        status.nodes.iter().filter_map(|member| member.blobs.as_ref()).map(|blobs| blobs.held).collect();
    println!("files held by {}: {held:?}", names(cluster).join(", "));
    for lost in [4, 5] {
        cluster.node(lost).kill();
    }
    let remain: Vec<&Node> = cluster.nodes()[..4].iter().collect();
    verdict(cluster, &history, &remain, &[]).await
}

//! Two of three nodes are gone: pulls go on and say so, pushes are refused at once, and it ends by itself.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

use crate::client::{Pushed, Reply, Way};
use crate::cluster::{Cluster, Node, Options};
use crate::image::{Image, OCI_MANIFEST};
use crate::nemesis::{self, Paused};
use crate::wait::{until, until_ok};
use crate::workload::random;

/// The promise for refusals.
const REFUSED_WITHIN: Duration = Duration::from_secs(2);
/// What the measurement itself may cost on a busy machine.
const SLACK: Duration = Duration::from_millis(200);
const BY_THEMSELVES_WITHIN: Duration = Duration::from_secs(20);

/// Stops two nodes, then (in a second round) lets two stand still.
pub async fn no_quorum(seed: u64) -> anyhow::Result<()> {
    let cluster = Cluster::start(Options::default()).await?;
    let result = run(&cluster, seed).await;
    cluster.judged(result)
}

async fn run(cluster: &Cluster, seed: u64) -> anyhow::Result<()> {
    let mut random = random(seed, 7, 0);
    let image = Image::mixed(&mut random);
    let pushed = cluster.client().push("quorum/app", "v1", &image, Way::Put).await?;
    let on_every_node = async || {
        for node in cluster.nodes() {
            cluster.client_of(node).verify(&pushed).await?;
        }
        Ok(())
    };
    until_ok(BY_THEMSELVES_WITHIN, "the image is on every node", on_every_node).await?;

    for alone in 0..cluster.nodes().len() {
        let alone = cluster.node(alone);
        let gone: Vec<&Node> = cluster.nodes().iter().filter(|node| node.name != alone.name).collect();
        nemesis::stop(&gone).await?;
        println!("only {} runs", alone.name);
        alone_it_reads_and_refuses(cluster, alone, &pushed, &image).await?;
        let began = Instant::now();
        gone[0].restart()?;
        pushes_work_again(cluster, &[alone, gone[0]], &Image::mixed(&mut random)).await?;
        println!("pushes work {:.2?} after {} came back", began.elapsed(), gone[0].name);
        gone[1].restart()?;
        cluster.wait_ready(BY_THEMSELVES_WITHIN).await?;
    }

    let alone = cluster.node(0);
    let paused = Paused::begin(&[cluster.node(1), cluster.node(2)])?;
    println!("only {} moves", alone.name);
    alone_it_reads_and_refuses(cluster, alone, &pushed, &image).await?;
    drop(paused);
    pushes_work_again(cluster, &[alone, cluster.node(1), cluster.node(2)], &Image::mixed(&mut random)).await
}

async fn alone_it_reads_and_refuses(
    cluster: &Cluster,
    alone: &Node,
    pushed: &Pushed,
    image: &Image,
) -> anyhow::Result<()> {
    let client = cluster.client_of(alone);
    let uploads = format!("/v2/{}/blobs/uploads/", pushed.repository);
    let opening = async || client.post(&uploads).await?.expect(&[202, 503]);
    let names = async || {
        let put = client.put_manifest(&pushed.repository, "v2", OCI_MANIFEST, image.manifest.clone()).await?;
        let deleted = client.delete(&format!("/v2/{}/manifests/{}", pushed.repository, pushed.tag)).await?;
        anyhow::Ok([put, deleted])
    };
    // From the very first moment no name changes. An upload may still be opened until the loss is noticed.
    for reply in names().await? {
        refused(reply)?;
    }
    let noticed = async || (opening().await.ok()?.status == 503).then_some(());
    until(REFUSED_WITHIN, "uploads are refused", noticed).await?;
    refused(opening().await?)?;
    for reply in names().await? {
        refused(reply)?;
    }
    let by_tag = client.manifest(&pushed.repository, &pushed.tag).await?.expect(&[200])?;
    let warning = by_tag.header("warning").with_context(|| format!("{}: no Warning", by_tag.request))?;
    println!("  {} → 200, Warning: {warning}", by_tag.request);
    ensure!(
        warning.starts_with("299 - \"") && warning.ends_with('"') && warning.len() <= 4_096,
        "the Warning is not of the form 299 - \"text\": {warning}"
    );
    client.manifest(&pushed.repository, &pushed.digest).await?.expect(&[200])?;
    client.verify(pushed).await?;
    let status = cluster.status(alone).await?;
    ensure!(status.verdict == "no_quorum", "{} says {}", alone.name, status.verdict);
    Ok(())
}

fn refused(reply: Reply) -> anyhow::Result<()> {
    println!("  {} → {} after {:.2?}", reply.request, reply.status, reply.took);
    let reply = reply.expect(&[503])?;
    ensure!(reply.took <= REFUSED_WITHIN + SLACK, "{} took {:?}", reply.request, reply.took);
    ensure!(reply.header("retry-after").is_some(), "{}: no Retry-After", reply.request);
    ensure!(!reply.codes().is_empty(), "{}: no OCI error: {}", reply.request, reply.text());
    Ok(())
}

async fn pushes_work_again(cluster: &Cluster, nodes: &[&Node], image: &Image) -> anyhow::Result<()> {
    for node in nodes {
        let client = cluster.client_of(node);
        let what = format!("a push to {} succeeds", node.name);
        until_ok(BY_THEMSELVES_WITHIN, &what, async || Ok(client.push("quorum/app", "again", image, Way::Put).await?))
            .await?;
    }
    Ok(())
}

//! A node whose disk is nearly full: it takes nothing new, and goes on with all else.

use anyhow::{Result, ensure};
use chaos_tests::client::{Client, Way};
use chaos_tests::cluster::{Cluster, Options};
use chaos_tests::image::Image;

use crate::fixture::{SOON, each, flotilla, is_error, push_small, tags_of};

/// More than any disk has free.
const NEVER_ENOUGH: [&str; 2] = ["--min-free", "4EiB"];
/// More than what travels in the log.
const LAYERS: [usize; 4] = [20 << 10; 4];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_with_a_full_disk_takes_nothing_and_serves_all_and_is_ready() -> Result<()> {
    let mut cluster = Cluster::start(Options::default()).await?;
    let result = one_is_full(&mut cluster).await;
    cluster.judged(result)
}

async fn one_is_full(cluster: &mut Cluster) -> Result<()> {
    cluster.add(&NEVER_ENOUGH)?;
    cluster.wait_ready(SOON).await?;
    let clients = each(cluster);
    let (full, others) = (&clients[3], Client::new(cluster.urls()[..3].to_vec()));
    // Copies of some belong on the full node: the others take them.
    let mut pushed = Vec::new();
    for number in 0..8 {
        let image = Image::random(&mut rand::rng(), &LAYERS);
        pushed.push(others.push("full/app", &format!("v{number}"), &image, Way::Put).await?);
    }
    refuses(full).await?;
    for image in &pushed {
        full.verify(image).await?;
    }
    for path in ["/startupz", "/healthz", "/readyz"] {
        full.get(path).await?.expect(&[200])?;
    }
    full.delete("/v2/full/app/manifests/v0").await?.expect(&[202])?;
    ensure!(!tags_of(full, "full/app").await?.contains(&"v0".to_owned()), "v0 is there");
    Ok(())
}

/// Uploads large and small, and manifests.
async fn refuses(full: &Client) -> Result<()> {
    let post = full.post("/v2/full/app/blobs/uploads/").await?;
    is_error(&post, &[503], &["UNAVAILABLE"])?;
    ensure!(post.text().contains("disk is nearly full"), "{}", post.text());
    let put = full.put_manifest("full/app", "v9", "application/vnd.oci.image.manifest.v1+json", "{}".into()).await?;
    is_error(&put, &[503], &["UNAVAILABLE"])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_whose_disks_are_full_is_pulled_from_and_cleaned_up_and_goes_on() -> Result<()> {
    let mut cluster = Cluster::start(Options::default()).await?;
    let result = all_are_full(&mut cluster).await;
    cluster.judged(result)
}

async fn all_are_full(cluster: &mut Cluster) -> Result<()> {
    let (_, kept) = push_small(cluster, "full/app", "kept").await?;
    push_small(cluster, "full/app", "gone").await?;
    restart(cluster, |arguments| arguments.extend(NEVER_ENOUGH.map(str::to_owned))).await?;
    for client in each(cluster) {
        client.get("/readyz").await?.expect(&[200])?;
        client.verify(&kept).await?;
        refuses(&client).await?;
    }
    each(cluster)[1].delete("/v2/full/app/manifests/gone").await?.expect(&[202])?;
    let (ran, said) = flotilla(&["gc", "run", "--url", &cluster.node(2).url]).await?;
    ensure!(ran, "{said}");
    restart(cluster, |arguments| arguments.truncate(arguments.len() - NEVER_ENOUGH.len())).await?;
    push_small(cluster, "full/app", "more").await?;
    ensure!(tags_of(&each(cluster)[0], "full/app").await? == ["kept", "more"], "the tags");
    Ok(())
}

async fn restart(cluster: &mut Cluster, change: impl Fn(&mut Vec<String>)) -> Result<()> {
    for number in 0..cluster.nodes().len() {
        let node = cluster.node_mut(number);
        node.stop().await?;
        change(node.arguments_mut());
        node.restart()?;
    }
    cluster.wait_ready(SOON).await
}

//! What scenarios and tests need besides a cluster: the program as operators run it, small pushes, who votes.

use std::time::Duration;

use anyhow::{Result, ensure};

use crate::client::{Client, Pushed, Way};
use crate::cluster::{Cluster, Options, binary};
use crate::image::Image;
use crate::wait::until_ok;

/// How long anything may take that is not bound to a promise of its own.
pub const SOON: Duration = Duration::from_secs(20);

/// How long it may take until a learner votes: it must have kept up for ten seconds.
pub const GROWN: Duration = Duration::from_secs(120);

/// Runs a check on a cluster of its own, whose nodes it may stop.
///
/// # Errors
/// The cluster does not start, or what the check says.
pub async fn on_own_cluster(options: Options, check: impl AsyncFnOnce(&mut Cluster) -> Result<()>) -> Result<()> {
    let mut cluster = Cluster::start(options).await?;
    let result = check(&mut cluster).await;
    cluster.judged(result)
}

/// Runs the program: whether it succeeded, and what it said.
///
/// # Errors
/// It could not be run.
pub async fn flotilla(arguments: &[&str]) -> Result<(bool, String)> {
    let output = tokio::process::Command::new(binary()?).args(arguments).output().await?;
    let said = [output.stdout, output.stderr].concat();
    Ok((output.status.success(), String::from_utf8_lossy(&said).into_owned()))
}

/// A client of peer ports, with this certificate and key (PEM). It believes every node.
///
/// # Errors
/// The certificate or key is none.
pub fn peer_client(pem: Option<&str>) -> Result<reqwest::Client> {
    let builder = reqwest::Client::builder().no_proxy().tls_danger_accept_invalid_certs(true);
    let builder = match pem {
        Some(pem) => builder.identity(reqwest::Identity::from_pem(pem.as_bytes())?),
        None => builder,
    };
    Ok(builder.timeout(Duration::from_secs(10)).build()?)
}

/// A client of each node.
pub fn each(cluster: &Cluster) -> Vec<Client> {
    cluster.nodes().iter().map(|node| cluster.client_of(node)).collect()
}

/// A small image, pushed to the first node.
///
/// # Errors
/// The push failed.
pub async fn push_small(cluster: &Cluster, repository: &str, tag: &str) -> Result<(Image, Pushed)> {
    let image = Image::random(&mut rand::rng(), &[2_000]);
    let pushed = each(cluster)[0].push(repository, tag, &image, Way::Put).await?;
    Ok((image, pushed))
}

/// `flotilla node …` at one of the nodes: whether it succeeded, and what it said.
///
/// # Errors
/// It could not be run.
pub async fn node(cluster: &Cluster, asked: usize, arguments: &[&str]) -> Result<(bool, String)> {
    flotilla(&[&["node"], arguments, &["--url", &cluster.node(asked).url]].concat()).await
}

/// Waits until so many of so many members vote.
///
/// # Errors
/// They do not, for too long.
pub async fn has_voters(cluster: &Cluster, asked: usize, members: usize, wanted: usize) -> Result<()> {
    until_ok(GROWN, &format!("{wanted} of {members} members vote"), async || {
        let status = cluster.status(cluster.node(asked)).await?;
        let votes = status.nodes.iter().filter(|member| member.role != "learner").count();
        ensure!(status.nodes.len() == members && votes == wanted, "{:?}", status.nodes);
        Ok(())
    })
    .await
}

//! What an orchestrator asks: `/startupz`, `/healthz`, `/readyz`, by which it starts, ends and spares nodes.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use chaos_tests::client::Client;
use chaos_tests::cluster::{Cluster, Node, Options};
use chaos_tests::process::{self, Signal};
use chaos_tests::wait::until_ok;

use crate::fixture::{SOON, each, on_own_cluster, push_small};

/// How long a node waits for a majority before it serves what it has.
const ALONE_AFTER: Duration = Duration::from_secs(30);
/// A probe is answered within a second, whatever else hangs.
const ANSWERED_WITHIN: Duration = Duration::from_secs(1);

async fn probe(client: &Client, path: &str, status: u16) -> Result<String> {
    let reply = client.get(path).await?.expect(&[status])?;
    ensure!(reply.took < ANSWERED_WITHIN, "{path} took {:?}", reply.took);
    Ok(reply.text())
}

async fn has_no_quorum(cluster: &Cluster, node: &Node) -> Result<()> {
    until_ok(SOON, "the loss is noticed", async || {
        let status = cluster.status(node).await?;
        ensure!(status.verdict == "no_quorum", "{}", status.verdict);
        Ok(())
    })
    .await
}

#[test]
fn a_node_is_ready_once_it_caught_up_and_stays_so_without_a_quorum() -> Result<()> {
    on_own_cluster(async |cluster| {
        push_small(cluster, "probes/app", "v1").await?;
        let (alone, clients) = (cluster.node(0), each(cluster));
        let client = &clients[0];
        // It knows that this was agreed on, which the others could not tell it any more.
        client.manifest("probes/app", "v1").await?.expect(&[200])?;
        for gone in &cluster.nodes()[1..] {
            gone.kill();
        }
        has_no_quorum(cluster, alone).await?;
        for path in ["/startupz", "/healthz", "/readyz"] {
            probe(client, path, 200).await?;
        }
        alone.stop().await?;
        alone.restart()?;
        let began = Instant::now();
        until_ok(SOON, "it has started", async || probe(client, "/startupz", 200).await).await?;
        // It does not know what was changed while it was away, and others may: it is alive, and waits.
        probe(client, "/healthz", 200).await?;
        let reason = probe(client, "/readyz", 503).await?;
        ensure!(reason.contains("no majority of the nodes answers"), "{reason}");
        client.manifest("probes/app", "v1").await?.expect(&[503])?;
        let waited = ALONE_AFTER + SOON;
        until_ok(waited, "it serves what it has", async || probe(client, "/readyz", 200).await).await?;
        ensure!(began.elapsed() >= ALONE_AFTER, "it was ready after {:?}", began.elapsed());
        let stale = client.manifest("probes/app", "v1").await?.expect(&[200])?;
        ensure!(stale.header("warning").is_some(), "it does not say that it may be old");
        // A node that finds the others is ready as soon as it has caught up.
        cluster.node(1).restart()?;
        let soon = Duration::from_secs(10);
        until_ok(soon, "two are a majority", async || probe(&clients[1], "/readyz", 200).await).await?;
        Ok(())
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_empty_node_that_waits_for_its_cluster_is_started_and_alive_and_not_ready() -> Result<()> {
    let mut cluster = Cluster::start(Options { nodes: 1, ..Options::default() }).await?;
    let result = empty_node(&mut cluster).await;
    cluster.judged(result)
}

async fn empty_node(cluster: &mut Cluster) -> Result<()> {
    // Nobody listens on the port of discard, so it is not taken in.
    cluster.add(&["--peer-advertise", "127.0.0.1:9"])?;
    let clients = each(cluster);
    let client = &clients[1];
    until_ok(SOON, "it has started", async || probe(client, "/startupz", 200).await).await?;
    probe(client, "/healthz", 200).await?;
    let reason = probe(client, "/readyz", 503).await?;
    ensure!(reason.contains("waiting for peers"), "{reason}");
    Ok(())
}

/// strace, which makes one process's syncs take long, as a disk does that hangs.
struct HungDisk(Child);

impl HungDisk {
    fn of(node: &Node, seconds: u64) -> Result<Option<Self>> {
        let Some(pid) = node.pid() else { bail!("{} does not run", node.name) };
        let inject = format!("inject=fdatasync,fsync:delay_enter={}", seconds * 1_000_000);
        let mut command = Command::new("strace");
        command.args(["-f", "-qq", "-p", &pid.to_string(), "-e", "trace=fdatasync,fsync", "-e", &inject]);
        command.args(["-o", "/dev/null"]).stdin(Stdio::null());
        match process::spawn(command) {
            Ok(child) => Ok(Some(Self(child))),
            Err(error) => {
                ensure!(std::env::var_os("CI").is_none(), "in CI nothing is skipped: strace: {error}");
                println!("skipped: strace: {error}");
                Ok(None)
            }
        }
    }
}

impl Drop for HungDisk {
    fn drop(&mut self) {
        // It lets the process go where it stands.
        let _ = process::send(&mut self.0, Signal::Terminate);
        let _ = self.0.wait();
    }
}

#[test]
fn a_disk_that_hangs_fails_the_liveness_probe_of_its_node_alone() -> Result<()> {
    on_own_cluster(async |cluster| {
        let leader = cluster.leader().await?.name.clone();
        let ill = cluster.nodes().iter().position(|node| node.name != leader).unwrap_or_default();
        let Some(disk) = HungDisk::of(cluster.node(ill), 60)? else { return Ok(()) };
        let (clients, asked) = (each(cluster), (ill + 1) % 3);
        let push = async |tag: &str| {
            let image = chaos_tests::image::Image::random(&mut rand::rng(), &[2_000]);
            clients[asked].push("probes/hung", tag, &image, chaos_tests::client::Way::Put).await
        };
        let fails = async || {
            // Something to write, once strace is there.
            push("v1").await?;
            probe(&clients[ill], "/healthz", 503).await
        };
        let reason = until_ok(SOON * 2, "the probe fails", fails).await?;
        ensure!(reason.contains("storage hangs"), "{reason}");
        for (number, client) in clients.iter().enumerate().filter(|(number, _)| *number != ill) {
            probe(client, "/healthz", 200).await?;
            ensure!(probe(client, "/readyz", 200).await? == "ready\n", "node {number}");
        }
        push("v2").await?;
        drop(disk);
        until_ok(SOON, "it goes on", async || probe(&clients[ill], "/healthz", 200).await).await?;
        probe(&clients[ill], "/readyz", 200).await.map(drop)
    })
}

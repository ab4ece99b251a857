//! What operators ask: health, readiness, the state of the cluster, metrics.

use anyhow::{Context, Result, ensure};
use chaos_tests::wait::until_ok;

use crate::fixture::{SOON, each, on_cluster, on_own_cluster, peer_client, push_small};

#[test]
fn a_running_node_is_healthy_and_ready() -> Result<()> {
    on_cluster(async |cluster| {
        for client in each(cluster) {
            for path in ["/healthz", "/readyz"] {
                client.get(path).await?.expect(&[200])?;
            }
        }
        Ok(())
    })
}

#[test]
fn every_node_describes_the_same_healthy_cluster() -> Result<()> {
    on_cluster(async |cluster| {
        push_small(cluster, "status/app", "v1").await?;
        let mut leaders = Vec::new();
        for client in each(cluster) {
            let document = until_ok(SOON, "nobody is behind", async || {
                let document = client.get("/api/v1/cluster").await?.expect(&[200])?.json();
                let nodes = document["nodes"].as_array().context("nodes")?.clone();
                ensure!(nodes.iter().all(|node| node["lag"] == 0 && node["blobs"]["missing"] == 0), "{document}");
                Ok(document)
            })
            .await?;
            ensure!(document["verdict"] == "healthy", "{document}");
            ensure!(document["failures_tolerated"] == 1, "{document}");
            ensure!(document["cluster_id"].as_str().is_some_and(|id| !id.is_empty()), "{document}");
            ensure!(document["term"].as_u64().is_some_and(|term| term > 0), "{document}");
            ensure!(document["commit_index"].as_u64().is_some_and(|index| index > 0), "{document}");
            let nodes = document["nodes"].as_array().context("nodes")?;
            ensure!(nodes.len() == 3, "{document}");
            ensure!(nodes.iter().filter(|node| node["role"] == "leader").count() == 1, "{document}");
            for (node, known) in cluster
                .nodes()
                .iter()
                .map(|known| (nodes.iter().find(|node| node["name"] == known.name.as_str()), known))
            {
                let node = node.with_context(|| format!("{} is not listed: {document}", known.name))?;
                ensure!(node["reachable"] == true, "{node}");
                ensure!(node["url"].as_str().is_some_and(|url| url.contains("127.0.0.1")), "{node}");
                ensure!(node["version"].as_str().is_some_and(|version| !version.is_empty()), "{node}");
                ensure!(node["applied_index"].as_u64().is_some_and(|index| index > 0), "{node}");
                ensure!(node["blobs"]["held"].is_u64(), "{node}");
            }
            leaders.push((document["cluster_id"].clone(), document["leader"]["name"].clone()));
        }
        ensure!(leaders.iter().all(|leader| *leader == leaders[0]), "the nodes differ: {leaders:?}");
        Ok(())
    })
}

#[test]
fn metrics_are_prometheus_text_with_the_snapshot_counters() -> Result<()> {
    on_cluster(async |cluster| {
        for client in each(cluster) {
            let reply = client.get("/metrics").await?.expect(&[200])?;
            for name in ["flotilla_raft_snapshots_installed_total", "flotilla_raft_snapshots_built_total"] {
                ensure!(reply.text().lines().any(|line| line.starts_with(name)), "{}: no {name}", reply.request);
            }
        }
        Ok(())
    })
}

#[test]
fn a_cluster_without_one_of_its_nodes_is_degraded_and_heals() -> Result<()> {
    on_own_cluster(async |cluster| {
        let (gone, asked) = (cluster.node(2), cluster.node(0));
        gone.kill();
        until_ok(SOON, "the loss is noticed", async || {
            let status = cluster.status(asked).await?;
            ensure!(status.verdict == "degraded" && status.failures_tolerated == 0, "{status:?}");
            let member = status.member(&gone.name).context("it is still a member")?;
            ensure!(!member.reachable, "{member:?}");
            Ok(())
        })
        .await?;
        push_small(cluster, "degraded/app", "v1").await?;
        gone.restart()?;
        cluster.wait_ready(SOON).await?;
        until_ok(SOON, "the return is noticed", async || {
            let status = cluster.status(asked).await?;
            ensure!(status.verdict == "healthy", "{status:?}");
            Ok(())
        })
        .await?;
        cluster.client_of(gone).manifest("degraded/app", "v1").await?.expect(&[200])?;
        Ok(())
    })
}

#[test]
fn a_message_for_another_node_is_refused() -> Result<()> {
    on_cluster(async |cluster| {
        let node = &cluster.nodes()[0];
        let http = peer_client(Some(&std::fs::read_to_string(node.data_dir.join("tls/node.pem"))?))?;
        let ping = http.post(format!("{}/peer/v1/raft/ping", node.peer_url)).header("flotilla-to", "0000000000ff");
        ensure!(
            ping.send().await?.status() == 421,
            "an address may have a new owner, who must not answer for the old one"
        );
        Ok(())
    })
}

//! What nothing uses goes, from every node; what something uses stays.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use chaos_tests::client::{Client, Method, Way};
use chaos_tests::cluster::{Cluster, Node, binary};
use chaos_tests::image::{Image, OCI_CONFIG, OCI_MANIFEST, descriptor, random_bytes, sha256};
use chaos_tests::wait;
use serde_json::{Value, json};

use crate::fixture::{SOON, blob_everywhere, blob_nowhere, each, is_error, on_own_cluster, want};

/// Large enough to be a file.
const FILE: usize = 20_000;

async fn settings(cluster: &Cluster, grace_seconds: u64, history_seconds: u64) -> Result<()> {
    let document = json!({"garbage_grace_seconds": grace_seconds, "history_seconds": history_seconds}).to_string();
    want(&each(cluster)[0], Method::PUT, "/api/v1/settings", &[], document, &[204]).await?;
    Ok(())
}

fn has_file(node: &Node, digest: &str) -> bool {
    let hex = digest.strip_prefix("sha256:").unwrap_or(digest);
    node.data_dir.join("blobs/sha256").join(&hex[..2]).join(hex).exists()
}

/// Collects until the digest's file is on none of the nodes.
async fn collected(client: &Client, nodes: &[&Node], digest: &str) -> Result<()> {
    wait::until_ok(SOON, "the file is gone from every node", async || {
        client.post("/api/v1/gc/run").await?.expect(&[200])?;
        let holder = nodes.iter().find(|node| has_file(node, digest));
        ensure!(holder.is_none(), "{} still has {digest}", holder.map_or("", |node| &node.name));
        Ok(())
    })
    .await
}

async fn flotilla(arguments: &[&str]) -> Result<String> {
    let output = tokio::process::Command::new(binary()?).args(arguments).output().await?;
    ensure!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

#[test]
fn what_nothing_names_goes_from_every_node_and_the_rest_stays() -> Result<()> {
    on_own_cluster(async |cluster| {
        let (repository, clients) = ("gc/app", each(cluster));
        let image = Image::mixed(&mut rand::rng());
        clients[0].push(repository, "v1", &image, Way::Put).await?;
        // Pushed by digest alone, and without a tag: a signature.
        let signature = json!({
            "schemaVersion": 2, "mediaType": OCI_MANIFEST, "artifactType": "application/example.signature",
            "config": descriptor(OCI_CONFIG, &image.blobs[0]), "layers": [],
            "subject": {"mediaType": OCI_MANIFEST, "digest": image.digest, "size": image.manifest.len()},
        });
        let signature = Bytes::from(signature.to_string());
        let signed = sha256(&signature);
        clients[1].put_manifest(repository, &signed, OCI_MANIFEST, signature.clone()).await?.expect(&[201])?;
        let stray = [random_bytes(&mut rand::rng(), FILE), random_bytes(&mut rand::rng(), 100)];
        for blob in &stray {
            clients[2].push_blob(repository, blob, Way::Patch).await?;
            blob_everywhere(cluster, repository, &sha256(blob), blob.len()).await?;
        }

        let url = &cluster.node(1).url;
        let digest = sha256(&stray[0]);
        let plan = flotilla(&["gc", "plan", "--url", url]).await?;
        ensure!(plan.contains(&digest) && !plan.contains(&sha256(&image.blobs[2])), "{plan}");
        let why = flotilla(&["gc", "explain", &digest, "--url", url]).await?;
        ensure!(why.contains("leaves gc/app at") && why.contains("no manifest names it"), "{why}");
        let why = flotilla(&["gc", "explain", &sha256(&image.blobs[2]), "--url", url]).await?;
        ensure!(why.contains("stays: a blob of gc/app") && why.contains(&image.digest), "{why}");

        // Short only now: before, nothing may go under the hands of a slow test.
        settings(cluster, 1, 3600).await?;
        collected(&clients[0], &cluster.nodes().iter().collect::<Vec<_>>(), &digest).await?;
        for blob in &stray {
            let explained = format!("/api/v1/gc/blobs/{}", sha256(blob));
            // Not by a HEAD, which would begin its time anew.
            wait::until_ok(SOON, "nothing is known of it", async || {
                clients[0].post("/api/v1/gc/run").await?.expect(&[200])?;
                Ok(clients[0].get(&explained).await?.expect(&[404])?)
            })
            .await?;
            blob_nowhere(cluster, repository, &sha256(blob)).await?;
        }
        let ran = flotilla(&["gc", "run", "--json", "--url", url]).await?;
        ensure!(serde_json::from_str::<Value>(&ran)?["links"] == 0, "{ran}");
        ensure!(flotilla(&["gc", "plan", "--url", url]).await?.trim() == "nothing");
        is_error(&clients[0].get(&format!("/api/v1/gc/blobs/{digest}")).await?, &[404], &["BLOB_UNKNOWN"])?;
        for client in &clients {
            for blob in &image.blobs {
                ensure!(client.pull_blob(repository, &sha256(blob)).await? == blob.len() as u64);
            }
            client.manifest(repository, "v1").await?.expect(&[200])?;
            ensure!(client.manifest(repository, &signed).await?.expect(&[200])?.body == signature);
        }
        // The same bytes come again, as if they never had been here.
        settings(cluster, 3600, 3600).await?;
        clients[1].push_blob(repository, &stray[0], Way::Put).await?;
        blob_everywhere(cluster, repository, &digest, FILE).await
    })
}

#[test]
fn what_a_document_of_an_unknown_type_mentions_stays() -> Result<()> {
    on_own_cluster(async |cluster| {
        let (repository, clients) = ("gc/unknown", each(cluster));
        let blobs: Vec<_> = (0..3).map(|_| random_bytes(&mut rand::rng(), 100)).collect();
        for blob in &blobs {
            clients[0].push_blob(repository, blob, Way::Put).await?;
        }
        let (artifact, odd) = ("application/vnd.oci.artifact.manifest.v1+json", "application/vnd.example.odd");
        let document = json!({"mediaType": artifact, "blobs": [descriptor("a/b", &blobs[0])]}).to_string();
        clients[1].put_manifest(repository, "artifact", artifact, document.into()).await?.expect(&[201])?;
        let document = Bytes::from(json!({"deep": [{"in": {"it": sha256(&blobs[1])}}]}).to_string());
        let digest = sha256(&document);
        clients[2].put_manifest(repository, &digest, odd, document.clone()).await?.expect(&[201])?;
        let refused = clients[0].put_manifest(repository, "image", OCI_MANIFEST, document).await?;
        is_error(&refused, &[400], &["MANIFEST_INVALID"])?;

        settings(cluster, 1, 1).await?;
        let path = |blob: &Bytes| format!("/v2/{repository}/blobs/{}", sha256(blob));
        wait::until_ok(SOON, "the blob that nothing mentions is gone", async || {
            clients[0].post("/api/v1/gc/run").await?.expect(&[200])?;
            clients[0].get(&path(&blobs[2])).await?.expect(&[404])?;
            Ok(())
        })
        .await?;
        for (client, blob) in clients.iter().zip(&blobs[..2]) {
            client.get(&path(blob)).await?.expect(&[200])?;
        }
        Ok(())
    })
}

#[test]
fn a_head_begins_the_time_of_an_unused_blob_anew() -> Result<()> {
    on_own_cluster(async |cluster| {
        let (repository, clients) = ("gc/touched", each(cluster));
        settings(cluster, 8, 3600).await?;
        let blob = random_bytes(&mut rand::rng(), 100);
        let path = format!("/v2/{repository}/blobs/{}", sha256(&blob));
        clients[0].push_blob(repository, &blob, Way::Put).await?;
        let planned = async || -> Result<String> {
            let plan = clients[0].get("/api/v1/gc/plan").await?.expect(&[200])?.json();
            Ok(plan["candidates"][0]["unused_since"].as_str().context("a candidate")?.to_owned())
        };
        let first = planned().await?;
        // Young blobs cost no entry of the log.
        clients[1].head(&path).await?.expect(&[200])?;
        ensure!(planned().await? == first);
        wait::until_ok(SOON, "a HEAD touches it", async || {
            clients[2].head(&path).await?.expect(&[200])?;
            ensure!(planned().await? != first, "unused since {first}");
            Ok(())
        })
        .await
    })
}

#[test]
fn a_deleted_manifest_stays_as_long_as_the_history_of_its_tag() -> Result<()> {
    on_own_cluster(async |cluster| {
        let (repository, clients) = ("gc/history", each(cluster));
        settings(cluster, 1, 3600).await?;
        let image = Image::random(&mut rand::rng(), &[FILE]);
        clients[0].push(repository, "v1", &image, Way::Put).await?;
        let then = clients[0].manifest(repository, "v1").await?.expect(&[200])?;
        let then = then.header("flotilla-revision").context("a revision")?.to_owned();
        clients[1].delete(&format!("/v2/{repository}/manifests/{}", image.digest)).await?.expect(&[202])?;
        clients[0].post("/api/v1/gc/run").await?.expect(&[200])?;
        let layer = sha256(&image.blobs[1]);
        for client in &clients {
            client.manifest(repository, "v1").await?.expect(&[404])?;
            let past = client.manifest(repository, &format!("v1?revision={then}")).await?.expect(&[200])?;
            ensure!(past.body == image.manifest, "{}: other bytes", past.request);
            client.pull_blob(repository, &layer).await?;
        }
        let why = flotilla(&["gc", "explain", &image.digest, "--url", &cluster.node(2).url]).await?;
        ensure!(why.contains("that the history of its tags names"), "{why}");
        // Once history is forgotten, nothing is left.
        settings(cluster, 1, 1).await?;
        collected(&clients[2], &cluster.nodes().iter().collect::<Vec<_>>(), &layer).await?;
        blob_nowhere(cluster, repository, &layer).await
    })
}

#[test]
fn a_node_that_was_away_gives_its_space_back_when_it_returns() -> Result<()> {
    on_own_cluster(async |cluster| {
        let (repository, clients) = ("gc/away", each(cluster));
        let blob = random_bytes(&mut rand::rng(), FILE);
        let digest = sha256(&blob);
        clients[0].push_blob(repository, &blob, Way::Put).await?;
        let away = cluster.node(2);
        wait::until(SOON, "every node has it", async || {
            cluster.nodes().iter().all(|node| has_file(node, &digest)).then_some(())
        })
        .await?;
        away.stop().await?;
        settings(cluster, 1, 3600).await?;
        collected(&clients[0], &[cluster.node(0), cluster.node(1)], &digest).await?;
        ensure!(has_file(away, &digest), "a node that is not running removes nothing");
        away.restart()?;
        cluster.wait_ready(Duration::from_secs(30)).await?;
        wait::until(Duration::from_secs(30), "the file is gone from the node that was away", async || {
            (!has_file(away, &digest)).then_some(())
        })
        .await
    })
}

//! Which node a client reaches never matters.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use chaos_tests::balancer::Balancer;
use chaos_tests::client::{Client, Way, with_query};
use chaos_tests::image::{Image, OCI_MANIFEST, random_bytes, sha256};
use chaos_tests::raw::Connection;
use chaos_tests::wait::until_ok;
use rand::Rng;
use rand::SeedableRng;
use rand::rngs::StdRng;
use tokio::task::JoinSet;

use crate::fixture::{
    SOON, blob_everywhere, each, files_beside_metadata, has, is_error, on_cluster, on_own_cluster, progress,
};

#[test]
fn c34_every_request_of_an_upload_meets_another_node() -> Result<()> {
    on_cluster(async |cluster| {
        let clients = each(cluster);
        for first in 0..3 {
            let at = |step: usize| &clients[(first + step) % 3];
            let repository = format!("c34/app-{first}");
            for size_bytes in [100, 50_000] {
                let image = Image::random(&mut rand::rng(), &[size_bytes]);
                let layer = &image.blobs[1];
                let half = size_bytes / 2;
                let location = at(0).open_upload(&repository).await?;
                let one = at(1).patch(&location, None, layer.slice(..half)).await?.expect(&[202])?;
                has(&one, "range", &format!("0-{}", half - 1))?;
                ensure!(
                    progress(at(2), &one.location()?).await?.as_deref() == Some(format!("0-{}", half - 1).as_str())
                );
                let range = format!("{half}-{}", size_bytes - 1);
                let two = at(2).patch(&one.location()?, Some(&range), layer.slice(half..)).await?.expect(&[202])?;
                has(&two, "range", &format!("0-{}", size_bytes - 1))?;
                at(0).close_upload(&two.location()?, &sha256(layer), Bytes::new()).await?.expect(&[201])?;
                at(1).head(&format!("/v2/{repository}/blobs/{}", sha256(layer))).await?.expect(&[200])?;
                at(1).push_blob(&repository, &image.blobs[0], Way::Put).await?;
                at(2).put_manifest(&repository, "v1", OCI_MANIFEST, image.manifest.clone()).await?.expect(&[201])?;
                for client in &clients {
                    let reply = client.manifest(&repository, "v1").await?.expect(&[200])?;
                    ensure!(reply.body == image.manifest, "{}", reply.request);
                }
                blob_everywhere(cluster, &repository, &sha256(layer), size_bytes).await?;
            }
        }
        Ok(())
    })
}

#[test]
fn c34_the_upload_of_a_stopped_node_is_unknown_at_once_and_a_new_one_works() -> Result<()> {
    on_own_cluster(async |cluster| {
        let clients = each(cluster);
        let bytes = random_bytes(&mut rand::rng(), 40_000);
        let location = clients[0].open_upload("c34/stopped").await?;
        let patched = clients[1].patch(&location, Some("0-19999"), bytes.slice(..20_000)).await?.expect(&[202])?;
        let location = patched.location()?;
        cluster.node(0).stop().await?;
        until_ok(SOON, "two nodes have a leader", async || {
            clients[1].open_upload("c34/stopped").await?;
            clients[2].open_upload("c34/stopped").await?;
            Ok(())
        })
        .await?;
        for client in &clients[1..] {
            let replies = [
                client.get(&location).await?,
                client.patch(&location, Some("20000-39999"), bytes.slice(20_000..)).await?,
                client.close_upload(&location, &sha256(&bytes), Bytes::new()).await?,
            ];
            for reply in replies {
                is_error(&reply, &[404], &["BLOB_UPLOAD_UNKNOWN"])?;
                ensure!(reply.took.as_millis() < 1_500, "{} took {:?}", reply.request, reply.took);
            }
        }
        clients[1].push_blob("c34/stopped", &bytes, Way::Chunks(7_000)).await?;
        clients[2].pull_blob("c34/stopped", &sha256(&bytes)).await?;
        cluster.node(0).restart()?;
        cluster.wait_ready(SOON).await?;
        blob_everywhere(cluster, "c34/stopped", &sha256(&bytes), bytes.len()).await
    })
}

#[test]
fn c36_many_clients_push_the_same_blob_at_the_same_moment() -> Result<()> {
    on_cluster(async |cluster| {
        const CLIENTS: usize = 8;
        const SIZE_BYTES: usize = 20 << 20;
        let image = Image::random(&mut rand::rng(), &[SIZE_BYTES]);
        let layer = image.blobs[1].clone();
        let digest = sha256(&layer);
        let mut tasks = JoinSet::new();
        for number in 0..CLIENTS {
            let client = cluster.client_of(cluster.node(number % 3));
            let (image, layer) = (image.clone(), layer.clone());
            tasks.spawn(async move {
                let repository = format!("c36/app-{number}");
                if number % 4 == 3 {
                    return cut_off(&client, &repository, &layer).await;
                }
                let pushed = client.push(&repository, "v1", &image, Way::number(number)).await?;
                client.head(&format!("/v2/{repository}/blobs/{}", sha256(&layer))).await?.expect(&[200])?;
                client.verify(&pushed).await?;
                Ok(())
            });
        }
        while let Some(ended) = tasks.join_next().await {
            ended.context("a client")??;
        }
        for number in (0..CLIENTS).filter(|number| number % 4 != 3) {
            blob_everywhere(cluster, &format!("c36/app-{number}"), &digest, SIZE_BYTES).await?;
        }
        // No other test pushes a blob of more than 8 MiB.
        let hex = digest.trim_start_matches("sha256:");
        until_ok(SOON, "one file on each node, and nothing staged", async || {
            for node in cluster.nodes() {
                let large: Vec<_> =
                    files_beside_metadata(&node.data_dir).into_iter().filter(|(_, size)| *size > 8 << 20).collect();
                let named = large.iter().all(|(path, _)| path.ends_with(hex));
                ensure!(large.len() == 1 && named, "{}: {large:?}", node.name);
            }
            Ok(())
        })
        .await
    })
}

/// Half of the body, then silence; the session is cancelled, as its owner's clean-up would do later.
async fn cut_off(client: &Client, repository: &str, blob: &Bytes) -> Result<()> {
    let location = client.open_upload(repository).await?;
    let mut connection = Connection::open(&client.urls()[0]).await?;
    let length = format!("Content-Length: {}", blob.len());
    let path = with_query(&location, &format!("digest={}", sha256(blob)));
    connection.request("PUT", &path, &["Content-Type: application/octet-stream", &length]).await?;
    connection.write(&blob[..blob.len() / 2]).await?;
    drop(connection);
    // The node may still hold the session for the request that broke off.
    let began = Instant::now();
    while !matches!(client.delete(&location).await?.status, 204 | 404) {
        ensure!(began.elapsed() < SOON, "{location} cannot be cancelled");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

/// A property: whatever the object, and however many push it at once by whichever node and way, each is acknowledged
/// and what they pushed is there, whole, everywhere.
#[test]
fn the_same_object_pushed_by_many_at_once_is_there_once_and_whole() -> Result<()> {
    on_cluster(async |cluster| {
        let seed: u64 = rand::random();
        println!("seed {seed}");
        let mut random = StdRng::seed_from_u64(seed);
        for round in 0..12 {
            let layers: Vec<usize> = (0..random.random_range(0..4)).map(|_| random.random_range(0..40_000)).collect();
            let image = Image::random(&mut random, &layers);
            let repository = format!("same/app-{}", round % 3);
            let mut tasks = JoinSet::new();
            for number in 0..random.random_range(2..12) {
                let client = cluster.client().starting_at(number);
                let (image, repository) = (image.clone(), repository.clone());
                let way = Way::number(random.random_range(0..4));
                tasks.spawn(async move { client.push(&repository, "latest", &image, way).await });
            }
            let mut pushed = None;
            while let Some(ended) = tasks.join_next().await {
                pushed = Some(ended.context("a client")?.with_context(|| format!("seed {seed}, round {round}"))?);
            }
            let pushed = pushed.context("at least two pushed")?;
            for client in each(cluster) {
                client.verify(&pushed).await.with_context(|| format!("seed {seed}, round {round}"))?;
            }
        }
        Ok(())
    })
}

#[test]
fn two_images_pushed_to_one_tag_at_once_leave_one_of_them_on_every_node() -> Result<()> {
    on_cluster(async |cluster| {
        let clients = each(cluster);
        for round in 0..10 {
            let images = [Image::mixed(&mut rand::rng()), Image::mixed(&mut rand::rng())];
            let (one, two) = tokio::join!(
                clients[round % 3].push("race/app", "latest", &images[0], Way::Put),
                clients[(round + 1) % 3].push("race/app", "latest", &images[1], Way::Patch),
            );
            let pushed = [one?, two?];
            let mut seen = Vec::new();
            for client in &clients {
                let reply = client.manifest("race/app", "latest").await?.expect(&[200])?;
                seen.push(sha256(&reply.body));
            }
            ensure!(seen.iter().all(|digest| *digest == seen[0]), "round {round}: {seen:?}");
            let winner = pushed.iter().find(|push| push.digest == seen[0]).context("one of the two")?;
            for client in &clients {
                client.verify(winner).await?;
            }
        }
        Ok(())
    })
}

#[test]
fn whole_pushes_and_pulls_go_through_a_balancer_without_affinity() -> Result<()> {
    on_cluster(async |cluster| {
        let balancer = Balancer::start(&cluster.urls()).await?;
        let client = Client::new(vec![balancer.url.clone()]);
        for (number, way) in (0..4).map(Way::number).cycle().take(12).enumerate() {
            let image = Image::random(&mut rand::rng(), &[500, 30_000, 200_000]);
            let pushed = client.push("balanced/app", &format!("t{number}"), &image, way).await?;
            client.verify(&pushed).await?;
        }
        Ok(())
    })
}

#[test]
fn any_node_serves_a_write_the_moment_it_is_acknowledged() -> Result<()> {
    on_cluster(async |cluster| {
        let clients = each(cluster);
        for round in 0..30 {
            let image = Image::mixed(&mut rand::rng());
            let pushed =
                clients[round % 3].push("at-once/app", &format!("t{round}"), &image, Way::number(round)).await?;
            for other in [1, 2] {
                clients[(round + other) % 3].verify(&pushed).await?;
            }
        }
        Ok(())
    })
}

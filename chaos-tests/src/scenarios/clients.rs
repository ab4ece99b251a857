//! Many clients at once: each pushes and pulls, and none of them meets an error.

use std::time::Instant;

use anyhow::Context;
use tokio::task::JoinSet;

use super::check_peak_rss;
use crate::client::{Client, Way};
use crate::cluster::{Cluster, Options};
use crate::image::Image;
use crate::workload::random;

const ROUNDS: usize = 3;
const PEAK_RSS_MIB: u64 = 300;
const LAYERS: [usize; 3] = [3_000, 40_000, 200_000];

/// That many clients push images through all nodes and pull them from each.
pub async fn clients(count: usize, seed: u64) -> anyhow::Result<()> {
    let cluster = Cluster::start(Options::default()).await?;
    let result = run(&cluster, count, seed).await;
    cluster.judged(result)
}

async fn run(cluster: &Cluster, count: usize, seed: u64) -> anyhow::Result<()> {
    let began = Instant::now();
    let mut tasks = JoinSet::new();
    for number in 0..count {
        let client = cluster.client().starting_at(number);
        tasks.spawn(one(client, number, seed));
    }
    while let Some(ended) = tasks.join_next().await {
        ended.context("a client's task")??;
    }
    let took = began.elapsed();
    println!(
        "{count} clients: {} pushes, {} pulls, no error, in {took:.2?}",
        count * ROUNDS,
        count * ROUNDS * cluster.nodes().len()
    );
    check_peak_rss(cluster, PEAK_RSS_MIB)
}

async fn one(client: Client, number: usize, seed: u64) -> anyhow::Result<()> {
    let mut random = random(seed, 8, number as u64);
    for round in 0..ROUNDS {
        let image = Image::random(&mut random, &LAYERS);
        let (repository, tag) = (format!("crowd/app-{}", number % 20), format!("c{number}-{round}"));
        let pushed = client
            .push(&repository, &tag, &image, Way::number(number + round))
            .await
            .with_context(|| format!("client {number}"))?;
        for node in 0..client.urls().len() {
            client.only(node).verify(&pushed).await.with_context(|| format!("client {number}"))?;
        }
    }
    Ok(())
}

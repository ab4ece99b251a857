//! The power fails: all nodes die at once in the middle of pushes, and come back.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use rand::Rng;

use super::{all, median, names};
use crate::checkers::{lost_pushes, none_of};
use crate::cluster::{Cluster, Options};
use crate::history::History;
use crate::nemesis;
use crate::wait::until;
use crate::workload::{Pushes, random, until_served};

const WORKERS: u64 = 6;
/// The promise: every acknowledged push is on every node within this time of the restart.
const BACK_WITHIN: Duration = Duration::from_secs(10);
const PATIENCE: Duration = Duration::from_secs(30);
const AT_LEAST: usize = 20;

/// Kills all nodes at once that many times; prints the median and the longest time until all was back.
pub async fn kill_all(times: u32, seed: u64) -> anyhow::Result<()> {
    let cluster = Cluster::start(Options::default()).await?;
    let result = run(&cluster, times, seed).await;
    cluster.judged(result)
}

async fn run(cluster: &Cluster, times: u32, seed: u64) -> anyhow::Result<()> {
    let history = Arc::new(History::default());
    let mut random = random(seed, 4, 0);
    let mut back = Vec::new();
    for round in 1..=times {
        let began = history.now();
        let name = format!("power-{round}");
        let pushes = Pushes::start(cluster, &history, seed.wrapping_add(round.into()), &name, WORKERS);
        until(PATIENCE, "pushes succeed", async || {
            (history.acknowledged(began, history.now()).len() >= AT_LEAST).then_some(())
        })
        .await?;
        tokio::time::sleep(Duration::from_millis(random.random_range(0..1_000))).await;
        nemesis::kill_all(cluster);
        pushes.end().await?;
        let acknowledged = history.acknowledged(began, history.now());
        let restarted = Instant::now();
        for node in cluster.nodes() {
            node.restart()?;
        }
        until_served(cluster, &history, &all(cluster), &acknowledged, BACK_WITHIN)
            .await
            .with_context(|| format!("round {round}"))?;
        let took = restarted.elapsed();
        println!("{round}/{times}: {} pushes on every node {took:.2?} after the restart", acknowledged.len());
        back.push(took);
        cluster.wait_ready(PATIENCE).await?;
    }
    println!(
        "until every acknowledged push was on every node: median {:.2?}, longest {:.2?}",
        median(&back),
        back.iter().max().copied().unwrap_or_default()
    );
    let healed = history.now();
    let everything = history.acknowledged(Duration::ZERO, healed);
    let served = until_served(cluster, &history, &all(cluster), &everything, PATIENCE).await;
    none_of("acknowledged push lost", &lost_pushes(&history.snapshot(), healed, &names(cluster)))?;
    served?;
    println!("{} acknowledged pushes in all, none lost", everything.len());
    Ok(())
}

//! The leader dies, or is told to stop, in the middle of pushes, again and again.

use std::sync::Arc;
use std::time::Duration;

use anyhow::ensure;
use rand::Rng;

use super::{all, median, names};
use crate::checkers::{Outage, failed_pulls, lost_pushes, none_of, stale_reads};
use crate::cluster::{Cluster, Node, Options};
use crate::history::{Action, History, Operation, Outcome, longest_gap};
use crate::wait::until;
use crate::workload::{Pulls, Pushes, Tags, random, until_served};

const WORKERS: u64 = 4;
/// How long the scenario looks on before it gives up, to say how long it really took.
const PATIENCE: Duration = Duration::from_secs(30);
const HEALED_WITHIN: Duration = Duration::from_secs(30);
/// Pushes begun after the kill that must succeed before it counts as survived.
const GOES_ON: usize = 10;

/// How the leader goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// SIGKILL.
    Killed,
    /// SIGTERM: it hands over.
    Stopped,
}

impl End {
    /// The promise: the median, and the longest, time without an acknowledged push.
    fn gap_limits(self) -> (Duration, Duration) {
        match self {
            Self::Killed => (Duration::from_secs(3), Duration::from_secs(5)),
            Self::Stopped => (Duration::from_millis(500), Duration::from_secs(3)),
        }
    }
}

/// Kills the leader that many times; prints the median and the longest gap between acknowledged pushes.
pub async fn kill_leader(times: u32, seed: u64) -> anyhow::Result<()> {
    leader_ends(End::Killed, times, seed).await
}

/// Tells the leader to stop that many times: it hands over before.
pub async fn handover(times: u32, seed: u64) -> anyhow::Result<()> {
    leader_ends(End::Stopped, times, seed).await
}

async fn leader_ends(end: End, times: u32, seed: u64) -> anyhow::Result<()> {
    let cluster = Cluster::start(Options::default()).await?;
    let result = run(&cluster, end, times, seed).await;
    cluster.judged(result)
}

async fn run(cluster: &Cluster, end: End, times: u32, seed: u64) -> anyhow::Result<()> {
    let history = Arc::new(History::default());
    let pushes = Pushes::start(cluster, &history, seed, "leader", WORKERS);
    let tags = Tags::start(cluster, &history, seed);
    let pulls = Pulls::start(cluster, &history, seed);
    let mut random = random(seed, 3, 0);
    let (mut gaps, mut outages) = (Vec::new(), Vec::new());
    for round in 1..=times {
        let began = history.now();
        pushed_since(&history, began, GOES_ON).await?;
        tokio::time::sleep(Duration::from_millis(random.random_range(0..1_000))).await;
        let killed_at = history.now();
        let killed = cluster.leader().await?;
        match end {
            End::Killed => killed.kill(),
            End::Stopped => killed.stop().await?,
        }
        pushed_since(&history, killed_at, GOES_ON).await?;
        let now = history.now();
        let gap = longest_gap(&history.snapshot(), killed_at, now);
        gaps.push(gap);
        let acknowledged = pushes_in(&history.acknowledged(began, now));
        let remaining: Vec<&Node> = cluster.nodes().iter().filter(|node| node.alive()).collect();
        until_served(cluster, &history, &remaining, &acknowledged, HEALED_WITHIN).await?;
        killed.restart()?;
        cluster.wait_ready(HEALED_WITHIN).await?;
        outages.push(Outage { node: killed.name.clone(), from: killed_at, until: history.now() });
        let took = until_served(cluster, &history, &[killed], &acknowledged, HEALED_WITHIN).await?;
        println!(
            "{round}/{times}: {end:?} {}, gap {gap:.2?}; {} pushes intact on the others, and on it {took:.2?} after it was ready",
            killed.name,
            acknowledged.len()
        );
    }
    let problems = pushes.end().await?;
    tags.end().await?;
    pulls.end().await?;
    println!("pushes that failed, by kind: {problems:?}");
    println!(
        "gap without an acknowledged push: median {:.2?}, longest {:.2?}",
        median(&gaps),
        gaps.iter().max().copied().unwrap_or_default()
    );
    none_of("failed pull from a node that was there", &failed_pulls(&history.snapshot(), &outages))?;
    verdict(cluster, &history).await?;
    let (of_median, of_longest) = end.gap_limits();
    let long: Vec<_> = gaps.iter().filter(|gap| **gap > of_longest).collect();
    ensure!(long.is_empty(), "gaps over {of_longest:?}: {long:.2?}");
    ensure!(median(&gaps) < of_median, "the median of the gaps is not under {of_median:?}");
    Ok(())
}

async fn verdict(cluster: &Cluster, history: &History) -> anyhow::Result<()> {
    let healed = history.now();
    let kept = pushes_in(&history.acknowledged(Duration::ZERO, healed));
    let served = until_served(cluster, history, &all(cluster), &kept, HEALED_WITHIN).await;
    let operations = history.snapshot();
    none_of("acknowledged push lost", &lost_pushes(&pushes_in(&operations), healed, &names(cluster)))?;
    served?;
    none_of("stale read", &stale_reads(&operations))?;
    let reads = operations.iter().filter(|op| op.action == Action::Read).count();
    println!("{} acknowledged pushes on every node, {reads} reads by tag fresh", kept.len());
    Ok(())
}

/// Without the tag that moves: what it pointed at is another one's to judge.
fn pushes_in(operations: &[Operation]) -> Vec<Operation> {
    operations.iter().filter(|op| op.repository != Tags::REPOSITORY).cloned().collect()
}

/// Waits for that many acknowledged pushes which began after the moment.
async fn pushed_since(history: &History, moment: Duration, count: usize) -> anyhow::Result<()> {
    until(PATIENCE, "pushes go on", async || {
        let operations = history.snapshot();
        let begun = operations
            .iter()
            .rev()
            .take_while(|op| op.end >= moment)
            .filter(|op| op.action == Action::Put && op.outcome == Outcome::Ok && op.start >= moment);
        (begun.count() >= count).then_some(())
    })
    .await
}

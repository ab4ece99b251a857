//! Pulls of everything that was acknowledged, from each node, until all of it comes back.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use futures::{StreamExt, stream};
use tokio::task::JoinSet;

use super::{Tags, random};
use crate::client::{Client, Problem, Pushed};
use crate::cluster::{Cluster, Node};
use crate::history::{Action, History, Operation, Outcome};

const AT_ONCE: usize = 8;
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(50);

/// Between two pulls of a worker.
const PACE: Duration = Duration::from_millis(100);

/// An election in between may take its time.
const PATIENT: Duration = Duration::from_secs(15);

/// Pulls of acknowledged pushes under way, one worker for each node, until [`Pulls::end`].
#[derive(Debug)]
pub struct Pulls {
    over: Arc<AtomicBool>,
    workers: JoinSet<()>,
}

impl Pulls {
    /// Starts a worker for each node.
    pub fn start(cluster: &Cluster, history: &Arc<History>, seed: u64) -> Self {
        let mut pulls = Self { over: Arc::default(), workers: JoinSet::new() };
        for (number, node) in cluster.nodes().iter().enumerate() {
            let client = cluster.client_of(node).with_timeout(PATIENT);
            let (name, history, over) = (node.name.clone(), Arc::clone(history), Arc::clone(&pulls.over));
            let mut random = random(seed, 2, number as u64);
            pulls.workers.spawn(async move {
                while !over.load(Ordering::Relaxed) {
                    // What a tag that moves points at is another workload's to judge.
                    let put = history.any_acknowledged(&mut random).filter(|put| put.repository != Tags::REPOSITORY);
                    if let Some(put) = put {
                        pull_by(&client, &history, &name, &put).await;
                    }
                    tokio::time::sleep(PACE).await;
                }
            });
        }
        pulls
    }

    /// Lets the workers finish what they are at.
    pub async fn end(mut self) -> anyhow::Result<()> {
        self.over.store(true, Ordering::Relaxed);
        while let Some(ended) = self.workers.join_next().await {
            ended.context("a worker of the pulls")?;
        }
        Ok(())
    }
}

/// Pulls the acknowledged puts from each of the nodes, again where one fails; the time until all were intact.
pub async fn until_served(
    cluster: &Cluster,
    history: &History,
    nodes: &[&Node],
    puts: &[Operation],
    within: Duration,
) -> anyhow::Result<Duration> {
    let client_of = |node: &Node| cluster.client_of(node).with_timeout(REQUEST_TIMEOUT);
    let nodes: Vec<_> = nodes.iter().map(|node| (node.name.clone(), client_of(node))).collect();
    until_served_by(&nodes, history, puts, within).await
}

/// [`until_served`] by nodes of these names, each with a client of it alone.
pub async fn until_served_by(
    nodes: &[(String, Client)],
    history: &History,
    puts: &[Operation],
    within: Duration,
) -> anyhow::Result<Duration> {
    let began = Instant::now();
    let mut left: Vec<(&(String, Client), &Operation)> =
        nodes.iter().flat_map(|node| puts.iter().map(move |put| (node, put))).collect();
    loop {
        let tried = stream::iter(left).map(|(node, put)| pull(history, node, put));
        let failed: Vec<_> = tried.buffer_unordered(AT_ONCE).filter_map(async |failed| failed).collect().await;
        let Some((_, _, reason)) = failed.first() else {
            return Ok(began.elapsed());
        };
        if began.elapsed() > within {
            bail!(
                "after {within:?} {} of {} pulls still fail, such as: {reason}",
                failed.len(),
                nodes.len() * puts.len()
            );
        }
        left = failed.into_iter().map(|(node, put, _)| (node, put)).collect();
        tokio::time::sleep(PAUSE).await;
    }
}

async fn pull<'a>(
    history: &History,
    node: &'a (String, Client),
    put: &'a Operation,
) -> Option<(&'a (String, Client), &'a Operation, String)> {
    let (name, client) = node;
    let problem = pull_by(client, history, name, put).await;
    problem.map(|problem| (node, put, format!("{name}: {problem}")))
}

async fn pull_by(client: &Client, history: &History, node: &str, put: &Operation) -> Option<Problem> {
    let pushed = Pushed {
        repository: put.repository.clone(),
        tag: put.tag.clone(),
        digest: put.digest.clone().unwrap_or_default(),
    };
    let start = history.now();
    let problem = client.verify(&pushed).await.err();
    let intact = problem.is_none();
    history.record(Operation {
        action: Action::Pull,
        repository: pushed.repository,
        tag: pushed.tag,
        digest: intact.then_some(pushed.digest),
        node: node.to_owned(),
        start,
        end: history.now(),
        outcome: problem.as_ref().map_or(Outcome::Ok, |problem| problem.outcome()),
    });
    problem
}

//! Workers that push small images without a rest, each request to the next node.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use tokio::task::JoinSet;

use crate::client::{Client, Problem, Way};
use crate::cluster::Cluster;
use crate::history::{Action, History, Operation, Outcome};
use crate::image::Image;
use crate::workload::random;

/// Between two pushes of a worker, so that checking them all stays cheap.
const PACE: Duration = Duration::from_millis(60);
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// Pushes under way, until [`Pushes::end`].
#[derive(Debug)]
pub struct Pushes {
    over: Arc<AtomicBool>,
    problems: Arc<Mutex<BTreeMap<String, u64>>>,
    workers: JoinSet<()>,
}

impl Pushes {
    /// Starts the workers. `name` is part of the repositories, so that two workloads never meet.
    pub fn start(cluster: &Cluster, history: &Arc<History>, seed: u64, name: &str, workers: u64) -> Self {
        Self::by(|| cluster.client(), history, seed, name, workers)
    }

    /// As [`Pushes::start`], by these clients.
    pub fn by(client: impl Fn() -> Client, history: &Arc<History>, seed: u64, name: &str, workers: u64) -> Self {
        let mut pushes = Self { over: Arc::default(), problems: Arc::default(), workers: JoinSet::new() };
        for worker in 0..workers {
            let client = client().with_timeout(REQUEST_TIMEOUT).starting_at(usize::try_from(worker).unwrap_or(0));
            let (over, problems) = (Arc::clone(&pushes.over), Arc::clone(&pushes.problems));
            let history = Arc::clone(history);
            let repository = format!("chaos/{name}-{worker}");
            let mut random = random(seed, 1, worker);
            pushes.workers.spawn(async move {
                for count in 0_usize.. {
                    if over.load(Ordering::Relaxed) {
                        break;
                    }
                    let image = Image::mixed(&mut random);
                    let tag = format!("t{count}");
                    let start = history.now();
                    let pushed = client.push(&repository, &tag, &image, Way::number(count)).await;
                    let outcome = match &pushed {
                        Ok(_) => Outcome::Ok,
                        Err(problem) => {
                            note(&problems, problem);
                            problem.outcome()
                        }
                    };
                    history.record(Operation {
                        action: Action::Put,
                        repository: repository.clone(),
                        tag,
                        digest: Some(image.digest),
                        node: "any".to_owned(),
                        start,
                        end: history.now(),
                        outcome,
                    });
                    tokio::time::sleep(PACE).await;
                }
            });
        }
        pushes
    }

    /// Lets the workers finish what they are at; what went wrong, and how often.
    pub async fn end(mut self) -> anyhow::Result<BTreeMap<String, u64>> {
        self.over.store(true, Ordering::Relaxed);
        while let Some(ended) = self.workers.join_next().await {
            ended.context("a worker of the pushes")?;
        }
        let problems = self.problems.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(problems.clone())
    }
}

fn note(problems: &Mutex<BTreeMap<String, u64>>, problem: &Problem) {
    let kind = match problem.status() {
        Some(status) => format!("status {status}"),
        None => "no answer".to_owned(),
    };
    let mut problems = problems.lock().unwrap_or_else(PoisonError::into_inner);
    *problems.entry(kind).or_default() += 1;
}

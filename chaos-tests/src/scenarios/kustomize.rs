//! The pods of `deploy/kustomize`: they form a cluster, are rolled one by one under load, and one loses its disk.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use tokio::task::JoinHandle;

use crate::checkers::{lost_pushes, none_of};
use crate::client::{Client, Pushed};
use crate::cluster::{Status, program};
use crate::history::{Action, History, Operation, Outcome, longest_gap};
use crate::pods::{self, FOLDER, Pods, Rendered};
use crate::tools;
use crate::wait::{until, until_ok};
use crate::workload::{Pushes, until_served_by};

const WORKERS: usize = 2;
const PULL_TIMEOUT: Duration = Duration::from_secs(10);
/// Between two pulls.
const PACE: Duration = Duration::from_millis(20);
const HEALED_WITHIN: Duration = Duration::from_secs(60);
/// A learner votes once it has kept up for ten seconds.
const GROWN_WITHIN: Duration = Duration::from_secs(90);
/// Pushes that must succeed after each step.
const GOES_ON: usize = 10;

/// Rolls all pods that many times. Needs root, for network namespaces, and kubectl; skipped aloud without them.
pub async fn kustomize(rounds: u32, seed: u64) -> anyhow::Result<()> {
    if !pods::allowed()? || tools::find(["kubectl"])?.is_none() {
        return Ok(());
    }
    // The one inside prints the seed once more, as its own.
    let arguments = ["--seed", &seed.to_string(), "kustomize", "--inside", "--rounds", &rounds.to_string()];
    pods::enclosed(&program("chaos-tests")?, &arguments.map(str::to_owned)).await
}

/// [`kustomize`], inside of namespaces that are its own.
pub async fn kustomize_inside(rounds: u32, seed: u64) -> anyhow::Result<()> {
    let [kubectl] = tools::find(["kubectl"])?.context("kubectl")?;
    let mut pods = Pods::start(&Rendered::of(&kubectl, FOLDER)?).await?;
    println!("{} formed a cluster", pods.names().join(", "));
    let result = run(&mut pods, rounds, seed).await;
    pods.judged(result)
}

async fn run(pods: &mut Pods, rounds: u32, seed: u64) -> anyhow::Result<()> {
    let history = Arc::new(History::default());
    let clients = (0..WORKERS).map(|_| pods.client()).collect::<anyhow::Result<Vec<_>>>()?;
    let pushes = Pushes::by(clients.into_iter(), &history, seed, "pods");
    let pulls = Pulls::start(pods.client()?.with_timeout(PULL_TIMEOUT), &history);
    for round in 1..=rounds {
        // The controller begins with the last one.
        for ordinal in (0..pods.names().len()).rev() {
            let began = history.now();
            pods.stop(ordinal).await?;
            pods.start_pod(ordinal).await?;
            pods.wait_ready(ordinal).await?;
            let rolled = history.now();
            goes_on(&history, rolled).await?;
            let gap = longest_gap(&history.snapshot(), began, history.now());
            println!("{round}/{rounds}: {} rolled, longest gap between pushes {gap:.2?}", pods.names()[ordinal]);
        }
    }
    lost_disk(pods, &history, 1).await?;
    let problems = pushes.end().await?;
    println!("pushes that failed, by kind: {problems:?}");
    let (pulled, passed_over) = pulls.end().await?;
    println!("{pulled} pulls, none failed; {passed_over} were answered by the second node or the third");
    verdict(pods, &history).await
}

/// The machine of a pod is gone with its disk; the pod comes back elsewhere with an empty one, as a new node.
async fn lost_disk(pods: &mut Pods, history: &History, ordinal: usize) -> anyhow::Result<()> {
    let (name, asked) = (pods.names()[ordinal].clone(), 0);
    let before = status(pods, asked).await?.member(&name).context("a member")?.id.clone();
    pods.lose(ordinal)?;
    let lost = history.now();
    goes_on(history, lost).await?;
    pods.start_pod(ordinal).await?;
    pods.wait_ready(ordinal).await?;
    // A leader may be elected meanwhile.
    let replaced = async || pods.exec(asked, &["node", "replace", &name]).await;
    until_ok(HEALED_WITHIN, "the new node takes the place of the lost one", replaced).await?;
    let healed = async || {
        let status = status(pods, asked).await?;
        let voters = status.nodes.iter().filter(|member| member.role != "learner").count();
        let whole = status.nodes.iter().all(|member| member.blobs.as_ref().is_some_and(|blobs| blobs.missing == 0));
        ensure!(status.verdict == "healthy" && status.nodes.len() == 3 && voters == 3 && whole, "{status:?}");
        Ok(status.member(&name).context("it is a member")?.id.clone())
    };
    let after = until_ok(GROWN_WITHIN, "three voters with all copies", healed).await?;
    ensure!(after != before, "{name} has the id {before} of the node whose disk is lost");
    goes_on(history, history.now()).await?;
    println!("{name} lost its disk and came back: node {before} is gone, {after} votes and has all copies");
    Ok(())
}

async fn status(pods: &Pods, asked: usize) -> anyhow::Result<Status> {
    Ok(serde_json::from_slice(&pods.client_of(asked)?.get("/api/v1/cluster").await?.expect(&[200])?.body)?)
}

async fn goes_on(history: &History, moment: Duration) -> anyhow::Result<()> {
    until(HEALED_WITHIN, "pushes go on", async || {
        let pushed = history.acknowledged(moment, Duration::MAX);
        (pushed.iter().filter(|put| put.start >= moment).count() >= GOES_ON).then_some(())
    })
    .await
}

async fn verdict(pods: &Pods, history: &History) -> anyhow::Result<()> {
    let healed = history.now();
    let kept = history.acknowledged(Duration::ZERO, healed);
    let names = pods.names();
    let clients = (0..names.len()).map(|ordinal| Ok(pods.client_of(ordinal)?.with_timeout(PULL_TIMEOUT)));
    let nodes: Vec<_> = names.iter().cloned().zip(clients.collect::<anyhow::Result<Vec<_>>>()?).collect();
    let served = until_served_by(&nodes, history, &kept, HEALED_WITHIN).await;
    let operations: Vec<Operation> = history.snapshot();
    none_of("acknowledged push lost", &lost_pushes(&operations, healed, &names))?;
    served?;
    for ordinal in 0..names.len() {
        pods.is_alive(ordinal).await?;
    }
    println!("{} acknowledged pushes on every pod", kept.len());
    Ok(())
}

/// Pulls of what was pushed last, each from the next pod; where that one does not give it, from those after it.
struct Pulls {
    over: Arc<AtomicBool>,
    puller: JoinHandle<anyhow::Result<(u64, u64)>>,
}

impl Pulls {
    fn start(client: Client, history: &Arc<History>) -> Self {
        let over = Arc::new(AtomicBool::default());
        let puller = tokio::spawn(pull_all(client, Arc::clone(history), Arc::clone(&over)));
        Self { over, puller }
    }

    /// How many succeeded, and how many of them not with the first node; an error if one failed.
    async fn end(self) -> anyhow::Result<(u64, u64)> {
        self.over.store(true, Ordering::Relaxed);
        let (pulled, passed_over) = self.puller.await??;
        ensure!(pulled > 0, "nothing was pulled");
        Ok((pulled, passed_over))
    }
}

async fn pull_all(client: Client, history: Arc<History>, over: Arc<AtomicBool>) -> anyhow::Result<(u64, u64)> {
    let (mut pulled, mut passed_over) = (0, 0);
    while !over.load(Ordering::Relaxed) {
        tokio::time::sleep(PACE).await;
        let operations = history.snapshot();
        let pushed = operations.iter().rev().find(|op| op.action == Action::Put && op.outcome == Outcome::Ok);
        let Some(put) = pushed else { continue };
        let wanted = Pushed {
            repository: put.repository.clone(),
            tag: put.tag.clone(),
            digest: put.digest.clone().unwrap_or_default(),
        };
        passed_over += u64::from(pull(&client, usize::try_from(pulled)?, &wanted).await? > 0);
        pulled += 1;
    }
    Ok((pulled, passed_over))
}

/// How many nodes were passed over.
async fn pull(client: &Client, first: usize, wanted: &Pushed) -> anyhow::Result<usize> {
    let nodes = client.urls().len();
    let mut problems = Vec::new();
    for attempt in 0..nodes {
        match client.only((first + attempt) % nodes).verify(wanted).await {
            Ok(()) => return Ok(attempt),
            Err(problem) => problems.push(problem.to_string()),
        }
    }
    bail!("no node gives {}:{}: {}", wanted.repository, wanted.tag, problems.join("; "))
}

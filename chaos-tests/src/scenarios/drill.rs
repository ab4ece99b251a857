//! `flotilla drill` says of a crash of the leader what an independent client saw of it.

use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use futures::{StreamExt, stream};
use serde_json::Value;
use tokio::process::Command;

use super::median;
use crate::client::{Client, Pushed, plain_http};
use crate::cluster::binary;
use crate::dev::{Dev, free_base};
use crate::history::{Action, History, Operation, Outcome, longest_gap};
use crate::wait::until_ok;
use crate::workload::Pushes;

const WORKERS: u64 = 4;
/// The promise: both say the same of the longest time without an acknowledged push, within this part of it.
const TOLERANCE: f64 = 0.1;
/// What neither can see more closely: each notices the two ends of the gap only by its own pushes, the last before it and
/// the first after it, and each of these may come one interval late; a third one is for the machine.
const UNSEEN_PUSHES: u32 = 3;
const DRILL_WITHIN: Duration = Duration::from_secs(300);
const PULLED_WITHIN: Duration = Duration::from_secs(20);
const AT_ONCE: usize = 8;

/// Runs that many drills beside a client that measures by itself, and one with an objective that nothing can meet.
pub async fn drill(times: u32, seed: u64) -> anyhow::Result<()> {
    let folder = tempfile::tempdir().context("a folder for the cluster")?;
    let mut dev = Dev::start(folder.path(), free_base()?)?;
    let urls = dev.urls().await?;
    for round in 1..=times {
        let report = folder.path().join(format!("report-{round}"));
        let (report, pushes) = beside(&dev, &urls, &report, seed ^ u64::from(round)).await?;
        compare(round, &report, &pushes)?;
        nothing_lost(&urls, &pushes).await?;
    }
    let status = run(&dev, folder.path(), &["--duration", "1s", "--objective", "push-gap=1ms"]).await?;
    ensure!(status == Some(1), "an objective that nothing can meet ends with {status:?}, not 1");
    println!("an objective that nothing can meet ends with 1");
    dev.end().await
}

/// A drill that must pass, and what the client beside it did.
async fn beside(dev: &Dev, urls: &[String], report: &Path, seed: u64) -> anyhow::Result<(Value, Vec<Operation>)> {
    let history = Arc::new(History::default());
    let http = plain_http(Duration::from_secs(10));
    let client = || Client::over(http.clone(), urls.to_vec());
    let pushes = Pushes::by((0..WORKERS).map(|_| client()), &history, seed, &format!("beside-{seed:x}"));
    let status = run(dev, report, &["--objective", "push-gap=5s", "--objective", "lost=0"]).await;
    pushes.end().await?;
    ensure!(status? == Some(0), "the drill did not pass: {}", said(report));
    let text = std::fs::read_to_string(report.join("report.json")).context("report.json")?;
    Ok((serde_json::from_str(&text).context("report.json")?, history.snapshot()))
}

/// Runs a drill of the leader's crash; its exit status.
async fn run(dev: &Dev, report: &Path, more: &[&str]) -> anyhow::Result<Option<i32>> {
    std::fs::create_dir_all(report)?;
    let log = std::fs::File::create(report.join("log"))?;
    let mut command = Command::new(binary()?);
    command
        .args(["drill", "run", "leader-crash", "--data-dir"])
        .arg(dev.data_dir())
        .arg("--report")
        .arg(report)
        .args(more)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .kill_on_drop(true);
    let status = tokio::time::timeout(DRILL_WITHIN, command.status()).await;
    Ok(status.with_context(|| format!("no end within {DRILL_WITHIN:?}: {}", said(report)))??.code())
}

fn said(report: &Path) -> String {
    std::fs::read_to_string(report.join("log")).unwrap_or_default()
}

fn compare(round: u32, report: &Value, pushes: &[Operation]) -> anyhow::Result<()> {
    let told = report["without_push"]["longest_ms"].as_f64().context("without_push")?;
    let ends = ends_of_acknowledged(pushes);
    let (first, last) = ends.first().zip(ends.last()).context("the client beside it pushed nothing")?;
    let seen = longest_gap(pushes, *first, *last);
    let intervals: Vec<Duration> = ends.windows(2).map(|pair| pair[1] - pair[0]).collect();
    let unseen = median(&intervals) * UNSEEN_PUSHES;
    let seen_ms = seen.as_secs_f64() * 1_000.0;
    let allowed = (seen_ms * TOLERANCE).max(unseen.as_secs_f64() * 1_000.0);
    println!(
        "{round}: the drill tells of {told:.0} ms without a push, the client saw {seen_ms:.0} ms; {allowed:.0} ms may lie between"
    );
    ensure!((told - seen_ms).abs() <= allowed, "they do not agree: {report:#}");
    Ok(())
}

fn ends_of_acknowledged(pushes: &[Operation]) -> Vec<Duration> {
    let mut ends: Vec<Duration> = acknowledged(pushes).map(|push| push.end).collect();
    ends.sort_unstable();
    ends
}

fn acknowledged(pushes: &[Operation]) -> impl Iterator<Item = &Operation> {
    pushes.iter().filter(|push| push.action == Action::Put && push.outcome == Outcome::Ok)
}

/// The drill says that nothing was lost: so must the client that pushed beside it.
async fn nothing_lost(urls: &[String], pushes: &[Operation]) -> anyhow::Result<()> {
    let clients: Vec<Client> = urls.iter().map(|url| Client::new(vec![url.clone()])).collect();
    let pushed: Vec<Pushed> = acknowledged(pushes)
        .map(|push| Pushed {
            repository: push.repository.clone(),
            tag: push.tag.clone(),
            digest: push.digest.clone().unwrap_or_default(),
        })
        .collect();
    let pulls = clients.iter().flat_map(|client| pushed.iter().map(move |pushed| (client, pushed)));
    let pulled: Vec<anyhow::Result<()>> = stream::iter(pulls)
        .map(|(client, pushed)| {
            until_ok(PULLED_WITHIN, "an acknowledged push", async || Ok(client.verify(pushed).await?))
        })
        .buffer_unordered(AT_ONCE)
        .collect()
        .await;
    pulled.into_iter().collect::<anyhow::Result<()>>()?;
    println!("{} pushes of the client intact on every node", pushed.len());
    Ok(())
}

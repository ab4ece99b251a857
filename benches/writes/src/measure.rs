//! One round: many clients write at once, and the time is taken.

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use hdrhistogram::Histogram;
use tokio::task::JoinSet;

use crate::{
    names::Names,
    process::{SyncTrace, cpu_time},
    system::{Client, System},
};

const ERRORS_KEPT: usize = 3;
/// A leader that is gone would otherwise be asked until the time is up.
const ERRORS_TOLERATED: u64 = 100;
/// Clients that write every name once before the first round.
const FILLERS: usize = 16;

/// What one round did.
#[derive(Debug)]
pub struct Tally {
    /// Writes that were acknowledged.
    pub writes: u64,
    /// Writes that failed.
    pub errors: u64,
    /// The first few failures.
    pub error_texts: Vec<String>,
    /// Wall time.
    pub elapsed: Duration,
    /// Latency of the writes that were acknowledged, microseconds.
    pub latencies: Histogram<u64>,
    /// CPU time of the server processes.
    pub server_cpu: Duration,
    /// CPU time of this program.
    pub client_cpu: Duration,
    /// Syncs of the leader's log; unknown if another node leads at the end.
    pub log_syncs: Option<u64>,
}

struct Share {
    writes: u64,
    errors: u64,
    error_texts: Vec<String>,
    latencies: Histogram<u64>,
}

/// Writes every name once, so that each timed write replaces a value.
pub async fn fill(system: &dyn System) -> Result<()> {
    let leader = system.leader().await?;
    let mut fillers = JoinSet::new();
    for (index, mut client) in system.connect(leader, FILLERS).await?.into_iter().enumerate() {
        let names = system.names().clone();
        fillers.spawn(async move {
            for name in Names::of(index, FILLERS) {
                put(client.as_mut(), &names, name).await?;
            }
            Ok::<_, anyhow::Error>(())
        });
    }
    while let Some(filled) = fillers.join_next().await {
        filled??;
    }
    Ok(())
}

/// One round.
pub async fn round(system: &dyn System, clients: usize, duration: Duration) -> Result<Tally> {
    let leader = system.leader().await?;
    let writers = connected(system, leader, clients).await?;
    let own_pid = [std::process::id() as i32];
    let syncs = system.log_syncs(leader).await?;
    let (server_cpu, client_cpu) = (cpu_time(system.pids())?, cpu_time(&own_pid)?);
    let start = Instant::now();
    let mut working = JoinSet::new();
    for (index, client) in writers.into_iter().enumerate() {
        working.spawn(work(client, system.names().clone(), Names::of(index, clients).cycle(), start + duration));
    }
    let mut shares = Vec::new();
    while let Some(share) = working.join_next().await {
        shares.push(share?);
    }
    let elapsed = start.elapsed();
    let (server_cpu, client_cpu) = (cpu_time(system.pids())? - server_cpu, cpu_time(&own_pid)? - client_cpu);
    let syncs = system.log_syncs(leader).await?.saturating_sub(syncs);
    let log_syncs = (system.leader().await? == leader).then_some(syncs);
    let latencies = histogram();
    let mut tally =
        Tally { writes: 0, errors: 0, error_texts: Vec::new(), elapsed, latencies, server_cpu, client_cpu, log_syncs };
    for share in shares {
        tally.writes += share.writes;
        tally.errors += share.errors;
        tally.error_texts.extend(share.error_texts);
        tally.latencies.add(share.latencies).expect("histograms of one form");
    }
    tally.error_texts.truncate(ERRORS_KEPT);
    if tally.writes == 0 {
        bail!("no write succeeded; first failures: {:#?}", tally.error_texts);
    }
    Ok(tally)
}

/// One round under strace: all syncs of the leader per write.
pub async fn traced_round(system: &dyn System, clients: usize, duration: Duration, folder: &Path) -> Result<f64> {
    let leader = system.leader().await?;
    let pid = system.pids().get(leader).context("the leader has no process id")?;
    let trace = SyncTrace::start(*pid, folder).await?;
    let tally = round(system, clients, duration).await;
    let syncs = trace.stop()?;
    // Each client's first write, which is not timed, was traced as well.
    Ok(syncs as f64 / (tally?.writes + clients as u64) as f64)
}

/// Clients whose connections are open, proven by a write of each.
async fn connected(system: &dyn System, leader: usize, clients: usize) -> Result<Vec<Box<dyn Client>>> {
    let mut warming = JoinSet::new();
    for (index, mut client) in system.connect(leader, clients).await?.into_iter().enumerate() {
        let names = system.names().clone();
        warming.spawn(async move { put(client.as_mut(), &names, index).await.map(|()| (index, client)) });
    }
    let mut warm = Vec::new();
    while let Some(client) = warming.join_next().await {
        warm.push(client?.context("the first write of a client")?);
    }
    warm.sort_by_key(|(index, _)| *index);
    Ok(warm.into_iter().map(|(_, client)| client).collect())
}

async fn work(
    mut client: Box<dyn Client>,
    names: Arc<Names>,
    turns: impl Iterator<Item = usize>,
    until: Instant,
) -> Share {
    let mut share = Share { writes: 0, errors: 0, error_texts: Vec::new(), latencies: histogram() };
    for name in turns {
        let begun = Instant::now();
        if begun >= until || share.errors >= ERRORS_TOLERATED {
            break;
        }
        match put(client.as_mut(), &names, name).await {
            Ok(()) => {
                share.writes += 1;
                share.latencies.saturating_record(begun.elapsed().as_micros() as u64);
            }
            Err(error) => {
                share.errors += 1;
                if share.error_texts.len() < ERRORS_KEPT {
                    share.error_texts.push(format!("{error:#}"));
                }
            }
        }
    }
    share
}

async fn put(client: &mut dyn Client, names: &Names, name: usize) -> Result<()> {
    let value = names.next(name);
    match client.put(name, value).await {
        Ok(()) => {
            names.wrote(name, value);
            Ok(())
        }
        Err(error) => {
            names.doubt(name);
            Err(error)
        }
    }
}

fn histogram() -> Histogram<u64> {
    // One microsecond to one minute at three digits.
    Histogram::new_with_bounds(1, 60_000_000, 3).expect("valid bounds")
}

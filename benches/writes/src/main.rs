//! Measures replicated writes of Flotilla and of etcd, side by side in one run.
//!
//! Trace of a comparison: `cli` → [`run`] starts a [`flotilla`] and an [`etcd`] cluster → [`measure::round`] in turns,
//! through [`system::System`] → [`report`]. What is written lies in [`names`].

mod cli;
mod etcd;
mod flotilla;
mod measure;
mod names;
mod process;
mod report;
mod system;

use std::{path::Path, process::ExitCode, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};

use crate::{
    cli::{Cli, Command, Plan, Which},
    etcd::Etcd,
    flotilla::Flotilla,
    names::NAMES,
    report::{CaseReport, Setting},
    system::System,
};

/// Exit status when writes failed.
const WRITES_FAILED: u8 = 3;
/// How long one write may take.
const CALL_WITHIN: Duration = Duration::from_secs(10);
/// How long a cluster may take to form.
const FORMED_WITHIN: Duration = Duration::from_secs(60);
const LOOK_EACH: Duration = Duration::from_millis(100);
const TMPFS_MAGIC: i128 = 0x0102_1994;

fn main() -> ExitCode {
    let (which, plan) = match Cli::parse().command {
        Command::Compare(plan) => (vec![Which::Flotilla, Which::Etcd], plan),
        Command::Run(args) => (vec![args.system], args.plan),
    };
    let outcome = measure(&which, &plan);
    outcome.unwrap_or_else(|error| {
        eprintln!("flotilla-writes: {error:#}");
        ExitCode::FAILURE
    })
}

fn measure(which: &[Which], plan: &Plan) -> Result<ExitCode> {
    let parent = plan.dir.clone().unwrap_or_else(std::env::temp_dir);
    require_disk(&parent)?;
    let folder = tempfile::Builder::new().prefix("flotilla-writes-").tempdir_in(&parent);
    let folder = folder.with_context(|| format!("a folder in {}", parent.display()))?;
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(plan.client_threads.max(1)).enable_all().build()?;
    let failed = runtime.block_on(async {
        let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
        // Whichever way this ends, the clusters are dropped, which ends their processes.
        tokio::select! {
            failed = run(which, plan, folder.path()) => failed,
            _ = interrupt.recv() => bail!("interrupted"),
            _ = terminate.recv() => bail!("terminated"),
        }
    })?;
    match failed {
        0 => Ok(ExitCode::SUCCESS),
        failed => {
            eprintln!("flotilla-writes: {failed} writes failed");
            Ok(ExitCode::from(WRITES_FAILED))
        }
    }
}

/// Starts the systems, measures them, checks what they hold, and prints the report; returns how many writes failed.
async fn run(which: &[Which], plan: &Plan, folder: &Path) -> Result<u64> {
    let mut systems: Vec<Box<dyn System>> = Vec::new();
    for which in which {
        let system = start(*which, plan, folder).await?;
        eprintln!("{} {}", system.name(), system.version());
        measure::fill(system.as_ref()).await.with_context(|| format!("filling {}", system.name()))?;
        systems.push(system);
    }
    let setting = Setting {
        systems: systems.iter().map(|system| format!("{} {}", system.name(), system.version())).collect(),
        rounds: plan.rounds,
        seconds: plan.duration.as_secs_f64(),
        value_bytes: flotilla::manifests()[0].len(),
        names: NAMES,
    };
    let mut reports = Vec::new();
    for clients in &plan.clients {
        reports.push(case(&systems, usize::from(*clients), plan, folder).await?);
        keep(plan, &setting, &reports)?;
    }
    for system in &systems {
        system.check().await.with_context(|| format!("{} has lost a write", system.name()))?;
    }
    match &plan.json {
        Some(path) if path.as_os_str() == "-" => println!("{}", report::json(&setting, &reports)?),
        _ => println!("{}", report::table(&reports, &setting.systems)),
    }
    Ok(report::errors(&reports))
}

async fn start(which: Which, plan: &Plan, folder: &Path) -> Result<Box<dyn System>> {
    Ok(match which {
        Which::Flotilla => Box::new(Flotilla::start(plan, folder).await.context("starting Flotilla")?),
        Which::Etcd => Box::new(Etcd::start(plan, folder, flotilla::manifests()).await.context("starting etcd")?),
    })
}

/// All rounds of one number of clients: A B, B A, A B …, so that neither always follows the other.
async fn case(systems: &[Box<dyn System>], clients: usize, plan: &Plan, folder: &Path) -> Result<CaseReport> {
    eprintln!("{clients} clients");
    let mut report =
        CaseReport { clients, samples: systems.iter().map(|_| Vec::new()).collect(), traced_syncs: Vec::new() };
    for round in 0..plan.rounds {
        let mut order: Vec<usize> = (0..systems.len()).collect();
        if round % 2 == 1 {
            order.reverse();
        }
        for index in order {
            let system = systems[index].as_ref();
            let tally = measure::round(system, clients, plan.duration).await;
            let sample = report::Sample::from(tally.with_context(|| system.name())?);
            eprintln!("  {} {sample}", system.name());
            report.samples[index].push(sample);
        }
    }
    if plan.trace_syncs {
        for system in systems {
            let syncs = measure::traced_round(system.as_ref(), clients, plan.duration, folder).await;
            report.traced_syncs.push(syncs.with_context(|| system.name())?);
        }
    }
    Ok(report)
}

/// Writes what there is so far, so that a run cut short is not lost.
fn keep(plan: &Plan, setting: &Setting, reports: &[CaseReport]) -> Result<()> {
    match &plan.json {
        Some(path) if path.as_os_str() != "-" => {
            std::fs::write(path, report::json(setting, reports)?).with_context(|| format!("writing {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// A sync to memory costs nothing and shows nothing.
fn require_disk(folder: &Path) -> Result<()> {
    let system = rustix::fs::statfs(folder).with_context(|| folder.display().to_string())?;
    ensure!(i128::from(system.f_type) != TMPFS_MAGIC, "{} lies in memory: name a disk with --dir", folder.display());
    Ok(())
}

/// A client for the few questions beside the measurement.
fn http() -> Result<reqwest::Client> {
    Ok(reqwest::Client::builder().no_proxy().timeout(CALL_WITHIN).build()?)
}

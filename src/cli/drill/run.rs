//! A drill from its beginning to its report.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use parking_lot::Mutex;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use super::cluster::{self, Observer};
use super::figures::{Kind, Phase};
use super::load::{Load, Rehearsal};
use super::objectives::{Found, Objective};
use super::read_back::{delete_all, read_back};
use super::replace::{LostMember, replace_if_lost};
use super::report::{ReadBack, Report, Verdict};
use super::scenario::{Scenario, Stage};
use super::steady;
use crate::cli::complain;
use crate::cli::dev::Session;

/// How long nodes that were taken down may take to serve again.
const TAKEN_BACK_WITHIN: Duration = Duration::from_secs(90);
const SHOW_EVERY: Duration = Duration::from_millis(200);

/// What is to be done.
#[derive(Clone, Debug)]
pub(super) struct Order {
    pub(super) scenario: Scenario,
    /// Of `flotilla dev`.
    pub(super) dir: PathBuf,
    /// How long the load runs before the fault, and again after it is healed.
    pub(super) duration: Duration,
    pub(super) objectives: Vec<Objective>,
}

/// Runs a drill. Whatever ends it, its fault is taken back and its images are deleted.
///
/// # Errors
/// It could not be run to its end; why.
pub(super) async fn run(order: &Order) -> anyhow::Result<Report> {
    let mut stop = StopSignals::listen()?;
    let nodes = cluster::nodes(&order.dir).await?;
    let rehearsal = Arc::new(Rehearsal::begin(nodes.clone())?);
    let drill = Drill {
        order,
        observer: Observer::new(nodes)?,
        rehearsal,
        has_begun: AtomicBool::new(false),
        lost: Mutex::default(),
    };
    let _display = show(&drill.rehearsal);
    // Either way the session with the supervisor is gone after this, and with it whatever was done to the nodes.
    let done = tokio::select! {
        name = stop.told() => Err(anyhow::anyhow!("ended by {name} before its end")),
        done = drill.rehearse() => done,
    };
    if let Err(error) = &done {
        drill.rehearsal.journal.note(format_args!("given up: {error:#}"));
    }
    let tidied = tokio::select! {
        name = stop.told() => Err(anyhow::anyhow!("ended by {name}; `flotilla dev` starts again what it took down")),
        tidied = drill.tidy() => tidied,
    };
    drill.rehearsal.journal.end_display();
    match tidied {
        Ok(left_behind) => done.map(|report| Report { left_behind, ..report }),
        Err(untidy) => {
            complain(format_args!("{untidy:#}"));
            done.map(|report| report.with_problem(format!("{untidy:#}")))
        }
    }
}

/// A drill that runs.
struct Drill<'a> {
    order: &'a Order,
    observer: Observer,
    rehearsal: Arc<Rehearsal>,
    /// Something was, or was about to be, done to a node.
    has_begun: AtomicBool,
    lost: Mutex<Option<LostMember>>,
}

impl Drill<'_> {
    async fn rehearse(&self) -> anyhow::Result<Report> {
        let started_at = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
        let (journal, scenario) = (&self.rehearsal.journal, self.order.scenario.name());
        journal.note(format_args!("drill {scenario}, run {}: waits for a steady state", self.rehearsal.run));
        let deadline = Instant::now() + steady::STEADY_WITHIN;
        let voters = steady::whole(&self.observer, steady::STEADY_WITHIN).await?;
        journal.note("the cluster is whole; the load begins");
        let mut load = Load::start(&self.rehearsal);
        let problems = tokio::select! {
            error = load.broken() => Err(error),
            problems = self.under_load(voters, deadline) => problems,
        }?;
        load.end().await?;
        self.rehearsal.figures.lock().close(journal.now());
        journal.note("the load has ended; all that was acknowledged is read back");
        let read = read_back(&self.rehearsal).await;
        journal.note(format_args!("{} pushes read back from each node, {} lost", read.pushes, read.lost));
        Ok(self.report(started_at, problems, read))
    }

    /// The phases of the drill; what the cluster should have done and did not.
    async fn under_load(&self, voters: usize, deadline: Instant) -> anyhow::Result<Vec<String>> {
        let journal = &self.rehearsal.journal;
        steady::calm(&self.rehearsal, deadline.saturating_duration_since(Instant::now())).await?;
        self.enter(Phase::Before, "before: the state is steady");
        tokio::time::sleep(self.order.duration).await;
        self.enter(Phase::During, "during: the fault begins");
        let session = Session::open(&self.order.dir).await?;
        self.has_begun.store(true, Ordering::Relaxed);
        let mut stage = Stage { session, observer: &self.observer, journal, voters, lost: &self.lost };
        let problems = stage.play(self.order.scenario).await?;
        self.enter(Phase::After, "after: the load goes on");
        tokio::time::sleep(self.order.duration).await;
        Ok(problems)
    }

    fn enter(&self, phase: Phase, name: &str) {
        self.rehearsal.figures.lock().enter(phase, self.rehearsal.journal.now());
        self.rehearsal.journal.note(name);
    }

    /// Waits until every node that was taken down serves again, takes a lost member out and deletes the images; how many
    /// of these are left.
    async fn tidy(&self) -> anyhow::Result<u64> {
        let ready = match self.has_begun.load(Ordering::Relaxed) {
            true => self.observer.until_ready(TAKEN_BACK_WITHIN).await.context("not all nodes serve again"),
            false => Ok(()),
        };
        let replaced = self.replace_lost().await;
        let left_behind = delete_all(&self.rehearsal).await;
        if left_behind > 0 {
            complain(format_args!("{left_behind} manifests in drill/{} could not be deleted", self.rehearsal.run));
        }
        ready.and(replaced).map(|()| left_behind)
    }

    /// Takes out the member whose disk is gone, if the scenario did not come to that.
    async fn replace_lost(&self) -> anyhow::Result<()> {
        let lost = self.lost.lock().clone();
        let Some(lost) = lost else { return Ok(()) };
        replace_if_lost(&self.observer, &lost).await.with_context(|| {
            format!("the lost {0} is a member still: `flotilla node remove {1} --force`", lost.name, lost.id)
        })
    }

    fn report(&self, started_at: String, problems: Vec<String>, read_back: ReadBack) -> Report {
        let figures = self.rehearsal.figures.lock();
        let tag_reads = self.rehearsal.tag.lock().reads();
        let (without_push, without_pull) = figures.gaps();
        let found = Found {
            push_gap_ms: without_push.longest_ms,
            pull_gap_ms: without_pull.longest_ms,
            lost: read_back.lost,
            stale: tag_reads.stale,
            push_p99: figures.p99(|kind| kind == Kind::Push),
            pull_p99: figures.p99(Kind::is_pull),
            failed_pulls: figures.count(Kind::is_pull).1,
        };
        let objectives: Vec<_> = self.order.objectives.iter().map(|objective| objective.judge(&found)).collect();
        let is_met = problems.is_empty() && objectives.iter().all(|objective| objective.met);
        Report {
            format: Report::FORMAT,
            verdict: if is_met { Verdict::Pass } else { Verdict::Broken },
            scenario: self.order.scenario.name().to_owned(),
            run: self.rehearsal.run.clone(),
            started_at,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            nodes: self.rehearsal.registry.nodes().iter().map(|node| node.name.clone()).collect(),
            objectives,
            problems,
            timeline: self.rehearsal.journal.events(),
            operations: figures.operations(),
            troubles: figures.troubles(),
            without_push,
            without_pull,
            read_back,
            tag_reads,
            left_behind: 0,
        }
    }
}

/// Shows how the load goes, as long as the handle lives and somebody looks.
fn show(rehearsal: &Arc<Rehearsal>) -> Option<AbortOnDropHandle<()>> {
    rehearsal.journal.has_display().then(|| {
        let rehearsal = Arc::clone(rehearsal);
        AbortOnDropHandle::new(tokio::spawn(async move {
            loop {
                let ((pushed, not_pushed), (pulled, not_pulled)) = {
                    let figures = rehearsal.figures.lock();
                    (figures.count(|kind| kind == Kind::Push), figures.count(Kind::is_pull))
                };
                rehearsal.journal.show(format!(
                    "{:.0} s · pushes {pushed} ok, {not_pushed} not · pulls {pulled} ok, {not_pulled} not",
                    rehearsal.journal.now().as_secs_f64()
                ));
                tokio::time::sleep(SHOW_EVERY).await;
            }
        }))
    })
}

/// Ctrl-C and SIGTERM.
struct StopSignals {
    interrupt: Signal,
    terminate: Signal,
}

impl StopSignals {
    fn listen() -> anyhow::Result<Self> {
        Ok(Self { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    /// Waits for one of them; its name.
    async fn told(&mut self) -> &'static str {
        tokio::select! {
            _ = self.interrupt.recv() => "Ctrl-C",
            _ = self.terminate.recv() => "SIGTERM",
        }
    }
}

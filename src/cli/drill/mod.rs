//! `flotilla drill`: rehearses a failure on a running `flotilla dev` cluster, under load, and reports what clients saw.
//!
//! Trace: [`run`] waits for a [`steady`] state, starts the [`load`], lets the [`scenario`] play through the
//! supervisor's socket, has everything [`read_back`], and judges the [`figures`] by the [`objectives`].

mod cluster;
mod figures;
mod image;
mod journal;
mod ledger;
mod load;
mod markdown;
mod moving_tag;
mod objectives;
mod read_back;
mod registry;
mod replace;
mod report;
mod run;
mod scenario;
mod steady;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{bail, ensure};

use self::objectives::Objective;
use self::report::{Report, Verdict};
use self::scenario::Scenario;
use super::dev::Place;
use super::{complain, say};

/// Exit status when a drill could not be run, or there is no report to print.
const EXIT_NOT_RUN: u8 = 2;

const SHORTEST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(300);

/// Rehearse a failure of a `flotilla dev` cluster under load, and see what clients saw.
#[derive(Debug, clap::Subcommand)]
pub(super) enum Drill {
    List,
    Run(Run),
    Report(Print),
}

/// Run a drill, and print its report.
///
/// It waits for a steady state (60 s at most), pushes and pulls in repositories `drill/…`, does the harm, heals it, and
/// reads everything back. Whatever ends it, the nodes run again and its tags are deleted. Exit status: 0 if every
/// objective is met, 1 if one is broken or the cluster did not come back, 2 if it could not be run.
#[derive(Debug, clap::Args)]
pub(super) struct Run {
    /// What to rehearse; `flotilla drill list` tells more
    scenario: Scenario,

    #[command(flatten)]
    place: Place,

    /// How long the load runs before the fault, and again after it: 1s to 5m
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = duration)]
    duration: Duration,

    /// The most that a figure may be, such as push-gap=5s; repeatable. push-gap, pull-gap, push-p99, pull-p99 take a
    /// time; lost, stale, failed-pulls a number; default: lost=0 and stale=0
    #[arg(long = "objective", value_name = "NAME=VALUE")]
    objectives: Vec<Objective>,

    /// Write report.json and report.md into this folder too
    #[arg(long, value_name = "DIR")]
    report: Option<PathBuf>,

    /// Print the report as JSON
    #[arg(long)]
    json: bool,
}

/// Print the report of a drill again.
#[derive(Debug, clap::Args)]
pub(super) struct Print {
    /// The report's JSON, or the folder that `--report` named
    #[arg(value_name = "FILE|DIR")]
    place: PathBuf,

    /// Print it as JSON
    #[arg(long)]
    json: bool,
}

impl Drill {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let done = match self {
            Self::List => list(),
            Self::Run(run) => run.run(),
            Self::Report(print) => print.run(),
        };
        Ok(done.unwrap_or_else(|error| {
            complain(format_args!("{error:#}"));
            ExitCode::from(EXIT_NOT_RUN)
        }))
    }
}

/// List the scenarios.
fn list() -> anyhow::Result<ExitCode> {
    let mut table = super::table(["scenario", "takes about", "what it does"]);
    for scenario in Scenario::ALL {
        let lasts = humantime::format_duration(scenario.lasts(Duration::from_secs(10))).to_string();
        table.add_row([scenario.name(), &lasts, scenario.steps()]);
    }
    say(table.trim_fmt());
    say("\nWith --duration 10s, which is how long the load runs before and after.");
    Ok(ExitCode::SUCCESS)
}

impl Run {
    fn run(self) -> anyhow::Result<ExitCode> {
        if let Some(name) = objectives::repeated(&self.objectives) {
            bail!("--objective {name} is given twice");
        }
        // Not after minutes of work.
        self.report.as_deref().map_or(Ok(()), report::prepare)?;
        let objectives = if self.objectives.is_empty() { objectives::defaults() } else { self.objectives };
        let order =
            run::Order { scenario: self.scenario, dir: self.place.data_dir, duration: self.duration, objectives };
        let report = tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(run::run(&order))?;
        self.report.as_deref().map_or(Ok(()), |folder: &Path| report.write(folder))?;
        print(&report, self.json)?;
        Ok(match report.verdict {
            Verdict::Pass => ExitCode::SUCCESS,
            Verdict::Broken => ExitCode::FAILURE,
        })
    }
}

impl Print {
    fn run(self) -> anyhow::Result<ExitCode> {
        print(&Report::read(&self.place)?, self.json)?;
        Ok(ExitCode::SUCCESS)
    }
}

fn print(report: &Report, json: bool) -> anyhow::Result<()> {
    let text = if json { report.json()? } else { markdown::render(report) };
    say(text.trim_end());
    Ok(())
}

fn duration(text: &str) -> anyhow::Result<Duration> {
    let duration = humantime::parse_duration(text)?;
    ensure!((SHORTEST..=LONGEST).contains(&duration), "must be from 1s to 5m");
    Ok(duration)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_has_a_unit_and_bounds() {
        assert_eq!(duration("90s").expect("valid"), Duration::from_secs(90));
        for odd in ["5", "0s", "999ms", "6m", "", "1x"] {
            assert!(duration(odd).is_err(), "{odd}");
        }
    }
}

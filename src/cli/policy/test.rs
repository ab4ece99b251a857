//! `flotilla policy test`: written cases, offline.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, ensure};
use quick_junit::{NonSuccessKind, Report, TestCase, TestCaseStatus, TestSuite};

use crate::admission::cases::Case;

/// Play written cases: folders with policy.yaml, state.txt, request.json and the response.json that is expected. Asks no
/// node.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Test {
    /// A folder of such folders, or one of them
    #[arg(value_name = "DIR")]
    folder: PathBuf,

    /// Write a report in JUnit's form
    #[arg(long, value_name = "FILE")]
    junit: Option<PathBuf>,
}

impl Test {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let folders = case_folders(&self.folder)?;
        let mut failed = Vec::new();
        for (name, folder) in &folders {
            match played(folder) {
                Ok(()) => crate::cli::say(format_args!("ok      {name}")),
                Err(error) => {
                    crate::cli::say(format_args!("FAILED  {name}: {error:#}"));
                    failed.push((name.as_str(), format!("{error:#}")));
                }
            }
        }
        crate::cli::say(format_args!("{} cases, {} failed", folders.len(), failed.len()));
        if let Some(file) = &self.junit {
            let names: Vec<&str> = folders.iter().map(|(name, _)| name.as_str()).collect();
            let report = junit(&names, &failed)?;
            std::fs::write(file, report).with_context(|| format!("cannot write {}", file.display()))?;
        }
        Ok(if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

/// The folders of cases, by name.
fn case_folders(folder: &Path) -> anyhow::Result<Vec<(String, PathBuf)>> {
    let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    if folder.join("request.json").exists() {
        return Ok(vec![(name(folder), folder.to_owned())]);
    }
    let entries = folder.read_dir().with_context(|| format!("cannot read {}", folder.display()))?;
    let paths: std::io::Result<Vec<_>> = entries.map(|entry| entry.map(|entry| entry.path())).collect();
    let mut folders: Vec<_> = paths?.into_iter().filter(|path| path.is_dir()).map(|path| (name(&path), path)).collect();
    folders.sort();
    ensure!(!folders.is_empty(), "{} holds no case: a case is a folder with request.json", folder.display());
    Ok(folders)
}

fn played(folder: &Path) -> anyhow::Result<()> {
    let case = Case::load(folder)?;
    let expected = case.expected.as_ref().context("response.json is missing: it says what is expected")?;
    let answer = case.play()?;
    ensure!(*expected == answer, "answered {answer}, expected {expected}");
    Ok(())
}

fn junit(names: &[&str], failed: &[(&str, String)]) -> anyhow::Result<String> {
    let mut suite = TestSuite::new("flotilla policy test");
    for name in names {
        let status = match failed.iter().find(|(failed, _)| failed == name) {
            None => TestCaseStatus::success(),
            Some((_, reason)) => {
                let mut status = TestCaseStatus::non_success(NonSuccessKind::Failure);
                status.set_message(reason.as_str());
                status
            }
        };
        suite.add_test_case(TestCase::new(*name, status));
    }
    let mut report = Report::new("flotilla");
    report.add_test_suite(suite);
    Ok(report.to_string()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_says_what_failed_and_why() {
        let report = junit(&["a", "b<c"], &[("b<c", "answered \"x\" & y".into())]).expect("a report");
        assert!(report.contains("tests=\"2\"") && report.contains("failures=\"1\""), "{report}");
        assert!(report.contains("<testcase name=\"a\""), "{report}");
        assert!(report.contains("<testcase name=\"b&lt;c\"") && report.contains("answered"), "{report}");
    }
}

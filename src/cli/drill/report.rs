//! The report of a drill: its form as JSON, and where it lies. Times in it are milliseconds; those at which something
//! happened count from the beginning of the drill.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde::{Deserialize, Serialize};

use super::markdown;

/// The form of the JSON. Fields may be added to it; anything else makes another form.
const FORMAT: u32 = 1;

const JSON: &str = "report.json";
const MARKDOWN: &str = "report.md";

/// More is no report.
const MAX_BYTES: u64 = 4 << 20;

/// How many examples of one kind of finding a report holds.
pub(super) const MAX_EXAMPLES: usize = 10;

/// What a drill did and found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Report {
    /// [`FORMAT`].
    pub(super) format: u32,
    /// Pass only if every objective is met and the cluster came back whole.
    pub(super) verdict: Verdict,
    pub(super) scenario: String,
    /// Its repositories were `drill/<run>/…`.
    pub(super) run: String,
    /// As RFC 3339.
    pub(super) started_at: String,
    /// Of the program that ran the drill.
    pub(super) version: String,
    pub(super) nodes: Vec<String>,
    pub(super) objectives: Vec<ObjectiveResult>,
    /// What the scenario expected and did not see.
    pub(super) problems: Vec<String>,
    pub(super) timeline: Vec<Event>,
    pub(super) operations: Vec<Operations>,
    /// The first operations that were no success.
    pub(super) troubles: Vec<TroubleSeen>,
    pub(super) without_push: Gap,
    pub(super) without_pull: Gap,
    pub(super) read_back: ReadBack,
    pub(super) tag_reads: TagReads,
    /// Manifests of the drill that could not be deleted.
    pub(super) left_behind: u64,
}

/// The result in a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Verdict {
    Pass,
    Broken,
}

/// What a limit and its value are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Unit {
    Ms,
    Count,
}

/// One objective and what was found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct ObjectiveResult {
    pub(super) name: String,
    pub(super) unit: Unit,
    /// The most that the value may be.
    pub(super) limit: f64,
    /// Nothing where it could not be measured, which meets no limit.
    pub(super) value: Option<f64>,
    pub(super) met: bool,
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Event {
    pub(super) at_ms: f64,
    pub(super) what: String,
}

/// The operations of one kind, from the beginning of «before» to the end of «after».
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Operations {
    pub(super) kind: String,
    pub(super) ok: u64,
    /// They had no effect.
    pub(super) failed: u64,
    /// They may have had their effect, or may yet.
    pub(super) unknown: u64,
    pub(super) before: Option<Latency>,
    /// Of those that saw any of the fault.
    pub(super) during: Option<Latency>,
    pub(super) after: Option<Latency>,
}

/// How long operations that succeed take.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Latency {
    pub(super) p50_ms: f64,
    pub(super) p99_ms: f64,
}

/// An operation that was no success.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct TroubleSeen {
    pub(super) at_ms: f64,
    pub(super) kind: String,
    pub(super) reason: String,
}

/// The longest time without a success.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Gap {
    pub(super) longest_ms: f64,
    pub(super) began_at_ms: f64,
}

/// Acknowledged pushes, read from every node by tag and by digest.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ReadBack {
    pub(super) pushes: u64,
    pub(super) nodes: u64,
    /// Pushes that some node did not give back whole.
    pub(super) lost: u64,
    pub(super) examples: Vec<String>,
}

/// Reads of a tag that moves.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct TagReads {
    /// Reads that claimed to be the latest.
    pub(super) judged: u64,
    /// Reads that warned that they may not be.
    pub(super) warned: u64,
    /// Judged reads that were not.
    pub(super) stale: u64,
    pub(super) examples: Vec<String>,
}

impl Report {
    /// The current form.
    pub(super) const FORMAT: u32 = FORMAT;

    /// The same with one more problem, which breaks it.
    pub(super) fn with_problem(mut self, problem: String) -> Self {
        self.problems.push(problem);
        Self { verdict: Verdict::Broken, ..self }
    }

    /// As JSON.
    ///
    /// # Errors
    /// A figure is no number.
    pub(super) fn json(&self) -> anyhow::Result<String> {
        Ok(serde_json::to_string_pretty(self)?)
    }

    /// Writes it as JSON and as Markdown into a folder, over an earlier one.
    ///
    /// # Errors
    /// The folder cannot be made or written.
    pub(super) fn write(&self, folder: &Path) -> anyhow::Result<()> {
        prepare(folder)?;
        for (name, text) in [(JSON, self.json()? + "\n"), (MARKDOWN, markdown::render(self))] {
            let path = folder.join(name);
            fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(())
    }

    /// Reads the JSON of a report, or that in a folder.
    ///
    /// # Errors
    /// There is none, or it is of another form.
    pub(super) fn read(place: &Path) -> anyhow::Result<Self> {
        let path = if place.is_dir() { place.join(JSON) } else { place.to_owned() };
        let cannot = || format!("cannot read the report {}", path.display());
        ensure!(fs::metadata(&path).with_context(cannot)?.len() <= MAX_BYTES, "{} is too large", path.display());
        let text = fs::read_to_string(&path).with_context(cannot)?;
        let report: Self =
            serde_json::from_str(&text).with_context(|| format!("{} is no report of a drill", path.display()))?;
        ensure!(report.format == FORMAT, "{} has form {}, this program knows {FORMAT}", path.display(), report.format);
        Ok(report)
    }
}

/// Makes the folder of a report, before anything is done for it.
///
/// # Errors
/// It cannot be made.
pub(super) fn prepare(folder: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("cannot make the folder {}", folder.display()))
}

/// Milliseconds, to the microsecond.
pub(super) fn millis(duration: Duration) -> f64 {
    duration.as_micros() as f64 / 1_000.0
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A report with something in each of its parts.
    pub(in crate::cli::drill) fn example() -> Report {
        let event = |at_ms, what: &str| Event { at_ms, what: what.to_owned() };
        let latency = |p50_ms, p99_ms| Some(Latency { p50_ms, p99_ms });
        Report {
            format: FORMAT,
            verdict: Verdict::Broken,
            scenario: "leader-crash".to_owned(),
            run: "4f2a90c1".to_owned(),
            started_at: "2026-11-29T08:00:00Z".to_owned(),
            version: "0.1.0".to_owned(),
            nodes: ["n1", "n2", "n3"].map(str::to_owned).to_vec(),
            objectives: vec![
                ObjectiveResult {
                    name: "push-gap".into(),
                    unit: Unit::Ms,
                    limit: 1_000.0,
                    value: Some(1_812.25),
                    met: false,
                },
                ObjectiveResult { name: "lost".into(), unit: Unit::Count, limit: 0.0, value: Some(0.0), met: true },
                ObjectiveResult { name: "pull-p99".into(), unit: Unit::Ms, limit: 90_000.0, value: None, met: false },
            ],
            problems: vec!["not whole again within 120 s: n1 does not answer".to_owned()],
            timeline: vec![event(13_250.0, "n2 killed, the leader"), event(15_000.5, "n3 leads")],
            operations: vec![
                Operations {
                    kind: "push".into(),
                    ok: 320,
                    failed: 2,
                    unknown: 1,
                    before: latency(41.2, 98.0),
                    during: latency(55.25, 1_800.0),
                    after: latency(40.0, 97.5),
                },
                Operations {
                    kind: "pull by tag".into(),
                    ok: 0,
                    failed: 0,
                    unknown: 0,
                    before: None,
                    during: None,
                    after: None,
                },
            ],
            troubles: vec![TroubleSeen { at_ms: 13_300.0, kind: "push".into(), reason: "PUT …: no | answer".into() }],
            without_push: Gap { longest_ms: 1_812.25, began_at_ms: 13_200.0 },
            without_pull: Gap { longest_ms: 80.0, began_at_ms: 13_240.0 },
            read_back: ReadBack { pushes: 340, nodes: 3, lost: 0, examples: Vec::new() },
            tag_reads: TagReads { judged: 900, warned: 4, stale: 1, examples: vec!["n3 showed version 7".to_owned()] },
            left_behind: 2,
        }
    }

    #[test]
    fn a_report_is_read_as_it_was_written() {
        let folder = tempfile::tempdir().expect("a folder");
        let place = folder.path().join("reports/monday");
        example().write(&place).expect("written");
        assert_eq!(Report::read(&place).expect("read"), example());
        assert_eq!(Report::read(&place.join(JSON)).expect("read"), example());
        let text = fs::read_to_string(place.join(MARKDOWN)).expect("text");
        assert!(text.starts_with("# Drill leader-crash: broken"), "{text}");
    }

    #[test]
    fn what_is_no_report_is_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let refusal = |text: &str| {
            fs::write(folder.path().join(JSON), text).expect("written");
            format!("{:#}", Report::read(folder.path()).expect_err("refused"))
        };
        assert!(refusal("{}").contains("is no report of a drill"));
        let later = Report { format: 2, ..example() };
        assert!(refusal(&later.json().expect("JSON")).contains("has form 2"));
        assert!(Report::read(Path::new("/nowhere")).is_err());
    }
}

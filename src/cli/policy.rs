//! `flotilla policy`: which images may run.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, ensure};
use flotilla_raft::PolicyName;
use reqwest::{Method, RequestBuilder};
use serde::Deserialize;

use super::api::{self, Node};
use crate::admission::cases::Case;
use crate::admission::policy::{InvalidPolicy, Policy, documents};

/// See and change which images may run in a Kubernetes cluster.
#[derive(Debug, clap::Subcommand)]
pub(super) enum PolicyCommand {
    Apply(Apply),
    List(List),
    Get(Get),
    Delete(Delete),
    History(History),
    Rollback(Rollback),
    Explain(Explain),
    Test(Test),
}

/// Put the policies of a file, YAML or JSON; several are divided by `---`.
#[derive(Debug, clap::Args)]
pub(super) struct Apply {
    /// The policies; `-` is standard input
    #[arg(short, long, value_name = "FILE")]
    file: PathBuf,

    #[command(flatten)]
    node: Node,
}

/// List the policies in force.
#[derive(Debug, clap::Args)]
pub(super) struct List {
    #[command(flatten)]
    node: Node,
}

/// Print a policy as it was put.
#[derive(Debug, clap::Args)]
pub(super) struct Get {
    name: PolicyName,

    /// As it was at this revision
    #[arg(long, value_name = "REVISION")]
    at: Option<u64>,

    #[command(flatten)]
    node: Node,
}

/// Remove a policy.
#[derive(Debug, clap::Args)]
pub(super) struct Delete {
    name: PolicyName,

    /// Only if it still has this revision
    #[arg(long, value_name = "REVISION")]
    if_match: Option<u64>,

    #[command(flatten)]
    node: Node,
}

/// List the versions of a policy, the newest first.
#[derive(Debug, clap::Args)]
pub(super) struct History {
    name: PolicyName,

    #[command(flatten)]
    node: Node,
}

/// Make a policy what it was at a revision.
#[derive(Debug, clap::Args)]
pub(super) struct Rollback {
    name: PolicyName,

    /// The revision
    #[arg(long, value_name = "REVISION")]
    to: u64,

    /// Only if it still has this revision
    #[arg(long, value_name = "REVISION")]
    if_match: Option<u64>,

    #[command(flatten)]
    node: Node,
}

/// Say why an image may run in a namespace, or not: each policy and rule.
#[derive(Debug, clap::Args)]
pub(super) struct Explain {
    /// As a container names it
    image: String,

    #[arg(short, long)]
    namespace: String,

    /// Print the answer as JSON
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    node: Node,
}

/// Play written cases: folders with policy.yaml, state.txt, request.json and the response.json that is expected. Asks no
/// node.
#[derive(Debug, clap::Args)]
pub(super) struct Test {
    /// A folder of such folders, or one of them
    #[arg(value_name = "DIR")]
    folder: PathBuf,

    /// Write a report in JUnit's form
    #[arg(long, value_name = "FILE")]
    junit: Option<PathBuf>,
}

#[derive(Deserialize)]
struct Listed {
    policies: Vec<OneListed>,
}

#[derive(Deserialize)]
struct OneListed {
    name: String,
    mode: Option<String>,
    not_understood: Option<String>,
    revision: u64,
    time: String,
}

#[derive(Deserialize)]
struct Versions {
    history: Vec<Version>,
}

#[derive(Deserialize)]
struct Version {
    revision: u64,
    time: String,
    document: Option<String>,
}

impl PolicyCommand {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        match self {
            Self::Test(test) => return test.run(),
            Self::Apply(apply) => apply.run()?,
            Self::List(list) => api::run(list.run())?,
            Self::Get(get) => api::run(get.run())?,
            Self::Delete(delete) => api::run(delete.run())?,
            Self::History(history) => api::run(history.run())?,
            Self::Rollback(rollback) => api::run(rollback.run())?,
            Self::Explain(explain) => api::run(explain.run())?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn path(name: &PolicyName) -> String {
    format!("/api/v1/policies/{name}")
}

fn on_condition(request: RequestBuilder, revision: Option<u64>) -> RequestBuilder {
    match revision {
        Some(revision) => request.header("if-match", format!("\"{revision}\"")),
        None => request,
    }
}

fn say_done(name: &PolicyName, answer: &reqwest::Response) {
    let revision = answer.headers().get("flotilla-revision").and_then(|value| value.to_str().ok());
    super::say(format_args!("policy {name}: done at revision {}", revision.unwrap_or("?")));
}

impl Apply {
    fn run(self) -> anyhow::Result<()> {
        let text = super::read_document(&self.file)?;
        // All of them are checked before the first is put.
        let checked: Result<Vec<_>, InvalidPolicy> =
            documents(&text).map(|document| Ok((Policy::parse(document, 0)?.name, document.to_owned()))).collect();
        let checked = checked.with_context(|| self.file.display().to_string())?;
        ensure!(!checked.is_empty(), "{} holds no policy", self.file.display());
        api::run(async {
            for (name, document) in checked {
                let answer = self.node.send(Method::PUT, &path(&name), |request| request.body(document)).await?;
                say_done(&name, &answer);
            }
            Ok(())
        })
    }
}

impl List {
    async fn run(self) -> anyhow::Result<()> {
        let (Listed { policies }, _) = self.node.get("/api/v1/policies").await?;
        let mut table = super::table(["name", "mode", "revision", "since"]);
        for policy in policies {
            let mode = policy.mode.or(policy.not_understood.map(|_| "not understood".into())).unwrap_or_default();
            table.add_row([policy.name, mode, policy.revision.to_string(), policy.time]);
        }
        super::say(table);
        Ok(())
    }
}

impl Get {
    async fn run(self) -> anyhow::Result<()> {
        let at = self.at.map_or_else(String::new, |revision| format!("?revision={revision}"));
        let path = format!("{}{at}", path(&self.name));
        let answer = self.node.send(Method::GET, &path, |request| request).await?;
        super::say(answer.text().await?.trim_end());
        Ok(())
    }
}

impl Delete {
    async fn run(self) -> anyhow::Result<()> {
        let fill = |request| on_condition(request, self.if_match);
        let answer = self.node.send(Method::DELETE, &path(&self.name), fill).await?;
        say_done(&self.name, &answer);
        Ok(())
    }
}

impl History {
    async fn run(self) -> anyhow::Result<()> {
        let (Versions { history }, _) = self.node.get(&format!("{}/history", path(&self.name))).await?;
        let mut table = super::table(["revision", "time", "what"]);
        for version in history {
            let what = if version.document.is_some() { "put" } else { "removed" };
            table.add_row([version.revision.to_string(), version.time, what.to_owned()]);
        }
        super::say(table);
        Ok(())
    }
}

impl Rollback {
    async fn run(self) -> anyhow::Result<()> {
        let body = serde_json::json!({ "revision": self.to }).to_string();
        let fill = |request: RequestBuilder| on_condition(request.body(body), self.if_match);
        let answer = self.node.send(Method::POST, &format!("{}/rollback", path(&self.name)), fill).await?;
        say_done(&self.name, &answer);
        Ok(())
    }
}

#[derive(Deserialize)]
struct Explained {
    allowed: bool,
    revision: u64,
    reference: Option<String>,
    not_valid: Option<String>,
    digest: Option<String>,
    policies: Vec<ExplainedPolicy>,
}

#[derive(Deserialize)]
struct ExplainedPolicy {
    name: String,
    mode: String,
    revision: u64,
    rules: Vec<ExplainedRule>,
    findings: Vec<ExplainedFinding>,
}

#[derive(Deserialize)]
struct ExplainedRule {
    name: String,
    verb: String,
    matches: bool,
}

#[derive(Deserialize)]
struct ExplainedFinding {
    rule: Option<String>,
    effect: String,
    reason: String,
}

impl Explain {
    async fn run(self) -> anyhow::Result<()> {
        let encoded = |text: &str| form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>();
        let (image, namespace) = (encoded(&self.image), encoded(&self.namespace));
        let path = format!("/api/v1/admission/explain?image={image}&namespace={namespace}");
        let (answer, _) = self.node.get::<serde_json::Value>(&path).await?;
        if self.json {
            super::say(answer);
            return Ok(());
        }
        let explained: Explained = serde_json::from_value(answer).context("an answer of another form")?;
        let verdict = if explained.allowed { "may run" } else { "may not run" };
        super::say(format_args!(
            "{} {verdict} in namespace {} (revision {})",
            self.image, self.namespace, explained.revision
        ));
        super::say(format_args!("  means {}", explained.reference.or(explained.not_valid).unwrap_or_default()));
        super::say(format_args!("  digest {}", explained.digest.as_deref().unwrap_or("not known here")));
        if explained.policies.is_empty() {
            super::say("  no policy is about this namespace");
        }
        for policy in explained.policies {
            super::say(format_args!("policy {} ({}, revision {})", policy.name, policy.mode, policy.revision));
            for rule in policy.rules {
                let is = if rule.matches { "is about it" } else { "is not about it" };
                super::say(format_args!("  {} {}: {is}", rule.verb, rule.name));
            }
            for finding in policy.findings {
                let rule = finding.rule.map_or_else(String::new, |rule| format!(" by {rule}"));
                super::say(format_args!("  {}{rule}: {}", finding.effect, finding.reason));
            }
        }
        Ok(())
    }
}

impl Test {
    fn run(self) -> anyhow::Result<ExitCode> {
        let folders = case_folders(&self.folder)?;
        let mut failed = Vec::new();
        for (name, folder) in &folders {
            match played(folder) {
                Ok(()) => super::say(format_args!("ok      {name}")),
                Err(error) => {
                    super::say(format_args!("FAILED  {name}: {error:#}"));
                    failed.push((name.as_str(), format!("{error:#}")));
                }
            }
        }
        super::say(format_args!("{} cases, {} failed", folders.len(), failed.len()));
        if let Some(file) = &self.junit {
            let names: Vec<&str> = folders.iter().map(|(name, _)| name.as_str()).collect();
            let report = junit(&names, &failed);
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

fn junit(names: &[&str], failed: &[(&str, String)]) -> String {
    let escaped =
        |text: &str| text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;");
    let mut report = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuite name=\"flotilla policy test\" tests=\"{}\" failures=\"{}\">\n",
        names.len(),
        failed.len()
    );
    for name in names {
        let reason = failed.iter().find(|(failed, _)| failed == name);
        let inner = reason.map_or_else(String::new, |(_, reason)| format!("<failure>{}</failure>", escaped(reason)));
        report += &format!("  <testcase name=\"{}\">{inner}</testcase>\n", escaped(name));
    }
    report + "</testsuite>\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_says_what_failed_and_why() {
        let report = junit(&["a", "b<c"], &[("b<c", "answered \"x\" & y".into())]);
        assert!(report.contains("tests=\"2\" failures=\"1\""));
        assert!(report.contains("<testcase name=\"a\"></testcase>"));
        assert!(report.contains("<testcase name=\"b&lt;c\"><failure>answered &quot;x&quot; &amp; y</failure>"));
    }
}

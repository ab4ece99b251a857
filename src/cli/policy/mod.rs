//! `flotilla policy`: which images may run.

mod diff;
mod explain;
mod test;
mod webhooks;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, ensure};
use flotilla_raft::PolicyName;
use reqwest::{Method, RequestBuilder};
use serde::Deserialize;

use crate::admission::policy::parse_all;
use crate::cli::api::{self, Node};

/// See and change which images may run in a Kubernetes cluster.
#[derive(Debug, clap::Subcommand)]
pub(super) enum PolicyCommand {
    Apply(Apply),
    List(List),
    Get(Get),
    Delete(Delete),
    History(History),
    Rollback(Rollback),
    Diff(diff::Diff),
    Explain(explain::Explain),
    Test(test::Test),
    Webhooks(webhooks::Webhooks),
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
            Self::Diff(diff) => api::run(diff.run())?,
            Self::Explain(explain) => api::run(explain.run())?,
            Self::Webhooks(webhooks) => api::run(webhooks.run())?,
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
    crate::cli::say(format_args!("policy {name}: done at revision {}", revision.unwrap_or("?")));
}

impl Apply {
    fn run(self) -> anyhow::Result<()> {
        let text = crate::cli::read_document(&self.file)?;
        // All of them are checked before the first is put.
        let checked = parse_all(&text).with_context(|| self.file.display().to_string())?;
        ensure!(!checked.is_empty(), "{} holds no policy", self.file.display());
        api::run(async {
            for (document, policy) in checked {
                let fill = |request: RequestBuilder| request.body(document.to_owned());
                let answer = self.node.send(Method::PUT, &path(&policy.name), fill).await?;
                say_done(&policy.name, &answer);
            }
            Ok(())
        })
    }
}

impl List {
    async fn run(self) -> anyhow::Result<()> {
        let (Listed { policies }, _) = self.node.get("/api/v1/policies").await?;
        let mut table = crate::cli::table(["name", "mode", "revision", "since"]);
        let mut reasons = Vec::new();
        for policy in policies {
            reasons.extend(policy.not_understood.as_ref().map(|reason| format!("{}: {reason}", policy.name)));
            let mode = policy.mode.or(policy.not_understood.map(|_| "not understood".into())).unwrap_or_default();
            table.add_row([policy.name, mode, policy.revision.to_string(), policy.time]);
        }
        crate::cli::say(table);
        reasons.into_iter().for_each(crate::cli::say);
        Ok(())
    }
}

impl Get {
    async fn run(self) -> anyhow::Result<()> {
        let at = self.at.map_or_else(String::new, |revision| format!("?revision={revision}"));
        let path = format!("{}{at}", path(&self.name));
        let answer = self.node.send(Method::GET, &path, |request| request).await?;
        crate::cli::say(answer.text().await?.trim_end());
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
        let mut table = crate::cli::table(["revision", "time", "what"]);
        for version in history {
            let what = if version.document.is_some() { "put" } else { "removed" };
            table.add_row([version.revision.to_string(), version.time, what.to_owned()]);
        }
        crate::cli::say(table);
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

//! `flotilla cluster status`: how the cluster is, as one of its nodes sees it.

use std::process::ExitCode;

use anyhow::Context as _;
use reqwest::Method;

use super::api::{self, Node};
use crate::cluster::status::{ClusterStatus, NodeStatus, Verdict};

/// Exit status of `status` when no node answered.
const EXIT_NO_ANSWER: u8 = 2;

/// See how the cluster is.
#[derive(Debug, clap::Subcommand)]
pub(super) enum Cluster {
    Status(Status),
}

/// Print the members of the cluster, and how many nodes may fail now.
///
/// Exit status: 0 if it is healthy, 1 if it is degraded or has no quorum, 2 if no node answers.
#[derive(Debug, clap::Args)]
pub(super) struct Status {
    /// Print the answer as JSON, just as the node gave it
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    node: Node,
}

impl Cluster {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let Self::Status(status) = self;
        match api::run(status.run()) {
            Ok(Verdict::Healthy) => Ok(ExitCode::SUCCESS),
            Ok(Verdict::Degraded | Verdict::NoQuorum) => Ok(ExitCode::FAILURE),
            Err(error) => {
                super::complain(format_args!("{} does not say how the cluster is: {error:#}", status.node.url));
                Ok(ExitCode::from(EXIT_NO_ANSWER))
            }
        }
    }
}

impl Status {
    async fn run(&self) -> anyhow::Result<Verdict> {
        let body = self.node.send(Method::GET, "/api/v1/cluster", |request| request).await?.text().await?;
        let status: ClusterStatus =
            serde_json::from_str(&body).context("it answered something else than the state of a cluster")?;
        match self.json {
            true => super::say(body.trim_end()),
            false => super::say(render(&status)),
        }
        Ok(status.verdict)
    }
}

fn render(status: &ClusterStatus) -> String {
    let leader = status.leader.as_ref().map_or("none", |leader| &leader.name);
    let mut table =
        super::table(["name", "role", "url", "version", "applied", "lag", "reachable", "blobs held", "blobs missing"]);
    table.add_rows(status.nodes.iter().map(row));
    format!(
        "cluster {}  leader {leader}  term {}  commit index {}\n{}\n{}",
        status.cluster_id,
        status.term,
        status.commit_index,
        table.trim_fmt(),
        status.sentence()
    )
}

fn row(node: &NodeStatus) -> [String; 9] {
    let number = |number: Option<u64>| number.map_or("?".to_owned(), |number| number.to_string());
    [
        node.name.clone(),
        format!("{:?}", node.role).to_lowercase(),
        node.url.clone(),
        node.version.clone().unwrap_or("?".to_owned()),
        number(node.applied_index),
        number(node.lag),
        if node.reachable { "yes" } else { "no" }.to_owned(),
        number(node.blobs.map(|blobs| blobs.held)),
        number(node.blobs.map(|blobs| blobs.missing)),
    ]
}

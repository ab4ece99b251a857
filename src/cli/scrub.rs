//! `flotilla scrub`: the comparison of all files with their digests.

use std::process::ExitCode;

use bytesize::ByteSize;
use reqwest::{Method, Url};
use serde::Deserialize;

use super::api::{self, Node};
use crate::cluster::status::ClusterStatus;
use crate::timestamp::rfc3339;

/// See how far the nodes have compared their files with their digests, and have it done now.
#[derive(Debug, clap::Subcommand)]
pub(super) enum Scrub {
    Status(Status),
    Run(Run),
}

/// Print how far each node is, and what it found.
#[derive(Debug, clap::Args)]
pub(super) struct Status {
    #[command(flatten)]
    node: Node,
}

/// Have all nodes look at all of their files now. Damaged ones are put aside, and good copies fetched.
#[derive(Debug, clap::Args)]
pub(super) struct Run {
    #[command(flatten)]
    node: Node,
}

#[derive(Deserialize)]
struct Found {
    running: bool,
    began_ms: u64,
    ended_ms: Option<u64>,
    checked: u64,
    checked_bytes: u64,
    damaged: u64,
    total_bytes: u64,
}

impl Scrub {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        api::run(async {
            match self {
                Self::Status(status) => status.run().await,
                Self::Run(run) => run.run().await,
            }
        })
    }
}

/// All nodes of the cluster, by name. The one that was asked is asked by its own URL.
async fn nodes(asked: &Node) -> anyhow::Result<Vec<(String, Node)>> {
    let (status, _) = asked.get::<ClusterStatus>("/api/v1/cluster").await?;
    let node = |url: &str| anyhow::Ok(Node { url: Url::parse(url)? });
    status.nodes.iter().map(|member| Ok((member.name.clone(), node(&member.url)?))).collect()
}

impl Status {
    async fn run(self) -> anyhow::Result<ExitCode> {
        let mut table = super::table(["node", "state", "began", "files", "bytes", "of", "damaged"]);
        let mut all_answer = true;
        for (name, node) in nodes(&self.node).await? {
            match node.get::<Found>("/api/v1/scrub").await {
                Ok((found, _)) => {
                    table.add_row(found.row(name));
                }
                Err(error) => {
                    all_answer = false;
                    super::complain(format_args!("{name}: {error:#}"));
                }
            }
        }
        super::say(table.trim_fmt());
        Ok(if all_answer { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

impl Found {
    fn row(&self, name: String) -> [String; 7] {
        let state = match (self.running, self.ended_ms) {
            (true, _) => "running".to_owned(),
            (false, Some(ended_ms)) => format!("ended {}", rfc3339(ended_ms)),
            (false, None) => "not begun".to_owned(),
        };
        let began = if self.began_ms == 0 { String::new() } else { rfc3339(self.began_ms) };
        let size = |bytes| ByteSize::b(bytes).to_string();
        [
            name,
            state,
            began,
            self.checked.to_string(),
            size(self.checked_bytes),
            size(self.total_bytes),
            self.damaged.to_string(),
        ]
    }
}

impl Run {
    async fn run(self) -> anyhow::Result<ExitCode> {
        let mut all_answer = true;
        for (name, node) in nodes(&self.node).await? {
            match node.send(Method::POST, "/api/v1/scrub", |request| request).await {
                Ok(_) => super::say(format_args!("{name} has begun")),
                Err(error) => {
                    all_answer = false;
                    super::complain(format_args!("{name}: {error:#}"));
                }
            }
        }
        Ok(if all_answer { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

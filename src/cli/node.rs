//! `flotilla node`: the members of the cluster, one by one.

use std::process::ExitCode;

use reqwest::Method;

use super::api::{self, Node};
use super::trust::{RotateAuthority, TokenCommand};
use crate::cluster::status::ClusterStatus;

/// See and remove the members of the cluster.
#[derive(Debug, clap::Subcommand)]
pub(super) enum NodeCommand {
    List(List),
    Remove(Remove),
    #[command(subcommand)]
    Token(TokenCommand),
    RotateAuthority(RotateAuthority),
}

/// List the members, with their ids, and why a learner has no vote yet.
#[derive(Debug, clap::Args)]
pub(super) struct List {
    #[command(flatten)]
    node: Node,
}

/// Remove a member for good: the leader hands over first. Refused where writes would stop or a last copy of a blob may go.
///
/// Its data stays on its disk; to come back it needs an empty data directory.
#[derive(Debug, clap::Args)]
pub(super) struct Remove {
    /// Its name, or its id where two have one name
    member: String,

    /// Remove it although copies of blobs may be lost; what would stop all writes is refused still
    #[arg(long)]
    force: bool,

    #[command(flatten)]
    node: Node,
}

impl NodeCommand {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        api::run(async {
            match self {
                Self::List(list) => list.run().await,
                Self::Remove(remove) => remove.run().await,
                Self::Token(token) => token.run().await,
                Self::RotateAuthority(rotate) => rotate.run().await,
            }
        })?;
        Ok(ExitCode::SUCCESS)
    }
}

impl List {
    async fn run(self) -> anyhow::Result<()> {
        let (status, _) = self.node.get::<ClusterStatus>("/api/v1/cluster").await?;
        let mut table = super::table(["name", "id", "role", "reachable", "url", "waits for"]);
        for node in status.nodes {
            let role = format!("{:?}", node.role).to_lowercase();
            let reachable = if node.reachable { "yes" } else { "no" }.to_owned();
            table.add_row([node.name, node.id, role, reachable, node.url, node.waits_for.unwrap_or_default()]);
        }
        super::say(table.trim_fmt());
        Ok(())
    }
}

impl Remove {
    async fn run(self) -> anyhow::Result<()> {
        let member: String = form_urlencoded::byte_serialize(self.member.as_bytes()).collect();
        let path = format!("/api/v1/nodes/{member}?force={}", self.force);
        self.node.send(Method::DELETE, &path, |request| request).await?;
        super::say(format_args!("{} is no member any more", self.member));
        Ok(())
    }
}

//! `flotilla node`: the members of the cluster, one by one.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use reqwest::{Method, StatusCode};

use super::api::{self, Node};
use super::trust::{RotateAuthority, TokenCommand};
use crate::cluster::status::{ClusterStatus, NodeStatus};

/// How often the progress of a drain is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// How long a member that is drained may be silent.
const SILENT_MAX: Duration = Duration::from_secs(30);

/// How long the removal at the end may be refused, such as while another node is to vote first.
const REFUSED_MAX: Duration = Duration::from_secs(60);

/// See the members of the cluster, drain, replace and remove them.
#[derive(Debug, clap::Subcommand)]
pub(super) enum NodeCommand {
    List(List),
    Drain(Drain),
    Decommission(Decommission),
    Replace(Replace),
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

/// Move a member's blobs and leadership to the others; it stays a member, keeps its vote and serves.
///
/// Returns at once; `flotilla cluster status` says how far it is. One member at a time.
#[derive(Debug, clap::Args)]
pub(super) struct Drain {
    /// Its name, or its id where two have one name
    member: String,

    /// End the draining: it keeps blobs again
    #[arg(long)]
    undo: bool,

    #[command(flatten)]
    node: Node,
}

/// Drain a member, wait until nothing is on it alone, and remove it for good.
///
/// Shows how far it is. Ended before, it leaves the member draining: run it again, or `flotilla node drain --undo`.
#[derive(Debug, clap::Args)]
pub(super) struct Decommission {
    /// Its name, or its id where two have one name
    member: String,

    #[command(flatten)]
    node: Node,
}

/// Give the place of a member whose disk was lost to the node of the same name that came back without it.
///
/// Start that node with an empty data directory first: it joins under a new id. Its copies come by themselves.
#[derive(Debug, clap::Args)]
pub(super) struct Replace {
    /// The name of both
    member: String,

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
                Self::Drain(drain) => drain.run().await,
                Self::Decommission(decommission) => decommission.run().await,
                Self::Replace(replace) => replace.run().await,
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
        let mut table = super::table(["name", "id", "role", "reachable", "zone", "weight", "url", "state"]);
        for node in status.nodes {
            let role = format!("{:?}", node.role).to_lowercase();
            let reachable = if node.reachable { "yes" } else { "no" }.to_owned();
            let state = state_of(&node);
            table.add_row([node.name, node.id, role, reachable, node.zone, node.weight.to_string(), node.url, state]);
        }
        super::say(table.trim_fmt());
        Ok(())
    }
}

fn state_of(node: &NodeStatus) -> String {
    match (node.draining, node.blobs, &node.waits_for) {
        (true, Some(blobs), _) if blobs.is_drained() => "drained".to_owned(),
        (true, ..) => "draining".to_owned(),
        (false, _, Some(waits_for)) => format!("no vote: {waits_for}"),
        (false, ..) => String::new(),
    }
}

impl Drain {
    async fn run(self) -> anyhow::Result<()> {
        let method = if self.undo { Method::DELETE } else { Method::PUT };
        self.node.send(method, &path(&self.member, "/drain"), |request| request).await?;
        let state = if self.undo { "keeps blobs again" } else { "is being drained" };
        super::say(format_args!("{} {state}", self.member));
        Ok(())
    }
}

impl Decommission {
    async fn run(self) -> anyhow::Result<()> {
        let name = &self.member;
        let before = self.look().await?;
        ensure!(
            before.reachable,
            "{name} does not answer, so nothing can be moved from it. Bring it back; or, if it does not come back, take it out \
             by `flotilla node remove {name}`, or if its disk is lost by `flotilla node replace {name}`"
        );
        self.node.send(Method::PUT, &path(name, "/drain"), |request| request).await?;
        let (mut said, mut answered) = (None, Instant::now());
        loop {
            let member = self.look().await?;
            ensure!(member.draining, "somebody ended the draining of {name}");
            let Some(blobs) = member.blobs else {
                ensure!(
                    answered.elapsed() < SILENT_MAX,
                    "{name} does not answer any more, and is being drained still: bring it back and go on by the same command, \
                     or end it by `flotilla node drain {name} --undo`"
                );
                tokio::time::sleep(LOOK_EVERY).await;
                continue;
            };
            answered = Instant::now();
            if blobs.is_drained() {
                break;
            }
            let left = blobs.held + blobs.surplus;
            if said.replace(left) != Some(left) && blobs.compared {
                super::say(format_args!("{left} blobs left on {}", self.member));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        self.leave().await?;
        super::say(format_args!("{} is no member any more; nothing on it is needed", self.member));
        Ok(())
    }

    /// It may have to wait for another node to vote in its place.
    async fn leave(&self) -> anyhow::Result<()> {
        let began = Instant::now();
        loop {
            match self.node.send(Method::DELETE, &path(&self.member, ""), |request| request).await {
                Err(_) if began.elapsed() < REFUSED_MAX => tokio::time::sleep(LOOK_EVERY).await,
                answer => return answer.map(drop),
            }
        }
    }

    async fn look(&self) -> anyhow::Result<NodeStatus> {
        let (status, _) = self.node.get::<ClusterStatus>("/api/v1/cluster").await?;
        let named = |node: &NodeStatus| node.name == self.member || node.id == self.member;
        status.nodes.into_iter().find(named).with_context(|| format!("{} is no member", self.member))
    }
}

impl Replace {
    async fn run(self) -> anyhow::Result<()> {
        self.node.send(Method::POST, &path(&self.member, "/replace"), |request| request).await?;
        super::say(format_args!(
            "{} has taken the place of its old id; `flotilla cluster status` shows its copies",
            self.member
        ));
        Ok(())
    }
}

impl Remove {
    async fn run(self) -> anyhow::Result<()> {
        let path = path(&self.member, &format!("?force={}", self.force));
        let answer = self.node.send(Method::DELETE, &path, |request| request).await?;
        super::say(format_args!("{} is no member any more", self.member));
        if answer.status() == StatusCode::OK {
            let forced: Forced = answer.json().await?;
            super::say(format_args!("forced although: {}", forced.may_be_lost));
        }
        Ok(())
    }
}

/// What the API says of a removal that was forced.
#[derive(serde::Deserialize)]
struct Forced {
    may_be_lost: String,
}

fn path(member: &str, rest: &str) -> String {
    let member: String = form_urlencoded::byte_serialize(member.as_bytes()).collect();
    format!("/api/v1/nodes/{member}{rest}")
}

//! The one step of a drill that changes the members of the cluster.

use std::time::Duration;

use anyhow::{bail, ensure};

use super::cluster::{Observer, until};
use crate::cluster::status::NodeStatus;

/// A removal waits for a leader, and until so many nodes answer that writes go on.
const WITHIN: Duration = Duration::from_secs(60);

/// A member whose disk is gone: the node of that name is a new one, with another id.
#[derive(Clone, Debug)]
pub(super) struct LostMember {
    pub(super) name: String,
    pub(super) id: String,
}

/// Takes the lost member out, once the new node of its name is a member, so that it can take its place. One that is no
/// member any more is as good.
///
/// # Errors
/// The cluster refuses it, nobody leads, or the new node does not join.
pub(super) async fn replace(observer: &Observer, lost: &LostMember) -> anyhow::Result<()> {
    until(WITHIN, async || {
        let status = observer.status().await?;
        if status.nodes.iter().all(|node| node.id != lost.id) {
            return Ok(());
        }
        let is_new = |node: &&NodeStatus| node.name == lost.name && node.id != lost.id;
        let Some(new) = status.nodes.iter().find(is_new) else {
            bail!("the new {} is no member yet", lost.name);
        };
        let path = format!("{}/api/v1/nodes/{}/replace", new.url, lost.name);
        let answer = observer.http().post(path).send().await?;
        if !answer.status().is_success() {
            let reason = answer.text().await.unwrap_or_default();
            bail!("the old {} (id {}) is not removed: {}", lost.name, lost.id, reason.trim());
        }
        Ok(())
    })
    .await
}

/// As [`replace`], for a drill that ended somewhere: where the member has its disk still, it stays.
///
/// # Errors
/// As [`replace`].
pub(super) async fn replace_if_lost(observer: &Observer, lost: &LostMember) -> anyhow::Result<()> {
    let is_lost = until(WITHIN, async || {
        let status = observer.status().await?;
        let mut of_that_name = status.nodes.iter().filter(|node| node.name == lost.name);
        if of_that_name.clone().any(|node| node.id != lost.id) {
            return Ok(true);
        }
        ensure!(of_that_name.any(|node| node.reachable), "{} is not back yet", lost.name);
        Ok(false)
    });
    if is_lost.await? { replace(observer, lost).await } else { Ok(()) }
}

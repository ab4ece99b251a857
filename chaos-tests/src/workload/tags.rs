//! One tag that one client moves on and on, and readers of it on every node.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use rand::Rng;
use tokio::task::JoinSet;

use crate::client::{Client, Way};
use crate::cluster::Cluster;
use crate::history::{Action, History, Operation, Outcome};
use crate::image::Image;
use crate::workload::random;

const PACE: Duration = Duration::from_millis(20);
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
const TAG: &str = "latest";

/// The writer and its readers, until [`Tags::end`].
#[derive(Debug)]
pub struct Tags {
    over: Arc<AtomicBool>,
    tasks: JoinSet<()>,
}

impl Tags {
    /// Where the tag is.
    pub const REPOSITORY: &str = "chaos/moving";

    /// Starts the one writer, which goes from node to node, and a reader on each node.
    pub fn start(cluster: &Cluster, history: &Arc<History>, seed: u64) -> Self {
        let mut tags = Self { over: Arc::default(), tasks: JoinSet::new() };
        let client = cluster.client().with_timeout(REQUEST_TIMEOUT);
        tags.tasks.spawn(write(client, Arc::clone(history), Arc::clone(&tags.over), seed));
        for node in cluster.nodes() {
            let client = cluster.client_of(node).with_timeout(REQUEST_TIMEOUT);
            let (history, over) = (Arc::clone(history), Arc::clone(&tags.over));
            tags.tasks.spawn(read(client, node.name.clone(), history, over));
        }
        tags
    }

    /// Lets everybody finish what they are at.
    pub async fn end(mut self) -> anyhow::Result<()> {
        self.over.store(true, Ordering::Relaxed);
        while let Some(ended) = self.tasks.join_next().await {
            ended.context("a writer or reader of the tag")?;
        }
        Ok(())
    }
}

async fn write(client: Client, history: Arc<History>, over: Arc<AtomicBool>, seed: u64) {
    let mut random = random(seed, 2, 0);
    while !over.load(Ordering::Relaxed) {
        let config = format!("{{\"serial\":\"{}\"}}", random.random::<u128>());
        let image = Image::of(Bytes::from(config), Vec::new());
        let start = history.now();
        let outcome = match client.push(Tags::REPOSITORY, TAG, &image, Way::Post).await {
            Ok(_) => Outcome::Ok,
            Err(problem) => problem.outcome(),
        };
        history.record(operation(Action::Put, "any", Some(image.digest), start, history.now(), outcome));
        tokio::time::sleep(PACE).await;
    }
}

async fn read(client: Client, node: String, history: Arc<History>, over: Arc<AtomicBool>) {
    while !over.load(Ordering::Relaxed) {
        let start = history.now();
        if let Ok(reply) = client.manifest(Tags::REPOSITORY, TAG).await {
            let found = match reply.status {
                200 => Some(Some(crate::image::sha256(&reply.body))),
                404 => Some(None),
                // A refusal is no statement about the tag.
                _ => None,
            };
            if let Some(digest) = found {
                let warned = reply.header("warning").is_some();
                let action = if warned { Action::StaleRead } else { Action::Read };
                history.record(operation(action, &node, digest, start, history.now(), Outcome::Ok));
            }
        }
        tokio::time::sleep(PACE).await;
    }
}

fn operation(
    action: Action,
    node: &str,
    digest: Option<String>,
    start: Duration,
    end: Duration,
    outcome: Outcome,
) -> Operation {
    Operation {
        action,
        repository: Tags::REPOSITORY.to_owned(),
        tag: TAG.to_owned(),
        digest,
        node: node.to_owned(),
        start,
        end,
        outcome,
    }
}

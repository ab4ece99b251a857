//! Pulls of everything that was acknowledged, from each node, until all of it comes back.

use std::time::{Duration, Instant};

use anyhow::bail;
use futures::{StreamExt, stream};

use crate::client::{Client, Pushed};
use crate::cluster::{Cluster, Node};
use crate::history::{Action, History, Operation, Outcome};

const AT_ONCE: usize = 8;
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(50);

/// Pulls the acknowledged puts from each of the nodes, again where one fails; the time until all were intact.
pub async fn until_served(
    cluster: &Cluster,
    history: &History,
    nodes: &[&Node],
    puts: &[Operation],
    within: Duration,
) -> anyhow::Result<Duration> {
    let client_of = |node: &Node| cluster.client_of(node).with_timeout(REQUEST_TIMEOUT);
    let nodes: Vec<_> = nodes.iter().map(|node| (node.name.clone(), client_of(node))).collect();
    until_served_by(&nodes, history, puts, within).await
}

/// [`until_served`] by nodes of these names, each with a client of it alone.
pub async fn until_served_by(
    nodes: &[(String, Client)],
    history: &History,
    puts: &[Operation],
    within: Duration,
) -> anyhow::Result<Duration> {
    let began = Instant::now();
    let mut left: Vec<(&(String, Client), &Operation)> =
        nodes.iter().flat_map(|node| puts.iter().map(move |put| (node, put))).collect();
    loop {
        let tried = stream::iter(left).map(|(node, put)| pull(history, node, put));
        let failed: Vec<_> = tried.buffer_unordered(AT_ONCE).filter_map(async |failed| failed).collect().await;
        let Some((_, _, reason)) = failed.first() else {
            return Ok(began.elapsed());
        };
        if began.elapsed() > within {
            bail!(
                "after {within:?} {} of {} pulls still fail, such as: {reason}",
                failed.len(),
                nodes.len() * puts.len()
            );
        }
        left = failed.into_iter().map(|(node, put, _)| (node, put)).collect();
        tokio::time::sleep(PAUSE).await;
    }
}

async fn pull<'a>(
    history: &History,
    node: &'a (String, Client),
    put: &'a Operation,
) -> Option<(&'a (String, Client), &'a Operation, String)> {
    let pushed = Pushed {
        repository: put.repository.clone(),
        tag: put.tag.clone(),
        digest: put.digest.clone().unwrap_or_default(),
    };
    let (name, client) = node;
    let start = history.now();
    let problem = client.verify(&pushed).await.err();
    let intact = problem.is_none();
    history.record(Operation {
        action: Action::Pull,
        repository: pushed.repository,
        tag: pushed.tag,
        digest: intact.then_some(pushed.digest),
        node: name.clone(),
        start,
        end: history.now(),
        outcome: problem.as_ref().map_or(Outcome::Ok, |problem| problem.outcome()),
    });
    problem.map(|problem| (node, put, format!("{name}: {problem}")))
}

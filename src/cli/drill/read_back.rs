//! After the load: every acknowledged push is read from every node, and everything is deleted again.

use std::collections::BTreeSet;
use std::time::Duration;

use futures::{StreamExt as _, stream};
use tokio::time::Instant;

use super::ledger::Pushed;
use super::load::Rehearsal;
use super::registry::{Pull, Registry, Trouble};
use super::report::{MAX_EXAMPLES, ReadBack};

const AT_ONCE: usize = 16;
/// What cannot be read for so long counts as lost.
const PATIENCE: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(200);
/// What is not deleted by then is left behind.
const DELETE_WITHIN: Duration = Duration::from_secs(60);

/// Reads every acknowledged push by digest (with its blobs) and by tag, from each node by itself.
pub(super) async fn read_back(rehearsal: &Rehearsal) -> ReadBack {
    let pushes = rehearsal.ledger.lock().acknowledged();
    let nodes = rehearsal.registry.nodes();
    let deadline = Instant::now() + PATIENCE;
    let readers: Vec<Registry> = (0..nodes.len()).map(|node| rehearsal.registry.only(node)).collect();
    let all = pushes.iter().enumerate().flat_map(|(number, pushed)| {
        readers.iter().zip(nodes).map(move |(reader, node)| (number, pushed, reader, &node.name))
    });
    let missing = stream::iter(all)
        .map(|(number, pushed, reader, node)| async move {
            let trouble = patiently(reader, pushed, deadline).await.err()?;
            let place = &pushed.place;
            Some((number, format!("{}:{} from {node}: {}", place.repository, place.tag, trouble.reason)))
        })
        .buffer_unordered(AT_ONCE)
        .filter_map(async |missing| missing);
    let missing: Vec<(usize, String)> = missing.collect().await;
    let lost: BTreeSet<usize> = missing.iter().map(|(number, _)| *number).collect();
    ReadBack {
        pushes: pushes.len() as u64,
        nodes: nodes.len() as u64,
        lost: lost.len() as u64,
        examples: missing.into_iter().map(|(_, example)| example).take(MAX_EXAMPLES).collect(),
    }
}

async fn patiently(reader: &Registry, pushed: &Pushed, deadline: Instant) -> Result<(), Trouble> {
    loop {
        match read(reader, pushed).await {
            Err(_) if Instant::now() < deadline => tokio::time::sleep(PAUSE).await,
            other => return other,
        }
    }
}

async fn read(reader: &Registry, pushed: &Pushed) -> Result<(), Trouble> {
    let by = |reference, blobs| Pull { repository: &pushed.place.repository, reference, digest: &pushed.digest, blobs };
    reader.pull(0, &by(&pushed.digest, &pushed.blobs[..])).await?;
    reader.pull(0, &by(&pushed.place.tag, &[])).await
}

/// Deletes every manifest of the drill, and with it its tags; how many are left behind.
pub(super) async fn delete_all(rehearsal: &Rehearsal) -> u64 {
    let manifests = rehearsal.manifests();
    let deadline = Instant::now() + DELETE_WITHIN;
    let deleted = stream::iter(manifests.iter().enumerate())
        .map(|(number, (repository, digest))| async move {
            let delete = rehearsal.registry.delete(number, repository, digest);
            matches!(tokio::time::timeout_at(deadline, delete).await, Ok(Ok(())))
        })
        .buffer_unordered(AT_ONCE);
    deleted.filter(|is_deleted| std::future::ready(!is_deleted)).count().await as u64
}

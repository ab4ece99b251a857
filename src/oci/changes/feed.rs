//! Changes as they are applied here, read and written out once for all who watch.

use std::sync::Arc;
use std::time::Duration;

use actix_web::web;
use bytes::Bytes;
use flotilla_raft::{Change, Changed, Consensus, Place, Registry, RepositoryName};
use flotilla_storage::StorageError;
use serde_json::{Value, json};
use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;

use super::rfc3339;

/// Batches that a slow watcher may be behind before it reads from state again.
const BATCHES: usize = 256;

/// The most changes of one batch.
pub(super) const BATCH_MAX: usize = 500;

/// How long the feed waits for the log to go on before it looks whether to stop.
const PATIENCE: Duration = Duration::from_secs(15);

/// A pause after an error of storage, which stops the node by itself.
const AFTER_ERROR: Duration = Duration::from_secs(1);

/// One change as watchers are told it.
pub(super) struct Event {
    pub(super) place: Place,
    pub(super) repository: RepositoryName,
    name: &'static str,
    /// The JSON document.
    data: Value,
    /// The server-sent event.
    pub(super) text: Bytes,
}

impl Event {
    /// The event as a poll shows it.
    pub(super) fn shown(&self) -> Value {
        json!({ "id": self.place.to_string(), "event": self.name, "data": self.data })
    }
}

/// Changes that follow each other.
pub(super) struct Batch {
    /// All changes up to here came before.
    pub(super) after: Place,
    pub(super) events: Vec<Event>,
}

/// Where watchers get the changes from. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Feed {
    batches: broadcast::Sender<Arc<Batch>>,
}

impl Feed {
    /// Follows the applied log until told to stop.
    pub(crate) fn start(consensus: Consensus, stop: CancellationToken) -> Self {
        let (batches, _) = broadcast::channel(BATCHES);
        let feed = Self { batches };
        tokio::spawn(stop.run_until_cancelled_owned(feed.clone().follow(consensus)));
        feed
    }

    pub(super) fn subscribe(&self) -> broadcast::Receiver<Arc<Batch>> {
        self.batches.subscribe()
    }

    /// How many watch now.
    pub(crate) fn watchers(&self) -> usize {
        self.batches.receiver_count()
    }

    async fn follow(self, consensus: Consensus) {
        let mut place = Place::after(consensus.applied_index());
        let mut applied = place.revision;
        loop {
            if !consensus.wait_applied(applied + 1, PATIENCE).await {
                continue;
            }
            applied = consensus.applied_index();
            if self.watchers() == 0 {
                place = Place::after(applied);
                continue;
            }
            place = self.pass_on(&consensus, place).await;
        }
    }

    async fn pass_on(&self, consensus: &Consensus, mut place: Place) -> Place {
        loop {
            let registry = consensus.registry().clone();
            let events = match web::block(move || read(&registry, place)).await {
                Ok(Ok(events)) => events,
                Ok(Err(_)) | Err(_) => {
                    tokio::time::sleep(AFTER_ERROR).await;
                    return place;
                }
            };
            let Some(last) = events.last().map(|event| event.place) else { return place };
            let is_all = events.len() < BATCH_MAX;
            // Nobody may watch any more.
            let _ = self.batches.send(Arc::new(Batch { after: place, events }));
            place = last;
            if is_all {
                return place;
            }
        }
    }
}

/// Up to [`BATCH_MAX`] changes after a place.
pub(super) fn read(registry: &Registry, after: Place) -> Result<Vec<Event>, StorageError> {
    let changes = registry.changes(after, BATCH_MAX)?;
    Ok(changes.into_iter().map(|(place, change)| event(place, change)).collect())
}

fn event(place: Place, change: Change) -> Event {
    let name = match change.what {
        Changed::TagPut => "tag.put",
        Changed::TagDelete => "tag.delete",
        Changed::ManifestPut => "manifest.put",
        Changed::ManifestDelete => "manifest.delete",
    };
    let data = json!({
        "revision": place.revision,
        "repository": change.repository,
        "tag": change.tag,
        "digest": change.digest.map(|digest| digest.to_string()),
        "previous": change.previous.map(|digest| digest.to_string()),
        "actor": change.actor,
        "time": rfc3339(change.time_ms),
    });
    let text = format!("id: {place}\nevent: {name}\ndata: {data}\n\n");
    Event { place, repository: change.repository, name, data, text: text.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_one_change_with_its_place() {
        let change = Change {
            what: Changed::TagPut,
            repository: "a/b".parse().unwrap(),
            tag: Some("v1".parse().unwrap()),
            digest: Some(format!("sha256:{}", "1".repeat(64)).parse().unwrap()),
            previous: None,
            actor: "eve\nid: 9".into(),
            time_ms: 1000,
        };
        let event = event(Place { revision: 7, number: 2 }, change);
        let text = String::from_utf8(event.text.to_vec()).unwrap();
        assert!(text.starts_with("id: 7.2\nevent: tag.put\ndata: {") && text.ends_with("}\n\n"));
        assert_eq!(text.lines().filter(|line| !line.is_empty()).count(), 3, "nothing in it makes a line of its own");
        assert_eq!(event.data["time"], "1970-01-01T00:00:01.000Z");
        assert_eq!(event.data["previous"], Value::Null);
    }
}

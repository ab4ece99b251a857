//! Changes as they are applied here, read and written out once for all who watch.

use std::time::Duration;

use actix_web::web;
use bytes::Bytes;
use flotilla_raft::{Change, Changed, Consensus, Place};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::audience::{Audience, Seat, Wanted};
use super::rfc3339;

/// The most changes of one batch.
pub(super) const BATCH_MAX: usize = 500;

/// How long the feed waits for the log to go on before it looks whether to stop.
const PATIENCE: Duration = Duration::from_secs(15);

/// A pause after an error of storage, which stops the node by itself.
const AFTER_ERROR: Duration = Duration::from_secs(1);

/// One change as watchers are told it.
pub(super) struct Event {
    pub(super) place: Place,
    name: &'static str,
    /// The JSON document.
    data: Value,
    /// The server-sent event.
    pub(super) text: Bytes,
}

impl Event {
    pub(super) fn new(place: Place, change: Change) -> Self {
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
        Self { place, name, data, text: text.into() }
    }

    /// The event as a poll shows it.
    pub(super) fn shown(&self) -> Value {
        json!({ "id": self.place.to_string(), "event": self.name, "data": self.data })
    }
}

/// Where watchers get the changes from. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct Feed {
    audience: Audience,
}

impl Feed {
    /// Follows the applied log until told to stop.
    pub(crate) fn start(consensus: Consensus, stop: CancellationToken) -> Self {
        let feed = Self::default();
        tokio::spawn(stop.run_until_cancelled_owned(feed.clone().follow(consensus)));
        feed
    }

    /// What is wanted of all that is applied from now on. Nothing when as many watch as may.
    pub(super) fn join(&self, wanted: Wanted) -> Option<Seat> {
        self.audience.join(wanted)
    }

    /// Everything up to here was told to those who want it.
    pub(super) fn place(&self) -> Place {
        self.audience.place()
    }

    /// How many watch now.
    pub(crate) fn watchers(&self) -> usize {
        self.audience.watchers()
    }

    async fn follow(self, consensus: Consensus) {
        let mut place = Place::after(consensus.applied_index());
        let mut applied = place.revision;
        loop {
            if !consensus.wait_applied(applied + 1, PATIENCE).await {
                continue;
            }
            applied = consensus.applied_index();
            match self.audience.skip_to(Place::after(applied)) {
                true => place = Place::after(applied),
                false => place = self.pass_on(&consensus, place).await,
            }
        }
    }

    async fn pass_on(&self, consensus: &Consensus, mut place: Place) -> Place {
        loop {
            let registry = consensus.registry().clone();
            let changes = match web::block(move || registry.changes(place, BATCH_MAX)).await {
                Ok(Ok(changes)) => changes,
                Ok(Err(_)) | Err(_) => {
                    tokio::time::sleep(AFTER_ERROR).await;
                    return place;
                }
            };
            let is_all = changes.len() < BATCH_MAX;
            for (at, change) in changes {
                self.audience.tell(at, change);
                place = at;
            }
            if is_all {
                return place;
            }
        }
    }
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
        let event = Event::new(Place { revision: 7, number: 2 }, change);
        let text = String::from_utf8(event.text.to_vec()).unwrap();
        assert!(text.starts_with("id: 7.2\nevent: tag.put\ndata: {") && text.ends_with("}\n\n"));
        assert_eq!(text.lines().filter(|line| !line.is_empty()).count(), 3, "nothing in it makes a line of its own");
        assert_eq!(event.data["time"], "1970-01-01T00:00:01.000Z");
        assert_eq!(event.data["previous"], Value::Null);
    }
}

//! One change as watchers are told it.

use bytes::Bytes;
use flotilla_raft::{Change, Changed, Place};
use serde_json::{Value, json};

use crate::timestamp::rfc3339;

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

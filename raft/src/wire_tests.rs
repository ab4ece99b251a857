//! Golden bytes: what is written today must be read, and written alike, by every later version.
//!
//! `testdata/golden/*.hex` are never changed. A new form gets a new file: `UPDATE_GOLDEN=1` writes those that are absent.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::path::Path;
use std::sync::Arc;

use flotilla_storage::{Algorithm, Digest};
use openraft::raft::{AppendEntriesRequest, VoteRequest};
use openraft::{EntryPayload, Membership};
use serde::Serialize;
use serde::de::DeserializeOwned;
use uuid::Uuid;

use crate::command::{
    Answer, Body, Command, Condition, ManifestPut, Outcome, Proposal, Refusal, TagChange, TrustChange,
};
use crate::member::NodeRecord;
use crate::network::{BlobCounts, Identity, Pong, ProposeReply, ReadIndexReply};
use crate::records::{
    AuthoritiesRecord, BlobRecord, Change, Changed, FormerManifest, LinkRecord, ManifestRecord, Place, PolicyVersion,
    Referrer, RepositoryRecord, TagRecord, TagVersion, TokenRecord,
};
use crate::state_machine::long_rows::Head;
use crate::state_store::AppliedRow;
use crate::types::{Entry, LogId, StoredMembership, TypeConfig, Vote};
use crate::wire::{self, Kind};

fn golden<T: Serialize + DeserializeOwned + Debug>(name: &str, kind: Kind, value: &T) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/golden").join(format!("{name}.hex"));
    let written = wire::encode(kind, value).expect("encodes");
    if !path.exists() && std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, hex::encode(&written) + "\n").expect("written");
    }
    let text = std::fs::read_to_string(&path).unwrap_or_else(|problem| panic!("{}: {problem}", path.display()));
    let released = hex::decode(text.trim()).expect("hexadecimal digits");
    let read: T = wire::decode(kind, &released).expect("released bytes are read");
    assert_eq!(format!("{read:?}"), format!("{value:?}"), "{name} is read as something else");
    assert_eq!(written, released, "{name} is written in another form");
}

fn digest(text: &str) -> Digest {
    Digest::of(Algorithm::Sha256, text.as_bytes())
}

fn record() -> NodeRecord {
    NodeRecord { name: "n1".into(), peer_address: "n1.peers:7000".into(), url: "http://n1:5000".into() }
}

fn log_id(index: u64) -> LogId {
    LogId::new(openraft::vote::RaftLeaderId::new(3, 0xabc), index)
}

fn membership() -> Membership<u64, NodeRecord> {
    Membership::new(vec![[1].into()], BTreeMap::from([(1, record()), (2, record())])).expect("a membership")
}

fn proposal(command: Command) -> Proposal {
    Proposal {
        request_id: Uuid::from_u128(0x1234),
        base_index: 77,
        time_ms: 1_790_000_000_000,
        actor: "alice".into(),
        command,
    }
}

fn commands() -> Vec<(&'static str, Command)> {
    let repository: crate::RepositoryName = "library/redis".parse().expect("a name");
    let put = ManifestPut {
        repository: repository.clone(),
        digest: Digest::of(Algorithm::Sha512, b"manifest"),
        media_type: "application/vnd.oci.image.manifest.v1+json".into(),
        size: 8,
        body: Body::Inline("manifest".into()),
        tags: vec!["latest".parse().expect("a tag")],
        blobs: vec![digest("config")],
        manifests: vec![digest("child")],
        either: vec![digest("cache")],
        subject: Some(digest("subject")),
        artifact_type: Some("application/example".into()),
        annotations: vec![("a".into(), "b".into())],
        condition: Some(Condition::At(digest("before"))),
        mentions: vec![digest("mentioned")],
    };
    vec![
        ("found", Command::Found { cluster_id: Uuid::from_u128(9) }),
        (
            "link-inline",
            Command::LinkBlob {
                repository: repository.clone(),
                digest: digest("a"),
                size: 1,
                body: Body::Inline("a".into()),
            },
        ),
        (
            "link-file",
            Command::LinkBlob {
                repository: repository.clone(),
                digest: digest("b"),
                size: 1 << 40,
                body: Body::File { holders: vec![1, 2], min_copies: 2, promised: 70 },
            },
        ),
        (
            "mount",
            Command::MountBlob { repository: repository.clone(), from: Some(repository.clone()), digest: digest("a") },
        ),
        ("put-manifest", Command::PutManifest(Box::new(put))),
        (
            "delete-tag",
            Command::DeleteTag {
                repository: repository.clone(),
                tag: "latest".parse().expect("a tag"),
                condition: Some(Condition::Present),
            },
        ),
        (
            "move-tags",
            Command::MoveTags(vec![TagChange {
                repository: repository.clone(),
                tag: "latest".parse().expect("a tag"),
                digest: Some(digest("manifest")),
                condition: Some(Condition::Absent),
            }]),
        ),
        ("delete-manifest", Command::DeleteManifest { repository: repository.clone(), digest: digest("m") }),
        ("unlink", Command::UnlinkBlob { repository: repository.clone(), digest: digest("a") }),
        ("touch", Command::TouchBlob { repository: repository.clone(), digest: digest("a") }),
        ("collect-untagged", Command::CollectUntagged { repository, digests: vec![digest("m")] }),
        (
            "change-policy",
            Command::ChangePolicy {
                name: "prod".parse().expect("a name"),
                document: Some("default: deny".into()),
                expected: Some(3),
            },
        ),
        ("found-policies", Command::FoundPolicies(vec![("prod".parse().expect("a name"), "default: deny".into())])),
        ("place-node", Command::PlaceNode { node: 0xabc, zone: "eu-1a".into(), weight: 2 }),
        ("drain-node", Command::DrainNode { node: 0xabc, draining: true }),
        ("collect", Command::Collect { orphans: vec![digest("a")], limit: 200 }),
        (
            "authorities",
            Command::ChangeTrust(TrustChange::Authorities {
                certificates: vec!["certificate".into()],
                signer: 0,
                expected: 3,
            }),
        ),
        (
            "put-token",
            Command::ChangeTrust(TrustChange::PutToken {
                id: "7f".into(),
                authority: "certificate".into(),
                lifetime_ms: 3_600_000,
            }),
        ),
        ("use-token", Command::ChangeTrust(TrustChange::UseToken { id: "7f".into(), node: 0xabc })),
    ]
}

#[test]
fn entries_of_the_log_keep_their_form() {
    for (name, command) in commands() {
        golden(
            &format!("entry-{name}"),
            Kind::Entry,
            &Entry { log_id: log_id(5), payload: EntryPayload::Normal(Arc::new(proposal(command))) },
        );
    }
    golden("entry-blank", Kind::Entry, &Entry { log_id: log_id(6), payload: EntryPayload::Blank });
    golden(
        "entry-membership",
        Kind::Entry,
        &Entry { log_id: log_id(7), payload: EntryPayload::Membership(membership()) },
    );
    golden("vote", Kind::Vote, &Vote::new_committed(3, 0xabc));
    golden("log-id", Kind::LogId, &log_id(8));
}

#[test]
fn rows_of_state_keep_their_form() {
    golden(
        "row-applied",
        Kind::Row,
        &AppliedRow {
            log_id: Some(log_id(9)),
            membership: StoredMembership::new(Some(log_id(7)), membership()),
            time_ms: 5,
        },
    );
    golden("row-tag", Kind::Row, &TagRecord { digest: digest("m"), revision: 9, time_ms: 5, actor: "alice".into() });
    let link =
        LinkRecord { size: 5, inline: true, revision: 3, request_id: Uuid::from_u128(4), uses: 2, unused_since_ms: 6 };
    golden("row-link", Kind::Row, &link);
    let blob =
        BlobRecord { size: 5, body: Some("bytes".into()), file: false, links: 2, manifests: 1, unused_since_ms: 6 };
    golden("row-blob", Kind::Row, &blob);
    golden("row-file", Kind::Row, &5_u64);
    let policy = PolicyVersion { document: Some("default: deny".into()), time_ms: 5, actor: "alice".into() };
    golden("row-policy", Kind::Row, &policy);
    let authorities =
        AuthoritiesRecord { certificates: vec!["certificate".into()], signer: 0, revision: 4, time_ms: 5 };
    golden("row-authorities", Kind::Row, &authorities);
    let token = TokenRecord { id: "7f".into(), authority: "certificate".into(), ends_ms: 6, used_by: Some(0xabc) };
    golden("row-tokens", Kind::Row, &vec![token]);
    golden("row-repository", Kind::Row, &RepositoryRecord { blobs: 3, manifests: 2 });
    let manifest = ManifestRecord {
        media_type: "application/example".into(),
        size: 8,
        inline: false,
        revision: 4,
        blobs: vec![digest("config")],
        manifests: vec![digest("child")],
        either: vec![digest("cache")],
        subject: Some(digest("subject")),
        artifact_type: Some("application/example".into()),
        tagged: true,
        untagged_since_ms: 7,
        time_ms: 6,
        mentions: vec![digest("mentioned")],
    };
    golden("row-manifest", Kind::Row, &manifest);
    golden("row-former", Kind::Row, &FormerManifest { record: manifest, deleted_ms: 6, deleted_at: 5 });
    let answer = Answer { revision: 4, result: Ok(Outcome::Mounted { size: 5 }) };
    golden("row-request", Kind::Row, &(Uuid::from_u128(4), answer));
    golden("row-version", Kind::Row, &TagVersion { digest: Some(digest("m")), time_ms: 5, actor: "alice".into() });
    let change = Change {
        what: Changed::TagPut,
        repository: "library/redis".parse().expect("a name"),
        tag: Some("latest".parse().expect("a tag")),
        digest: Some(digest("m")),
        previous: None,
        actor: "alice".into(),
        time_ms: 5,
    };
    golden("row-change", Kind::Row, &(Place { revision: 4, number: 1 }, change));
    let referrer = Referrer {
        media_type: "application/example".into(),
        size: 8,
        artifact_type: None,
        annotations: vec![("a".into(), "b".into())],
    };
    golden("row-referrer", Kind::Row, &referrer);
    golden("row-long", Kind::LongRow, &Head { parts: 163 });
    golden("row-cluster", Kind::Row, &Uuid::from_u128(9));
}

#[test]
fn calls_of_the_peer_port_keep_their_form() {
    let entries = vec![Entry { log_id: log_id(5), payload: EntryPayload::Blank }];
    golden(
        "call-append",
        Kind::Request,
        &AppendEntriesRequest::<TypeConfig> {
            vote: Vote::new_committed(3, 0xabc),
            prev_log_id: Some(log_id(4)),
            entries,
            leader_commit: Some(log_id(3)),
        },
    );
    golden("call-vote", Kind::Request, &VoteRequest::<TypeConfig>::new(Vote::new(4, 0xabc), Some(log_id(5))));
    for (name, command) in commands().into_iter().take(1) {
        golden(&format!("call-propose-{name}"), Kind::Request, &vec![proposal(command)]);
    }
    let refused = Answer { revision: 4, result: Err(Refusal::ContentMissing(vec![digest("layer")])) };
    golden("reply-propose", Kind::Response, &vec![ProposeReply::Answered(refused)]);
    golden("reply-read-index", Kind::Response, &ReadIndexReply::Index(12));
    golden(
        "reply-ping",
        Kind::Response,
        &Pong {
            id: 0xabc,
            applied_index: 12,
            version: "0.1.0".into(),
            blobs: BlobCounts {
                layout_revision: 9,
                rules_revision: 8,
                held: 3,
                held_bytes: 300,
                missing: 1,
                missing_bytes: 100,
                nowhere: 1,
                nowhere_bytes: 100,
                surplus: 2,
                repair_rate: 1000,
            },
            time_ms: 5,
        },
    );
    golden(
        "reply-identity",
        Kind::Response,
        &Identity {
            id: 0xabc,
            record: record(),
            cluster_id: Some(Uuid::from_u128(9)),
            empty: false,
            time_ms: 5,
            process: Uuid::from_u128(8),
        },
    );
}

#[test]
fn damaged_and_unknown_bytes_are_refused() {
    let good = wire::encode(Kind::LogId, &log_id(8)).expect("encodes");
    for position in 0..good.len() {
        let mut bad = good.clone();
        bad[position] ^= 0x40;
        assert!(wire::decode::<LogId>(Kind::LogId, &bad).is_err(), "a flipped bit in byte {position}");
    }
    assert!(wire::decode::<LogId>(Kind::Vote, &good).is_err(), "another kind");
    assert!(wire::decode::<LogId>(Kind::LogId, &good[..good.len() - 1]).is_err(), "a cut tail");
}

//! One node as a group of its own: what must hold before there is anybody to agree with.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use uuid::Uuid;

use crate::command::{Body, Command};
use crate::consensus::{Consensus, Options};
use crate::member::NodeRecord;

async fn start(dir: &Path) -> Consensus {
    let options = Options {
        data_dir: dir.to_path_buf(),
        node_id: 7,
        record: NodeRecord { name: "n1".into(), peer_address: "127.0.0.1:1".into(), url: "http://127.0.0.1:2".into() },
        snapshot_every: 20_000,
        keep: 5_000,
        heartbeat: Duration::from_millis(20),
        election_min: Duration::from_millis(100),
        election_max: Duration::from_millis(200),
        peers: Vec::new(),
        cluster_id: None,
        voters_max: 5,
        replicas: 3,
        min_copies: 2,
        version: "test".into(),
    };
    Consensus::start(options, &crate::network::Dialer::plain()).await.expect("starts")
}

async fn ready(node: &Consensus) {
    let ready = async {
        while node.read_barrier().await.is_err() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), ready).await.expect("leads within ten seconds");
}

fn link(content: &'static str) -> Command {
    let digest = flotilla_storage::Digest::of(flotilla_storage::Algorithm::Sha256, content.as_bytes());
    let body = Body::Inline(content.into());
    Command::LinkBlob { repository: "r".parse().expect("a name"), digest, size: content.len() as u64, body }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_leader_stands_for_election_again_and_has_what_it_acknowledged() {
    let dir = tempfile::tempdir().expect("a folder");
    let first = start(dir.path()).await;
    assert!(first.is_empty());
    first.found(BTreeMap::from([(first.node_id(), first.record().clone())])).await.expect("founded");
    ready(&first).await;
    let answer = first.propose(Uuid::new_v4(), link("content")).await.expect("applied");
    let term = first.status().term;
    first.shutdown().await;
    drop(first);

    let second = start(dir.path()).await;
    ready(&second).await;
    // Leading on in its old term, it could give another entry an index that others hold already.
    assert!(second.status().term > term, "term {} after term {term}", second.status().term);
    assert!(second.applied_index() >= answer.revision);
    let digest = flotilla_storage::Digest::of(flotilla_storage::Algorithm::Sha256, b"content");
    assert!(second.registry().link(&"r".parse().expect("a name"), &digest).expect("read").is_some());
    second.shutdown().await;
}

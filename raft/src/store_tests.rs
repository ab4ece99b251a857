//! openraft's own storage suite over our stores, and what it does not test: restart, snapshots while applies go on.

use std::collections::BTreeMap;
use std::sync::Arc;

use flotilla_storage::{Algorithm, Digest};
use futures::stream;
use openraft::storage::{RaftLogStorage, RaftLogStorageExt, RaftStateMachine};
use openraft::testing::log::{StoreBuilder, Suite};
use openraft::{EntryPayload, Membership, RaftLogReader, RaftSnapshotBuilder, StorageError};
use tempfile::TempDir;
use uuid::Uuid;

use crate::command::{Body, Command, ManifestPut, Proposal};
use crate::log_store::LogStore;
use crate::member::NodeRecord;
use crate::records::Place;
use crate::registry::Registry;
use crate::snapshot::{Copy, Received};
use crate::state_store::StateStore;
use crate::types::{Entry, LogId, TypeConfig};

struct Builder;

impl StoreBuilder<TypeConfig, LogStore, StateStore, TempDir> for Builder {
    async fn build(&self) -> Result<(TempDir, LogStore, StateStore), StorageError<TypeConfig>> {
        let dir = tempfile::tempdir().expect("a folder");
        let log = LogStore::open(dir.path()).expect("a log");
        let (state, _, _) = StateStore::open(dir.path()).expect("a state");
        Ok((dir, log, state))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn openrafts_storage_suite_passes() {
    Suite::test_all(Builder).await.expect("the suite");
}

fn log_id(index: u64) -> LogId {
    LogId::new(openraft::vote::RaftLeaderId::new(1, 1), index)
}

fn link(index: u64) -> Entry {
    let content = format!("blob {index}");
    let command = Command::LinkBlob {
        repository: format!("r{}", index % 7).parse().expect("a name"),
        digest: Digest::of(Algorithm::Sha256, content.as_bytes()),
        size: content.len() as u64,
        body: Body::Inline(content.into()),
    };
    let proposal = Proposal {
        request_id: Uuid::from_u128(index.into()),
        base_index: 0,
        time_ms: index,
        actor: String::new(),
        command,
    };
    Entry { log_id: log_id(index), payload: EntryPayload::Normal(Arc::new(proposal)) }
}

fn manifest(index: u64) -> Entry {
    let content = format!("manifest {index}");
    let Entry { log_id, payload } = link(index);
    let EntryPayload::Normal(proposal) = payload else { panic!("a proposal") };
    let put = ManifestPut {
        repository: "r".parse().expect("a name"),
        digest: Digest::of(Algorithm::Sha256, content.as_bytes()),
        media_type: "application/example".into(),
        size: content.len() as u64,
        body: Body::Inline(content.into()),
        tags: Vec::new(),
        blobs: Vec::new(),
        manifests: Vec::new(),
        either: Vec::new(),
        subject: None,
        artifact_type: None,
        annotations: Vec::new(),
        condition: None,
        mentions: Vec::new(),
    };
    let command = Command::PutManifest(Box::new(put));
    Entry { log_id, payload: EntryPayload::Normal(Arc::new(Proposal { command, ..(*proposal).clone() })) }
}

fn founding() -> Entry {
    let nodes = BTreeMap::from([(1, NodeRecord::default()), (2, NodeRecord::default())]);
    let membership = Membership::new(vec![[1, 2].into()], nodes).expect("a membership");
    Entry { log_id: log_id(0), payload: EntryPayload::Membership(membership) }
}

async fn apply(state: &mut StateStore, entries: impl IntoIterator<Item = Entry>) {
    let entries: Vec<_> = entries.into_iter().map(|entry| Ok((entry, None))).collect();
    state.apply(stream::iter(entries)).await.expect("applied");
}

#[tokio::test(flavor = "multi_thread")]
async fn entries_are_there_after_a_restart_and_across_memory_and_disk() {
    let dir = tempfile::tempdir().expect("a folder");
    {
        let mut log = LogStore::open(dir.path()).expect("a log");
        log.blocking_append([founding()].into_iter().chain((1..1000).map(link))).await.expect("appended");
        log.save_committed(Some(log_id(500))).await.expect("saved");
        log.blocking_append((1000..1100).map(link)).await.expect("appended");
        log.truncate_after(Some(log_id(1049))).await.expect("truncated");
        log.purge(log_id(99)).await.expect("purged");
    }
    let mut log = LogStore::open(dir.path()).expect("a log");
    assert_eq!(log.read_committed().await.expect("read"), Some(log_id(500)));
    log.blocking_append((1050..1060).map(link)).await.expect("appended");
    let all = log.try_get_log_entries(..).await.expect("read");
    assert_eq!(all.iter().map(|entry| entry.log_id.index).collect::<Vec<_>>(), (100..1060).collect::<Vec<_>>());
    assert_eq!(all[1], link(101));
    let some = log.limited_get_log_entries(1040, 1060).await.expect("read");
    assert!(!some.is_empty() && some[0] == link(1040));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_is_the_state_at_its_log_id_while_applies_go_on() {
    let (from, to) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let (mut source, _, _) = StateStore::open(from.path()).expect("a state");
    apply(&mut source, [founding()].into_iter().chain((1..200).map(link))).await;
    assert!(source.get_current_snapshot().await.expect("none yet").is_none());
    source.try_create_snapshot_builder(true).await.expect("a builder").build_snapshot().await.expect("built");
    let snapshot = source.get_current_snapshot().await.expect("read").expect("there is one");
    assert_eq!(snapshot.meta.last_log_id, Some(log_id(199)));
    let Copy::View(mut view) = snapshot.snapshot else { panic!("a view") };
    assert!(source.try_create_snapshot_builder(false).await.is_none(), "no new snapshot while a copy is out");

    apply(&mut source, (200..400).map(link)).await;
    let (mut target, store, watches) = StateStore::open(to.path()).expect("a state");
    apply(&mut target, [founding()]).await;
    let mut install = store.begin_install().expect("a generation");
    while let Some(rows) = view.next_chunk(2000).expect("rows") {
        install.put(&rows).expect("written");
    }
    target.install_snapshot(&snapshot.meta, Copy::Received(Received::new(install))).await.expect("installed");
    assert_eq!(target.applied_state().await.expect("read").0, Some(log_id(199)));
    assert_eq!(watches.progress.borrow().members.len(), 2);
    let registry = Registry::new(store);
    let there = |index: u64| {
        let digest = Digest::of(Algorithm::Sha256, format!("blob {index}").as_bytes());
        registry.link(&format!("r{}", index % 7).parse().expect("a name"), &digest).expect("read").is_some()
    };
    assert!((1..200).all(there) && !(200..400).any(there));

    apply(&mut target, (200..400).map(link)).await;
    assert!((1..400).all(there));
}

/// Changes lie in many rows, which a reader sees one after the other.
#[tokio::test(flavor = "multi_thread")]
async fn changes_are_read_without_a_gap_while_applies_go_on() {
    const LAST: u64 = 3000;
    let dir = tempfile::tempdir().expect("a folder");
    let (mut state, store, _) = StateStore::open(dir.path()).expect("a state");
    apply(&mut state, [founding()]).await;
    let readers: Vec<_> = (0..3)
        .map(|_| {
            let registry = Registry::new(store.clone());
            std::thread::spawn(move || {
                let (mut place, mut next) = (Place::default(), 1);
                while next <= LAST {
                    for (at, _) in registry.changes(place, 500).expect("read") {
                        assert_eq!(at.revision, next, "a change was passed over");
                        (place, next) = (at, next + 1);
                    }
                }
            })
        })
        .collect();
    for index in 1..=LAST {
        apply(&mut state, [manifest(index)]).await;
    }
    for reader in readers {
        tokio::task::spawn_blocking(|| reader.join()).await.expect("a thread").expect("no gap");
    }
}

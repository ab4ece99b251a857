//! Snapshots: the flushed state is the snapshot (docs/adr/0002). Building one costs a flush, not a copy; the copy
//! is read from a view of the rows while applies go on, and only when a follower needs it.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use flotilla_storage::{Install, MetadataStore, StorageError, View};
use openraft::RaftSnapshotBuilder;
use tokio::sync::{mpsc, oneshot};

use crate::state_store::{Counters, Job};
use crate::types::{SnapshotMeta, TypeConfig};

/// A snapshot as openraft hands it around.
pub(crate) type Snapshot = openraft::alias::SnapshotOf<TypeConfig, Copy>;

/// The data of a snapshot.
pub(crate) enum Copy {
    /// The one that has just been built: the state itself.
    State,
    /// The rows as they were at the snapshot's log id, to be sent to a follower.
    View(View),
    /// The rows that came from the leader, to be installed.
    Received(Received),
}

/// Rows that came from the leader and are not installed yet. Where openraft needs them no more it drops them on its own
/// task; what is left of them is removed elsewhere, since that takes time.
pub(crate) struct Received(Option<Install>);

impl Received {
    pub(crate) fn new(install: Install) -> Self {
        Self(Some(install))
    }

    /// # Errors
    /// They are installed already.
    pub(crate) fn into_install(mut self) -> Result<Install, StorageError> {
        self.0.take().ok_or(StorageError::Closed)
    }
}

impl Drop for Received {
    fn drop(&mut self) {
        if let Some(install) = self.0.take() {
            // Without a thread it is dropped here.
            let _ = std::thread::Builder::new().name("copy-given-up".into()).spawn(move || drop(install));
        }
    }
}

/// Makes what has been applied safe from a purge of the log.
pub(crate) struct Builder {
    pub(crate) store: MetadataStore,
    pub(crate) jobs: mpsc::Sender<Job>,
    pub(crate) meta: SnapshotMeta,
    pub(crate) counters: Arc<Counters>,
}

impl RaftSnapshotBuilder<TypeConfig> for Builder {
    type SnapshotData = Copy;

    async fn build_snapshot(&mut self) -> Result<Snapshot, io::Error> {
        let (done, waits) = oneshot::channel();
        self.jobs.send(Job::Mark(done)).await.map_err(|_| StorageError::Closed)?;
        waits.await.map_err(|_| StorageError::Closed)??;
        // After the flush the disk holds everything up to meta, and the marker; applies since then may be there too.
        let store = self.store.clone();
        tokio::task::spawn_blocking(move || store.flush()).await.map_err(io::Error::other)??;
        self.counters.built.fetch_add(1, Ordering::Relaxed);
        Ok(Snapshot { meta: self.meta.clone(), snapshot: Copy::State })
    }
}

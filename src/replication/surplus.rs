//! Copies that belong to other nodes: they stay where they are until all of these have theirs, so that a layout may
//! change at any time without a moment at which a blob has fewer copies than before.

use std::time::Duration;

use flotilla_raft::Member;
use flotilla_storage::{Digest, StorageError};
use futures::future::join_all;
use tokio_util::sync::CancellationToken;

use super::writer::blocking;
use super::{Replication, placement};

/// How often what is left is looked at again.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Copies that are asked about at a time.
const ASKED_AT_ONCE: usize = 32;

impl Replication {
    /// Removes copies that belong elsewhere once they are there, until told to stop.
    pub(super) async fn remove_surplus(self, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
            for some in self.tally().surplus().chunks(ASKED_AT_ONCE) {
                for (digest, gone) in join_all(some.iter().map(|digest| self.leave(*digest))).await {
                    match gone {
                        Ok(true) => tracing::debug!(%digest, "removed a copy that others keep"),
                        Ok(false) => {}
                        Err(error) => tracing::error!(%digest, %error, "a copy that others keep could not be removed"),
                    }
                }
                if stop.is_cancelled() {
                    return;
                }
            }
        }
    }

    /// Removes one copy if all nodes to which it belongs have theirs; says whether it is gone.
    async fn leave(&self, digest: Digest) -> (Digest, Result<bool, StorageError>) {
        let (revision, members) = (self.consensus().layout_revision(), self.consensus().members());
        let copies = self.copies_of(&digest);
        let placed = placement::placed(&digest, &members, copies);
        if placed.is_empty() || placed.contains(&self.node_id()) {
            return (digest, Ok(false));
        }
        // From here on: who is promised the bytes by this node keeps them here.
        self.consensus().promises().leave(&digest);
        let keepers: Vec<&Member> = members.iter().filter(|member| placed.contains(&member.id)).collect();
        let asked = keepers.iter().map(|keeper| self.peers().keeps(keeper, &digest, revision));
        if !join_all(asked).await.into_iter().all(|kept| kept.unwrap_or(false)) {
            self.consensus().promises().stay(&digest);
            return (digest, Ok(false));
        }
        let replication = self.clone();
        let removed = blocking(move || {
            let consensus = replication.consensus();
            // By another layout, others were to be asked.
            let is_same = || consensus.layout_revision() == revision;
            let removed =
                consensus.promises().remove_leaving(&digest, is_same, || replication.blobs().take_out(&digest));
            // Here, where it may take its time.
            removed.map(|taken| taken.map(drop))
        });
        match removed.await {
            Ok(Some(Ok(()))) => {
                self.tally().forget(&digest);
                (digest, Ok(true))
            }
            Ok(None) => (digest, Ok(false)),
            Ok(Some(Err(error))) | Err(error) => (digest, Err(error)),
        }
    }
}

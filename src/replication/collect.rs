//! Collection of what nothing uses. The leader proposes what is due, each node the files that it holds without a name,
//! and every node removes files once an applied entry says so: never by its own clock (invariant I21).

use std::time::Duration;

use flotilla_raft::{AppliedBlob, Collected, Command, Outcome, ProposeError, RepositoryName};
use flotilla_storage::{Digest, StorageError};
use tokio::sync::broadcast::error::RecvError;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::Replication;
use super::writer::blocking;

/// How often the leader looks whether something is due.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// The time between two comparisons of all files with what is named.
const WALK_EVERY: Duration = Duration::from_secs(600);

/// What one entry of the log collects at most: other entries wait while it is applied.
const ONE_ENTRY: usize = 200;

/// Repositories that are looked through between two pauses.
const WALKED_AT_ONCE: usize = 100;

/// The most files without a name that one walk proposes; the next one finds the others.
const ORPHANS_MAX: usize = 10_000;

/// Files removed between two looks at what else is to be done.
const REMOVED_AT_ONCE: usize = 64;

/// Why a collection did not come to its end. What it did until then is done.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CollectError {
    /// The log took no entry, or its answer is not known.
    #[error(transparent)]
    Propose(#[from] ProposeError),
    /// This node's disk failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

impl Replication {
    /// Collects all that is due, and the files without a name of all nodes that answer. What the answer counts is
    /// gone from state; the nodes remove their files at the same time. Also says the revision of the last entry.
    ///
    /// # Errors
    /// No majority, or this node's disk.
    pub(crate) async fn collect(&self) -> Result<(Collected, u64), CollectError> {
        let (own, members) = (self.node_id(), self.consensus().members());
        let others = members.iter().filter(|member| member.id != own && self.consensus().reachable(member.id));
        let asked = others.map(|peer| async move {
            let orphans = self.peers().collect_orphans(peer).await;
            orphans.unwrap_or_else(|error| {
                tracing::warn!(%error, "a node could not say which of its files have no name");
                0
            })
        });
        let (here, elsewhere) = futures::join!(self.collect_orphans(), futures::future::join_all(asked));
        let untagged = self.collect_untagged().await?;
        let (mut collected, revision) = self.collect_due().await?;
        collected.untagged += untagged;
        collected.orphans += here? + elsewhere.into_iter().sum::<u64>();
        Ok((collected, revision))
    }

    /// Proposes the manifests that had no tag for too long, where rules say that such go; says how many went.
    async fn collect_untagged(&self) -> Result<u64, CollectError> {
        if !self.consensus().rules().collects_untagged() {
            return Ok(0);
        }
        let (mut count, mut after) = (0, None::<RepositoryName>);
        loop {
            let (consensus, last) = (self.consensus().clone(), after.clone());
            let page = blocking(move || {
                let (rules, now_ms) = (consensus.rules(), consensus.now_ms());
                let registry = consensus.registry();
                let page = registry.repositories(last.as_ref().map(RepositoryName::as_str), WALKED_AT_ONCE)?;
                let found = page.into_iter().map(|repository| {
                    let untagged = match rules.untagged_due_ms(&repository, 0) {
                        Some(_) => registry.untagged(&repository, &rules, now_ms)?,
                        None => Vec::new(),
                    };
                    Ok((repository, untagged))
                });
                found.collect::<Result<Vec<_>, StorageError>>()
            });
            let page = page.await??;
            after = page.last().map(|(repository, _)| repository.clone());
            for (repository, untagged) in page {
                for some in untagged.chunks(ONE_ENTRY) {
                    let (repository, digests) = (repository.clone(), some.to_vec());
                    let (collected, _) = self.propose(Command::CollectUntagged { repository, digests }).await?;
                    count += collected.untagged;
                }
            }
            if after.is_none() {
                return Ok(count);
            }
        }
    }

    async fn collect_due(&self) -> Result<(Collected, u64), ProposeError> {
        let mut all = Collected::default();
        loop {
            let (one, revision) = self.propose_collection(Vec::new()).await?;
            all.manifests += one.manifests;
            all.links += one.links;
            all.blobs += one.blobs;
            all.bytes += one.bytes;
            if !one.more {
                return Ok((all, revision));
            }
        }
    }

    async fn propose_collection(&self, orphans: Vec<Digest>) -> Result<(Collected, u64), ProposeError> {
        // What only names files collects nothing that is due, so that each counts its own.
        let limit = if orphans.is_empty() { ONE_ENTRY as u32 } else { 0 };
        self.propose(Command::Collect { orphans, limit }).await
    }

    async fn propose(&self, command: Command) -> Result<(Collected, u64), ProposeError> {
        let answer = self.consensus().propose(Uuid::new_v4(), command).await?;
        match answer.result {
            Ok(Outcome::Collected(collected)) => Ok((collected, answer.revision)),
            // Only a request that waited for too long is refused: it may have been applied.
            Ok(_) | Err(_) => Err(ProposeError::OutcomeUnknown),
        }
    }

    /// Has this node's files without a name collected; says how many there were.
    ///
    /// # Errors
    /// No majority, or this node's disk.
    pub(super) async fn collect_orphans(&self) -> Result<u64, CollectError> {
        let _turn = self.inner.walking.lock().await;
        let replication = self.clone();
        let orphans = blocking(move || replication.orphans()).await??;
        let mut count = 0;
        for some in orphans.chunks(ONE_ENTRY) {
            count += self.propose_collection(some.to_vec()).await?.0.orphans;
        }
        Ok(count)
    }

    /// Files that no name of this node's state belongs to. Those that came within the grace time may still get one.
    fn orphans(&self) -> Result<Vec<Digest>, StorageError> {
        let grace = Duration::from_millis(self.consensus().rules().garbage_grace_ms());
        let (mut orphans, mut failed) = (Vec::new(), None);
        self.blobs().for_each(&mut |digest, _| {
            if orphans.len() >= ORPHANS_MAX || failed.is_some() {
                return;
            }
            match self.consensus().registry().file_blob(&digest) {
                Ok(Some(_)) => {}
                Ok(None) => {
                    if self.blobs().age(&digest).is_some_and(|age| age >= grace) {
                        orphans.push(digest);
                    }
                }
                Err(error) => failed = Some(error),
            }
        })?;
        failed.map_or(Ok(orphans), Err)
    }

    /// Proposes what is due, now and then, until told to stop.
    pub(super) async fn collect_by_itself(self, stop: CancellationToken) {
        let mut ticks = tokio::time::interval(LOOK_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut applied = self.consensus().applied_blobs();
        let mut next_walk = Instant::now();
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = ticks.tick() => {}
                event = applied.recv() => {
                    match event {
                        // What the entries before the snapshot collected is still here.
                        Ok(AppliedBlob::Everything) => next_walk = Instant::now(),
                        Err(RecvError::Closed) => return,
                        Ok(_) | Err(RecvError::Lagged(_)) => {}
                    }
                    continue;
                }
            }
            let result = async {
                if self.is_something_due().await? {
                    let (collected, _) = self.collect_due().await?;
                    tracing::info!(?collected, "collected what nothing uses");
                }
                if next_walk <= Instant::now() && self.quorum_reachable() {
                    if self.may_collect() {
                        let untagged = self.collect_untagged().await?;
                        if untagged > 0 {
                            tracing::info!(untagged, "collected manifests without a tag");
                        }
                    }
                    let orphans = self.collect_orphans().await?;
                    next_walk = Instant::now() + WALK_EVERY;
                    if orphans > 0 {
                        tracing::info!(orphans, "collected files without a name");
                    }
                }
                Ok::<_, CollectError>(())
            };
            if let Err(error) = result.await {
                tracing::warn!(%error, "a collection did not come to its end; it is tried again");
            }
        }
    }

    /// Whether it is for this node to say what is due: it leads, and its clock is near the others'.
    fn may_collect(&self) -> bool {
        let leads = self.consensus().leader() == Some(self.node_id());
        if leads && !self.consensus().clock_agrees() {
            tracing::warn!("nothing is collected: this node leads, and its clock is far off those of the others");
            return false;
        }
        leads
    }

    async fn is_something_due(&self) -> Result<bool, StorageError> {
        if !self.may_collect() {
            return Ok(false);
        }
        let consensus = self.consensus().clone();
        blocking(move || consensus.registry().garbage_due(&consensus.rules(), consensus.now_ms())).await?
    }

    /// Removes files that were collected, until told to stop.
    pub(super) async fn remove_collected(self, stop: CancellationToken) {
        let mut applied = self.consensus().applied_blobs();
        loop {
            let doomed = self.consensus().promises().doomed(REMOVED_AT_ONCE);
            if !doomed.is_empty() {
                let replication = self.clone();
                if blocking(move || replication.remove(doomed)).await.is_err() {
                    return;
                }
                continue;
            }
            tokio::select! {
                () = stop.cancelled() => return,
                event = applied.recv() => match event {
                    Err(RecvError::Closed) => return,
                    Ok(_) | Err(RecvError::Lagged(_)) => {}
                },
            }
        }
    }

    fn remove(&self, doomed: Vec<Digest>) {
        for digest in doomed {
            // The name goes under the lock of promises, the bytes, which takes longer, when `taken` is dropped.
            let taken = self.consensus().promises().remove(&digest, || self.blobs().take_out(&digest));
            match taken {
                Some(Ok(_taken)) => self.tally().forget(&digest),
                // The next walk finds it.
                Some(Err(error)) => tracing::error!(%digest, %error, "a collected file could not be removed"),
                None => {}
            }
        }
    }
}

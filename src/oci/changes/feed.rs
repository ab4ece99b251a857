//! Changes as they are applied here, read and written out once for all who watch.

use std::time::Duration;

use actix_web::web;
use flotilla_raft::{Consensus, Place};
use flotilla_storage::StorageError;
use tokio_util::sync::CancellationToken;

use super::audience::{Audience, Seat, Wanted};

/// The most changes of one batch.
pub(super) const BATCH_MAX: usize = 500;

/// How long the feed waits for the log to go on before it looks whether to stop.
const PATIENCE: Duration = Duration::from_secs(15);

/// A pause after an error of storage, which stops the node by itself.
const AFTER_ERROR: Duration = Duration::from_secs(1);

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
                false => place = self.pass_on(&consensus, place, Place::after(applied)).await,
            }
        }
    }

    /// Tells what is between two places, and maybe more; says how far it came.
    async fn pass_on(&self, consensus: &Consensus, mut place: Place, applied: Place) -> Place {
        loop {
            let registry = consensus.registry().clone();
            // The floor after the changes: some may have been forgotten while they were read.
            let read = move || Ok((registry.changes(place, BATCH_MAX)?, Place::after(registry.history_floor()?)));
            let (changes, floor) = match web::block(read).await {
                Ok(Ok::<_, StorageError>(read)) => read,
                Ok(Err(_)) | Err(_) => {
                    tokio::time::sleep(AFTER_ERROR).await;
                    return place;
                }
            };
            let is_all = changes.len() < BATCH_MAX;
            if place < floor {
                // A node that was away for long goes on far behind what it told last.
                self.audience.interrupt();
            }
            for (at, change) in changes {
                self.audience.tell(at, change);
                place = at;
            }
            if is_all {
                place = place.max(applied);
                self.audience.passed(place);
                return place;
            }
        }
    }
}

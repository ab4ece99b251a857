//! Fetches the blobs that belong on this node and are not here.
//!
//! A pushed blob normally comes by the pusher's stream. What that did not bring is found in two ways: by looking,
//! shortly after its name was committed, and by comparing everything from time to time.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::Duration;

use flotilla_raft::AppliedBlob;
use flotilla_storage::{Digest, SealError, StorageError};
use futures::StreamExt;
use tokio::sync::broadcast::error::{RecvError, TryRecvError};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::Replication;
use super::peers::STALL_TIMEOUT;
use super::placement;
use super::tally::{Compared, Found, Seen};
use super::writer::{Writer, blocking};

/// How long after its name was committed a blob is looked for: the pusher's stream is usually still bringing it.
const GRACE: Duration = Duration::from_millis(300);

/// How long, and how often, it is waited for while a copy that may be it is still arriving.
const ARRIVING: Duration = Duration::from_secs(1);
const ARRIVING_TIMES: u8 = 10;

/// Names committed but not looked for yet; with more, a scan finds the rest.
const FRESH_MAX: usize = 10_000;

/// Fetches at a time. Repair must leave disk and network to clients.
const FETCHES: usize = 3;

/// The time between two comparisons of everything.
const SCAN_EVERY: Duration = Duration::from_secs(600);

/// Rows of state read at a time by a scan.
const SCAN_ROWS: usize = 200;

/// The pause after a failed fetch doubles from the first to the last of these.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LAST_PAUSE: Duration = Duration::from_secs(8);

/// The repair of one node.
pub(super) struct Repair {
    replication: Replication,
    fresh: VecDeque<Fresh>,
    failed: HashMap<Digest, Pause>,
    fetches: JoinSet<(Digest, Result<(), FetchError>)>,
    fetching: Vec<Digest>,
    /// By what everything is compared, or was last.
    compared: Compared,
    /// A comparison of everything that is under way.
    scan: Option<Scan>,
    /// When the next is due.
    next_scan: Instant,
    /// News were lost since it began: another one follows at once.
    missed: bool,
}

/// A comparison of everything, a page at a time, so that fetches and news go on beside it.
struct Scan {
    started: Instant,
    after: Option<Digest>,
    seen: Seen,
}

/// A blob whose name was committed.
struct Fresh {
    digest: Digest,
    size: u64,
    /// When to look for it, and how often that was put off.
    due: Instant,
    put_off: u8,
}

struct Pause {
    until: Instant,
    length: Duration,
}

#[derive(Debug, thiserror::Error)]
enum FetchError {
    #[error("no node could give it")]
    Nowhere,
    #[error("it is being fetched already, or too much is")]
    Busy,
    #[error(transparent)]
    Storage(#[from] StorageError),
}

impl Repair {
    /// Compares everything first.
    pub(super) fn new(replication: Replication) -> Self {
        Self {
            replication,
            fresh: VecDeque::new(),
            failed: HashMap::new(),
            fetches: JoinSet::new(),
            fetching: Vec::new(),
            compared: Compared::default(),
            scan: None,
            next_scan: Instant::now(),
            missed: false,
        }
    }

    /// Works until told to stop.
    pub(super) async fn run(mut self, stop: CancellationToken) {
        let mut applied = self.replication.consensus().applied_blobs();
        loop {
            if let Err(error) = self.step().await {
                tracing::error!(%error, "blobs could not be compared with what should be here");
                (self.scan, self.next_scan) = (None, Instant::now() + FIRST_PAUSE);
            }
            let wake = self.wake_at();
            tokio::select! {
                () = stop.cancelled() => return,
                () = sleep_until(wake) => {}
                Some(fetched) = self.fetches.join_next() => self.fetched(fetched.ok()),
                event = applied.recv() => {
                    let mut event = Some(event);
                    while let Some(now) = event {
                        match now {
                            Ok(now) => self.applied(now),
                            Err(RecvError::Lagged(_)) => {
                                // What was missed can only be found by comparing. The rest of what waits goes with it: read one
                                // by one behind a full buffer, the next event would be missed again.
                                applied = applied.resubscribe();
                                self.missed = true;
                            }
                            Err(RecvError::Closed) => return,
                        }
                        event = (!applied.is_empty()).then(|| applied.try_recv().map_err(as_recv_error));
                    }
                }
            }
        }
    }

    fn applied(&mut self, event: AppliedBlob) {
        match event {
            AppliedBlob::Linked { digest, size, replicas } => {
                let default = self.replication.config().replicas;
                self.replication.inner.replicas.write().linked(&digest, replicas, default);
                self.committed(digest, size);
            }
            AppliedBlob::Collected => {}
            AppliedBlob::Everything => self.missed = true,
        }
    }

    async fn step(&mut self) -> Result<(), StorageError> {
        let consensus = self.replication.consensus();
        let current = Compared { layout: consensus.layout_revision(), rules: consensus.rules().revision() };
        let is_due = self.scan.is_none() && (self.missed || self.next_scan <= Instant::now());
        if current != self.compared || is_due {
            self.compared = current;
            self.begin_scan().await?;
        }
        self.scan_a_page().await?;
        self.look_for_fresh().await?;
        self.begin_fetches();
        self.replication.consensus().set_blob_counts(self.replication.blob_counts());
        Ok(())
    }

    /// When there is something to do next even if nothing happens.
    fn wake_at(&self) -> Instant {
        if self.scan.is_some() {
            return Instant::now();
        }
        let soon = Instant::now() + Duration::from_secs(1);
        let fresh = self.fresh.front().map_or(soon, |fresh| fresh.due);
        soon.min(fresh)
    }

    fn committed(&mut self, digest: Digest, size: u64) {
        if let Some(scan) = &mut self.scan {
            // It may have passed the place already.
            scan.seen.add(&digest);
        }
        // A blob pushed to many repositories is committed once for each.
        if self.replication.tally().is_held(&digest) {
            return;
        }
        if self.fresh.len() >= FRESH_MAX {
            self.missed = true;
            return;
        }
        self.fresh.push_back(Fresh { digest, size, due: Instant::now() + GRACE, put_off: 0 });
    }

    async fn look_for_fresh(&mut self) -> Result<(), StorageError> {
        let now = Instant::now();
        let due = self.fresh.iter().take_while(|fresh| fresh.due <= now).count();
        let due: Vec<Fresh> = self.fresh.drain(..due).collect();
        if due.is_empty() {
            return Ok(());
        }
        let found = self.compare(due.iter().map(|fresh| (fresh.digest, fresh.size)).collect()).await?;
        let missing = found.into_iter().filter(|(_, found)| *found == Found::Missing);
        let missing: HashSet<Digest> = missing.map(|(digest, _)| digest).collect();
        for fresh in due {
            let arriving = self.replication.copies().is_arriving(fresh.size, ARRIVING);
            if missing.contains(&fresh.digest) && arriving && fresh.put_off < ARRIVING_TIMES {
                self.fresh.push_back(Fresh { due: now + ARRIVING, put_off: fresh.put_off + 1, ..fresh });
            }
        }
        Ok(())
    }

    /// Looks on disk for blobs, and counts them.
    async fn compare(&self, blobs: Vec<(Digest, u64)>) -> Result<Vec<(Digest, Found)>, StorageError> {
        let replication = self.replication.clone();
        blocking(move || {
            let compared = blobs.into_iter().map(|(digest, size)| {
                let found = replication.look_for(&digest, size)?;
                replication.tally().record(&digest, size, found);
                Ok((digest, found))
            });
            compared.collect()
        })
        .await?
    }

    /// Begins to compare everything; gives up the comparison that is under way.
    async fn begin_scan(&mut self) -> Result<(), StorageError> {
        let started = Instant::now();
        (self.scan, self.missed) = (None, false);
        let (consensus, default) = (self.replication.consensus().clone(), self.replication.config().replicas);
        let replicas = blocking(move || consensus.registry().replicas(&consensus.rules(), default)).await??;
        *self.replication.inner.replicas.write() = replicas;
        self.scan = Some(Scan { started, after: None, seen: Seen::default() });
        Ok(())
    }

    async fn scan_a_page(&mut self) -> Result<(), StorageError> {
        let Some(mut scan) = self.scan.take() else { return Ok(()) };
        let (registry, after) = (self.replication.consensus().registry().clone(), scan.after);
        let page = blocking(move || registry.file_blobs(after.as_ref(), SCAN_ROWS)).await??;
        self.compare(page.blobs).await?.iter().for_each(|(digest, _)| scan.seen.add(digest));
        if page.next.is_some() {
            scan.after = page.next;
            self.scan = Some(scan);
            return Ok(());
        }
        self.next_scan = Instant::now() + SCAN_EVERY;
        if self.missed {
            // What this one found is counted, and not yet all that there is.
            return Ok(());
        }
        self.replication.tally().compared(&scan.seen, self.compared);
        let (counts, duration_ms) = (self.replication.blob_counts(), scan.started.elapsed().as_millis());
        tracing::debug!(?counts, duration_ms, "compared the blobs here with those that should be");
        Ok(())
    }

    fn begin_fetches(&mut self) {
        let now = Instant::now();
        self.failed.retain(|_, pause| now < pause.until + LAST_PAUSE);
        let free = FETCHES.saturating_sub(self.fetching.len());
        if free == 0 {
            return;
        }
        let fresh = &self.fresh;
        let waits = |digest: &Digest| {
            self.fetching.contains(digest)
                || self.failed.get(digest).is_some_and(|pause| now < pause.until)
                || fresh.iter().any(|fresh| fresh.digest == *digest)
        };
        for (digest, size) in self.replication.tally().missing(free, waits) {
            self.fetching.push(digest);
            let replication = self.replication.clone();
            self.fetches.spawn(async move { (digest, replication.fetch(digest, size).await) });
        }
        if self.fetching.is_empty() && self.scan.is_none() && self.replication.tally().needs_scan() {
            self.next_scan = self.next_scan.min(now + FIRST_PAUSE);
        }
    }

    fn fetched(&mut self, fetched: Option<(Digest, Result<(), FetchError>)>) {
        let Some((digest, result)) = fetched else {
            // A fetch panicked; which one is not known any more, but all others will say that they are done.
            self.fetching.clear();
            return;
        };
        self.fetching.retain(|other| *other != digest);
        match result {
            Ok(()) => {
                self.failed.remove(&digest);
                tracing::info!(%digest, "fetched a blob that was missing here");
            }
            Err(error) => {
                let before = self.failed.get(&digest).map(|pause| pause.length);
                let length = before.map_or(FIRST_PAUSE, |length| (length * 2).min(LAST_PAUSE));
                self.failed.insert(digest, Pause { until: Instant::now() + length, length });
                let is_nowhere = matches!(error, FetchError::Nowhere);
                // Not at the first time: a push may be bringing it.
                if is_nowhere && before.is_some() {
                    self.replication.tally().nowhere(&digest);
                }
                if is_nowhere && self.replication.blobs().is_unreadable(&digest) {
                    // Better than nothing: perhaps its disk failed for a while only.
                    self.replication.suspect(digest);
                }
                let is_lasting = length == LAST_PAUSE && before != Some(LAST_PAUSE);
                if is_lasting && is_nowhere {
                    tracing::error!(
                        %digest,
                        "no node that answers has this blob: bring back the nodes that are away, or push it again"
                    );
                }
                tracing::debug!(%digest, %error, "a missing blob could not be fetched yet");
            }
        }
    }
}

fn as_recv_error(error: TryRecvError) -> RecvError {
    match error {
        TryRecvError::Lagged(missed) => RecvError::Lagged(missed),
        TryRecvError::Empty | TryRecvError::Closed => RecvError::Closed,
    }
}

impl Replication {
    /// What this node has of a blob of that size, and whether it should have it. Looks at the disk.
    pub(super) fn look_for(&self, digest: &Digest, size: u64) -> Result<Found, StorageError> {
        let (own, members) = (self.node_id(), self.consensus().members());
        let placed = placement::placed(digest, &members, self.copies_of(digest));
        // Others may have a copy, which then takes the place of what cannot be looked at.
        let found = self.blobs().size(digest).unwrap_or_else(|error| {
            tracing::error!(%digest, %error, "a blob's file cannot be looked at: it counts as missing");
            None
        });
        let is_here = found == Some(size);
        let is_good = is_here && !self.blobs().is_unreadable(digest);
        if found.is_some() && !is_here {
            // No copy, whatever its name is.
            self.suspect(*digest);
        }
        Ok(match placed.contains(&own) {
            true if is_good => Found::Held,
            true => Found::Missing,
            // What cannot be read now may be the last copy all the same.
            false if is_here => Found::Surplus,
            false => Found::Elsewhere,
        })
    }

    /// Fetches a blob from any node that has it, hashed as it comes in.
    async fn fetch(&self, digest: Digest, size: u64) -> Result<(), FetchError> {
        let _claim = self.claims().claim(digest).ok_or(FetchError::Busy)?;
        // A push was faster.
        if !self.tally().is_missing(&digest) {
            return Ok(());
        }
        for peer in self.holders_to_ask(&digest) {
            let blobs = self.blobs().clone();
            let mut writer = Writer::new(blocking(move || blobs.stage()).await??);
            let Ok(response) = self.peers().get(&peer, &digest, 0..size, false).await else { continue };
            let mut chunks = response.bytes_stream();
            while let Ok(Some(Ok(chunk))) = timeout(STALL_TIMEOUT, chunks.next()).await {
                self.inner.repair_rate.wait(chunk.len()).await;
                writer.write(chunk).await?;
                if writer.len() > size {
                    break;
                }
            }
            if writer.len() != size {
                continue;
            }
            match writer.seal(digest).await {
                Ok(_) => {
                    self.tally().came(&digest);
                    return Ok(());
                }
                Err(SealError::Storage(error)) => return Err(error.into()),
                Err(SealError::DigestMismatch { actual }) => {
                    tracing::error!(%digest, %actual, node_id = format!("{:012x}", peer.id), "a node gave wrong bytes");
                    if let Err(error) = self.peers().suspect(&peer, &digest).await {
                        tracing::warn!(%digest, %error, "it could not be told");
                    }
                }
            }
        }
        Err(FetchError::Nowhere)
    }
}

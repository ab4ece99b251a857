//! The scrub: re-reads this node's files at a limited rate and compares them with their digests. A damaged one is put
//! aside, and repair fetches a good copy from another node; checksums of pieces that are not there are made.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use flotilla_storage::{BlobFile, Digest, Hasher, StorageError, Summing, durable_file};
use parking_lot::Mutex;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, Semaphore};
use tokio_util::sync::CancellationToken;

use super::Replication;
use super::keep::Claim;
use super::rate::Rate;
use super::writer::blocking;

/// Where the position is kept, so that a restart does not begin anew.
const POSITION_FILE: &str = "scrub.json";

/// How often the position is written.
const WRITTEN_EVERY: Duration = Duration::from_secs(10);

/// Files of state that are looked at together.
const PAGE: usize = 64;

/// Bytes read at a time.
const READ_BYTES: usize = 1 << 20;

/// The slowest that a scrub by itself reads, in bytes a second: small stores are done sooner.
const RATE_MIN: u64 = 1 << 20;

/// Files that may be looked at at a time because somebody suspects them.
const SUSPECTS_MAX: usize = 2;

/// How long a suspicion waits for who is at work on the file, and how often it looks.
const CLAIMED_WITHIN: Duration = Duration::from_secs(600);
const CLAIMED_EACH: Duration = Duration::from_millis(100);

/// How often it is looked whether a scrub is due.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// One pass over all files.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct Pass {
    /// When it began, in milliseconds since the Unix epoch; 0 where none did yet.
    began_ms: u64,
    /// When it ended; `None` while it is under way.
    ended_ms: Option<u64>,
    /// The digest that was looked at last.
    after: Option<String>,
    checked: u64,
    checked_bytes: u64,
    damaged: u64,
}

/// What a node says of its scrub.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct ScrubStatus {
    /// Whether a pass is under way.
    pub(crate) running: bool,
    /// When the pass began, in milliseconds since the Unix epoch; 0 where none did yet.
    pub(crate) began_ms: u64,
    /// When it ended.
    pub(crate) ended_ms: Option<u64>,
    /// Files and bytes that it looked at.
    pub(crate) checked: u64,
    /// Bytes of these.
    pub(crate) checked_bytes: u64,
    /// Files that were found damaged since the pass began, by it and by reads, and put aside.
    pub(crate) damaged: u64,
    /// Bytes that this node holds.
    pub(crate) total_bytes: u64,
    /// How long a pass may take, in seconds.
    pub(crate) period_seconds: u64,
}

/// What was counted since the start.
#[derive(Debug, Default)]
struct Counted {
    checked: AtomicU64,
    checked_bytes: AtomicU64,
    damaged: AtomicU64,
}

/// The scrub of one node.
pub(crate) struct Scrub {
    pass: Mutex<Pass>,
    file: PathBuf,
    period: Duration,
    /// Somebody wants a pass now.
    asked: Notify,
    suspects: Arc<Semaphore>,
    counted: Counted,
}

impl Scrub {
    /// Goes on where the last run of this node stopped. A position that cannot be read is none.
    pub(super) fn new(dir: &Path, period: Duration) -> Self {
        let file = dir.join(POSITION_FILE);
        let read = durable_file::read(&file).ok().flatten();
        let pass = read.and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default();
        let suspects = Arc::new(Semaphore::new(SUSPECTS_MAX));
        Self { pass: Mutex::new(pass), file, period, asked: Notify::new(), suspects, counted: Counted::default() }
    }

    /// Begins a pass over all files now, as fast as repair may go; the one that is under way is given up.
    pub(crate) fn run_now(&self) {
        self.asked.notify_one();
    }

    /// Puts what was counted on the page of metrics.
    pub(crate) fn register(&self, registry: &mut Registry) {
        let ended_ms = self.pass.lock().ended_ms.unwrap_or(0);
        let ended = ConstGauge::new((ended_ms / 1000) as i64);
        registry.register("scrub_ended_timestamp_seconds", "When the last pass over all files ended", ended);
        let mut counter = |name: &str, help: &str, value: &AtomicU64| {
            registry.register(name, help, ConstCounter::new(value.load(Ordering::Relaxed)));
        };
        counter("scrub_checked_files", "Blob files compared with their digests since the start", &self.counted.checked);
        counter("scrub_checked_bytes", "Bytes of these", &self.counted.checked_bytes);
        counter(
            "scrub_damaged_files",
            "Blob files found damaged, and put aside, since the start",
            &self.counted.damaged,
        );
    }

    fn begin(&self, now_ms: u64) {
        *self.pass.lock() = Pass { began_ms: now_ms, ..Pass::default() };
    }

    fn is_due(&self, now_ms: u64) -> bool {
        let pass = self.pass.lock();
        pass.ended_ms.is_none() || now_ms >= pass.began_ms.saturating_add(self.period.as_millis() as u64)
    }

    fn checked(&self, digest: &Digest, bytes: u64) {
        let mut pass = self.pass.lock();
        pass.after = Some(digest.to_string());
        pass.checked += 1;
        pass.checked_bytes += bytes;
        self.counted.checked.fetch_add(1, Ordering::Relaxed);
        self.counted.checked_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// A file was damaged, whoever found it.
    fn damaged(&self) {
        self.pass.lock().damaged += 1;
        self.counted.damaged.fetch_add(1, Ordering::Relaxed);
    }

    /// Writes the position down. Blocks.
    fn write(&self) {
        let written = serde_json::to_vec(&*self.pass.lock());
        let written = written.map_err(|error| StorageError::corrupt(error.to_string()));
        if let Err(error) = written.and_then(|bytes| durable_file::write_atomically(&self.file, &bytes)) {
            tracing::warn!(%error, "the position of the scrub could not be written");
        }
    }
}

impl Replication {
    /// What this node's scrub is doing.
    pub(crate) fn scrub_status(&self) -> ScrubStatus {
        let pass = self.scrub().pass.lock().clone();
        ScrubStatus {
            running: pass.began_ms > 0 && pass.ended_ms.is_none(),
            began_ms: pass.began_ms,
            ended_ms: pass.ended_ms,
            checked: pass.checked,
            checked_bytes: pass.checked_bytes,
            damaged: pass.damaged,
            total_bytes: self.blob_counts().held_bytes,
            period_seconds: self.scrub().period.as_secs(),
        }
    }

    /// Passes over all files within the configured time, again and again, until told to stop.
    pub(super) async fn scrub_by_itself(self, stop: CancellationToken) {
        let mut is_asked = false;
        while !stop.is_cancelled() {
            if is_asked || self.scrub().is_due(self.consensus().now_ms()) {
                is_asked = tokio::select! {
                    () = stop.cancelled() => return self.scrub_stops().await,
                    // Asked for in the middle of a pass: begins anew, without waiting.
                    () = self.scrub().asked.notified(), if !is_asked => true,
                    () = self.pass(is_asked) => false,
                };
                continue;
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(LOOK_EVERY) => {}
                () = self.scrub().asked.notified() => is_asked = true,
            }
        }
    }

    async fn scrub_stops(self) {
        let _ = blocking(move || self.scrub().write()).await;
    }

    /// One pass, from where the last one stopped unless it is asked for.
    async fn pass(&self, is_asked: bool) {
        let is_over = {
            let pass = self.scrub().pass.lock();
            pass.began_ms == 0 || pass.ended_ms.is_some()
        };
        if is_asked || is_over {
            self.scrub().begin(self.consensus().now_ms());
        }
        if let Err(error) = self.pass_at(is_asked).await {
            tracing::error!(%error, "the scrub did not come to its end; it goes on later");
            // Whatever is wrong with this node's disk, it is not asked about it without a pause.
            tokio::time::sleep(LOOK_EVERY).await;
            return;
        }
        let pass = {
            let mut pass = self.scrub().pass.lock();
            pass.ended_ms = Some(self.consensus().now_ms());
            pass.clone()
        };
        tracing::info!(
            files = pass.checked,
            bytes = pass.checked_bytes,
            damaged = pass.damaged,
            "compared all files with their digests"
        );
        let replication = self.clone();
        let _ = blocking(move || replication.scrub().write()).await;
    }

    /// So that a pass takes its period, by what this node holds now.
    fn slow_rate(&self) -> u64 {
        (self.blob_counts().held_bytes / self.scrub().period.as_secs().max(1)).max(RATE_MIN)
    }

    async fn pass_at(&self, is_asked: bool) -> Result<(), StorageError> {
        let mut bytes = if is_asked { self.config().repair_rate.as_u64() } else { self.slow_rate() };
        let mut rate = Rate::new(bytes);
        let mut written = Instant::now();
        let mut after = self.scrub().pass.lock().after.as_ref().and_then(|after| after.parse::<Digest>().ok());
        loop {
            let (registry, from) = (self.consensus().registry().clone(), after);
            let page = blocking(move || registry.file_blobs(from.as_ref(), PAGE)).await??;
            for (digest, size) in page.blobs {
                // What this node holds is counted after its start, and changes. Not for each push: a new limiter lets a
                // second's worth go at once.
                let wanted = self.slow_rate();
                if !is_asked && wanted.abs_diff(bytes) > bytes / 10 {
                    bytes = wanted;
                    rate = Rate::new(bytes);
                }
                // Who is at work on it hashes it as well.
                let Some(claim) = self.claims().claim_to_look(digest) else { continue };
                if self.check(claim, Some(&rate)).await? {
                    self.scrub().checked(&digest, size);
                }
                if written.elapsed() >= WRITTEN_EVERY {
                    let replication = self.clone();
                    blocking(move || replication.scrub().write()).await?;
                    written = Instant::now();
                }
            }
            after = page.next;
            if after.is_none() {
                return Ok(());
            }
        }
    }

    /// Looks at a file that somebody says is damaged, beside whatever goes on.
    pub(super) fn suspect(&self, digest: Digest) {
        // As many are looked at already: the scrub comes by.
        let Ok(turn) = self.scrub().suspects.clone().try_acquire_owned() else { return };
        let replication = self.clone();
        tokio::spawn(async move {
            let began = Instant::now();
            // The pull that found it may be fetching a copy from another node.
            let claim = loop {
                match replication.claims().claim_to_look(digest) {
                    Some(claim) => break claim,
                    None if began.elapsed() > CLAIMED_WITHIN => return,
                    None => tokio::time::sleep(CLAIMED_EACH).await,
                }
            };
            if let Err(error) = replication.check(claim, None).await {
                tracing::error!(%digest, %error, "a file that may be damaged could not be looked at");
            }
            drop(turn);
        });
    }

    /// Compares a file with its digest, and puts it aside if it is damaged; says whether it could be compared: not
    /// where there is none, or it cannot be read. With the claim nobody else looks at it, or fetches a good one in its place, meanwhile.
    async fn check(&self, claim: Claim, rate: Option<&Rate>) -> Result<bool, StorageError> {
        let digest = claim.digest();
        let blobs = self.blobs().clone();
        let blob = match blocking(move || blobs.open_blob(&digest)).await? {
            Ok(Some(blob)) => blob,
            Ok(None) => return Ok(false),
            Err(error) => {
                tracing::error!(%digest, %error, "a blob's file cannot be opened: a copy is fetched");
                return self.wants_another(digest, None).await.map(|()| false);
            }
        };
        let mut reading =
            Reading { blob, offset: 0, hasher: Hasher::new(digest.algorithm()), sums: Summing::default() };
        while reading.offset < reading.blob.size {
            if let Some(rate) = rate {
                let left = usize::try_from(reading.blob.size - reading.offset).unwrap_or(READ_BYTES);
                rate.wait(READ_BYTES.min(left)).await;
            }
            let (read, result) = blocking(move || {
                let mut reading = reading;
                let result = reading.step();
                (reading, result)
            })
            .await?;
            reading = read;
            match result {
                Ok(()) => {}
                // It became shorter.
                Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => break,
                // A disk that fails for a while says nothing about what is on it, so the file stays until there is another.
                Err(error) => {
                    tracing::error!(%digest, %error, "a blob's file cannot be read: a copy is fetched");
                    return self.wants_another(digest, Some(reading.blob)).await.map(|()| false);
                }
            }
        }
        let replication = self.clone();
        if reading.hasher.finish() == digest {
            if self.blobs().found_readable(&digest) {
                let replication = self.clone();
                blocking(move || replication.count(&digest)).await??;
            }
            let sums = reading.sums.finish();
            if !reading.blob.has_sums(&sums) {
                blocking(move || replication.blobs().keep_sums(&digest, &sums)).await?;
            }
            return Ok(true);
        }
        blocking(move || replication.set_aside(&digest, &reading.blob)).await??;
        Ok(true)
    }

    /// This node's file is of no use: another node's takes its place.
    async fn wants_another(&self, digest: Digest, blob: Option<BlobFile>) -> Result<(), StorageError> {
        let replication = self.clone();
        blocking(move || {
            replication.blobs().found_unreadable(&digest, blob.as_ref());
            replication.count(&digest)
        })
        .await?
    }

    /// A good copy is fetched in its place. Blocks.
    fn set_aside(&self, digest: &Digest, blob: &BlobFile) -> Result<(), StorageError> {
        self.scrub().damaged();
        let aside = self.blobs().set_aside(blob)?;
        tracing::error!(%digest, aside = ?aside, "a blob's file is damaged: it was put aside");
        self.count(digest)
    }

    /// Looks at a file anew, and counts it. Blocks.
    fn count(&self, digest: &Digest) -> Result<(), StorageError> {
        if let Some(size) = self.consensus().registry().file_blob(digest)? {
            self.tally().record(digest, size, self.look_for(digest, size)?);
        }
        Ok(())
    }
}

/// A file that is being hashed.
struct Reading {
    blob: BlobFile,
    offset: u64,
    hasher: Hasher,
    sums: Summing,
}

impl Reading {
    fn step(&mut self) -> std::io::Result<()> {
        use std::os::unix::fs::FileExt as _;
        let mut buffer = vec![0; READ_BYTES];
        let count = self.blob.file.read_at(&mut buffer, self.offset)?;
        if count == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        self.hasher.update(&buffer[..count]);
        self.sums.update(&buffer[..count]);
        // What nobody else reads must not push out what clients read.
        let length = std::num::NonZeroU64::new(count as u64);
        let _ = rustix::fs::fadvise(&self.blob.file, self.offset, length, rustix::fs::Advice::DontNeed);
        self.offset += count as u64;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pass_is_due_when_its_time_has_come_and_goes_on_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let scrub = Scrub::new(dir.path(), Duration::from_secs(10));
        assert!(scrub.is_due(1));
        scrub.begin(1_000);
        let digest = Digest::of(flotilla_storage::Algorithm::Sha256, b"a");
        scrub.checked(&digest, 5);
        scrub.damaged();
        scrub.write();
        let again = Scrub::new(dir.path(), Duration::from_secs(10));
        assert_eq!(*again.pass.lock(), *scrub.pass.lock());
        assert!(again.is_due(2_000));
        again.pass.lock().ended_ms = Some(3_000);
        assert!(!again.is_due(10_999));
        assert!(again.is_due(11_000));
        std::fs::write(dir.path().join(POSITION_FILE), "{").unwrap();
        assert_eq!(*Scrub::new(dir.path(), Duration::from_secs(10)).pass.lock(), Pass::default());
    }
}

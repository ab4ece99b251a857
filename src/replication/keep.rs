//! Keeps a copy of what is streamed from another node, and makes sure that one digest is fetched once at a time.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use flotilla_storage::{Digest, StorageError};
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::Replication;
use super::writer::{Writer, blocking};

/// Copies that are fetched at a time, for repair and for clients together.
const CLAIMS_MAX: usize = 8;

/// How many of them clients may hold, each as long as its download takes: repair must go on beside slow ones.
const CLIENT_CLAIMS_MAX: usize = 5;

/// Chunks that may wait for the disk, and how long a client waits when there are as many.
const QUEUED_CHUNKS: usize = 16;
const SLOW_DISK: Duration = Duration::from_secs(2);

/// The digests of which a copy is being fetched.
#[derive(Clone, Default)]
pub(super) struct Claims(Arc<Mutex<HashSet<Digest>>>);

/// The right to fetch a digest; given back when dropped.
pub(super) struct Claim {
    claims: Claims,
    digest: Digest,
}

impl Claims {
    /// For repair. `None` where somebody fetches it already, or too much is being fetched.
    pub(super) fn claim(&self, digest: Digest) -> Option<Claim> {
        self.claim_below(CLAIMS_MAX, digest)
    }

    /// For who compares a file with its digest. `None` where somebody fetches it or looks at it already.
    pub(super) fn claim_to_look(&self, digest: Digest) -> Option<Claim> {
        self.claim_below(usize::MAX, digest)
    }

    fn claim_below(&self, limit: usize, digest: Digest) -> Option<Claim> {
        let mut digests = self.0.lock();
        let free = digests.len() < limit && digests.insert(digest);
        free.then(|| Claim { claims: self.clone(), digest })
    }
}

impl Claim {
    pub(super) fn digest(&self) -> Digest {
        self.digest
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.claims.0.lock().remove(&self.digest);
    }
}

/// Takes a copy of a stream on its way to a client. Dropped before the last byte, it leaves nothing behind: repair
/// brings the blob then.
pub(super) struct Keeper {
    chunks: Option<mpsc::Sender<Bytes>>,
}

impl Keeper {
    /// Begins, unless the blob is being fetched already.
    pub(super) async fn begin(replication: &Replication, digest: Digest, size: u64) -> Option<Self> {
        let claim = replication.claims().claim_below(CLIENT_CLAIMS_MAX, digest)?;
        let blobs = replication.blobs().clone();
        let staging = match blocking(move || blobs.stage()).await.and_then(|staged| staged) {
            Ok(staging) => staging,
            Err(error) => {
                tracing::warn!(%digest, %error, "no copy of a blob could be begun");
                return None;
            }
        };
        let (chunks, received) = mpsc::channel(QUEUED_CHUNKS);
        let replication = replication.clone();
        tokio::spawn(async move {
            match keep(&replication, Writer::new(staging), received, &digest, size).await {
                Ok(true) => tracing::debug!(%digest, size, "kept a copy of a blob that was read from another node"),
                Ok(false) => {}
                Err(error) => tracing::warn!(%digest, %error, "a blob that was read from another node was not kept"),
            }
            drop(claim);
        });
        Some(Self { chunks: Some(chunks) })
    }

    /// Takes the next chunk; gives the copy up where the disk is too slow for it.
    pub(super) async fn push(&mut self, chunk: &Bytes) {
        let Some(chunks) = &self.chunks else { return };
        if !matches!(timeout(SLOW_DISK, chunks.send(chunk.clone())).await, Ok(Ok(()))) {
            self.chunks = None;
        }
    }
}

/// Says whether the copy became whole.
async fn keep(
    replication: &Replication,
    mut writer: Writer,
    mut chunks: mpsc::Receiver<Bytes>,
    digest: &Digest,
    size: u64,
) -> Result<bool, KeepError> {
    while let Some(chunk) = chunks.recv().await {
        writer.write(chunk).await?;
    }
    if writer.len() != size {
        return Ok(false);
    }
    writer.seal(*digest).await?;
    replication.tally().came(digest);
    Ok(true)
}

#[derive(Debug, thiserror::Error)]
enum KeepError {
    #[error(transparent)]
    Seal(#[from] flotilla_storage::SealError),
    #[error(transparent)]
    Storage(#[from] StorageError),
}

#[cfg(test)]
mod tests {
    use flotilla_storage::Algorithm;

    use super::*;

    #[test]
    fn a_digest_is_fetched_once_at_a_time() {
        let claims = Claims::default();
        let digest = Digest::of(Algorithm::Sha256, b"a");
        let claim = claims.claim(digest);
        assert!(claim.is_some());
        assert!(claims.claim(digest).is_none());
        drop(claim);
        assert!(claims.claim(digest).is_some());
    }

    #[test]
    fn the_number_of_fetches_is_bounded() {
        let claims = Claims::default();
        let held: Vec<_> = (0..20u8).filter_map(|n| claims.claim(Digest::of(Algorithm::Sha256, &[n]))).collect();
        assert_eq!(held.len(), CLAIMS_MAX);
    }
}

//! Bytes on their way through a node, in pieces large enough that hand-overs between threads cost little and small
//! enough that a thousand transfers fit into memory.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, StreamExt};
use parking_lot::Mutex;

use crate::pace::Pace;

/// The largest piece in bytes, used while few transfers run. Half of a core's cache here: a piece is hashed, written
/// and sent while it is warm.
pub(super) const PIECE_MAX: usize = 256 * 1024;

/// The smallest piece in bytes, used while many transfers run.
const PIECE_MIN: usize = 32 * 1024;

/// What all running transfers together may gather, in bytes, before their pieces get smaller.
const GATHERED_MAX: usize = 8 * 1024 * 1024;

/// Buffers of [`PIECE_MAX`] kept for the next piece: fresh memory costs a page fault for each 4 KiB of it.
const POOLED_MAX: usize = 48;

/// How long a piece that is not full waits for more before it goes on its way.
const LINGER: Duration = Duration::from_millis(200);

static POOL: Mutex<Vec<Vec<u8>>> = Mutex::new(Vec::new());
static TRANSFERS: AtomicUsize = AtomicUsize::new(0);

/// Counts a transfer while it runs, so that many of them use smaller pieces.
#[derive(Debug)]
pub(super) struct Transfer(());

impl Transfer {
    /// Begins a transfer.
    pub(super) fn begin() -> Self {
        TRANSFERS.fetch_add(1, Ordering::Relaxed);
        Self(())
    }

    /// How large its next piece should be, in bytes.
    pub(super) fn piece_size(&self) -> usize {
        piece_size(TRANSFERS.load(Ordering::Relaxed))
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        TRANSFERS.fetch_sub(1, Ordering::Relaxed);
    }
}

fn piece_size(transfers: usize) -> usize {
    (GATHERED_MAX / transfers.max(1)).next_power_of_two().clamp(PIECE_MIN, PIECE_MAX)
}

/// A buffer that goes back to the pool once the last user of its bytes is done.
pub(super) struct Buffer {
    /// Always initialized to its end, so that a pooled buffer is not zeroed again.
    bytes: Vec<u8>,
    filled: usize,
}

impl Buffer {
    /// A buffer with room for `size` bytes.
    pub(super) fn new(size: usize) -> Self {
        let pooled = (size == PIECE_MAX).then(|| POOL.lock().pop()).flatten();
        Self { bytes: pooled.unwrap_or_else(|| vec![0; size]), filled: 0 }
    }

    /// Adds what fits of `chunk`, and leaves the rest of it there.
    fn take_from(&mut self, chunk: &mut Bytes) {
        let part = chunk.split_to(chunk.len().min(self.bytes.len() - self.filled));
        self.bytes[self.filled..self.filled + part.len()].copy_from_slice(&part);
        self.filled += part.len();
    }

    fn is_full(&self) -> bool {
        self.filled == self.bytes.len()
    }

    /// The first `length` bytes, to be filled at once.
    pub(super) fn first(&mut self, length: usize) -> &mut [u8] {
        self.filled = length.min(self.bytes.len());
        &mut self.bytes[..self.filled]
    }

    /// What was filled, shared from now on.
    pub(super) fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[..self.filled]
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if self.bytes.len() == PIECE_MAX {
            let mut pool = POOL.lock();
            if pool.len() < POOLED_MAX {
                pool.push(std::mem::take(&mut self.bytes));
            }
        }
    }
}

/// Why a body did not come whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BodyError {
    /// The sender let the time limit pass without sending a byte, or sends too slowly.
    #[error("the body came too slowly")]
    Stalled,
    /// The connection ended before the body did.
    #[error("the body ended early")]
    Broken,
}

/// Gathers the small chunks in which the network delivers a body into pieces.
pub(crate) struct Pieces<S> {
    chunks: S,
    /// What did not fit into the last piece.
    rest: Bytes,
    stall: Duration,
    pace: Pace,
    transfer: Transfer,
    ended: bool,
}

impl<S, E> Pieces<S>
where
    S: Stream<Item = Result<Bytes, E>> + Unpin,
{
    /// Pieces of `chunks`, of which the next one must come within `stall`.
    pub(super) fn new(chunks: S, stall: Duration) -> Self {
        Self { chunks, rest: Bytes::new(), stall, pace: Pace::new(stall), transfer: Transfer::begin(), ended: false }
    }

    /// The next piece; `None` at the end of the body.
    pub(crate) async fn next(&mut self) -> Option<Result<Bytes, BodyError>> {
        let first = match self.chunk(self.stall).await {
            Chunk::Bytes(first) => first,
            Chunk::End => return None,
            Chunk::Late => return Some(Err(BodyError::Stalled)),
            Chunk::Broken => return Some(Err(BodyError::Broken)),
        };
        let size = self.transfer.piece_size();
        if first.len() >= size / 2 {
            return Some(Ok(first));
        }
        Some(self.gather(first, size).await)
    }

    async fn gather(&mut self, mut first: Bytes, size: usize) -> Result<Bytes, BodyError> {
        let mut chunk = match self.chunk(LINGER).await {
            // A body of one chunk, as small blobs are, is not copied.
            Chunk::End | Chunk::Late => return Ok(first),
            Chunk::Broken => return Err(BodyError::Broken),
            Chunk::Bytes(second) => second,
        };
        let mut buffer = Buffer::new(size);
        buffer.take_from(&mut first);
        loop {
            buffer.take_from(&mut chunk);
            if buffer.is_full() {
                self.rest = chunk;
                break;
            }
            chunk = match self.chunk(LINGER).await {
                Chunk::Bytes(chunk) => chunk,
                Chunk::End | Chunk::Late => break,
                Chunk::Broken => return Err(BodyError::Broken),
            };
        }
        Ok(buffer.freeze())
    }

    async fn chunk(&mut self, limit: Duration) -> Chunk {
        if !self.rest.is_empty() {
            return Chunk::Bytes(std::mem::take(&mut self.rest));
        }
        while !self.ended {
            match self.pace.wait(limit, self.chunks.next()).await {
                Some(Some(Ok(chunk))) if chunk.is_empty() => {}
                Some(Some(Ok(chunk))) => {
                    self.pace.came(chunk.len());
                    return Chunk::Bytes(chunk);
                }
                Some(Some(Err(_))) => {
                    self.ended = true;
                    return Chunk::Broken;
                }
                Some(None) => self.ended = true,
                None => return Chunk::Late,
            }
        }
        Chunk::End
    }
}

enum Chunk {
    Bytes(Bytes),
    End,
    Late,
    Broken,
}

#[cfg(test)]
mod tests {
    use futures::stream;

    use super::*;

    type Chunks = Vec<Result<Bytes, ()>>;

    async fn gathered(chunks: Chunks) -> Vec<Result<usize, BodyError>> {
        let mut pieces = Pieces::new(stream::iter(chunks), Duration::from_secs(1));
        let mut lengths = Vec::new();
        while let Some(piece) = pieces.next().await {
            lengths.push(piece.map(|piece| piece.len()));
        }
        lengths
    }

    #[tokio::test]
    async fn small_chunks_become_full_pieces() {
        let chunks = (0..100).map(|_| Ok(Bytes::from(vec![7; 8192]))).collect();
        let lengths = gathered(chunks).await;
        assert!(lengths.iter().rev().skip(1).all(|length| length.unwrap().is_power_of_two()), "{lengths:?}");
        assert_eq!(lengths.iter().map(|length| length.unwrap()).sum::<usize>(), 100 * 8192);
        assert!(lengths.len() <= 100 * 8192 / PIECE_MIN + 1, "{lengths:?}");
    }

    #[tokio::test]
    async fn a_broken_body_is_told_from_a_finished_one() {
        assert_eq!(gathered(vec![Ok(Bytes::from_static(b"ab")), Err(())]).await, [Err(BodyError::Broken)]);
        assert_eq!(gathered(vec![Ok(Bytes::from_static(b"ab")), Ok(Bytes::from_static(b"c"))]).await, [Ok(3)]);
        assert_eq!(gathered(vec![]).await, []);
    }

    #[tokio::test]
    async fn a_body_that_stalls_is_ended() {
        let mut pieces = Pieces::new(stream::pending::<Result<Bytes, ()>>(), Duration::from_millis(20));
        assert_eq!(pieces.next().await, Some(Err(BodyError::Stalled)));
    }

    #[test]
    fn many_transfers_use_smaller_pieces() {
        assert_eq!(piece_size(1), PIECE_MAX);
        assert_eq!(piece_size(32), PIECE_MAX);
        assert_eq!(piece_size(128), PIECE_MAX / 4);
        assert_eq!(piece_size(10_000), PIECE_MIN);
    }
}

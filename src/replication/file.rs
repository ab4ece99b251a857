//! Reads this node's own copy of a blob: each piece is compared with its checksum before it goes anywhere.

use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::Bytes;
use flotilla_storage::{BlobFile, BlobStore, Digest, SUMMED_BYTES, StorageError};
use futures::{Stream, TryStreamExt, stream};

use super::pieces::{Buffer, PIECE_MAX, Transfer};
use super::writer::blocking;

/// The most bytes that are taken from the page cache at once: a little less than what actix-web keeps as a connection's
/// write buffer, so that it needs no fresh memory for each piece, and small enough to stay in a core's cache.
const CACHED_PIECE: usize = 3 * SUMMED_BYTES;

/// A part of a blob's file, read piece by piece: on this thread what the page cache holds, on the blocking pool what
/// must come from the disk.
pub(super) struct FileReader {
    blob: Arc<BlobFile>,
    transfer: Transfer,
    range: Range<u64>,
    /// Where the next piece to be read begins.
    position: u64,
}

impl FileReader {
    /// This node's copy of a blob with the first bytes of `range`; `None` where there is none. Opening and the first
    /// piece are one trip to the blocking pool: most blobs have no second piece.
    ///
    /// # Errors
    /// `Io`, or `Corrupt` where the bytes are not what they were.
    pub(super) async fn open(
        blobs: BlobStore,
        digest: Digest,
        range: Range<u64>,
    ) -> Result<Option<(Self, Bytes)>, StorageError> {
        let transfer = Transfer::begin();
        let piece = next_piece(&range, range.start, transfer.piece_size());
        let opened = blocking(move || -> Result<_, StorageError> {
            let Some(blob) = blobs.open_blob(&digest)? else { return Ok(None) };
            let first = read_piece(&blob, piece).map_err(|error| StorageError::io(&blobs.path(&digest), error))?;
            Ok(Some((blob, first)))
        });
        let Some((blob, first)) = opened.await?? else { return Ok(None) };
        let position = range.start + first.len() as u64;
        Ok(Some((Self { blob: Arc::new(blob), transfer, range, position }, first)))
    }

    /// Whether every piece is compared with a checksum.
    pub(super) fn is_checked(&self) -> bool {
        self.blob.is_checked()
    }

    /// The next piece; `None` at the end.
    pub(super) async fn next(&mut self) -> Option<io::Result<Bytes>> {
        if self.position >= self.range.end {
            return None;
        }
        let piece = match self.read_cached() {
            Some(piece) => piece,
            None => {
                let piece = next_piece(&self.range, self.position, self.transfer.piece_size());
                let blob = Arc::clone(&self.blob);
                let read = tokio::task::spawn_blocking(move || read_piece(&blob, piece));
                read.await.unwrap_or_else(|error| Err(io::Error::other(error)))
            }
        };
        match &piece {
            Ok(piece) => self.position += piece.len() as u64,
            Err(error) => tracing::error!(%error, "a blob's file could not be read"),
        }
        Some(piece)
    }

    /// The rest of the bytes, after `first`.
    pub(super) fn after(self, first: Bytes) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
        let first = (!first.is_empty()).then_some(Ok(first));
        let rest = stream::unfold(self, |mut file| async move { file.next().await.map(|piece| (piece, file)) });
        futures::StreamExt::chain(stream::iter(first), rest)
    }

    /// The next piece if the page cache holds it; `None` if not, or if the file system cannot say. Never waits for the
    /// disk, so that it may run on an async thread: two hand-overs to another one cost more than this read.
    fn read_cached(&self) -> Option<io::Result<Bytes>> {
        let piece = next_piece(&self.range, self.position, CACHED_PIECE);
        let summed = summed(&piece, self.blob.size);
        let length = length(&summed);
        let mut buffer = Buffer::new(PIECE_MAX);
        let target = &mut [io::IoSliceMut::new(buffer.first(length))];
        let count =
            rustix::io::preadv2(&self.blob.file, target, summed.start, rustix::io::ReadWriteFlags::NOWAIT).ok()?;
        (count == length).then(|| checked(&self.blob, buffer, &summed, &piece))
    }
}

/// The bytes of this node's own copy, opened when they are first asked for.
pub(super) fn local_file(
    blobs: BlobStore,
    digest: Digest,
    range: Range<u64>,
) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
    let opened = async move {
        let opened = FileReader::open(blobs, digest, range).await.map_err(io::Error::other)?;
        let (reader, first) = opened.ok_or(io::Error::from(io::ErrorKind::NotFound))?;
        Ok::<_, io::Error>(reader.after(first))
    };
    stream::once(opened).try_flatten()
}

/// What of `range` is read next, from `position` on: about `size` bytes, at least to the end of what has one checksum.
fn next_piece(range: &Range<u64>, position: u64, size: usize) -> Range<u64> {
    let summed = SUMMED_BYTES as u64;
    let end = (position - position % summed) + (size as u64 - size as u64 % summed).max(summed);
    position..end.min(range.end).max(position)
}

/// What must be read of a file of `size` bytes so that `piece` can be compared with checksums.
fn summed(piece: &Range<u64>, size: u64) -> Range<u64> {
    let summed = SUMMED_BYTES as u64;
    let start = piece.start - piece.start % summed;
    start..piece.end.next_multiple_of(summed).min(size).max(piece.end)
}

fn length(range: &Range<u64>) -> usize {
    usize::try_from(range.end - range.start).unwrap_or(usize::MAX)
}

fn read_piece(blob: &BlobFile, piece: Range<u64>) -> io::Result<Bytes> {
    if piece.is_empty() {
        return Ok(Bytes::new());
    }
    let summed = summed(&piece, blob.size);
    let length = length(&summed);
    // Those of the largest size are at hand.
    let mut buffer = Buffer::new(if length > PIECE_MAX / 2 { length.max(PIECE_MAX) } else { length });
    blob.file.read_exact_at(buffer.first(length), summed.start)?;
    checked(blob, buffer, &summed, &piece)
}

/// The bytes of `piece` out of those that were read, if these are right.
fn checked(blob: &BlobFile, buffer: Buffer, summed: &Range<u64>, piece: &Range<u64>) -> io::Result<Bytes> {
    if !blob.is_right(summed.start, buffer.as_ref()) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the blob is damaged"));
    }
    let skipped = length(&(summed.start..piece.start));
    Ok(buffer.freeze().slice(skipped..skipped + length(piece)))
}

#[cfg(test)]
mod tests {
    use flotilla_storage::Algorithm;

    use super::*;

    const S: u64 = SUMMED_BYTES as u64;

    #[test]
    fn pieces_begin_anywhere_and_end_where_a_checksum_does() {
        assert_eq!(next_piece(&(0..10 * S), 0, CACHED_PIECE), 0..3 * S);
        assert_eq!(next_piece(&(0..10 * S), 0, PIECE_MAX), 0..6 * S);
        assert_eq!(next_piece(&(0..10 * S), S + 5, CACHED_PIECE), S + 5..4 * S);
        assert_eq!(next_piece(&(0..10 * S), 0, 1), 0..S);
        assert_eq!(next_piece(&(7..9), 7, PIECE_MAX), 7..9);
        assert_eq!(next_piece(&(7..7), 7, PIECE_MAX), 7..7);
        assert_eq!((summed(&(7..9), 20), summed(&(7..9), 10 * S)), (0..20, 0..S));
        assert_eq!(summed(&(S + 5..4 * S), 10 * S), S..4 * S);
    }

    #[tokio::test]
    async fn every_range_is_what_was_stored_or_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = BlobStore::open(dir.path(), 0).unwrap();
        let content: Vec<u8> = (0..8 * S + 123).map(|number| (number % 251) as u8).collect();
        let digest = Digest::of(Algorithm::Sha256, &content);
        let mut staging = blobs.stage().unwrap();
        staging.write(&content).unwrap();
        staging.seal(&digest).unwrap();
        let size = content.len() as u64;
        let read = async |range: Range<u64>| {
            let pieces: Result<Vec<Bytes>, _> = local_file(blobs.clone(), digest, range).try_collect().await;
            pieces.map(|pieces| pieces.concat())
        };
        for range in [0..size, 0..1, S - 1..S + 1, 5..7 * S, size - 1..size, 3 * S..4 * S, 9..9] {
            assert!(
                read(range.clone()).await.unwrap() == content[range.start as usize..range.end as usize],
                "{range:?}"
            );
        }
        let mut damaged = content.clone();
        damaged[7 * SUMMED_BYTES + 3] ^= 1;
        std::fs::write(blobs.path(&digest), &damaged).unwrap();
        assert!(read(0..7 * S).await.unwrap() == content[..7 * SUMMED_BYTES]);
        for range in [0..size, 7 * S..7 * S + 1, 8 * S - 1..8 * S] {
            assert!(read(range.clone()).await.is_err(), "{range:?}");
        }
    }
}

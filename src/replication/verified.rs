//! A whole blob on its way out, hashed as it goes: its last piece leaves only if the bytes have the digest. So a bad
//! byte, from this disk or from another node, never becomes a whole blob at a client: its connection breaks before the
//! end, or nothing was sent yet.

use std::io;

use bytes::Bytes;
use flotilla_storage::{Digest, Hasher};
use futures::{Stream, StreamExt, stream};

use super::read::BlobStream;

/// The bytes of `blob`, all but the last piece at once, that one once all have the digest. `damaged` is told if not.
pub(super) fn verified(
    blob: BlobStream,
    digest: Digest,
    damaged: impl FnOnce() + Send + 'static,
) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
    let checking = Checking { blob, hasher: Hasher::new(digest.algorithm()), held_back: None };
    stream::unfold(Some((checking, damaged)), move |state| async move {
        let (mut checking, damaged) = state?;
        match checking.next().await {
            Next::Piece(piece) => Some((Ok(piece), Some((checking, damaged)))),
            Next::Broken(error) => Some((Err(error), None)),
            Next::End { last, actual } if actual == digest => last.map(|last| (Ok(last), None)),
            Next::End { actual, .. } => {
                tracing::error!(%digest, %actual, "the bytes of a blob are not what they should be: it is not served whole");
                damaged();
                Some((Err(io::Error::new(io::ErrorKind::InvalidData, "the blob is damaged")), None))
            }
        }
    })
}

struct Checking {
    blob: BlobStream,
    hasher: Hasher,
    held_back: Option<Bytes>,
}

enum Next {
    Piece(Bytes),
    Broken(io::Error),
    End { last: Option<Bytes>, actual: Digest },
}

impl Checking {
    async fn next(&mut self) -> Next {
        loop {
            match self.blob.next().await {
                Some(Ok(piece)) => {
                    self.hasher.update(&piece);
                    if let Some(before) = self.held_back.replace(piece) {
                        return Next::Piece(before);
                    }
                }
                Some(Err(error)) => return Next::Broken(error),
                None => return Next::End { last: self.held_back.take(), actual: self.hasher.clone().finish() },
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use flotilla_storage::Algorithm;

    use super::*;

    async fn read(pieces: &[&'static str], content: &str) -> (String, bool, bool) {
        let pieces: Vec<_> = pieces.iter().map(|piece| Ok(Bytes::from(*piece))).collect();
        let told = Arc::new(AtomicBool::new(false));
        let damaged = {
            let told = told.clone();
            move || told.store(true, Ordering::Relaxed)
        };
        let digest = Digest::of(Algorithm::Sha256, content.as_bytes());
        let items: Vec<_> = verified(BlobStream::new(stream::iter(pieces)), digest, damaged).collect().await;
        let came: String = items.iter().flatten().map(|piece| String::from_utf8_lossy(piece)).collect();
        (came, items.iter().any(Result::is_err), told.load(Ordering::Relaxed))
    }

    #[tokio::test]
    async fn the_last_piece_comes_only_if_all_are_right() {
        assert_eq!(read(&["ab", "c", "d"], "abcd").await, ("abcd".into(), false, false));
        assert_eq!(read(&[], "").await, (String::new(), false, false));
        assert_eq!(read(&["ab", "x", "d"], "abcd").await, ("abx".into(), true, true));
        assert_eq!(read(&["abce"], "abcd").await, (String::new(), true, true));
    }
}

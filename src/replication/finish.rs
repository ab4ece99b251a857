//! The end of an upload session: its bytes are made durable on enough nodes, then linked by the log. Never the
//! other way round (invariant I3).

use bytes::Bytes;
use flotilla_raft::{Answer, Body, Command, ProposeError, Refusal};
use flotilla_storage::{Digest, SealError, StorageError};

use super::Replication;
use super::session::{Content, Turn, UploadError};
use super::store::{Copying, Source, StoreError, Wanted};

/// How often copies are made again because their holders left the cluster meanwhile, or the bytes were collected.
const ATTEMPTS: usize = 3;

/// A finished upload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Finished {
    /// The revision of the link.
    pub(crate) revision: u64,
}

impl Turn {
    /// Ends the session: its bytes become the blob `digest` of its repository. After an error the session is where
    /// it was before this request; once the bytes are durable here, only a repetition of it can end the session.
    ///
    /// # Errors
    /// See [`UploadError`].
    pub(crate) async fn finish(self, digest: Digest) -> Result<Finished, UploadError> {
        // A task of its own: a client that goes away now has brought all bytes, and its retry finds the blob.
        tokio::spawn(self.finish_now(digest)).await.unwrap_or(Err(UploadError::OutcomeUnknown))
    }

    async fn finish_now(mut self, digest: Digest) -> Result<Finished, UploadError> {
        let result = self.conclude(digest).await;
        match &result {
            Ok(_) => {
                *self.content = Content::Gone;
                self.session.cancel();
            }
            // Its file is lost, and nothing can be made of it any more.
            Err(_) if matches!(*self.content, Content::Gone) => self.session.cancel(),
            Err(_) => self.roll_back().await?,
        }
        result
    }

    async fn conclude(&mut self, digest: Digest) -> Result<Finished, UploadError> {
        let replication = self.session.replication().clone();
        let wanted = replication.wanted(self.session.repository());
        let copying = match &mut *self.content {
            Content::Gone => return Err(UploadError::Unknown),
            Content::Memory(held) => {
                if Digest::of(digest.algorithm(), held.bytes()) != digest {
                    return Err(UploadError::DigestMismatch { digest });
                }
                let body = Body::Inline(Bytes::copy_from_slice(held.bytes()));
                let size = held.bytes().len() as u64;
                return self.link(digest, size, body).await?.map_err(|refusal| refused(&refusal));
            }
            Content::Sealed { digest: sealed, .. } if *sealed != digest => {
                return Err(UploadError::DigestMismatch { digest });
            }
            Content::Sealed { size, .. } => Copying::new(&replication, digest, *size, Source::File, wanted),
            Content::File(file) => {
                if file.writer.digest(digest.algorithm()).await? != digest {
                    return Err(UploadError::DigestMismatch { digest });
                }
                if !replication.consensus().quorum_reachable() {
                    return Err(UploadError::NoQuorum);
                }
                self.seal(&replication, digest, wanted).await?
            }
        };
        self.copy_and_link(digest, copying).await
    }

    /// Makes the file durable here and its copies durable elsewhere, all at the same time.
    async fn seal(
        &mut self,
        replication: &Replication,
        digest: Digest,
        wanted: Wanted,
    ) -> Result<Copying, UploadError> {
        let Content::File(mut file) = std::mem::replace(&mut *self.content, Content::Gone) else {
            return Err(UploadError::Unknown);
        };
        let size = file.writer.len();
        let mut copying = Copying::new(replication, digest, size, Source::File, wanted);
        file.fanout.commit().await;
        let (sealed, answers) = futures::join!(file.writer.seal(digest), file.fanout.seal(digest, size));
        match sealed {
            Ok(_) => {}
            Err(SealError::Storage(error)) => return Err(error.into()),
            Err(SealError::DigestMismatch { actual }) => {
                let what = format!("an upload hashed as {digest} was sealed as {actual}");
                return Err(StorageError::corrupt(what).into());
            }
        }
        replication.tally().came(&digest);
        self.sealed(digest, size);
        answers.into_iter().for_each(|(node, answer)| copying.expect(node, answer));
        Ok(copying)
    }

    async fn copy_and_link(&self, digest: Digest, mut copying: Copying) -> Result<Finished, UploadError> {
        for _ in 0..ATTEMPTS {
            copying.wait().await.map_err(|error| match error {
                StoreError::NoQuorum => UploadError::NoQuorum,
                StoreError::Storage(error) => UploadError::Storage(error),
            })?;
            match self.link(digest, copying.size(), copying.body()).await? {
                Ok(finished) => {
                    copying.finish_in_background();
                    return Ok(finished);
                }
                Err(Refusal::HoldersGone) => copying.forget_gone(),
                Err(Refusal::PromiseExpired) => copying.promise_again(),
                Err(refusal) => return Err(refused(&refusal)),
            }
        }
        Err(UploadError::NoQuorum)
    }

    async fn link(&self, digest: Digest, size: u64, body: Body) -> Result<Result<Finished, Refusal>, UploadError> {
        self.session.check_open()?;
        // The id of the session is that of the request: under it a second digest would be answered as the first was.
        if *self.session.proposed().get_or_init(|| digest) != digest {
            return Err(UploadError::DigestMismatch { digest });
        }
        let repository = self.session.repository().clone();
        let command = Command::LinkBlob { repository, digest, size, body };
        match self.session.replication().consensus().propose(self.session.id(), command).await {
            Ok(Answer { revision, result: Ok(_) }) => Ok(Ok(Finished { revision })),
            Ok(Answer { result: Err(refusal), .. }) => Ok(Err(refusal)),
            Err(ProposeError::NoQuorum) => Err(UploadError::NoQuorum),
            Err(ProposeError::OutcomeUnknown) => Err(UploadError::OutcomeUnknown),
        }
    }
}

/// A link is refused for its holders alone, or because the log went on too far while it waited: a retry decides.
fn refused(refusal: &Refusal) -> UploadError {
    tracing::warn!(%refusal, "the link of an upload was refused");
    UploadError::OutcomeUnknown
}

//! How far an answer from local state can be trusted.

use actix_web::http::header::{HeaderName, HeaderValue, WARNING};
use flotilla_raft::{Consensus, ReadError};

use crate::oci::error::OciError;

/// What a read from local state is worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Freshness {
    /// As new as the request.
    Current,
    /// Perhaps older: no majority answered.
    Stale,
}

impl Freshness {
    /// Waits until local state is as new as this call. Without a quorum it says so, and local state still serves.
    ///
    /// # Errors
    /// The node is stopping.
    pub(crate) async fn catch_up(consensus: &Consensus) -> Result<Self, OciError> {
        match consensus.read_barrier().await {
            Ok(()) => Ok(Self::Current),
            Err(ReadError::NoQuorum) => Ok(Self::Stale),
            Err(error @ ReadError::Stopped) => Err(error.into()),
        }
    }

    /// The header that says so, in the specification's form.
    pub(crate) fn warning(self) -> Option<(HeaderName, HeaderValue)> {
        match self {
            Self::Current => None,
            Self::Stale => Some((WARNING, HeaderValue::from_static("299 - \"no quorum: this answer may be stale\""))),
        }
    }

    /// An error of a look-up that found nothing; a stale nothing proves nothing.
    pub(crate) fn missing(self, error: OciError) -> OciError {
        match self {
            Self::Current => error,
            Self::Stale => ReadError::NoQuorum.into(),
        }
    }
}

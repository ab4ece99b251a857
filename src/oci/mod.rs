//! The OCI Distribution API: `crate::http` routes a request here, these handlers answer it.

mod blobs;
mod catalog;
pub(crate) mod changes;
mod condition;
mod content;
pub(crate) mod error;
mod extract;
pub(crate) mod garbage;
mod manifest_document;
mod manifests;
mod past;
#[cfg(any(fuzzing, test))]
pub(crate) mod properties;
mod referrers;
pub(crate) mod scrub;
pub(crate) mod settings;
mod tags;
pub(crate) mod uploads;

use std::sync::Arc;

use actix_web::HttpResponse;
use actix_web::http::header::{HeaderName, HeaderValue};
use flotilla_raft::{Command, Consensus, Refusal};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::config::Config;
use crate::freshness::Freshness;
use crate::memory::Budget;
use crate::replication::Replication;

pub(crate) use blobs::{delete as delete_blob, get as get_blob, mount as mount_blob};
pub(crate) use catalog::list as list_repositories;
pub(crate) use content::strip_body;
pub(crate) use error::{Code, OciError};
pub(crate) use extract::{Route, repository};
pub(crate) use manifests::{delete as delete_manifest, get as get_manifest, put as put_manifest};
pub(crate) use referrers::list as list_referrers;
pub(crate) use tags::list as list_tags;

pub(crate) use crate::revision::FLOTILLA_REVISION;

/// The digest of what an answer carries, as the client named it.
pub(crate) const DOCKER_CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");

/// What docker looks for to tell a registry from something else.
pub(crate) const DOCKER_DISTRIBUTION_API_VERSION: HeaderName =
    HeaderName::from_static("docker-distribution-api-version");

/// What the bodies of requests that are read into memory may take together, in bytes.
const BODIES_MAX: usize = 64 << 20;

/// What the handlers share, once for all workers.
pub(crate) struct Oci {
    /// Agreement and the applied state.
    pub(crate) consensus: Consensus,
    /// The bytes of blobs.
    pub(crate) replication: Replication,
    /// The node's settings.
    pub(crate) config: Arc<Config>,
    hot: content::HotBodies,
    bodies: Budget,
    feed: changes::Feed,
    stop: CancellationToken,
}

impl Oci {
    /// Nothing is cached yet, and nobody watches. What goes on by itself ends with `stop`.
    pub(crate) fn new(
        consensus: Consensus,
        replication: Replication,
        config: Arc<Config>,
        stop: CancellationToken,
    ) -> Self {
        let feed = changes::Feed::start(consensus.clone(), stop.clone());
        Self {
            consensus,
            replication,
            config,
            hot: content::HotBodies::new(),
            bodies: Budget::new(BODIES_MAX),
            feed,
            stop,
        }
    }

    /// Where changes are told.
    pub(crate) fn feed(&self) -> changes::Feed {
        self.feed.clone()
    }

    /// Waits until local state is as new as this call. Without a quorum it says so, and local state still serves.
    async fn catch_up(&self) -> Result<Freshness, OciError> {
        Freshness::catch_up(&self.consensus).await
    }

    /// A look-up by digest: a local yes is enough (a removal was acknowledged when every node that answers had applied
    /// it), a local no is confirmed by all.
    async fn find<T>(&self, look: impl Fn() -> Result<Option<T>, OciError>) -> Result<Option<T>, OciError> {
        if let Some(found) = look()? {
            return Ok(Some(found));
        }
        self.consensus.read_barrier().await?;
        look()
    }

    /// Why a removal would be refused, if it would. Anyone could make the log grow if that were left to apply.
    fn nothing_to_remove(&self, command: &Command) -> Result<Option<Refusal>, OciError> {
        let registry = self.consensus.registry();
        let (repository, is_there, refusal) = match command {
            Command::DeleteTag { repository, tag, condition: None } => {
                (repository, registry.tag(repository, tag)?.is_some(), Refusal::TagUnknown)
            }
            Command::DeleteManifest { repository, digest } => {
                (repository, registry.manifest(repository, digest)?.is_some(), Refusal::ManifestUnknown)
            }
            Command::UnlinkBlob { repository, digest } => {
                (repository, registry.link(repository, digest)?.is_some(), Refusal::BlobUnknown)
            }
            _ => return Ok(None),
        };
        Ok(match is_there {
            true => None,
            false if registry.repository_exists(repository)? => Some(refusal),
            false => Some(Refusal::RepositoryUnknown),
        })
    }

    /// Proposes a removal and waits until no node that answers shows what was removed.
    async fn remove(&self, command: Command) -> Result<HttpResponse, OciError> {
        if self.nothing_to_remove(&command)?.is_some() {
            self.consensus.read_barrier().await?;
            if let Some(refusal) = self.nothing_to_remove(&command)? {
                return Err(OciError::from(refusal).revision(self.consensus.applied_index()));
            }
        }
        let answer = self.consensus.propose(Uuid::new_v4(), command).await?;
        answer.result.map_err(|refusal| OciError::from(refusal).revision(answer.revision))?;
        self.consensus.wait_applied_everywhere(answer.revision).await;
        Ok(HttpResponse::Accepted().insert_header((FLOTILLA_REVISION, decimal(answer.revision))).finish())
    }
}

/// `GET /v2/`
pub(crate) fn base() -> HttpResponse {
    HttpResponse::Ok().content_type("application/json").body("{}")
}

/// A number as a header's value.
fn decimal(number: u64) -> HeaderValue {
    HeaderValue::from(number)
}

/// A text that came from a checked type as a header's value.
fn checked(text: impl std::fmt::Display) -> HeaderValue {
    HeaderValue::try_from(text.to_string()).expect("names, digests and media types are visible ASCII")
}

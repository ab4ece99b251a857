//! What consensus adds to the registry, under `/api/v1`: the history of tags, changes of several at once, and the feed
//! of all changes.

mod audience;
mod event;
mod feed;
mod tags;
mod transaction;
mod watch;

use flotilla_raft::{Command, TagChange};
use utoipa_actix_web::service_config::ServiceConfig;
use uuid::Uuid;

use super::{Oci, OciError};

pub(crate) use feed::Feed;

/// The routes. The app's data must hold [`super::Oci`].
pub(crate) fn configure(routes: &mut ServiceConfig<'_>) {
    routes.service(tags::history).service(tags::rollback).service(transaction::change_tags).service(watch::watch);
}

/// Proposes changes of tags, all of them or none; their revision.
///
/// # Errors
/// The refusal of one of them; 503 without a quorum.
async fn propose(oci: &Oci, changes: Vec<TagChange>) -> Result<u64, OciError> {
    let answer = oci.consensus.propose(Uuid::new_v4(), Command::MoveTags(changes)).await?;
    answer.result.map_err(|refusal| OciError::from(refusal).revision(answer.revision))?;
    Ok(answer.revision)
}

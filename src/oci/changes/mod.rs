//! What consensus adds to the registry, under `/api/v1`: the history of tags, changes of several at once, and the feed
//! of all changes.

mod feed;
mod tags;
mod transaction;
mod watch;

use std::time::{Duration, UNIX_EPOCH};

use utoipa_actix_web::service_config::ServiceConfig;

pub(crate) use feed::Feed;

/// The routes. The app's data must hold [`super::Oci`].
pub(crate) fn configure(routes: &mut ServiceConfig<'_>) {
    routes.service(tags::history).service(tags::rollback).service(transaction::change_tags).service(watch::watch);
}

/// A time of state as RFC 3339 has it.
fn rfc3339(time_ms: u64) -> String {
    humantime::format_rfc3339_millis(UNIX_EPOCH + Duration::from_millis(time_ms)).to_string()
}

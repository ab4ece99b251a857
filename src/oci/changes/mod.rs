//! What consensus adds to the registry, under `/api/v1`: the history of tags, changes of several at once, and the feed
//! of all changes.

mod feed;
mod tags;
mod transaction;
mod watch;

use std::time::{Duration, UNIX_EPOCH};

use actix_web::web;

pub(crate) use feed::Feed;

/// The routes. The app's data must hold [`super::Oci`].
pub(crate) fn configure(routes: &mut web::ServiceConfig) {
    routes
        .route("/api/v1/repositories/{repository:.+}/tags/{tag}/history", web::get().to(tags::history))
        .route("/api/v1/repositories/{repository:.+}/tags/{tag}/rollback", web::post().to(tags::rollback))
        .route("/api/v1/transactions", web::post().to(transaction::post))
        .route("/api/v1/watch", web::get().to(watch::get));
}

/// A time of state as RFC 3339 has it.
fn rfc3339(time_ms: u64) -> String {
    humantime::format_rfc3339_millis(UNIX_EPOCH + Duration::from_millis(time_ms)).to_string()
}

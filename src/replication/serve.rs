//! What other nodes ask of this one's blobs, on the peer port. The client side is in `peers.rs`.

use std::ops::Range;

use actix_web::http::StatusCode;
use actix_web::http::header::{CONTENT_RANGE, RANGE};
use actix_web::{HttpRequest, HttpResponse, HttpResponseBuilder, body, web};
use flotilla_storage::{Digest, SealError, StorageError};
use serde::Deserialize;
use uuid::Uuid;

use super::Replication;
use super::copies::CopyError;
use super::peers::{COUNT_HEADER, OFFSET_HEADER, PROMISED_HEADER};
use super::pieces::{BodyError, Pieces};
use super::writer::{Writer, blocking};

/// Mounts the peer protocol of blobs. The app's data must hold the [`Replication`].
pub(crate) fn configure_peer(services: &mut web::ServiceConfig) {
    services
        .service(
            web::resource("/peer/v1/blobs/{digest}")
                .route(web::get().to(get_blob))
                .route(web::head().to(head_blob))
                .route(web::put().to(put_blob)),
        )
        .service(web::resource("/peer/v1/blobs/{digest}/check").route(web::post().to(check_blob)))
        .service(
            web::resource("/peer/v1/copies/{upload}")
                .route(web::post().to(append_copy))
                .route(web::delete().to(delete_copy)),
        )
        .service(web::resource("/peer/v1/copies/{upload}/seal").route(web::post().to(seal_copy)))
        .service(web::resource("/peer/v1/sessions/{upload}").route(web::head().to(head_session)))
        .service(web::resource("/peer/v1/orphans").route(web::post().to(collect_orphans)));
}

type App = web::Data<Replication>;

#[derive(Deserialize)]
struct GetQuery {
    /// Only what is compared with checksums.
    #[serde(default)]
    checked: bool,
}

async fn get_blob(
    app: App,
    request: HttpRequest,
    path: web::Path<String>,
    query: web::Query<GetQuery>,
) -> HttpResponse {
    let Ok(digest) = path.parse::<Digest>() else { return HttpResponse::BadRequest().finish() };
    let size = match size(&app, digest).await {
        Ok(Some(size)) => size,
        Ok(None) => return HttpResponse::NotFound().finish(),
        Err(error) => return failed(&error),
    };
    let asked = request.headers().get(RANGE).and_then(|range| range.to_str().ok());
    let Some(range) = asked.map_or(Some(0..size), |asked| parse_range(asked, size)) else {
        return HttpResponse::RangeNotSatisfiable().finish();
    };
    let length = range.end - range.start;
    match app.read_local(&digest, range.clone(), query.checked).await {
        Ok(Some(stream)) => HttpResponse::PartialContent()
            .insert_header((CONTENT_RANGE, format!("bytes {}-{}/{size}", range.start, range.end.saturating_sub(1))))
            .body(body::SizedStream::new(length, stream)),
        Ok(None) => HttpResponse::NotFound().finish(),
        Err(error) => failed(&error),
    }
}

#[derive(Deserialize)]
struct HeadQuery {
    /// The layout by which the asker says that the blob belongs here.
    layout: Option<u64>,
}

async fn head_blob(app: App, path: web::Path<String>, query: web::Query<HeadQuery>) -> HttpResponse {
    let Ok(digest) = path.parse::<Digest>() else { return HttpResponse::BadRequest().finish() };
    if query.layout.is_some_and(|layout| layout != app.consensus().layout_revision()) {
        return HttpResponse::Conflict().finish();
    }
    // The promise first: see `Promises`.
    let promised = app.consensus().promises().promise(&digest);
    match size(&app, digest).await {
        // Whoever asks counts on it.
        Ok(Some(_)) if app.blobs().is_unreadable(&digest) => HttpResponse::NotFound().finish(),
        Ok(Some(size)) => HttpResponse::Ok()
            .insert_header((PROMISED_HEADER, promised))
            .no_chunking(size)
            .body(body::SizedStream::new(size, futures::stream::empty::<std::io::Result<_>>())),
        Ok(None) => HttpResponse::NotFound().finish(),
        Err(error) => failed(&error),
    }
}

/// Another node says that this one's copy is damaged.
async fn check_blob(app: App, path: web::Path<String>) -> HttpResponse {
    let Ok(digest) = path.parse::<Digest>() else { return HttpResponse::BadRequest().finish() };
    app.suspect(digest);
    HttpResponse::Accepted().finish()
}

/// The size of this node's copy, if it has one that may be whole.
async fn size(app: &App, digest: Digest) -> Result<Option<u64>, StorageError> {
    let (blobs, registry) = (app.blobs().clone(), app.consensus().registry().clone());
    let looked = blocking(move || Ok::<_, StorageError>((blobs.size(&digest)?, registry.file_blob(&digest)?)));
    let (found, wanted) = looked.await??;
    if found.zip(wanted).is_some_and(|(found, wanted)| found != wanted) {
        app.suspect(digest);
        return Ok(None);
    }
    Ok(found)
}

/// Stores a whole blob. 201: durable.
async fn put_blob(app: App, path: web::Path<String>, payload: web::Payload) -> HttpResponse {
    let Ok(digest) = path.parse::<Digest>() else { return HttpResponse::BadRequest().finish() };
    match receive(&app, digest, payload).await {
        Ok(promised) => {
            app.tally().came(&digest);
            HttpResponse::Created().insert_header((PROMISED_HEADER, promised)).finish()
        }
        Err(error) => refused(&error),
    }
}

async fn receive(app: &App, digest: Digest, payload: web::Payload) -> Result<u64, CopyError> {
    let (blobs, limit) = (app.blobs().clone(), app.config().max_blob_size.as_u64());
    let mut writer = Writer::new(blocking(move || blobs.stage()).await??);
    let mut pieces = Pieces::new(payload.into_inner(), app.config().body_timeout);
    while let Some(piece) = pieces.next().await {
        writer.write(piece?).await?;
        if writer.len() > limit {
            return Err(CopyError::TooLarge);
        }
    }
    let promised = app.consensus().promises().promise(&digest);
    writer.seal(digest).await?;
    Ok(promised)
}

#[derive(Deserialize)]
struct AppendQuery {
    offset: u64,
}

async fn append_copy(
    app: App,
    path: web::Path<Uuid>,
    query: web::Query<AppendQuery>,
    payload: web::Payload,
) -> HttpResponse {
    match app.copies().append(*path, query.offset, payload.into_inner()).await {
        Ok(length) => HttpResponse::Ok().insert_header((OFFSET_HEADER, length)).finish(),
        Err(error) => refused(&error),
    }
}

#[derive(Deserialize)]
struct SealQuery {
    digest: String,
    size: u64,
}

/// Makes a copy a blob. 200: durable.
async fn seal_copy(app: App, path: web::Path<Uuid>, query: web::Query<SealQuery>) -> HttpResponse {
    let Ok(digest) = query.digest.parse::<Digest>() else { return HttpResponse::BadRequest().finish() };
    let promised = app.consensus().promises().promise(&digest);
    match app.copies().seal(*path, digest, query.size).await {
        Ok(()) => {
            app.tally().came(&digest);
            HttpResponse::Ok().insert_header((PROMISED_HEADER, promised)).finish()
        }
        Err(error) => refused(&error),
    }
}

async fn delete_copy(app: App, path: web::Path<Uuid>) -> HttpResponse {
    match app.copies().remove(*path) {
        true => HttpResponse::NoContent().finish(),
        false => HttpResponse::NotFound().finish(),
    }
}

async fn head_session(app: App, path: web::Path<Uuid>) -> HttpResponse {
    match app.has_session(*path) {
        true => HttpResponse::Ok().finish(),
        false => HttpResponse::NotFound().finish(),
    }
}

async fn collect_orphans(app: App) -> HttpResponse {
    match app.collect_orphans().await {
        Ok(count) => HttpResponse::Ok().insert_header((COUNT_HEADER, count)).finish(),
        Err(error) => failed(&error),
    }
}

fn refused(error: &CopyError) -> HttpResponse {
    let status = match error {
        CopyError::Unknown => StatusCode::NOT_FOUND,
        CopyError::TooMany => StatusCode::TOO_MANY_REQUESTS,
        CopyError::Busy | CopyError::Offset { .. } => StatusCode::CONFLICT,
        CopyError::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        CopyError::Body(BodyError::Stalled) => StatusCode::REQUEST_TIMEOUT,
        CopyError::Body(BodyError::Broken) => StatusCode::BAD_REQUEST,
        CopyError::Seal(SealError::DigestMismatch { .. }) => StatusCode::UNPROCESSABLE_ENTITY,
        CopyError::Storage(StorageError::Full { .. }) => StatusCode::INSUFFICIENT_STORAGE,
        CopyError::Seal(SealError::Storage(_)) | CopyError::Storage(_) => return failed(error),
    };
    tracing::debug!(%error, %status, "a copy was refused");
    let mut response = HttpResponseBuilder::new(status);
    if let CopyError::Offset { length } = error {
        response.insert_header((OFFSET_HEADER, *length));
    }
    response.finish()
}

fn failed(error: &dyn std::error::Error) -> HttpResponse {
    tracing::error!(error = %error, "a blob could not be read or written for another node");
    HttpResponse::InternalServerError().finish()
}

/// `bytes=a-b` or `bytes=a-` of peers, which never send another form. `None`: not within the blob.
pub(super) fn parse_range(text: &str, size: u64) -> Option<Range<u64>> {
    let (first, last) = text.strip_prefix("bytes=")?.split_once('-')?;
    let start: u64 = first.parse().ok()?;
    let end = if last.is_empty() { size } else { last.parse::<u64>().ok()?.checked_add(1)?.min(size) };
    (start < end).then_some(start..end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_of_peers_are_read() {
        assert_eq!(parse_range("bytes=0-", 10), Some(0..10));
        assert_eq!(parse_range("bytes=3-5", 10), Some(3..6));
        assert_eq!(parse_range("bytes=3-99", 10), Some(3..10));
        for bad in ["bytes=10-", "bytes=5-4", "bytes=-3", "bytes=0-18446744073709551615", "3-5", "bytes=a-b"] {
            assert_eq!(parse_range(bad, 10), None, "{bad}");
        }
    }
}

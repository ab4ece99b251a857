//! Upload sessions over HTTP: open, send bytes, ask, close, cancel.
//!
//! A session lives on the node that opened it. Requests that reach another node are passed on to it as they come in
//! ([`forward`]), and arrive here again by the peer port.

mod content_range;
mod forward;

use actix_web::http::header::{CONTENT_LENGTH, CONTENT_RANGE, HeaderName, HeaderValue, LOCATION, RANGE};
use actix_web::http::{Method, StatusCode};
use actix_web::{HttpRequest, HttpResponse, HttpResponseBuilder, web};
use flotilla_raft::RepositoryName;
use flotilla_storage::{Algorithm, Digest};
use uuid::Uuid;

use super::error::{Code, OciError};
use super::{DOCKER_CONTENT_DIGEST, FLOTILLA_REVISION, checked, decimal};
use crate::replication::{BodyError, OneRequest, Replication, Session, Turn, UploadError};
use crate::request::{header, query, query_all};
use content_range::ChunkRange;

/// The session's id, for clients that do not take it from the `Location`.
const DOCKER_UPLOAD_UUID: HeaderName = HeaderName::from_static("docker-upload-uuid");

/// First byte and length of a `Content-Range`, for `super::properties`.
#[cfg(any(fuzzing, test))]
pub(super) fn parse_content_range(text: &str) -> Option<(u64, u64)> {
    ChunkRange::parse(text).map(|range| (range.first(), range.length()))
}

/// The path under which the peer port has what other nodes pass on.
pub(crate) const FORWARDED_TO: &str = "/peer/v1/uploads/";

/// Mounts what other nodes pass on. The app's data must hold the [`Replication`].
pub(crate) fn configure_peer(services: &mut web::ServiceConfig) {
    services.service(web::resource(format!("{FORWARDED_TO}{{repository:.+}}/{{upload}}")).to(forwarded));
}

/// `POST /v2/<name>/blobs/uploads/`: opens a session, or with `?digest=` takes the whole blob at once. A mount was
/// tried before.
///
/// # Errors
/// See [`refuse`]; 503 without a quorum or without room on the disk, because what is begun now could not be finished.
pub(crate) async fn start(
    replication: &Replication,
    request: &HttpRequest,
    repository: RepositoryName,
    payload: web::Payload,
) -> Result<HttpResponse, OciError> {
    // Bytes are hashed by sha256 as they come, by what the closing digest asks for at the end: nothing to remember.
    announced_algorithm(request)?;
    let digest = digest(request)?;
    if !replication.quorum_reachable() {
        return Err(OciError::unavailable("no majority of the nodes answers; no upload can be finished now"));
    }
    replication.require_room().await?;
    let session = replication.open_session(&repository).map_err(|error| refuse(error, None))?;
    let Some(digest) = digest else { return Ok(progress(StatusCode::ACCEPTED, &session)) };
    let session = OneRequest(session);
    let uploaded = async {
        let mut turn = session.0.turn().await?;
        turn.append(payload.into_inner(), None).await?;
        turn.finish(digest).await
    };
    let finished = uploaded.await.map_err(|error| refuse(error, None))?;
    Ok(created(&repository, &digest, finished.revision))
}

/// `PATCH`, `PUT`, `GET`, `HEAD` and `DELETE` of `/v2/<name>/blobs/uploads/<id>`, on whichever node the session is.
///
/// # Errors
/// See [`refuse`]; 404 where the session's node is away.
pub(crate) async fn session(
    replication: &Replication,
    request: &HttpRequest,
    repository: RepositoryName,
    id: &str,
    payload: web::Payload,
) -> Result<HttpResponse, OciError> {
    let id = id.parse().map_err(|_| unknown())?;
    match replication.upload_owner(&id) {
        None => Err(unknown()),
        Some(owner) if owner == replication.node_id() => here(replication, request, &repository, id, payload).await,
        Some(owner) => match forward::forward(replication, request, &repository, id, owner, payload).await? {
            Some(answer) => Ok(answer),
            None if request.method() == Method::PUT => repeated(replication, request, &repository).await,
            None => Err(unknown()),
        },
    }
}

/// A request that another node passed on. It is never passed on again.
async fn forwarded(
    replication: web::Data<Replication>,
    request: HttpRequest,
    path: web::Path<(String, Uuid)>,
    payload: web::Payload,
) -> Result<HttpResponse, OciError> {
    let (repository, id) = path.into_inner();
    here(&replication, &request, &repository.parse()?, id, payload).await
}

async fn here(
    replication: &Replication,
    request: &HttpRequest,
    repository: &RepositoryName,
    id: Uuid,
    payload: web::Payload,
) -> Result<HttpResponse, OciError> {
    let session = match replication.find_session(repository, id) {
        Ok(session) => session,
        Err(_) if request.method() == Method::PUT => return repeated(replication, request, repository).await,
        Err(error) => return Err(refuse(error, None)),
    };
    match *request.method() {
        Method::GET | Method::HEAD => Ok(progress(StatusCode::NO_CONTENT, &session)),
        Method::PATCH => patch(request, &session, payload).await,
        Method::PUT => put(request, &session, payload).await,
        Method::DELETE => {
            session.cancel();
            Ok(HttpResponse::NoContent().finish())
        }
        _ => Err(OciError::method_not_allowed("GET, HEAD, PATCH, PUT, DELETE")),
    }
}

async fn patch(
    request: &HttpRequest,
    session: &std::sync::Arc<Session>,
    payload: web::Payload,
) -> Result<HttpResponse, OciError> {
    let appended = async { appended(request, session, payload).await?.commit().await };
    appended.await.map_err(|error| refuse(error, Some(session)))?;
    Ok(progress(StatusCode::ACCEPTED, session))
}

async fn put(
    request: &HttpRequest,
    session: &std::sync::Arc<Session>,
    payload: web::Payload,
) -> Result<HttpResponse, OciError> {
    let digest = closing_digest(request)?;
    let finished = async { appended(request, session, payload).await?.finish(digest).await };
    let finished = finished.await.map_err(|error| match error {
        // Mostly the same request, whose client did not wait for its answer.
        UploadError::Busy => OciError::unavailable("another request of this upload is being worked on; try again"),
        error => refuse(error, Some(session)),
    })?;
    Ok(created(session.repository(), &digest, finished.revision))
}

/// Takes the request's body to the end of the session, if it belongs there.
async fn appended(
    request: &HttpRequest,
    session: &std::sync::Arc<Session>,
    payload: web::Payload,
) -> Result<Turn, UploadError> {
    let mut turn = session.turn().await?;
    // A closing request that is repeated says where its body began the first time.
    let length = if turn.is_sealed() { None } else { chunk_length(request, turn.offset())? };
    turn.append(payload.into_inner(), length).await?;
    Ok(turn)
}

/// The length that the body must have, where a `Content-Range` says it.
fn chunk_length(request: &HttpRequest, offset: u64) -> Result<Option<u64>, UploadError> {
    if !request.headers().contains_key(CONTENT_RANGE) {
        return Ok(None);
    }
    let range = header(request, CONTENT_RANGE).and_then(ChunkRange::parse);
    let range = range.filter(|range| range.first() == offset).ok_or(UploadError::OutOfOrder { offset })?;
    match header(request, CONTENT_LENGTH).and_then(|length| length.parse::<u64>().ok()) {
        // Known before the body is read.
        Some(length) if length != range.length() => Err(UploadError::WrongLength),
        _ => Ok(Some(range.length())),
    }
}

/// A closing request whose session is not there may be the second of its kind: the first one's answer was lost. What it
/// asked for is true if the repository holds the digest, whoever brought it; any node can tell.
async fn repeated(
    replication: &Replication,
    request: &HttpRequest,
    repository: &RepositoryName,
) -> Result<HttpResponse, OciError> {
    let digest = closing_digest(request)?;
    replication.consensus().read_barrier().await?;
    let link = replication.consensus().registry().link(repository, &digest)?.ok_or_else(unknown)?;
    Ok(created(repository, &digest, link.revision))
}

/// The `digest` parameter. Two of them contradict each other or are a client's mistake; either way nobody is served
/// by picking one (C14).
fn digest(request: &HttpRequest) -> Result<Option<Digest>, OciError> {
    match query_all(request, "digest").as_slice() {
        [] => Ok(None),
        [digest] => Ok(Some(digest.parse()?)),
        _ => Err(OciError::bad_request(Code::DigestInvalid, "more than one digest parameter")),
    }
}

fn closing_digest(request: &HttpRequest) -> Result<Digest, OciError> {
    digest(request)?.ok_or_else(|| OciError::bad_request(Code::DigestInvalid, "the digest parameter is missing"))
}

fn announced_algorithm(request: &HttpRequest) -> Result<Option<Algorithm>, OciError> {
    let Some(name) = query(request, "digest-algorithm") else { return Ok(None) };
    let algorithm = Algorithm::ALL.into_iter().find(|algorithm| algorithm.name() == name);
    let unsupported = || OciError::bad_request(Code::DigestInvalid, "the digest algorithm is not supported");
    algorithm.map(Some).ok_or_else(unsupported)
}

/// Where the session is: every answer but an error says so in the same headers.
fn progress(status: StatusCode, session: &Session) -> HttpResponse {
    let mut answer = HttpResponseBuilder::new(status);
    for header in session_headers(session) {
        answer.insert_header(header);
    }
    answer.finish()
}

fn session_headers(session: &Session) -> [(HeaderName, HeaderValue); 3] {
    // Always a path: no proxy, port or scheme can be wrong in it (C33).
    let location = format!("/v2/{}/blobs/uploads/{}", session.repository(), session.id());
    [
        (LOCATION, checked(location)),
        (RANGE, checked(inclusive(session.offset()))),
        (DOCKER_UPLOAD_UUID, checked(session.id())),
    ]
}

/// `0-<last>`. The form has no way to say «nothing»; `0-0` is what all registries write then (C10).
fn inclusive(offset: u64) -> String {
    format!("0-{}", offset.saturating_sub(1))
}

fn created(repository: &RepositoryName, digest: &Digest, revision: u64) -> HttpResponse {
    HttpResponse::Created()
        .insert_header((LOCATION, checked(format!("/v2/{repository}/blobs/{digest}"))))
        .insert_header((DOCKER_CONTENT_DIGEST, checked(digest)))
        .insert_header((FLOTILLA_REVISION, decimal(revision)))
        .finish()
}

fn unknown() -> OciError {
    OciError::not_found(Code::BlobUploadUnknown, "no such upload session in this repository")
}

/// What a client hears. After a chunk in the wrong place it is told where the session is.
fn refuse(error: UploadError, session: Option<&std::sync::Arc<Session>>) -> OciError {
    let message = error.to_string();
    match error {
        UploadError::Unknown => unknown(),
        UploadError::Busy | UploadError::OutOfOrder { .. } => {
            let error = OciError::new(StatusCode::RANGE_NOT_SATISFIABLE, Code::BlobUploadInvalid, message);
            let headers = session.into_iter().flat_map(|session| session_headers(session));
            headers.fold(error, |error, (name, value)| error.header(name, value))
        }
        UploadError::WrongLength => OciError::bad_request(Code::SizeInvalid, message),
        UploadError::TooLarge { limit } => OciError::too_large(limit),
        UploadError::Body(BodyError::Stalled) => OciError::stalled(),
        UploadError::Body(BodyError::Broken) => OciError::cut_short(),
        UploadError::DigestMismatch { .. } => OciError::bad_request(Code::DigestInvalid, message),
        UploadError::TooMany => OciError::busy(message),
        UploadError::NoQuorum | UploadError::OutcomeUnknown => OciError::unavailable(message),
        UploadError::Storage(error) => error.into(),
    }
}

#[cfg(test)]
mod tests {
    use actix_web::test::TestRequest;

    use super::*;

    fn request(uri: &str) -> HttpRequest {
        TestRequest::with_uri(uri).to_http_request()
    }

    #[test]
    fn the_range_counts_inclusively() {
        assert_eq!(inclusive(0), "0-0");
        assert_eq!(inclusive(10), "0-9");
    }

    #[test]
    fn c14_one_digest_in_any_encoding_and_only_one() {
        let hex = "0".repeat(64);
        let plain = request(&format!("/u?digest=sha256:{hex}"));
        let encoded = request(&format!("/u?_state=x&digest=sha256%3A{hex}"));
        assert_eq!(closing_digest(&plain).unwrap(), closing_digest(&encoded).unwrap());
        assert!(closing_digest(&request(&format!("/u?digest=sha256:{hex}&digest=sha256:{hex}"))).is_err());
        assert!(closing_digest(&request(&format!("/u?digest=sha256:{hex}?digest=sha256:{hex}"))).is_err());
        assert!(closing_digest(&request("/u")).is_err());
    }

    #[test]
    fn c06_algorithms_are_announced_by_name() {
        assert_eq!(announced_algorithm(&request("/u")).unwrap(), None);
        assert_eq!(announced_algorithm(&request("/u?digest-algorithm=sha512")).unwrap(), Some(Algorithm::Sha512));
        assert!(announced_algorithm(&request("/u?digest-algorithm=md5")).is_err());
    }

    #[test]
    fn c13_a_chunk_must_begin_at_the_offset_and_have_its_length() {
        let chunk = |range: &str, length: u64| {
            let request = TestRequest::default().insert_header((CONTENT_RANGE, range));
            request.insert_header((CONTENT_LENGTH, length.to_string())).to_http_request()
        };
        assert!(matches!(chunk_length(&chunk("10-19", 10), 10), Ok(Some(10))));
        assert!(matches!(chunk_length(&chunk("0-9", 10), 10), Err(UploadError::OutOfOrder { offset: 10 })));
        assert!(matches!(chunk_length(&chunk("", 10), 0), Err(UploadError::OutOfOrder { offset: 0 })));
        assert!(matches!(chunk_length(&chunk("0-10", 10), 0), Err(UploadError::WrongLength)));
        assert!(matches!(chunk_length(&request("/u"), 7), Ok(None)));
    }
}

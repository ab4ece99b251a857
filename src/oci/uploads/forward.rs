//! Passes a request on to the node that holds its session, as a stream both ways; clients never see a redirect.

use std::time::Duration;

use actix_web::http::header::{
    CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HeaderMap, HeaderName, LOCATION, RANGE, RETRY_AFTER,
};
use actix_web::http::{Method, StatusCode};
use actix_web::{HttpRequest, HttpResponse, HttpResponseBuilder, web};
use bytes::Bytes;
use flotilla_raft::{Member, NodeId, RepositoryName};
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use tokio_stream::wrappers::ReceiverStream;
use uuid::Uuid;

use super::super::{DOCKER_CONTENT_DIGEST, FLOTILLA_REVISION};
use super::{DOCKER_UPLOAD_UUID, OciError};
use crate::oci::Code;
use crate::replication::{BodyError, PeerError, Pieces, Replication, UploadError, UploadTarget};
use crate::request_id;

/// Pieces that may wait for the other node.
const QUEUED_PIECES: usize = 2;

/// How often it is asked whether the other node still answers.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// The largest body of an answer, in bytes (they are errors, or empty), and how long it may take.
const ANSWER_MAX: u64 = 64 * 1024;
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// What of a request the other node must know, besides its path and query.
const REQUEST_HEADERS: [HeaderName; 3] = [CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE];

/// What of its answer the client must know.
const ANSWER_HEADERS: [HeaderName; 7] =
    [LOCATION, RANGE, DOCKER_UPLOAD_UUID, DOCKER_CONTENT_DIGEST, FLOTILLA_REVISION, CONTENT_TYPE, RETRY_AFTER];

/// The owner's answer; `None` where the owner is no member, or does not answer: then the session is as good as gone.
///
/// # Errors
/// The client's body did not come whole.
pub(super) async fn forward(
    replication: &Replication,
    request: &HttpRequest,
    repository: &RepositoryName,
    upload: Uuid,
    owner: NodeId,
    payload: web::Payload,
) -> Result<Option<HttpResponse>, OciError> {
    let members = replication.consensus().members();
    let owner = members.iter().find(|member| member.id == owner && replication.consensus().reachable(owner));
    let Some(owner) = owner else { return Ok(None) };
    let target = UploadTarget { repository, upload, query: request.query_string() };
    let answer = tokio::select! {
        answer = exchange(replication, request, &target, owner, payload) => answer?,
        () = lost(replication, owner.id) => return Ok(None),
    };
    match answer {
        Ok(answer) => relay(answer).await.map(Some),
        Err(error) => {
            tracing::debug!(%error, %upload, "an upload's node did not answer");
            Ok(None)
        }
    }
}

/// Sends the request with its body, and gives the answer as soon as it comes, be the body sent or not.
async fn exchange(
    replication: &Replication,
    request: &HttpRequest,
    target: &UploadTarget<'_>,
    owner: &Member,
    payload: web::Payload,
) -> Result<Result<reqwest::Response, PeerError>, OciError> {
    let method = reqwest_method(request.method());
    let mut headers = copied(request.headers(), &REQUEST_HEADERS);
    if let Some(id) = request_id::current().and_then(|id| id.parse().ok()) {
        headers.insert(reqwest::header::HeaderName::from_static(request_id::NAME), id);
    }
    if !has_body(request) {
        return Ok(replication.peers().forward_upload(owner, method, target, headers, None).await);
    }
    let (pieces, queued) = mpsc::channel(QUEUED_PIECES);
    let body = reqwest::Body::wrap_stream(ReceiverStream::new(queued));
    let sent = replication.peers().forward_upload(owner, method, target, headers, Some(body));
    let mut sent = std::pin::pin!(sent);
    tokio::select! {
        answer = &mut sent => Ok(answer),
        pumped = pump(replication.pieces(payload.into_inner()), pieces) => match pumped {
            Ok(()) => Ok(sent.await),
            Err(error) => Err(super::refuse(UploadError::Body(error), None)),
        },
    }
}

/// Feeds the client's body into the request. When it breaks, so does the request, and the owner takes back what came.
async fn pump<S, E>(mut body: Pieces<S>, pieces: mpsc::Sender<std::io::Result<Bytes>>) -> Result<(), BodyError>
where
    S: futures::Stream<Item = Result<Bytes, E>> + Unpin,
{
    while let Some(piece) = body.next().await {
        let piece = match piece {
            Ok(piece) => piece,
            Err(error) => {
                let _ = pieces.send(Err(std::io::Error::other(error))).await;
                return Err(error);
            }
        };
        if pieces.send(Ok(piece)).await.is_err() {
            break;
        }
    }
    Ok(())
}

/// Returns once the node does not answer pings any more.
async fn lost(replication: &Replication, node: NodeId) {
    while replication.consensus().reachable(node) {
        sleep(LOOK_EVERY).await;
    }
}

async fn relay(answer: reqwest::Response) -> Result<HttpResponse, OciError> {
    let broken = || OciError::new(StatusCode::SERVICE_UNAVAILABLE, Code::Unavailable, "the upload's node went away");
    let mut response = HttpResponseBuilder::new(
        StatusCode::from_u16(answer.status().as_u16()).unwrap_or(StatusCode::SERVICE_UNAVAILABLE),
    );
    for name in &ANSWER_HEADERS {
        if let Some(value) = answer.headers().get(name.as_str()) {
            response.insert_header((name.clone(), value.as_bytes()));
        }
    }
    if answer.content_length().is_none_or(|length| length > ANSWER_MAX) {
        return Ok(response.finish());
    }
    let body = timeout(ANSWER_TIMEOUT, answer.bytes()).await;
    let body = body.map_err(|_| broken())?.map_err(|_| broken())?;
    Ok(if body.is_empty() { response.finish() } else { response.body(body) })
}

/// Without a length and without chunks there is no body (RFC 9112).
fn has_body(request: &HttpRequest) -> bool {
    let headers = request.headers();
    let empty = headers.get(CONTENT_LENGTH).is_none_or(|length| length == "0");
    !empty || headers.contains_key(actix_web::http::header::TRANSFER_ENCODING)
}

// actix-web and reqwest use two releases of the `http` crate.
fn reqwest_method(method: &Method) -> reqwest::Method {
    reqwest::Method::from_bytes(method.as_str().as_bytes()).unwrap_or_default()
}

fn copied(headers: &HeaderMap, names: &[HeaderName]) -> reqwest::header::HeaderMap {
    let mut copied = reqwest::header::HeaderMap::new();
    for name in names {
        let value = headers.get(name).and_then(|value| reqwest::header::HeaderValue::from_bytes(value.as_bytes()).ok());
        if let (Some(value), Ok(name)) = (value, reqwest::header::HeaderName::from_bytes(name.as_str().as_bytes())) {
            copied.insert(name, value);
        }
    }
    copied
}

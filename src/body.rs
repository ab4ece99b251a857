//! Bodies of requests that are read into memory.

use std::time::Duration;

use actix_web::HttpRequest;
use actix_web::error::PayloadError;
use actix_web::http::header::CONTENT_LENGTH;
use bytes::{Bytes, BytesMut};
use futures::{Stream, StreamExt};

use crate::memory::Share;
use crate::oci::error::OciError;
use crate::pace::Pace;
use crate::request;

/// The most memory that is set aside on a client's word alone.
const PROMISE_MAX: u64 = 64 * 1024;

/// Reads a request's whole body, with or without a length.
///
/// # Errors
/// 413 for more than `limit` bytes (at once where the client says so itself), 408 if no byte comes for `pause` or all of
/// it comes too slowly, 400 if the body ends early, 429 if the bodies of other requests fill the memory that `share` is
/// taken from.
pub(crate) async fn read_body<S>(
    request: &HttpRequest,
    mut chunks: S,
    limit: u64,
    pause: Duration,
    share: &mut Share,
) -> Result<Bytes, OciError>
where
    S: Stream<Item = Result<Bytes, PayloadError>> + Unpin,
{
    let promised: Option<u64> = request::header(request, CONTENT_LENGTH).and_then(|length| length.parse().ok());
    if promised.is_some_and(|length| length > limit) {
        return Err(OciError::too_large(limit));
    }
    let mut body = BytesMut::new();
    let mut pace = Pace::new(pause);
    while let Some(chunk) = pace.wait(pause, chunks.next()).await.ok_or_else(OciError::stalled)? {
        let chunk = chunk?;
        pace.came(chunk.len());
        if !share.grow(chunk.len()) {
            return Err(OciError::busy("the bodies of other requests fill the memory that is set aside for them"));
        }
        if promised == Some(chunk.len() as u64) {
            // Not the chunk itself: it would keep the connection's whole buffer alive for as long as the body is kept.
            return Ok(Bytes::copy_from_slice(&chunk));
        }
        if (body.len() + chunk.len()) as u64 > limit {
            return Err(OciError::too_large(limit));
        }
        if body.is_empty() {
            body.reserve(promised.unwrap_or_default().min(PROMISE_MAX) as usize);
        }
        body.extend_from_slice(&chunk);
    }
    match promised {
        Some(length) if length != body.len() as u64 => Err(OciError::cut_short()),
        _ => Ok(body.freeze()),
    }
}

#[cfg(test)]
mod tests {
    use actix_web::http::StatusCode;
    use actix_web::{ResponseError, test::TestRequest};
    use futures::stream;

    use super::*;
    use crate::memory::Budget;

    const PAUSE: Duration = Duration::from_millis(20);

    fn share(bytes: usize) -> Share {
        Budget::new(bytes).share()
    }

    async fn read(length: Option<u64>, chunks: Vec<&'static str>) -> Result<Bytes, StatusCode> {
        let mut request = TestRequest::default();
        if let Some(length) = length {
            request = request.insert_header((CONTENT_LENGTH, length));
        }
        let chunks = stream::iter(chunks.into_iter().map(|chunk| Ok(Bytes::from(chunk))));
        read_body(&request.to_http_request(), chunks, 5, PAUSE, &mut share(6))
            .await
            .map_err(|error| error.status_code())
    }

    #[actix_web::test]
    async fn a_body_comes_with_or_without_a_length() {
        assert_eq!(read(Some(5), vec!["abcde"]).await.unwrap(), "abcde");
        assert_eq!(read(Some(5), vec!["ab", "cde"]).await.unwrap(), "abcde");
        assert_eq!(read(None, vec!["ab", "", "cde"]).await.unwrap(), "abcde");
        assert_eq!(read(None, vec![]).await.unwrap(), "");
    }

    #[actix_web::test]
    async fn limits_hold() {
        assert_eq!(read(Some(6), vec![]).await, Err(StatusCode::PAYLOAD_TOO_LARGE));
        assert_eq!(read(None, vec!["abc", "def"]).await, Err(StatusCode::PAYLOAD_TOO_LARGE));
        assert_eq!(read(Some(5), vec!["abc"]).await, Err(StatusCode::BAD_REQUEST));
    }

    #[actix_web::test]
    async fn bodies_of_all_requests_are_bounded_together() {
        let (request, chunks) = (TestRequest::default().to_http_request(), || stream::iter([Ok(Bytes::from("abc"))]));
        let budget = Budget::new(5);
        let (mut one, mut other) = (budget.share(), budget.share());
        assert_eq!(read_body(&request, chunks(), 5, PAUSE, &mut one).await.unwrap(), "abc");
        let refused = read_body(&request, chunks(), 5, PAUSE, &mut other).await.unwrap_err();
        assert_eq!(refused.status_code(), StatusCode::TOO_MANY_REQUESTS);
    }

    #[actix_web::test]
    async fn a_body_that_stands_still_is_given_up() {
        let request = TestRequest::default().to_http_request();
        let error = read_body(&request, stream::pending(), 5, PAUSE, &mut share(6)).await.unwrap_err();
        assert_eq!(error.status_code(), StatusCode::REQUEST_TIMEOUT);
    }
}

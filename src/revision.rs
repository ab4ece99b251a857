//! Revisions in HTTP: the header that tells them, entity tags of documents that have one, and the conditions that name
//! these (RFC 9110, §13.1).

use actix_web::HttpRequest;
use actix_web::http::header::{HeaderName, HeaderValue, IF_MATCH, IF_NONE_MATCH};

use crate::oci::error::{Code, OciError};

/// The log index at which what an answer tells last changed.
pub(crate) const FLOTILLA_REVISION: HeaderName = HeaderName::from_static("flotilla-revision");

/// A header that does not stand there once, as text.
pub(crate) struct NotOne;

/// A header that may stand there once.
///
/// # Errors
/// It stands there more than once, or is no text.
pub(crate) fn only(request: &HttpRequest, name: HeaderName) -> Result<Option<String>, NotOne> {
    let mut values = request.headers().get_all(name);
    match (values.next(), values.next()) {
        (None, _) => Ok(None),
        (Some(value), None) => value.to_str().map(|text| Some(text.trim().to_owned())).map_err(|_| NotOne),
        (Some(_), Some(_)) => Err(NotOne),
    }
}

/// The entity tag of a document's version: its revision, 0 where there is none.
pub(crate) fn etag(revision: u64) -> HeaderValue {
    HeaderValue::try_from(format!("\"{revision}\"")).unwrap_or(HeaderValue::from_static("\"0\""))
}

/// The revision that a request wants to replace, 0 for none; any where it says nothing.
///
/// # Errors
/// 400 for a condition of another form: one that is passed over is a change that nobody wanted.
pub(crate) fn expected(request: &HttpRequest) -> Result<Option<u64>, OciError> {
    let odd = || {
        let message = "a condition is If-Match with the ETag of a former answer, or If-None-Match: *, and one of them";
        OciError::bad_request(Code::Unsupported, message)
    };
    let only = |name| only(request, name).map_err(|NotOne| odd());
    match (only(IF_MATCH)?, only(IF_NONE_MATCH)?) {
        (None, None) => Ok(None),
        (None, Some(none)) if none == "*" => Ok(Some(0)),
        (Some(etag), None) => {
            let number = etag.strip_prefix('"').and_then(|text| text.strip_suffix('"'));
            number.and_then(|number| number.parse().ok()).map(Some).ok_or_else(odd)
        }
        _ => Err(odd()),
    }
}

//! What handlers read of a request beside its path and body.

use std::borrow::Cow;

use actix_web::HttpRequest;
use actix_web::http::header::AsHeaderName;

/// The first value of a query parameter, decoded. Parameters that nobody asks for are ignored: containerd adds
/// `ns`, crane `origin`, proxies their own.
pub(crate) fn query<'a>(request: &'a HttpRequest, name: &str) -> Option<Cow<'a, str>> {
    form_urlencoded::parse(request.query_string().as_bytes()).find(|(key, _)| key == name).map(|(_, value)| value)
}

/// All values of a query parameter, decoded.
pub(crate) fn query_all<'a>(request: &'a HttpRequest, name: &str) -> Vec<Cow<'a, str>> {
    form_urlencoded::parse(request.query_string().as_bytes())
        .filter(|(key, _)| key == name)
        .map(|(_, value)| value)
        .collect()
}

/// A header's first value; `None` also where it is not text.
pub(crate) fn header(request: &HttpRequest, name: impl AsHeaderName) -> Option<&str> {
    request.headers().get(name)?.to_str().ok()
}

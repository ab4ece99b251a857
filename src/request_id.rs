//! The id by which one request is found again: in its answer's header, in the body of an error, in the log.

use actix_web::dev::ServiceRequest;
use actix_web::http::header::{HeaderName, HeaderValue};
use uuid::Uuid;

/// The header, on requests and on answers.
pub(crate) const X_REQUEST_ID: HeaderName = HeaderName::from_static(NAME);

/// The same as text, for the headers of other libraries.
pub(crate) const NAME: &str = "x-request-id";

/// The longest id that is taken from a client, in bytes.
const LENGTH_MAX: usize = 128;

tokio::task_local! {
    static CURRENT: HeaderValue;
}

/// The id that a client or a proxy gave the request, else a new one.
pub(crate) fn of(request: &ServiceRequest) -> HeaderValue {
    match request.headers().get(&X_REQUEST_ID).filter(|id| is_plain(id)) {
        Some(id) => id.clone(),
        None => HeaderValue::try_from(Uuid::new_v4().to_string()).unwrap_or(HeaderValue::from_static("none")),
    }
}

/// Visible ASCII without what would need escapes in JSON or quotes in a log.
fn is_plain(id: &HeaderValue) -> bool {
    let is_plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.:/+=@".contains(byte);
    !id.is_empty() && id.len() <= LENGTH_MAX && id.as_bytes().iter().all(is_plain)
}

/// Does work for a request of this id.
pub(crate) async fn with<T>(id: HeaderValue, work: impl Future<Output = T>) -> T {
    CURRENT.scope(id, work).await
}

/// The id of the request that is being answered; `None` outside of one.
pub(crate) fn current() -> Option<String> {
    CURRENT.try_with(|id| id.to_str().ok().map(str::to_owned)).ok().flatten()
}

#[cfg(test)]
mod tests {
    use actix_web::test::TestRequest;

    use super::*;

    fn given(id: &str) -> HeaderValue {
        of(&TestRequest::default().insert_header((X_REQUEST_ID, id)).to_srv_request())
    }

    #[test]
    fn a_plain_id_is_kept_and_another_replaced() {
        assert_eq!(given("abc-1.2:3/4"), "abc-1.2:3/4");
        for odd in ["", "a b", "a\"b", &"x".repeat(LENGTH_MAX + 1)] {
            assert!(Uuid::try_parse(given(odd).to_str().unwrap()).is_ok(), "{odd:?}");
        }
        assert!(current().is_none());
    }
}

//! Conditions on changes of tags: `If-Match` and `If-None-Match` of PUT and DELETE (RFC 9110, §13.1).

use actix_web::HttpRequest;
use actix_web::http::header::{HeaderName, IF_MATCH, IF_NONE_MATCH};
use flotilla_raft::Condition;

use super::error::{Code, OciError};
use crate::revision;

/// The condition of a request, if it has one. What is not understood is refused: a condition that is passed over
/// is a change that nobody wanted.
///
/// # Errors
/// 400 for any form but `If-Match: "<digest>"`, `If-Match: *` and `If-None-Match: *`.
pub(super) fn of(request: &HttpRequest) -> Result<Option<Condition>, OciError> {
    let only = |name: HeaderName| revision::only(request, name).map_err(|_| refused());
    match (only(IF_MATCH)?, only(IF_NONE_MATCH)?) {
        (None, None) => Ok(None),
        (Some(matching), None) => parse(&matching).map(Some).ok_or_else(refused),
        (None, Some(none)) if none == "*" => Ok(Some(Condition::Absent)),
        _ => Err(refused()),
    }
}

/// `*` or `"<digest>"`, as `If-Match` has it.
pub(super) fn parse(text: &str) -> Option<Condition> {
    if text == "*" {
        return Some(Condition::Present);
    }
    let digest = text.strip_prefix('"')?.strip_suffix('"')?;
    digest.parse().ok().map(Condition::At)
}

fn refused() -> OciError {
    let message = "a change of a tag takes If-Match: \"<digest>\", If-Match: * or If-None-Match: *, and one of them";
    OciError::bad_request(Code::Unsupported, message)
}

#[cfg(test)]
mod tests {
    use actix_web::test::TestRequest;
    use flotilla_storage::{Algorithm, Digest};

    use super::*;

    fn parsed(headers: &[(&'static str, &str)]) -> Result<Option<Condition>, ()> {
        let mut request = TestRequest::default();
        for header in headers {
            request = request.append_header(*header);
        }
        of(&request.to_http_request()).map_err(drop)
    }

    #[test]
    fn three_forms_are_understood_and_no_other() {
        let digest = Digest::of(Algorithm::Sha512, b"a");
        let quoted = format!("\"{digest}\"");
        assert_eq!(parsed(&[]), Ok(None));
        assert_eq!(parsed(&[("if-match", "*")]), Ok(Some(Condition::Present)));
        assert_eq!(parsed(&[("if-match", &quoted)]), Ok(Some(Condition::At(digest))));
        assert_eq!(parsed(&[("if-none-match", "*")]), Ok(Some(Condition::Absent)));
        let (weak, list, bare) = (format!("W/{quoted}"), format!("{quoted}, {quoted}"), digest.to_string());
        for odd in [
            &[("if-match", weak.as_str())][..],
            &[("if-match", &list)],
            &[("if-match", &bare)],
            &[("if-match", "")],
            &[("if-none-match", &quoted)],
            &[("if-match", "*"), ("if-none-match", "*")],
            &[("if-match", &quoted), ("if-match", &quoted)],
        ] {
            assert_eq!(parsed(odd), Err(()), "{odd:?}");
        }
    }
}

//! Paths, references and queries of requests, turned into types once.
//!
//! The path is taken apart here rather than by actix-web's router, because a repository's name has any depth and may
//! itself contain `/tags/list`, `/manifests` or `/blobs/uploads`: only a match from the right tells them apart.

use flotilla_raft::{RepositoryName, Tag};
use flotilla_storage::Digest;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use super::error::OciError;

/// What RFC 3986 leaves unreserved stays as it is.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// Everything under `/v2`, by path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Route {
    /// `/v2/`
    Base,
    /// `/v2/_catalog`
    Catalog,
    /// `/v2/<name>/tags/list`
    Tags(String),
    /// `/v2/<name>/manifests/<reference>`
    Manifest(String, String),
    /// `/v2/<name>/referrers/<digest>`
    Referrers(String, String),
    /// `/v2/<name>/blobs/<digest>`
    Blob(String, String),
    /// `/v2/<name>/blobs/uploads/`
    Uploads(String),
    /// `/v2/<name>/blobs/uploads/<id>`
    Upload(String, String),
}

impl Route {
    /// Takes a request's path apart, as it came on the wire; `None` where nothing lives.
    pub(crate) fn parse(path: &str) -> Option<Self> {
        let rest = path.strip_prefix("/v2")?;
        let segments: Vec<&str> = match rest.strip_prefix('/') {
            None if !rest.is_empty() => return None,
            None | Some("") => return Some(Self::Base),
            Some(rest) => rest.split('/').collect(),
        };
        Some(match segments.as_slice() {
            ["_catalog"] => Self::Catalog,
            [name @ .., "tags", "list"] => Self::Tags(joined(name)?),
            [name @ .., "blobs", "uploads"] | [name @ .., "blobs", "uploads", ""] => Self::Uploads(joined(name)?),
            [name @ .., "blobs", "uploads", id] => Self::Upload(joined(name)?, decoded(id)),
            [name @ .., "manifests", reference] => Self::Manifest(joined(name)?, decoded(reference)),
            [name @ .., "referrers", digest] => Self::Referrers(joined(name)?, decoded(digest)),
            [name @ .., "blobs", digest] => Self::Blob(joined(name)?, decoded(digest)),
            _ => return None,
        })
    }

    /// The methods that the resource has, as `Allow` names them.
    pub(crate) fn methods(&self) -> &'static str {
        match self {
            Self::Base | Self::Catalog | Self::Tags(_) | Self::Referrers(..) => "GET, HEAD",
            Self::Manifest(..) => "GET, HEAD, PUT, DELETE",
            Self::Blob(..) => "GET, HEAD, DELETE",
            Self::Uploads(_) => "POST",
            Self::Upload(..) => "GET, HEAD, PATCH, PUT, DELETE",
        }
    }
}

/// The name's segments; `None` where there is none at all. What is not UTF-8 is no valid name either way.
fn joined(segments: &[&str]) -> Option<String> {
    let decoded: Vec<_> = segments.iter().map(|segment| decoded(segment)).collect();
    (!decoded.is_empty()).then(|| decoded.join("/"))
}

fn decoded(segment: &str) -> String {
    percent_decode_str(segment).decode_utf8_lossy().into_owned()
}

/// What a manifest is asked for by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Reference {
    /// A tag.
    Tag(Tag),
    /// A digest.
    Digest(Digest),
}

impl Reference {
    /// A colon makes a digest: no tag contains one.
    ///
    /// # Errors
    /// Neither a tag nor a digest that is supported.
    pub(crate) fn parse(text: &str) -> Result<Self, OciError> {
        if text.contains(':') {
            return Ok(Self::Digest(text.parse()?));
        }
        Ok(Self::Tag(text.parse()?))
    }
}

/// A repository's name from a path.
///
/// # Errors
/// 400 `NAME_INVALID`.
pub(crate) fn repository(name: &str) -> Result<RepositoryName, OciError> {
    Ok(name.parse()?)
}

/// A text as the value of a query parameter.
pub(crate) fn encoded(text: &str) -> impl std::fmt::Display {
    utf8_percent_encode(text, ENCODED)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(name: &str, reference: &str) -> Option<Route> {
        Some(Route::Manifest(name.into(), reference.into()))
    }

    #[test]
    fn each_endpoint_is_found() {
        assert_eq!(Route::parse("/v2"), Some(Route::Base));
        assert_eq!(Route::parse("/v2/"), Some(Route::Base));
        assert_eq!(Route::parse("/v2/_catalog"), Some(Route::Catalog));
        assert_eq!(Route::parse("/v2/a/b/tags/list"), Some(Route::Tags("a/b".into())));
        assert_eq!(Route::parse("/v2/a/manifests/v1"), manifest("a", "v1"));
        assert_eq!(Route::parse("/v2/a/b/referrers/x"), Some(Route::Referrers("a/b".into(), "x".into())));
        assert_eq!(Route::parse("/v2/a/b/c/blobs/sha256:aa"), Some(Route::Blob("a/b/c".into(), "sha256:aa".into())));
        assert_eq!(Route::parse("/v2/a/blobs/uploads/"), Some(Route::Uploads("a".into())));
        assert_eq!(Route::parse("/v2/a/blobs/uploads"), Some(Route::Uploads("a".into())));
        assert_eq!(Route::parse("/v2/a/blobs/uploads/1-2"), Some(Route::Upload("a".into(), "1-2".into())));
    }

    /// C47
    #[test]
    fn repositories_may_be_called_like_endpoints() {
        for name in [
            "x/tags/list",
            "x/manifests",
            "x/blobs/uploads",
            "x/blobs",
            "manifests",
            "tags/list",
            "blobs/uploads",
            "v2",
            "_catalog",
        ] {
            assert_eq!(Route::parse(&format!("/v2/{name}/tags/list")), Some(Route::Tags(name.into())), "{name}");
            assert_eq!(Route::parse(&format!("/v2/{name}/manifests/list")), manifest(name, "list"), "{name}");
            assert_eq!(Route::parse(&format!("/v2/{name}/manifests/uploads")), manifest(name, "uploads"), "{name}");
            assert_eq!(
                Route::parse(&format!("/v2/{name}/blobs/sha256:aa")),
                Some(Route::Blob(name.into(), "sha256:aa".into())),
                "{name}"
            );
            assert_eq!(
                Route::parse(&format!("/v2/{name}/blobs/uploads/")),
                Some(Route::Uploads(name.into())),
                "{name}"
            );
            assert_eq!(
                Route::parse(&format!("/v2/{name}/blobs/uploads/id")),
                Some(Route::Upload(name.into(), "id".into())),
                "{name}"
            );
        }
    }

    #[test]
    fn segments_are_decoded_after_they_are_told_apart() {
        assert_eq!(Route::parse("/v2/a/manifests/sha256%3Aaa"), manifest("a", "sha256:aa"));
        assert_eq!(Route::parse("/v2/a/manifests/a%2fb"), manifest("a", "a/b"));
        assert_eq!(Route::parse("/v2/a/..%2fb/blobs/uploads/"), Some(Route::Uploads("a/../b".into())));
        assert_eq!(Route::parse("/v2/a%00b/blobs/uploads/"), Some(Route::Uploads("a\0b".into())));
        assert_eq!(Route::parse("/v2/a%ff/tags/list"), Some(Route::Tags("a\u{fffd}".into())));
        assert_eq!(Route::parse("/v2/a%2Fmanifests%2Fb/tags/list"), Some(Route::Tags("a/manifests/b".into())));
    }

    #[test]
    fn doubled_slashes_make_a_name_that_is_not_valid() {
        for path in ["/v2//manifests/v1", "/v2/a//b/manifests/v1", "/v2/a//manifests/v1"] {
            let Some(Route::Manifest(name, _)) = Route::parse(path) else { panic!("{path}") };
            assert!(repository(&name).is_err(), "{path}");
        }
    }

    #[test]
    fn other_paths_name_nothing() {
        for path in [
            "/",
            "/v1/",
            "/v22/",
            "/v2x",
            "/v2/a",
            "/v2/a/nonsense",
            "/v2/manifests/v1",
            "/v2/tags/list",
            "/v2/blobs/uploads/",
            "/v2/a/tags/list/",
            "/v2/referrers/x",
        ] {
            assert_eq!(Route::parse(path), None, "{path}");
        }
    }

    #[test]
    fn a_reference_is_a_tag_or_a_digest() {
        assert!(matches!(Reference::parse("v1"), Ok(Reference::Tag(_))));
        assert!(matches!(Reference::parse(&format!("sha256:{}", "0".repeat(64))), Ok(Reference::Digest(_))));
        for text in ["", ".dot", "sha256:bad", "md5:00", "a/b"] {
            assert!(Reference::parse(text).is_err(), "{text}");
        }
    }
}

//! See `crate::properties`.

use actix_web::http::header::HeaderValue;

use super::content::ranges::{self, Wanted};
use super::extract::{Reference, Route, repository};
use super::manifest_document::{DESCRIPTORS_MAX, ManifestDocument};
use super::{condition, uploads};

pub(crate) fn path(text: &str) {
    let Some(route) = Route::parse(text) else { return };
    let (name, last) = match route {
        Route::Base | Route::Catalog => return,
        Route::Tags(name) | Route::Uploads(name) => (name, None),
        Route::Manifest(name, last)
        | Route::Referrers(name, last)
        | Route::Blob(name, last)
        | Route::Upload(name, last) => (name, Some(last)),
    };
    crate::properties::repository(&name);
    if repository(&name).is_ok() {
        assert!(HeaderValue::try_from(name.as_str()).is_ok());
    }
    if let Some(reference) = last.as_deref().map(Reference::parse).and_then(Result::ok) {
        let written = match reference {
            Reference::Tag(tag) => tag.as_str().to_owned(),
            Reference::Digest(digest) => digest.to_string(),
        };
        assert_eq!(Some(written), last);
    }
}

pub(crate) fn range(text: &str, size: u64) {
    let Wanted::Parts(parts) = ranges::parse(text, size) else { return };
    assert!(!parts.is_empty());
    assert!(parts.iter().all(|part| part.start < part.end && part.end <= size));
    assert!(parts.iter().map(|part| part.end - part.start).sum::<u64>() <= size);
}

pub(crate) fn content_range(text: &str) {
    if let Some((first, length)) = uploads::parse_content_range(text) {
        assert!(length >= 1 && first.checked_add(length - 1).is_some());
    }
}

pub(crate) fn manifest(content_type: Option<&str>, bytes: &[u8]) {
    let Ok(document) = ManifestDocument::parse(content_type, bytes) else { return };
    // It becomes a header as it is.
    assert!(HeaderValue::try_from(document.media_type.as_str()).is_ok(), "{:?}", document.media_type);
    assert!(document.blobs.len() <= DESCRIPTORS_MAX + 1);
    assert!(document.manifests.len() + document.either.len() <= DESCRIPTORS_MAX);
    assert!(document.subject.is_some() || document.annotations.is_empty());
}

pub(crate) fn condition(text: &str) {
    let _ = condition::parse(text);
}

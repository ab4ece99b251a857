//! What holds of every parser of ours for whatever comes in: nothing panics, and what is taken has the promised form.
//! Fuzz targets (`fuzz/`) and the property tests below feed them.

use std::path::{Component, Path};

use flotilla_raft::wire::{self, Kind};
use flotilla_raft::{Answer, Proposal, RepositoryName, Tag};
use flotilla_storage::{Digest, format};
use uuid::Uuid;

use crate::admission;
use crate::oci;
use crate::replication;

/// A request's path: whatever a repository may be called, its name leads to no other folder, and what the path names
/// is named alike when it is written out.
pub fn path(text: &str) {
    oci::properties::path(text);
}

/// A repository's name.
pub fn repository(text: &str) {
    let Ok(name) = text.parse::<RepositoryName>() else { return };
    assert_eq!(name.as_str(), text);
    assert!(text.len() <= 255 && !text.is_empty());
    let stays = Path::new(text).components().all(|component| matches!(component, Component::Normal(_)));
    assert!(stays && !text.contains('\0'), "{text:?} leads elsewhere");
}

/// A tag.
pub fn tag(text: &str) {
    let Ok(tag) = text.parse::<Tag>() else { return };
    assert_eq!(tag.as_str(), text);
    assert!(text.len() <= 128 && !text.contains(['/', ':', '\0']));
}

/// A digest.
pub fn digest(text: &str) {
    let Ok(digest) = text.parse::<Digest>() else { return };
    assert_eq!(digest.to_string(), text);
    assert_eq!(Digest::from_key(&digest.to_key()), Some(digest));
}

/// `Range` against content of this size in bytes.
pub fn range(text: &str, size: u64) {
    oci::properties::range(text, size);
}

/// `Content-Range` of a chunk.
pub fn content_range(text: &str) {
    oci::properties::content_range(text);
}

/// A manifest with this `Content-Type`.
pub fn manifest(content_type: Option<&str>, bytes: &[u8]) {
    oci::properties::manifest(content_type, bytes);
}

/// `If-Match`.
pub fn condition(text: &str) {
    oci::properties::condition(text);
}

/// The id in an upload's URL.
pub fn upload_id(text: &str) {
    let Ok(id) = text.parse::<Uuid>() else { return };
    replication::properties::upload_id(&id);
}

/// A reference to an image: what is read is written in full, and read alike.
pub fn image_reference(text: &str) {
    admission::properties::reference(text);
}

/// An image policy.
pub fn policy(text: &str) {
    admission::properties::policy(text);
}

/// The body of a call of a webhook: the answer is never a yes to what was not understood.
pub fn review(bytes: &[u8]) {
    admission::properties::review(bytes);
}

/// What peers ask for of a blob of this size in bytes.
pub fn peer_range(text: &str, size: u64) {
    replication::properties::peer_range(text, size);
}

/// The settings that all nodes share.
pub fn settings(text: &str) {
    let _ = flotilla_raft::settings::Rules::parse(text);
}

/// Stored and sent bytes, as they are and as the payload of an envelope that is whole: what is read is written alike.
pub fn envelope(bytes: &[u8]) {
    let _ = wire::decode::<Vec<Proposal>>(Kind::Request, bytes);
    let request = format::seal(Kind::Request as u8, wire::VERSION, bytes);
    if let Ok(proposals) = wire::decode::<Vec<Proposal>>(Kind::Request, &request) {
        assert_eq!(wire::encode(Kind::Request, &proposals).ok(), Some(request));
    }
    let row = format::seal(Kind::Row as u8, wire::VERSION, bytes);
    if let Ok(answer) = wire::decode::<(Uuid, Answer)>(Kind::Row, &row) {
        assert_eq!(wire::encode(Kind::Row, &answer).ok(), Some(row));
    }
    let mut rest = bytes;
    while let Ok((first, after)) = format::split_first(rest) {
        assert!(!first.is_empty() && first.len() + after.len() == rest.len());
        rest = after;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    /// Words of which the parsers' languages are made, and anything else.
    fn near(words: &'static [&'static str]) -> impl Strategy<Value = String> {
        let piece = prop_oneof![
            4 => prop::sample::select(words).prop_map(str::to_owned),
            2 => "[0-9]{1,21}",
            1 => any::<char>().prop_map(String::from),
        ];
        prop::collection::vec(piece, 0..12).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #[test]
        fn path(text in near(&["/v2/", "/", "a", "tags/list", "manifests/", "blobs/", "uploads/", "referrers/", "..", "%2f", "%00", "%c0%af", "_catalog", "sha256:"])) {
            super::path(&text);
        }

        #[test]
        fn names(text in near(&["a", "B", "/", ".", "..", "_", "__", "-", "\0", "%", ":"])) {
            super::repository(&text);
            super::tag(&text);
        }

        #[test]
        fn image_reference(text in near(&["nginx", "docker.io", "index.", "/", ":", "@", "sha256:", "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef", "[::1]", "[", "]", "localhost", "auto", "443", "A"])) {
            super::image_reference(&text);
        }

        #[test]
        fn policy(text in near(&["name: a\n", "mode: warn\n", "default: deny\n", "rules:\n", "- images: ['**:latest']\n", "  verb: deny\n", "  verb: {require: {max_age: 1d}}\n", "---\n", "[", "{", "*", "&a ", "*a", "!t "])) {
            super::policy(&text);
        }

        #[test]
        fn digest(text in near(&["sha256:", "sha512:", "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef", "A"])) {
            super::digest(&text);
        }

        #[test]
        fn ranges(text in near(&["bytes", "=", "-", ",", " ", "/", "*", "0", "18446744073709551615"]), size in any::<u64>()) {
            super::range(&text, size);
            super::content_range(&text);
            super::peer_range(&text, size);
        }

        #[test]
        fn conditions(text in near(&["*", "\"", "W/", "sha256:", ","])) {
            super::condition(&text);
        }

        #[test]
        fn manifest(text in near(&["{", "}", "[", "]", "\"", ":", ",", "schemaVersion", "mediaType", "config", "layers", "manifests", "subject", "digest", "size", "annotations", "null", "application/vnd.oci.image.manifest.v1+json"]), index in any::<bool>()) {
            let kind = if index { "application/vnd.oci.image.index.v1+json" } else { "application/vnd.oci.image.manifest.v1+json" };
            super::manifest(Some(kind), text.as_bytes());
            super::manifest(None, text.as_bytes());
        }

        #[test]
        fn the_rest(text in any::<String>(), bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            super::upload_id(&text);
            super::settings(&text);
            super::envelope(&bytes);
        }
    }
}

//! Manifests, with and without a `Content-Type`.
#![no_main]

const KINDS: [&str; 4] = [
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
];

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    flotilla::properties::manifest(None, bytes);
    for kind in KINDS {
        flotilla::properties::manifest(Some(kind), bytes);
    }
    // The document's own beginning as its type.
    if let Some((kind, document)) = bytes.split_first_chunk::<16>()
        && let Ok(kind) = std::str::from_utf8(kind)
    {
        flotilla::properties::manifest(Some(kind), document);
    }
});

//! Names of repositories, tags, digests, ids of uploads.
#![no_main]

libfuzzer_sys::fuzz_target!(|text: &str| {
    flotilla::properties::repository(text);
    flotilla::properties::tag(text);
    flotilla::properties::digest(text);
    flotilla::properties::upload_id(text);
});

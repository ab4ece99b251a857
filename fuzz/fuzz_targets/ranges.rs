//! `Range`, `Content-Range`, and what peers send.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: (u64, &str)| {
    let (size, text) = input;
    flotilla::properties::range(text, size);
    flotilla::properties::content_range(text);
    flotilla::properties::peer_range(text, size);
});

//! Paths of requests.
#![no_main]

libfuzzer_sys::fuzz_target!(|text: &str| {
    flotilla::properties::path(text);
});

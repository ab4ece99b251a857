//! The settings that all nodes share, and conditions.
#![no_main]

libfuzzer_sys::fuzz_target!(|text: &str| {
    flotilla::properties::settings(text);
    flotilla::properties::condition(text);
});

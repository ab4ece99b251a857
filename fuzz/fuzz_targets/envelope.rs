//! What is stored and sent between nodes.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    flotilla::properties::envelope(bytes);
});

//! References to images, and policies about them.
#![no_main]

libfuzzer_sys::fuzz_target!(|text: &str| {
    flotilla::properties::image_reference(text);
    flotilla::properties::policy(text);
});

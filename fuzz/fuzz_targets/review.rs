//! What the API server of a Kubernetes cluster asks.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| flotilla::properties::review(bytes));

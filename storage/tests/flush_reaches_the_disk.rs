//! Looks from outside, with strace, at what a flush really asks of the kernel.

use std::path::PathBuf;
use std::process::{Command, Output};

const ENTRIES: usize = 50;

/// Examples are built beside the tests by `cargo test`, in `examples/` next to `deps/`.
fn example() -> PathBuf {
    let test = std::env::current_exe().expect("a test knows its own path");
    let profile = test.ancestors().nth(2).expect("tests lie in <profile>/deps");
    profile.join("examples/flush")
}

fn strace_is_missing() -> bool {
    let missing = Command::new("strace").arg("-V").output().is_err();
    assert!(!missing || std::env::var("CI").as_deref() != Ok("true"), "strace is missing");
    if missing {
        println!("skipped: there is no strace here");
    }
    missing
}

/// Runs the example under strace; returns its output and what strace saw.
fn traced(arguments: &[&str]) -> (Output, String) {
    let example = example();
    assert!(example.exists(), "{} is missing: run the whole package's tests", example.display());
    let dir = tempfile::tempdir().expect("a temporary folder");
    let trace = dir.path().join("trace");
    let output = Command::new("strace")
        .args(["-f", "-e", "trace=fdatasync,fsync,sync_file_range", "-o"])
        .arg(&trace)
        .args(arguments)
        .arg(example)
        .arg(dir.path())
        .arg(ENTRIES.to_string())
        .output()
        .expect("strace starts");
    (output, std::fs::read_to_string(trace).expect("strace wrote its trace"))
}

#[test]
fn each_flush_is_an_fdatasync_and_never_a_sync_file_range() {
    if strace_is_missing() {
        return;
    }
    let (output, trace) = traced(&[]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let flushes: usize = String::from_utf8_lossy(&output.stdout).trim().parse().expect("a number of flushes");
    assert!(flushes >= ENTRIES, "{flushes} flushes for {ENTRIES} entries, one at a time");
    let count = |call: &str| trace.lines().filter(|line| line.contains(&format!("{call}("))).count();
    assert!(count("fdatasync") >= flushes, "{} fdatasync for {flushes} flushes", count("fdatasync"));
    assert_eq!(count("sync_file_range"), 0);
}

#[test]
fn a_failed_sync_is_an_error_and_ends_the_log() {
    if strace_is_missing() {
        return;
    }
    // strace counts per thread, and sled syncs from several.
    let (output, trace) = traced(&["-e", "inject=fdatasync:error=EIO:when=4+"]);
    assert!(trace.contains("INJECTED"), "no sync was made to fail");
    assert!(!output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    let message = String::from_utf8_lossy(&output.stderr);
    assert!(message.contains("Input/output error"), "{message}");
}

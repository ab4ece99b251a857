//! Looks from outside at what a flush really asks of the kernel (with strace), and at what a killed process leaves.

use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use flotilla_storage::LogStore;

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

fn numbers<'a>(output: &'a str, label: &'a str) -> impl Iterator<Item = u64> + 'a {
    output.lines().filter_map(move |line| line.strip_prefix(label)?.parse().ok())
}

#[test]
fn each_flush_is_an_fdatasync_and_never_a_sync_file_range() {
    if strace_is_missing() {
        return;
    }
    let (output, trace) = traced(&[]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let output = String::from_utf8_lossy(&output.stdout);
    let flushes = numbers(&output, "flushes ").next().expect("a number of flushes") as usize;
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

#[test]
fn a_killed_process_loses_nothing_that_was_acknowledged() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let mut acknowledged = None;
    for round in 0..8 {
        let mut child = Command::new(example())
            .arg(dir.path())
            .arg("1000000")
            .stdout(Stdio::piped())
            .spawn()
            .expect("the example starts");
        std::thread::sleep(Duration::from_millis(60 + 45 * round));
        child.kill().expect("the example runs until it is killed");
        let output = child.wait_with_output().expect("its output ends");
        acknowledged = numbers(&String::from_utf8_lossy(&output.stdout), "durable ").last().or(acknowledged);
        let log = LogStore::open(dir.path()).expect("the log opens after a kill");
        let last = log.last_index().expect("the log is open");
        assert!(last >= acknowledged, "{acknowledged:?} was acknowledged, {last:?} is there");
        let entries = log.read(0, u64::MAX, u64::MAX).expect("every entry is whole");
        assert_eq!(entries.last().map(|(index, _)| *index), last);
        assert!(entries.iter().all(|(index, bytes)| bytes.iter().all(|byte| *byte == *index as u8)));
    }
    assert!(acknowledged.is_some(), "nothing was written in all rounds");
}

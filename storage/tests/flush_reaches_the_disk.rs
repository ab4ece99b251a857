//! Looks from outside, with strace, at what a flush really asks of the kernel.

use std::path::PathBuf;
use std::process::Command;

const ENTRIES: usize = 50;

/// Examples are built beside the tests by `cargo test`, in `examples/` next to `deps/`.
fn example() -> PathBuf {
    let test = std::env::current_exe().expect("a test knows its own path");
    let profile = test
        .ancestors()
        .nth(2)
        .expect("tests lie in <profile>/deps");
    profile.join("examples/flush")
}

#[test]
fn each_flush_is_an_fdatasync_and_never_a_sync_file_range() {
    if Command::new("strace").arg("-V").output().is_err() {
        assert_ne!(
            std::env::var("CI").as_deref(),
            Ok("true"),
            "strace is missing"
        );
        println!("skipped: there is no strace here");
        return;
    }
    let example = example();
    assert!(
        example.exists(),
        "{} is missing: run the whole package's tests",
        example.display()
    );
    let dir = tempfile::tempdir().expect("a temporary folder");
    let trace = dir.path().join("trace");
    let output = Command::new("strace")
        .args(["-f", "-e", "trace=fdatasync,fsync,sync_file_range", "-o"])
        .arg(&trace)
        .arg(example)
        .arg(dir.path())
        .arg(ENTRIES.to_string())
        .output()
        .expect("strace starts");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let flushes: usize = String::from_utf8_lossy(&output.stdout)
        .trim()
        .parse()
        .expect("a number of flushes");
    assert!(
        flushes >= ENTRIES,
        "{flushes} flushes for {ENTRIES} entries, one at a time"
    );
    let trace = std::fs::read_to_string(trace).expect("strace wrote its trace");
    let count = |call: &str| {
        trace
            .lines()
            .filter(|line| line.contains(&format!("{call}(")))
            .count()
    };
    assert!(
        count("fdatasync") >= flushes,
        "{} fdatasync for {flushes} flushes",
        count("fdatasync")
    );
    assert_eq!(count("sync_file_range"), 0);
}

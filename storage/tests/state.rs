//! Looks from outside at the state: what a killed process leaves of it, how often it syncs, and that it ends with a
//! failed sync.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use flotilla_storage::MetadataStore;

/// Examples are built beside the tests by `cargo test`, in `examples/` next to `deps/`.
fn example() -> PathBuf {
    let test = std::env::current_exe().expect("a test knows its own path");
    let profile = test.ancestors().nth(2).expect("tests lie in <profile>/deps");
    let example = profile.join("examples/state");
    assert!(example.exists(), "{} is missing: run the whole package's tests", example.display());
    example
}

fn number(store: &MetadataStore, key: &str) -> Option<u64> {
    let value = store.get(key.as_bytes()).expect("the state is open")?;
    Some(String::from_utf8(value).expect("text").trim_end().parse().expect("a number"))
}

/// The newest batch up to `last` that wrote this slot.
fn newest_of(slot: u64, last: u64) -> Option<u64> {
    last.checked_sub(slot).map(|above| slot + above / 1000 * 1000)
}

#[test]
fn a_killed_process_leaves_the_state_after_some_write_not_before_the_last_flush() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let mut durable = None;
    let mut beyond = 0;
    for round in 0..8u64 {
        let mut child = Command::new(example())
            .arg(dir.path())
            // Rounds with many flushes, and rounds in which drains alone write.
            .args(["100000000", if round % 2 == 0 { "100" } else { "20000" }])
            .stdout(Stdio::piped())
            .spawn()
            .expect("the example starts");
        std::thread::sleep(Duration::from_millis(150 + 75 * round));
        child.kill().expect("the example runs until it is killed");
        let output = child.wait_with_output().expect("its output ends");
        let output = String::from_utf8_lossy(&output.stdout);
        let flushed = output.lines().filter_map(|line| line.strip_prefix("durable ")?.parse::<u64>().ok()).next_back();
        durable = flushed.or(durable);
        let store = MetadataStore::open(dir.path()).expect("the state opens after a kill");
        let last = number(&store, "last");
        assert!(last >= durable, "{durable:?} was durable, {last:?} is there");
        beyond += u64::from(last > durable);
        for slot in 0..1000 {
            let expected = last.and_then(|last| newest_of(slot, last));
            for row in 0..5 {
                let found = number(&store, &format!("row-{slot}-{row}"));
                assert_eq!(found, expected, "row {row} of slot {slot}, after {last:?}");
            }
        }
    }
    assert!(durable.is_some(), "nothing was flushed in all rounds");
    println!("{durable:?} was flushed; in {beyond} rounds more was there");
}

#[test]
fn ten_thousand_small_writes_sync_some_hundred_times_at_most() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let output = Command::new(example()).arg(dir.path()).args(["10000", "100000000"]).output().expect("it starts");
    let output = String::from_utf8_lossy(&output.stdout);
    println!("{output}");
    let before = output.split(" syncs").next().and_then(|before| before.rsplit(' ').next());
    let syncs: u64 = before.and_then(|word| word.parse().ok()).expect("a number of syncs");
    assert!((1..500).contains(&syncs), "{syncs} syncs");
}

#[test]
fn a_failed_sync_ends_the_state() {
    if Command::new("strace").arg("-V").output().is_err() {
        assert!(std::env::var("CI").as_deref() != Ok("true"), "strace is missing");
        println!("skipped: there is no strace here");
        return;
    }
    let dir = tempfile::tempdir().expect("a temporary folder");
    // No flush on the way: the failure is met by a drain, and must reach a write.
    let output = Command::new("strace")
        .args(["-f", "-e", "trace=fdatasync", "-e", "inject=fdatasync:error=EIO:when=4+", "-o", "/dev/null"])
        .arg(example())
        .arg(dir.path())
        .args(["1000000", "100000000"])
        .output()
        .expect("strace starts");
    assert!(!output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    assert!(!String::from_utf8_lossy(&output.stdout).contains("writes/s"), "the loop went on to its end");
    let message = String::from_utf8_lossy(&output.stderr);
    // Whichever comes first: the drain's own error, or that the drain closed the store.
    assert!(message.contains("Input/output error") || message.contains("Closed"), "{message}");
}

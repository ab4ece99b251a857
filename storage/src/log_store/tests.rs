use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::*;

type Answer = Result<(), StorageError>;

fn open(dir: &Path) -> LogStore {
    LogStore::open(dir).unwrap()
}

fn log() -> (tempfile::TempDir, LogStore) {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    (dir, log)
}

fn waiter() -> (Done, Receiver<Answer>) {
    let (sender, receiver) = channel();
    (Box::new(move |answer| drop(sender.send(answer))), receiver)
}

/// Runs one operation and waits for its answer.
fn wait(operation: impl FnOnce(Done)) -> Answer {
    let (done, receiver) = waiter();
    operation(done);
    receiver.recv_timeout(Duration::from_secs(20)).unwrap()
}

fn payload(index: u64) -> Bytes {
    // Lengths around the 4 KiB parts, and different bytes for each index.
    let length = [0, 1, 100, 4081, 4082, 4083, 9000][(index % 7) as usize];
    Bytes::from((0..length).map(|at| (index + at) as u8).collect::<Vec<u8>>())
}

fn append(log: &LogStore, indexes: std::ops::Range<u64>) {
    wait(|done| log.append(indexes.map(|index| (index, payload(index))).collect(), done)).unwrap();
}

fn indexes(log: &LogStore) -> Vec<u64> {
    let entries = log.read(0, u64::MAX, u64::MAX).unwrap();
    assert!(entries.iter().all(|(index, bytes)| *bytes == payload(*index)));
    let indexes: Vec<u64> = entries.into_iter().map(|(index, _)| index).collect();
    assert_eq!(log.first_index().unwrap(), indexes.first().copied());
    assert_eq!(log.last_index().unwrap(), indexes.last().copied());
    indexes
}

fn copy_tree(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy_tree(&path, &target);
        } else {
            std::fs::copy(&path, &target).unwrap();
        }
    }
}

#[test]
fn entries_and_meta_rows_survive_a_reopen() {
    let (dir, log) = log();
    assert_eq!(indexes(&log), []);
    append(&log, 0..50);
    wait(|done| log.put_meta(LogMeta::Vote, b"vote".to_vec(), done)).unwrap();
    log.put_meta_unsynced(LogMeta::Committed, b"committed".to_vec());
    assert_eq!(log.get_meta(LogMeta::Committed).unwrap().as_deref(), Some(&b"committed"[..]));
    let size_bytes = log.size_bytes();
    assert_eq!(size_bytes, (0..50).map(|index| payload(index).len() as u64).sum::<u64>());
    drop(log);
    let log = open(dir.path());
    assert_eq!(indexes(&log), (0..50).collect::<Vec<_>>());
    assert_eq!(log.size_bytes(), size_bytes);
    assert_eq!(log.get_meta(LogMeta::Vote).unwrap().as_deref(), Some(&b"vote"[..]));
    assert_eq!(log.get_meta(LogMeta::Committed).unwrap().as_deref(), Some(&b"committed"[..]));
    assert_eq!(log.get_meta(LogMeta::Purged).unwrap(), None);
}

#[test]
fn queued_entries_can_be_read_before_they_are_durable() {
    let (_dir, log) = log();
    for index in 0..500 {
        log.append(vec![(index, payload(index))], Box::new(|_| {}));
        assert_eq!(log.last_index().unwrap(), Some(index));
        let from = index.saturating_sub(20);
        let entries = log.read(from, u64::MAX, u64::MAX).unwrap();
        assert_eq!(entries.len() as u64, index - from + 1);
    }
}

#[test]
fn a_read_keeps_its_limits_but_gives_at_least_one() {
    let (_dir, log) = log();
    wait(|done| log.append((0..10).map(|index| (index, Bytes::from(vec![1; 100]))).collect(), done)).unwrap();
    let count = |start, end, max_bytes| log.read(start, end, max_bytes).unwrap().len();
    assert_eq!(count(0, 10, 0), 1);
    assert_eq!(count(0, 10, 250), 2);
    assert_eq!(count(0, 10, 300), 3);
    assert_eq!(count(3, 5, u64::MAX), 2);
    assert_eq!(count(8, 100, u64::MAX), 2);
    assert_eq!(count(10, 100, u64::MAX), 0);
    assert_eq!(count(5, 5, u64::MAX), 0);
    assert_eq!(count(6, 5, u64::MAX), 0);
}

#[test]
fn many_waiters_share_few_flushes_and_are_answered_in_order() {
    let (_dir, log) = log();
    let (sender, receiver) = channel();
    let before = log.sync_count();
    for index in 0..1000u64 {
        let sender = sender.clone();
        let done: Done = Box::new(move |answer: Answer| sender.send((index, answer.is_ok())).unwrap());
        log.append(vec![(index, Bytes::from_static(b"entry"))], done);
    }
    for index in 0..1000 {
        assert_eq!(receiver.recv_timeout(Duration::from_secs(20)).unwrap(), (index, true));
    }
    let flushes = log.sync_count() - before;
    assert!((1..500).contains(&flushes), "{flushes} flushes");
}

#[test]
fn truncate_and_purge_keep_the_middle() {
    let (dir, log) = log();
    append(&log, 1..4000);
    wait(|done| log.truncate_from(3000, done)).unwrap();
    append(&log, 3000..3010);
    wait(|done| log.purge_through(2990, b"purged".to_vec(), done)).unwrap();
    assert_eq!(indexes(&log), (2991..3010).collect::<Vec<_>>());
    assert_eq!(log.read(5, 2995, u64::MAX).unwrap().len(), 4);
    // Right away: what is left of the purge must go on after the start.
    drop(log);
    let log = open(dir.path());
    assert_eq!(indexes(&log), (2991..3010).collect::<Vec<_>>());
    assert_eq!(log.get_meta(LogMeta::Purged).unwrap().as_deref(), Some(&b"purged"[..]));
    let kept = (2991..3010).map(|index| payload(index).len() as u64).sum::<u64>();
    let patience = std::time::Instant::now();
    while log.size_bytes() != kept {
        assert!(patience.elapsed() < Duration::from_secs(20), "{} bytes are left of {kept}", log.size_bytes());
        std::thread::sleep(Duration::from_millis(5));
    }
    wait(|done| log.truncate_from(0, done)).unwrap();
    assert_eq!(indexes(&log), []);
    append(&log, 2991..2995);
    drop(log);
    assert_eq!(indexes(&open(dir.path())), (2991..2995).collect::<Vec<_>>());
}

#[test]
fn a_purge_past_the_end_empties_the_log() {
    let (dir, log) = log();
    append(&log, 0..10);
    wait(|done| log.purge_through(100, b"p100".to_vec(), done)).unwrap();
    assert_eq!(indexes(&log), []);
    // An overtaken purge changes nothing.
    wait(|done| log.purge_through(50, b"p50".to_vec(), done)).unwrap();
    assert_eq!(log.get_meta(LogMeta::Purged).unwrap().as_deref(), Some(&b"p100"[..]));
    assert!(wait(|done| log.append(vec![(100, Bytes::new())], done)).is_err());
    drop(log);
    let log = open(dir.path());
    assert_eq!(indexes(&log), []);
    append(&log, 101..103);
    assert_eq!(indexes(&log), [101, 102]);
}

#[test]
fn random_operations_match_a_model_across_reopens() {
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let dir = tempfile::tempdir().unwrap();
    let mut log = open(dir.path());
    let (mut first, mut next) = (0u64, 0u64);
    for _ in 0..400 {
        match random.random_range(0..10) {
            0..=5 => {
                let end = next + random.random_range(1..20);
                let entries = (next..end).map(|index| (index, payload(index))).collect();
                log.append(entries, Box::new(|answer| assert!(answer.is_ok())));
                next = end;
            }
            6 | 7 => {
                next = random.random_range(next.saturating_sub(15).max(first)..=next);
                log.truncate_from(next, Box::new(|answer| assert!(answer.is_ok())));
            }
            8 if next > first => {
                let index = random.random_range(first..next);
                first = index + 1;
                log.purge_through(index, index.to_string().into_bytes(), Box::new(|answer| assert!(answer.is_ok())));
            }
            _ => {
                if random.random_bool(0.3) {
                    drop(log);
                    log = open(dir.path());
                }
            }
        }
        assert_eq!(indexes(&log), (first..next).collect::<Vec<_>>());
    }
}

#[test]
fn a_hole_or_an_overwritten_entry_is_refused_and_nothing_changes() {
    let (_dir, log) = log();
    append(&log, 5..8);
    for wrong in [vec![9], vec![7], vec![8, 10]] {
        let entries = wrong.into_iter().map(|index| (index, Bytes::new())).collect();
        assert!(matches!(wait(|done| log.append(entries, done)), Err(StorageError::Corrupt { .. })));
    }
    assert_eq!(indexes(&log), [5, 6, 7]);
    append(&log, 8..9);
}

#[test]
fn a_flipped_bit_in_an_entry_is_an_error_not_an_absence() {
    let (dir, log) = log();
    append(&log, 0..5);
    drop(log);
    let database = Database::open(&dir.path().join(FOLDER), Options { cache_bytes: CACHE_BYTES }).unwrap();
    let key = rows::entry_key(2, 0);
    let mut value = database.run("reading", |db| db.get(key)).unwrap().unwrap().to_vec();
    *value.last_mut().unwrap() ^= 1;
    database.run("damaging", |db| db.insert(key, value)).unwrap();
    drop(database);
    let log = open(dir.path());
    assert!(matches!(log.read(0, 5, u64::MAX), Err(StorageError::Corrupt { .. })));
    assert_eq!(log.read(0, 2, u64::MAX).unwrap().len(), 2);
}

#[test]
fn a_hole_on_disk_is_refused_at_open() {
    let (dir, log) = log();
    append(&log, 0..5);
    drop(log);
    let database = Database::open(&dir.path().join(FOLDER), Options { cache_bytes: CACHE_BYTES }).unwrap();
    database.run("damaging", |db| db.remove(rows::entry_key(2, 0))).unwrap();
    drop(database);
    assert!(matches!(LogStore::open(dir.path()), Err(StorageError::Corrupt { .. })));
}

#[test]
fn a_lost_tail_is_noticed() {
    let (dir, log) = log();
    append(&log, 0..10);
    drop(log);
    let older = tempfile::tempdir().unwrap();
    copy_tree(&dir.path().join(FOLDER), older.path());
    let log = open(dir.path());
    append(&log, 10..12);
    drop(log);
    std::fs::remove_dir_all(dir.path().join(FOLDER)).unwrap();
    copy_tree(older.path(), &dir.path().join(FOLDER));
    let error = LogStore::open(dir.path()).err().unwrap();
    assert!(matches!(&error, StorageError::TailLost { remembered, .. } if remembered == "index 11"), "{error}");
    std::fs::remove_dir_all(dir.path().join(FOLDER)).unwrap();
    assert!(matches!(LogStore::open(dir.path()), Err(StorageError::TailLost { .. })));
}

#[test]
fn a_lost_vote_is_noticed() {
    let (dir, log) = log();
    wait(|done| log.put_meta(LogMeta::Vote, b"one".to_vec(), done)).unwrap();
    drop(log);
    let older = tempfile::tempdir().unwrap();
    copy_tree(&dir.path().join(FOLDER), older.path());
    let log = open(dir.path());
    wait(|done| log.put_meta(LogMeta::Vote, b"two".to_vec(), done)).unwrap();
    drop(log);
    std::fs::remove_dir_all(dir.path().join(FOLDER)).unwrap();
    copy_tree(older.path(), &dir.path().join(FOLDER));
    assert!(matches!(LogStore::open(dir.path()), Err(StorageError::TailLost { .. })));
}

#[test]
fn a_torn_sentinel_slot_leaves_the_other_one() {
    let (dir, log) = log();
    append(&log, 0..10);
    wait(|done| log.truncate_from(5, done)).unwrap();
    drop(log);
    let path = dir.path().join("raft.sentinel");
    let whole = std::fs::read(&path).unwrap();
    for slot in [0, 4096] {
        let mut torn = whole.clone();
        torn[slot + 20..slot + 60].fill(0xee);
        std::fs::write(&path, &torn).unwrap();
        drop(open(dir.path()));
        std::fs::write(&path, &whole).unwrap();
    }
    std::fs::write(&path, b"nothing of ours").unwrap();
    assert!(matches!(LogStore::open(dir.path()), Err(StorageError::Corrupt { .. })));
}

#[test]
fn the_sentinel_follows_by_itself() {
    let (dir, log) = log();
    append(&log, 0..10);
    // As after a power cut: nothing of this process is closed.
    let noticed = || {
        let copy = tempfile::tempdir().unwrap();
        std::fs::copy(dir.path().join("raft.sentinel"), copy.path().join("raft.sentinel")).unwrap();
        matches!(LogStore::open(copy.path()), Err(StorageError::TailLost { .. }))
    };
    let deadline = Instant::now() + Duration::from_secs(10);
    while !noticed() {
        assert!(Instant::now() < deadline, "the sentinel stays behind");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn after_an_error_every_answer_is_an_error() {
    let (_dir, log) = log();
    append(&log, 0..3);
    let failed: Result<(), _> = log.shared().database.run("testing", |_| Err(sled::Error::Unsupported("x".into())));
    assert!(failed.is_err());
    assert!(wait(|done| log.append(vec![(3, Bytes::new())], done)).is_err());
    assert!(matches!(wait(|done| log.append(vec![(4, Bytes::new())], done)), Err(StorageError::Closed)));
    assert!(matches!(wait(|done| log.put_meta(LogMeta::Vote, vec![], done)), Err(StorageError::Closed)));
    assert!(matches!(wait(|done| log.truncate_from(0, done)), Err(StorageError::Closed)));
    assert!(matches!(wait(|done| log.purge_through(0, vec![], done)), Err(StorageError::Closed)));
    assert!(matches!(log.read(0, 3, 1), Err(StorageError::Closed)));
    assert!(matches!(log.get_meta(LogMeta::Vote), Err(StorageError::Closed)));
    assert!(matches!(log.last_index(), Err(StorageError::Closed)));
}

#[test]
fn a_done_may_hold_the_last_clone_and_queue_more() {
    let (dir, log) = log();
    let (sender, receiver) = channel();
    let clone = log.clone();
    let first: Done = Box::new(move |_| {
        let inner = clone.clone();
        inner.append(vec![(1, payload(1))], Box::new(move |answer| drop((sender.send(answer), clone))));
    });
    log.append(vec![(0, payload(0))], first);
    drop(log);
    receiver.recv_timeout(Duration::from_secs(20)).unwrap().unwrap();
    assert_eq!(indexes(&open(dir.path())), [0, 1]);
}

#[test]
fn large_entries_leave_none_of_sleds_unsynced_files() {
    let (dir, log) = log();
    for index in 0..30 {
        wait(|done| log.append(vec![(index, Bytes::from(vec![index as u8; 1 << 20]))], done)).unwrap();
    }
    wait(|done| log.purge_through(28, vec![], done)).unwrap();
    assert_eq!(log.read(29, 30, 0).unwrap()[0].1.len(), 1 << 20);
    drop(log);
    assert_eq!(std::fs::read_dir(dir.path().join(FOLDER).join("blobs")).unwrap().count(), 0);
}

#[test]
fn an_entry_cut_off_while_it_was_written_is_no_entry() {
    let (dir, log) = log();
    append(&log, 0..5);
    drop(log);
    let database = Database::open(&dir.path().join(FOLDER), Options { cache_bytes: CACHE_BYTES }).unwrap();
    for part in 1..4 {
        database.run("damaging", |db| db.insert(rows::entry_key(5, part), vec![1; 4096])).unwrap();
    }
    drop(database);
    let log = open(dir.path());
    assert_eq!(indexes(&log), (0..5).collect::<Vec<_>>());
    append(&log, 5..8);
    drop(log);
    assert_eq!(indexes(&open(dir.path())), (0..8).collect::<Vec<_>>());
}

#[test]
fn an_entry_in_the_middle_without_its_beginning_is_damage() {
    let (dir, log) = log();
    wait(|done| log.append((0..5).map(|index| (index, Bytes::from(vec![1; 9000]))).collect(), done)).unwrap();
    drop(log);
    for (index, lost) in [(4, true), (2, false)] {
        let database = Database::open(&dir.path().join(FOLDER), Options { cache_bytes: CACHE_BYTES }).unwrap();
        database.run("damaging", |db| db.remove(rows::entry_key(index, 0))).unwrap();
        drop(database);
        // At the end it was durable once, and the sentinel remembers it.
        let error = LogStore::open(dir.path()).err().unwrap();
        assert_eq!(matches!(error, StorageError::TailLost { .. }), lost, "{error}");
    }
}

#[test]
fn what_needs_no_sync_of_its_own_is_written_when_nothing_else_is() {
    let (dir, log) = log();
    append(&log, 0..2);
    log.put_meta_unsynced(LogMeta::Committed, b"committed".to_vec());
    let until = Instant::now() + Duration::from_secs(20);
    loop {
        // As a crash leaves it; one that is copied in the middle of a write may not open.
        let copy = tempfile::tempdir().unwrap();
        let target = copy.path().join("log");
        copy_tree(dir.path(), &target);
        let found = LogStore::open(&target).and_then(|log| log.get_meta(LogMeta::Committed));
        if found.is_ok_and(|found| found.as_deref() == Some(&b"committed"[..])) {
            break;
        }
        assert!(Instant::now() < until, "it stays in memory");
    }
}

#[test]
fn a_writer_thread_that_does_not_get_on_is_seen_without_waiting_for_it() {
    let (_dir, log) = log();
    append(&log, 0..2);
    let (hold, held) = channel::<()>();
    let (began, begins) = channel();
    let stuck: Done = Box::new(move |_| {
        let _ = began.send(());
        let _ = held.recv();
    });
    log.append(vec![(2, payload(2))], stuck);
    begins.recv_timeout(Duration::from_secs(20)).unwrap();
    let until = Instant::now() + Duration::from_secs(20);
    while log.busy_for().unwrap() < Duration::from_millis(20) {
        assert!(Instant::now() < until, "it is stuck");
    }
    drop(hold);
    append(&log, 3..4);
    let until = Instant::now() + Duration::from_secs(20);
    while log.busy_for().unwrap() > Duration::ZERO {
        assert!(Instant::now() < until, "it has nothing to do any more");
    }
    log.append(vec![(4, payload(4))], Box::new(|_| panic!("on purpose")));
    let until = Instant::now() + Duration::from_secs(20);
    while log.busy_for().is_ok() {
        assert!(Instant::now() < until, "the thread has ended");
    }
    assert!(matches!(log.busy_for(), Err(StorageError::Closed)));
}

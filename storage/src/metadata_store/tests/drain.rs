//! Rows on their way into sled: read at every moment, in order, and refused once a drain failed.

use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::*;
use crate::metadata_store::memtable::Memtable;
use crate::metadata_store::view::SetAside;

type Model = BTreeMap<Vec<u8>, Vec<u8>>;

fn apply(model: &mut Model, rows: &Rows) {
    for (key, value) in rows.clone() {
        match value {
            Some(value) => drop(model.insert(key, value)),
            None => drop(model.remove(&key)),
        }
    }
}

/// What a scan must answer.
fn page(model: &Model, prefix: &[u8], after: Option<&[u8]>, limit: usize) -> PresentRows {
    let wanted = model.iter().filter(|(key, _)| key.starts_with(prefix) && after.is_none_or(|after| ***key > *after));
    wanted.take(limit).map(|(key, value)| (key.clone(), value.clone())).collect()
}

fn random_page(random: &mut StdRng) -> (Vec<u8>, Option<Vec<u8>>, usize) {
    let mut key = || format!("k{:03}", random.random_range(0..320)).into_bytes();
    let (mut prefix, after) = (key(), key());
    prefix.truncate(random.random_range(0..4));
    (prefix, random.random_bool(0.5).then_some(after), random.random_range(0..40))
}

#[test]
fn merged_tables_read_like_one() {
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    for _ in 0..300 {
        let (mut below, mut tables) = (Model::new(), Memtable::default());
        (0..random.random_range(0..20)).for_each(|_| apply(&mut below, &random_rows(&mut random)));
        let mut model = below.clone();
        for table in 0..2 {
            for _ in 0..random.random_range(0..4) {
                let rows = random_rows(&mut random);
                apply(&mut model, &rows);
                tables.insert(rows);
            }
            if table == 0 {
                let frozen = tables.freeze();
                // A drain that is half done.
                let part = frozen.iter().filter(|_| random.random_bool(0.5));
                apply(&mut below, &part.map(|(key, value)| (key.to_vec(), value.map(<[u8]>::to_vec))).collect());
            }
        }
        for _ in 0..20 {
            let (prefix, after, limit) = random_page(&mut random);
            let start = after.as_deref().filter(|after| **after >= *prefix);
            let start = start.map_or(std::ops::Bound::Included(&prefix[..]), std::ops::Bound::Excluded);
            let sled = below.range::<[u8], _>((start, std::ops::Bound::Unbounded)).map(Ok::<_, ()>);
            let merged = tables.merge(&prefix, start, limit, sled).unwrap();
            assert_eq!(merged, page(&model, &prefix, after.as_deref(), limit));
        }
    }
}

#[test]
fn reads_and_views_are_right_while_drains_come_and_go() {
    let (dir, store) = store();
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let mut model = Model::new();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                store.flush().unwrap();
            }
        });
        let started = Instant::now();
        let mut views: Vec<(View, Model)> = Vec::new();
        while started.elapsed() < Duration::from_secs(2) {
            let rows = random_rows(&mut random);
            store.write(&rows).unwrap();
            apply(&mut model, &rows);
            let key = format!("k{:03}", random.random_range(0..320)).into_bytes();
            assert_eq!(store.get(&key).unwrap(), model.get(&key).cloned());
            let (prefix, after, limit) = random_page(&mut random);
            let shown = store.scan(&prefix, after.as_deref(), limit).unwrap();
            assert_eq!(shown, page(&model, &prefix, after.as_deref(), limit));
            if random.random_bool(0.02) {
                views.push((store.view().unwrap(), model.clone()));
            }
            if views.len() > 3 {
                let (mut view, expected) = views.swap_remove(random.random_range(0..views.len()));
                let shown = all(&mut view, random.random_range(0..800));
                assert_eq!(shown, expected.into_iter().collect::<PresentRows>());
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    // Not flushed: closing drains.
    let rows = random_rows(&mut random);
    store.write(&rows).unwrap();
    apply(&mut model, &rows);
    drop(store);
    let store = MetadataStore::open(dir.path()).unwrap();
    assert_eq!(store.scan(b"", None, usize::MAX).unwrap(), page(&model, b"", None, usize::MAX));
}

/// Waits for something that another thread does.
fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < Duration::from_secs(20), "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn while_a_drain_is_stuck_rows_are_read_and_writes_wait_at_a_limit() {
    let (_dir, store) = store();
    store.write(&vec![row("a", "1"), row("b", "1"), row("c", "1")]).unwrap();
    let generation = store.current();
    let view: Arc<Mutex<SetAside>> = Arc::default();
    generation.buffered().unwrap().register(&view).unwrap();
    // The drain waits for whoever reads the view.
    let reading = view.lock();
    store.write(&vec![row("a", "2"), (b"b".to_vec(), None)]).unwrap();
    eventually("a drain begins 200 ms after a row", || generation.buffered().unwrap().is_draining());
    store.write(&vec![row("b", "3")]).unwrap();
    assert_eq!(store.get(b"a").unwrap().as_deref(), Some(&b"2"[..]));
    let expected: PresentRows = [("a", "2"), ("b", "3"), ("c", "1")].map(|(k, v)| (k.into(), v.into())).into();
    assert_eq!(store.scan(b"", None, 9).unwrap(), expected);
    assert!(store.unflushed_bytes() >= 8, "active and frozen rows count");
    eventually("the drain takes its time", || store.busy_for().unwrap() > Duration::from_millis(1));
    let written = AtomicU64::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for number in 0..1500u32 {
                let key = [b"w", &number.to_be_bytes()[..]].concat();
                store.write(&vec![(key, Some(vec![0; MAX_VALUE_BYTES]))]).unwrap();
                written.fetch_add(1, Ordering::Relaxed);
            }
        });
        eventually("the memtable fills", || written.load(Ordering::Relaxed) > 900);
        std::thread::sleep(Duration::from_millis(100));
        assert!(written.load(Ordering::Relaxed) < 1100, "writes wait at 4 MiB");
        drop(reading);
    });
    assert_eq!(written.into_inner(), 1500);
    assert_eq!(store.scan(b"w", None, usize::MAX).unwrap().len(), 1500);
    store.flush().unwrap();
    assert_eq!(store.unflushed_bytes(), 0);
}

#[test]
fn after_a_failed_drain_everything_is_refused() {
    let (_dir, store) = store();
    let generation = store.current();
    let buffered = generation.buffered().unwrap();
    let view: Arc<Mutex<SetAside>> = Arc::default();
    buffered.register(&view).unwrap();
    let reading = view.lock();
    store.write(&vec![row("a", "1")]).unwrap();
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| store.flush());
        eventually("the flush drains", || buffered.is_draining());
        let result: Result<(), _> = buffered.database.run("testing", |_| std::panic::panic_any("on purpose"));
        assert!(result.is_err());
        // A row that never saw sled is no exception.
        assert!(matches!(store.write(&vec![row("b", "1")]), Err(StorageError::Closed)));
        assert!(matches!(store.get(b"a"), Err(StorageError::Closed)));
        drop(reading);
        assert!(matches!(waits.join().unwrap(), Err(StorageError::Closed)));
    });
    assert!(store.flush().is_err());
    assert!(matches!(store.busy_for(), Err(StorageError::Closed)));
    assert!(store.write(&vec![row("b", "1")]).is_err());
    assert!(store.write(&Rows::new()).is_err());
    assert!(store.get(b"b").is_err());
    assert!(store.scan(b"", None, 1).is_err());
    assert!(store.view().is_err());
}

#[test]
fn writers_that_wait_learn_of_a_failed_drain() {
    let (_dir, store) = store();
    let generation = store.current();
    let view: Arc<Mutex<SetAside>> = Arc::default();
    generation.buffered().unwrap().register(&view).unwrap();
    let reading = view.lock();
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            (0..5000u32).try_for_each(|number| {
                store.write(&vec![(number.to_be_bytes().to_vec(), Some(vec![0; MAX_VALUE_BYTES]))])
            })
        });
        eventually("the memtable fills", || store.unflushed_bytes() > 4 << 20);
        generation.buffered().unwrap().database.close();
        drop(reading);
        assert!(writer.join().unwrap().is_err());
    });
}

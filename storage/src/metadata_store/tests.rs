use std::collections::BTreeMap;
use std::path::PathBuf;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::*;

mod drain;

fn store() -> (tempfile::TempDir, MetadataStore) {
    let dir = tempfile::tempdir().unwrap();
    let store = MetadataStore::open(dir.path()).unwrap();
    (dir, store)
}

fn row(key: &str, value: &str) -> (Vec<u8>, Option<Vec<u8>>) {
    (key.as_bytes().to_vec(), Some(value.as_bytes().to_vec()))
}

fn folders(dir: &Path) -> Vec<PathBuf> {
    let mut folders: Vec<_> = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    folders.sort();
    folders
}

fn all(view: &mut View, max_bytes: usize) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut rows = Vec::new();
    while let Some(chunk) = view.next_chunk(max_bytes).unwrap() {
        rows.extend(chunk);
    }
    rows
}

#[test]
fn rows_are_read_scanned_deleted_and_survive_a_reopen() {
    let (dir, store) = store();
    store.write(&vec![row("a1", "x"), row("b1", "1"), row("b2", "2"), row("b3", "3"), row("c", "")]).unwrap();
    store.write(&vec![(b"b2".to_vec(), None), row("b1", "one")]).unwrap();
    assert!(store.unflushed_bytes() > 0);
    store.flush().unwrap();
    assert_eq!(store.unflushed_bytes(), 0);
    drop(store);
    let store = MetadataStore::open(dir.path()).unwrap();
    assert_eq!(store.get(b"b1").unwrap().as_deref(), Some(&b"one"[..]));
    assert_eq!(store.get(b"b2").unwrap(), None);
    assert_eq!(store.get(b"c").unwrap().as_deref(), Some(&b""[..]));
    let keys = |after: Option<&[u8]>, limit| -> Vec<Vec<u8>> {
        store.scan(b"b", after, limit).unwrap().into_iter().map(|(key, _)| key).collect()
    };
    assert_eq!(keys(None, 10), [b"b1", b"b3"]);
    assert_eq!(keys(None, 1), [b"b1"]);
    assert_eq!(keys(Some(b"b1"), 10), [b"b3"]);
    assert_eq!(keys(Some(b"a"), 10), [b"b1", b"b3"]);
    assert_eq!(keys(Some(b"c"), 10), [] as [Vec<u8>; 0]);
    assert_eq!(keys(None, 0), [] as [Vec<u8>; 0]);
}

#[test]
fn what_is_too_large_is_refused_whole() {
    let (_dir, store) = store();
    let rows = vec![row("small", "x"), (b"large".to_vec(), Some(vec![0; MAX_VALUE_BYTES + 1]))];
    assert!(matches!(store.write(&rows), Err(StorageError::TooLarge { .. })));
    assert_eq!(store.get(b"small").unwrap(), None);
    store.write(&vec![(b"large".to_vec(), Some(vec![0; MAX_VALUE_BYTES]))]).unwrap();
    assert!(matches!(store.write(&vec![(vec![0; MAX_KEY_BYTES + 1], None)]), Err(StorageError::TooLarge { .. })));
}

fn random_rows(random: &mut StdRng) -> Rows {
    (0..random.random_range(1..20))
        .map(|_| {
            let key = format!("k{:03}", random.random_range(0..300)).into_bytes();
            let value = random.random_bool(0.7).then(|| vec![random.random(); random.random_range(0..50)]);
            (key, value)
        })
        .collect()
}

#[test]
fn views_read_their_moment_while_rows_change() {
    let (_dir, store) = store();
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let mut model: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
    // Each view with what it must show, and what it has shown.
    let mut views: Vec<(View, PresentRows, PresentRows)> = Vec::new();
    let mut finished = 0;
    for _ in 0..3000 {
        let rows = random_rows(&mut random);
        store.write(&rows).unwrap();
        for (key, value) in rows {
            match value {
                Some(value) => drop(model.insert(key, value)),
                None => drop(model.remove(&key)),
            }
        }
        if views.len() < 4 && random.random_bool(0.1) {
            views.push((store.view().unwrap(), model.clone().into_iter().collect(), Vec::new()));
        }
        assert_eq!(store.open_views(), views.len());
        if !views.is_empty() && random.random_bool(0.5) {
            let chosen = random.random_range(0..views.len());
            let (view, expected, shown) = &mut views[chosen];
            match view.next_chunk(random.random_range(0..800)).unwrap() {
                Some(chunk) => shown.extend(chunk),
                None => {
                    assert_eq!(shown, expected);
                    drop(views.swap_remove(chosen));
                    finished += 1;
                }
            }
        }
    }
    assert!(finished > 10, "{finished} views read to the end");
}

#[test]
fn a_view_and_scans_are_consistent_beside_a_writing_thread() {
    let (_dir, store) = store();
    let batch =
        |round: u32| -> Rows { (0..50u8).map(|key| (vec![b'k', key], Some(round.to_le_bytes().to_vec()))).collect() };
    store.write(&batch(0)).unwrap();
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for round in 1.. {
                store.write(&batch(round)).unwrap();
                if stop.load(Ordering::Relaxed) {
                    break;
                }
            }
        });
        for _ in 0..100 {
            for rows in [all(&mut store.view().unwrap(), 60), store.scan(b"k", None, 100).unwrap()] {
                assert_eq!(rows.len(), 50);
                assert!(rows.iter().all(|(_, value)| *value == rows[0].1), "one batch is seen in part");
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
}

#[test]
fn a_view_that_falls_too_far_behind_is_lost_not_wrong() {
    let (_dir, store) = store();
    let value = vec![1; MAX_VALUE_BYTES];
    let batches: Vec<Rows> = (0..18u32)
        .map(|batch| {
            (0..1000u32).map(|i| ([batch.to_be_bytes(), i.to_be_bytes()].concat(), Some(value.clone()))).collect()
        })
        .collect();
    batches.iter().for_each(|rows| store.write(rows).unwrap());
    let mut view = store.view().unwrap();
    assert!(view.next_chunk(1).unwrap().is_some());
    batches.iter().for_each(|rows| store.write(rows).unwrap());
    store.flush().unwrap();
    assert!(matches!(view.next_chunk(1), Err(StorageError::ViewLost)));
    drop(view);
    assert_eq!(store.open_views(), 0);
}

#[test]
fn an_install_switches_all_clones_and_the_old_folder_goes() {
    let (dir, store) = store();
    store.write(&vec![row("old", "1")]).unwrap();
    let clone = store.clone();
    let mut install = store.begin_install().unwrap();
    install.put(&[(b"new".to_vec(), b"2".to_vec())]).unwrap();
    assert_eq!(clone.get(b"new").unwrap(), None);
    assert_eq!(folders(dir.path()).len(), 2);
    install.finish().unwrap();
    assert_eq!(clone.generation(), 2);
    assert_eq!(clone.get(b"old").unwrap(), None);
    assert_eq!(clone.get(b"new").unwrap().as_deref(), Some(&b"2"[..]));
    assert_eq!(folders(dir.path()), [dir.path().join("state-2")]);
    drop((store, clone));
    let store = MetadataStore::open(dir.path()).unwrap();
    assert_eq!((store.generation(), store.get(b"new").unwrap().is_some()), (2, true));
}

#[test]
fn an_old_view_outlives_an_install() {
    let (dir, store) = store();
    store.write(&vec![row("old", "1")]).unwrap();
    let mut view = store.view().unwrap();
    let install = store.begin_install().unwrap();
    install.finish().unwrap();
    assert_eq!(all(&mut view, 1), [(b"old".to_vec(), b"1".to_vec())]);
    assert_eq!(folders(dir.path()).len(), 2);
    drop(view);
    assert_eq!(folders(dir.path()), [dir.path().join("state-2")]);
}

#[test]
fn an_interrupted_install_leaves_the_old_generation() {
    let (dir, store) = store();
    store.write(&vec![row("old", "1")]).unwrap();
    let mut install = store.begin_install().unwrap();
    install.put(&[(b"new".to_vec(), b"2".to_vec())]).unwrap();
    drop(install);
    assert_eq!(folders(dir.path()), [dir.path().join("state-1")]);
    // As a crash leaves it: the folder is there, its mark is not.
    let mut install = store.begin_install().unwrap();
    install.put(&[(b"new".to_vec(), b"2".to_vec())]).unwrap();
    let number = install.generation();
    std::mem::forget(install);
    store.flush().unwrap();
    drop(store);
    assert!(dir.path().join(format!("state-{number}")).is_dir());
    let kept: Vec<PathBuf> = vec![dir.path().join("state-1")];
    // The forgotten install keeps the store alive in this process, so a copy of the folder plays the next start.
    let copy = tempfile::tempdir().unwrap();
    copy_tree(dir.path(), copy.path());
    let store = MetadataStore::open(copy.path()).unwrap();
    assert_eq!(store.generation(), 1);
    assert!(store.get(b"old").unwrap().is_some());
    assert_eq!(folders(copy.path()).len(), kept.len());
}

fn copy_tree(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for path in folders(from) {
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy_tree(&path, &target);
        } else {
            std::fs::copy(&path, &target).unwrap();
        }
    }
}

#[test]
fn an_install_that_was_overtaken_never_becomes_current() {
    let (dir, store) = store();
    let early = store.begin_install().unwrap();
    let late = store.begin_install().unwrap();
    late.finish().unwrap();
    assert!(matches!(early.finish(), Err(StorageError::Superseded { generation: 2 })));
    assert_eq!(store.generation(), 3);
    assert_eq!(folders(dir.path()), [dir.path().join("state-3")]);
}

#[test]
fn split_bodies_leave_none_of_sleds_unsynced_files() {
    let (dir, store) = store();
    let mut random = StdRng::seed_from_u64(7);
    let mut keys = Vec::new();
    for _ in 0..150 {
        let mut rows = Rows::new();
        for _ in 0..20 {
            let key: [u8; 32] = random.random();
            for part in 0..3u8 {
                rows.push(([&key[..], &[part]].concat(), Some(vec![random.random(); MAX_VALUE_BYTES])));
            }
        }
        keys.extend(rows.iter().map(|(key, _)| key.clone()));
        store.write(&rows).unwrap();
    }
    for chunk in keys.chunks(200) {
        store.write(&chunk.iter().map(|key| (key.clone(), None)).collect()).unwrap();
    }
    store.flush().unwrap();
    assert_eq!(store.scan(b"", None, 1).unwrap(), []);
    assert_eq!(std::fs::read_dir(dir.path().join("state-1/blobs")).unwrap().count(), 0);
}

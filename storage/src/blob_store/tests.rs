use std::io::Read;

use super::*;
use crate::digest::Algorithm;

fn store() -> (tempfile::TempDir, BlobStore) {
    let dir = tempfile::tempdir().unwrap();
    let store = BlobStore::open(dir.path(), 0).unwrap();
    (dir, store)
}

fn put(store: &BlobStore, algorithm: Algorithm, content: &[u8]) -> Digest {
    let digest = Digest::of(algorithm, content);
    let mut staging = store.stage().unwrap();
    for piece in content.chunks(1000) {
        staging.write(piece).unwrap();
    }
    assert_eq!(staging.seal(&digest).unwrap(), content.len() as u64);
    digest
}

fn content(store: &BlobStore, digest: &Digest) -> Option<Vec<u8>> {
    let mut blob = store.open_blob(digest).unwrap()?;
    let mut bytes = Vec::new();
    blob.file.read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes.len() as u64, blob.size);
    assert!(blob.is_checked() && blob.is_right(0, &bytes));
    Some(bytes)
}

fn aside(store: &BlobStore, digest: &Digest) -> Option<PathBuf> {
    store.set_aside(&store.open_blob(digest).unwrap().unwrap()).unwrap()
}

fn staged_files(dir: &Path) -> usize {
    fs::read_dir(dir.join("staging")).unwrap().count()
}

#[test]
fn a_damaged_blob_is_put_aside_and_the_oldest_go() {
    let (dir, store) = store();
    let digest = put(&store, Algorithm::Sha256, b"content");
    let kept = aside(&store, &digest).expect("it was there");
    assert_eq!(fs::read(&kept).unwrap(), b"content");
    assert_eq!(store.size(&digest).unwrap(), None);
    for number in 0..ASIDE_MAX as u32 + 5 {
        aside(&store, &put(&store, Algorithm::Sha256, &number.to_be_bytes()));
    }
    assert_eq!(fs::read_dir(dir.path().join("damaged")).unwrap().count(), ASIDE_MAX);
    assert_eq!(content(&store, &put(&store, Algorithm::Sha256, b"content")).as_deref(), Some(&b"content"[..]));
}

#[test]
fn blobs_of_both_algorithms_and_an_empty_one_come_back() {
    let (dir, store) = store();
    let long: Vec<u8> = (0..100_000u32).map(|i| i as u8).collect();
    let mut expected = Vec::new();
    for algorithm in Algorithm::ALL {
        for body in [&b""[..], b"x", &long] {
            let digest = put(&store, algorithm, body);
            assert_eq!(content(&store, &digest).as_deref(), Some(body));
            assert_eq!(store.size(&digest).unwrap(), Some(body.len() as u64));
            expected.push((digest, body.len() as u64));
        }
    }
    drop(store);
    let store = BlobStore::open(dir.path(), 0).unwrap();
    let mut listed = store.list().unwrap();
    listed.sort();
    expected.sort();
    assert_eq!(listed, expected);
    assert_eq!(staged_files(dir.path()), 0);
}

#[test]
fn a_mismatch_leaves_nothing() {
    let (dir, store) = store();
    for algorithm in Algorithm::ALL {
        let claimed = Digest::of(algorithm, b"claimed");
        let mut staging = store.stage().unwrap();
        staging.write(b"something else").unwrap();
        let error = staging.seal(&claimed).unwrap_err();
        let actual = Digest::of(algorithm, b"something else");
        assert!(matches!(error, SealError::DigestMismatch { actual: found } if found == actual));
        assert_eq!(store.size(&claimed).unwrap(), None);
        assert_eq!(store.size(&actual).unwrap(), None);
    }
    assert_eq!(store.list().unwrap(), vec![]);
    assert_eq!(staged_files(dir.path()), 0);
}

#[test]
fn a_dropped_staging_and_a_crash_leave_nothing() {
    let (dir, store) = store();
    let mut staging = store.stage().unwrap();
    staging.write(b"half").unwrap();
    assert_eq!(staged_files(dir.path()), 1);
    drop(staging);
    assert_eq!(staged_files(dir.path()), 0);
    fs::write(dir.path().join("staging/left-by-a-crash"), b"x").unwrap();
    drop(BlobStore::open(dir.path(), 0).unwrap());
    assert_eq!(staged_files(dir.path()), 0);
}

#[test]
fn sealing_what_is_there_takes_the_place_of_what_may_be_damaged() {
    let (dir, store) = store();
    let digest = put(&store, Algorithm::Sha256, b"same");
    let path = store.path(&digest);
    for damaged in ["same", "some", "sam"] {
        fs::write(&path, damaged).unwrap();
        put(&store, Algorithm::Sha256, b"same");
        assert_eq!(content(&store, &digest).as_deref(), Some(&b"same"[..]));
    }
    // What cannot even be opened, and keeps nobody from the others.
    fs::remove_file(&path).unwrap();
    std::os::unix::fs::symlink(&path, &path).unwrap();
    let other = put(&store, Algorithm::Sha256, b"other");
    assert!(store.open_blob(&digest).is_err());
    assert_eq!(store.list().unwrap(), [(other, 5)]);
    put(&store, Algorithm::Sha256, b"same");
    assert_eq!(content(&store, &digest).as_deref(), Some(&b"same"[..]));
    // A good one that came meanwhile is not put aside.
    let opened = store.open_blob(&digest).unwrap().unwrap();
    put(&store, Algorithm::Sha256, b"same");
    assert_eq!(store.set_aside(&opened).unwrap(), None);
    assert_eq!(staged_files(dir.path()), 0);
}

#[test]
fn many_threads_seal_the_same_blob() {
    let (dir, store) = store();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for round in 0..10u8 {
                    let digest = put(&store, Algorithm::Sha256, &[round; 5000]);
                    assert!(store.open_blob(&digest).is_ok());
                }
            });
        }
    });
    assert_eq!(store.list().unwrap().len(), 10);
    assert!(store.inner.unsynced.lock().is_empty());
    assert_eq!(staged_files(dir.path()), 0);
}

#[test]
fn truncate_and_read_at_see_what_will_be_sealed() {
    let (_dir, store) = store();
    let mut staging = store.stage().unwrap();
    staging.write(b"0123456789").unwrap();
    staging.sync().unwrap();
    staging.truncate(4).unwrap();
    staging.truncate(100).unwrap();
    staging.write(b"abc").unwrap();
    assert_eq!(staging.len(), 7);
    let mut buffer = [0; 10];
    assert_eq!(staging.read_at(2, &mut buffer).unwrap(), 5);
    assert_eq!(&buffer[..5], b"23abc");
    assert_eq!(staging.read_at(7, &mut buffer).unwrap(), 0);
    let digest = Digest::of(Algorithm::Sha256, b"0123abc");
    assert_eq!(staging.digest(Algorithm::Sha256).unwrap(), digest);
    staging.seal(&digest).unwrap();
    assert_eq!(content(&store, &digest).unwrap(), b"0123abc");
}

#[test]
fn write_back_starts_early_and_changes_nothing() {
    let (_dir, store) = store();
    let mut staging = store.stage().unwrap();
    let piece = vec![7; 1 << 20];
    for _ in 0..20 {
        staging.write(&piece).unwrap();
    }
    assert_eq!(staging.len(), 20 << 20);
    let digest = Digest::of(Algorithm::Sha256, &vec![7; 20 << 20]);
    assert_eq!(staging.seal(&digest).unwrap(), 20 << 20);
}

#[test]
fn a_removed_blob_is_gone_but_an_open_file_reads_on() {
    let (_dir, store) = store();
    let digest = put(&store, Algorithm::Sha256, b"short-lived");
    let mut file = store.open_blob(&digest).unwrap().unwrap().file;
    assert!(store.take_out(&digest).unwrap().is_some());
    assert!(store.take_out(&digest).unwrap().is_none());
    assert_eq!(store.size(&digest).unwrap(), None);
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes, b"short-lived");
    put(&store, Algorithm::Sha256, b"short-lived");
}

#[test]
fn a_flipped_bit_is_found_where_it_is_and_checksums_go_with_their_blob() {
    let (dir, store) = store();
    let bytes = long(3 * SUMMED_BYTES + 5);
    let digest = put(&store, Algorithm::Sha256, &bytes);
    let path = store.path(&digest);
    let mut damaged = bytes.clone();
    damaged[2 * SUMMED_BYTES] ^= 1;
    fs::write(&path, &damaged).unwrap();
    let blob = store.open_blob(&digest).unwrap().unwrap();
    let second = SUMMED_BYTES as u64;
    assert!(blob.is_right(0, &damaged[..2 * SUMMED_BYTES]) && blob.is_right(3 * second, &damaged[3 * SUMMED_BYTES..]));
    assert!(!blob.is_right(2 * second, &damaged[2 * SUMMED_BYTES..]) && !blob.is_right(0, &damaged));

    let small = put(&store, Algorithm::Sha512, b"small");
    let blob = store.open_blob(&small).unwrap().unwrap();
    assert!(blob.is_checked() && blob.is_right(0, b"small") && !blob.is_right(0, b"smell"));

    drop(store.take_out(&digest).unwrap());
    let left = || fs::read_dir(path.parent().unwrap()).unwrap().count();
    assert_eq!((left(), staged_files(dir.path())), (0, 0));
    // A crash between the two removals.
    put(&store, Algorithm::Sha256, &bytes);
    fs::remove_file(&path).unwrap();
    assert_eq!(left(), 1);
    assert_eq!(store.list().unwrap(), [(small, 5)]);
    assert_eq!(left(), 0);
}

/// Content that no two places of are alike.
fn long(length: usize) -> Vec<u8> {
    (0..length.div_ceil(8) as u64)
        .flat_map(|word| word.wrapping_mul(0x9E37_79B9_7F4A_7C15).to_le_bytes())
        .take(length)
        .collect()
}

#[test]
fn a_large_file_is_read_cut_and_sealed_as_it_was_written() {
    let dir = tempfile::tempdir().unwrap();
    let store = BlobStore::open(dir.path(), 0).unwrap();
    let content = long(5_000_003);
    let mut staging = store.stage().unwrap();
    for piece in content.chunks(77_777) {
        staging.write(piece).unwrap();
    }
    staging.write(b"to be cut off, past the last whole buffer").unwrap();
    staging.truncate(content.len() as u64).unwrap();
    staging.sync().unwrap();
    let read = |staging: &Staging| {
        let (mut read, mut buffer) = (Vec::new(), vec![0; 10_000]);
        while let Ok(count @ 1..) = staging.read_at(read.len() as u64, &mut buffer) {
            read.extend_from_slice(&buffer[..count]);
        }
        read
    };
    assert!(read(&staging) == content);
    // Far back, into what was written directly, and on from there.
    staging.truncate(2_000_001).unwrap();
    assert!(read(&staging) == content[..2_000_001]);
    staging.write(&content[2_000_001..]).unwrap();
    let digest = Digest::of(Algorithm::Sha512, &content);
    assert_eq!(staging.seal(&digest).unwrap(), content.len() as u64);
    assert!(fs::read(store.path(&digest)).unwrap() == content);
}

//! The one module with unsafe code: makes sled's flush reach the disk, and starts write-back early.
//!
//! sled 0.34 ends a flush with `sync_file_range`, which neither flushes the device nor makes a file's new length
//! durable (measured with strace; sled issues 1351 and 1452). This module defines that C symbol itself and calls
//! `fdatasync` instead. Every database open checks that the linker really chose it.

#![allow(unsafe_code)]

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::database::{Database, Options};
use crate::error::StorageError;

static CALLS: AtomicU64 = AtomicU64::new(0);

/// Stands in for the C library's function of this name in the whole program, and syncs for real.
///
/// It returns what `fdatasync` returns and leaves its `errno`. The range is ignored: syncing more is always right.
// SAFETY: the name and signature are the C library's, and callers may rely on no more than its contract, which
// fdatasync of the whole file fulfils and exceeds. Nothing else in the program defines the symbol.
#[unsafe(no_mangle)]
pub extern "C" fn sync_file_range(
    fd: libc::c_int,
    _offset: libc::off64_t,
    _nbytes: libc::off64_t,
    _flags: libc::c_uint,
) -> libc::c_int {
    CALLS.fetch_add(1, Ordering::Relaxed);
    // SAFETY: fdatasync touches no memory of ours and answers a bad descriptor with EBADF.
    unsafe { libc::fdatasync(fd) }
}

/// How often sled has synced so far, in the whole process.
pub fn sync_calls() -> u64 {
    CALLS.load(Ordering::Relaxed)
}

/// Fails unless the symbol that sled is linked to is ours.
///
/// # Errors
/// `SyncNotDurable`.
pub(crate) fn check_linked() -> Result<(), StorageError> {
    type Sync = unsafe extern "C" fn(libc::c_int, libc::off64_t, libc::off64_t, libc::c_uint) -> libc::c_int;
    let linked: Sync = libc::sync_file_range;
    let ours: Sync = sync_file_range;
    // black_box: the comparison must be of the addresses the linker chose, not of what the compiler assumes.
    if std::hint::black_box(linked) as usize == std::hint::black_box(ours) as usize {
        Ok(())
    } else {
        Err(StorageError::SyncNotDurable)
    }
}

/// Proves at start, on the disk that will be used, that a flush of sled arrives in this module.
///
/// Opens a scratch database in `dir`, writes, flushes, removes it.
///
/// # Errors
/// `SyncNotDurable` if the flush went elsewhere; otherwise whatever opening and writing meet.
pub fn self_test(dir: &Path) -> Result<(), StorageError> {
    let path = dir.join(format!(".sync-self-test-{}", std::process::id()));
    let result = write_and_compare(&path);
    if let Err(error) = std::fs::remove_dir_all(&path) {
        tracing::warn!(path = %path.display(), %error, "the scratch database of the sync self-test stays behind");
    }
    result
}

fn write_and_compare(path: &Path) -> Result<(), StorageError> {
    let database = Database::open(path, Options { cache_bytes: 1 << 20 })?;
    let before = sync_calls();
    database.run("writing in the self-test", |db| db.insert(b"key", b"value"))?;
    database.run("flushing in the self-test", |db| db.flush())?;
    if sync_calls() > before { Ok(()) } else { Err(StorageError::SyncNotDurable) }
}

/// Asks the kernel to begin writing a range of dirty pages, without waiting: the sync at the end is then short.
///
/// Only a hint, so its failure is not reported; durability comes from the later sync alone.
pub(crate) fn start_writeback(file: &File, offset: u64, length: u64) {
    // The raw system call, because the C symbol of this name is the one above and would wait for the device.
    // Other architectures order or split the arguments differently; there the final sync just takes longer.
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64"))]
    // SAFETY: the descriptor is open as long as `file` is borrowed, and no memory is passed.
    unsafe {
        libc::syscall(
            libc::SYS_sync_file_range,
            file.as_raw_fd() as libc::c_long,
            offset as libc::c_long,
            length as libc::c_long,
            libc::SYNC_FILE_RANGE_WRITE as libc::c_long,
        );
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64")))]
    let _ = (file.as_raw_fd(), offset, length);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_self_test_passes_and_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        self_test(dir.path()).unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}

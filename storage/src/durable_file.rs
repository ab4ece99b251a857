//! Small files and folders that survive a power cut: written whole or not at all.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::StorageError;

/// Replaces a file so that a reader, now or after a power cut, finds the old bytes or the new ones, never a mixture.
///
/// On return the new content is durable.
///
/// # Errors
/// `Io`; the old file is then still there, unless only the last step, the folder's sync, failed.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<(), StorageError> {
    write_with_mode(path, bytes, 0o666)
}

/// As [`write_atomically`], for what nobody but this user may read: mode 0600.
///
/// # Errors
/// As [`write_atomically`].
pub fn write_secret_atomically(path: &Path, bytes: &[u8]) -> Result<(), StorageError> {
    write_with_mode(path, bytes, 0o600)
}

fn write_with_mode(path: &Path, bytes: &[u8], mode: u32) -> Result<(), StorageError> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    // Hidden: what a crash leaves of the first file of an empty data folder does not make it somebody else's.
    let mut name = OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(format!(".tmp-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)));
    let temporary = path.with_file_name(name);
    let result = write_and_sync(&temporary, bytes, mode)
        .and_then(|()| fs::rename(&temporary, path))
        .map_err(|source| StorageError::io(path, source));
    if result.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    result?;
    // After a power cut the rename itself may be lost, and the caller went on as if it had happened.
    sync_folder(parent_of(path))
}

fn write_and_sync(path: &Path, bytes: &[u8], mode: u32) -> std::io::Result<()> {
    let mut file = OpenOptions::new().create(true).truncate(true).write(true).mode(mode).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// The whole content of a small file, or `None` if there is none.
///
/// # Errors
/// `Io` for anything but a missing file.
pub fn read(path: &Path) -> Result<Option<Vec<u8>>, StorageError> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(StorageError::io(path, error)),
    }
}

/// Makes a folder and its missing parents, each one durable in the folder above it. An existing folder is fine.
///
/// # Errors
/// `Io`, also when something that is no folder has the name.
pub fn create_dir_durably(path: &Path) -> Result<(), StorageError> {
    if path.is_dir() {
        return Ok(());
    }
    let parent = parent_of(path);
    if parent != path {
        create_dir_durably(parent)?;
    }
    match fs::create_dir(path) {
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::AlreadyExists && path.is_dir() => {}
        Err(error) => return Err(StorageError::io(path, error)),
    }
    sync_folder(parent)
}

/// Makes creations, renames and removals inside a folder durable.
///
/// # Errors
/// `Io`.
pub fn sync_folder(path: &Path) -> Result<(), StorageError> {
    File::open(path).and_then(|folder| folder.sync_all()).map_err(|source| StorageError::io(path, source))
}

/// Removes a file durably. A missing file is fine.
///
/// # Errors
/// `Io`.
pub fn remove(path: &Path) -> Result<(), StorageError> {
    match fs::remove_file(path) {
        Ok(()) => sync_folder(parent_of(path)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(StorageError::io(path, error)),
    }
}

fn parent_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ if path.is_absolute() => path,
        _ => Path::new("."),
    }
}

/// Holds a data folder for this process alone; dropping it, or the end of the process, gives it back.
#[derive(Debug)]
pub struct Lock {
    _file: File,
    path: PathBuf,
}

impl Lock {
    /// The lock file.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Takes the exclusive lock of a data folder, without waiting.
///
/// # Errors
/// `Io` of kind `WouldBlock` if another process (or this one) holds it; other kinds as they come.
pub fn lock_folder(dir: &Path) -> Result<Lock, StorageError> {
    let path = dir.join("lock");
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(|source| StorageError::io(&path, source))?;
    match file.try_lock() {
        Ok(()) => Ok(Lock { _file: file, path }),
        Err(TryLockError::WouldBlock) => {
            let source = std::io::Error::new(ErrorKind::WouldBlock, "another process uses this data folder");
            Err(StorageError::io(&path, source))
        }
        Err(TryLockError::Error(source)) => Err(StorageError::io(&path, source)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_whole_and_leaves_nothing_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        assert_eq!(read(&path).unwrap(), None);
        write_atomically(&path, b"one").unwrap();
        write_atomically(&path, b"two").unwrap();
        assert_eq!(read(&path).unwrap().as_deref(), Some(&b"two"[..]));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        remove(&path).unwrap();
        remove(&path).unwrap();
        assert_eq!(read(&path).unwrap(), None);
    }

    #[test]
    fn a_secret_is_for_its_owner_alone() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        write_secret_atomically(&path, b"one").unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn folders_are_made_with_their_parents() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("a/b/c");
        create_dir_durably(&deep).unwrap();
        create_dir_durably(&deep).unwrap();
        assert!(deep.is_dir());
        fs::write(dir.path().join("file"), b"").unwrap();
        assert!(create_dir_durably(&dir.path().join("file")).is_err());
    }

    #[test]
    fn a_folder_is_locked_once() {
        let dir = tempfile::tempdir().unwrap();
        let lock = lock_folder(dir.path()).unwrap();
        let second = lock_folder(dir.path()).unwrap_err();
        assert!(matches!(second, StorageError::Io { error, .. } if error.kind() == ErrorKind::WouldBlock));
        drop(lock);
        lock_folder(dir.path()).unwrap();
    }
}

//! A checksum of each piece of a blob's file, kept beside it: what is read is compared with them at a fraction of what
//! its digest costs, also where only a part is read.
//!
//! They follow from the content alone, so they are never out of date, and none is no harm: they are not synced (ADR 0008).

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::digest::Digest;
use crate::durable_file;
use crate::error::StorageError;
use crate::format::{self, kind};

/// Bytes of a blob that have one checksum. A multiple of a page, and 120 KiB, as much as is read from the page cache
/// at once, is a multiple of it.
pub const SUMMED_BYTES: usize = 40 << 10;

const VERSION: u8 = 1;

/// The CRC32C of each [`SUMMED_BYTES`] of a blob, the last one of what is left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sums(Vec<u32>);

/// Checksums of bytes that come one after the other.
#[derive(Debug, Clone, Default)]
pub struct Summing {
    done: Vec<u32>,
    current: u32,
    in_current: usize,
}

impl Summing {
    /// Adds what follows.
    pub fn update(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let (part, rest) = bytes.split_at(bytes.len().min(SUMMED_BYTES - self.in_current));
            self.current = crc32c::crc32c_append(self.current, part);
            self.in_current += part.len();
            bytes = rest;
            if self.in_current == SUMMED_BYTES {
                self.done.push(std::mem::take(&mut self.current));
                self.in_current = 0;
            }
        }
    }

    /// The checksums of all that came.
    pub fn finish(mut self) -> Sums {
        if self.in_current > 0 {
            self.done.push(self.current);
        }
        Sums(self.done)
    }
}

impl Sums {
    /// Whether these are the bytes from `offset` on, a multiple of [`SUMMED_BYTES`], up to another one or the end.
    fn fit(&self, offset: u64, bytes: &[u8]) -> bool {
        let first = usize::try_from(offset / SUMMED_BYTES as u64).unwrap_or(usize::MAX);
        let sums = self.0.get(first..).unwrap_or_default().iter();
        let pieces = bytes.chunks(SUMMED_BYTES);
        pieces.len() <= sums.len() && pieces.zip(sums).all(|(piece, sum)| crc32c::crc32c(piece) == *sum)
    }

    /// Writes them to `target` by way of `staged`: who reads finds all of them or none.
    pub(super) fn write(&self, staged: &Path, target: &Path) -> Result<(), StorageError> {
        let mut payload = Vec::with_capacity(4 + 4 * self.0.len());
        payload.extend_from_slice(&(SUMMED_BYTES as u32).to_le_bytes());
        payload.extend(self.0.iter().flat_map(|sum| sum.to_le_bytes()));
        fs::write(staged, format::seal(kind::BLOB_SUMS, VERSION, &payload))
            .and_then(|()| fs::rename(staged, target))
            .map_err(|error| StorageError::io(target, error))
    }

    /// Those at `path`; `None` where there are none, or none that this program can use: the scrub makes new ones.
    pub(super) fn read(path: &Path) -> Option<Self> {
        let bytes = durable_file::read(path).inspect_err(|error| tracing::warn!(%error, "no checksums")).ok()??;
        let payload = format::open(kind::BLOB_SUMS, VERSION, &bytes)
            .inspect_err(|error| tracing::debug!(path = %path.display(), %error, "checksums that cannot be used"))
            .ok()?;
        let (summed, sums) = payload.split_first_chunk::<4>()?;
        let (sums, rest) = sums.as_chunks::<4>();
        let are_ours = u32::from_le_bytes(*summed) as usize == SUMMED_BYTES && rest.is_empty();
        are_ours.then(|| Self(sums.iter().map(|sum| u32::from_le_bytes(*sum)).collect()))
    }

    pub(super) fn remove(path: &Path) {
        match fs::remove_file(path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                tracing::warn!(path = %path.display(), %error, "checksums are left until files are compared");
            }
            _ => {}
        }
    }
}

/// A blob's file, open for reading, with what its bytes are compared with.
#[derive(Debug)]
pub struct BlobFile {
    /// The open file: what is removed afterwards can be read to its end.
    pub file: File,
    /// Its length in bytes.
    pub size: u64,
    digest: Digest,
    sums: Option<Sums>,
}

impl BlobFile {
    pub(super) fn new(file: File, size: u64, digest: Digest, sums: Option<Sums>) -> Self {
        Self { file, size, digest, sums }
    }

    pub(super) fn digest(&self) -> &Digest {
        &self.digest
    }

    /// Whether the file at `path` is this one still.
    pub(super) fn is_at(&self, path: &Path) -> bool {
        let file = |found: io::Result<fs::Metadata>| found.map(|found| (found.dev(), found.ino())).ok();
        file(fs::metadata(path)).is_some_and(|found| Some(found) == file(self.file.metadata()))
    }

    /// Whether [`BlobFile::is_right`] can tell.
    pub fn is_checked(&self) -> bool {
        self.sums.is_some() || self.is_one_piece()
    }

    /// Whether `bytes`, read at `offset`, are what was sealed: by their checksums, or by the digest where all of the
    /// blob is one piece. `offset` is a multiple of [`SUMMED_BYTES`], and so is their end, or it is the file's. True
    /// where it cannot be told.
    pub fn is_right(&self, offset: u64, bytes: &[u8]) -> bool {
        match &self.sums {
            Some(sums) => sums.fit(offset, bytes),
            None if self.is_one_piece() => Digest::of(self.digest.algorithm(), bytes) == self.digest,
            None => true,
        }
    }

    /// Whether these are the checksums that are kept, or none need be.
    pub fn has_sums(&self, sums: &Sums) -> bool {
        self.is_one_piece() || self.sums.as_ref() == Some(sums)
    }

    fn is_one_piece(&self) -> bool {
        self.size <= SUMMED_BYTES as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn summed(bytes: &[u8], step: usize) -> Sums {
        let mut summing = Summing::default();
        bytes.chunks(step).for_each(|chunk| summing.update(chunk));
        summing.finish()
    }

    #[test]
    fn any_part_is_compared_however_it_came() {
        let bytes: Vec<u8> = (0..2 * SUMMED_BYTES + 77).map(|number| (number % 251) as u8).collect();
        let sums = summed(&bytes, 1000);
        assert_eq!(sums, summed(&bytes, bytes.len()));
        assert_eq!(summed(b"", 1), Sums(Vec::new()));
        let second = SUMMED_BYTES as u64;
        assert!(sums.fit(0, &bytes) && sums.fit(second, &bytes[SUMMED_BYTES..2 * SUMMED_BYTES]));
        assert!(sums.fit(2 * second, &bytes[2 * SUMMED_BYTES..]));
        assert!(!sums.fit(0, &bytes[..bytes.len() - 1]) && !sums.fit(3 * second, b"more") && !sums.fit(second, &bytes));
        let mut other = bytes.clone();
        other[SUMMED_BYTES + 5] ^= 1;
        assert!(sums.fit(0, &other[..SUMMED_BYTES]) && !sums.fit(0, &other));
    }

    #[test]
    fn what_cannot_be_used_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let (staged, path) = (dir.path().join("staged"), dir.path().join("sums"));
        assert_eq!(Sums::read(&path), None);
        let sums = summed(&[7; 3 * SUMMED_BYTES], 9000);
        sums.write(&staged, &path).unwrap();
        assert_eq!(Sums::read(&path).as_ref(), Some(&sums));
        let mut bytes = fs::read(&path).unwrap();
        bytes[format::HEADER_BYTES + 5] ^= 1;
        fs::write(&path, &bytes).unwrap();
        assert_eq!(Sums::read(&path), None);
        fs::write(&path, "").unwrap();
        assert_eq!(Sums::read(&path), None);
        Sums::remove(&path);
        Sums::remove(&path);
        assert!(!path.exists());
    }
}

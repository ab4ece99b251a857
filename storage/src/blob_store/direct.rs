//! The end of a large staging file, written past the page cache.
//!
//! A large blob is written once and synced at once. Through the page cache each byte costs a copy, a page of memory
//! that something else loses, and a write-back that competes with the sync: measured here, three to four times the
//! processor time and half the rate. Small files stay in the page cache, from which they are read again soon.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

/// What offsets, lengths and memory must be multiples of, in bytes: no file system asks for more.
const ALIGNMENT: usize = 4096;

/// Bytes that are gathered for one write.
const BUFFER_BYTES: usize = 512 << 10;

/// Staging files that may have a buffer at a time; more than that use the page cache.
const BUFFERS_MAX: usize = 32;

static BUFFERS: AtomicUsize = AtomicUsize::new(0);

/// Whether the disk takes direct writes. Some file systems open such a file and refuse its first write.
static WORKS: OnceLock<bool> = OnceLock::new();

/// A staging file open for direct writing, and the bytes that do not fill a buffer yet.
#[derive(Debug)]
pub(super) struct Direct {
    file: File,
    /// Longer than [`BUFFER_BYTES`], so that an aligned part of that length lies in it.
    memory: Vec<u8>,
    /// Where in `memory` the aligned part begins.
    aligned: usize,
    filled: usize,
    /// Where in the file the buffer belongs; aligned.
    offset: u64,
}

impl Direct {
    /// The offset at which direct writing can begin in a file of `length` bytes.
    pub(super) fn start(length: u64) -> u64 {
        length - length % ALIGNMENT as u64
    }

    /// Goes on in a file whose last, incomplete block is `tail`, at `offset`. `None` where too many do so already, or
    /// the file system cannot.
    pub(super) fn open(path: &Path, offset: u64, tail: &[u8]) -> Option<Self> {
        if BUFFERS.fetch_add(1, Ordering::AcqRel) >= BUFFERS_MAX {
            BUFFERS.fetch_sub(1, Ordering::AcqRel);
            return None;
        }
        let Ok(file) = OpenOptions::new().write(true).custom_flags(libc::O_DIRECT).open(path) else {
            BUFFERS.fetch_sub(1, Ordering::AcqRel);
            return None;
        };
        let mut memory = vec![0; BUFFER_BYTES + ALIGNMENT];
        let aligned = memory.as_ptr().align_offset(ALIGNMENT);
        memory[aligned..aligned + tail.len()].copy_from_slice(tail);
        let direct = Self { file, memory, aligned, filled: tail.len(), offset };
        WORKS.get_or_init(|| direct.accepts_writes()).then_some(direct)
    }

    /// Tries with the block that comes next and is written again with what follows.
    fn accepts_writes(&self) -> bool {
        let block = &self.memory[self.aligned..self.aligned + ALIGNMENT];
        self.file
            .write_all_at(block, self.offset)
            .inspect_err(|error| {
                tracing::info!(%error, "the data folder takes no direct writes: large blobs go through the page cache");
            })
            .is_ok()
    }

    /// Appends bytes; writes each buffer that becomes full.
    ///
    /// # Errors
    /// The disk failed; bytes that were accepted before may be lost.
    pub(super) fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let (part, rest) = bytes.split_at(bytes.len().min(BUFFER_BYTES - self.filled));
            let begin = self.aligned + self.filled;
            self.memory[begin..begin + part.len()].copy_from_slice(part);
            self.filled += part.len();
            bytes = rest;
            if self.filled == BUFFER_BYTES {
                self.file.write_all_at(&self.memory[self.aligned..self.aligned + BUFFER_BYTES], self.offset)?;
                self.offset += BUFFER_BYTES as u64;
                self.filled = 0;
            }
        }
        Ok(())
    }

    /// Writes the bytes that do not fill a buffer, padded to whole blocks: the file may be longer than its content
    /// afterwards. They stay here as well, to be written again when more follow.
    ///
    /// # Errors
    /// The disk failed.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        let padded = self.filled.next_multiple_of(ALIGNMENT);
        self.memory[self.aligned + self.filled..self.aligned + padded].fill(0);
        self.file.write_all_at(&self.memory[self.aligned..self.aligned + padded], self.offset)
    }

    /// Where the bytes begin that are only here.
    pub(super) fn offset(&self) -> u64 {
        self.offset
    }

    /// The bytes that are only here.
    pub(super) fn pending(&self) -> &[u8] {
        &self.memory[self.aligned..self.aligned + self.filled]
    }

    /// Drops pending bytes; `length` is the file's new length, at least [`Direct::offset`].
    pub(super) fn truncate(&mut self, length: u64) {
        let left = usize::try_from(length.saturating_sub(self.offset)).unwrap_or(usize::MAX);
        self.filled = self.filled.min(left);
    }
}

impl Drop for Direct {
    fn drop(&mut self) {
        BUFFERS.fetch_sub(1, Ordering::AcqRel);
    }
}

//! A small file outside sled that remembers how much was durable, because sled opens a log with a cut tail silently.
//!
//! It has two slots, written in turn and each checked by itself, so that a write cut off by a power cut leaves the
//! other. It may lag behind by a tenth of a second, or more if a sync is slow: that only notices less.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use parking_lot::Mutex;

use super::queue::Shared;
use crate::durable_file;
use crate::error::StorageError;
use crate::format::{self, HEADER_BYTES, kind};

const FILE: &str = "raft.sentinel";
const VERSION: u8 = 1;
/// Slots lie in pages of their own: a torn write of one cannot touch the other.
const SLOT_STRIDE: usize = 4096;
const PAYLOAD_BYTES: usize = 28;
const INTERVAL: Duration = Duration::from_millis(100);

/// How far the log had come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Mark {
    /// One past the last entry, or past the purged ones if that is more.
    pub(super) next_index: u64,
    /// How many votes were saved so far.
    pub(super) votes: u64,
    /// CRC32C of the last of them.
    pub(super) vote_crc: u32,
}

pub(super) struct Sentinel {
    path: PathBuf,
    slots: Mutex<Slots>,
    /// What the file should say. Not behind the lock of the slots, which is held while they are synced; that one is taken
    /// first where both are.
    target: Mutex<Mark>,
}

struct Slots {
    file: File,
    sequence: u64,
    /// What the file says.
    written: Mark,
}

impl Sentinel {
    /// Compares what the file remembers with what the log holds; makes the file if there is none.
    pub(super) fn open(dir: &Path, found: Mark) -> Result<Self, StorageError> {
        let path = dir.join(FILE);
        let (sequence, written) = match durable_file::read(&path)? {
            Some(bytes) => {
                let (sequence, remembered) = newest(&bytes)
                    .ok_or_else(|| StorageError::corrupt(format!("no slot of {} is readable", path.display())))?;
                check(remembered, found)?;
                (sequence, remembered)
            }
            None => {
                // Number 2 belongs at the front, and the next write goes to the other slot.
                let mut bytes = slot(2, found);
                bytes.resize(2 * SLOT_STRIDE, 0);
                durable_file::write_atomically(&path, &bytes)?;
                (2, found)
            }
        };
        let file = OpenOptions::new().write(true).open(&path).map_err(|error| StorageError::io(&path, error))?;
        Ok(Sentinel { path, slots: Mutex::new(Slots { file, sequence, written }), target: Mutex::new(found) })
    }

    /// Notes what a flush made durable; the file follows in the background.
    pub(super) fn advance(&self, mark: Mark) {
        *self.target.lock() = mark;
    }

    /// Before entries are removed from the end: the file must not remember more than will be left. Durable on return.
    pub(super) fn lower(&self, next_index: u64) -> Result<(), StorageError> {
        let mut slots = self.slots.lock();
        let target = {
            let mut target = self.target.lock();
            target.next_index = target.next_index.min(next_index);
            *target
        };
        if slots.written.next_index <= next_index {
            // Nor does the older slot: between two calls of this function the index only grows.
            return Ok(());
        }
        self.write(&mut slots, target)?;
        // Both slots: whichever is readable after a power cut tells the truth.
        self.write(&mut slots, target)
    }

    /// Brings the file up to date if it is not.
    pub(super) fn catch_up(&self) -> Result<(), StorageError> {
        let mut slots = self.slots.lock();
        let target = *self.target.lock();
        if slots.written == target { Ok(()) } else { self.write(&mut slots, target) }
    }

    fn write(&self, slots: &mut Slots, mark: Mark) -> Result<(), StorageError> {
        let sequence = slots.sequence + 1;
        let offset = (sequence % 2) * SLOT_STRIDE as u64;
        let bytes = slot(sequence, mark);
        slots
            .file
            .write_all_at(&bytes, offset)
            .and_then(|()| slots.file.sync_data())
            .map_err(|error| StorageError::io(&self.path, error))?;
        slots.sequence = sequence;
        slots.written = mark;
        Ok(())
    }
}

/// The thread that keeps the file up to date, so that no append waits for it.
pub(super) fn run(shared: &Shared) {
    loop {
        let closing = shared.wait_for_close(INTERVAL);
        if let Err(error) = shared.sentinel.catch_up() {
            shared.fail(error);
            return;
        }
        if closing {
            return;
        }
    }
}

fn check(remembered: Mark, found: Mark) -> Result<(), StorageError> {
    let lost = |remembered: String, found: String| Err(StorageError::TailLost { remembered, found });
    if found.next_index < remembered.next_index {
        return lost(
            format!("index {}", remembered.next_index - 1),
            match found.next_index {
                0 => "no entry".to_owned(),
                next => format!("index {}", next - 1),
            },
        );
    }
    if found.votes < remembered.votes {
        return lost(format!("vote number {}", remembered.votes), format!("vote number {}", found.votes));
    }
    if found.votes == remembered.votes && found.vote_crc != remembered.vote_crc {
        return lost(format!("vote number {}", remembered.votes), "another vote of this number".to_owned());
    }
    Ok(())
}

fn slot(sequence: u64, mark: Mark) -> Vec<u8> {
    let mut payload = Vec::with_capacity(PAYLOAD_BYTES);
    payload.extend_from_slice(&sequence.to_le_bytes());
    payload.extend_from_slice(&mark.next_index.to_le_bytes());
    payload.extend_from_slice(&mark.votes.to_le_bytes());
    payload.extend_from_slice(&mark.vote_crc.to_le_bytes());
    format::seal(kind::SENTINEL, VERSION, &payload)
}

fn newest(bytes: &[u8]) -> Option<(u64, Mark)> {
    let slots = bytes.chunks(SLOT_STRIDE).filter_map(|slot| {
        let sealed = slot.get(..HEADER_BYTES + PAYLOAD_BYTES)?;
        let payload: &[u8; PAYLOAD_BYTES] = format::open(kind::SENTINEL, VERSION, sealed).ok()?.try_into().ok()?;
        let number = |at: usize| payload[at..].first_chunk().map(|bytes| u64::from_le_bytes(*bytes));
        let vote_crc = payload.last_chunk().map(|bytes| u32::from_le_bytes(*bytes))?;
        Some((number(0)?, Mark { next_index: number(8)?, votes: number(16)?, vote_crc }))
    });
    slots.max_by_key(|(sequence, _)| *sequence)
}

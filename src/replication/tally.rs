//! What this node should hold and does: counts for operators, and the lists that repair and removal work off.

use std::collections::{HashMap, HashSet};

use flotilla_raft::BlobCounts;
use flotilla_storage::Digest;
use parking_lot::Mutex;

/// Digests that are known one by one, of each kind. Beyond these a scan brings the next ones.
const LISTED_MAX: usize = 20_000;

/// What one look found of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    /// It belongs here and is here.
    Held,
    /// It belongs here and is not here.
    Missing,
    /// It is here and belongs to other nodes.
    Surplus,
    /// It belongs to other nodes.
    Elsewhere,
}

/// The blobs that belong on this node, and those that do not and are here.
///
/// All of them are remembered, by eight bytes of the digest each.
#[derive(Default)]
pub(super) struct Tally {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// With their sizes in bytes.
    held: HashMap<u64, u64>,
    missing: HashMap<u64, u64>,
    surplus: HashSet<u64>,
    held_bytes: u64,
    missing_bytes: u64,
    listed_missing: HashMap<Digest, u64>,
    listed_surplus: HashSet<Digest>,
    /// The layout by which everything was compared last.
    layout_revision: u64,
}

/// The blobs that one comparison of everything came across.
#[derive(Default)]
pub(super) struct Seen(HashSet<u64>);

impl Seen {
    /// Adds one.
    pub(super) fn add(&mut self, digest: &Digest) {
        self.0.insert(digest.prefix());
    }
}

impl State {
    fn forget(&mut self, digest: &Digest) {
        let key = digest.prefix();
        self.held_bytes -= self.held.remove(&key).unwrap_or(0);
        self.missing_bytes -= self.missing.remove(&key).unwrap_or(0);
        self.surplus.remove(&key);
        self.listed_missing.remove(digest);
        self.listed_surplus.remove(digest);
    }

    fn hold(&mut self, digest: &Digest, size: u64) {
        self.forget(digest);
        self.held.insert(digest.prefix(), size);
        self.held_bytes += size;
    }
}

impl Tally {
    /// What other nodes are told.
    pub(super) fn counts(&self) -> BlobCounts {
        let state = self.state.lock();
        BlobCounts {
            layout_revision: state.layout_revision,
            held: state.held.len() as u64,
            held_bytes: state.held_bytes,
            missing: state.missing.len() as u64,
            missing_bytes: state.missing_bytes,
            surplus: state.surplus.len() as u64,
            repair_rate: 0,
        }
    }

    /// A blob was looked for.
    pub(super) fn record(&self, digest: &Digest, size: u64, found: Found) {
        let mut state = self.state.lock();
        match found {
            Found::Held => state.hold(digest, size),
            Found::Missing => {
                state.forget(digest);
                state.missing.insert(digest.prefix(), size);
                state.missing_bytes += size;
                if state.listed_missing.len() < LISTED_MAX {
                    state.listed_missing.insert(*digest, size);
                }
            }
            Found::Surplus => {
                state.forget(digest);
                state.surplus.insert(digest.prefix());
                if state.listed_surplus.len() < LISTED_MAX {
                    state.listed_surplus.insert(*digest);
                }
            }
            Found::Elsewhere => state.forget(digest),
        }
    }

    /// A blob was made durable here. One that no repository names yet is counted once one does.
    pub(super) fn came(&self, digest: &Digest) {
        let mut state = self.state.lock();
        if let Some(size) = state.missing.get(&digest.prefix()).copied() {
            state.hold(digest, size);
        }
    }

    /// A blob is not here any more, and need not be.
    pub(super) fn forget(&self, digest: &Digest) {
        self.state.lock().forget(digest);
    }

    /// Whether it is known to be held.
    pub(super) fn is_held(&self, digest: &Digest) -> bool {
        self.state.lock().held.contains_key(&digest.prefix())
    }

    /// Whether it is known to be missing.
    pub(super) fn is_missing(&self, digest: &Digest) -> bool {
        self.state.lock().missing.contains_key(&digest.prefix())
    }

    /// Everything was compared by this layout: forgets what that did not see.
    pub(super) fn compared(&self, seen: &Seen, layout_revision: u64) {
        let mut state = self.state.lock();
        state.held.retain(|key, _| seen.0.contains(key));
        state.missing.retain(|key, _| seen.0.contains(key));
        state.surplus.retain(|key| seen.0.contains(key));
        state.listed_missing.retain(|digest, _| seen.0.contains(&digest.prefix()));
        state.listed_surplus.retain(|digest| seen.0.contains(&digest.prefix()));
        (state.held_bytes, state.missing_bytes) = (state.held.values().sum(), state.missing.values().sum());
        state.layout_revision = layout_revision;
    }

    /// Some missing blobs with their sizes in bytes, none of which `except` says.
    pub(super) fn missing(&self, limit: usize, except: impl Fn(&Digest) -> bool) -> Vec<(Digest, u64)> {
        let state = self.state.lock();
        let listed = state.listed_missing.iter().filter(|(digest, _)| !except(digest));
        listed.take(limit).map(|(digest, size)| (*digest, *size)).collect()
    }

    /// Some blobs that belong to other nodes.
    pub(super) fn surplus(&self) -> Vec<Digest> {
        self.state.lock().listed_surplus.iter().copied().collect()
    }

    /// Whether more is missing or surplus than is listed, so that a scan has to bring the rest.
    pub(super) fn needs_scan(&self) -> bool {
        let state = self.state.lock();
        let is_worked_off = |listed: bool, all: bool| listed && !all;
        is_worked_off(state.listed_missing.is_empty(), state.missing.is_empty())
            || is_worked_off(state.listed_surplus.is_empty(), state.surplus.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use flotilla_storage::Algorithm;

    use super::*;

    fn digest(number: u8) -> Digest {
        Digest::of(Algorithm::Sha256, &[number])
    }

    fn counts(tally: &Tally) -> [u64; 5] {
        let counts = tally.counts();
        [counts.held, counts.held_bytes, counts.missing, counts.missing_bytes, counts.surplus]
    }

    #[test]
    fn counts_follow_what_comes() {
        let tally = Tally::default();
        tally.record(&digest(1), 10, Found::Held);
        tally.record(&digest(2), 20, Found::Missing);
        tally.record(&digest(2), 20, Found::Missing);
        tally.record(&digest(3), 30, Found::Surplus);
        assert_eq!(counts(&tally), [1, 10, 1, 20, 1]);
        assert_eq!(tally.missing(10, |_| false), [(digest(2), 20)]);
        assert_eq!(tally.surplus(), [digest(3)]);
        tally.came(&digest(2));
        tally.forget(&digest(3));
        assert_eq!(counts(&tally), [2, 30, 0, 0, 0]);
        assert!(tally.missing(10, |_| false).is_empty() && tally.surplus().is_empty());
        tally.record(&digest(1), 10, Found::Elsewhere);
        assert_eq!(counts(&tally), [1, 20, 0, 0, 0]);
    }

    #[test]
    fn what_a_comparison_does_not_see_is_forgotten() {
        let tally = Tally::default();
        tally.record(&digest(1), 10, Found::Held);
        tally.record(&digest(2), 20, Found::Missing);
        let mut seen = Seen::default();
        seen.add(&digest(1));
        tally.compared(&seen, 7);
        assert_eq!(counts(&tally), [1, 10, 0, 0, 0]);
        assert_eq!(tally.counts().layout_revision, 7);
    }

    #[test]
    fn a_blob_that_no_repository_names_yet_is_not_counted() {
        let tally = Tally::default();
        tally.came(&digest(1));
        assert_eq!(counts(&tally), [0; 5]);
    }
}

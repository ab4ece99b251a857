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
/// All of them are remembered, by [`Digest::hashed`].
#[derive(Default)]
pub(super) struct Tally {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// With their sizes in bytes.
    held: HashMap<u64, u64>,
    missing: HashMap<u64, u64>,
    /// Those of the missing that no node could give when they were asked for last.
    nowhere: HashSet<u64>,
    surplus: HashSet<u64>,
    held_bytes: u64,
    missing_bytes: u64,
    listed_missing: HashMap<Digest, u64>,
    listed_surplus: HashSet<Digest>,
    compared: Compared,
}

/// By what everything was compared: revisions of the layout and of the settings.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Compared {
    pub(super) layout: u64,
    pub(super) rules: u64,
}

/// The blobs that one comparison of everything came across.
#[derive(Default)]
pub(super) struct Seen(HashSet<u64>);

impl Seen {
    /// Adds one.
    pub(super) fn add(&mut self, digest: &Digest) {
        self.0.insert(digest.hashed());
    }
}

impl State {
    fn forget(&mut self, digest: &Digest) {
        let key = digest.hashed();
        self.held_bytes -= self.held.remove(&key).unwrap_or(0);
        self.missing_bytes -= self.missing.remove(&key).unwrap_or(0);
        self.nowhere.remove(&key);
        self.surplus.remove(&key);
        self.listed_missing.remove(digest);
        self.listed_surplus.remove(digest);
    }

    fn hold(&mut self, digest: &Digest, size: u64) {
        self.forget(digest);
        self.held.insert(digest.hashed(), size);
        self.held_bytes += size;
    }
}

impl Tally {
    /// What other nodes are told.
    pub(super) fn counts(&self) -> BlobCounts {
        let state = self.state.lock();
        let nowhere_bytes = state.nowhere.iter().filter_map(|key| state.missing.get(key)).sum();
        BlobCounts {
            layout_revision: state.compared.layout,
            rules_revision: state.compared.rules,
            held: state.held.len() as u64,
            held_bytes: state.held_bytes,
            missing: state.missing.len() as u64,
            missing_bytes: state.missing_bytes,
            nowhere: state.nowhere.len() as u64,
            nowhere_bytes,
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
                let is_nowhere = state.nowhere.contains(&digest.hashed());
                state.forget(digest);
                if is_nowhere {
                    state.nowhere.insert(digest.hashed());
                }
                state.missing.insert(digest.hashed(), size);
                state.missing_bytes += size;
                // Those that nobody has do not keep others off the list.
                if state.listed_missing.len() < LISTED_MAX + state.nowhere.len() {
                    state.listed_missing.insert(*digest, size);
                }
            }
            Found::Surplus => {
                state.forget(digest);
                state.surplus.insert(digest.hashed());
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
        if let Some(size) = state.missing.get(&digest.hashed()).copied() {
            state.hold(digest, size);
        }
    }

    /// No node that answers could give a blob that is missing here.
    pub(super) fn nowhere(&self, digest: &Digest) {
        let mut state = self.state.lock();
        if state.missing.contains_key(&digest.hashed()) {
            state.nowhere.insert(digest.hashed());
        }
    }

    /// A blob is not here any more, and need not be.
    pub(super) fn forget(&self, digest: &Digest) {
        self.state.lock().forget(digest);
    }

    /// Whether it is known to be held.
    pub(super) fn is_held(&self, digest: &Digest) -> bool {
        self.state.lock().held.contains_key(&digest.hashed())
    }

    /// Whether it is known to be missing.
    pub(super) fn is_missing(&self, digest: &Digest) -> bool {
        self.state.lock().missing.contains_key(&digest.hashed())
    }

    /// Everything was compared: forgets what that did not see.
    pub(super) fn compared(&self, seen: &Seen, by: Compared) {
        let mut state = self.state.lock();
        state.held.retain(|key, _| seen.0.contains(key));
        state.missing.retain(|key, _| seen.0.contains(key));
        state.nowhere.retain(|key| seen.0.contains(key));
        state.surplus.retain(|key| seen.0.contains(key));
        state.listed_missing.retain(|digest, _| seen.0.contains(&digest.hashed()));
        state.listed_surplus.retain(|digest| seen.0.contains(&digest.hashed()));
        (state.held_bytes, state.missing_bytes) = (state.held.values().sum(), state.missing.values().sum());
        state.compared = by;
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
    fn what_is_nowhere_is_told_until_it_comes() {
        let tally = Tally::default();
        let counts = |tally: &Tally| (tally.counts().missing, tally.counts().nowhere, tally.counts().nowhere_bytes);
        tally.nowhere(&digest(1));
        assert_eq!(counts(&tally), (0, 0, 0));
        tally.record(&digest(1), 10, Found::Missing);
        tally.nowhere(&digest(1));
        tally.record(&digest(1), 10, Found::Missing);
        tally.record(&digest(2), 20, Found::Missing);
        assert_eq!(counts(&tally), (2, 1, 10));
        tally.came(&digest(1));
        assert_eq!(counts(&tally), (1, 0, 0));
        tally.nowhere(&digest(2));
        tally.compared(&Seen::default(), Compared::default());
        assert_eq!(counts(&tally), (0, 0, 0));
    }

    #[test]
    fn what_a_comparison_does_not_see_is_forgotten() {
        let tally = Tally::default();
        tally.record(&digest(1), 10, Found::Held);
        tally.record(&digest(2), 20, Found::Missing);
        let mut seen = Seen::default();
        seen.add(&digest(1));
        tally.compared(&seen, Compared { layout: 7, rules: 8 });
        assert_eq!(counts(&tally), [1, 10, 0, 0, 0]);
        assert_eq!((tally.counts().layout_revision, tally.counts().rules_revision), (7, 8));
    }

    #[test]
    fn a_blob_that_no_repository_names_yet_is_not_counted() {
        let tally = Tally::default();
        tally.came(&digest(1));
        assert_eq!(counts(&tally), [0; 5]);
    }
}

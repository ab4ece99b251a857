//! What this node should hold and does: counts for operators, and the list that repair works off.

use std::collections::{HashMap, HashSet};

use flotilla_storage::Digest;
use parking_lot::Mutex;

/// Missing digests that are known one by one. Beyond these a scan brings the next ones.
const LISTED_MAX: usize = 20_000;

/// The blobs that belong on this node.
///
/// All of them are remembered, by eight bytes each: digests are random, so that two that agree in these do not occur.
#[derive(Default)]
pub(super) struct Tally {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    held: HashSet<u64>,
    missing: HashSet<u64>,
    listed: HashMap<Digest, u64>,
}

/// The blobs that one comparison of everything came across.
#[derive(Default)]
pub(super) struct Seen(HashSet<u64>);

impl Seen {
    /// Adds one.
    pub(super) fn add(&mut self, digest: &Digest) {
        self.0.insert(key(digest));
    }
}

impl Tally {
    /// Counts of blobs: held, and missing.
    pub(super) fn counts(&self) -> (u64, u64) {
        let state = self.state.lock();
        (state.held.len() as u64, state.missing.len() as u64)
    }

    /// A blob that belongs here was looked for.
    pub(super) fn record(&self, digest: &Digest, size: u64, held: bool) {
        let (key, mut state) = (key(digest), self.state.lock());
        if held {
            state.held.insert(key);
            state.missing.remove(&key);
            state.listed.remove(digest);
        } else {
            state.held.remove(&key);
            state.missing.insert(key);
            if state.listed.len() < LISTED_MAX {
                state.listed.insert(*digest, size);
            }
        }
    }

    /// A blob was made durable here. One that no repository names yet is counted once one does.
    pub(super) fn came(&self, digest: &Digest) {
        let (key, mut state) = (key(digest), self.state.lock());
        if state.missing.remove(&key) {
            state.held.insert(key);
            state.listed.remove(digest);
        }
    }

    /// A blob does not belong here any more, since nothing names it.
    pub(super) fn forget(&self, digest: &Digest) {
        let (key, mut state) = (key(digest), self.state.lock());
        state.held.remove(&key);
        state.missing.remove(&key);
        state.listed.remove(digest);
    }

    /// Whether it is known to be held.
    pub(super) fn is_held(&self, digest: &Digest) -> bool {
        self.state.lock().held.contains(&key(digest))
    }

    /// Forgets what a comparison of everything did not see: it does not belong here any more.
    pub(super) fn retain(&self, seen: &Seen) {
        let mut state = self.state.lock();
        state.held.retain(|key| seen.0.contains(key));
        state.missing.retain(|key| seen.0.contains(key));
        state.listed.retain(|digest, _| seen.0.contains(&key(digest)));
    }

    /// Some missing blobs with their sizes in bytes, none of which `except` says.
    pub(super) fn missing(&self, limit: usize, except: impl Fn(&Digest) -> bool) -> Vec<(Digest, u64)> {
        let state = self.state.lock();
        let listed = state.listed.iter().filter(|(digest, _)| !except(digest));
        listed.take(limit).map(|(digest, size)| (*digest, *size)).collect()
    }

    /// Whether more is missing than is listed, so that a scan has to bring the rest.
    pub(super) fn needs_scan(&self) -> bool {
        let state = self.state.lock();
        state.listed.is_empty() && !state.missing.is_empty()
    }
}

fn key(digest: &Digest) -> u64 {
    digest.as_bytes().iter().take(8).fold(0, |number, byte| (number << 8) | u64::from(*byte))
}

#[cfg(test)]
mod tests {
    use flotilla_storage::Algorithm;

    use super::*;

    fn digest(number: u8) -> Digest {
        Digest::of(Algorithm::Sha256, &[number])
    }

    #[test]
    fn counts_follow_what_comes() {
        let tally = Tally::default();
        tally.record(&digest(1), 10, true);
        tally.record(&digest(2), 20, false);
        tally.record(&digest(2), 20, false);
        assert_eq!(tally.counts(), (1, 1));
        assert_eq!(tally.missing(10, |_| false), [(digest(2), 20)]);
        tally.came(&digest(2));
        assert_eq!(tally.counts(), (2, 0));
        assert!(tally.missing(10, |_| false).is_empty());
    }

    #[test]
    fn what_a_comparison_does_not_see_is_forgotten() {
        let tally = Tally::default();
        tally.record(&digest(1), 10, true);
        tally.record(&digest(2), 20, false);
        let mut seen = Seen::default();
        seen.add(&digest(1));
        tally.retain(&seen);
        assert_eq!(tally.counts(), (1, 0));
    }

    #[test]
    fn a_blob_that_no_repository_names_yet_is_not_counted() {
        let tally = Tally::default();
        tally.came(&digest(1));
        assert_eq!(tally.counts(), (0, 0));
    }
}

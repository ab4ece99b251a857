//! What a node may say of a file while files are collected (invariant I22).
//!
//! A collected file is doomed from the moment at which its entry is applied, and removed a little later. «I have it»
//! is a promise with the index that this node has applied: made before the collection it is void, which apply sees;
//! made after it, it must hold, so it takes the doom off. Who is about to promise asks here first and looks at the
//! disk then.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use flotilla_storage::Digest;
use parking_lot::Mutex;

/// The promises of one node. Cheap to clone.
#[derive(Clone, Default)]
pub struct Promises {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Default)]
struct Inner {
    /// The last applied index.
    applied: u64,
    /// Entries up to this one were in the log when this process began: what was promised after them it does not know,
    /// so it removes nothing for them. The comparison of all files with state finds what they left.
    replayed: u64,
    doomed: HashMap<Digest, u64>,
    pinned: HashMap<Digest, usize>,
    /// Named files that do not belong here, while the nodes to which they belong are asked whether they have them.
    leaving: HashSet<Digest>,
}

/// Keeps a file from being removed, doomed or not, as long as it lives: its bytes are needed for more copies.
pub struct Pin {
    promises: Promises,
    digest: Digest,
}

impl Promises {
    /// Nothing is removed for entries up to `last_log_index`.
    pub(crate) fn begin(&self, last_log_index: u64) {
        self.inner.lock().replayed = last_log_index;
    }

    /// Says that this node has, or will have, the bytes: the index to pass on. Ask before you look or write.
    pub fn promise(&self, digest: &Digest) -> u64 {
        let mut inner = self.inner.lock();
        // Every doom is of an applied entry by the time this index can be seen.
        inner.kept(digest);
        inner.applied
    }

    /// As [`Promises::promise`], and keeps the file while the pin lives.
    pub fn pin(&self, digest: &Digest) -> (u64, Pin) {
        let mut inner = self.inner.lock();
        inner.kept(digest);
        *inner.pinned.entry(*digest).or_default() += 1;
        (inner.applied, Pin { promises: self.clone(), digest: *digest })
    }

    /// Entries up to `index` are applied; they have collected some files and named others, in this order.
    pub(crate) fn applied(&self, index: u64, files: impl IntoIterator<Item = File>) {
        let mut inner = self.inner.lock();
        for file in files {
            match file {
                File::Collected { index, digest } if index > inner.replayed => {
                    inner.doomed.insert(digest, index);
                }
                File::Collected { .. } => {}
                File::Named { digest } => inner.kept(&digest),
            }
        }
        inner.applied = index;
    }

    /// The whole state was replaced: what it names and does not, a comparison finds.
    pub(crate) fn replaced(&self, index: u64) {
        let mut inner = self.inner.lock();
        inner.doomed.clear();
        inner.leaving.clear();
        inner.applied = index;
    }

    /// A file that does not belong here is about to leave: others are asked now whether they have it.
    pub fn leave(&self, digest: &Digest) {
        self.inner.lock().leaving.insert(*digest);
    }

    /// A file does not leave: others said no.
    pub fn stay(&self, digest: &Digest) {
        self.inner.lock().leaving.remove(digest);
    }

    /// Removes a leaving file by `remove`, unless it was promised since [`Promises::leave`]. `None` where it was, or is
    /// pinned, or `may_go` says no.
    pub fn remove_leaving<T>(
        &self,
        digest: &Digest,
        may_go: impl FnOnce() -> bool,
        remove: impl FnOnce() -> T,
    ) -> Option<T> {
        let mut inner = self.inner.lock();
        let leaves = inner.leaving.remove(digest) && !inner.pinned.contains_key(digest) && may_go();
        leaves.then(remove)
    }

    /// Files to remove, some.
    pub fn doomed(&self, limit: usize) -> Vec<Digest> {
        self.inner.lock().doomed.keys().take(limit).copied().collect()
    }

    /// Removes a doomed file by `remove`, unless it was promised again meanwhile. `None` where it was, or is pinned.
    pub fn remove<T>(&self, digest: &Digest, remove: impl FnOnce() -> T) -> Option<T> {
        let mut inner = self.inner.lock();
        inner.doomed.remove(digest)?;
        // Under the lock: who promises the bytes after this looks at a disk from which they are gone.
        (!inner.pinned.contains_key(digest)).then(remove)
    }
}

impl Inner {
    fn kept(&mut self, digest: &Digest) {
        self.doomed.remove(digest);
        self.leaving.remove(digest);
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        let mut inner = self.promises.inner.lock();
        if let Some(count) = inner.pinned.get_mut(&self.digest) {
            *count -= 1;
            if *count == 0 {
                inner.pinned.remove(&self.digest);
            }
        }
    }
}

/// What an entry said of a file.
pub(crate) enum File {
    /// It goes.
    Collected {
        /// The entry's index.
        index: u64,
        /// The digest.
        digest: Digest,
    },
    /// A name was given to it: it stays.
    Named {
        /// The digest.
        digest: Digest,
    },
}

#[cfg(test)]
mod tests {
    use flotilla_storage::Algorithm;

    use super::*;

    fn digest() -> Digest {
        Digest::of(Algorithm::Sha256, b"a")
    }

    fn collected(index: u64) -> [File; 1] {
        [File::Collected { index, digest: digest() }]
    }

    #[test]
    fn a_promise_after_the_collection_keeps_the_file() {
        let promises = Promises::default();
        promises.applied(5, collected(5));
        assert_eq!(promises.promise(&digest()), 5);
        assert_eq!(promises.remove(&digest(), || ()), None);
    }

    #[test]
    fn a_promise_before_the_collection_does_not() {
        let promises = Promises::default();
        promises.applied(4, []);
        assert_eq!(promises.promise(&digest()), 4);
        promises.applied(5, collected(5));
        assert_eq!(promises.doomed(10), [digest()]);
        assert_eq!(promises.remove(&digest(), || ()), Some(()));
    }

    #[test]
    fn a_pinned_file_stays_and_a_named_one_too() {
        let promises = Promises::default();
        let (_, pin) = promises.pin(&digest());
        promises.applied(5, collected(5));
        assert_eq!(promises.remove(&digest(), || ()), None);
        drop(pin);
        promises.applied(6, collected(6));
        promises.applied(7, [File::Named { digest: digest() }]);
        assert!(promises.doomed(10).is_empty());
    }

    #[test]
    fn a_leaving_file_stays_where_it_is_promised_meanwhile() {
        let promises = Promises::default();
        let gone = || promises.remove_leaving(&digest(), || true, || ()).is_some();
        assert!(!gone());
        promises.leave(&digest());
        assert!(gone());
        promises.leave(&digest());
        promises.promise(&digest());
        assert!(!gone());
        promises.leave(&digest());
        let pin = promises.pin(&digest());
        promises.leave(&digest());
        assert!(!gone());
        drop(pin);
        promises.leave(&digest());
        assert_eq!(promises.remove_leaving(&digest(), || false, || ()), None);
        promises.leave(&digest());
        promises.stay(&digest());
        assert!(!gone());
    }

    #[test]
    fn what_is_replayed_after_a_start_removes_nothing() {
        let promises = Promises::default();
        promises.begin(5);
        promises.applied(5, collected(5));
        assert!(promises.doomed(10).is_empty());
        promises.applied(6, collected(6));
        assert_eq!(promises.doomed(10), [digest()]);
    }
}
